//! AVX2, FMA and F16C: 8 lanes, 16 registers.

use super::{Isa, Kernel};
use core::arch::x86_64::*;
use half::{bf16, f16};

/// Wraps intrinsics.
macro_rules! op {
    ($body:expr) => {{
        // SAFETY: `self` was built by `new`, so the CPU has the features; every pointer comes from a reference to
        // an array of exactly the size accessed.
        unsafe { $body }
    }};
}

/// Proof of AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    #[inline]
    pub(crate) fn new() -> Option<Self> {
        // The list must be that of `vectorize`.
        let present = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        present.then_some(Self(()))
    }

    #[inline]
    pub(crate) fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn shim<K: Kernel>(isa: Avx2, kernel: K) -> K::Output {
            kernel.run(isa)
        }
        op!(shim(self, kernel))
    }
}

#[inline(always)]
fn head<T, const N: usize>(src: &[T]) -> &[T; N] {
    src.first_chunk().expect("a vector's worth of values")
}

#[inline(always)]
fn head_mut<T, const N: usize>(dst: &mut [T]) -> &mut [T; N] {
    dst.first_chunk_mut().expect("room for a vector")
}

/// 16 bytes of row `row`, or of the last of `rows`.
///
/// # Safety
/// - 16 bytes from `src + r * stride` on are readable for each of the `rows`, of which there is at least one.
#[inline(always)]
pub(super) unsafe fn piece(src: *const u8, stride: usize, rows: usize, row: usize) -> __m128i {
    // SAFETY: as this function's own.
    unsafe { _mm_loadu_si128(src.add(row.min(rows - 1) * stride).cast()) }
}

/// Four neighbouring 32-bit columns of 8 rows, `stride` bytes apart: vector `c` holds word `c` of each row.
///
/// # Safety
/// - The CPU has AVX2.
/// - 16 bytes from `src + row * stride` on are readable for each of the `rows`, of which there is at least one.
#[inline(always)]
unsafe fn words(src: *const u8, stride: usize, rows: usize) -> [__m256i; 4] {
    // SAFETY: as this function's own.
    unsafe {
        let mut quads = [_mm256_setzero_si256(); 4];
        for (r, quad) in quads.iter_mut().enumerate() {
            *quad = _mm256_inserti128_si256::<1>(
                _mm256_castsi128_si256(piece(src, stride, rows, r)),
                piece(src, stride, rows, r + 4),
            );
        }
        let (low, high) =
            (_mm256_unpacklo_epi32(quads[0], quads[1]), _mm256_unpackhi_epi32(quads[0], quads[1]));
        let (low2, high2) =
            (_mm256_unpacklo_epi32(quads[2], quads[3]), _mm256_unpackhi_epi32(quads[2], quads[3]));
        [
            _mm256_unpacklo_epi64(low, low2),
            _mm256_unpackhi_epi64(low, low2),
            _mm256_unpacklo_epi64(high, high2),
            _mm256_unpackhi_epi64(high, high2),
        ]
    }
}

/// The sum of 8 lanes as [`Isa::reduce_add`] orders it.
///
/// # Safety
/// - The CPU has AVX.
#[inline(always)]
pub(super) unsafe fn fold(a: __m256) -> f32 {
    // SAFETY: as this function's own.
    unsafe {
        let x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
    }
}

impl Isa for Avx2 {
    type F = __m256;
    type M = __m256;

