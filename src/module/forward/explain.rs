//! What a module would do with a call, in words and numbers.

use super::{Core, KeySource, MultiHeadAttention, Operand, Repairs};
use crate::cache::{AnyKeysValues, with_keys_values};
use crate::element::DType;
use crate::error::{AttentionError, check_size};
use crate::explain::Explanation;
use crate::isa::Level;
use crate::metrics::MetricsOptions;
use crate::module::activation::Activation;
use crate::module::call::ModuleInputs;
use crate::module::linear::Linear;
use crate::module::tensor::Tensor;
use crate::view::View;
use std::fmt;
use std::ops::Range;

/// The choices made for a call of a module; prints as a few lines of text.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModuleExplanation {
    /// Instruction set.
    pub level: Level,
    /// What makes queries, keys and values, in the order they run: one product for inputs that are the same tensor.
    pub projections: Vec<ProductExplanation>,
    /// Whether the call absorbs its projections: keys and values stay as they are, the key projection goes into the queries
    /// and the value projection comes after the sum. See [`ModuleOptions::always_project`](super::ModuleOptions::always_project).
    pub absorbed: bool,
    /// What attends.
    pub attention: Explanation,
    /// The product that makes the output.
    pub output: ProductExplanation,
    /// What the output goes through, within its product.
    pub activation: Activation,
    /// Whether the query is added then.
    pub residual: bool,
    /// Whether a layer norm follows.
    pub layer_norm: bool,
    /// What the module measures of its calls.
    pub metrics: Option<MetricsOptions>,
    /// The share of probabilities that training drops; none if the call does not train.
    pub dropout: Option<f32>,
}

/// A product of tokens and packed weights.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ProductExplanation {
    /// What it makes.
    pub makes: &'static str,
    /// Tokens.
    pub rows: usize,
    /// Numbers of a token that go in.
    pub inputs: usize,
    /// Numbers of a token that come out.
    pub outputs: usize,
    /// What weights are stored as.
    pub weights_dtype: DType,
    /// Tasks that may run side by side.
    pub threads: usize,
    /// How it is dealt to them.
    pub parts: ProductParts,
}

/// How a product is dealt to threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProductParts {
    /// Not at all: too little work to wake another thread, or there is none.
    One,
    /// Columns of the weights, for few rows: each weight is read once.
    Columns,
    /// Rows, each part with all weights.
    Rows,
}

impl MultiHeadAttention {
    /// What [`MultiHeadAttention::forward_into`] would do with `inputs`, and why. Allocates.
    ///
    /// # Errors
    /// As [`MultiHeadAttention::forward_into`] for what it reads.
    pub fn explain(&self, inputs: &ModuleInputs<'_>) -> Result<ModuleExplanation, AttentionError> {
        let (mut core, mut repairs) = (Core::default(), Repairs::default());
        let Core { repaired: [for_query, for_keys @ ..], attention, .. } = &mut core;
        let [batch, q_len, _] = inputs.query.shape();
        let (kv_heads, key_dim, value_dim) =
            (self.config.kv_heads(), self.config.key_dim, self.config.value_dim());
        // Of queries, keys and values only shapes matter: all are one token.
        let token = vec![0.0; key_dim.max(value_dim).max(self.dims.key)];
        let view = |heads, tokens, dim| View::with_strides(&token, [batch, heads, tokens, dim], [0, 0, 0, 1]);
        let query = self.admit((Operand::Query, self.dims.query), inputs.query, for_query, &mut repairs)?;
        let mut absorbed = None;
        let (projections, keys) = match inputs.keys {
            KeySource::Tensors { key, value } => {
                check_size("key", "batch", batch, key.shape()[0])?;
                let admitted = Some((inputs.query, query));
                let [key, value] = self.admit_pair([key, value], admitted, for_keys, &mut repairs)?;
                let kv_len = key.shape()[1];
                absorbed = self.absorbs(inputs, kv_len);
                if absorbed.is_some() {
                    let keys = AnyKeysValues::F32(key.view()?.into(), value.view()?);
                    (self.explain_projections(0..1, &[query]), keys)
                } else {
                    let (k, v) = (view(kv_heads, kv_len, key_dim)?, view(kv_heads, kv_len, value_dim)?);
                    (self.explain_projections(0..3, &[query, key, value]), AnyKeysValues::F32(k.into(), v))
                }
            }
            KeySource::Cache(keys) => (self.explain_projections(0..1, &[query]), keys),
        };
        let direct = self.problem(q_len, keys.kv_len());
        let problem = absorbed.map_or(direct, |absorbed| absorbed.problem(&direct));
        let q = view(problem.q_heads, q_len, problem.head_dim)?;
        let (plan, _) = attention.plan(&problem, &self.plan)?;
        let attention = with_keys_values!(keys, (k, v) => plan.explain(&self.attention(inputs, q, k, v)?))?;
        Ok(ModuleExplanation {
            level: self.level,
            projections,
            absorbed: absorbed.is_some(),
            attention,
            output: product("output", &self.output, batch * q_len, 0..self.output.outputs()),
            activation: self.config.activation(),
            residual: self.config.use_residual,
            layer_norm: self.norm.is_some(),
            metrics: self.metrics.as_ref().map(|running| *running.options()),
            dropout: inputs.training.map(|_| self.config.dropout),
        })
    }

