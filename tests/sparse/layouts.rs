//! Layouts from functions, ranges, masks and what other systems store; their densities.

use crate::common::cases::{Ask, Case, Place, Rng, assert_same, levels, run};
use crate::{GRIDS, assert_layout};
use lucid_attention::Mask;
use lucid_attention::sparse::{BigBird, BlockGrid, BlockLayout, BlockMask};

#[test]
fn from_a_function() {
    for grid in GRIDS {
        for (index, share) in [0.0, 0.02, 0.5, 0.98, 1.0].into_iter().enumerate() {
            let allows =
                |query: usize, key: usize| Rng::new((index << 40 | query << 20 | key) as u64).chance(share);
            let layout = BlockLayout::from_fn(grid, allows).expect("a layout");
            assert_layout(&layout, allows, &format!("a share of {share}"));
        }
    }
}

#[test]
fn from_ranges() {
    for (seed, grid) in GRIDS.into_iter().enumerate() {
        for count in 0..5 {
            let rng = &mut Rng::new((seed * 10 + count) as u64);
            let ends = |rng: &mut Rng| [(); 2].map(|()| rng.between(0..=grid.kv_len + 4));
            let all: Vec<Vec<_>> = (0..grid.q_len)
                .map(|_| (0..count).map(|_| ends(rng)).map(|[start, end]| start..end).collect())
                .collect();
            let layout =
                BlockLayout::from_ranges(grid, |query, list| list.extend(all[query].iter().cloned()));
            let allows = |query: usize, key: usize| all[query].iter().any(|range| range.contains(&key));
            assert_layout(&layout.expect("a layout"), allows, &format!("{count} ranges"));
        }
    }
}

#[test]
fn from_masks_of_intervals() {
    for grid in GRIDS {
        let masks = [
            Mask::NONE,
            Mask::causal(),
            Mask::causal().window(Some(9), None),
            Mask::NONE.window(Some(17), Some(3)),
            Mask::NONE.last_n_keys(1),
            Mask::prefix_lm(&[5]),
            Mask::causal().documents(&[0, 3, 20, 20, 40, 47]),
            Mask::NONE.kv_lens(&[11]),
        ];
        for mask in masks {
            let layout = BlockLayout::from_mask(grid, &mask).expect("a layout");
            let allows = |query: usize, key: usize| {
                let (q_pos, k_pos) = (query as i64, key);
                mask.allows(lucid_attention::Cell { sequence: 0, q_head: 0, query, q_pos, k_pos })
            };
            assert_layout(&layout, allows, &format!("{mask:?}"));
        }
    }
}

#[test]
fn from_compressed_rows_and_matrices() {
    let grid = BlockGrid::square(40, 16);
    let matrix = [true, false, false, true, true, false, false, false, true];
    let allows = |query: usize, key: usize| matrix[query / 16 * 3 + key / 16];
    let rows = [0, 1, 3, 4];
    for columns in [&[0, 0, 1, 2][..], &[0, 0, 1, 2, -1, -1]] {
        let layout = BlockLayout::from_csr(grid, &rows, columns).expect("a layout");
        assert_layout(&layout, allows, "compressed rows");
    }
    assert_layout(&BlockLayout::from_dense(grid, &matrix).expect("a layout"), allows, "a matrix");

    // Two layouts for five heads: 0, 1, 0, 1, 0.
    let rows = [0, 1, 3, 4, 0, 0, 0, 1];
    let mask = BlockMask::from_csr(grid, 2, 5, &rows, &[0, 0, 1, 2, 1, -1, -1, -1]).expect("a mask");
    for head in 0..5 {
        let of_second = |query: usize, key: usize| query >= 32 && key / 16 == 1;
        let layout = mask.layout(0, head).expect("a layout for each head");
        assert_layout(layout, |q, k| if head % 2 == 0 { allows(q, k) } else { of_second(q, k) }, "a head");
    }
    assert!(mask.layout(0, 5).is_none() && mask.layout(3, 4).is_some(), "one table for all sequences");

    let both: Vec<bool> = matrix.iter().chain(&[false; 9]).copied().collect();
    let mask = BlockMask::from_dense(grid, 2, &both).expect("a mask");
    assert_layout(mask.layout(0, 0).expect("a layout"), allows, "the first matrix");
    assert_layout(mask.layout(0, 1).expect("a layout"), |_, _| false, "the second matrix");
}

