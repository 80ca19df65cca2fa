//! Down-sampling against its definition.

use crate::map;
use crate::page::Page;
use lucid_attention::Mask;
use lucid_attention::viz::Reduce;
use proptest::prelude::*;

/// What a block of numbers is, removed ones left out: `None` if nothing is left.
fn definition(block: &[f32], reduce: Reduce) -> Option<f32> {
    if block.is_empty() {
        return None;
    }
    if block.iter().any(|value| value.is_nan()) {
        return Some(f32::NAN);
    }
    Some(match reduce {
        Reduce::Max => block.iter().copied().fold(0.0, f32::max),
        Reduce::Mean => (block.iter().map(|&x| f64::from(x)).sum::<f64>() / block.len() as f64) as f32,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// A reduced picture has the colours of the picture of the numbers reduced by hand.
    #[test]
    fn as_defined(
        rows in 1usize..40, keys in 1usize..60, max_cells in 1usize..50, seed in any::<u64>(),
        mean in any::<bool>(), causal in any::<bool>(),
    ) {
        let reduce = if mean { Reduce::Mean } else { Reduce::Max };
        let mut state = seed | 1;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = (state >> 40) as f32 / (1 << 24) as f32;
            if number < 0.005 { f32::NAN } else { number }
        };
        let numbers: Vec<f32> = (0..rows * keys).map(|_| draw()).collect();
        let mask = if causal { Mask::causal() } else { Mask::NONE };

        let [rows_per, keys_per] = [rows, keys].map(|side| side.div_ceil(max_cells));
        let cells: Vec<Vec<Option<f32>>> = (0..rows).step_by(rows_per).map(|top| {
            (0..keys).step_by(keys_per).map(|left| {
                let block: Vec<f32> = (top..rows.min(top + rows_per))
                    .flat_map(|row| (left..keys.min(left + keys_per)).map(move |key| (row, key)))
                    .filter(|&(row, key)| !causal || key <= row)
                    .map(|(row, key)| numbers[row * keys + key])
                    .collect();
                definition(&block, reduce)
            }).collect()
        }).collect();
        let flat: Vec<f32> = cells.iter().flatten().map(|cell| cell.unwrap_or(0.0)).collect();
        prop_assume!(flat.iter().any(|value| *value > 0.0));

        let picture = map(&numbers, rows, keys).mask(mask).reduce(reduce).max_cells(max_cells).upper(1.0);
        let picture = Page::read(&picture.draw().unwrap());
        let by_hand = map(&flat, cells.len(), cells[0].len()).upper(1.0).draw().unwrap();
        let by_hand = Page::read(&by_hand);

        let note = format!(
            "each cell: {} of {rows_per} x {keys_per} (queries x keys)", if mean { "mean" } else { "largest" }
        );
        // A narrow picture breaks the line.
        let stated = picture.texts().join(" ").contains(&note);
        prop_assert_eq!(stated, rows_per > 1 || keys_per > 1);
        let [got, expected] = [&picture, &by_hand].map(|page| &page.panels[0].squares);
        prop_assert_eq!([got.len(), got[0].len()], [cells.len(), cells[0].len()]);
        for (row, (got, expected)) in got.iter().zip(expected).enumerate() {
            for (key, (got, expected)) in got.iter().zip(expected).enumerate() {
                let expected = if cells[row][key].is_none() { &picture.legend["masked"] } else { &expected.colour };
                prop_assert_eq!(&got.colour, expected, "cell {}, {}", row, key);
            }
        }
    }
}
