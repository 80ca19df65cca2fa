//! Feature maps: what stands for the softmax's kernel, and how a block of tokens goes through it.
//!
//! ```text
//! panel    [head_dim][64]      tokens are columns              (what keys are packed into for scores, too)
//! out      [features][64]      features, or their exponents    a feature's row is a row of weights for values,
//!                                                              and all rows are a panel of keys for scores
//! ```
//!
//! A map of exponentials leaves `t = log2(feature)`, up to constants that cancel: what is subtracted before the power is
//! taken is the gauge's business ([`super::gauge`]).

use super::directions::Directions;
use super::projection::Projection;
use crate::error::{AttentionError, check_size};
use crate::isa::Isa;
use crate::math::vector;
use crate::panels::PANEL;
use std::f32::consts::{FRAC_1_SQRT_2, LOG2_E};
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

/// Which operand is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Queries.
    Query,
    /// Keys.
    Key,
}

/// A feature map of the user's own.
pub trait CustomMap: Debug + Send + Sync {
    /// How many features there are for vectors of this size, at least 1.
    fn features(&self, head_dim: usize) -> usize;

    /// The features of one query or key, `x` times `sqrt(scale)`. All of `out` has to be written. The same `x` must give
    /// the same features every time.
    fn map(&self, side: Side, x: &[f32], out: &mut [f32]);

    /// Tells this map from others of its author's, so that states of the one are not taken for states of the other. 0 for
    /// all, unless told.
    fn fingerprint(&self) -> u64 {
        0
    }
}

/// A feature map `φ`: the weight of a key is `φ(q) · φ(k)`.
///
/// `x` stands for a query or key times `sqrt(scale)`, see [`LinearOptions::scale`](super::LinearOptions::scale).
#[derive(Clone, Debug)]
pub enum FeatureMap {
    /// FAVOR+: `exp(ω_f · x - |x|²/2)`, whose products have the mean `exp(x · y)` (Choromanski et al., "Rethinking
    /// attention with Performers", 2021, Lemma 1).
    Positive(Projection),
    /// Its hyperbolic form: `exp(±ω_f · x - |x|²/2)`, two features for each direction (the same lemma).
    Hyperbolic(Projection),
    /// FAVOR++: `exp(A|ω_f|² + sqrt(1 - 4A) ω_f · x - |x|²/2)`, of the same mean and, with the `A` of
    /// [`Estimate::best_a`](super::Estimate::best_a), the least variance (Likhosherstov et al., "Chefs' random tables",
    /// 2022). FAVOR+ is `A = 0`.
    Optimal {
        /// The directions.
        projection: Projection,
        /// `A`, below 1/8; negative where it helps.
        a: f32,
    },
    /// `elu(x) + 1`, `head_dim` features (Katharopoulos et al., "Transformers are RNNs", 2020).
    Elu,
    /// `max(Ω x, 0) + epsilon`, or `max(x, 0) + epsilon` without directions ("Performer-ReLU").
    Relu {
        /// The directions, if any.
        projection: Option<Projection>,
        /// What keeps features from vanishing, at least 0: 1e-3 in the reference codes, which add it so.
        epsilon: f32,
    },
    /// `1, x_i, x_i²/√2, x_i x_j (i < j)`, so that weights are `1 + s + s²/2` with `s = x · y`: `exp(s)` near 0, and never
    /// below 1/2. `1 + d + d (d + 1) / 2` features.
    Taylor,
    /// `x` itself: linear attention without a normaliser, for [`LinearOptions::normalize`] `= false`.
    ///
    /// [`LinearOptions::normalize`]: super::LinearOptions::normalize
    Identity,
    /// The user's own.
    Custom(Arc<dyn CustomMap>),
}

