//! Whatever the crate is compiled for, through the compile-time SIMD of the `wide` crate: 8 lanes.

use super::{Isa, Kernel};
use half::{bf16, f16};
use wide::f32x8;

/// The level that needs no proof.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn head<T: Copy>(src: &[T]) -> [T; 8] {
    *src.first_chunk().expect("a vector's worth of values")
}

#[inline(always)]
fn head_mut<T>(dst: &mut [T]) -> &mut [T; 8] {
    dst.first_chunk_mut().expect("room for a vector")
}

/// `N` neighbouring columns of 8 rows, those from row `rows` on the last again.
#[inline(always)]
fn columns<T: Copy, const N: usize>(
    src: &[T],
    stride: usize,
    rows: usize,
    widen: impl Fn(T) -> f32,
) -> [f32x8; N] {
    let mut columns = [[0.0; 8]; N];
    for lane in 0..8 {
        for (column, &x) in columns.iter_mut().zip(&src[lane.min(rows - 1) * stride..][..N]) {
            column[lane] = widen(x);
        }
    }
    columns.map(f32x8::new)
}

impl Isa for Portable {
    type F = f32x8;
    type M = f32x8;

    const LANES: usize = 8;
    const FUSED: bool =
        cfg!(any(target_feature = "fma", all(target_arch = "aarch64", target_feature = "neon")));
    const SCALES_ANY: bool = false;
    const REGISTERS: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> f32x8 {
        f32x8::splat(x)
    }
    #[inline(always)]
    fn load(self, src: &[f32]) -> f32x8 {
        f32x8::new(head(src))
    }
    #[inline(always)]
    fn load_f16(self, src: &[f16]) -> f32x8 {
        f32x8::new(head(src).map(f16::to_f32_const))
    }
    #[inline(always)]
    fn load_bf16(self, src: &[bf16]) -> f32x8 {
        f32x8::new(head(src).map(bf16::to_f32_const))
    }
    #[inline(always)]
    fn store(self, x: f32x8, dst: &mut [f32]) {
        *head_mut(dst) = x.to_array();
    }
    #[inline(always)]
    fn store_f16(self, x: f32x8, dst: &mut [f16]) {
        *head_mut(dst) = x.to_array().map(f16::from_f32_const);
    }
    #[inline(always)]
    fn store_bf16(self, x: f32x8, dst: &mut [bf16]) {
        *head_mut(dst) = mutant!(
            "bf16-is-cut-off",
            x.to_array().map(bf16::from_f32_const),
            x.to_array().map(|x| bf16::from_bits((x.to_bits() >> 16) as u16))
        );
    }

    #[inline(always)]
    fn add(self, a: f32x8, b: f32x8) -> f32x8 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32x8, b: f32x8) -> f32x8 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32x8, b: f32x8) -> f32x8 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32x8, b: f32x8) -> f32x8 {
        a / b
    }
    #[inline(always)]
    fn mul_add(self, a: f32x8, b: f32x8, c: f32x8) -> f32x8 {
        a.mul_add(b, c)
    }
    #[inline(always)]
    fn max(self, a: f32x8, b: f32x8) -> f32x8 {
        a.simd_gt(b).bitselect(a, b)
    }
    #[inline(always)]
    fn min(self, a: f32x8, b: f32x8) -> f32x8 {
        a.simd_lt(b).bitselect(a, b)
    }
    #[inline(always)]
    fn abs(self, a: f32x8) -> f32x8 {
        a.abs()
    }
    #[inline(always)]
    fn copysign(self, a: f32x8, b: f32x8) -> f32x8 {
        f32x8::splat(-0.0).bitselect(b, a)
    }
    #[inline(always)]
    fn nearest_and_rest(self, a: f32x8) -> (f32x8, f32x8) {
        let n = a.round_ties_even();
        (n, a - n)
    }
    #[inline(always)]
    fn scale_exp2(self, a: f32x8, n: f32x8) -> f32x8 {
        // In two exact powers, so that only the last product can round (to a subnormal) or overflow.
        let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
        let n = n.to_array().map(|n| n as i32);
        let first = f32x8::new(n.map(|n| power(n >> 1)));
        let second = f32x8::new(n.map(|n| power(n - (n >> 1))));
        a * first * second
    }
    #[inline(always)]
    fn shift_into_exponent(self, a: f32x8) -> f32x8 {
        f32x8::new(a.to_array().map(|a| f32::from_bits(a.to_bits() << 23)))
    }
    #[inline(always)]
    fn reduce_max(self, a: f32x8) -> f32 {
        a.to_array().into_iter().fold(f32::NEG_INFINITY, |max, x| if x > max { x } else { max })
    }

    #[inline(always)]
    fn reduce_add(self, a: f32x8) -> f32 {
        let mut sum = a.to_array();
        let mut half = sum.len() / 2;
        while half > 0 {
            for lane in 0..half {
                sum[lane] += sum[lane + half];
            }
            half /= 2;
        }
        sum[0]
    }

    #[inline(always)]
    fn lt(self, a: f32x8, b: f32x8) -> f32x8 {
        a.simd_lt(b)
    }
    #[inline(always)]
    fn mask(self, bits: u32) -> f32x8 {
        f32x8::new(std::array::from_fn(|lane| f32::from_bits(0u32.wrapping_sub(bits >> lane & 1))))
    }
    #[inline(always)]
    fn bits(self, m: f32x8) -> u32 {
        m.to_bitmask()
    }
    #[inline(always)]
    fn select(self, m: f32x8, a: f32x8, b: f32x8) -> f32x8 {
        m.bitselect(a, b)
    }

    #[inline(always)]
    fn columns_f32(self, src: &[f32], stride: usize, rows: usize) -> [f32x8; 4] {
        columns(src, stride, rows, |x| x)
    }
    #[inline(always)]
    fn columns_f16(self, src: &[f16], stride: usize, rows: usize) -> [f32x8; 8] {
        columns(src, stride, rows, f16::to_f32_const)
    }
    #[inline(always)]
    fn columns_bf16(self, src: &[bf16], stride: usize, rows: usize) -> [f32x8; 8] {
        columns(src, stride, rows, bf16::to_f32_const)
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [f32x8]) {
        let rows = head_mut(rows);
        *rows = f32x8::transpose(*rows);
    }

    #[inline(always)]
    fn prefetch(self, _address: *const u8) {}
    #[inline(never)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
}