/// Rows and partial blocks that are equal are stored once, which is what makes layouts of long sequences small.
#[test]
fn what_is_equal_is_stored_once() {
    let grid = BlockGrid::square(1024, 16);
    let causal = BlockLayout::from_mask(grid, &Mask::causal()).expect("a layout");
    assert_eq!((causal.blocks(), causal.runs(), causal.patterns()), (64 * 65 / 2, 2 * 64 - 1, 1));
    let documents = Mask::NONE.documents(&[0, 512, 1024]);
    let documents = BlockLayout::from_mask(grid, &documents).expect("a layout");
    assert_eq!((documents.blocks(), documents.runs(), documents.patterns()), (2 * 32 * 32, 2, 0));
}

/// Layouts shared by heads: those that are equal are one, whoever made them, and the call is that of layouts of their own.
#[test]
fn equal_layouts_are_one() {
    let grid = BlockGrid::square(150, 16);
    let bigbird = |seed| BlockLayout::bigbird(grid, &BigBird::published(seed)).expect("a layout");
    let window = || BlockLayout::sliding_window(grid, Some(40), Some(0)).expect("a layout");
    let own = BlockMask::per_head(vec![window(), bigbird(1), window(), bigbird(1)], vec![3, 0, 1, 2]);
    let shared = BlockMask::per_head(vec![window(), bigbird(1)], vec![1, 0, 1, 0]).expect("a mask");
    assert_eq!(own.expect("a mask"), shared);
    assert_eq!(shared.layouts(), [window(), bigbird(1)]);

    let case = Case { heads: [4, 2], q_len: 150, kv_len: 150, head_dim: 16, v_dim: 16, ..Case::default() };
    let operands = case.operands::<f32, f32>(Place::Heap);
    for level in levels() {
        let of =
            |blocks: &BlockMask| run(&operands.inputs().mask(Mask::NONE.blocks(blocks)), &Ask::all(level));
        let all = of(&shared);
        // Each head beside others that differ.
        for (head, layout) in [bigbird(1), window(), bigbird(1), window()].into_iter().enumerate() {
            let table = (0..4).map(|other| usize::from(other == head)).collect();
            let other = BlockMask::per_head(vec![bigbird(9), layout], table).expect("a mask");
            let rows = head * 150 * 16..(head + 1) * 150 * 16;
            assert_same(&of(&other).out[rows.clone()], &all.out[rows], &format!("{level}, head {head}"));
        }
    }
}

#[test]
fn a_mask_of_several_layouts() {
    let grid = BlockGrid::square(32, 16);
    let [none, all, diagonal] = [0.0, 1.0, 0.5].map(|kind: f64| {
        BlockLayout::from_blocks(grid, |row, column| kind == 1.0 || kind == 0.5 && row == column).unwrap()
    });
    assert_eq!([&none, &all, &diagonal].map(BlockLayout::density), [0.0, 1.0, 0.5]);
    assert_eq!([&none, &all, &diagonal].map(BlockLayout::causal_density), [0.0, 1.0, 2.0 / 3.0]);
    let mask = BlockMask::new(vec![none, all, diagonal], [2, 2], vec![0, 1, 2, 1]).expect("a mask");
    assert_eq!(mask.density(), (0.0 + 1.0 + 0.5 + 1.0) / 4.0);
    assert_eq!(mask.causal_density(), (0.0 + 1.0 + 2.0 / 3.0 + 1.0) / 4.0);
    let (nothing, diagonal, everything) = ([false; 2], [true, false], [true; 2]);
    for (sequence, head, expected) in
        [(0, 0, nothing), (0, 1, everything), (1, 0, diagonal), (1, 1, everything), (2, 0, nothing)]
    {
        let got = [4, 20].map(|key| mask.allows(sequence, head, 3, key));
        assert_eq!(got, expected, "sequence {sequence}, head {head}");
    }
    assert_eq!(mask.layouts().len(), 3);
}

/// The densities that patterns are quoted by, blocks of 64 (see `long-sequences` tables of the literature).
#[test]
fn published_densities() {
    let close = |got: f64, expected: f64, what: &str| {
        assert!((got - expected).abs() < 6e-4, "{what}: a density of {got}, expected {expected}");
    };
    let lengths = [1024, 2048, 4096, 8192];
    for (len, expected) in lengths.into_iter().zip([0.531, 0.516, 0.508, 0.504]) {
        let causal = BlockLayout::from_mask(BlockGrid::square(len, 64), &Mask::causal()).unwrap();
        close(causal.density(), expected, "causal");
        assert_eq!(causal.causal_density(), 1.0, "causal of causal");
    }
    for (window, shares) in [(256, [0.515, 0.284, 0.149, 0.076]), (512, [0.794, 0.477, 0.260, 0.135])] {
        for (len, expected) in lengths.into_iter().zip(shares) {
            let mask = Mask::causal().window(Some(window), None);
            let layout = BlockLayout::from_mask(BlockGrid::square(len, 64), &mask).unwrap();
            close(layout.causal_density(), expected, "a window");
        }
    }
}
