//! AVX-512 (F, BW, DQ, VL), with or without AVX512-BF16: 16 lanes, 32 registers, mask registers.

use super::avx2::{fold, piece};
use super::{Bf16Dot, Bf16Kernel, Isa, Kernel};
use core::arch::x86_64::*;
use half::{bf16, f16};

/// Wraps intrinsics.
macro_rules! op {
    ($body:expr) => {{
        // SAFETY: `self` was built by `new`, so the CPU has the features; every pointer comes from a reference to
        // an array of exactly the size accessed, or to a slice whose length the method asserts.
        unsafe { $body }
    }};
}

/// Proof of AVX-512 F, BW, DQ and VL (and the AVX2, FMA and F16C below it); with `BF16`, of AVX512-BF16 too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512<const BF16: bool>(());

/// Proof of AVX-512 and AVX512-BF16.
pub(crate) type Avx512Bf16 = Avx512<true>;

impl Avx512<false> {
    #[inline]
    pub(crate) fn new() -> Option<Self> {
        // The list must be that of `vectorize`.
        let present = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        present.then_some(Self(()))
    }

    #[inline]
    pub(crate) fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn shim<K: Kernel>(isa: Avx512<false>, kernel: K) -> K::Output {
            kernel.run(isa)
        }
        op!(shim(self, kernel))
    }
}

impl Avx512<true> {
    #[inline]
    pub(crate) fn new() -> Option<Self> {
        Avx512::<false>::new()?;
        is_x86_feature_detected!("avx512bf16").then_some(Self(()))
    }

    #[inline]
    pub(crate) fn vectorize<K: Bf16Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
        fn shim<K: Bf16Kernel>(isa: Avx512<true>, kernel: K) -> K::Output {
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

/// Four neighbouring 32-bit columns of 16 rows, `stride` bytes apart: vector `c` holds word `c` of each row.
///
/// Rows are read as 16-byte pieces into their quarter of a register, which leaves only shuffles inside quarters.
///
/// # Safety
/// - The CPU has AVX-512 F.
/// - 16 bytes from `src + row * stride` on are readable for each of the `rows`, of which there is at least one.
#[inline(always)]
unsafe fn words(src: *const u8, stride: usize, rows: usize) -> [__m512i; 4] {
    // SAFETY: as this function's own.
    unsafe {
        let mut quads = [_mm512_setzero_si512(); 4];
        for (r, quad) in quads.iter_mut().enumerate() {
            let quarter = _mm512_castsi128_si512(piece(src, stride, rows, r));
            let quarter = _mm512_mask_broadcast_i32x4(quarter, 0x00f0, piece(src, stride, rows, r + 4));
            let quarter = _mm512_mask_broadcast_i32x4(quarter, 0x0f00, piece(src, stride, rows, r + 8));
            *quad = _mm512_mask_broadcast_i32x4(quarter, 0xf000, piece(src, stride, rows, r + 12));
        }
        let (low, high) =
            (_mm512_unpacklo_epi32(quads[0], quads[1]), _mm512_unpackhi_epi32(quads[0], quads[1]));
        let (low2, high2) =
            (_mm512_unpacklo_epi32(quads[2], quads[3]), _mm512_unpackhi_epi32(quads[2], quads[3]));
        [
            _mm512_unpacklo_epi64(low, low2),
            _mm512_unpackhi_epi64(low, low2),
            _mm512_unpacklo_epi64(high, high2),
            _mm512_unpackhi_epi64(high, high2),
        ]
    }
}

/// The numbers that take halves `first + i` and `second + i` to pair `i`.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn zip_order(first: i32, second: i32) -> __m512i {
    // SAFETY: as this function's own.
    unsafe {
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let both = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(0x0001_0001));
        _mm512_add_epi32(both, _mm512_set1_epi32(second << 16 | first))
    }
}

impl<const BF16: bool> Isa for Avx512<BF16> {
    type F = __m512;
    type M = __mmask16;

