//! Plan once, run often: a [`Plan`] fixes sizes and choices, a [`Workspace`] holds the scratch, `run` does the work
//! without allocating.

use crate::cancel::CancelToken;
use crate::element::{DType, Element};
use crate::error::AttentionError;
use crate::exact::call::{Call, Order};
use crate::exact::finish::Targets;
use crate::exact::grid::Grid;
use crate::exact::measure::Measures;
use crate::exact::order::{self, BlockOrder};
use crate::exact::partials::partials_len;
use crate::exact::peaks::PeakBuffer;
use crate::exact::progress::{Blocks, Progress};
use crate::exact::scores::{Chosen, ScoreTargets, Written};
use crate::exact::tier::Engine;
use crate::exact::workspace::{Scratch, ScratchSizes, WorkspaceParts};
use crate::explain::Explanation;
use crate::inputs::Inputs;
use crate::isa::{Bf16Level, Level};
use crate::outputs::{Outputs, ScoreStage, Scores, TopKeys};
use crate::parallel::{self, Spread};
use crate::problem::Problem;
use crate::rows::SharedRows;
use crate::scratch::AlignedBuf;
use crate::tile;
use crate::view::ViewMut;

/// Choices that are not sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields, default)
)]
pub struct PlanOptions {
    /// The instruction set; [`Level::detect`] if not given.
    pub level: Option<Level>,
    /// The most tasks that run side by side, whatever the size of the pool. Scratch is proportional to it.
    ///
    /// If not given, the size of the pool the plan is made in. Outside any pool that is rayon's global one, which starts
    /// its threads when asked; so where the plan's longest sequence is too little work to be spread, it is the number of
    /// processors instead, and the pool starts with the first batch that is spread over it. With 1, neither plan nor
    /// calls ever ask rayon for anything.
    pub max_threads: Option<usize>,
    /// Estimated microseconds on one thread ([`Explanation::estimated_microseconds`]) from which on a call is spread over the
    /// pool; 60 if not given, as it takes some 50 to wake a thread that sleeps. The estimate counts 40 multiply-adds and 20
    /// bytes of keys and values a nanosecond, at whatever level; small calls take up to twice as long, portable ones more.
    ///
    /// Rayon's threads go on looking for work a while before they sleep. Where calls come from inside the pool and follow
    /// one another, or other work of the pool, within microseconds, and nothing else wants the processors, less is worth
    /// sharing: with 4, on two threads, 12 heads of 12 to 32 tokens of 32 or 64 dimensions are 1.1 to 1.7 times as fast, mostly
    /// 1.4, one query of 4 heads against 100 keys of 32 dimensions takes a fifth longer (example `bench_worker`,
    /// `LUCID_SPREAD_FROM=4`). After a pause such calls take up to 1.3 times as long as on one thread, beside a thread that
    /// computes up to 1.5 times, and one in a thousand as long as the system gives its neighbour, 4 ms (bench `latency`,
    /// `threads2_from4`).
    ///
    /// Between products of a layer that are spread, and so have woken the pool, its attention is from 4 on, or sooner if that
    /// is asked for. No result depends on it.
    pub spread_from_microseconds: Option<u64>,
    /// The fast tier on bf16 dot products, where the level has them ([`Level::has_bf16_dot`]; an error elsewhere).
    ///
    /// Queries, keys, values and weights are rounded to bf16 (exact for what is stored as bf16, but weights never are);
    /// scores, the softmax and all sums stay f32. Whatever the storage type, errors are those of bf16: over attention of
    /// the rounded operands an output is off by up to 2^-8 `sum_j p_j |v_j|`, and rounding operands that are not stored
    /// as bf16 moves a logit by up to 2^-7 `scale sum_d |q_d k_d|`. LSE, scores and probabilities are those of the
    /// rounded operands, in f32.
    ///
    /// Results are reproducible (over threads, batches, blocks, layouts; removed keys change no bit) but they are not
    /// those of the exact tier, and have their own order of operations. Keys and values are converted in scratch: a gain from
    /// some 8 rows on for each KV head (queries times the query heads that share it), a loss below. Only where they are
    /// stored as bf16 and have up to 18 rows (32 if keys are in [`KeyPanels`](crate::KeyPanels)) they are taken as they are:
    /// a gain of 1.3 to 1.7 from 4 rows on, but none where memory is the limit, as it mostly is of one or two rows (example
    /// `bench_worker`, 4096 keys).
    ///
    /// All that holds of cores that do a bf16 dot product in the time of a multiply-add, as Zen 4's do. Emerald Rapids takes the time
    /// of four, which is half the rate of products: there prefill in the tier is 0.5 to 0.7 times as fast as in the exact one
    /// (`benches/peers`). [`Level::bf16_dot_gain`] measures it.
    pub bf16_dot: bool,
    /// The most bytes that a [`Workspace`] may take ([`Plan::workspace_bytes`]); a plan that needs more is an error
    /// ([`AttentionError::TooLarge`]). Fewer threads need less.
    pub max_workspace_bytes: Option<usize>,
}

