//! The end of a module: residual and layer norm, in place, row by row.
//!
//! ```text
//! y    = y + r                                      if there is a residual
//! mean = sum y / n,  var = sum (y - mean)^2 / n     16 lanes, element d in lane d mod 16, folded 16 -> 8 -> 4 -> 2 -> 1
//! out  = fma((y - mean) * (1 / sqrt(var + eps)), gamma, beta)
//! ```
//!
//! Lanes are fixed, so levels that fuse multiply-add agree bit for bit.

use super::weights::NormWeights;
use crate::error::{AttentionError, check_size};
use crate::isa::{Isa, Kernel, Level};
use crate::kernel::{load_padded, store_padded};
use crate::parallel::{self, MAX_PARTS, Spread};
use crate::tile;

/// Lanes of the sums, on every level.
const LANES: usize = 16;

/// A layer norm by itself, with a residual if there is one: what follows a transformer's feed-forward layers.
///
/// A row's result is off the exact one by a few `2^-24` of `((|x - mean| + |mean|) / deviation) |gamma| + |beta|`. With an
/// `epsilon` of 0, numbers that are all alike become NaN. The order of operations is fixed, as in the rest of the module.
///
/// ```
/// use lucid_attention::module::{LayerNorm, NormWeights};
///
/// let weights = NormWeights { gamma: vec![1.0; 4], beta: vec![0.5; 4] };
/// let norm = LayerNorm::new(weights, 0.0, None, None)?;
/// let mut x = [0.0, 1.0, 0.0, 1.0];
/// norm.run(Some(&[1.0, 0.0, 0.0, 1.0]), &mut x)?; // of [1, 1, 0, 2]: mean 1, variance 0.5
/// assert_eq!(x.map(|x| (x * 1000.0).round()), [500.0, 500.0, -914.0, 1914.0]);
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
#[derive(Debug)]
pub struct LayerNorm {
    weights: NormWeights,
    epsilon: f32,
    level: Level,
    spread: Spread,
}

impl LayerNorm {
    /// Of these weights; `epsilon` is added to variances. The instruction set is [`Level::detect`]'s if not given, and at
    /// most as many tasks run side by side as the pool has threads.
    ///
    /// # Errors
    /// There are no weights, or not as many of both; `epsilon` is negative or not finite; no thread; or a level that is not
    /// there.
    pub fn new(
        weights: NormWeights,
        epsilon: f32,
        level: Option<Level>,
        max_threads: Option<usize>,
    ) -> Result<Self, AttentionError> {
        if weights.gamma.is_empty() {
            let (operand, expected) = ("layer norm gamma", "at least 1 element");
            return Err(AttentionError::Value { operand, expected, got: "0".to_owned() });
        }
        check_size("layer norm beta", "elements", weights.gamma.len(), weights.beta.len())?;
        check_epsilon(epsilon)?;
        parallel::check_max_threads(max_threads)?;
        Ok(Self { weights, epsilon, level: Level::chosen(level)?, spread: Spread::new(max_threads, None) })
    }

    /// Adds `residual`, of the same size, to `x` `[rows, dim]` and normalises each row, in place.
    ///
    /// Runs on the current rayon pool, or on the calling thread alone where rows are few. Does not allocate.
    ///
    /// # Errors
    /// `x` is no whole number of rows, or `residual` has another size; nothing is written then.
    pub fn run(&self, residual: Option<&[f32]>, x: &mut [f32]) -> Result<(), AttentionError> {
        let dim = self.dim();
        check_size("x", "elements", x.len() / dim * dim, x.len())?;
        if let Some(residual) = residual {
            check_size("residual", "elements", x.len(), residual.len())?;
        }
        let Self { level, spread, .. } = *self;
        End { level, spread, dim, residual, norm: Some((&self.weights, self.epsilon)) }.run(x);
        Ok(())
    }

    /// Numbers of a row.
    pub fn dim(&self) -> usize {
        self.weights.gamma.len()
    }
}

/// What is added to a variance may be any number that keeps it one.
pub(crate) fn check_epsilon(epsilon: f32) -> Result<(), AttentionError> {
    if (0.0..f32::INFINITY).contains(&epsilon) {
        return Ok(());
    }
    let (operand, expected) = ("layer_norm_epsilon", "a finite number that is not negative");
    Err(AttentionError::Value { operand, expected, got: epsilon.to_string() })
}

