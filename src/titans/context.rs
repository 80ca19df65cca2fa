//! [`SequenceContext`]: the last steps of a sequence, in rings of contiguous `f32`.
//!
//! ```text
//! slot       0     1     2     3  |  0     1     2     3       capacity 4, every row kept twice
//! rows      r4    r5    r2    r3  | r4    r5    r2    r3       after r5 was pushed to slot 1
//!                       └──────────────────┘                   oldest to newest: always one slice
//! ```
//!
//! Each of x, key, value, query and y has such a ring. Keeping every row twice costs as much memory again and spares every
//! reader a copy: attention over the history reads it in place.
//!
//! A step is read against the history before it is part of it: [`SequenceContext::begin`] lends the context to a
//! [`CurrentStep`], whose history is what was there before, and only [`CurrentStep::finish`], which consumes it, stores the
//! step. So no step attends to itself, none is stored twice, and one that fails half-way leaves no trace.

use crate::error::{AttentionError, check_size};
use crate::isa::Level;
use crate::module::policy::all_finite;
use crate::scratch::AlignedBuf;

/// Sizes of a step's vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct StepDims {
    /// Of the input embedding.
    pub x: usize,
    /// Of a key.
    pub key: usize,
    /// Of a value.
    pub value: usize,
    /// Of a query.
    pub query: usize,
    /// Of what the memory answers.
    pub y: usize,
}

impl StepDims {
    /// The same for all.
    pub fn all(dim: usize) -> Self {
        Self { x: dim, key: dim, value: dim, query: dim, y: dim }
    }
}

/// How much a [`SequenceContext`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields, default)
)]
pub struct ContextOptions {
    /// Steps; the oldest makes room for the one after.
    pub capacity: usize,
    /// Bytes of the longest id there is room for.
    pub max_id_bytes: usize,
}

impl Default for ContextOptions {
    fn default() -> Self {
        Self { capacity: 50, max_id_bytes: 64 }
    }
}

/// A step before the memory answered it.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// When, in the caller's terms; kept, not read.
    pub timestamp: f64,
    /// The memory's id.
    pub id: &'a str,
    /// The input embedding.
    pub x: &'a [f32],
    /// Its key.
    pub key: &'a [f32],
    /// Its value.
    pub value: &'a [f32],
    /// Its query.
    pub query: &'a [f32],
}

/// The last steps of a sequence.
///
/// ```
/// use lucid_attention::titans::{SequenceContext, Step, StepDims};
///
/// let mut context = SequenceContext::new(StepDims::all(4))?; // room for 50 steps
/// for t in 0..60 {
///     let x = [t as f32; 4];
///     let step = Step { timestamp: t as f64, id: "memory", x: &x, key: &x, value: &x, query: &x };
///     let current = context.begin(step)?;
///     assert_eq!(current.history().len(), t.min(50)); // without the step itself
///     current.finish(&[0.5; 4])?; // what the memory answered; now it is stored
/// }
/// assert_eq!(context.history().keys()[0], 10.0); // the oldest that is left
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
#[derive(Debug)]
pub struct SequenceContext {
    dims: StepDims,
    options: ContextOptions,
    /// x, key, value, query and y.
    rings: [Ring; 5],
    /// Twice, as the rings.
    timestamps: Vec<f64>,
    /// By slot, each with room for the longest.
    ids: Vec<String>,
    /// The slot that is written next.
    next: usize,
    len: usize,
    level: Level,
}

const Y: usize = 4;

/// Rows of one kind.
#[derive(Debug)]
struct Ring {
    rows: AlignedBuf<f32>,
    dim: usize,
}

impl SequenceContext {
    /// An empty one for 50 steps and ids of up to 64 bytes.
    ///
    /// # Errors
    /// As [`SequenceContext::with_options`].
    pub fn new(dims: StepDims) -> Result<Self, AttentionError> {
        Self::with_options(dims, ContextOptions::default())
    }

