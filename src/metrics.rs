//! Metrics of attention, without its matrix: how spread out the probabilities of each row are, and where they lie.
//!
//! ```text
//! Plan::run ──> RowMetrics, one per (batch, head, query)  ──in row order──>  HeadMetrics, running totals
//! ```
//!
//! What is measured is the probabilities as they are before dropout; with a sink those of a row sum to less than 1.

use crate::error::{AttentionError, check_size};
use crate::exact::peaks::{PeakBuffer, PeakOptions};
use crate::parallel;
use crate::tile::BLOCK_ROWS;

/// The most probabilities that [`MetricsOptions::top_k`] adds up.
pub(crate) const MAX_TOP_K: usize = 64;

/// What to measure besides entropy, effective keys, largest probability and mean score, which are always there.
///
/// Those, [`distance`](MetricsOptions::distance) and [`first_keys`](MetricsOptions::first_keys) are accumulated while the
/// output is computed, and so are [`sparsity`](MetricsOptions::sparsity) and [`top_k`](MetricsOptions::top_k) but for two cases:
/// a threshold below 1/128 (under which keys get too many to be kept), and a call of few queries whose keys are split among
/// threads. Those take a second pass, in which the scores are computed twice more: longer than the call itself. (So does a call
/// with more threads than there were to expect when its [`Metrics`] were made: what is kept lies in them, some 200 KB a
/// thread.)
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields, default)
)]
pub struct MetricsOptions {
    /// Count the keys whose probability is below this, in (0, 1].
    pub sparsity: Option<f32>,
    /// Add up the largest probabilities, this many of each row: 1 to 64.
    pub top_k: Option<usize>,
    /// Add up the probabilities of the first keys of the sequence, this many, at least 1: what an attention sink takes.
    pub first_keys: Option<usize>,
    /// Average the distance between the positions of query and key.
    pub distance: bool,
}

impl MetricsOptions {
    /// Those of the specification's module: mean score, entropy, and the share of probabilities below 0.01.
    pub const SPECIFIED: MetricsOptions =
        MetricsOptions { sparsity: Some(0.01), top_k: None, first_keys: None, distance: false };

    /// Checks each option.
    ///
    /// # Errors
    /// [`AttentionError::Value`] that names the first that is out of range.
    pub fn validate(&self) -> Result<(), AttentionError> {
        let value = |operand, expected, got| Err(AttentionError::Value { operand, expected, got });
        if let Some(threshold) = self.sparsity
            && !(threshold > 0.0 && threshold <= 1.0)
        {
            return value("metrics.sparsity", "a threshold in (0, 1]", threshold.to_string());
        }
        if let Some(k) = self.top_k
            && !(1..=MAX_TOP_K).contains(&k)
        {
            return value("metrics.top_k", "1 to 64", k.to_string());
        }
        if self.first_keys == Some(0) {
            return value("metrics.first_keys", "at least 1", "0".to_owned());
        }
        Ok(())
    }

    /// Whether the finished probabilities have to be looked at.
    pub(crate) fn needs_probabilities(&self) -> bool {
        self.sparsity.is_some() || self.top_k.is_some()
    }
}

/// The metrics of one query row. What was not asked for is `None`.
///
/// `p_j` are the row's probabilities over the keys it may attend. A row without such a key has zeros; one whose output is
/// NaN has NaN, and no key below the threshold (see [`RowMetrics::is_undefined`]).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowMetrics {
    /// Keys that the row may attend.
    pub keys: usize,
    /// Keys of the row's sequence, removed ones included; in a batch that is not ragged, the operand's `kv_len`.
    pub all_keys: usize,
    /// `sum_j p_j`: 1, but for a sink.
    pub total: f32,
    /// `-sum_j p_j ln p_j`, in nats; correct within 1e-5 of itself and some 1e-6.
    pub entropy: f32,
    /// `exp(entropy)`.
    pub effective_keys: f32,
    /// The largest `p_j`.
    pub max_probability: f32,
    /// `sum_j p_j |q_pos - k_pos|`.
    pub distance: Option<f32>,
    /// `sum_j p_j` over the first keys of the sequence.
    pub first_mass: Option<f32>,
    /// Keys that the row may attend with `p_j` below the threshold.
    pub below_threshold: Option<usize>,
    /// `sum_j p_j` over the largest.
    pub top_mass: Option<f32>,
}

impl RowMetrics {
    /// Whether the row may attend no key.
    pub fn is_empty(&self) -> bool {
        self.keys == 0
    }

    /// Whether its output is NaN for what queries, keys and scores hold.
    pub fn is_undefined(&self) -> bool {
        self.entropy.is_nan()
    }

