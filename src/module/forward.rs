//! [`MultiHeadAttention`] and its run path.

mod explain;

pub use explain::{ModuleExplanation, ProductExplanation, ProductParts};

use super::absorbed::Absorbed;
use super::call::{KeySource, ModuleInputs, ModuleOutputs};
use super::config::AttentionConfig;
use super::linear::{Linear, LinearOptions};
use super::metrics::{RunningMetrics, target};
use super::norm::End;
use super::policy::{InputPolicies, Operand, RepairCounts, Repairs};
use super::projections::Projections;
use super::tensor::Tensor;
use super::weights::{Columns, InputDims, ModuleWeights, NormWeights};
use super::workspace::{Attention, Buffer, Core, ModuleWorkspace, choose_plan, reserve};
use crate::cache::{AnyKeysValues, KvCache, with_keys_values};
use crate::dropout::Dropout;
use crate::element::Element;
use crate::error::{AttentionError, check_size};
use crate::inputs::{Inputs, Keys};
use crate::isa::Level;
use crate::mask::Mask;
use crate::metrics::{Metrics, MetricsOptions};
use crate::outputs::{Outputs, ScoreStage, Scores};
use crate::parallel;
use crate::plan::{Plan, PlanOptions, Workspace, check_top_keys};
use crate::problem::Problem;
use crate::view::{Layout, View, ViewMut};

/// Choices of a module that are neither sizes nor weights.
#[derive(Debug, Default)]
pub struct ModuleOptions {
    /// Instruction set and threads, of projections and attention (from how much work on they are spread goes for each step by
    /// itself), and the tier of attention. A limit of memory is one of
    /// each plan of attention, of which a [`ModuleWorkspace`] holds up to four (few rows or many, tokens projected or as they
    /// are); where it leaves no room for all threads, a call makes do with fewer.
    pub plan: PlanOptions,
    /// What becomes of inputs that are not as they should be.
    pub policies: InputPolicies,
    /// What to measure of every call, if anything: [`MultiHeadAttention::metrics`]. Each call then ends with a lock, held while
    /// its rows are added to the totals.
    pub metrics: Option<MetricsOptions>,
    /// Projects keys and values of every call.
    ///
    /// If not, calls of few queries over many tokens leave tokens as they are, and move the projections to the queries and to
    /// the sums of values: less work by far, and the same but for rounding. Which calls do is a question of the
    /// tensors' lengths (padding counts), the module's sizes and a limit of memory alone; none that train, cap their scores, are ragged, or run the bf16 tier. With it,
    /// outputs have the same bits as those of a longer call, and of [`MultiHeadAttention::project_kv`], and the key weights are
    /// not held twice.
    pub always_project: bool,
}

/// Multi-head attention as a layer: `norm(query + activation(attention(query, key, value) W_o + b_o))`.
///
/// Per head, `q = query W_q + b_q`, `k = key W_k + b_k`, `v = value W_v + b_v` and attention as [`Inputs`] says; residual,
/// activation and norm as the configuration says. A query without a key to attend to (masked, or there are none) has an
/// attention of 0, so what is projected is 0 and `b_o` is left.
///
/// `Send + Sync`, and immutable but for running metrics and the count of repairs: share one module, and give each concurrent call a
/// [`ModuleWorkspace`] of its own.
///
/// ```
/// use lucid_attention::module::{
///     AttentionConfig, InputDims, ModuleInputs, ModuleOutputs, ModuleWeights, ModuleWorkspace, MultiHeadAttention, Tensor,
/// };
///
/// let config = AttentionConfig::default(); // 4 heads of 32, residual, layer norm
/// let weights = ModuleWeights::glorot(&config, InputDims::all(128), 1)?;
/// let module = MultiHeadAttention::new(config, &weights)?;
///
/// let (query, memory) = (vec![0.1f32; 128], vec![0.2f32; 10 * 128]);
/// let (query, memory) = (Tensor::new(&query, &[128])?, Tensor::new(&memory, &[10, 128])?);
/// let mut out = vec![0.0; 128];
/// let mut workspace = ModuleWorkspace::new();
/// module.forward_into(&ModuleInputs::new(query, memory, memory), ModuleOutputs::new(&mut out), &mut workspace)?;
/// # Ok::<(), lucid_attention::AttentionError>(())
/// ```
#[derive(Debug)]
pub struct MultiHeadAttention {
    config: AttentionConfig,
    dims: InputDims,
    projections: Projections,
    absorbed: Option<Absorbed>,
    output: Linear,
    norm: Option<NormWeights>,
    policies: InputPolicies,
    /// With the level that was chosen.
    plan: PlanOptions,
    level: Level,
    repairs: RepairCounts,
    metrics: Option<RunningMetrics>,
}

