//! Queries, keys and values out of a module's inputs: three layers, or one where sizes allow.

use super::linear::{Linear, LinearOptions, SECTION};
use super::tensor::Tensor;
use super::weights::ModuleWeights;
use super::workspace::{Buffer, reserve};
use crate::error::AttentionError;
use crate::view::View;
use std::ops::Range;

/// The three layers.
#[derive(Debug)]
pub(crate) enum Projections {
    /// Stacked, as their inputs have the same size: those that share their input run as one.
    Stacked { layer: Linear, columns: [Range<usize>; 3] },
    /// Each by itself.
    Separate(Box<[Linear; 3]>),
}

/// Projected tokens.
#[derive(Clone, Copy)]
pub(crate) struct Projected<'a> {
    /// From the first token's first number on.
    data: &'a [f32],
    /// Elements between tokens.
    stride: usize,
    batch: usize,
    tokens: usize,
}

impl<'a> Projected<'a> {
    /// Contiguous, as what was projected alone is.
    pub(crate) fn rows(&self) -> &'a [f32] {
        debug_assert_eq!(self.data.len(), self.batch * self.tokens * self.stride);
        self.data
    }

    /// `[batch, heads, tokens, dim]`.
    pub(crate) fn view(&self, heads: usize, dim: usize) -> Result<View<'a, f32>, AttentionError> {
        let Self { data, stride, batch, tokens } = *self;
        let per_batch = tokens.checked_mul(stride);
        let per_batch = per_batch.ok_or(AttentionError::SizeOverflow { operand: "module workspace" })?;
        View::with_strides(data, [batch, heads, tokens, dim], [per_batch, dim, stride, 1])
    }
}

impl Projections {
    pub(crate) fn new(weights: &ModuleWeights, options: &LinearOptions) -> Result<Self, AttentionError> {
        let parts = [&weights.query, &weights.key, &weights.value];
        let inputs = weights.query.inputs;
        if parts.iter().all(|part| part.inputs == inputs) {
            let (layer, columns) = Linear::stacked(parts.map(|part| part.dense()), inputs, options)?;
            return Ok(Projections::Stacked { layer, columns });
        }
        let [query, key, value] =
            parts.map(|part| Linear::stacked([part.dense()], part.inputs, options).map(|(layer, _)| layer));
        Ok(Projections::Separate(Box::new([query?, key?, value?])))
    }

    /// Whether [`Projections::value_head`] can tell heads of that size apart.
    pub(crate) fn has_value_heads(value_dim: usize) -> bool {
        value_dim.is_multiple_of(SECTION)
    }

    /// The values of one KV head: columns of a layer.
    pub(crate) fn value_head(&self, head: usize, value_dim: usize) -> (&Linear, Range<usize>) {
        let (layer, first) = match self {
            Projections::Stacked { layer, columns } => (layer, columns[2].start),
            Projections::Separate(layers) => (&layers[2], 0),
        };
        let start = first + head * value_dim;
        (layer, start..start + value_dim)
    }

    /// Projects those of query, key and value whose numbers are in `wanted`; `inputs` and `buffers` are theirs. Neighbours
    /// that are the same tensor go through the stacked layer together.
    pub(crate) fn run<'b, const N: usize>(
        &self,
        wanted: Range<usize>,
        inputs: [Tensor<'_>; N],
        buffers: &'b mut [Buffer],
    ) -> Result<[Projected<'b>; N], AttentionError> {
        debug_assert!(wanted.len() == N && buffers.len() == N);
        let mut projected = inputs.map(|input| {
            let [batch, tokens, _] = input.shape();
            Projected { data: &[], stride: 0, batch, tokens }
        });
        let mut buffers = buffers.iter_mut();
        for (group, layer, columns) in self.groups(wanted.clone(), &inputs) {
            let [batch, tokens, _] = inputs[group.start - wanted.start].shape();
            let stride = columns.len();
            let size = batch.checked_mul(tokens).and_then(|rows| rows.checked_mul(stride));
            let size = size.ok_or(AttentionError::SizeOverflow { operand: "module workspace" })?;
            let mut of_group = buffers.by_ref().take(group.len());
            let out = reserve(of_group.next().expect("a buffer for each"), size)?;
            of_group.for_each(drop);
            let x = inputs[group.start - wanted.start].data();
            layer.run_columns(x, columns.clone(), out, layer.spread());
            let out = &*out;
            for index in group {
                let start = match self {
                    Projections::Stacked { columns: all, .. } => all[index].start - columns.start,
                    Projections::Separate(_) => 0,
                };
                let projected = &mut projected[index - wanted.start];
                projected.data = out.get(start..).unwrap_or(&[]);
                projected.stride = stride;
            }
        }
        Ok(projected)
    }

    /// Which of query, key and value go through a layer together, and through which of its columns.
    pub(crate) fn groups<'a>(
        &'a self,
        wanted: Range<usize>,
        inputs: &'a [Tensor<'_>],
    ) -> impl Iterator<Item = (Range<usize>, &'a Linear, Range<usize>)> {
        let mut first = 0;
        std::iter::from_fn(move || {
            let input = inputs.get(first)?;
            let start = wanted.start + first;
            match self {
                Projections::Stacked { layer, columns } => {
                    first += inputs[first..].iter().take_while(|other| other.is(input)).count();
                    let end = wanted.start + first;
                    Some((start..end, layer, columns[start].start..columns[end - 1].end))
                }
                Projections::Separate(layers) => {
                    first += 1;
                    Some((start..start + 1, &layers[start], 0..layers[start].outputs()))
                }
            }
        })
    }
}