/// A validated problem with the choices made for it.
///
/// `Send + Sync`, cheap, immutable: share one plan, and give each concurrent call a [`Workspace`] of its own.
///
/// ```
/// use lucid_attention::{Inputs, Mask, Outputs, Plan, Problem, View, ViewMut};
///
/// let (heads, tokens, dim) = (2, 5, 16);
/// let plan = Plan::new(&Problem::new(heads, dim, tokens, tokens))?;
/// let mut workspace = plan.workspace()?;
///
/// let shape = [1, heads, tokens, dim];
/// let (q, k, v) = (vec![0.1f32; 160], vec![0.2f32; 160], vec![0.3f32; 160]);
/// let mut out = vec![0.0f32; 160];
/// let inputs = Inputs::new(View::new(&q, shape)?, View::new(&k, shape)?, View::new(&v, shape)?);
/// plan.run(&inputs.mask(Mask::causal()), Outputs::new(ViewMut::new(&mut out, shape)?), &mut workspace)?;
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Plan {
    problem: Problem,
    level: Level,
    engine: Engine,
    pub(crate) order: Order,
    pub(crate) spread: Spread,
    sizes: ScratchSizes,
    partials: usize,
}

/// The scratch of one call at a time. Made by [`Plan::workspace`]; serves any plan that needs no more.
#[derive(Debug)]
pub struct Workspace {
    sizes: ScratchSizes,
    workers: Vec<Scratch>,
    partials: AlignedBuf<f32>,
    /// Of the last call.
    order: BlockOrder,
    progress: Progress,
}

impl Workspace {
    /// Its size in memory.
    pub fn bytes(&self) -> usize {
        self.workers.iter().map(Scratch::bytes).sum::<usize>() + self.partials.bytes() + self.order.bytes()
    }

    /// Whether a row of the last call made with it is complete: `[sequence, q_head, query]`, where the sequence is the batch
    /// index, or the index in a ragged batch, within which the query counts. All are after a call that succeeded, none
    /// after one that was refused; after [`AttentionError::Cancelled`] some.
    pub fn is_complete(&self, row: [usize; 3]) -> bool {
        match &self.progress {
            Progress::Nothing => false,
            Progress::Part(blocks) => blocks.has(row, &self.workers, &self.order),
            Progress::All => true,
        }
    }
}

impl Plan {
    /// A plan with default options.
    ///
    /// # Errors
    /// The problem's sizes contradict one another, scratch sizes overflow, or `LUCID_LEVEL` names a level that is not
    /// there.
    pub fn new(problem: &Problem) -> Result<Self, AttentionError> {
        Self::with_options(problem, &PlanOptions::default())
    }

    /// A plan with these options.
    ///
    /// # Errors
    /// As [`Plan::new`], or `options` ask for a level that this CPU lacks, for bf16 dot products at a level without
    /// them ([`AttentionError::Bf16DotUnavailable`]), for no thread, or for less memory than is needed.
    pub fn with_options(problem: &Problem, options: &PlanOptions) -> Result<Self, AttentionError> {
        Self::with_order(problem, options, Order::VERSION_1)
    }

