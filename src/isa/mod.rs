//! The SIMD layer: one trait, one token type per instruction set, run-time dispatch.
//!
//! A *token* is a zero-sized type that can be built only when the CPU has its features; holding one is the proof
//! that its operations may run, which is why they are safe methods. A kernel is written once, generic over
//! [`Isa`], and entered through [`Level::dispatch`], which is the one place that names target features.
//! Everything between the dispatch and a token's method has to be `#[inline(always)]`: the code gets its target
//! features by being inlined into the dispatch shim, and a call that is not inlined runs without them, some
//! fifty times slower and silently so. What several kernels share can be a kernel of its own: [`Isa::call`] and
//! [`Bf16Dot::call_bf16`] enter it with the features they are called with.
//!
//! This module and its children are the only ones that name `core::arch`.

#[cfg(all(target_arch = "x86_64", not(lucid_force_portable)))]
mod avx2;
#[cfg(all(target_arch = "x86_64", not(lucid_force_portable)))]
mod avx512;
mod portable;
mod rates;

use crate::error::AttentionError;
use half::{bf16, f16};
use std::sync::OnceLock;

/// Operations on vectors of [`LANES`](Isa::LANES) `f32`, or on as many booleans (`M`).
///
/// A value of the implementing type proves that the CPU can execute them. The set is what the kernels need and no
/// more. Unless an operation says otherwise, each lane is the IEEE-754 result, rounded to nearest even.
pub(crate) trait Isa: Copy + Send + Sync + 'static {
    /// A vector of `LANES` values.
    type F: Copy;
    /// A vector of `LANES` booleans.
    type M: Copy;

    /// Values in a vector: 8 or 16.
    const LANES: usize;
    /// Whether [`mul_add`](Isa::mul_add) rounds once (true) or twice (false).
    const FUSED: bool;
    /// Whether [`scale_exp2`](Isa::scale_exp2) takes any exponent, infinities and NaN included.
    const SCALES_ANY: bool;
    /// Vector registers that a kernel may count on.
    const REGISTERS: usize;

    fn splat(self, x: f32) -> Self::F;
    /// The first `LANES` values of `src`, which must hold as many.
    fn load(self, src: &[f32]) -> Self::F;
    /// The same from half precision; widening is exact.
    fn load_f16(self, src: &[f16]) -> Self::F;
    /// The same from bfloat16; widening is exact.
    fn load_bf16(self, src: &[bf16]) -> Self::F;
    /// Writes `LANES` values to the front of `dst`, which must have room for them.
    fn store(self, x: Self::F, dst: &mut [f32]);
    /// The same to half precision, rounded to nearest even, NaN kept.
    fn store_f16(self, x: Self::F, dst: &mut [f16]);
    /// The same to bfloat16, rounded to nearest even, NaN kept, subnormals kept.
    fn store_bf16(self, x: Self::F, dst: &mut [bf16]);

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, see [`FUSED`](Isa::FUSED).
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`: `b` when either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`: `b` when either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn abs(self, a: Self::F) -> Self::F;
    /// The magnitude of `a` with the sign of `b`.
    fn copysign(self, a: Self::F, b: Self::F) -> Self::F;
    /// The nearest integer, ties to even, and what `a` is more, both exact; of an infinity itself and 0 or NaN, of NaN NaN. `|a| <= 2^22`
    /// or not finite; any `a` where [`SCALES_ANY`](Isa::SCALES_ANY).
    fn nearest_and_rest(self, a: Self::F) -> (Self::F, Self::F);
    /// `a * 2^n`, rounded once, for integral `n` in -252..=252 (any `n` where [`SCALES_ANY`](Isa::SCALES_ANY)) and
    /// `|a|` in [0.5, 2] or NaN.
    fn scale_exp2(self, a: Self::F, n: Self::F) -> Self::F;
    /// `a`'s representation shifted left by 23 bits: its last 9 bits become sign and exponent, the significand is 0.
    fn shift_into_exponent(self, a: Self::F) -> Self::F;
    /// The largest lane, from a tree of [`max`](Isa::max); with a NaN in some lane, any lane's value.
    fn reduce_max(self, a: Self::F) -> f32;

    /// The sum of all lanes, lane `i` with lane `i + LANES / 2` first, then quarters, and so on.
    fn reduce_add(self, a: Self::F) -> f32;

    /// `a < b`, false when either is NaN.
    fn lt(self, a: Self::F, b: Self::F) -> Self::M;
    /// Lane `i` takes bit `i` of `bits`; higher bits are ignored.
    fn mask(self, bits: u32) -> Self::M;
    /// Bit `i` from lane `i`; higher bits are 0.
    fn bits(self, m: Self::M) -> u32;
    /// `if m { a } else { b }`, an exact copy of the chosen one.
    fn select(self, m: Self::M, a: Self::F, b: Self::F) -> Self::F;

    /// Four neighbouring columns of `rows` rows (1 to `LANES`): vector `c` holds `src[lane * stride + c]`, lanes without a
    /// row the last row's. `src` reaches at least to the last of them.
    fn columns_f32(self, src: &[f32], stride: usize, rows: usize) -> [Self::F; 4];
    /// Eight neighbouring columns, widened.
    fn columns_f16(self, src: &[f16], stride: usize, rows: usize) -> [Self::F; 8];
    /// Eight neighbouring columns, widened.
    fn columns_bf16(self, src: &[bf16], stride: usize, rows: usize) -> [Self::F; 8];

    /// Transposes the square whose row `i` is `rows[i]`; `rows` holds `LANES` vectors.
    fn transpose(self, rows: &mut [Self::F]);

    /// Asks for the cache line of an address, whatever lies there, to come to L2; at most a hint.
    fn prefetch(self, address: *const u8);

    /// Runs a kernel as a function of its own, compiled once however many kernels call it: `run` is inlined everywhere.
    fn call<K: Kernel>(self, kernel: K) -> K::Output;
}

