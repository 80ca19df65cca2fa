//! [`ModuleWorkspace`]: the scratch of a module's call.

use super::absorbed::AbsorbedScratch;
use crate::error::AttentionError;
use crate::metrics::Metrics;
use crate::parallel;
use crate::plan::{Plan, PlanOptions, Workspace};
use crate::problem::Problem;
use crate::scratch::AlignedBuf;
use crate::tile::FEW_ROWS;

/// The scratch of one call at a time.
///
/// It is empty at first and grows with the largest calls made with it (sizes are rounded up to powers of two), so calls that
/// are no larger than earlier ones allocate nothing, as long as they are of one module, or of modules alike in heads, sizes
/// and options, and of pools of one size: other calls plan anew. It holds nothing that a later call can see: results do not
/// depend on which workspace served before whom.
///
/// A service keeps as many as it makes calls at a time. On the threads of a rayon pool take them from a common store, not
/// from the thread: a thread that waits for a call's other half may be given another call meanwhile.
#[derive(Debug, Default)]
pub struct ModuleWorkspace {
    pub(crate) core: Core,
    /// Keys and values of a sequence given as lists.
    pub(crate) lists: [Buffer; 2],
}

/// A buffer that grows.
pub(crate) type Buffer = AlignedBuf<f32>;

/// What a call over tensors needs.
#[derive(Debug, Default)]
pub(crate) struct Core {
    /// Query, key and value as they are repaired: finite, then of the right size.
    pub(crate) repaired: [[Buffer; 2]; 3],
    /// What they are projected to.
    pub(crate) projected: [Buffer; 3],
    /// Heads side by side, `[batch, q_len, q_heads * value_dim]`.
    pub(crate) context: Buffer,
    pub(crate) attention: Attention,
    pub(crate) absorbed: AbsorbedScratch,
    /// Room for the rows of a call of a module that keeps metrics.
    pub(crate) metrics: Option<Metrics>,
}

impl ModuleWorkspace {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Its size, but for a few kilobytes.
    pub fn bytes(&self) -> usize {
        let Core { repaired, projected, context, attention, absorbed, metrics } = &self.core;
        let buffers = repaired.iter().flatten().chain(projected).chain([context]).chain(&self.lists);
        let metrics = metrics.as_ref().map_or(0, Metrics::bytes);
        buffers.map(AlignedBuf::bytes).sum::<usize>() + attention.bytes() + absorbed.bytes() + metrics
    }
}

/// Plans of the calls so far: of few rows, which need little scratch however many keys there are, and of more.
#[derive(Debug, Default)]
pub(crate) struct Attention([Option<Planned>; 2]);

/// A plan, what it was made for, and its workspace.
#[derive(Debug)]
struct Planned {
    options: PlanOptions,
    /// Threads there were to expect.
    workers: usize,
    plan: Plan,
    workspace: Workspace,
}

impl Attention {
    /// A plan for `problem`, and its workspace: the ones there are, if they will do.
    ///
    /// A new one has room for larger calls too, and for those before. Where a limit of memory does not allow that, it has
    /// room for this call alone, with as many threads as are possible: whether a call is refused does not depend on what
    /// came before it, nor on the pool.
    pub(crate) fn plan(
        &mut self,
        problem: &Problem,
        options: &PlanOptions,
    ) -> Result<(&Plan, &mut Workspace), AttentionError> {
        let few = problem.group().saturating_mul(problem.max_q_len) <= FEW_ROWS;
        let workers = parallel::expected_workers();
        let place = &mut self.0[usize::from(few)];
        let alike = |planned: &&Planned| {
            let sizes = |problem: &Problem| Problem { max_q_len: 0, max_kv_len: 0, ..*problem };
            let same_sizes = sizes(planned.plan.problem()) == sizes(problem);
            planned.options == *options && planned.workers == workers && same_sizes
        };
        let before = place.as_ref().filter(alike).map(|planned| *planned.plan.problem());
        if !before.is_some_and(|before| has_room(&before, problem)) {
            // Rounding up must not make many rows of few.
            let max_q_len =
                if few { (FEW_ROWS / problem.group()).max(1) } else { rounded(problem.max_q_len) };
            let roomy = Problem { max_q_len, max_kv_len: rounded(problem.max_kv_len), ..*problem };
            let plan =
                choose_plan([before.map(|before| joint(roomy, before)), Some(roomy)], problem, options)?;
            *place = None; // its memory is free before there is more
            let workspace = plan.workspace()?;
            *place = Some(Planned { options: *options, workers, plan, workspace });
        }
        let Planned { plan, workspace, .. } = place.as_mut().expect("it was there, or is now");
        Ok((plan, workspace))
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.iter().flatten().map(|planned| planned.workspace.bytes()).sum()
    }
}

/// A plan for the first of the `larger` problems that a limit of memory allows, or for `problem` itself.
pub(crate) fn choose_plan(
    larger: [Option<Problem>; 2],
    problem: &Problem,
    options: &PlanOptions,
) -> Result<Plan, AttentionError> {
    let larger = larger.iter().flatten().find_map(|problem| Plan::with_options(problem, options).ok());
    if let Some(plan) = larger {
        return Ok(plan);
    }
    let mut threads = options.max_threads.unwrap_or_else(parallel::expected_workers);
    loop {
        match Plan::with_options(problem, &PlanOptions { max_threads: Some(threads), ..*options }) {
            Err(_) if threads > 1 => threads /= 2,
            plan => return plan,
        }
    }
}

/// With room for both.
fn joint(a: Problem, b: Problem) -> Problem {
    Problem { max_q_len: a.max_q_len.max(b.max_q_len), max_kv_len: a.max_kv_len.max(b.max_kv_len), ..a }
}

/// Whether a plan for one problem serves another, alike but for lengths.
fn has_room(of: &Problem, wanted: &Problem) -> bool {
    wanted.max_q_len <= of.max_q_len && wanted.max_kv_len <= of.max_kv_len
}

/// The first `len` numbers of a buffer, which grows if it has not as many.
pub(crate) fn reserve(buffer: &mut Buffer, len: usize) -> Result<&mut [f32], AttentionError> {
    if buffer.len() < len {
        *buffer = AlignedBuf::zeroed("module workspace", rounded(len))?;
    }
    Ok(&mut buffer[..len])
}

/// Rounded up to a power of two, or as it is where that overflows.
fn rounded(size: usize) -> usize {
    size.checked_next_power_of_two().unwrap_or(size)
}