    /// A plan in another order of operations, for tests.
    pub(crate) fn with_order(
        problem: &Problem,
        options: &PlanOptions,
        order: Order,
    ) -> Result<Self, AttentionError> {
        debug_assert!(order.tile.is_power_of_two());
        problem.validate()?;
        let level = Level::chosen(options.level)?;
        let engine = if options.bf16_dot {
            let unavailable = AttentionError::Bf16DotUnavailable { level: level.name() };
            Engine::Bf16Dot(Bf16Level::new(level).ok_or(unavailable)?)
        } else {
            Engine::Exact(level)
        };
        parallel::check_max_threads(options.max_threads)?;
        let spread = Spread::new(options.max_threads, options.spread_from_microseconds);
        let max_threads = match options.max_threads {
            Some(threads) => threads,
            None if spread.spreads(tile::nanoseconds(longest_sequence(problem))) => {
                parallel::workers(usize::MAX)
            }
            // Unless batches come, no call is ever spread: no reason yet to start a pool.
            None => parallel::expected_workers(),
        };
        let spread = spread.over(max_threads);
        let split =
            mutant!("split-by-threads", order.split, order.split.div_ceil(max_threads).max(order.tile));
        let order = Order { split, ..order };
        let sizes = ScratchSizes::new(problem, engine)?;
        let rows = tile::FEW_ROWS.min(problem.max_q_len.saturating_mul(problem.group()));
        // Room for a block of more rows too, where there are fewer units than workers: a quarter of the units counted here.
        let splits = problem.max_kv_len.div_ceil(order.split);
        let splits = if splits > 1 { splits } else { 0 };
        let partials = partials_len(tile::max_split_units(max_threads), splits, rows, sizes.acc_stride())
            .ok_or(AttentionError::SizeOverflow { operand: "workspace" })?;
        let plan = Self { problem: *problem, level, engine, order, spread, sizes, partials };
        let (limit, got) = (options.max_workspace_bytes.unwrap_or(usize::MAX), plan.workspace_bytes());
        if got > limit {
            return Err(AttentionError::TooLarge { operand: "workspace", axis: "bytes", limit, got });
        }
        Ok(plan)
    }

    /// The sizes it was made for.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// The instruction set it runs on.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Whether it runs on bf16 dot products ([`PlanOptions::bf16_dot`]).
    pub fn bf16_dot(&self) -> bool {
        matches!(self.engine, Engine::Bf16Dot(_))
    }

    /// The most tasks that run side by side ([`PlanOptions::max_threads`]).
    pub fn max_threads(&self) -> usize {
        self.spread.max_threads()
    }

    /// How large a [`Workspace`] will be ([`Workspace::bytes`]).
    pub fn workspace_bytes(&self) -> usize {
        let worker = self.sizes.bytes().unwrap_or(usize::MAX);
        let partials = self.partials.saturating_mul(size_of::<f32>());
        let workers = worker.saturating_mul(self.max_threads()).saturating_add(partials);
        workers.saturating_add(BlockOrder::bytes_of(self.ordered_blocks()))
    }

    /// Blocks that there is room to order.
    fn ordered_blocks(&self) -> usize {
        order::room(self.problem.max_q_len.saturating_mul(self.problem.group()), self.max_threads())
    }

    /// Scratch for one call at a time.
    ///
    /// # Errors
    /// [`AttentionError::OutOfMemory`].
    pub fn workspace(&self) -> Result<Workspace, AttentionError> {
        let mut workers = Vec::new();
        let bytes = self.max_threads().saturating_mul(size_of::<Scratch>());
        let error = |_| AttentionError::OutOfMemory { what: "workspace", bytes };
        workers.try_reserve_exact(self.max_threads()).map_err(error)?;
        for _ in 0..self.max_threads() {
            workers.push(Scratch::new(&self.sizes)?);
        }
        let partials = AlignedBuf::zeroed("workspace", self.partials)?;
        let order = BlockOrder::with_room(self.ordered_blocks())?;
        Ok(Workspace { sizes: self.sizes, workers, partials, order, progress: Progress::Nothing })
    }

