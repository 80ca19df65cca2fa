//! What a check found.

use std::fmt;

/// What [`check`](super::check) found.
///
/// | rows | what is asked of them |
/// |---|---|
/// | with a bound | every element within it |
/// | without keys, or with logits that are no numbers | exactly +0, or NaN |
/// | uncertified: logits so large that `f32` cannot tell the weights | inside the hull of their values |
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Certificate {
    /// The output element whose error is the largest share of its bound.
    pub worst: Finding,
    /// The same against the statistical figure: the bound with every count of roundings n replaced by its square root, which
    /// is what independent roundings give. No theorem: ties and constants round alike. Worth watching where values are
    /// random, and at most 1 there.
    pub worst_statistical: Finding,
    /// The LSE whose error is the largest share of its bound.
    pub worst_lse: Finding,
    /// Output elements looked at.
    pub elements: usize,
    /// Rows whose logits are too large for `f32` to tell the weights.
    pub uncertified_rows: usize,
    /// Elements of output and LSE that are wrong.
    pub violations: usize,
    /// The first of them.
    pub violation: Option<Violation>,
}

/// An element, and how its error stands to its bound.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Finding {
    /// Error over bound; 0 without an error, infinite where nothing but the exact value is right.
    pub ratio: f64,
    /// The sequence: the batch index, or the index in a ragged batch.
    pub sequence: usize,
    /// `[batch, q_head, query, dim]` as the output counts them; `dim` is 0 for an LSE.
    pub element: [usize; 4],
    /// The number that came.
    pub got: f64,
    /// The exact one.
    pub expected: f64,
    /// How far the two may be apart.
    pub bound: f64,
}

/// An element that is wrong, and why.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Violation {
    /// `out` or `lse`.
    pub operand: &'static str,
    /// Which one.
    pub finding: Finding,
    /// What was asked of it.
    pub reason: String,
}

impl Certificate {
    /// Whether nothing is wrong.
    pub fn holds(&self) -> bool {
        self.violations == 0
    }

    /// Nothing if nothing is wrong.
    ///
    /// # Errors
    /// The first element that is wrong.
    pub fn verdict(&self) -> Result<(), Violation> {
        self.violation.clone().map_or(Ok(()), Err)
    }

    /// Takes in what another check found.
    pub fn merge(&mut self, other: &Certificate) {
        self.worst.take(other.worst);
        self.worst_statistical.take(other.worst_statistical);
        self.worst_lse.take(other.worst_lse);
        self.elements += other.elements;
        self.uncertified_rows += other.uncertified_rows;
        self.violations += other.violations;
        if self.violation.is_none() {
            self.violation.clone_from(&other.violation);
        }
    }

    /// Notes an element that is wrong.
    pub(super) fn wrong(&mut self, operand: &'static str, finding: Finding, reason: String) {
        let error = (finding.got - finding.expected).abs();
        let ratio = if finding.bound > 0.0 { error / finding.bound } else { f64::INFINITY };
        let finding = Finding { ratio: if ratio > 1.0 { ratio } else { f64::INFINITY }, ..finding };
        match operand {
            "lse" => self.worst_lse.take(finding),
            _ => self.worst.take(finding),
        }
        self.violations += 1;
        self.violation.get_or_insert(Violation { operand, finding, reason });
    }
}

impl Finding {
    /// Keeps the larger ratio; of equals the first.
    pub(super) fn take(&mut self, other: Finding) {
        if other.ratio > self.ratio {
            *self = other;
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { operand, finding: Finding { element, sequence, got, expected, .. }, reason } = self;
        let index = if *operand == "lse" { &element[..3] } else { &element[..] };
        write!(f, "{operand}{index:?} (sequence {sequence}): got {got:e}, expected {expected:e}, {reason}")
    }
}

impl std::error::Error for Violation {}
