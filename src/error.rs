//! The crate's one error type.

/// What a call refuses, before any work and without touching an output (but for [`AttentionError::Cancelled`]).
///
/// Every message names the operand, what was expected and what came.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AttentionError {
    /// An operand's shape is not the one that the problem or the other operands ask for.
    #[error("{operand}: expected {axis} = {expected}, got {got}")]
    Shape {
        /// The operand.
        operand: &'static str,
        /// The axis, in the crate's terms (`batch`, `q_heads`, `kv_len`, ...).
        axis: &'static str,
        /// The size that was needed.
        expected: usize,
        /// The size that came.
        got: usize,
    },
    /// A size is above the maximum that the plan (or the container) was built for.
    #[error("{operand}: {axis} may be at most {limit}, got {got}")]
    TooLarge {
        /// The operand.
        operand: &'static str,
        /// The axis.
        axis: &'static str,
        /// The largest size accepted.
        limit: usize,
        /// The size that came.
        got: usize,
    },
    /// A buffer is shorter than its shape and strides reach.
    #[error("{operand}: its shape and strides reach {expected} elements, the buffer has {got}")]
    BufferTooShort {
        /// The operand.
        operand: &'static str,
        /// Elements needed.
        expected: usize,
        /// Elements there.
        got: usize,
    },
    /// Two elements of an output lie on one another.
    #[error(
        "{operand}: shape {shape:?} with strides {strides:?} lets elements overlap, which an output may not"
    )]
    Overlap {
        /// The operand.
        operand: &'static str,
        /// Its shape.
        shape: [usize; 4],
        /// Its strides, in elements.
        strides: [usize; 4],
    },
    /// The elements of the last axis are not adjacent.
    #[error("{operand}: expected adjacent elements along the last axis (stride 1), got stride {got}")]
    Stride {
        /// The operand.
        operand: &'static str,
        /// The last axis' stride, in elements.
        got: isize,
    },
    /// The product or sum of sizes does not fit a `usize`.
    #[error("{operand}: its size does not fit in memory's address range")]
    SizeOverflow {
        /// The operand.
        operand: &'static str,
    },
    /// A number is outside its range.
    #[error("{operand}: expected {expected}, got {got}")]
    Value {
        /// The operand.
        operand: &'static str,
        /// What is accepted.
        expected: &'static str,
        /// What came, printed.
        got: String,
    },
    /// The queries' position decides the answer, and nothing says where they start.
    #[error(
        "q_start: a causal mask, window, prefix, document or block mask or ALiBi with q_len = {q_len} and kv_len = {kv_len} \
         needs the position of the first query: expected QueryStart::{{TopLeft, BottomRight, At, PerSequence}}, got none"
    )]
    QueryStartMissing {
        /// Queries per sequence.
        q_len: usize,
        /// Keys per sequence.
        kv_len: usize,
    },
    /// Two options that cannot be used together.
    #[error("{operand}: cannot be combined with {other}: {reason}")]
    Conflict {
        /// The one.
        operand: &'static str,
        /// The other.
        other: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// The workspace was built for another plan, which needs less of something.
    #[error("workspace: this plan needs {part} = {expected}, got {got}; build it with Plan::workspace")]
    Workspace {
        /// What there is too little of.
        part: &'static str,
        /// How much is needed.
        expected: usize,
        /// How much is there.
        got: usize,
    },
    /// There is no level of this name.
    #[error("level: expected \"portable\", \"avx2\" or \"avx512\", got \"{name}\"")]
    UnknownLevel {
        /// What came.
        name: String,
    },
    /// The CPU or the build lacks a level that was asked for.
    #[error("level: this CPU and build cannot run \"{level}\"")]
    LevelUnavailable {
        /// The level asked for.
        level: &'static str,
    },
    /// The bf16 dot-product tier was asked for where it does not exist.
    #[error("bf16_dot: level \"{level}\" on this CPU has no bf16 dot products")]
    Bf16DotUnavailable {
        /// The level in force.
        level: &'static str,
    },
    /// A named tensor of weights has another shape.
    #[error("tensor \"{name}\": expected shape {expected}, got {got:?}")]
    TensorShape {
        /// Its name, prefix included.
        name: String,
        /// The shape that the configuration asks for; `*` where any size will do.
        expected: String,
        /// The shape it has.
        got: Vec<usize>,
    },
    /// A named tensor of weights is not there.
    #[error("tensor \"{name}\": expected among the weights, got none of that name")]
    TensorMissing {
        /// Its name, prefix included.
        name: String,
    },
    /// A named tensor of weights is there, but the configuration has no use for it, and to ignore it would be wrong.
    #[error("tensor \"{name}\": expected none of that name with {reason}")]
    TensorUnexpected {
        /// Its name, prefix included.
        name: String,
        /// What the configuration says.
        reason: &'static str,
    },
    /// A named tensor of weights is stored as something else than numbers of a known type.
    #[error("tensor \"{name}\": expected storage as {expected}, got {got}")]
    TensorType {
        /// Its name, prefix included.
        name: String,
        /// What can be read.
        expected: &'static str,
        /// What it is.
        got: String,
    },
    /// A number of an input is NaN or infinite, which the module's policy refuses.
    #[error("{operand}: expected finite numbers, got {got} at batch {batch}, token {token}, dim {dim}")]
    NotFinite {
        /// The operand.
        operand: &'static str,
        /// Sequence of the first such number.
        batch: usize,
        /// Its token.
        token: usize,
        /// Its place in the token's vector.
        dim: usize,
        /// The number, printed.
        got: String,
    },
    /// Something outside the crate, a server say, did not answer as it should.
    #[error("{operand}: {reason}")]
    Service {
        /// What was asked for.
        operand: &'static str,
        /// What went wrong.
        reason: String,
    },
    /// The call's token ([`Inputs::cancel`](crate::Inputs::cancel)) stopped it: the one error after work began. Output, LSE and
    /// row maximum of the rows that are complete ([`Workspace::is_complete`](crate::Workspace::is_complete)) are what they
    /// would have been; all else that the call writes is unspecified, but for the totals of metrics, which are as before. A
    /// layer's call ([`ModuleInputs::cancel`](crate::module::ModuleInputs::cancel)) has no row complete, and its output is as it was.
    #[error("cancel: stopped with {complete} of {rows} query rows complete")]
    Cancelled {
        /// Query rows that are complete, of all heads and sequences.
        complete: usize,
        /// Query rows in all.
        rows: usize,
    },
    /// Memory could not be had.
    #[error("{what}: could not allocate {bytes} bytes")]
    OutOfMemory {
        /// For what.
        what: &'static str,
        /// How much.
        bytes: usize,
    },
}

/// Compares the size of an operand's axis with what it has to be.
pub(crate) fn check_size(
    operand: &'static str,
    axis: &'static str,
    expected: usize,
    got: usize,
) -> Result<(), AttentionError> {
    if expected == got { Ok(()) } else { Err(AttentionError::Shape { operand, axis, expected, got }) }
}