/// Dot products of pairs of bf16, on vectors of `LANES` pairs (`Pairs`).
///
/// Conversions round to nearest even, keep NaN, and flush what is subnormal to zero, which is what the dot product makes
/// of it anyway.
pub(crate) trait Bf16Dot: Isa {
    /// A vector of `LANES` pairs; as a mask, each half all ones or all zeros.
    type Pairs: Copy;

    fn splat_pair(self, pair: [bf16; 2]) -> Self::Pairs;
    /// The first `LANES` pairs of `src`, which must hold as many.
    fn load_pairs(self, src: &[[bf16; 2]]) -> Self::Pairs;
    /// `LANES` elements of two slices from `at` on, side by side: pair `i` holds their elements `at + i`. `at` is a multiple of
    /// `LANES`, and they must hold all up to the next multiple of twice as many.
    fn load_zip(self, even: &[bf16], odd: &[bf16], at: usize) -> Self::Pairs;
    /// Writes `LANES` pairs to the front of `dst`, which must have room for them.
    fn store_pairs(self, pairs: Self::Pairs, dst: &mut [[bf16; 2]]);
    /// Both vectors rounded, one after the other: pair `i` holds elements `2i` and `2i + 1`.
    fn narrow(self, first: Self::F, second: Self::F) -> Self::Pairs;
    /// Both vectors rounded, side by side: pair `i` holds their lanes `i`.
    fn narrow_zip(self, even: Self::F, odd: Self::F) -> Self::Pairs;
    /// `acc + a[0] * b[0] + a[1] * b[1]` in the instruction's own order and rounding, subnormals taken and given as zero.
    fn dot_bf16(self, acc: Self::F, a: Self::Pairs, b: Self::Pairs) -> Self::F;
    /// Halves whose bits differ.
    fn differs(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs;
    /// Bitwise.
    fn and(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs;
    /// Pairs of which some bit is set.
    fn any(self, pairs: Self::Pairs) -> Self::M;
    /// Eight neighbouring columns, in pairs; as [`Isa::columns_bf16`].
    fn columns_pairs(self, src: &[bf16], stride: usize, rows: usize) -> [Self::Pairs; 4];
    /// As [`Isa::transpose`].
    fn transpose_pairs(self, rows: &mut [Self::Pairs]);

    /// As [`Isa::call`].
    fn call_bf16<K: Bf16Kernel>(self, kernel: K) -> K::Output;
}

/// A computation that needs bf16 dot products; `run` must be `#[inline(always)]`.
pub(crate) trait Bf16Kernel {
    type Output;
    fn run<I: Bf16Dot>(self, isa: I) -> Self::Output;
}

/// Proof that a level has bf16 dot products.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bf16Level(
    #[cfg(all(target_arch = "x86_64", not(lucid_force_portable)))] avx512::Avx512Bf16,
    #[cfg(not(all(target_arch = "x86_64", not(lucid_force_portable))))] std::convert::Infallible,
);

impl Bf16Level {
    pub(crate) fn new(level: Level) -> Option<Self> {
        match level {
            #[cfg(all(target_arch = "x86_64", not(lucid_force_portable)))]
            Level::Avx512 => avx512::Avx512Bf16::new().map(Self),
            _ => None,
        }
    }

