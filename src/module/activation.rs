//! Activation functions, by their Keras names.

use crate::error::AttentionError;
use crate::isa::{Isa, Level};
use crate::math::{self, Function, vector};
use std::f32::consts::FRAC_1_SQRT_2;

/// A function of one number.
///
/// Built on the vector functions of [`math`], so that results are the same bits at every level that
/// fuses multiply-add. Absolute errors are a few units in the last place of the argument (of 1 for `tanh` and `sigmoid`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Activation {
    /// `x`.
    #[default]
    Linear,
    /// `max(x, 0)`; NaN stays.
    Relu,
    /// `x (1 + erf(x / sqrt 2)) / 2`.
    Gelu,
    /// `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`, which Keras calls `gelu` with `approximate=True`.
    GeluTanh,
    /// `x sigmoid(x)`.
    Silu,
    /// The hyperbolic tangent.
    Tanh,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
}

impl Activation {
    /// All there are.
    pub const ALL: [Activation; 7] = [
        Activation::Linear,
        Activation::Relu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
        Activation::Tanh,
        Activation::Sigmoid,
    ];

    /// Its name in Keras, and in a serialised configuration.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Linear => "linear",
            Activation::Relu => "relu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::Silu => "silu",
            Activation::Tanh => "tanh",
            Activation::Sigmoid => "sigmoid",
        }
    }

    /// Replaces each value, at one instruction-set level.
    ///
    /// # Errors
    /// [`AttentionError::LevelUnavailable`] if this CPU or build lacks `level`; the values are then as before.
    pub fn apply(self, level: Level, values: &mut [f32]) -> Result<(), AttentionError> {
        with_activation!(self, F => math::map::<F>(level, values))
    }
}

impl std::fmt::Display for Activation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Runs `$body` with `$f` as the [`Function`] of an [`Activation`].
macro_rules! with_activation {
    ($activation:expr, $f:ident => $body:expr) => {
        match $activation {
            $crate::module::Activation::Linear => {
                type $f = $crate::module::activation::Linear;
                $body
            }
            $crate::module::Activation::Relu => {
                type $f = $crate::module::activation::Relu;
                $body
            }
            $crate::module::Activation::Gelu => {
                type $f = $crate::module::activation::Gelu;
                $body
            }
            $crate::module::Activation::GeluTanh => {
                type $f = $crate::module::activation::GeluTanh;
                $body
            }
            $crate::module::Activation::Silu => {
                type $f = $crate::module::activation::Silu;
                $body
            }
            $crate::module::Activation::Tanh => {
                type $f = $crate::math::Tanh;
                $body
            }
            $crate::module::Activation::Sigmoid => {
                type $f = $crate::module::activation::Sigmoid;
                $body
            }
        }
    };
}
pub(crate) use with_activation;

pub(crate) struct Linear;
impl Function for Linear {
    #[inline(always)]
    fn apply<I: Isa>(_isa: I, x: I::F) -> I::F {
        x
    }
}

pub(crate) struct Relu;
impl Function for Relu {
    #[inline(always)]
    fn apply<I: Isa>(isa: I, x: I::F) -> I::F {
        let zero = isa.splat(0.0);
        mutant!("relu-of-nan-is-zero", isa.max(zero, x), isa.max(x, zero)) // in this order NaN stays
    }
}

pub(crate) struct Gelu;
impl Function for Gelu {
    #[inline(always)]
    fn apply<I: Isa>(isa: I, x: I::F) -> I::F {
        half_of(isa, x, vector::erf(isa, isa.mul(x, isa.splat(FRAC_1_SQRT_2))))
    }
}

pub(crate) struct GeluTanh;
impl Function for GeluTanh {
    #[inline(always)]
    fn apply<I: Isa>(isa: I, x: I::F) -> I::F {
        const SQRT_2_OVER_PI: f32 = 0.797_884_6;
        let cubic = isa.mul_add(isa.mul(isa.mul(x, x), isa.splat(0.044715)), x, x);
        half_of(isa, x, vector::tanh(isa, isa.mul(cubic, isa.splat(SQRT_2_OVER_PI))))
    }
}

/// `x (1 + y) / 2`.
#[inline(always)]
fn half_of<I: Isa>(isa: I, x: I::F, y: I::F) -> I::F {
    let half = isa.mul(x, isa.splat(0.5));
    isa.mul(half, isa.add(isa.splat(1.0), y))
}

pub(crate) struct Silu;
impl Function for Silu {
    #[inline(always)]
    fn apply<I: Isa>(isa: I, x: I::F) -> I::F {
        isa.div(x, one_and_exp_of_minus(isa, x))
    }
}

pub(crate) struct Sigmoid;
impl Function for Sigmoid {
    #[inline(always)]
    fn apply<I: Isa>(isa: I, x: I::F) -> I::F {
        isa.div(isa.splat(1.0), one_and_exp_of_minus(isa, x))
    }
}

/// `1 + exp(-x)`.
#[inline(always)]
fn one_and_exp_of_minus<I: Isa>(isa: I, x: I::F) -> I::F {
    isa.add(isa.splat(1.0), vector::exp(isa, isa.sub(isa.splat(0.0), x)))
}