impl MultiHeadAttention {
    /// A module of `weights`, which are packed for the kernels.
    ///
    /// # Errors
    /// As [`MultiHeadAttention::with_options`].
    pub fn new(config: AttentionConfig, weights: &ModuleWeights) -> Result<Self, AttentionError> {
        Self::with_options(config, weights, ModuleOptions::default())
    }

    /// A module with these options.
    ///
    /// # Errors
    /// A field of `config` is wrong; `weights` are not those of `config`; a residual is asked for with an output of another
    /// size than the query; `options` ask for what this CPU lacks (as [`Plan::with_options`](Plan::with_options)); or
    /// memory cannot be had.
    pub fn with_options(
        config: AttentionConfig,
        weights: &ModuleWeights,
        options: ModuleOptions,
    ) -> Result<Self, AttentionError> {
        config.validate()?;
        weights.check(&config)?;
        let dims = weights.input_dims();
        let columns = Columns::new(&config, dims.query);
        if config.use_residual {
            check_size("residual", "output_dim", dims.query, columns.output)?;
        }
        let ModuleOptions { plan, policies, metrics, always_project } = options;
        policies.wrong_dim.check_layers(dims)?;
        let level = Level::chosen(plan.level)?;
        let plan = PlanOptions { level: Some(level), ..plan };
        let linear = LinearOptions {
            level: plan.level,
            max_threads: plan.max_threads,
            spread_from_microseconds: plan.spread_from_microseconds,
            dtype: config.weights_dtype,
            activation: Default::default(),
        };
        let projections = Projections::new(weights, &linear)?;
        let absorbed = if always_project || config.softcap.is_some() || plan.bf16_dot {
            None
        } else {
            Absorbed::new(weights, [config.num_heads, config.key_dim, config.value_dim()], &linear)?
        };
        let output = LinearOptions { activation: config.activation(), ..linear };
        let (output, _) = Linear::stacked([weights.output.dense()], columns.context, &output)?;
        let module = Self {
            dims,
            projections,
            absorbed,
            output,
            norm: weights.layer_norm.clone(),
            policies,
            plan,
            level,
            repairs: RepairCounts::default(),
            metrics: metrics.map(|options| RunningMetrics::new(options, config.num_heads)).transpose()?,
            config,
        };
        // Whatever else the options may ask in vain for, they do now, not at the first call.
        choose_plan([None; 2], &module.problem(1, 1), &module.plan)?;
        Ok(module)
    }

    /// What it was made from.
    pub fn config(&self) -> &AttentionConfig {
        &self.config
    }

    /// Sizes of the vectors that go in.
    pub fn input_dims(&self) -> InputDims {
        self.dims
    }

    /// Numbers of a token's output.
    pub fn output_dim(&self) -> usize {
        self.output.outputs()
    }

    /// What becomes of inputs that are not as they should be.
    pub fn policies(&self) -> &InputPolicies {
        &self.policies
    }

    /// The instruction set it runs on.
    pub fn level(&self) -> Level {
        self.level
    }

    /// How often inputs were repaired since the module was made, or since the last reset, in calls that succeeded.
    pub fn repairs(&self) -> Repairs {
        self.repairs.get()
    }

    /// Starts counting repairs afresh.
    pub fn reset_repairs(&self) {
        self.repairs.reset();
    }

    /// Metrics of all calls that succeeded since the module was made, or since the last reset: totals of each head, no rows.
    /// `None` if [`ModuleOptions::metrics`] did not ask for them.
    ///
    /// They merge with those of other modules alike ([`Metrics::merge`]).
    pub fn metrics(&self) -> Option<Metrics> {
        self.metrics.as_ref().map(RunningMetrics::get)
    }

    /// Starts running metrics afresh.
    pub fn reset_metrics(&self) {
        self.metrics.iter().for_each(RunningMetrics::reset);
    }

