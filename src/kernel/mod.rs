//! Register-tile micro-kernels: slices in, slices out, generic over instruction set and storage type.
//!
//! ```text
//! scores   s[r][j]  = sum_d q[r][d] * k[j][d]      lanes are keys,        q broadcast
//! values   acc[r][d] += sum_j p[r][j] * v[j][d]    lanes are dimensions,  p broadcast
//! ```
//!
//! Both keep `MR` rows by `NV` vectors of accumulators in registers, so that a loaded vector serves `MR`
//! multiply-adds and a broadcast `NV`. Sums run in program order and never across lanes: the width of the vectors,
//! the height of the tile and who calls change no bit. The tiles are 6 rows by 64 columns
//! on AVX-512 and 6 by 16 on AVX2, which is what their registers hold.
//!
//! What a step of a sum is (a multiply-add, or a bf16 dot product of pairs) is a parameter: [`product::Product`].
//!
//! Everything here is `#[inline(always)]`, see [`crate::isa`], and free of closures, which need not be inlined; [`tiles`] makes
//! functions of it. Loops over constants index several arrays at once: they unroll into registers, and read like the formula.
#![allow(clippy::needless_range_loop, reason = "see above: register tiles are indexed by constants")]

pub(crate) mod pack;
pub(crate) mod prefetch;
pub(crate) mod product;
pub(crate) mod score;
pub(crate) mod tiles;
pub(crate) mod value;

use crate::element::Element;
use crate::isa::Isa;

/// Rows of a register tile, on every level.
pub(crate) const MAX_ROWS: usize = 6;

/// Runs `$body` with `$rows` as the constant `$mr`.
macro_rules! rows_const {
    ($rows:expr, $mr:ident => $body:expr) => {
        match $rows {
            1 => {
                const $mr: usize = 1;
                $body
            }
            2 => {
                const $mr: usize = 2;
                $body
            }
            3 => {
                const $mr: usize = 3;
                $body
            }
            4 => {
                const $mr: usize = 4;
                $body
            }
            5 => {
                const $mr: usize = 5;
                $body
            }
            _ => {
                const $mr: usize = $crate::kernel::MAX_ROWS;
                $body
            }
        }
    };
}
pub(crate) use rows_const;

/// Elements from a row to the next: a number, or a [`Constant`], which spares the tiles some of their arithmetic (2 % of
/// attention at 64 dimensions, bench `roofline`, AVX2).
pub(crate) trait Stride: Copy {
    fn elements(self) -> usize;
}

impl Stride for usize {
    #[inline(always)]
    fn elements(self) -> usize {
        self
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Constant<const N: usize>;

impl<const N: usize> Stride for Constant<N> {
    #[inline(always)]
    fn elements(self) -> usize {
        N
    }
}

/// The `LANES` values of `src` from `at` on; those past its end are zero.
#[inline(always)]
pub(crate) fn load_padded<I: Isa, T: Element>(isa: I, src: &[T], at: usize) -> I::F {
    match src.get(at..at + I::LANES) {
        Some(full) => T::load(isa, full),
        None => {
            let mut padded = [T::default(); 16];
            if let Some(rest) = src.get(at..) {
                padded[..rest.len()].copy_from_slice(rest);
            }
            T::load(isa, &padded)
        }
    }
}

/// As many of the lanes as `out` has room for from `at` on.
#[inline(always)]
pub(crate) fn store_padded<I: Isa>(isa: I, x: I::F, out: &mut [f32], at: usize) {
    match out.get_mut(at..at + I::LANES) {
        Some(full) => isa.store(x, full),
        None => {
            let mut padded = [0.0; 16];
            isa.store(x, &mut padded);
            let rest = &mut out[at..];
            rest.copy_from_slice(&padded[..rest.len()]);
        }
    }
}
