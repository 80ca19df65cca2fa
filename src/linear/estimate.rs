//! [`estimate`]: whether random features will do, known beforehand.

use crate::error::{AttentionError, check_size};
use crate::view::AnyView;

/// What is to be expected of random features for some queries and keys.
///
/// Everything is a function of `|z|² = |x + y|²`, with `x` and `y` a query and a key times `sqrt(scale)`: the relative
/// standard deviation of one entry of the kernel grows with `exp(|z|²/2)`, whatever the length of the sequence. Where it
/// is not well below 1, an output says less than the plain mean of the values would.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean of `|z|²` over all pairs, heads and sequences.
    pub mean_square: f64,
    /// Of a vector.
    pub head_dim: usize,
    /// Of the map; two for each direction of the hyperbolic one.
    pub features: usize,
}

impl Estimate {
    /// Relative standard deviation of an entry under [`FeatureMap::Positive`] with independent directions,
    /// `sqrt((e^|z|² - 1) / features)` (Performers, Lemma 2). Orthogonal ones do a little better.
    ///
    /// [`FeatureMap::Positive`]: super::FeatureMap::Positive
    pub fn positive(&self) -> f64 {
        self.optimal(0.0)
    }

    /// The same of [`FeatureMap::Hyperbolic`](super::FeatureMap::Hyperbolic): `sqrt(1 - e^-|z|²)` times that.
    pub fn hyperbolic(&self) -> f64 {
        self.positive() * (-(-self.mean_square).exp_m1()).sqrt()
    }

    /// The same of [`FeatureMap::Optimal`](super::FeatureMap::Optimal) with some `A` below 1/8: with `ρ = 1 / (1 - 8A)`
    /// the second moment of a feature's product is `((ρ + 1) / 2ρ)^d ρ^(d/2) e^(ρ |z|²)` of the squared entry. Infinite
    /// or NaN where `f64` cannot hold it, or for other `A`.
    pub fn optimal(&self, a: f64) -> f64 {
        let rho = 1.0 / (1.0 - 8.0 * a);
        let dim = self.head_dim as f64;
        let log = dim * ((rho + 1.0) / (2.0 * rho)).ln() + dim / 2.0 * rho.ln() + rho * self.mean_square;
        (log.exp_m1() / self.features as f64).sqrt()
    }

    /// The `A` of least variance, `(1 - 2φ - sqrt((2φ + 1)² + 8φ)) / 16` with `φ = |z|² / d`.
    pub fn best_a(&self) -> f64 {
        let phi = self.mean_square / self.head_dim as f64;
        (1.0 - 2.0 * phi - ((2.0 * phi + 1.0).powi(2) + 8.0 * phi).sqrt()) / 16.0
    }
}

/// What is to be expected of `features` random features for queries `[batch, q_heads, q_len, head_dim]` and keys
/// `[batch, kv_heads, kv_len, head_dim]` under a scale (`1 / sqrt(head_dim)` if not given).
///
/// The mean is taken at the mean `|z|²`: pairs far above it do worse.
///
/// ```
/// use lucid_attention::{View, linear::estimate};
/// let (q, k) = ([0.5f32; 64], [0.5f32; 64]); // |q|² = |k|² = 16
/// let shape = [1, 1, 1, 64];
/// let found = estimate(View::new(&q, shape)?, View::new(&k, shape)?, 256, None)?;
/// assert!((found.mean_square - 8.0).abs() < 1e-9); // |q + k|² / sqrt(64)
/// assert!(found.positive() > 3.0); // hopeless
/// assert!(found.optimal(found.best_a()) < found.positive());
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
///
/// # Errors
/// Shapes do not fit each other, a size is 0, heads are no multiple of KV heads, or the scale is not positive and finite.
pub fn estimate<'a>(
    q: impl Into<AnyView<'a>>,
    k: impl Into<AnyView<'a>>,
    features: usize,
    scale: Option<f32>,
) -> Result<Estimate, AttentionError> {
    let (q, k) = (q.into(), k.into());
    let [batch, q_heads, q_len, head_dim] = q.shape();
    let [k_batch, kv_heads, kv_len, k_dim] = k.shape();
    check_size("k", "batch", batch, k_batch)?;
    check_size("k", "head_dim", head_dim, k_dim)?;
    let sizes = [
        ("batch", batch),
        ("q_heads", q_heads),
        ("q_len", q_len),
        ("head_dim", head_dim),
        ("kv_heads", kv_heads),
        ("kv_len", kv_len),
        ("features", features),
    ];
    if let Some((operand, _)) = sizes.into_iter().find(|&(_, size)| size == 0) {
        return Err(AttentionError::Value { operand, expected: "at least 1", got: "0".to_owned() });
    }
    if !q_heads.is_multiple_of(kv_heads) {
        let got = format!("{q_heads} with kv_heads = {kv_heads}");
        return Err(AttentionError::Value { operand: "q_heads", expected: "a multiple of kv_heads", got });
    }
    let scale = scale.unwrap_or_else(|| crate::exact::call::default_scale(head_dim));
    if !(scale.is_finite() && scale > 0.0) {
        let (operand, expected) = ("scale", "a positive, finite number");
        return Err(AttentionError::Value { operand, expected, got: scale.to_string() });
    }
    let mut sum = 0.0;
    for b in 0..batch {
        for h in 0..q_heads {
            let kv_head = h / (q_heads / kv_heads);
            for d in 0..head_dim {
                let [x, y] = [moments(&q, [b, h], d), moments(&k, [b, kv_head], d)];
                // Mean of |x + y|² over pairs, of which the cross term needs the means only.
                sum += x.square + y.square + 2.0 * x.mean * y.mean;
            }
        }
    }
    let mean_square = f64::from(scale) * sum / (batch * q_heads) as f64;
    Ok(Estimate { mean_square, head_dim, features })
}

/// Of one coordinate.
struct Moments {
    mean: f64,
    square: f64,
}

fn moments(view: &AnyView<'_>, [b, h]: [usize; 2], d: usize) -> Moments {
    let tokens = view.shape()[2];
    let mut moments = Moments { mean: 0.0, square: 0.0 };
    for x in (0..tokens).filter_map(|t| view.get([b, h, t, d])).map(f64::from) {
        moments.mean += x / tokens as f64;
        moments.square += x * x / tokens as f64;
    }
    moments
}
