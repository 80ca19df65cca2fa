//! Step 5 of the derivation: weights.

use super::{FLUSH, Key, Two, U};
use std::f64::consts::LN_2;

/// The errors of a row's weights, summed up.
#[derive(Default)]
pub(super) struct Weights {
    /// At least sum dw.
    pub(super) up: Two,
    /// At least sum p (1 - e^-rho).
    pub(super) down: Two,
    pub(super) worst_rho: f64,
    /// Whether some weight may underflow.
    pub(super) low: bool,
}

impl Weights {
    pub(super) fn add(&mut self, other: &Weights) {
        self.up = Two { hard: self.up.hard + other.up.hard, sqrt: self.up.sqrt + other.up.sqrt };
        self.down = Two { hard: self.down.hard + other.down.hard, sqrt: self.down.sqrt + other.down.sqrt };
        self.worst_rho = self.worst_rho.max(other.worst_rho);
        self.low |= other.low;
    }
}

/// Step 5: sets `p` and `dw` of all keys. `ln_sum` is the logarithm of what normalises them, `frame` is M.
pub(super) fn weigh(keys: &mut [Key], ln_sum: f64, frame: f64, exp_error: f64) -> Weights {
    let mut weights = Weights::default();
    for key in keys {
        let ln_p = key.t * LN_2 - ln_sum;
        key.p = ln_p.exp();
        let low = key.t - key.eps.hard - frame < -120.0;
        let flush = if low { FLUSH } else { 0.0 };
        let rho = key.eps.map(|eps| LN_2 * (eps + U * (frame - key.t + eps)) * (1.0 + 1e-6) + exp_error);
        key.dw = rho.map(|rho| surplus(ln_p, key.p, rho) + flush);
        let down = rho.map(|rho| shortfall(key.p, rho) + flush);
        weights.add(&Weights { up: key.dw, down, worst_rho: rho.hard, low });
    }
    weights
}

/// p (e^rho - 1), also where rho is large and p tiny.
fn surplus(ln_p: f64, p: f64, rho: f64) -> f64 {
    if rho < 1e-3 {
        p * rho * (1.0 + rho)
    } else if rho < 1.0 {
        p * rho.exp_m1()
    } else {
        (ln_p + rho).exp()
    }
}

/// p (1 - e^-rho).
fn shortfall(p: f64, rho: f64) -> f64 {
    if rho < 1e-3 { p * rho } else { p * -(-rho).exp_m1() }
}