/// What is done to rows of the projected output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    pub(crate) level: Level,
    pub(crate) spread: Spread,
    /// Numbers of a row.
    pub(crate) dim: usize,
    /// What is added, as large as the output.
    pub(crate) residual: Option<&'a [f32]>,
    /// And the epsilon.
    pub(crate) norm: Option<(&'a NormWeights, f32)>,
}

impl End<'_> {
    /// Finishes `out`, `[rows, dim]`.
    pub(crate) fn run(&self, out: &mut [f32]) {
        if self.residual.is_none() && self.norm.is_none() {
            return;
        }
        let rows = out.len() / self.dim;
        let bytes = 2.0 * size_of_val(out) as f64;
        let workers = self.spread.workers(tile::nanoseconds([0.0, bytes]));
        let part_rows = if workers > 1 { rows.div_ceil(MAX_PARTS) } else { rows }.max(1);
        let parts = out.chunks_mut(part_rows * self.dim).enumerate();
        parallel::for_each_part(parts, workers, &|(index, out): (usize, &mut [f32])| {
            let first = index * part_rows * self.dim;
            let residual = self.residual.map(|residual| &residual[first..][..out.len()]);
            self.level.dispatch(EndKernel { end: End { residual, ..*self }, out });
        });
    }
}

struct EndKernel<'a, 'o> {
    end: End<'a>,
    out: &'o mut [f32],
}

impl Kernel for EndKernel<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let End { dim, residual, norm, .. } = self.end;
        for (index, row) in self.out.chunks_exact_mut(dim).enumerate() {
            if let Some(residual) = residual {
                add(isa, row, &residual[index * dim..][..dim]);
            }
            if let Some((norm, epsilon)) = norm {
                normalise(isa, row, norm, epsilon);
            }
        }
    }
}

#[inline(always)]
fn add<I: Isa>(isa: I, row: &mut [f32], residual: &[f32]) {
    let mut at = 0;
    while at < row.len() {
        let sum = isa.add(load_padded(isa, row, at), load_padded(isa, residual, at));
        store_padded(isa, sum, row, at);
        at += I::LANES;
    }
}

#[inline(always)]
fn normalise<I: Isa>(isa: I, row: &mut [f32], norm: &NormWeights, epsilon: f32) {
    let size = row.len() as f32;
    let mean = sum::<I, false>(isa, row, 0.0) / size;
    let variance = sum::<I, true>(isa, row, mean) / size;
    let scale = isa.splat(1.0 / (variance + epsilon).sqrt());
    let mean = isa.splat(mean);
    let mut at = 0;
    while at < row.len() {
        let centred = isa.sub(load_padded(isa, row, at), mean);
        let (gamma, beta) = (load_padded(isa, &norm.gamma, at), load_padded(isa, &norm.beta, at));
        store_padded(isa, isa.mul_add(isa.mul(centred, scale), gamma, beta), row, at);
        at += I::LANES;
    }
}

/// The sum of a row, or of the squares of its distances from `mean`.
#[inline(always)]
fn sum<I: Isa, const SQUARES: bool>(isa: I, row: &[f32], mean: f32) -> f32 {
    let centre = isa.splat(mean);
    let mut sums = [isa.splat(0.0); 2];
    let vectors = LANES / I::LANES;
    let mut blocks = row.chunks_exact(LANES);
    for block in &mut blocks {
        add_block::<I, SQUARES>(isa, block, centre, &mut sums[..vectors]);
    }
    let rest = blocks.remainder();
    if !rest.is_empty() {
        let mut padded = [mutant!("variance-of-padding", mean, 0.0); LANES]; // what adds nothing: 0, or no distance
        padded[..rest.len()].copy_from_slice(rest);
        add_block::<I, SQUARES>(isa, &padded, centre, &mut sums[..vectors]);
    }
    let sum = if vectors > 1 { isa.add(sums[0], sums[1]) } else { sums[0] };
    isa.reduce_add(sum)
}

#[inline(always)]
fn add_block<I: Isa, const SQUARES: bool>(isa: I, block: &[f32], centre: I::F, sums: &mut [I::F]) {
    for (vector, sum) in sums.iter_mut().enumerate() {
        let x = isa.load(&block[vector * I::LANES..]);
        *sum = if SQUARES {
            let distance = isa.sub(x, centre);
            isa.mul_add(distance, distance, *sum)
        } else {
            isa.add(*sum, x)
        };
    }
}
