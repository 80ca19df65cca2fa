//! Storage types: `f32`, `f16` and `bf16` (of the `half` crate).
//!
//! The storage type decides one rounding at the store and none at the load; everything between is `f32`. Scalar
//! conversions of the `half` crate look the CPU up on each call, so kernels convert through [`Isa`] only.

use crate::cache::{AnyKeysValues, KvCache};
use crate::exact::call::Call;
use crate::exact::finish::Targets;
use crate::exact::grid::{self, Grid};
use crate::exact::scores::{self, ScoreTargets};
use crate::exact::tier::Engine;
use crate::exact::workspace::{Scratch, WorkspaceParts};
use crate::isa::Isa;
use crate::parallel::Begun;
use crate::rows::{AnyRows, SharedRows};
use crate::view::{AnyView, View};
use half::{bf16, f16};

/// A storage type's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum DType {
    /// 32-bit IEEE.
    F32,
    /// 16-bit IEEE.
    F16,
    /// 16 bits with `f32`'s exponent.
    Bf16,
}

impl DType {
    /// The name used in messages and bench ids: `f32`, `f16` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
        }
    }

    /// The size of an element.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
    }

    /// The unit roundoff of one store: 2^-24, 2^-11 or 2^-8.
    pub fn unit_roundoff(self) -> f64 {
        match self {
            DType::F32 => 2f64.powi(-24),
            DType::F16 => 2f64.powi(-11),
            DType::Bf16 => 2f64.powi(-8),
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A type that operands can be stored in. Sealed: `f32` and the `f16` and `bf16` of the `half` crate.
pub trait Element: sealed::Storage {
    /// Its name.
    const DTYPE: DType;

    /// Exact widening.
    fn to_f32(self) -> f32;

    /// Rounding to nearest even; NaN stays NaN.
    fn from_f32(x: f32) -> Self;
}

pub(crate) mod sealed {
    use super::*;

    /// What the kernels need of a storage type.
    #[allow(private_interfaces, private_bounds, reason = "sealed: nobody outside can name or implement it")]
    pub trait Storage:
        crate::scratch::Zeroed + Default + PartialEq + Send + Sync + std::fmt::Debug + 'static
    {
        fn load<I: Isa>(isa: I, src: &[Self]) -> I::F;
        fn store<I: Isa>(isa: I, x: I::F, dst: &mut [Self]);
        /// Columns that [`Storage::columns`] yields: 16 bytes of each row.
        const COLUMNS: usize = 16 / size_of::<Self>();
        /// Neighbouring columns of `rows` rows, the first [`COLUMNS`](Storage::COLUMNS) vectors; the rest is zero. Lanes
        /// without a row hold the last row's.
        fn columns<I: Isa>(isa: I, src: &[Self], stride: usize, rows: usize) -> [I::F; 8];
        /// These, if they are bf16.
        fn as_bf16(data: &[Self]) -> Option<&[bf16]>;
        fn erase(view: View<'_, Self>) -> AnyView<'_>
        where
            Self: Element;
        fn erase_cache(cache: &KvCache<Self>) -> AnyKeysValues<'_>
        where
            Self: Element;
        fn share(rows: SharedRows<'_, Self>) -> AnyRows<'_>;
        /// [`grid::run`] for keys and values of this type. Here, and not generic at the caller's, because that is what
        /// compiles the kernels once, into this crate, instead of into every crate that calls them.
        fn run(
            engine: Engine,
            call: &Call<'_, Self>,
            grid: &Grid,
            targets: &Targets<'_>,
            workspace: WorkspaceParts<'_>,
        ) -> Begun
        where
            Self: Element;
        /// [`scores::run`], likewise.
        fn run_scores(
            engine: Engine,
            call: &Call<'_, Self>,
            targets: &ScoreTargets<'_>,
            scratches: &mut [Scratch],
        ) where
            Self: Element;
    }
}

macro_rules! element {
    ($type:ty, $dtype:ident, $load:ident, $store:ident, $columns:ident, $as_bf16:expr, $to:expr, $from:expr) => {
        #[allow(
            private_interfaces,
            private_bounds,
            reason = "sealed: nobody outside can name or implement it"
        )]
        impl sealed::Storage for $type {
            #[inline(always)]
            fn load<I: Isa>(isa: I, src: &[Self]) -> I::F {
                isa.$load(src)
            }
            #[inline(always)]
            fn store<I: Isa>(isa: I, x: I::F, dst: &mut [Self]) {
                isa.$store(x, dst)
            }
            #[inline(always)]
            fn columns<I: Isa>(isa: I, src: &[Self], stride: usize, rows: usize) -> [I::F; 8] {
                let mut columns = [isa.splat(0.0); 8];
                columns[..Self::COLUMNS].copy_from_slice(&isa.$columns(src, stride, rows));
                columns
            }
            #[inline(always)]
            fn as_bf16(data: &[Self]) -> Option<&[bf16]> {
                $as_bf16(data)
            }
            fn erase(view: View<'_, Self>) -> AnyView<'_> {
                AnyView::$dtype(view)
            }
            fn erase_cache(cache: &KvCache<Self>) -> AnyKeysValues<'_> {
                AnyKeysValues::$dtype(cache.keys().into(), cache.values())
            }
            fn share(rows: SharedRows<'_, Self>) -> AnyRows<'_> {
                AnyRows::$dtype(rows)
            }
            fn run(
                engine: Engine,
                call: &Call<'_, Self>,
                grid: &Grid,
                targets: &Targets<'_>,
                workspace: WorkspaceParts<'_>,
            ) -> Begun {
                grid::run(engine, call, grid, targets, workspace)
            }
            fn run_scores(
                engine: Engine,
                call: &Call<'_, Self>,
                targets: &ScoreTargets<'_>,
                scratches: &mut [Scratch],
            ) {
                scores::run(engine, call, targets, scratches);
            }
        }

        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
            #[inline(always)]
            fn to_f32(self) -> f32 {
                $to(self)
            }
            #[inline(always)]
            fn from_f32(x: f32) -> Self {
                $from(x)
            }
        }
    };
}

element!(f32, F32, load, store, columns_f32, |_| None, |x| x, |x| x);
element!(f16, F16, load_f16, store_f16, columns_f16, |_| None, f16::to_f32_const, f16::from_f32_const);
element!(bf16, Bf16, load_bf16, store_bf16, columns_bf16, Some, bf16::to_f32_const, bf16::from_f32_const);
