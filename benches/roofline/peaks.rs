//! What the machine gives: multiply-adds, bf16 dot products and bytes read from memory, per second.
//!
//! Each probe is short (some milliseconds) and meant to be run beside what it is compared with: on shared machines, and
//! for memory anywhere, the limit of a minute ago says little.

use lucid_attention::Level;
use std::hint::black_box;
use std::time::Instant;

/// Runs `work(thread)` on `threads` threads of the current pool at once; returns seconds.
fn timed(threads: usize, work: &(impl Fn(usize) + Sync)) -> f64 {
    fn fan_out(threads: std::ops::Range<usize>, work: &(impl Fn(usize) + Sync)) {
        match threads.len() {
            0 => {}
            1 => work(threads.start),
            n => {
                let middle = threads.start + n / 2;
                rayon::join(|| fan_out(threads.start..middle, work), || fan_out(middle..threads.end, work));
            }
        }
    }
    let before = Instant::now();
    fan_out(0..threads, work);
    before.elapsed().as_secs_f64()
}

/// Chains side by side: enough to hide a latency of 4 at two a cycle.
const CHAINS: usize = 12;
const STEPS: usize = 60_000;

/// The best of a few runs of `steps`, each of `operations` per chain and step: operations per second of all threads.
fn best(threads: usize, operations: usize, steps: &(impl Fn(usize) + Sync)) -> f64 {
    let total = (threads * operations * CHAINS * STEPS) as f64;
    (0..3).map(|_| total / timed(threads, steps)).fold(0.0, f64::max)
}

/// Floating-point operations per second in fused multiply-adds (two each), on the vectors of the level, or, where those have no
/// multiply-adds, on the widest there are.
#[cfg(target_arch = "x86_64")]
pub(crate) fn multiply_adds(threads: usize, level: Level) -> Option<f64> {
    use core::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    fn wide() {
        let [x, y, mut sums @ ..]: [__m512; CHAINS + 2] = black_box([_mm512_set1_ps(0.5); CHAINS + 2]);
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, x, y);
            }
        }
        black_box(sums);
    }
    #[target_feature(enable = "avx2,fma")]
    fn narrow() {
        let [x, y, mut sums @ ..]: [__m256; CHAINS + 2] = black_box([_mm256_set1_ps(0.5); CHAINS + 2]);
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, x, y);
            }
        }
        black_box(sums);
    }
    if level != Level::Avx2 && is_x86_feature_detected!("avx512f") {
        // SAFETY: the CPU has the feature.
        return Some(best(threads, 32, &|_| unsafe { wide() }));
    }
    let present = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    // SAFETY: the CPU has the features.
    present.then(|| best(threads, 16, &|_| unsafe { narrow() }))
}

/// Floating-point operations per second in dot products of bf16 pairs (four each).
#[cfg(target_arch = "x86_64")]
pub(crate) fn bf16_dots(threads: usize) -> Option<f64> {
    use core::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn dots() {
        // SAFETY: two vectors of the same size, any bits are values of either.
        let pairs: __m512bh = unsafe { std::mem::transmute(black_box(_mm512_set1_epi32(0x3f80_3f80))) };
        let mut sums = black_box([_mm512_set1_ps(1.0); CHAINS]);
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, pairs, pairs);
            }
        }
        black_box(sums);
    }
    let present = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
    // SAFETY: the CPU has the features.
    present.then(|| best(threads, 64, &|_| unsafe { dots() }))
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn multiply_adds(_threads: usize, _level: Level) -> Option<f64> {
    None
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn bf16_dots(_threads: usize) -> Option<f64> {
    None
}

/// A buffer much larger than any cache, on huge pages where the system gives them, as the crate's own buffers are.
pub(crate) struct Memory {
    words: &'static [u64],
}

/// How a probe walks its part of the buffer.
#[derive(Clone, Copy)]
struct Walk {
    streams: usize,
    /// Prefetch this many words ahead, into L2; not at all if 0.
    ahead: usize,
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self { words: super::common::pages::filled::<u64>(BYTES / 8).leak() }
    }

    /// Bytes read per second by all threads together, the best of several ways to read.
    pub(crate) fn read(&self, threads: usize) -> f64 {
        let walks = [(1, 0), (4, 0), (1, 512), (4, 512)].map(|(streams, ahead)| Walk { streams, ahead });
        let part = self.words.len() / threads;
        let speed = |walk: Walk| {
            let seconds = timed(threads, &|thread| sum(&self.words[thread * part..][..part], walk));
            (part * threads * 8) as f64 / seconds
        };
        walks.into_iter().map(speed).fold(0.0, f64::max)
    }
}

const BYTES: usize = 192 << 20;

/// Words of a cache line.
const LINE: usize = 8;

/// Reads all of `words`, as several streams side by side.
fn sum(words: &[u64], walk: Walk) {
    let stream = words.len() / walk.streams / LINE * LINE;
    let mut sums = [0u64; LINE];
    for at in (0..stream).step_by(LINE) {
        for first in 0..walk.streams {
            let at = first * stream + at;
            if walk.ahead > 0 {
                prefetch(words, at + walk.ahead);
            }
            let line: &[u64; LINE] = words[at..].first_chunk().expect("a whole line");
            sums.iter_mut().zip(line).for_each(|(sum, x)| *sum ^= x);
        }
    }
    black_box(sums);
}

#[inline(always)]
fn prefetch(words: &[u64], at: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(word) = words.get(at) {
        use core::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a reference's place may be prefetched.
        unsafe { _mm_prefetch(std::ptr::from_ref(word).cast(), _MM_HINT_T1) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (words, at);
}
