//! Times this crate's attention for a benchmark driver that runs several libraries in turn.
//!
//! The protocol, one JSON object a line on standard input:
//!
//! ```text
//! {"case": [batch, q_heads, kv_heads, q_len, kv_len, head_dim, causal], "dtype": "f32" | "f16" | "bf16",
//!  "secs": 0.3, "threads": 2, "data": FILE, "out": FILE}
//! ```
//!
//! `data` holds q, k and v one after another, each `[batch, heads, tokens, head_dim]`, as little-endian f32; `out` gets
//! the f32 output `[batch, q_heads, q_len, head_dim]` of one call. The answer is one line after an `@`:
//!
//! ```text
//! @{"times": [seconds, ...], "err": null}      or      @{"error": "..."}
//! ```
//!
//! q, k, v and the output are stored in `dtype`. A causal mask aligns query 0 with key 0. Times are of planned calls
//! inside a rayon pool of `threads` threads; reading, conversion and planning are not counted.
//!
//! Environment: `LUCID_LEVEL` forces a level, `LUCID_PANELS=1` holds K and V in a `KvCache` before timing,
//! `LUCID_BF16_DOT=1` selects the bf16 dot-product tier.

use half::{bf16, f16};
use lucid_attention::{
    AttentionError, Element, Inputs, KvCache, Mask, Outputs, Plan, PlanOptions, Problem, QueryStart, View,
    ViewMut,
};
use serde::Deserialize;
use std::error::Error;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

#[derive(Deserialize, PartialEq, Clone)]
struct Request {
    case: [usize; 7],
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
    let run = || match request.dtype.as_str() {
        "f32" => time::<f32>(request).map_err(|error| error.to_string()),
        "f16" => time::<f16>(request).map_err(|error| error.to_string()),
        "bf16" => time::<bf16>(request).map_err(|error| error.to_string()),
        other => Err(format!("no dtype {other}")),
    };
    Ok(pool.install(run)?)
}

/// Runs one case for the time asked, after writing the output of a first call.
fn time<T: Element>(request: &Request) -> Result<Vec<f64>, Box<dyn Error>> {
    let [batch, q_heads, kv_heads, q_len, kv_len, dim, causal] = request.case;
    let (q_shape, kv_shape) = ([batch, q_heads, q_len, dim], [batch, kv_heads, kv_len, dim]);
    let [q, k, v] = read::<T>(&request.data, [q_shape, kv_shape, kv_shape])?;
    let (q, k, v) = (View::new(&q, q_shape)?, View::new(&k, kv_shape)?, View::new(&v, kv_shape)?);
    let borrowed = Inputs::new(q, k, v);
    let cache = flag("LUCID_PANELS").then(|| filled(k, v, &Problem::of(&borrowed))).transpose()?;
    let inputs = cache.as_ref().map_or(borrowed, |cache| cache.inputs(q));
    let mask = if causal != 0 { Mask::causal() } else { Mask::NONE };
    let inputs = inputs.mask(mask).q_start(QueryStart::TopLeft);

    let options = PlanOptions { bf16_dot: flag("LUCID_BF16_DOT"), ..PlanOptions::default() };
    let plan = Plan::with_options(&Problem::of(&inputs), &options)?;
    let mut workspace = plan.workspace()?;
    let mut out = vec![T::default(); q_shape.iter().product()];
    let mut call = || plan.run(&inputs, Outputs::new(ViewMut::new(&mut out, q_shape)?), &mut workspace);
    call()?;
    let mut times = Vec::new();
    let start = Instant::now();
    while times.len() < 2 || start.elapsed() < Duration::from_secs_f64(request.secs) {
        let before = Instant::now();
        call()?;
        times.push(before.elapsed().as_secs_f64());
    }
    let bytes: Vec<u8> = out.iter().flat_map(|x| x.to_f32().to_le_bytes()).collect();
    std::fs::write(&request.out, bytes)?;
    Ok(times)
}

fn filled<T: Element>(
    k: View<'_, T>,
    v: View<'_, T>,
    problem: &Problem,
) -> Result<KvCache<T>, AttentionError> {
    let mut cache = KvCache::new(k.shape()[0], problem)?;
    cache.append(k, v)?;
    Ok(cache)
}

fn read<T: Element>(path: &str, shapes: [[usize; 4]; 3]) -> Result<[Vec<T>; 3], Box<dyn Error>> {
    let bytes = std::fs::read(path)?;
    let (values, _) = bytes.as_chunks::<4>();
    let mut values = values.iter().map(|&bytes| T::from_f32(f32::from_le_bytes(bytes)));
    let tensors = shapes.map(|shape| values.by_ref().take(shape.iter().product()).collect::<Vec<T>>());
    let complete =
        tensors.iter().zip(shapes).all(|(tensor, shape)| tensor.len() == shape.iter().product::<usize>());
    if complete { Ok(tensors) } else { Err(format!("{path} is too short").into()) }
}

fn flag(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| value == "1")
}