    /// The mean of `p_j` over the keys the row may attend: with no sink the inverse of their number. 0 if there is none.
    pub fn mean_score(&self) -> f32 {
        if self.is_empty() { 0.0 } else { self.total / self.keys as f32 }
    }

    /// The share of the keys it may attend that lie below the threshold; 0 if there is none.
    pub fn sparsity(&self) -> Option<f32> {
        self.below_threshold.map(|below| if self.is_empty() { 0.0 } else { below as f32 / self.keys as f32 })
    }
}

/// How a metric of some rows is spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The least.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

/// Numbers on their way to a [`Spread`].
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tally {
    count: u64,
    sum: f64,
    min: f32,
    max: f32,
}

impl Tally {
    const EMPTY: Tally = Tally { count: 0, sum: 0.0, min: f32::INFINITY, max: f32::NEG_INFINITY };

    fn add(&mut self, x: f32) {
        let one = Tally { count: 1, sum: f64::from(x), min: x, max: x };
        self.merge(&one);
    }

    fn merge(&mut self, other: &Tally) {
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    fn spread(&self) -> Option<Spread> {
        let (min, max) = (f64::from(self.min), f64::from(self.max));
        (self.count > 0).then(|| Spread { mean: self.sum / self.count as f64, min, max })
    }
}

/// Running totals of the rows of one head, or of several. Merging is commutative, and associative but for the rounding of
/// sums in `f64`; counts, and with them sparsity, are exact.
///
/// Means are over rows that have a key and are defined; the others are counted. Where there is none, or what was not asked
/// for, is `None`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadMetrics {
    empty_rows: u64,
    undefined_rows: u64,
    /// Of rows that are defined.
    keys: u64,
    /// Of rows that are defined or empty.
    all_keys: u64,
    total: f64,
    below_threshold: Option<u64>,
    entropy: Tally,
    effective_keys: Tally,
    max_probability: Tally,
    distance: Tally,
    first_mass: Tally,
    top_mass: Tally,
}

impl Default for HeadMetrics {
    fn default() -> Self {
        Self {
            empty_rows: 0,
            undefined_rows: 0,
            keys: 0,
            all_keys: 0,
            total: 0.0,
            below_threshold: None,
            entropy: Tally::EMPTY,
            effective_keys: Tally::EMPTY,
            max_probability: Tally::EMPTY,
            distance: Tally::EMPTY,
            first_mass: Tally::EMPTY,
            top_mass: Tally::EMPTY,
        }
    }
}

impl HeadMetrics {
    /// Counts a row in.
    pub fn add(&mut self, row: &RowMetrics) {
        if row.is_undefined() {
            self.undefined_rows += 1;
            return;
        }
        self.all_keys += row.all_keys as u64;
        if let Some(below) = row.below_threshold {
            *self.below_threshold.get_or_insert(0) += below as u64;
        }
        if row.is_empty() {
            self.empty_rows += 1;
            return;
        }
        self.keys += row.keys as u64;
        self.total += f64::from(row.total);
        self.entropy.add(row.entropy);
        self.effective_keys.add(row.effective_keys);
        self.max_probability.add(row.max_probability);
        let asked = [
            (&mut self.distance, row.distance),
            (&mut self.first_mass, row.first_mass),
            (&mut self.top_mass, row.top_mass),
        ];
        for (tally, x) in asked {
            if let Some(x) = x {
                tally.add(x);
            }
        }
    }

    /// Joins other rows to these.
    pub fn merge(&mut self, other: &HeadMetrics) {
        self.empty_rows += mutant!("merged-empty-rows-lost", other.empty_rows, 0);
        self.undefined_rows += other.undefined_rows;
        self.keys += other.keys;
        self.all_keys += other.all_keys;
        self.total += other.total;
        if let Some(below) = other.below_threshold {
            *self.below_threshold.get_or_insert(0) += below;
        }
        self.entropy.merge(&other.entropy);
        self.effective_keys.merge(&other.effective_keys);
        self.max_probability.merge(&other.max_probability);
        self.distance.merge(&other.distance);
        self.first_mass.merge(&other.first_mass);
        self.top_mass.merge(&other.top_mass);
    }

    /// Rows that means are over.
    pub fn rows(&self) -> u64 {
        self.entropy.count
    }

    /// Rows without a key to attend.
    pub fn empty_rows(&self) -> u64 {
        self.empty_rows
    }

    /// Rows whose output is NaN for what queries, keys and scores hold.
    pub fn undefined_rows(&self) -> u64 {
        self.undefined_rows
    }

    /// Entropy in nats.
    pub fn entropy(&self) -> Option<Spread> {
        self.entropy.spread()
    }

