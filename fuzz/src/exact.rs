//! Exact attention on arbitrary shapes, masks, layouts, storage types and values: on every level the bits of the scalar
//! model, within the certified bound of the f64 reference, operands flush against inaccessible pages.

use crate::Tally;
use crate::common::cases::{Case, RATIOS, Rules, STORAGES, TYPES, VALUES, levels};
use crate::common::verify::verify;
use crate::size::{most_work, shrink};
use arbitrary::{Arbitrary, Result, Unstructured};

/// Shapes and options come from the input, data from its seed.
fn case(input: &mut Unstructured<'_>) -> Result<Case> {
    let mut case = Case {
        seed: u64::arbitrary(input)?,
        types: *input.choose(&TYPES)?,
        batch: input.int_in_range(0..=2)?,
        heads: *input.choose(&RATIOS[..4])?,
        q_len: input.int_in_range(0..=40)?,
        kv_len: input.int_in_range(0..=1100)?,
        head_dim: input.int_in_range(1..=80)?,
        v_dim: input.int_in_range(0..=80)?,
        storage: *input.choose(&STORAGES)?,
        values: *input.choose(&VALUES)?,
        rules: Rules::NONE,
    };
    for _ in 0..input.int_in_range(0..=5)? {
        input.choose(&Rules::OPTIONS)?(&mut case.rules);
    }
    let most = most_work(case.seed);
    // Every other case keeps its rows and keys as long as it can, and has few dimensions instead.
    if case.seed >> 5 & 1 == 0 {
        let each = case.batch * case.heads[0] * case.q_len * case.kv_len;
        for dim in [&mut case.head_dim, &mut case.v_dim] {
            shrink(most / 2, each, [dim]);
        }
    }
    let each = case.batch * case.heads[0] * (case.head_dim + case.v_dim);
    shrink(most, each, [&mut case.q_len, &mut case.kv_len]);
    Ok(case)
}

pub fn exact(data: &[u8], tally: &mut Tally) {
    let Ok(case) = case(&mut Unstructured::new(data)) else { return };
    // The model's answers are held against the bound, those of each level against the model: in two places each, of which
    // one has LSE, maxima and scores besides.
    for certificate in verify(case) {
        tally.certificate(&certificate, &|| format!("{case:?}"));
    }
    let [batch, heads] = [case.batch, case.heads[0]];
    let rows = batch * heads * case.q_len;
    let each = rows * (2 * case.v_dim + 2 + case.kv_len);
    tally.same += (levels().len() * each) as u64;
    tally.guarded += 2 * levels().len() as u64;
}
