//! Times attention in candle or rten for `compare.py`: `lucid-peers candle` or `lucid-peers rten`.
//!
//! The protocol is that of the `bench_worker` example (see `../README.md` for what is added to it).

mod candle;
mod rten;

use serde::Deserialize;
use serde_json::{Value, json};
use std::error::Error;
use std::io::{BufRead, Write};
use std::time::Instant;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Seconds after which a first call counts as the measurement: it need not be warmed up.
const SLOW: f64 = 2.0;

#[derive(Deserialize)]
struct Empty {
    secs: f64,
    model: String,
}

#[derive(Deserialize)]
struct Request {
    case: [usize; 7],
    dtype: String,
    route: String,
    secs: f64,
    data: String,
    out: String,
    model: String,
}

impl Request {
    fn q_shape(&self) -> [usize; 4] {
        let [batch, q_heads, _, q_len, _, dim, _] = self.case;
        [batch, q_heads, q_len, dim]
    }

    fn kv_shape(&self) -> [usize; 4] {
        let [batch, _, kv_heads, _, kv_len, dim, _] = self.case;
        [batch, kv_heads, kv_len, dim]
    }

    fn causal(&self) -> bool {
        self.case[6] != 0
    }

    fn scale(&self) -> f32 {
        1.0 / (self.case[5] as f32).sqrt()
    }

    /// q, k and v.
    fn read(&self) -> Outcome<[Vec<f32>; 3]> {
        let bytes = std::fs::read(&self.data)?;
        let mut values = bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
        let shapes = [self.q_shape(), self.kv_shape(), self.kv_shape()];
        Ok(shapes.map(|shape| values.by_ref().take(shape.iter().product()).collect()))
    }
}

/// A prepared call.
trait Call {
    fn run(&self) -> Outcome<()>;
    /// Runs, and converts the output to f32 `[batch, q_heads, q_len, head_dim]`.
    fn output(&self) -> Outcome<Vec<f32>>;
}

struct Library {
    /// Its name in `Cargo.lock`, which knows the version.
    package: &'static str,
    routes: &'static [&'static str],
    prepare: fn(&Request) -> Outcome<Box<dyn Call>>,
    empty: fn(&Empty) -> Outcome<Box<dyn Call>>,
}

fn main() -> Outcome<()> {
    let library = match std::env::args().nth(1).as_deref() {
        Some("candle") => candle::LIBRARY,
        Some("rten") => rten::LIBRARY,
        _ => return Err("which one: candle or rten?".into()),
    };
    for line in std::io::stdin().lock().lines() {
        let answer = serve(&library, &line?).unwrap_or_else(|error| json!({ "error": error.to_string() }));
        println!("@{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn serve(library: &Library, line: &str) -> Outcome<Value> {
    let question: Value = serde_json::from_str(line)?;
    if question.get("hello").is_some() {
        return Ok(json!({ "version": version(library.package), "routes": library.routes }));
    }
    let times = match question.get("empty") {
        Some(empty) => {
            let empty = Empty::deserialize(empty)?;
            time(&*(library.empty)(&empty)?, empty.secs)?
        }
        None => serve_case(library, &Request::deserialize(question)?)?,
    };
    Ok(json!({ "times": times }))
}

fn serve_case(library: &Library, request: &Request) -> Outcome<Vec<f64>> {
    let call = (library.prepare)(request)?;
    let before = Instant::now();
    let output = call.output()?;
    let first = before.elapsed().as_secs_f64();
    let bytes: Vec<u8> = output.iter().flat_map(|x| x.to_le_bytes()).collect();
    std::fs::write(&request.out, bytes)?;
    if first > SLOW { Ok(vec![first]) } else { time(&*call, request.secs) }
}

/// `None` if the lock file is not written as expected.
fn version(package: &str) -> Option<&'static str> {
    let (_, entry) =
        include_str!("../Cargo.lock").split_once(&format!("name = \"{package}\"\nversion = \""))?;
    Some(entry.split_once('"')?.0)
}

fn time(call: &dyn Call, secs: f64) -> Outcome<Vec<f64>> {
    call.run()?;
    let mut times = Vec::new();
    let start = Instant::now();
    while times.len() < 2 || start.elapsed().as_secs_f64() < secs {
        let before = Instant::now();
        call.run()?;
        times.push(before.elapsed().as_secs_f64());
    }
    Ok(times)
}