    /// The exponential of the entropy.
    pub fn effective_keys(&self) -> Option<Spread> {
        self.effective_keys.spread()
    }

    /// The largest probability of a row.
    pub fn max_probability(&self) -> Option<Spread> {
        self.max_probability.spread()
    }

    /// The mean over all probabilities of keys that rows may attend.
    pub fn mean_score(&self) -> Option<f64> {
        (self.keys > 0).then(|| self.total / self.keys as f64)
    }

    /// The mean over all probabilities, the zeros of removed keys and empty rows included: the figure of the
    /// specification's module.
    pub fn mean_score_counting_masked(&self) -> Option<f64> {
        (self.all_keys > 0).then(|| self.total / self.all_keys as f64)
    }

    /// The share of keys that rows may attend whose probability is below the threshold.
    pub fn sparsity(&self) -> Option<f64> {
        let below = self.below_threshold.filter(|_| self.keys > 0)?;
        Some(below as f64 / self.keys as f64)
    }

    /// The share of all keys whose probability is below the threshold, the zeros of removed keys and empty rows included:
    /// the figure of the specification's module.
    pub fn sparsity_counting_masked(&self) -> Option<f64> {
        let below = self.below_threshold.filter(|_| self.all_keys > 0)?;
        let removed = mutant!("removed-keys-not-counted", self.all_keys - self.keys, 0);
        Some((below + removed) as f64 / self.all_keys as f64)
    }

    /// The sum of a row's largest probabilities.
    pub fn top_mass(&self) -> Option<Spread> {
        self.top_mass.spread()
    }

    /// The sum of the probabilities of the first keys.
    pub fn first_mass(&self) -> Option<Spread> {
        self.first_mass.spread()
    }

    /// The distance between query and key, averaged over a row's probabilities.
    pub fn distance(&self) -> Option<Spread> {
        self.distance.spread()
    }
}

/// Metrics of calls: of each row of the last one, and running totals of each head over all of them. What
/// [`Outputs::metrics`](crate::Outputs::metrics) takes.
///
/// Rows have the same bits for any number of threads, and totals too: rows are added in their order.
///
/// ```
/// use lucid_attention::{Inputs, Metrics, MetricsOptions, Outputs, Plan, Problem, View, ViewMut};
///
/// let (heads, tokens, dim) = (2, 5, 16);
/// let plan = Plan::new(&Problem::new(heads, dim, tokens, tokens))?;
/// let options = MetricsOptions { sparsity: Some(0.01), ..MetricsOptions::default() };
/// let mut metrics = Metrics::new(options, heads, heads * tokens)?;
///
/// let shape = [1, heads, tokens, dim];
/// let (q, k, v) = (vec![0.1f32; 160], vec![0.2f32; 160], vec![0.3f32; 160]);
/// let mut out = vec![0.0f32; 160];
/// let inputs = Inputs::new(View::new(&q, shape)?, View::new(&k, shape)?, View::new(&v, shape)?);
/// let outputs = Outputs::new(ViewMut::new(&mut out, shape)?).metrics(&mut metrics);
/// plan.run(&inputs, outputs, &mut plan.workspace()?)?;
///
/// let entropy = metrics.overall().entropy().expect("rows with keys");
/// assert!((entropy.mean - 5f64.ln()).abs() < 1e-6); // all keys are alike
/// assert_eq!(metrics.heads()[0].sparsity(), Some(0.0));
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Metrics {
    options: MetricsOptions,
    heads: Vec<HeadMetrics>,
    /// Room for the largest call's.
    rows: Vec<RowMetrics>,
    /// How many the last call had.
    used: usize,
    /// Memory for the workers of a call, if it looks for peaks.
    peaks: Vec<PeakBuffer>,
}

/// Where a call's metrics go.
pub(crate) struct MetricsRoom<'a> {
    /// `[batch, q_heads, q_len]`.
    pub(crate) rows: &'a mut [RowMetrics],
    /// One for each worker there was to expect, or none.
    pub(crate) peaks: &'a mut [PeakBuffer],
}

impl Metrics {
    /// Nothing counted yet, with room for calls of up to `max_rows` rows, `batch * q_heads * q_len`.
    ///
    /// # Errors
    /// An option is out of range, or memory cannot be had.
    pub fn new(options: MetricsOptions, q_heads: usize, max_rows: usize) -> Result<Self, AttentionError> {
        options.validate()?;
        let mut heads = Vec::new();
        extend(&mut heads, q_heads)?;
        let mut metrics = Self { options, heads, rows: Vec::new(), used: 0, peaks: Vec::new() };
        metrics.extend_rows(max_rows)?;
        Ok(metrics)
    }