    const LANES: usize = 8;
    const FUSED: bool = true;
    const SCALES_ANY: bool = false;
    const REGISTERS: usize = 16;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        op!(_mm256_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, src: &[f32]) -> __m256 {
        let src: &[f32; 8] = head(src);
        op!(_mm256_loadu_ps(src.as_ptr()))
    }
    #[inline(always)]
    fn load_f16(self, src: &[f16]) -> __m256 {
        let src: &[f16; 8] = head(src);
        op!(_mm256_cvtph_ps(_mm_loadu_si128(src.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_bf16(self, src: &[bf16]) -> __m256 {
        let src: &[bf16; 8] = head(src);
        op!({
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(src.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    fn store(self, x: __m256, dst: &mut [f32]) {
        let dst: &mut [f32; 8] = head_mut(dst);
        op!(_mm256_storeu_ps(dst.as_mut_ptr(), x))
    }
    #[inline(always)]
    fn store_f16(self, x: __m256, dst: &mut [f16]) {
        let dst: &mut [f16; 8] = head_mut(dst);
        op!(_mm_storeu_si128(dst.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)))
    }
    #[inline(always)]
    fn store_bf16(self, x: __m256, dst: &mut [bf16]) {
        let dst: &mut [bf16; 8] = head_mut(dst);
        op!({
            let bits = _mm256_castps_si256(x);
            let top = _mm256_srli_epi32::<16>(bits);
            let odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
            let odd = mutant!("bf16-rounds-ties-up", odd, _mm256_set1_epi32(1));
            let carried = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
            let rounded = _mm256_srli_epi32::<16>(carried);
            let quiet = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
            let bits = mutant!("bf16-of-nan-is-rounded", _mm256_blendv_epi8(rounded, quiet, nan), rounded);
            let halves = _mm256_packus_epi32(bits, bits);
            let joined = _mm256_permute4x64_epi64::<0b10_00>(halves);
            _mm_storeu_si128(dst.as_mut_ptr().cast(), _mm256_castsi256_si128(joined))
        })
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        op!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        mutant!("maximum-of-nan-is-the-other", op!(_mm256_max_ps(a, b)), op!(_mm256_max_ps(b, a)))
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        op!(_mm256_andnot_ps(_mm256_set1_ps(-0.0), a))
    }
    #[inline(always)]
    fn copysign(self, a: __m256, b: __m256) -> __m256 {
        op!({
            let sign = _mm256_set1_ps(-0.0);
            _mm256_or_ps(_mm256_and_ps(sign, b), _mm256_andnot_ps(sign, a))
        })
    }
    #[inline(always)]
    fn nearest_and_rest(self, a: __m256) -> (__m256, __m256) {
        let n = op!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a));
        (n, self.sub(a, n))
    }
    #[inline(always)]
    fn scale_exp2(self, a: __m256, n: __m256) -> __m256 {
        // In two exact powers, so that only the last product can round (to a subnormal) or overflow.
        op!({
            let n = _mm256_cvtps_epi32(n);
            let first = _mm256_srai_epi32::<1>(n);
            let second = _mm256_sub_epi32(n, first);
            let bias = _mm256_set1_epi32(127);
            let first = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(first, bias)));
            let second = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(second, bias)));
            _mm256_mul_ps(_mm256_mul_ps(a, first), second)
        })
    }
    #[inline(always)]
    fn shift_into_exponent(self, a: __m256) -> __m256 {
        op!(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(a))))
    }
    #[inline(always)]
    fn reduce_max(self, a: __m256) -> f32 {
        op!({
            let x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps::<1>(x, x)))
        })
    }

    #[inline(always)]
    fn reduce_add(self, a: __m256) -> f32 {
        op!(fold(a))
    }

    #[inline(always)]
    fn lt(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
    }
    #[inline(always)]
    fn mask(self, bits: u32) -> __m256 {
        op!({
            let lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let own = _mm256_and_si256(_mm256_set1_epi32(bits as i32), lane);
            _mm256_castsi256_ps(_mm256_cmpeq_epi32(own, lane))
        })
    }
    #[inline(always)]
    fn bits(self, m: __m256) -> u32 {
        op!(_mm256_movemask_ps(m) as u32)
    }
    #[inline(always)]
    fn select(self, m: __m256, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_blendv_ps(b, a, m))
    }

    #[inline(always)]
    fn columns_f32(self, src: &[f32], stride: usize, rows: usize) -> [__m256; 4] {
        assert!(rows > 0 && src.len() >= (rows - 1) * stride + 4, "rows of 4 columns");
        op!({
            let [a, b, c, d] = words(src.as_ptr().cast(), 4 * stride, rows);
            [_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), _mm256_castsi256_ps(c), _mm256_castsi256_ps(d)]
        })
    }
    #[inline(always)]
    fn columns_f16(self, src: &[f16], stride: usize, rows: usize) -> [__m256; 8] {
        assert!(rows > 0 && src.len() >= (rows - 1) * stride + 8, "rows of 8 columns");
        op!({
            let words = words(src.as_ptr().cast(), 2 * stride, rows);
            let low = _mm256_set1_epi32(0xffff);
            let mut columns = [_mm256_setzero_ps(); 8];
            for i in 0..4 {
                // Both halves of the words side by side: 0..4 even, 0..4 odd, 4..8 even, 4..8 odd.
                let (even, odd) = (_mm256_and_si256(words[i], low), _mm256_srli_epi32::<16>(words[i]));
                let halves = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(even, odd));
                columns[2 * i] = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
                columns[2 * i + 1] = _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves));
            }
            columns
        })
    }
    #[inline(always)]
    fn columns_bf16(self, src: &[bf16], stride: usize, rows: usize) -> [__m256; 8] {
        assert!(rows > 0 && src.len() >= (rows - 1) * stride + 8, "rows of 8 columns");
        op!({
            let words = words(src.as_ptr().cast(), 2 * stride, rows);
            let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let mut columns = [_mm256_setzero_ps(); 8];
            for i in 0..4 {
                columns[2 * i] = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words[i]));
                columns[2 * i + 1] = _mm256_castsi256_ps(_mm256_and_si256(words[i], high));
            }
            columns
        })
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [__m256]) {
        let r: &mut [__m256; 8] = head_mut(rows);
        op!({
            let mut t = *r;
            for q in 0..2 {
                let [a, b, c, d] = [r[4 * q], r[4 * q + 1], r[4 * q + 2], r[4 * q + 3]];
                let ab_low = _mm256_unpacklo_ps(a, b);
                let ab_high = _mm256_unpackhi_ps(a, b);
                let cd_low = _mm256_unpacklo_ps(c, d);
                let cd_high = _mm256_unpackhi_ps(c, d);
                t[4 * q] = _mm256_shuffle_ps::<0b01_00_01_00>(ab_low, cd_low);
                t[4 * q + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(ab_low, cd_low);
                t[4 * q + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(ab_high, cd_high);
                t[4 * q + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(ab_high, cd_high);
            }
            for i in 0..4 {
                r[i] = _mm256_permute2f128_ps::<0x20>(t[i], t[4 + i]);
                r[4 + i] = _mm256_permute2f128_ps::<0x31>(t[i], t[4 + i]);
            }
        })
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: the instruction accesses nothing and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
    }
    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        self.vectorize(kernel)
    }
}