    /// An empty one. All it ever needs is allocated here.
    ///
    /// # Errors
    /// A size is 0, sizes overflow, or memory cannot be had.
    pub fn with_options(dims: StepDims, options: ContextOptions) -> Result<Self, AttentionError> {
        let ContextOptions { capacity, max_id_bytes } = options;
        let StepDims { x, key, value, query, y } = dims;
        let sizes =
            [("x", x), ("key", key), ("value", value), ("query", query), ("y", y), ("capacity", capacity)];
        if let Some((operand, _)) = sizes.into_iter().find(|&(_, size)| size == 0) {
            return Err(AttentionError::Value { operand, expected: "at least 1", got: "0".to_owned() });
        }
        let rows = capacity.checked_mul(2).ok_or(AttentionError::SizeOverflow { operand: "capacity" })?;
        let ring = |operand, dim: usize| {
            let size = rows.checked_mul(dim).ok_or(AttentionError::SizeOverflow { operand })?;
            Ok(Ring { rows: AlignedBuf::zeroed("sequence context", size)?, dim })
        };
        let rings =
            [ring("x", x)?, ring("key", key)?, ring("value", value)?, ring("query", query)?, ring("y", y)?];
        let no_memory = |bytes: usize| AttentionError::OutOfMemory { what: "sequence context", bytes };
        let mut timestamps = Vec::new();
        let bytes = rows.saturating_mul(size_of::<f64>());
        timestamps.try_reserve_exact(rows).map_err(|_| no_memory(bytes))?;
        timestamps.resize(rows, 0.0);
        let mut ids = Vec::new();
        let bytes = capacity.saturating_mul(max_id_bytes.saturating_add(size_of::<String>()));
        ids.try_reserve_exact(capacity).map_err(|_| no_memory(bytes))?;
        for _ in 0..capacity {
            let mut id = String::new();
            id.try_reserve_exact(max_id_bytes).map_err(|_| no_memory(bytes))?;
            ids.push(id);
        }
        Ok(Self { dims, options, rings, timestamps, ids, next: 0, len: 0, level: Level::chosen(None)? })
    }

    /// Lends the context to a step, which is not part of it yet. Does not allocate.
    ///
    /// # Errors
    /// A vector of another size, NaN or an infinite number in one (it would be attended to for as long as it is kept), or an
    /// id there is no room for.
    pub fn begin<'a>(&'a mut self, step: Step<'a>) -> Result<CurrentStep<'a>, AttentionError> {
        let limit = self.options.max_id_bytes;
        if step.id.len() > limit {
            return Err(AttentionError::TooLarge { operand: "id", axis: "bytes", limit, got: step.id.len() });
        }
        let Step { x, key, value, query, .. } = step;
        let names = ["x", "key", "value", "query"];
        for ((operand, vector), ring) in names.into_iter().zip([x, key, value, query]).zip(&self.rings) {
            check_size(operand, "dim", ring.dim, vector.len())?;
            check_finite(self.level, operand, vector)?;
        }
        Ok(CurrentStep { context: self, step })
    }

    /// What is held, oldest first.
    pub fn history(&self) -> History<'_> {
        History {
            context: self,
            first: (self.next + self.capacity() - self.len) % self.capacity(),
            len: self.len,
        }
    }

    /// Replaces the y of the newest step, where what is to be attended to later is not what the memory answered.
    ///
    /// # Errors
    /// There is no step, `y` has another size, or a number that is not finite.
    pub fn update_last_y(&mut self, y: &[f32]) -> Result<(), AttentionError> {
        if self.len == 0 {
            let (operand, expected) = ("sequence context", "a step to update");
            return Err(AttentionError::Value { operand, expected, got: "none".to_owned() });
        }
        check_size("y", "dim", self.dims.y, y.len())?;
        check_finite(self.level, "y", y)?;
        let (capacity, newest) = (self.capacity(), (self.next + self.capacity() - 1) % self.capacity());
        self.rings[Y].put(newest, capacity, y);
        Ok(())
    }

    /// Forgets all steps.
    pub fn clear(&mut self) {
        (self.next, self.len) = (0, 0);
    }

    /// Sizes of a step's vectors.
    pub fn dims(&self) -> StepDims {
        self.dims
    }

    /// Steps there is room for.
    pub fn capacity(&self) -> usize {
        self.options.capacity
    }

    /// Steps held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no step is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn push(&mut self, step: &Step<'_>, y: &[f32]) {
        let (slot, capacity) = (self.next, self.capacity());
        for (ring, row) in self.rings.iter_mut().zip([step.x, step.key, step.value, step.query, y]) {
            ring.put(slot, capacity, row);
        }
        for slot in [slot, slot + capacity] {
            self.timestamps[slot] = step.timestamp;
        }
        self.ids[slot].clear();
        self.ids[slot].push_str(step.id);
        self.next = (slot + 1) % capacity;
        self.len = (self.len + 1).min(capacity);
    }
}