impl FeatureMap {
    /// How many features there are for queries and keys of this size.
    ///
    /// # Errors
    /// Directions are for another size, a number is out of its range, or there would be no feature or too many.
    pub fn features(&self, head_dim: usize) -> Result<usize, AttentionError> {
        let overflow = AttentionError::SizeOverflow { operand: "features" };
        if let Some(projection) = self.projection() {
            check_size("projection", "head_dim", head_dim, projection.head_dim())?;
        }
        let value = |operand, expected, got: f32| {
            Err(AttentionError::Value { operand, expected, got: got.to_string() })
        };
        let features = match self {
            FeatureMap::Positive(projection) => projection.features(),
            FeatureMap::Hyperbolic(projection) => projection.features().checked_mul(2).ok_or(overflow)?,
            FeatureMap::Optimal { a, .. } if !(a.is_finite() && *a < 0.125) => {
                return value("a", "a finite number below 1/8", *a);
            }
            FeatureMap::Relu { epsilon, .. } if !(epsilon.is_finite() && *epsilon >= 0.0) => {
                return value("epsilon", "a finite number of at least 0", *epsilon);
            }
            FeatureMap::Optimal { projection, .. } => projection.features(),
            FeatureMap::Relu { projection: Some(projection), .. } => projection.features(),
            FeatureMap::Elu | FeatureMap::Relu { .. } | FeatureMap::Identity => head_dim,
            FeatureMap::Taylor => {
                let pairs = head_dim.checked_add(1).and_then(|n| n.checked_mul(head_dim));
                pairs.and_then(|pairs| (pairs / 2).checked_add(1 + head_dim)).ok_or(overflow)?
            }
            FeatureMap::Custom(map) => map.features(head_dim),
        };
        if features == 0 {
            let (operand, expected) = ("features", "at least 1");
            return Err(AttentionError::Value { operand, expected, got: "0".to_owned() });
        }
        Ok(features)
    }

    /// Whether it estimates the softmax's kernel by exponentials.
    pub(crate) fn is_exponential(&self) -> bool {
        matches!(self, FeatureMap::Positive(_) | FeatureMap::Hyperbolic(_) | FeatureMap::Optimal { .. })
    }

    fn projection(&self) -> Option<&Projection> {
        match self {
            FeatureMap::Positive(projection)
            | FeatureMap::Hyperbolic(projection)
            | FeatureMap::Optimal { projection, .. } => Some(projection),
            FeatureMap::Relu { projection, .. } => projection.as_ref(),
            _ => None,
        }
    }

    /// The scale where none is given.
    pub(crate) fn default_scale(&self, head_dim: usize) -> f32 {
        if self.is_exponential() || matches!(self, FeatureMap::Taylor | FeatureMap::Identity) {
            crate::exact::call::default_scale(head_dim)
        } else {
            1.0
        }
    }
}

/// A map made ready for a plan.
#[derive(Clone, Debug)]
pub(crate) enum Ready {
    Exponential(Exponential),
    Elu { root: f32 },
    Relu { directions: Option<Directions>, root: f32, epsilon: f32 },
    Taylor { root: f32 },
    Identity { root: f32 },
    Custom { map: Arc<dyn CustomMap>, root: f32 },
}

/// `t = ω · k - norm |k|²` of keys, `t = ω · q + shift` of queries, in units of log2.
#[derive(Clone, Debug)]
pub(crate) struct Exponential {
    directions: Directions,
    /// One for each feature: what both sides have in common, moved to the queries' where it cancels no gauge.
    shift: Vec<f32>,
    /// `log2(e) scale / 2`.
    norm: f32,
    /// What of the logarithm of a weight is missing, but for `- norm |q|²`.
    pub(crate) constant: f32,
}

impl Ready {
    pub(crate) fn new(map: &FeatureMap, head_dim: usize, scale: f32) -> Result<Self, AttentionError> {
        let root = scale.sqrt();
        let scaled = |projection: &Projection, factor: f64| {
            Directions::new(projection, factor, matches!(map, FeatureMap::Hyperbolic(_)))
        };
        let exponential = |projection: &Projection, a: f64| {
            let factor = f64::from(LOG2_E) * f64::from(root) * (1.0 - 4.0 * a).sqrt();
            let scaled = scaled(projection, factor)?;
            let square = |row: &[f32]| row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
            let shift = |row| (2.0 * a * std::f64::consts::LOG2_E * square(row)) as f32;
            let features = scaled.rows.len() / head_dim;
            let directions = projection.rows().chunks_exact(head_dim).cycle().take(features);
            let constant = head_dim as f64 / 2.0 * (1.0 - 4.0 * a).log2() - (features as f64).log2();
            Ok(Ready::Exponential(Exponential {
                shift: directions.map(shift).collect(),
                directions: scaled,
                norm: mutant!("norm-of-features-doubled", LOG2_E * scale / 2.0, LOG2_E * scale),
                constant: constant as f32,
            }))
        };
        match map {
            FeatureMap::Positive(projection) | FeatureMap::Hyperbolic(projection) => {
                exponential(projection, 0.0)
            }
            FeatureMap::Optimal { projection, a } => exponential(projection, f64::from(*a)),
            FeatureMap::Elu => Ok(Ready::Elu { root }),
            FeatureMap::Relu { projection, epsilon } => {
                let directions = projection.as_ref().map(|rows| scaled(rows, f64::from(root))).transpose()?;
                Ok(Ready::Relu { directions, root, epsilon: *epsilon })
            }
            FeatureMap::Taylor => Ok(Ready::Taylor { root }),
            FeatureMap::Identity => Ok(Ready::Identity { root }),
            FeatureMap::Custom(map) => Ok(Ready::Custom { map: Arc::clone(map), root }),
        }
    }

