//! Block masks: layouts against the definitions of their patterns, calls against dense ones with the same pairs; LSH
//! attention against sets of pairs.
//!
//! Goals that are times are held by the bench `sparse`, which is run by hand; what they rest on (how many pairs layouts
//! hold, the work that is expected of calls and how it is dealt out, what a layout asks) is counted here.
//!
//! | law | where |
//! |---|---|
//! | G1 within 1e-5 of the f64 reference: patterns, ragged lengths, grouped heads, empty rows, types, levels | `exactness` (`close_to_the_reference`); bit for bit against dense calls, the rest of it |
//! | G2 layouts of everything cost what the dense call does | `exactness` (`layouts_of_everything_are_nothing_special`), `work` (`everything_is_dealt_out_as_a_dense_call`); bench `sparse`, `full`, `causal_full` |
//! | G3 time falls with density | `work` (`what_is_visited_is_the_density`); bench `sparse`, windows and `bigbird` |
//! | G4 scattered columns cost what adjacent ones do | `work` (`scattered_columns_are_as_many`); bench `sparse`, `columns_random`, `columns_contiguous` |
//! | G5 layouts of intervals take O(1) for each query | `work` (`intervals_are_asked_for_once`); bench `sparse`, `build` |
//! | R1 imported rotations give the reference codes' buckets, permutation and outputs | `lsh` (`buckets_are_the_argmax`, `pairs_and_rounds`), `src/sparse/lsh/order.rs` |
//! | R2 the clean form is attention to a set of pairs | `lsh` (`pairs_and_rounds`, `masks_on_original_positions`) |
//! | R3 one chunk is dense attention; a first row sees itself | `lsh` (`one_chunk_is_dense`) |
//! | R4 near duplicates meet | `lsh_calls` (`neighbours_meet`) |
//! | R5 a query visits two chunks a round, whatever the length | `lsh_calls` (`queries_visit_few`); bench `sparse`, `lsh` |
//! | R6 ties keep their order; batches and threads do not show | `lsh_calls` (`a_head_is_its_own`, `any_number_of_threads`) |

#[path = "../common/mod.rs"]
mod common;

mod errors;
mod exactness;
mod layouts;
mod lsh;
mod lsh_calls;
mod patterns;
mod selection;
mod work;

use lucid_attention::AttentionError;
use lucid_attention::sparse::{BlockGrid, BlockKind, BlockLayout};

/// Grids around every edge: blocks that divide lengths and do not, square and not, larger than all there is.
const GRIDS: [BlockGrid; 8] = [
    BlockGrid { q_len: 64, kv_len: 64, q_block: 16, kv_block: 16 },
    BlockGrid { q_len: 70, kv_len: 70, q_block: 16, kv_block: 16 },
    BlockGrid { q_len: 61, kv_len: 90, q_block: 7, kv_block: 5 },
    BlockGrid { q_len: 40, kv_len: 150, q_block: 8, kv_block: 70 },
    BlockGrid { q_len: 33, kv_len: 33, q_block: 1, kv_block: 1 },
    BlockGrid { q_len: 9, kv_len: 20, q_block: 64, kv_block: 64 },
    BlockGrid { q_len: 0, kv_len: 20, q_block: 4, kv_block: 4 },
    BlockGrid { q_len: 20, kv_len: 0, q_block: 4, kv_block: 4 },
];

/// Asserts that a layout allows what a definition does, and stores exactly the blocks that hold some of it, in order.
#[track_caller]
fn assert_layout(layout: &BlockLayout, allows: impl Fn(usize, usize) -> bool, what: &str) {
    let grid = layout.grid();
    let mut expected = Vec::new();
    for row in 0..grid.rows() {
        let queries = row * grid.q_block..grid.q_len.min((row + 1) * grid.q_block);
        for column in 0..grid.columns() {
            let keys = column * grid.kv_block..grid.kv_len.min((column + 1) * grid.kv_block);
            let pairs = queries.clone().flat_map(|query| keys.clone().map(move |key| (query, key)));
            let all = queries.len() * keys.len();
            match pairs.filter(|&(query, key)| allows(query, key)).count() {
                0 => {}
                count if count == all => expected.push((row, column, BlockKind::Full)),
                _ => expected.push((row, column, BlockKind::Partial)),
            }
        }
    }
    assert_eq!(layout.iter().collect::<Vec<_>>(), expected, "{what}, {grid:?}: blocks");
    assert_eq!(layout.blocks(), expected.len(), "{what}, {grid:?}: their number");
    for query in 0..grid.q_len + 3 {
        for key in 0..grid.kv_len + 3 {
            let inside = query < grid.q_len && key < grid.kv_len;
            let expected = inside && allows(query, key);
            assert_eq!(
                layout.allows(query as i64, key),
                expected,
                "{what}, {grid:?}: query {query}, key {key}"
            );
        }
    }
    assert!(!layout.allows(-1, 0), "{what}, {grid:?}: a negative position");
}

/// Asserts that something is refused as expected.
#[track_caller]
fn assert_error<T: std::fmt::Debug>(got: Result<T, AttentionError>, expected: &AttentionError) {
    assert_eq!(got.expect_err("an error").to_string(), expected.to_string());
}