    const LANES: usize = 16;
    const FUSED: bool = true;
    const SCALES_ANY: bool = true;
    const REGISTERS: usize = 32;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        op!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, src: &[f32]) -> __m512 {
        let src: &[f32; 16] = head(src);
        op!(_mm512_loadu_ps(src.as_ptr()))
    }
    #[inline(always)]
    fn load_f16(self, src: &[f16]) -> __m512 {
        let src: &[f16; 16] = head(src);
        op!(_mm512_cvtph_ps(_mm256_loadu_si256(src.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_bf16(self, src: &[bf16]) -> __m512 {
        let src: &[bf16; 16] = head(src);
        op!({
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(src.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    fn store(self, x: __m512, dst: &mut [f32]) {
        let dst: &mut [f32; 16] = head_mut(dst);
        op!(_mm512_storeu_ps(dst.as_mut_ptr(), x))
    }
    #[inline(always)]
    fn store_f16(self, x: __m512, dst: &mut [f16]) {
        let dst: &mut [f16; 16] = head_mut(dst);
        op!(_mm256_storeu_si256(dst.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)))
    }
    #[inline(always)]
    fn store_bf16(self, x: __m512, dst: &mut [bf16]) {
        let dst: &mut [bf16; 16] = head_mut(dst);
        op!({
            let bits = _mm512_castps_si512(x);
            let top = _mm512_srli_epi32::<16>(bits);
            let odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
            let carried = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            let rounded = _mm512_srli_epi32::<16>(carried);
            let quiet = _mm512_or_si512(top, _mm512_set1_epi32(0x40));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let bits = _mm512_mask_mov_epi32(rounded, nan, quiet);
            _mm256_storeu_si256(dst.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(bits))
        })
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        op!(_mm512_abs_ps(a))
    }
    #[inline(always)]
    fn copysign(self, a: __m512, b: __m512) -> __m512 {
        op!({
            // Bitwise "sign ? b : a".
            let sign = _mm512_set1_epi32(i32::MIN);
            let bits =
                _mm512_ternarylogic_epi32::<0xca>(sign, _mm512_castps_si512(b), _mm512_castps_si512(a));
            _mm512_castsi512_ps(bits)
        })
    }
    #[inline(always)]
    fn nearest_and_rest(self, a: __m512) -> (__m512, __m512) {
        // The rest first: to reduce is one operation where to round is two (Intel's, from Skylake to Emerald Rapids).
        let rest = op!(_mm512_reduce_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a));
        (self.sub(a, rest), rest)
    }
    #[inline(always)]
    fn scale_exp2(self, a: __m512, n: __m512) -> __m512 {
        op!(_mm512_scalef_ps(a, n))
    }
    #[inline(always)]
    fn shift_into_exponent(self, a: __m512) -> __m512 {
        op!(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(a))))
    }
    #[inline(always)]
    fn reduce_max(self, a: __m512) -> f32 {
        op!(_mm512_reduce_max_ps(a))
    }

    #[inline(always)]
    fn reduce_add(self, a: __m512) -> f32 {
        op!({
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(a)));
            fold(_mm256_add_ps(_mm512_castps512_ps256(a), high))
        })
    }

    #[inline(always)]
    fn lt(self, a: __m512, b: __m512) -> __mmask16 {
        op!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b))
    }
    #[inline(always)]
    fn mask(self, bits: u32) -> __mmask16 {
        bits as __mmask16
    }
    #[inline(always)]
    fn bits(self, m: __mmask16) -> u32 {
        u32::from(m)
    }
    #[inline(always)]
    fn select(self, m: __mmask16, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mask_mov_ps(b, m, a))
    }

    #[inline(always)]
    fn columns_f32(self, src: &[f32], stride: usize, rows: usize) -> [__m512; 4] {
        assert!(rows > 0 && src.len() >= (rows - 1) * stride + 4, "rows of 4 columns");
        op!({
            let [a, b, c, d] = words(src.as_ptr().cast(), 4 * stride, rows);
            [_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), _mm512_castsi512_ps(c), _mm512_castsi512_ps(d)]
        })
    }
    #[inline(always)]
    fn columns_f16(self, src: &[f16], stride: usize, rows: usize) -> [__m512; 8] {
        assert!(rows > 0 && src.len() >= (rows - 1) * stride + 8, "rows of 8 columns");
        op!({
            let words = words(src.as_ptr().cast(), 2 * stride, rows);
            let mut columns = [_mm512_setzero_ps(); 8];
            for i in 0..4 {
                columns[2 * i] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words[i]));
                columns[2 * i + 1] =
                    _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(words[i])));
            }
            columns
        })
    }
    #[inline(always)]
    fn columns_bf16(self, src: &[bf16], stride: usize, rows: usize) -> [__m512; 8] {
        assert!(rows > 0 && src.len() >= (rows - 1) * stride + 8, "rows of 8 columns");
        op!({
            let words = words(src.as_ptr().cast(), 2 * stride, rows);
            let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let mut columns = [_mm512_setzero_ps(); 8];
            for i in 0..4 {
                columns[2 * i] = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words[i]));
                columns[2 * i + 1] = _mm512_castsi512_ps(_mm512_and_si512(words[i], high));
            }
            columns
        })
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [__m512]) {
        let r: &mut [__m512; 16] = head_mut(rows);
        op!({
            // Pairs of rows, then quads: t[4q + i] holds, in its 128-bit block b, column 4b + i of rows 4q..4q + 4.
            let mut t = *r;
            for q in 0..4 {
                let [a, b, c, d] = [r[4 * q], r[4 * q + 1], r[4 * q + 2], r[4 * q + 3]];
                let ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
                let ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
                let cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
                let cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
                t[4 * q] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low));
                t[4 * q + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low));
                t[4 * q + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high));
                t[4 * q + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high));
            }
            // Then the 4 x 4 transposition of blocks.
            for i in 0..4 {
                let [a, b, c, d] = [t[i], t[4 + i], t[8 + i], t[12 + i]];
                let ab_even = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
                let ab_odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
                let cd_even = _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d);
                let cd_odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d);
                r[i] = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_even, cd_even);
                r[8 + i] = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_even, cd_even);
                r[4 + i] = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_odd, cd_odd);
                r[12 + i] = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_odd, cd_odd);
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
        Avx512::<false>(()).vectorize(kernel)
    }
}