    pub(crate) fn exponential(&self) -> Option<&Exponential> {
        match self {
            Ready::Exponential(exponential) => Some(exponential),
            _ => None,
        }
    }

    /// The features of some tokens of a panel; exponents where the map is one of exponentials. `row` has room for a vector and
    /// its features, 64 at least. Columns up to the next multiples of 16 are arbitrary then.
    #[inline(always)]
    pub(crate) fn apply<I: Isa>(
        &self,
        isa: I,
        side: Side,
        panel: &[f32],
        tokens: Range<usize>,
        (row, out): (&mut [f32], &mut [f32]),
    ) {
        let columns = vectors::<I>(&tokens);
        match self {
            Ready::Exponential(map) => map.exponents(isa, side, panel, tokens, (row, out)),
            Ready::Elu { root } => each(isa, EluPlusOne { root: *root }, panel, columns, out),
            Ready::Relu { directions: Some(directions), epsilon, .. } => {
                directions.project(isa, panel, &tokens, (row, out));
                in_place(isa, Rectified { root: 1.0, epsilon: *epsilon }, columns, out);
            }
            Ready::Relu { directions: None, root, epsilon } => {
                each(isa, Rectified { root: *root, epsilon: *epsilon }, panel, columns, out);
            }
            Ready::Taylor { root } => taylor(isa, *root, panel, columns, out),
            Ready::Identity { root } => each(isa, Times { root: *root }, panel, columns, out),
            Ready::Custom { map, root } => custom(&**map, *root, side, panel, tokens, (row, out)),
        }
    }
}

/// The multiples of 16 around some columns.
#[inline(always)]
pub(crate) fn whole_columns(columns: &Range<usize>) -> Range<usize> {
    columns.start / 16 * 16..columns.end.next_multiple_of(16)
}

/// The multiples of a vector's length around some columns.
#[inline(always)]
pub(crate) fn vectors<I: Isa>(columns: &Range<usize>) -> Range<usize> {
    columns.start / I::LANES * I::LANES..columns.end.next_multiple_of(I::LANES)
}

impl Exponential {
    #[inline(always)]
    fn exponents<I: Isa>(
        &self,
        isa: I,
        side: Side,
        panel: &[f32],
        tokens: Range<usize>,
        (row, out): (&mut [f32], &mut [f32]),
    ) {
        self.directions.project(isa, panel, &tokens, (row, out));
        let columns = vectors::<I>(&tokens);
        match side {
            Side::Key => {
                for column in columns.step_by(I::LANES) {
                    let norm = self.log_norm(isa, panel, column);
                    for row in out.chunks_exact_mut(PANEL).take(self.shift.len()) {
                        let row = &mut row[column..];
                        isa.store(isa.sub(isa.load(row), norm), row);
                    }
                }
            }
            Side::Query => {
                for (row, &shift) in out.chunks_exact_mut(PANEL).zip(&self.shift) {
                    if shift != 0.0 {
                        for row in row[columns.clone()].chunks_exact_mut(I::LANES) {
                            isa.store(isa.add(isa.load(row), isa.splat(shift)), row);
                        }
                    }
                }
            }
        }
    }

