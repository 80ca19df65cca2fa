//! What a core does of the two tiers' products in the same time.

use super::{Bf16Dot, Bf16Kernel};
use half::bf16;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Sums side by side: more than the latency of a step times the steps a core begins in a cycle.
const CHAINS: usize = 12;

/// Steps of each sum, some microseconds of them.
const STEPS: usize = 500;

/// How often either is measured; a core that is busy, or has just widened its vectors, is slower than it can be.
const ROUNDS: usize = 16;

/// The least time for as many multiply-adds, and for as many bf16 dot products.
pub(super) struct StepTimes;

impl Bf16Kernel for StepTimes {
    type Output = [Duration; 2];

    #[inline(always)]
    fn run<I: Bf16Dot>(self, isa: I) -> [Duration; 2] {
        let mut least = [Duration::MAX; 2];
        for _ in 0..ROUNDS {
            least[0] = least[0].min(time::<I, false>(isa));
            least[1] = least[1].min(time::<I, true>(isa));
        }
        least
    }
}

/// The time of all steps once, of dot products or of multiply-adds.
#[inline(always)]
fn time<I: Bf16Dot, const DOTS: bool>(isa: I) -> Duration {
    let one = isa.splat(black_box(1.0));
    let pair = isa.splat_pair(black_box([bf16::ONE; 2]));
    let mut sums = [one; CHAINS];
    let start = Instant::now();
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = if DOTS { isa.dot_bf16(*sum, pair, pair) } else { isa.mul_add(one, one, *sum) };
        }
    }
    black_box(sums);
    start.elapsed()
}