/// Bit pattern of 32 bf16 as the type the conversions and dot products want; compiles to nothing.
macro_rules! halves {
    ($pairs:expr) => {
        core::mem::transmute::<__m512i, __m512bh>($pairs)
    };
}

impl Bf16Dot for Avx512<true> {
    type Pairs = __m512i;

    #[inline(always)]
    fn splat_pair(self, pair: [bf16; 2]) -> __m512i {
        let bits = u32::from(pair[0].to_bits()) | u32::from(pair[1].to_bits()) << 16;
        op!(_mm512_set1_epi32(bits as i32))
    }
    #[inline(always)]
    fn load_pairs(self, src: &[[bf16; 2]]) -> __m512i {
        let src: &[[bf16; 2]; 16] = head(src);
        op!(_mm512_loadu_si512(src.as_ptr().cast()))
    }
    #[inline(always)]
    fn load_zip(self, even: &[bf16], odd: &[bf16], at: usize) -> __m512i {
        // Both halves of 32 elements load the same, which is done once.
        let (start, first) = (at - at % 32, (at % 32) as i32);
        let (even, odd): (&[bf16; 32], &[bf16; 32]) = (head(&even[start..]), head(&odd[start..]));
        op!({
            let even = _mm512_loadu_si512(even.as_ptr().cast());
            let odd = _mm512_loadu_si512(odd.as_ptr().cast());
            _mm512_permutex2var_epi16(even, zip_order(first, 32 + first), odd)
        })
    }
    #[inline(always)]
    fn store_pairs(self, pairs: __m512i, dst: &mut [[bf16; 2]]) {
        let dst: &mut [[bf16; 2]; 16] = head_mut(dst);
        op!(_mm512_storeu_si512(dst.as_mut_ptr().cast(), pairs))
    }
    #[inline(always)]
    fn narrow(self, first: __m512, second: __m512) -> __m512i {
        op!(core::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)))
    }
    #[inline(always)]
    fn narrow_zip(self, even: __m512, odd: __m512) -> __m512i {
        let halves = self.narrow(even, odd);
        op!(_mm512_permutexvar_epi16(zip_order(0, 16), halves))
    }
    #[inline(always)]
    fn dot_bf16(self, acc: __m512, a: __m512i, b: __m512i) -> __m512 {
        op!(_mm512_dpbf16_ps(acc, halves!(a), halves!(b)))
    }
    #[inline(always)]
    fn differs(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_movm_epi16(_mm512_cmpneq_epi16_mask(a, b)))
    }
    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn any(self, pairs: __m512i) -> __mmask16 {
        op!(_mm512_test_epi32_mask(pairs, pairs))
    }
    #[inline(always)]
    fn columns_pairs(self, src: &[bf16], stride: usize, rows: usize) -> [__m512i; 4] {
        assert!(rows > 0 && src.len() >= (rows - 1) * stride + 8, "rows of 8 columns");
        op!(words(src.as_ptr().cast(), 2 * stride, rows))
    }
    #[inline(always)]
    fn transpose_pairs(self, rows: &mut [__m512i]) {
        let rows: &mut [__m512i; 16] = head_mut(rows);
        let mut floats = [self.splat(0.0); 16];
        for i in 0..16 {
            floats[i] = op!(_mm512_castsi512_ps(rows[i]));
        }
        self.transpose(&mut floats);
        for i in 0..16 {
            rows[i] = op!(_mm512_castps_si512(floats[i]));
        }
    }
    #[inline(always)]
    fn call_bf16<K: Bf16Kernel>(self, kernel: K) -> K::Output {
        self.vectorize(kernel)
    }
}
