//! Asking a server: a real one, on loopback.

use crate::server::REPLY;
use crate::value;
use lucid_attention::AttentionError;
use lucid_attention::titans::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Long enough for a machine that is busy.
const PATIENT: Duration = Duration::from_secs(60);

/// A server of one request: its address, and the request's first line and body once it has answered.
fn serve(answer: String) -> (String, JoinHandle<(String, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("a bound socket"));
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a request");
        let request = read(&stream);
        // A client that has read enough may be gone.
        let _ = stream.write_all(answer.as_bytes());
        request
    });
    (url, server)
}

fn read(stream: &TcpStream) -> (String, String) {
    let mut reader = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line of the request");
        line.trim_end().to_owned()
    };
    let (first, mut size) = (line(), 0);
    loop {
        let header = line().to_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(length) = header.strip_prefix("content-length:") {
            size = length.trim().parse().expect("a length");
        }
    }
    let mut body = vec![0; size];
    reader.read_exact(&mut body).expect("the body");
    (first, String::from_utf8(body).expect("text"))
}

fn answer(status: &str, body: &str) -> String {
    let size = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n{body}"
    )
}

#[track_caller]
fn assert_fails(got: Result<ServerConfig, AttentionError>, why: &[&str]) {
    let error = got.expect_err("a server that does not answer as it should");
    let AttentionError::Service { operand: "/config", reason } = &error else { panic!("{error}") };
    for why in why {
        assert!(reason.contains(why), "\"{reason}\" does not say \"{why}\"");
    }
}

#[test]
fn a_configuration() {
    let (url, server) = serve(answer("200 OK", REPLY));
    let config = ServerConfig::fetch(&url, PATIENT).expect("a configuration");
    assert_eq!(Ok(config), ServerConfig::from_json(REPLY));
    let (request, body) = server.join().expect("a request");
    assert_eq!((&request[..], &body[..]), ("GET /config HTTP/1.1", ""));

    for (variant, name) in [(Variant::Mac, "MAC"), (Variant::Mag, "MAG"), (Variant::Mal, "MAL")] {
        let (url, server) = serve(answer("200 OK", &REPLY.replace("MAC", name)));
        let config =
            ServerConfig::fetch_variant(&format!("{url}/"), variant, PATIENT).expect("a configuration");
        assert_eq!(config.titans_variant, variant);
        let (request, body) = server.join().expect("a request");
        assert_eq!(request, "POST /config HTTP/1.1");
        assert_eq!(body, format!("{{\"variant\":\"{name}\"}}"));
    }
    let error =
        ServerConfig::fetch_variant("http://127.0.0.1:1", Variant::None, PATIENT).expect_err("no name");
    assert_eq!(error, value("variant", "MAC, MAG or MAL", "None"));
}

#[test]
fn another_status() {
    for status in ["503 Service Unavailable", "404 Not Found", "500 Internal Server Error", "204 No Content"]
    {
        let body = if status.starts_with("204") { "" } else { r#"{"detail": "not initialized"}"# };
        let (url, server) = serve(answer(status, body));
        let got = format!("expected status 200, got {}", &status[..3]);
        assert_fails(ServerConfig::fetch(&url, PATIENT), &[&url, &got, body]);
        server.join().expect("a request");
    }
    let elsewhere = "HTTP/1.1 307 Temporary Redirect\r\nLocation: /other\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let (url, server) = serve(elsewhere.to_owned());
    assert_fails(ServerConfig::fetch(&url, PATIENT), &[&url, "status 200, got 307"]);
    server.join().expect("a request");
}

#[test]
fn replies_that_are_none() {
    for (body, why) in [
        ("{\"neural_memory_config\": ".to_owned(), "EOF"),
        ("<html></html>".to_owned(), "expected value"),
        ("{}".to_owned(), "missing field `neural_memory_config`"),
        (REPLY.replace("\"query_dim\"", "\"q_dim\""), "missing field `query_dim`"),
        (REPLY.to_owned() + &" ".repeat(1 << 20), "/config"), // valid, but larger than any configuration
    ] {
        let (url, server) = serve(answer("200 OK", &body));
        assert_fails(ServerConfig::fetch(&url, PATIENT), &[why]);
        server.join().expect("a request");
    }
    let (url, server) = serve("not HTTP\r\n\r\n".to_owned());
    assert_fails(ServerConfig::fetch(&url, PATIENT), &[&url]);
    server.join().expect("a request");
    let cut = answer("200 OK", REPLY);
    let (url, server) = serve(cut[..cut.len() - 10].to_owned());
    assert_fails(ServerConfig::fetch(&url, PATIENT), &[&url]);
    server.join().expect("a request");
}

#[test]
fn no_answer() {
    // Nobody accepts: the connection stands, and no answer ever comes.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("a bound socket"));
    let start = Instant::now();
    assert_fails(ServerConfig::fetch(&url, Duration::from_millis(200)), &[&url, "timeout"]);
    assert!(start.elapsed() >= Duration::from_millis(200));
    drop(listener);

    // A port that was just free could be another test's by now.
    assert_fails(ServerConfig::fetch("http://127.0.0.1:1", PATIENT), &["refused"]);
    assert_fails(ServerConfig::fetch("no address", PATIENT), &["no address"]);
}