    /// Attention of `inputs` into `outputs`.
    ///
    /// Any batch, and any lengths up to the plan's maxima. Runs on the current rayon pool, or on the calling thread
    /// alone when the work is too small to be worth waking another ([`PlanOptions::spread_from_microseconds`],
    /// [`Plan::explain`]); does not allocate. (Entering the pool from outside, rayon's own queue may, and the global pool
    /// starts its threads if it has not yet. Small calls enter none.)
    ///
    /// # Errors
    /// Operands that do not fit the plan or each other; nothing is written then. [`AttentionError::Cancelled`] if the
    /// call's token stopped it, see there.
    pub fn run<Q: Element, T: Element>(
        &self,
        inputs: &Inputs<'_, Q, T>,
        outputs: Outputs<'_, Q>,
        workspace: &mut Workspace,
    ) -> Result<(), AttentionError> {
        workspace.progress = Progress::Nothing;
        let mut call = Call::new(&self.problem, self.order, inputs)?;
        self.check_workspace(workspace)?;
        let Outputs { out, lse, row_max, scores, top_keys, mut metrics } = outputs;
        let [batch, q_heads, q_len, _] = inputs.q().shape();
        check_output("out", &out, inputs.output_shape())?;
        let per_row = |operand, values: Option<_>| {
            values.map(|values| per_row(operand, values, [batch, q_heads, q_len, 1])).transpose()
        };
        let (lse, row_max) = (per_row("lse", lse)?, per_row("row_max", row_max)?);
        let (queries, kv_len) = ([batch, q_heads, q_len], inputs.k().shape()[2]);
        let scores = scores.map(|scores| score_targets(scores, queries, kv_len)).transpose()?;
        let top_keys = top_keys.map(|top_keys| top_key_targets(top_keys, queries)).transpose()?;
        let wanted = [scores, top_keys].map(|targets| targets.filter(|targets| !targets.is_empty()));
        let options = metrics.as_ref().map(|metrics| *metrics.options());
        let room = metrics.as_mut().map(|metrics| metrics.room(queries)).transpose()?;
        let (measured, peaks) = room.map(|room| (room.rows, room.peaks)).unzip();
        let measured = measured.map(|rows| ViewMut::new(rows, [batch, q_heads, q_len, 1])).transpose()?;
        let (measured, peaks) = (measured.map(SharedRows::new), peaks.unwrap_or_default());
        // The sizes of an empty output are not bound by memory: there may be more rows than anyone can visit.
        let rows_wanted = [lse, row_max].iter().any(Option::is_some) || measured.is_some();
        let rows_wanted = rows_wanted || !inputs.output_shape().contains(&0);
        let targets = Targets { out: Q::share(SharedRows::new(out)), lse, row_max, metrics: measured };

        if batch == 0 || q_heads == 0 || q_len == 0 || !rows_wanted && wanted.iter().all(Option::is_none) {
            metrics.into_iter().for_each(|metrics| metrics.count(0, q_len));
            workspace.progress = Progress::All;
            return Ok(());
        }
        let row_count = batch.saturating_mul(q_heads).saturating_mul(q_len);
        let token = call.cancel;
        let stopped = |complete| match token.is_some_and(CancelToken::is_stopped) {
            true => Err(AttentionError::Cancelled { complete, rows: row_count }),
            false => Ok(()),
        };
        stopped(0)?;
        let Workspace { workers, partials, order, progress, .. } = workspace;
        let grid = Grid::new(&call, self.engine.joins_heads(), self.spread);
        let workers = &mut workers[..grid.workers];
        let has_peaks = peaks.len() >= workers.len()
            && peaks.iter().all(|peaks| peaks.rows() >= grid.block_rows.min(grid.rows));
        let measures = options.as_ref().map(|options| Measures::new(options, grid.splits == 1 && has_peaks));
        call.measures = measures;
        workers.iter_mut().for_each(|worker| worker.start(&self.sizes));
        if rows_wanted {
            order.sort(&call, &grid);
            let parts = WorkspaceParts { workers: &mut *workers, partials, order: &*order };
            lend(parts.workers, peaks);
            let begun = T::run(self.engine, &call, &grid, &targets, parts);
            lend(workers, peaks);
            if call.is_stopped() {
                let blocks = Blocks::new(&call, &grid, begun);
                *progress = Progress::Part(blocks);
                let complete = blocks.count(&call, workers, order);
                if complete < row_count {
                    return Err(AttentionError::Cancelled { complete, rows: row_count });
                }
            }
        }
        *progress = Progress::All;
        for targets in wanted.iter().flatten() {
            T::run_scores(self.engine, &call, targets, workers);
            stopped(row_count)?;
        }
        if let (Some(options), Some(rows), Some(measures)) = (options, measured, measures)
            && !measures.are_all(&options)
        {
            let details = ScoreTargets {
                stage: ScoreStage::Softmax,
                written: Written::Metrics { rows, options },
                chosen: Chosen::all(queries),
            };
            T::run_scores(self.engine, &call, &details, workers);
            stopped(row_count)?;
        }
        metrics.into_iter().for_each(|metrics| metrics.count(row_count, q_len));
        Ok(())
    }

