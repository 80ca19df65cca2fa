//! Asks a Neural Memory server for its configuration (feature `http`): one request, blocking, without TLS or proxies.

use super::server::{ServerConfig, Variant};
use crate::error::AttentionError;
use std::time::{Duration, Instant};

/// The largest reply that is read, in bytes; a configuration has some hundred.
const MAX_REPLY_BYTES: u64 = 1 << 20;

impl ServerConfig {
    /// The configuration of the server at `url` (`http://host:port`), by `GET` from its `/config`; within `timeout` in all.
    ///
    /// # Errors
    /// [`AttentionError::Service`] if there is no server, it does not answer in time, or with another status than 200 (the
    /// message has the first of what it says); or its reply is not as [`ServerConfig::from_json`] wants it.
    pub fn fetch(url: &str, timeout: Duration) -> Result<Self, AttentionError> {
        let endpoint = endpoint(url);
        reply(&endpoint, agent(timeout).get(&endpoint).call())
    }

    /// The same, by `POST`, which asks the server for a variant.
    ///
    /// # Errors
    /// As [`ServerConfig::fetch`], or `variant` is [`Variant::None`], for which servers have no name.
    pub fn fetch_variant(url: &str, variant: Variant, timeout: Duration) -> Result<Self, AttentionError> {
        let name = match variant {
            Variant::Mac => "MAC",
            Variant::Mag => "MAG",
            Variant::Mal => "MAL",
            Variant::None => {
                let (expected, got) = ("MAC, MAG or MAL", "None".to_owned());
                return Err(AttentionError::Value { operand: "variant", expected, got });
            }
        };
        let endpoint = endpoint(url);
        let request = agent(timeout).post(&endpoint).content_type("application/json");
        reply(&endpoint, request.send(format!("{{\"variant\":\"{name}\"}}")))
    }
}

fn endpoint(url: &str) -> String {
    format!("{}/config", url.trim_end_matches('/'))
}

fn agent(timeout: Duration) -> ureq::Agent {
    // A time that no clock reaches is none.
    let timeout = Some(timeout).filter(|&timeout| Instant::now().checked_add(timeout).is_some());
    let config = ureq::Agent::config_builder()
        .timeout_global(timeout)
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .build();
    config.into()
}

fn reply(
    endpoint: &str,
    response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<ServerConfig, AttentionError> {
    let failed = |reason: String| AttentionError::Service { operand: "/config", reason };
    let mut response = response.map_err(|error| failed(format!("{endpoint}: {error}")))?;
    let status = response.status().as_u16();
    let body = response.body_mut().with_config().limit(MAX_REPLY_BYTES).read_to_string();
    if status != 200 {
        let said: String = body.unwrap_or_default().chars().take(200).collect();
        return Err(failed(format!("{endpoint}: expected status 200, got {status}: {said}")));
    }
    ServerConfig::from_json(&body.map_err(|error| failed(format!("{endpoint}: {error}")))?)
}
