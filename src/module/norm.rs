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
use crate::isa::{Isa, Kernel, Level};
use crate::kernel::{load_padded, store_padded};
use crate::parallel::{self, MAX_PARTS};
use crate::tile;

/// Lanes of the sums, on every level.
const LANES: usize = 16;

/// What is done to rows of the projected output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    pub(crate) level: Level,
    pub(crate) max_threads: usize,
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
        let workers =
            if tile::worth_spreading([0.0, bytes]) { parallel::workers(self.max_threads) } else { 1 };
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
        let mut padded = [mean; LANES]; // what adds nothing: 0, or no distance
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
