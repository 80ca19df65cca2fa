//! Families of numbers.

use super::{Case, Rng};
use lucid_attention::DType::{self, F16};

/// What the numbers look like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values {
    /// Normal, with logits of about this size.
    Spread(f32),
    /// Two different keys, values of one sign: the maximum is shared by half of all keys.
    Ties,
    /// One key: all logits are the same.
    Equal,
    /// Keys and values that are unit vectors.
    OneHot,
    /// Each key's logit is above those before it: the maximum rises in every tile.
    Increasing,
    /// And below.
    Decreasing,
    /// Values of +-1000 that cancel.
    Cancelling,
    /// Subnormal products and values.
    Subnormal,
    /// Values near the largest finite number.
    Huge,
    /// Logits that overflow `f32` (if not stored as f16).
    Overflow,
    /// Logits down to some 115 below the largest: weights that are subnormal, or 0.
    Underflow,
    /// One dimension in 16 is 1000 times as large, as in trained models.
    Outliers,
    /// Zeros of both signs among queries, keys and values.
    Zeros,
    /// Keys as they come, the same value everywhere.
    Constant,
}

/// The families that every test of values goes through, the first two the well-conditioned ones.
pub const VALUES: [Values; 12] = [
    Values::Spread(1.0),
    Values::Spread(30.0),
    Values::Spread(300.0),
    Values::Ties,
    Values::Equal,
    Values::OneHot,
    Values::Increasing,
    Values::Decreasing,
    Values::Cancelling,
    Values::Subnormal,
    Values::Huge,
    Values::Overflow,
];

/// Families beside those that random cases draw from.
pub const RARE_VALUES: [Values; 4] = [Values::Underflow, Values::Outliers, Values::Zeros, Values::Constant];

/// The numbers of a family.
pub(super) struct Numbers<'a> {
    pub(super) case: &'a Case,
    /// What queries are stored as.
    pub(super) q: DType,
    /// What keys and values are stored as.
    pub(super) kv: DType,
}

/// The numbers of keys.
pub(super) struct KeyNumbers<'a> {
    numbers: &'a Numbers<'a>,
    /// Two keys to choose from.
    pattern: Vec<f32>,
}

impl Numbers<'_> {
    pub(super) fn q(&self, rng: &mut Rng) -> f32 {
        match self.case.values {
            Values::Underflow => 1.0,
            Values::Zeros => zero(rng),
            Values::Spread(spread) => rng.normal() * spread,
            Values::Increasing | Values::Decreasing => 1.0 + 0.01 * rng.normal(),
            Values::Subnormal if self.q == F16 => rng.normal() * 1e-4,
            Values::Subnormal => rng.normal() * 1e-20,
            Values::Overflow if self.q == F16 => rng.normal() * 18000.0,
            Values::Overflow => rng.normal() * 1e20,
            _ => rng.normal(),
        }
    }

    pub(super) fn keys(&self) -> KeyNumbers<'_> {
        let mut rng = Rng::new(self.case.seed ^ 0x5555);
        KeyNumbers { numbers: self, pattern: (0..2 * self.case.head_dim).map(|_| rng.normal()).collect() }
    }

    pub(super) fn v(&self, rng: &mut Rng, t: usize, d: usize) -> f32 {
        let largest = if self.kv == F16 { 65504.0 } else { 3.3e38 };
        match self.case.values {
            Values::Zeros => zero(rng),
            Values::Constant => -1.1,
            Values::Outliers if d % 16 == 3 => rng.normal() * 1000.0,
            Values::Ties => rng.uniform().abs() + 0.5,
            Values::OneHot => f32::from(u8::from(d == t % self.case.v_dim)),
            Values::Cancelling => (if t.is_multiple_of(2) { 1000.0 } else { -1000.0 }) + rng.normal(),
            Values::Subnormal if self.kv == F16 => rng.normal() * 1e-6,
            Values::Subnormal => rng.normal() * 1e-39,
            Values::Huge => rng.uniform() * largest,
            _ => rng.normal(),
        }
    }
}

/// +0, -0, or now and then another number.
fn zero(rng: &mut Rng) -> f32 {
    rng.pick(&[0.0, -0.0, 0.0, -0.0, 1.0, -0.5])
}

impl KeyNumbers<'_> {
    pub(super) fn next(&mut self, rng: &mut Rng, t: usize, d: usize) -> f32 {
        let Numbers { case, kv, .. } = *self.numbers;
        let step = t as f32 * (1.0 / 8.0);
        match case.values {
            // Times the default scale, all dimensions make up for the root of their number.
            Values::Underflow => -((t * 37 % 116) as f32) / (case.head_dim as f32).sqrt(),
            Values::Zeros => zero(rng),
            Values::Outliers if d % 16 == 3 => rng.normal() * 1000.0,
            Values::Ties => self.pattern[t % 2 * case.head_dim + d],
            Values::Equal => self.pattern[d],
            Values::OneHot => 8.0 * f32::from(u8::from(d == t % case.head_dim)),
            Values::Increasing => step,
            Values::Decreasing => -step,
            Values::Cancelling => 0.1 * rng.normal(),
            Values::Subnormal if kv == F16 => rng.normal() * 1e-5,
            Values::Subnormal => rng.normal() * 1e-20,
            Values::Overflow if kv == F16 => rng.normal() * 18000.0,
            Values::Overflow => rng.normal() * 1e20,
            _ => rng.normal(),
        }
    }
}
