//! Block masks drawn at random.

use super::Rng;
use lucid_attention::sparse::{BlockGrid, BlockLayout, BlockMask};

/// Layouts for `[sequences, heads]` over about so many `[queries, keys]`: of all sizes of blocks, some of one kind only,
/// some with partial blocks, longer and shorter than the call.
pub fn draw(rng: &mut Rng, [sequences, heads]: [usize; 2], [q_len, kv_len]: [usize; 2]) -> BlockMask {
    let shape = [rng.pick(&[1, sequences]), rng.pick(&[1, heads])];
    let mut size = || rng.pick(&[1, 2, 3, 5, 7, 16, 16, 17, 32, 48, 64, 64, 100, 300]);
    let [q_block, kv_block] = [size(), size()];
    let count = rng.between(1..=3);
    let layouts = (0..count).map(|_| {
        let longer = rng.between(0..=4);
        let grid = BlockGrid {
            q_len: if rng.chance(0.2) { rng.between(0..=q_len) } else { q_len + longer },
            kv_len: if rng.chance(0.2) { rng.between(0..=kv_len) } else { kv_len + longer },
            q_block,
            kv_block,
        };
        let (full, partial) = (rng.pick(&[0.0, 0.2, 0.5, 1.0]), rng.pick(&[0.0, 0.0, 0.3]));
        // Each block's draw, and that of each of its pairs.
        let [block, pair] = [(); 2].map(|()| rng.bits());
        let uniform = |seed: u64, row: usize, column: usize| {
            let mut rng = Rng::new(seed ^ ((row as u64) << 32 | column as u64));
            (rng.bits() >> 11) as f64 / (1u64 << 53) as f64
        };
        BlockLayout::from_fn(grid, |query, key| {
            let chosen = uniform(block, query / q_block, key / kv_block);
            chosen < full || chosen < full + partial && uniform(pair, query, key) < 0.5
        })
        .expect("blocks of some size")
    });
    let layouts: Vec<BlockLayout> = layouts.collect();
    let table = (0..shape[0] * shape[1]).map(|_| rng.between(0..=layouts.len() - 1)).collect();
    BlockMask::new(layouts, shape, table).expect("a layout for each")
}
