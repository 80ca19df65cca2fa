//! [`ModuleWorkspace`]: the scratch of a module's call.

use crate::error::AttentionError;
use crate::plan::{Plan, PlanOptions, Workspace};
use crate::problem::Problem;
use crate::scratch::AlignedBuf;

/// The scratch of one call at a time, of any module.
///
/// It is empty at first and grows with the largest calls made with it (sizes are rounded up to powers of two), so calls that
/// are no larger than earlier ones allocate nothing. A service keeps one for each thread that calls. It holds nothing that
/// a later call can see: results do not depend on which workspace served before whom.
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
}

/// The plan of the calls so far.
#[derive(Debug, Default)]
pub(crate) struct Attention(Option<(PlanOptions, Plan, Workspace)>);

impl ModuleWorkspace {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Its size, but for a few kilobytes.
    pub fn bytes(&self) -> usize {
        let Core { repaired, projected, context, attention } = &self.core;
        let buffers = repaired.iter().flatten().chain(projected).chain([context]).chain(&self.lists);
        let attention = attention.0.as_ref().map_or(0, |(_, _, workspace)| workspace.bytes());
        buffers.map(AlignedBuf::bytes).sum::<usize>() + attention
    }
}

impl Attention {
    /// A plan for `problem`, and its workspace: the ones there are, if they will do.
    pub(crate) fn plan(
        &mut self,
        problem: &Problem,
        options: &PlanOptions,
    ) -> Result<(&Plan, &mut Workspace), AttentionError> {
        let mut wanted = Problem {
            max_q_len: rounded(problem.max_q_len),
            max_kv_len: rounded(problem.max_kv_len),
            ..*problem
        };
        let fits = self.0.as_ref().is_some_and(|(of, plan, _)| {
            let have = *plan.problem();
            let alike = of == options
                && Problem { max_q_len: 0, max_kv_len: 0, ..have }
                    == Problem { max_q_len: 0, max_kv_len: 0, ..wanted };
            if alike {
                wanted.max_q_len = wanted.max_q_len.max(have.max_q_len);
                wanted.max_kv_len = wanted.max_kv_len.max(have.max_kv_len);
            }
            alike && have == wanted
        });
        if !fits {
            let plan = Plan::with_options(&wanted, options)?;
            let workspace = plan.workspace()?;
            self.0 = Some((*options, plan, workspace));
        }
        let (_, plan, workspace) = self.0.as_mut().expect("there is one, or was made");
        Ok((plan, workspace))
    }
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