    /// What [`Plan::run`] would do with `inputs`, and why.
    ///
    /// # Errors
    /// As [`Plan::run`].
    pub fn explain<Q: Element, T: Element>(
        &self,
        inputs: &Inputs<'_, Q, T>,
    ) -> Result<Explanation, AttentionError> {
        let call = Call::new(&self.problem, self.order, inputs)?;
        let grid = Grid::new(&call, self.engine.joins_heads(), self.spread);
        Ok(Explanation::new(self, &call, Q::DTYPE, &grid))
    }

    fn check_workspace(&self, workspace: &Workspace) -> Result<(), AttentionError> {
        let [threads, splits] = ["threads", "elements for splits of keys"];
        let both = [
            (threads, self.max_threads(), workspace.workers.len()),
            (splits, self.partials, workspace.partials.len()),
        ];
        // Part by part only if it was made for another plan: that shows in calls of few keys.
        let parts = || {
            let [expected, got] = [&self.sizes, &workspace.sizes].map(ScratchSizes::parts);
            expected.into_iter().zip(got).map(|((part, expected), (_, got))| (part, expected, got))
        };
        let each = (workspace.sizes != self.sizes).then(parts);
        match both.into_iter().chain(each.into_iter().flatten()).find(|(_, expected, got)| got < expected) {
            None => Ok(()),
            Some((part, expected, got)) => Err(AttentionError::Workspace { part, expected, got }),
        }
    }
}

/// Exchanges what workers have for peaks with what the call's metrics have: once before, once after.
fn lend(workers: &mut [Scratch], peaks: &mut [PeakBuffer]) {
    workers.iter_mut().zip(peaks).for_each(|(worker, peaks)| std::mem::swap(&mut worker.peaks, peaks));
}

/// The most work that one sequence can be, as [`tile::nanoseconds`] wants it.
fn longest_sequence(problem: &Problem) -> [f64; 2] {
    let [queries, keys] = [problem.max_q_len, problem.max_kv_len].map(|len| len as f64);
    problem.work(queries * keys, keys, DType::F32.bytes())
}

fn check_output<T>(
    operand: &'static str,
    view: &ViewMut<'_, T>,
    expected: [usize; 4],
) -> Result<(), AttentionError> {
    view.as_view().check_shape(operand, expected)?;
    view.as_view().check_unit_stride(operand)
}

/// One number per row, contiguous.
fn per_row<'a>(
    operand: &'static str,
    values: &'a mut [f32],
    shape: [usize; 4],
) -> Result<SharedRows<'a, f32>, AttentionError> {
    let rows = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
    let expected = rows.ok_or(AttentionError::SizeOverflow { operand })?;
    if values.len() != expected {
        return Err(AttentionError::Shape { operand, axis: "elements", expected, got: values.len() });
    }
    Ok(SharedRows::new(ViewMut::new(values, shape)?))
}