    /// Room for that many rows, and for what is kept of those that are worked on.
    fn extend_rows(&mut self, rows: usize) -> Result<(), AttentionError> {
        extend(&mut self.rows, rows)?;
        if rows > 0 && PeakOptions::new(&self.options).is_some() {
            let workers = parallel::expected_workers();
            extend(&mut self.peaks, workers)?;
            self.peaks.iter_mut().try_for_each(|worker| worker.reserve(rows.min(BLOCK_ROWS)))?;
        }
        Ok(())
    }

    /// Its size in memory, but for a few hundred bytes.
    pub(crate) fn bytes(&self) -> usize {
        let peaks: usize = self.peaks.iter().map(PeakBuffer::bytes).sum();
        self.rows.len() * size_of::<RowMetrics>() + self.heads.len() * size_of::<HeadMetrics>() + peaks
    }

    /// Makes room for calls of up to `max_rows` rows.
    pub(crate) fn reserve(&mut self, max_rows: usize) -> Result<(), AttentionError> {
        if self.rows.len() < max_rows {
            self.extend_rows(max_rows.checked_next_power_of_two().unwrap_or(max_rows))?;
        }
        Ok(())
    }

    /// What is measured.
    pub fn options(&self) -> &MetricsOptions {
        &self.options
    }

    /// The last call's rows, `[batch, q_heads, q_len]`.
    pub fn rows(&self) -> &[RowMetrics] {
        &self.rows[..self.used]
    }

    /// Totals of each query head.
    pub fn heads(&self) -> &[HeadMetrics] {
        &self.heads
    }

    /// Totals of all heads.
    pub fn overall(&self) -> HeadMetrics {
        let mut all = HeadMetrics::default();
        self.heads.iter().for_each(|head| all.merge(head));
        all
    }

    /// Adds the totals of other calls, measured with the same options; the rows stay those of this one's last call.
    ///
    /// # Errors
    /// The number of heads or an option differs; nothing is added then.
    pub fn merge(&mut self, other: &Metrics) -> Result<(), AttentionError> {
        check_size("metrics", "q_heads", self.heads.len(), other.heads.len())?;
        if self.options != other.options {
            return Err(AttentionError::Conflict {
                operand: "metrics",
                other: "metrics of other options",
                reason: "their totals count different things",
            });
        }
        self.heads.iter_mut().zip(&other.heads).for_each(|(head, other)| head.merge(other));
        Ok(())
    }

    /// Forgets all that was counted.
    pub fn reset(&mut self) {
        self.heads.fill(HeadMetrics::default());
        self.used = 0;
    }

    /// Room for the rows of a call.
    pub(crate) fn room(
        &mut self,
        [batch, q_heads, q_len]: [usize; 3],
    ) -> Result<MetricsRoom<'_>, AttentionError> {
        check_size("metrics", "q_heads", q_heads, self.heads.len())?;
        let rows = batch.checked_mul(q_heads).and_then(|rows| rows.checked_mul(q_len));
        let got = rows.ok_or(AttentionError::SizeOverflow { operand: "metrics" })?;
        let limit = self.rows.len();
        let too_large = AttentionError::TooLarge { operand: "metrics", axis: "rows", limit, got };
        let rows = self.rows.get_mut(..got).ok_or(too_large)?;
        Ok(MetricsRoom { rows, peaks: &mut self.peaks })
    }

    /// Takes in the first `rows` rows, `[batch, q_heads, q_len]`.
    pub(crate) fn count(&mut self, rows: usize, q_len: usize) {
        self.used = rows;
        add_rows(&mut self.heads, &self.rows[..rows], q_len);
    }

    /// Adds rows that lie elsewhere, `[batch, q_heads, q_len]`.
    pub(crate) fn add_rows(&mut self, rows: &[RowMetrics], q_len: usize) {
        add_rows(&mut self.heads, rows, q_len);
    }
}

/// Adds rows `[batch, q_heads, q_len]` to the totals of their heads, in their order.
fn add_rows(heads: &mut [HeadMetrics], rows: &[RowMetrics], q_len: usize) {
    let count = heads.len();
    for (index, rows) in rows.chunks_exact(q_len.max(1)).enumerate() {
        let head = &mut heads[index % count];
        rows.iter().for_each(|row| head.add(row));
    }
}

/// Fills up to `len`.
pub(crate) fn extend<T: Clone + Default>(list: &mut Vec<T>, len: usize) -> Result<(), AttentionError> {
    let bytes = len.saturating_mul(size_of::<T>());
    let error = |_| AttentionError::OutOfMemory { what: "metrics", bytes };
    list.try_reserve_exact(len.saturating_sub(list.len())).map_err(error)?;
    list.resize(len, T::default());
    Ok(())
}