    /// `norm |x|²` of a vector of tokens.
    #[inline(always)]
    pub(crate) fn log_norm<I: Isa>(&self, isa: I, panel: &[f32], column: usize) -> I::F {
        let mut square = isa.splat(0.0);
        for dim in panel.chunks_exact(PANEL) {
            let x = isa.load(&dim[column..]);
            square = isa.mul_add(x, x, square);
        }
        isa.mul(square, isa.splat(self.norm))
    }
}

/// A function of one coordinate, as a type: a closure need not be inlined.
trait Coordinate: Copy {
    fn apply<I: Isa>(self, isa: I, x: I::F) -> I::F;
}

#[derive(Clone, Copy)]
struct EluPlusOne {
    root: f32,
}

impl Coordinate for EluPlusOne {
    #[inline(always)]
    fn apply<I: Isa>(self, isa: I, x: I::F) -> I::F {
        let x = isa.mul(x, isa.splat(self.root));
        let positive = isa.lt(isa.splat(0.0), x);
        isa.select(positive, isa.add(x, isa.splat(1.0)), vector::exp(isa, x))
    }
}

#[derive(Clone, Copy)]
struct Rectified {
    root: f32,
    epsilon: f32,
}

impl Coordinate for Rectified {
    #[inline(always)]
    fn apply<I: Isa>(self, isa: I, x: I::F) -> I::F {
        let x = isa.mul(x, isa.splat(self.root));
        isa.add(isa.max(isa.splat(0.0), x), isa.splat(self.epsilon))
    }
}

#[derive(Clone, Copy)]
struct Times {
    root: f32,
}

impl Coordinate for Times {
    #[inline(always)]
    fn apply<I: Isa>(self, isa: I, x: I::F) -> I::F {
        isa.mul(x, isa.splat(self.root))
    }
}

/// A function of each coordinate of the panel.
#[inline(always)]
fn each<I: Isa, C: Coordinate>(isa: I, function: C, panel: &[f32], columns: Range<usize>, out: &mut [f32]) {
    for (dim, out) in panel.chunks_exact(PANEL).zip(out.chunks_exact_mut(PANEL)) {
        for column in columns.clone().step_by(I::LANES) {
            isa.store(function.apply(isa, isa.load(&dim[column..])), &mut out[column..]);
        }
    }
}

/// A function of each feature.
#[inline(always)]
fn in_place<I: Isa, C: Coordinate>(isa: I, function: C, columns: Range<usize>, out: &mut [f32]) {
    for out in out.chunks_exact_mut(PANEL) {
        for x in out[columns.clone()].chunks_exact_mut(I::LANES) {
            isa.store(function.apply(isa, isa.load(x)), x);
        }
    }
}

#[inline(always)]
fn taylor<I: Isa>(isa: I, root: f32, panel: &[f32], columns: Range<usize>, out: &mut [f32]) {
    let (root, half) = (isa.splat(root), isa.splat(FRAC_1_SQRT_2));
    let dims = panel.len() / PANEL;
    for column in columns.step_by(I::LANES) {
        isa.store(isa.splat(1.0), &mut out[column..]);
        let mut pair = 1 + dims;
        for index in 0..dims {
            let x = isa.mul(isa.load(&panel[index * PANEL + column..]), root);
            isa.store(x, &mut out[(1 + index) * PANEL + column..]);
            isa.store(isa.mul(isa.mul(x, x), half), &mut out[pair * PANEL + column..]);
            pair += 1;
            for other in index + 1..dims {
                let y = isa.mul(isa.load(&panel[other * PANEL + column..]), root);
                isa.store(isa.mul(x, y), &mut out[pair * PANEL + column..]);
                pair += 1;
            }
        }
    }
}

/// Token by token.
#[inline(never)]
fn custom(
    map: &dyn CustomMap,
    root: f32,
    side: Side,
    panel: &[f32],
    tokens: Range<usize>,
    (row, out): (&mut [f32], &mut [f32]),
) {
    let (x, features) = row.split_at_mut(panel.len() / PANEL);
    let features = &mut features[..out.len() / PANEL];
    for column in tokens {
        let dims = panel.chunks_exact(PANEL);
        x.iter_mut().zip(dims).for_each(|(x, dim)| *x = dim[column] * root);
        map.map(side, x, features);
        let rows = out.chunks_exact_mut(PANEL);
        features.iter().zip(rows).for_each(|(&feature, row)| row[column] = feature);
    }
}