    /// The output, `[batch, q_len, output_dim]`, or without the leading axes that `query` has not.
    ///
    /// Allocates its scratch; a service keeps a workspace and calls [`MultiHeadAttention::forward_into`], with the same
    /// bits.
    ///
    /// # Errors
    /// As [`MultiHeadAttention::forward_into`], or memory cannot be had.
    pub fn forward(&self, inputs: &ModuleInputs<'_>) -> Result<Vec<f32>, AttentionError> {
        let mut out = self.room_for_output(inputs)?;
        self.forward_into(inputs, ModuleOutputs::new(&mut out), &mut ModuleWorkspace::new())?;
        Ok(out)
    }

    /// The output, and the probabilities `[batch, num_heads, q_len, kv_len]`: 0 at removed keys.
    ///
    /// For some heads or rows only, or another stage, ask [`MultiHeadAttention::forward_into`] for [`Scores`].
    ///
    /// # Errors
    /// As [`MultiHeadAttention::forward`].
    pub fn forward_with_scores(
        &self,
        inputs: &ModuleInputs<'_>,
    ) -> Result<(Vec<f32>, Vec<f32>), AttentionError> {
        let mut out = self.room_for_output(inputs)?;
        let [batch, q_len, _] = inputs.query.shape();
        let kv_len = match inputs.keys {
            KeySource::Tensors { key, .. } => key.shape()[1],
            KeySource::Cache(cache) => cache.kv_len(),
        };
        let shape = [batch, self.config.num_heads, q_len, kv_len];
        let mut scores = zeros("scores", &shape)?;
        let outputs = ModuleOutputs::new(&mut out);
        let outputs = outputs.scores(Scores::new(ScoreStage::Softmax, ViewMut::new(&mut scores, shape)?));
        self.forward_into(inputs, outputs, &mut ModuleWorkspace::new())?;
        Ok((out, scores))
    }

    /// The output, and scores if asked for, into the caller's memory.
    ///
    /// Runs on the current rayon pool, or on the calling thread alone where a step is small; does not allocate once
    /// `workspace` has served a call as large.
    ///
    /// # Errors
    /// Inputs that the policies refuse; tensors, masks, biases and outputs that fit neither the module nor each other; or
    /// memory cannot be had. Nothing is written and no repair is counted then. Or the call was stopped
    /// ([`ModuleInputs::cancel`]): `out` is as it was, and nothing is counted, but scores and top keys may have been written.
    pub fn forward_into(
        &self,
        inputs: &ModuleInputs<'_>,
        outputs: ModuleOutputs<'_>,
        workspace: &mut ModuleWorkspace,
    ) -> Result<(), AttentionError> {
        let run = || self.run(inputs, outputs, &mut workspace.core, Repairs::default());
        parallel::enter_if(|| self.spreads(inputs), run)
    }

    /// Whether the products of a call are spread over the pool: that of the output, or one as large for the tokens.
    fn spreads(&self, inputs: &ModuleInputs<'_>) -> bool {
        let [batch, q_len, _] = inputs.query.shape();
        let projected = match inputs.keys {
            KeySource::Tensors { key, .. } => key.shape()[1],
            KeySource::Cache(_) => 0,
        };
        let kv_len = if self.absorbs(inputs, projected).is_some() { 0 } else { projected };
        let rows = batch.saturating_mul(q_len.max(kv_len));
        let columns = 0..self.output.outputs();
        self.output.deal(rows, &columns, self.output.spread()).workers > 1
    }