    fn explain_projections(&self, wanted: Range<usize>, inputs: &[Tensor<'_>]) -> Vec<ProductExplanation> {
        let groups = self.projections.groups(wanted, inputs);
        let explained = groups.map(|(group, layer, columns)| {
            let [batch, tokens, _] = inputs[group.start].shape();
            product(made(&group), layer, batch * tokens, columns)
        });
        explained.collect()
    }
}

/// What the projections of neighbours make.
fn made(which: &Range<usize>) -> &'static str {
    match (which.start, which.end) {
        (0, 1) => "queries",
        (0, 2) => "queries and keys",
        (0, _) => "queries, keys and values",
        (1, 2) => "keys",
        (1, _) => "keys and values",
        _ => "values",
    }
}

fn product(makes: &'static str, layer: &Linear, rows: usize, columns: Range<usize>) -> ProductExplanation {
    let deal = layer.deal(rows, &columns, layer.spread());
    let parts = match () {
        () if deal.workers <= 1 => ProductParts::One,
        () if deal.part_panels < deal.panels => ProductParts::Columns,
        () => ProductParts::Rows,
    };
    ProductExplanation {
        makes,
        rows,
        inputs: layer.inputs(),
        outputs: columns.len(),
        weights_dtype: layer.dtype(),
        threads: deal.workers,
        parts,
    }
}

impl fmt::Display for ModuleExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { level, attention, activation, residual, layer_norm, .. } = self;
        writeln!(f, "multi-head attention, level {level}")?;
        self.projections.iter().try_for_each(|product| writeln!(f, "{product}"))?;
        if self.absorbed {
            writeln!(
                f,
                "few queries: keys and values stay as they are, W_k goes into the queries, W_v follows the sum"
            )?;
        }
        writeln!(f, "attention:")?;
        attention.to_string().lines().try_for_each(|line| writeln!(f, "  {line}"))?;
        writeln!(f, "{}", self.output)?;
        let on = |yes: bool| if yes { "yes" } else { "no" };
        writeln!(
            f,
            "then: activation {activation}, residual {}, layer norm {}",
            on(*residual),
            on(*layer_norm)
        )?;
        match self.metrics {
            None => writeln!(f, "metrics: none of the module's")?,
            Some(options) if options.needs_probabilities() => writeln!(
                f,
                "metrics: while the output is computed; for sparsity or top-k mass scores are computed twice more"
            )?,
            Some(_) => writeln!(f, "metrics: while the output is computed")?,
        }
        match self.dropout {
            Some(rate) if rate > 0.0 => {
                write!(f, "dropout: {rate} of the probabilities, as they are added up")
            }
            Some(_) => write!(f, "dropout: none, at a rate of 0"),
            None => write!(f, "dropout: none, without training"),
        }
    }
}

impl fmt::Display for ProductExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { makes, rows, inputs, outputs, weights_dtype, threads, parts } = self;
        write!(f, "{makes}: {rows} row(s) of {inputs} to {outputs}, weights {weights_dtype}, ")?;
        match parts {
            ProductParts::One => write!(f, "one thread"),
            ProductParts::Columns => {
                write!(f, "{threads} threads share columns: few rows, each weight is read once")
            }
            ProductParts::Rows => write!(f, "{threads} threads share rows"),
        }
    }
}