fn score_targets<'a>(
    scores: Scores<'a>,
    queries: [usize; 3],
    kv_len: usize,
) -> Result<ScoreTargets<'a>, AttentionError> {
    let Scores { stage, out, heads, rows } = scores;
    let chosen = Chosen::new(["scores.heads", "scores.rows"], [heads, rows], queries)?;
    check_output("scores", &out, chosen.shape(kv_len))?;
    Ok(ScoreTargets { stage, written: Written::Scores(SharedRows::new(out)), chosen })
}

fn top_key_targets<'a>(
    top_keys: TopKeys<'a>,
    queries: [usize; 3],
) -> Result<ScoreTargets<'a>, AttentionError> {
    let chosen = chosen_for_top_keys(&top_keys, queries)?;
    let written = Written::Top(SharedRows::new(top_keys.out));
    Ok(ScoreTargets { stage: ScoreStage::Softmax, written, chosen })
}

/// The rows of which the top keys are wanted, of queries `[batch, q_heads, q_len]`.
fn chosen_for_top_keys<'a>(
    top_keys: &TopKeys<'a>,
    queries: [usize; 3],
) -> Result<Chosen<'a>, AttentionError> {
    let TopKeys { out, heads, rows } = top_keys;
    let chosen = Chosen::new(["top_keys.heads", "top_keys.rows"], [*heads, *rows], queries)?;
    check_output("top_keys", out, chosen.shape(out.shape()[3]))?;
    Ok(chosen)
}

/// Refuses a request that a call with queries `[batch, q_heads, q_len]` would refuse.
pub(crate) fn check_top_keys(top_keys: &TopKeys<'_>, queries: [usize; 3]) -> Result<(), AttentionError> {
    chosen_for_top_keys(top_keys, queries).map(drop)
}

/// Attention in one call: plans, allocates and runs. Returns `[batch, q_heads, q_len, v_dim]`, contiguous.
///
/// Does what [`Plan::run`] does, with the same bits; a service that calls often keeps the plan and its workspace.
///
/// ```
/// use lucid_attention::{Inputs, Mask, View, attention};
///
/// let (heads, tokens, dim) = (2, 3, 4);
/// let (q, k, v) = (vec![1.0f32; 24], vec![1.0f32; 24], vec![0.5f32; 24]);
/// let shape = [1, heads, tokens, dim];
/// let inputs = Inputs::new(View::new(&q, shape)?, View::new(&k, shape)?, View::new(&v, shape)?);
/// let out = attention(&inputs.mask(Mask::causal()))?;
/// assert_eq!(out, vec![0.5; 24]);
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
///
/// # Errors
/// As [`Plan::new`] and [`Plan::run`], or memory cannot be had.
pub fn attention<Q: Element, T: Element>(inputs: &Inputs<'_, Q, T>) -> Result<Vec<Q>, AttentionError> {
    let problem = Problem::of(inputs);
    problem.validate()?;
    // Scratch for as many threads as the call will use, not for all there are.
    let call = Call::new(&problem, Order::VERSION_1, inputs)?;
    let threads = Grid::new(&call, false, Spread::new(None, None)).workers;
    let options = PlanOptions { max_threads: Some(threads), ..PlanOptions::default() };
    let plan = Plan::with_options(&problem, &options)?;
    let shape = inputs.output_shape();
    let size = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
    let size = size.ok_or(AttentionError::SizeOverflow { operand: "out" })?;
    let mut out = Vec::new();
    let error = |_| AttentionError::OutOfMemory { what: "out", bytes: size.saturating_mul(size_of::<Q>()) };
    out.try_reserve_exact(size).map_err(error)?;
    out.resize(size, Q::default());
    plan.run(inputs, Outputs::new(ViewMut::new(&mut out, shape)?), &mut plan.workspace()?)?;
    Ok(out)
}