impl Ring {
    /// Writes a row to both its places.
    fn put(&mut self, slot: usize, capacity: usize, row: &[f32]) {
        for slot in [slot, mutant!("ring-written-once", slot + capacity, slot)] {
            self.rows[slot * self.dim..][..self.dim].copy_from_slice(row);
        }
    }
}

fn check_finite(level: Level, operand: &'static str, vector: &[f32]) -> Result<(), AttentionError> {
    if all_finite(level, vector) {
        return Ok(());
    }
    let dim = vector.iter().position(|x| !x.is_finite()).unwrap_or(0);
    Err(AttentionError::NotFinite { operand, batch: 0, token: 0, dim, got: vector[dim].to_string() })
}

/// A step that is being processed, and the history before it. Dropped without [`CurrentStep::finish`], it is not stored.
#[derive(Debug)]
pub struct CurrentStep<'a> {
    context: &'a mut SequenceContext,
    step: Step<'a>,
}

impl<'a> CurrentStep<'a> {
    /// The steps before this one.
    pub fn history(&self) -> History<'_> {
        self.context.history()
    }

    /// Its vectors.
    pub fn step(&self) -> &Step<'a> {
        &self.step
    }

    /// Sizes of its vectors.
    pub fn dims(&self) -> StepDims {
        self.context.dims
    }

    /// Stores the step with `y`, which later steps may attend to. Does not allocate.
    ///
    /// # Errors
    /// `y` has another size, or a number that is not finite. The step is not stored then.
    pub fn finish(self, y: &[f32]) -> Result<(), AttentionError> {
        check_size("y", "dim", self.context.dims.y, y.len())?;
        check_finite(self.context.level, "y", y)?;
        self.context.push(&self.step, y);
        Ok(())
    }
}

/// Steps in a row, oldest first. Matrices are `[len, dim]`, contiguous, and borrowed from the context.
#[derive(Clone, Copy, Debug)]
pub struct History<'a> {
    context: &'a SequenceContext,
    /// Slot of the oldest.
    first: usize,
    len: usize,
}

impl<'a> History<'a> {
    /// The newest `count` of them, or all if there are fewer.
    pub fn recent(self, count: usize) -> Self {
        let len = self.len.min(count);
        Self { first: (self.first + self.len - len) % self.context.capacity(), len, ..self }
    }

    /// Steps.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Input embeddings.
    pub fn xs(&self) -> &'a [f32] {
        self.rows(0)
    }

    /// Keys.
    pub fn keys(&self) -> &'a [f32] {
        self.rows(1)
    }

    /// Values.
    pub fn values(&self) -> &'a [f32] {
        self.rows(2)
    }

    /// Queries.
    pub fn queries(&self) -> &'a [f32] {
        self.rows(3)
    }

    /// What the memory answered.
    pub fn ys(&self) -> &'a [f32] {
        self.rows(Y)
    }

    /// When.
    pub fn timestamps(&self) -> &'a [f64] {
        &self.context.timestamps[self.first..][..self.len]
    }

    /// Ids.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = &'a str> + use<'a> {
        let Self { context, first, len } = *self;
        (first..first + len).map(move |slot| context.ids[slot % context.capacity()].as_str())
    }

    fn rows(&self, kind: usize) -> &'a [f32] {
        let Ring { rows, dim } = &self.context.rings[kind];
        &rows[self.first * dim..][..self.len * dim]
    }
}
