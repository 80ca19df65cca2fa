//! Times this crate for a benchmark driver that runs several libraries in turn.
//!
//! The protocol is one JSON object a line on standard input; its case says what is timed:
//!
//! ```text
//! {"case": CASE, "dtype": "f32" | "f16" | "bf16", "secs": 0.3, "threads": 2, "data": FILE, "out": FILE}
//!
//! CASE [batch, q_heads, kv_heads, q_len, kv_len, head_dim, causal]       attention, see attention.rs
//!      [batch, q_len, kv_len, dim, heads, key_dim]                       a whole layer, see module.rs
//! ```
//!
//! `data` holds tensors one after another as little-endian f32; `out` gets the f32 output of one call. The answer is one
//! line after an `@`:
//!
//! ```text
//! @{"times": [seconds, ...], "err": null}      or      @{"error": "..."}
//! ```
//!
//! Times are of calls inside a rayon pool of `threads` threads; reading, conversion and planning are not counted.
//!
//! Environment: `LUCID_LEVEL` forces a level, `LUCID_PANELS=1` holds K and V in a `KvCache` before timing,
//! `LUCID_BF16_DOT=1` selects the bf16 dot-product tier of attention, `LUCID_SPREAD_FROM=4` spreads attention over the pool
//! from an estimated 4 microseconds on.

mod attention;
mod module;

use half::{bf16, f16};
use lucid_attention::Element;
use serde::Deserialize;
use std::error::Error;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

#[derive(Deserialize)]
struct Request {
    case: Vec<usize>,
    dtype: String,
    secs: f64,
    threads: usize,
    data: String,
    out: String,
}

fn main() -> Result<(), Box<dyn Error>> {
    for line in std::io::stdin().lock().lines() {
        let answer =
            match serde_json::from_str(&line?).map_err(Into::into).and_then(|request| serve(&request)) {
                Ok(times) => serde_json::json!({ "times": times, "err": null }),
                Err(error) => serde_json::json!({ "error": error.to_string() }),
            };
        println!("@{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn serve(request: &Request) -> Result<Vec<f64>, Box<dyn Error>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(request.threads).build()?;
    let run = || {
        let times = match (&request.case[..], request.dtype.as_str()) {
            (&[b, qh, kh, ql, kl, d, causal], "f32") => {
                attention::time::<f32>(request, [b, qh, kh, ql, kl, d, causal])
            }
            (&[b, qh, kh, ql, kl, d, causal], "f16") => {
                attention::time::<f16>(request, [b, qh, kh, ql, kl, d, causal])
            }
            (&[b, qh, kh, ql, kl, d, causal], "bf16") => {
                attention::time::<bf16>(request, [b, qh, kh, ql, kl, d, causal])
            }
            (&[b, ql, kl, dim, heads, d], "f32") => module::time(request, [b, ql, kl, dim, heads, d]),
            (case, dtype) => Err(format!("no case {case:?} of {dtype}").into()),
        };
        times.map_err(|error| error.to_string())
    };
    Ok(pool.install(run)?)
}

impl Request {
    /// The tensors of the file, of so many numbers each.
    fn read<T: Element, const N: usize>(&self, sizes: [usize; N]) -> Result<[Vec<T>; N], Box<dyn Error>> {
        let bytes = std::fs::read(&self.data)?;
        let (values, _) = bytes.as_chunks::<4>();
        let mut values = values.iter().map(|&bytes| T::from_f32(f32::from_le_bytes(bytes)));
        let tensors = sizes.map(|size| values.by_ref().take(size).collect::<Vec<T>>());
        let complete = tensors.iter().zip(sizes).all(|(tensor, size)| tensor.len() == size);
        if complete { Ok(tensors) } else { Err(format!("{} is too short", self.data).into()) }
    }

    /// Calls once, and then for the time asked.
    fn time<E: Error + 'static>(
        &self,
        mut call: impl FnMut() -> Result<(), E>,
    ) -> Result<Vec<f64>, Box<dyn Error>> {
        call()?;
        let mut times = Vec::new();
        let start = Instant::now();
        while times.len() < 2 || start.elapsed() < Duration::from_secs_f64(self.secs) {
            let before = Instant::now();
            call()?;
            times.push(before.elapsed().as_secs_f64());
        }
        Ok(times)
    }

    fn write<T: Element>(&self, out: &[T]) -> Result<(), Box<dyn Error>> {
        let bytes: Vec<u8> = out.iter().flat_map(|x| x.to_f32().to_le_bytes()).collect();
        Ok(std::fs::write(&self.out, bytes)?)
    }
}

/// Microseconds, see [`PlanOptions`](lucid_attention::PlanOptions).
fn spread_from() -> Result<Option<u64>, std::num::ParseIntError> {
    std::env::var("LUCID_SPREAD_FROM").ok().map(|value| value.parse()).transpose()
}

/// Whether an environment variable is 1.
fn flag(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| value == "1")
}
