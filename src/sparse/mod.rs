//! Block-sparse attention: layouts of blocks, how to make them, and the mask they become.
//!
//! ```text
//! keys      0   64  128  192  256  320          a layout says which blocks a row of blocks visits
//! row 0     ##                                  # full: no bits, runs as in a dense call
//! row 1     #####                               / partial: bits, equal blocks stored once
//! row 2     ##  ######
//! row 3     ##       #####/                     what is blank is not scored, nor read but for the rest
//!                                               of a panel of 64 keys
//! ```
//!
//! A [`BlockLayout`] is made by one of the builders below, a [`BlockMask`] deals layouts to sequences and heads, and
//! [`Mask::blocks`](crate::Mask::blocks) makes it a part of a mask, which composes with every other part: a causal
//! pattern is [`Mask::causal`](crate::Mask::causal) and a layout. There is no engine here: the exact kernel visits the blocks
//! ([`crate::Plan`]), and results are those of a dense call with the same pairs, bit for bit.
//!
//! | layout | from |
//! |---|---|
//! | [`BlockLayout::from_csr`], [`BlockMask::from_csr`] | compressed rows, onnxruntime's `SparseAttention` |
//! | [`BlockLayout::from_dense`], [`BlockLayout::from_blocks`] | a matrix, or a function, of blocks |
//! | [`BlockLayout::from_fn`], [`BlockLayout::from_ranges`], [`BlockLayout::from_mask`] | what each query attends: pairs, ranges, a mask of intervals |
//! | [`BlockLayout::sliding_window`], [`BlockLayout::sink_and_recent`] | windows, streaming heads |
//! | [`BlockLayout::longformer`], [`BlockLayout::bigbird`] | global tokens or blocks beside a window |
//! | [`BlockLayout::strided`], [`BlockLayout::fixed`] | Sparse Transformer |
//! | [`Selection`] | the tokens themselves: mean queries against mean keys |
//! | [`BlockMask::per_head`] | any mix of them |
//! | [`Lsh`] | hashing: tokens are sorted, and a layout of its own says who meets whom |

mod block_mask;
mod builder;
mod elements;
mod import;
mod layout;
mod lsh;
mod memory;
mod patterns;
mod select;

pub use block_mask::BlockMask;
pub(crate) use block_mask::RowBlocks;
pub use layout::{BlockGrid, BlockKind, BlockLayout};
pub use lsh::{Lsh, LshOutput, Rotations};
pub use patterns::BigBird;
pub use select::{Keep, Selection};