    /// Runs `kernel` compiled for it.
    #[inline]
    pub(crate) fn dispatch<K: Bf16Kernel>(self, kernel: K) -> K::Output {
        #[cfg(all(target_arch = "x86_64", not(lucid_force_portable)))]
        return self.0.vectorize(kernel);
        #[cfg(not(all(target_arch = "x86_64", not(lucid_force_portable))))]
        match (self.0, kernel) {}
    }
}

/// A computation written once for all instruction sets; `run` must be `#[inline(always)]`.
pub(crate) trait Kernel {
    type Output;
    fn run<I: Isa>(self, isa: I) -> Self::Output;
}

/// An instruction set the kernels are compiled for, from the most general to the most capable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum Level {
    /// Whatever the crate was compiled for, through the `wide` crate. On plain x86-64 this is SSE2, without fused
    /// multiply-add.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Level {
    /// Every level there is, lowest first, whether or not this CPU has it.
    pub const ALL: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];

    /// The name that [`Level::from_name`] and the environment variable `LUCID_LEVEL` understand.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }

    /// Values in a vector of the kernels.
    pub(crate) fn lanes(self) -> usize {
        match self {
            Level::Portable | Level::Avx2 => 8,
            Level::Avx512 => 16,
        }
    }

    /// The level called `name`.
    ///
    /// # Errors
    /// [`AttentionError::UnknownLevel`] if there is none.
    pub fn from_name(name: &str) -> Result<Level, AttentionError> {
        Level::ALL
            .into_iter()
            .find(|level| level.name() == name)
            .ok_or_else(|| AttentionError::UnknownLevel { name: name.to_owned() })
    }

    /// Whether this CPU and this build can run the level.
    pub fn is_available(self) -> bool {
        match self {
            Level::Portable => true,
            #[cfg(all(target_arch = "x86_64", not(lucid_force_portable)))]
            Level::Avx2 => avx2::Avx2::new().is_some(),
            #[cfg(all(target_arch = "x86_64", not(lucid_force_portable)))]
            Level::Avx512 => avx512::Avx512::<false>::new().is_some(),
            #[cfg(not(all(target_arch = "x86_64", not(lucid_force_portable))))]
            Level::Avx2 | Level::Avx512 => false,
        }
    }

    /// The levels that can run here, lowest first.
    pub fn available() -> impl Iterator<Item = Level> {
        Level::ALL.into_iter().filter(|level| level.is_available())
    }

    /// The highest level that can run here, or the one that `LUCID_LEVEL` names. The variable is read once per
    /// process.
    ///
    /// # Errors
    /// `LUCID_LEVEL` names a level that does not exist ([`AttentionError::UnknownLevel`]) or that this CPU lacks
    /// ([`AttentionError::LevelUnavailable`]).
    pub fn detect() -> Result<Level, AttentionError> {
        static FORCED: OnceLock<Option<String>> = OnceLock::new();
        static BEST: OnceLock<Level> = OnceLock::new();
        let forced = FORCED
            .get_or_init(|| std::env::var_os("LUCID_LEVEL").map(|name| name.to_string_lossy().into_owned()));
        match forced {
            Some(name) => Level::from_name(name)?.check_available(),
            None => Ok(*BEST.get_or_init(|| Level::available().last().unwrap_or(Level::Portable))),
        }
    }

    /// This level, if it can run here.
    ///
    /// # Errors
    /// [`AttentionError::LevelUnavailable`] otherwise.
    pub fn check_available(self) -> Result<Level, AttentionError> {
        if self.is_available() {
            Ok(self)
        } else {
            Err(AttentionError::LevelUnavailable { level: self.name() })
        }
    }

    /// The level that options ask for, or else [`Level::detect`]'s.
    pub(crate) fn chosen(level: Option<Level>) -> Result<Level, AttentionError> {
        level.map_or_else(Level::detect, Level::check_available)
    }

    /// Whether a multiply-add rounds once. Levels for which this holds give the same bits for the same call.
    pub fn is_fused(self) -> bool {
        match self {
            Level::Portable => portable::Portable::FUSED,
            Level::Avx2 | Level::Avx512 => true,
        }
    }

    /// Whether the opt-in bf16 dot-product tier runs at this level on this CPU; not whether it is fast here
    /// ([`Level::bf16_dot_gain`]).
    pub fn has_bf16_dot(self) -> bool {
        Bf16Level::new(self).is_some()
    }

    /// How many products the bf16 dot-product tier does on this core in the time of one of the exact tier's, measured now, in a
    /// fraction of a millisecond; `None` where the tier does not run.
    ///
    /// A dot product is two multiply-adds: 2 where it takes the time of one (Zen 4), 0.5 where it takes that of four (Emerald
    /// Rapids). The tier can be faster than the exact one only above 1, see [`PlanOptions::bf16_dot`](crate::PlanOptions::bf16_dot).
    /// A neighbour on the core moves the figure, not by as much as sets these two apart.
    ///
    /// # Examples
    /// ```
    /// use lucid_attention::{Level, PlanOptions};
    ///
    /// let fast = Level::detect()?.bf16_dot_gain().is_some_and(|gain| gain > 1.0);
    /// let options = PlanOptions { bf16_dot: fast, ..PlanOptions::default() };
    /// # let _ = options;
    /// # Ok::<(), lucid_attention::AttentionError>(())
    /// ```
    pub fn bf16_dot_gain(self) -> Option<f64> {
        let [multiply_adds, dots] = Bf16Level::new(self)?.dispatch(rates::StepTimes);
        Some(2.0 * multiply_adds.as_secs_f64() / dots.as_secs_f64().max(f64::MIN_POSITIVE))
    }

    /// Runs `kernel` compiled for this level. A level that cannot run here (which a plan never holds) falls back to
    /// the portable one.
    #[inline]
    pub(crate) fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(all(target_arch = "x86_64", not(lucid_force_portable)))]
            Level::Avx512 => {
                if let Some(isa) = avx512::Avx512::<false>::new() {
                    return isa.vectorize(kernel);
                }
            }
            #[cfg(all(target_arch = "x86_64", not(lucid_force_portable)))]
            Level::Avx2 => {
                if let Some(isa) = avx2::Avx2::new() {
                    return isa.vectorize(kernel);
                }
            }
            _ => {}
        }
        portable::Portable.call(kernel) // as a function: there is no shim that makes one of it
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