    pub(crate) fn run(
        &self,
        inputs: &ModuleInputs<'_>,
        outputs: ModuleOutputs<'_>,
        core: &mut Core,
        mut repairs: Repairs,
    ) -> Result<(), AttentionError> {
        let Core { repaired, projected, context, attention, absorbed: for_absorbed, metrics: room } = core;
        let [for_query, for_keys @ ..] = repaired;
        let [batch, q_len, _] = inputs.query.shape();
        let ModuleOutputs { out, mut scores, mut top_keys, metrics, counted } = outputs;
        let rows = batch.saturating_mul(q_len);
        check_size("out", "elements", rows.saturating_mul(self.output_dim()), out.len())?;

        let AttentionConfig { num_heads, key_dim, .. } = self.config;
        let (kv_heads, value_dim) = (self.config.kv_heads(), self.config.value_dim());
        let query = self.admit((Operand::Query, self.dims.query), inputs.query, for_query, &mut repairs)?;
        let size = rows.checked_mul(num_heads * value_dim);
        let size = size.ok_or(AttentionError::SizeOverflow { operand: "module workspace" })?;
        let context = reserve(context, size)?;
        let context_shape = [batch, num_heads, q_len, value_dim];
        let metric_rows = rows.saturating_mul(num_heads);
        let running = self.metrics.as_ref().filter(|_| counted);
        let mut metrics = target(running, metrics, room, [num_heads, metric_rows])?;
        // A call of two passes over the keys would find out in the second.
        let per_row = [batch, num_heads, q_len];
        top_keys.iter().try_for_each(|top_keys| check_top_keys(top_keys, per_row))?;
        metrics.as_deref_mut().map_or(Ok(()), |metrics| metrics.room(per_row).map(drop))?;
        inputs.check_stopped(metric_rows)?;
        match inputs.keys {
            KeySource::Tensors { key, value } => {
                check_size("key", "batch", batch, key.shape()[0])?;
                let admitted = Some((inputs.query, query));
                let [key, value] = self.admit_pair([key, value], admitted, for_keys, &mut repairs)?;
                let kv_len = key.shape()[1];
                let absorbed = self.absorbs(inputs, kv_len);
                if let Some(absorbed) = absorbed {
                    // Before anything is written: the plan may be refused.
                    let problem = absorbed.problem(&self.problem(q_len, kv_len));
                    for_absorbed.attention.plan(&problem, &self.plan)?;
                }
                // Absorbed logits lack what the keys' bias adds to all of a row.
                let logits =
                    scores.take_if(|scores| absorbed.is_none() || scores.stage != ScoreStage::Softmax);
                if absorbed.is_none() || logits.is_some() {
                    let [q, k, v] = self.projections.run(0..3, [query, key, value], projected)?;
                    let keys =
                        AnyKeysValues::F32(k.view(kv_heads, key_dim)?.into(), v.view(kv_heads, value_dim)?);
                    let view = ViewMut::with_layout(context, context_shape, Layout::TokenMajor)?;
                    let metrics = metrics.as_deref_mut().filter(|_| absorbed.is_none());
                    let top_keys = top_keys.take_if(|_| absorbed.is_none());
                    let outputs = Outputs { scores: logits, top_keys, metrics, ..Outputs::new(view) };
                    let plan = attention.plan(&self.problem(q_len, kv_len), &self.plan)?;
                    self.attend(plan, inputs, (q.view(num_heads, key_dim)?, keys), outputs)?;
                }
                if let Some(absorbed) = absorbed {
                    let [q] = self.projections.run(0..1, [query], &mut projected[..1])?;
                    let keys = AnyKeysValues::F32(key.view()?.into(), value.view()?);
                    let problem = absorbed.problem(&self.problem(q_len, kv_len));
                    let attend =
                        |queries: View<'_, f32>, outputs: Outputs<'_, f32>, plans: &mut Attention| {
                            let metrics = metrics.as_deref_mut();
                            let outputs = Outputs { scores, top_keys, metrics, ..outputs };
                            self.attend(plans.plan(&problem, &self.plan)?, inputs, (queries, keys), outputs)
                        };
                    let lens = [batch, q_len];
                    absorbed.run(&self.projections, q.rows(), lens, for_absorbed, context, attend)?;
                }
            }
            KeySource::Cache(cache) => {
                let [q] = self.projections.run(0..1, [query], &mut projected[..1])?;
                let view = ViewMut::with_layout(context, context_shape, Layout::TokenMajor)?;
                let metrics = metrics.as_deref_mut();
                let outputs = Outputs { scores, top_keys, metrics, ..Outputs::new(view) };
                let plan = attention.plan(&self.problem(q_len, cache.kv_len()), &self.plan)?;
                self.attend(plan, inputs, (q.view(num_heads, key_dim)?, cache), outputs)?;
            }
        }
        inputs.check_stopped(metric_rows)?;
        self.output.run(context, out)?;
        let residual = self.config.use_residual.then(|| query.data());
        let norm = self.norm.as_ref().map(|norm| (norm, self.config.layer_norm_epsilon));
        let spread = self.output.spread();
        End { level: self.level, spread, dim: self.output_dim(), residual, norm }.run(out);
        self.repairs.add(if counted { repairs } else { Repairs::default() });
        if let (Some(running), Some(call)) = (running, metrics) {
            running.add(call, q_len);
        }
        Ok(())
    }

