//! The kinds of attention that are measured, each as a call of the same operands.

use super::common::Tensors;
use super::memory::held;
use super::{DIM, HEADS};
use lucid_attention::linear::{FeatureMap, LinearInputs, LinearPlan, Norms, Projection};
use lucid_attention::sparse::{BigBird, BlockGrid, BlockLayout, BlockMask, Lsh, Rotations};
use lucid_attention::{Inputs, Mask, Outputs, Plan, Problem, View, ViewMut};
use std::hint::black_box;

/// Features of FAVOR+.
const FEATURES: usize = 128;
/// Of layouts and of LSH's chunks.
const BLOCK: usize = 64;

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Method {
    Dense {
        causal: bool,
    },
    /// The last 512 tokens, causal.
    Window,
    BigBird,
    Favor {
        causal: bool,
    },
    /// Causal, two rounds.
    Lsh,
}

/// Writes to an output of the operands' shape.
type Call<'a> = Box<dyn FnMut(&mut [f32]) + Send + 'a>;

/// A call made ready.
pub(crate) struct Prepared<'a> {
    pub(crate) call: Call<'a>,
    /// Bytes of the plan: layouts, directions, rotations.
    pub(crate) plan: usize,
    /// Bytes of outputs that a call returns rather than writes.
    pub(crate) returned: usize,
}

impl Method {
    /// The one that the others are held against comes first.
    pub(crate) const ALL: [Method; 7] = [
        Method::Dense { causal: false },
        Method::Dense { causal: true },
        Method::Window,
        Method::BigBird,
        Method::Favor { causal: false },
        Method::Favor { causal: true },
        Method::Lsh,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Method::Dense { causal: false } => "dense, full",
            Method::Dense { causal: true } => "dense, causal",
            Method::Window => "window of 512, causal",
            Method::BigBird => "BigBird",
            Method::Favor { causal: false } => "FAVOR+ of 128, full",
            Method::Favor { causal: true } => "FAVOR+ of 128, causal",
            Method::Lsh => "LSH, 2 rounds, causal",
        }
    }

    /// Plan and scratch for so many tokens.
    pub(crate) fn prepare(self, tensors: &Tensors<f32>, len: usize) -> Prepared<'_> {
        let grid = BlockGrid::square(len, BLOCK);
        match self {
            Method::Dense { causal: false } => exact(tensors, len, Mask::NONE, || None),
            Method::Dense { causal: true } => exact(tensors, len, Mask::causal(), || None),
            Method::Window => exact(tensors, len, Mask::causal(), || {
                Some(BlockLayout::sliding_window(grid, Some(511), Some(0)).expect("a layout"))
            }),
            Method::BigBird => exact(tensors, len, Mask::NONE, || {
                Some(BlockLayout::bigbird(grid, &BigBird::published(1)).expect("a layout"))
            }),
            Method::Favor { causal } => favor(tensors, len, causal),
            Method::Lsh => lsh(tensors, len),
        }
    }
}

fn shape(len: usize) -> [usize; 4] {
    [1, HEADS, len, DIM]
}

fn view(data: &[f32], len: usize) -> View<'_, f32> {
    View::new(data, shape(len)).expect("operands fit their shape")
}

fn output(out: &mut [f32], len: usize) -> ViewMut<'_, f32> {
    ViewMut::new(out, shape(len)).expect("out fits its shape")
}

/// The exact kernel under a mask, and under a layout of blocks if there is one.
fn exact<'a>(
    Tensors { q, k, v }: &'a Tensors<f32>,
    len: usize,
    mask: Mask<'static>,
    layout: impl FnOnce() -> Option<BlockLayout>,
) -> Prepared<'a> {
    let before = held();
    let blocks = layout().map(BlockMask::from);
    let plan = Plan::new(&Problem::new(HEADS, DIM, len, len)).expect("a plan");
    let size = held() - before;
    let mut workspace = plan.workspace().expect("memory");
    let call = move |out: &mut [f32]| {
        let mask = blocks.as_ref().map_or(mask, |blocks| mask.blocks(blocks));
        let inputs = Inputs::new(view(q, len), view(k, len), view(v, len)).mask(mask);
        plan.run(black_box(&inputs), Outputs::new(output(out, len)), &mut workspace).expect("a checked call");
    };
    Prepared { call: Box::new(call), plan: size, returned: 0 }
}

fn favor(Tensors { q, k, v }: &Tensors<f32>, len: usize, causal: bool) -> Prepared<'_> {
    let before = held();
    let projection = Projection::orthogonal(FEATURES, DIM, Norms::Chi, 1).expect("memory");
    let problem = Problem::new(HEADS, DIM, len, len);
    let plan = LinearPlan::new(&problem, &FeatureMap::Positive(projection)).expect("a plan");
    let size = held() - before;
    let mut workspace = plan.workspace().expect("memory");
    let call = move |out: &mut [f32]| {
        let inputs = LinearInputs::new(view(q, len), view(k, len), view(v, len));
        let inputs = if causal { inputs.causal() } else { inputs };
        plan.run(black_box(&inputs), output(out, len), &mut workspace).expect("a checked call");
    };
    Prepared { call: Box::new(call), plan: size, returned: 0 }
}

/// Queries are keys; hashing is a part of the call, which returns its output and the LSE.
fn lsh(Tensors { q, v, .. }: &Tensors<f32>, len: usize) -> Prepared<'_> {
    let before = held();
    // As many buckets as make chunks of one each, in pairs.
    let lsh = Lsh { rounds: 2, buckets: (len / BLOCK).max(2).next_multiple_of(2), ..Lsh::new(BLOCK) };
    let rotations = Rotations::seeded(1, 1, DIM, lsh.rounds, lsh.buckets).expect("memory");
    let size = held() - before;
    let call = move |_: &mut [f32]| {
        let (qk, v) = (black_box(view(q, len)), view(v, len));
        let buckets = rotations.buckets(qk).expect("memory");
        black_box(lsh.attention(qk, v, &buckets, Mask::causal()).expect("a checked call"));
    };
    let returned = HEADS * len * (DIM + 1) * size_of::<f32>();
    Prepared { call: Box::new(call), plan: size, returned }
}
