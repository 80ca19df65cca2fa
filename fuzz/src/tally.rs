//! [`Tally`]: what a target compared.

use crate::common::cases::assert_same;
use lucid_attention::Element;
use lucid_attention::certify::Certificate;
use serde::{Deserialize, Serialize};

/// Counts of what a target compared. Targets add before they judge, so that what a failing instance had compared counts,
/// its violations too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tally {
    /// Outputs held against a bound that was derived.
    pub outputs: u64,
    /// The largest error among those within their bound, as a share of it.
    pub worst: f64,
    /// Outputs beyond their bound.
    pub violations: u64,
    /// Outputs compared with what is only about right.
    pub close: u64,
    /// Numbers, or answers of yes and no, that had to be the same to the bit.
    pub same: u64,
    /// Calls whose operands and outputs lay flush against inaccessible pages.
    pub guarded: u64,
    /// What was refused, as the target had said it would be.
    pub refused: u64,
}

impl Tally {
    /// Takes in what others compared.
    pub fn add(&mut self, other: &Tally) {
        let Tally { outputs, worst, violations, close, same, guarded, refused } = *other;
        self.outputs += outputs;
        self.worst = self.worst.max(worst);
        self.violations += violations;
        self.close += close;
        self.same += same;
        self.guarded += guarded;
        self.refused += refused;
    }

    /// Counts a certificate; asserts that it holds.
    #[track_caller]
    pub fn certificate(&mut self, certificate: &Certificate, what: &dyn Fn() -> String) {
        self.outputs += certificate.elements as u64;
        self.violations += certificate.violations as u64;
        for ratio in [certificate.worst.ratio, certificate.worst_lse.ratio] {
            self.ratio(ratio);
        }
        certificate.verdict().unwrap_or_else(|wrong| panic!("{}: {wrong}", what()));
    }

    /// Holds a number against a bound.
    #[track_caller]
    pub fn bound(&mut self, got: f64, expected: f64, bound: f64, what: &dyn Fn() -> String) {
        self.outputs += 1;
        let error = (got - expected).abs();
        if error <= bound {
            self.ratio(if error > 0.0 { error / bound } else { 0.0 });
        } else {
            self.violations += 1;
            panic!("{}: got {got:e}, expected {expected:e} +- {bound:e}", what());
        }
    }

    fn ratio(&mut self, ratio: f64) {
        if ratio <= 1.0 {
            self.worst = self.worst.max(ratio);
        }
    }

    /// Asserts that numbers are the same, all NaN being one.
    #[track_caller]
    pub fn same<T: Element>(&mut self, got: &[T], expected: &[T], what: &dyn Fn() -> String) {
        self.same += expected.len() as u64;
        if got.len() != expected.len()
            || !got.iter().zip(expected).all(|(&a, &b)| crate::common::cases::same(a, b))
        {
            assert_same(got, expected, &what());
        }
    }
}