    /// The absorbed projections, if a call over so many tokens is to use them. Attention over tokens as they are takes more
    /// memory, so a limit may leave room only for the direct path; on one thread, as bits must not depend on threads.
    fn absorbs(&self, inputs: &ModuleInputs<'_>, kv_len: usize) -> Option<&Absorbed> {
        let [_, q_len, _] = inputs.query.shape();
        let plain = inputs.training.is_none() && inputs.ragged.is_none();
        let absorbed = self.absorbed.as_ref().filter(|_| plain)?;
        let has_memory = || {
            let problem = absorbed.problem(&self.problem(q_len, kv_len));
            let alone = PlanOptions { max_threads: Some(1), ..self.plan };
            self.plan.max_workspace_bytes.is_none() || Plan::with_options(&problem, &alone).is_ok()
        };
        (absorbed.pays([q_len, kv_len]) && has_memory()).then_some(absorbed)
    }

    /// Attention by a call's rules and the configuration's.
    fn attend<'a>(
        &self,
        (plan, workspace): (&Plan, &mut Workspace),
        inputs: &ModuleInputs<'a>,
        (q, keys): (View<'_, f32>, AnyKeysValues<'_>),
        outputs: Outputs<'_, f32>,
    ) -> Result<(), AttentionError> {
        let run = with_keys_values!(keys, (k, v) => plan.run(&self.attention(inputs, q, k, v)?, outputs, workspace));
        run.map_err(|error| match error {
            // Its complete rows are of the context, which nobody sees.
            AttentionError::Cancelled { rows, .. } => AttentionError::Cancelled { complete: 0, rows },
            error => error,
        })
    }

    /// What the core of the module is asked: queries, keys and values of a call, and what shapes its scores.
    pub(crate) fn attention<'a, T: Element>(
        &self,
        inputs: &ModuleInputs<'a>,
        q: View<'a, f32>,
        k: Keys<'a, T>,
        v: View<'a, T>,
    ) -> Result<Inputs<'a, f32, T>, AttentionError> {
        let attend = Inputs {
            bias: inputs.bias,
            q_start: inputs.q_start,
            ragged: inputs.ragged,
            ..Inputs::new(q, k, v)
        };
        Ok(Inputs {
            mask: self.mask(inputs.mask)?,
            scale: Some(self.config.scale() * inputs.logit_scale.unwrap_or(1.0)),
            softcap: self.config.softcap,
            dropout: inputs.training.map(|seed| Dropout { rate: self.config.dropout, seed }),
            awake: self.spreads(inputs),
            cancel: mutant!("layers-do-not-stop-in-attention", inputs.cancel, None),
            ..attend
        })
    }

    /// Keys and values of `key` and `value`, projected once for many queries, with room for `capacity` tokens (or as many
    /// as there are). Ask them by [`ModuleInputs::cached`]; attention over them has the bits of attention over the tensors
    /// in a module that always projects ([`ModuleOptions::always_project`]).
    ///
    /// # Errors
    /// As [`MultiHeadAttention::append_kv`], or memory cannot be had.
    pub fn project_kv(
        &self,
        key: Tensor<'_>,
        value: Tensor<'_>,
        capacity: usize,
        workspace: &mut ModuleWorkspace,
    ) -> Result<KvCache<f32>, AttentionError> {
        self.project_kv_as(key, value, capacity, workspace)
    }

    /// The same, stored as `f32`, or in half the memory as `f16` or `bf16`: what was projected is rounded to them, once
    /// (beyond 65504, `f16` makes it infinite).
    ///
    /// # Errors
    /// As [`MultiHeadAttention::project_kv`].
    pub fn project_kv_as<T: Element>(
        &self,
        key: Tensor<'_>,
        value: Tensor<'_>,
        capacity: usize,
        workspace: &mut ModuleWorkspace,
    ) -> Result<KvCache<T>, AttentionError> {
        let [batch, tokens, _] = key.shape();
        let mut cache = KvCache::new(batch, &self.problem(1, capacity.max(tokens)))?;
        self.append_kv(key, value, &mut cache, workspace)?;
        Ok(cache)
    }

    /// Projects more tokens, and adds them to the end of every sequence of a cache, rounded to what it stores. Does not
    /// allocate once `workspace` has served a call as large.
    ///
    /// # Errors
    /// Inputs that the policies refuse, tensors that do not fit the module, each other or the cache, or there is no room in
    /// it. Nothing is added then.
    pub fn append_kv<T: Element>(
        &self,
        key: Tensor<'_>,
        value: Tensor<'_>,
        cache: &mut KvCache<T>,
        workspace: &mut ModuleWorkspace,
    ) -> Result<(), AttentionError> {
        let Core { repaired: [_, for_keys @ ..], projected, .. } = &mut workspace.core;
        let mut repairs = Repairs::default();
        let pair = self.admit_pair([key, value], None, for_keys, &mut repairs)?;
        let [k, v] = self.projections.run(1..3, pair, &mut projected[1..])?;
        let kv_heads = self.config.kv_heads();
        let (k, v) = (k.view(kv_heads, self.config.key_dim)?, v.view(kv_heads, self.config.value_dim())?);
        cache.append_as(k, v, T::from_f32)?;
        self.repairs.add(repairs);
        Ok(())
    }

    fn admit<'t>(
        &self,
        operand: (Operand, usize),
        tensor: Tensor<'t>,
        buffers: &'t mut [Buffer; 2],
        repairs: &mut Repairs,
    ) -> Result<Tensor<'t>, AttentionError> {
        self.policies.admit(self.level, operand, tensor, buffers, repairs)
    }

    /// Key and value. `query` is the query as it was given and as it was admitted: a tensor that is several of the three
    /// is repaired once.
    fn admit_pair<'t>(
        &self,
        [key, value]: [Tensor<'t>; 2],
        query: Option<(Tensor<'t>, Tensor<'t>)>,
        [for_key, for_value]: &'t mut [[Buffer; 2]; 2],
        repairs: &mut Repairs,
    ) -> Result<[Tensor<'t>; 2], AttentionError> {
        let InputDims { query: query_dim, key: key_dim, value: value_dim } = self.dims;
        check_size("value", "batch", key.shape()[0], value.shape()[0])?;
        check_size("value", "kv_len", key.shape()[1], value.shape()[1])?;
        use Operand::{Key, Query, Value};
        let alike = |a, b| self.policies.wrong_dim.alike(a, b);
        let as_query = |tensor: &Tensor<'t>, operand: Operand, dim: usize| {
            let fitted_alike = dim == query_dim && alike(operand, Query);
            query.and_then(|(given, admitted)| (fitted_alike && tensor.is(&given)).then_some(admitted))
        };
        let admitted_key = match as_query(&key, Key, key_dim) {
            Some(query) => query,
            None => self.admit((Key, key_dim), key, for_key, repairs)?,
        };
        let as_key = (key_dim == value_dim && value.is(&key) && alike(Key, Value)).then_some(admitted_key);
        let admitted_value = match as_key.or_else(|| as_query(&value, Value, value_dim)) {
            Some(admitted) => admitted,
            None => self.admit((Value, value_dim), value, for_value, repairs)?,
        };
        Ok([admitted_key, admitted_value])
    }

    /// The call's mask and the configuration's.
    fn mask<'a>(&self, mask: Mask<'a>) -> Result<Mask<'a>, AttentionError> {
        let AttentionConfig { causal, window_left, window_right, .. } = self.config;
        if causal && mask.prefix.is_some() {
            return Err(AttentionError::Conflict {
                operand: "mask.prefix_lm",
                other: "causal",
                reason: "the configuration lets no query see a key after it, and a prefix would",
            });
        }
        let mask = mask.window(window_left, mutant!("window-of-a-module-is-open", window_right, None));
        Ok(Mask { causal: mask.causal || causal, ..mask })
    }

    fn problem(&self, max_q_len: usize, max_kv_len: usize) -> Problem {
        Problem {
            q_heads: self.config.num_heads,
            kv_heads: self.config.kv_heads(),
            head_dim: self.config.key_dim,
            v_dim: self.config.value_dim(),
            max_q_len,
            max_kv_len,
        }
    }

    fn room_for_output(&self, inputs: &ModuleInputs<'_>) -> Result<Vec<f32>, AttentionError> {
        let [batch, q_len, _] = inputs.query.shape();
        zeros("out", &[batch, q_len, self.output_dim()])
    }
}

/// That many zeros.
pub(crate) fn zeros(what: &'static str, shape: &[usize]) -> Result<Vec<f32>, AttentionError> {
    let size = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
    let size = size.ok_or(AttentionError::SizeOverflow { operand: what })?;
    let mut numbers = Vec::new();
    let error = |_| AttentionError::OutOfMemory { what, bytes: size.saturating_mul(size_of::<f32>()) };
    numbers.try_reserve_exact(size).map_err(error)?;
    numbers.resize(size, 0.0);
    Ok(numbers)
}
