//! Calls with block masks against dense ones with the same pairs: bit for bit, whatever is skipped.

use super::builders::{Built, build, maybe};
use crate::Tally;
use crate::call::{call as run, refused};
use crate::common::cases::{Rng, levels};
use arbitrary::{Result, Unstructured};
use lucid_attention::certify::{self, Bound};
use lucid_attention::sparse::{BlockGrid, BlockMask, Keep, Selection};
use lucid_attention::{AttentionError, Inputs, Mask, QueryStart, View};

/// A call but for its blocks.
#[derive(Debug)]
struct Call {
    seed: u32,
    batch: usize,
    heads: [usize; 2],
    q_len: usize,
    kv_len: usize,
    dims: [usize; 2],
    start: i64,
    causal: bool,
    window: Option<usize>,
    kv_lens: Option<Vec<usize>>,
}

/// Numbers of the operands.
#[derive(Clone)]
struct Numbers {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

pub(super) fn check(input: &mut Unstructured<'_>, tally: &mut Tally) -> Result<()> {
    const BLOCKS: [usize; 10] = [1, 2, 3, 5, 8, 16, 17, 32, 64, 100];
    let [q_block, kv_block] = [*input.choose(&BLOCKS)?, *input.choose(&BLOCKS)?];
    let q_block = if input.arbitrary()? { kv_block } else { q_block };
    let (q_len, kv_len): (usize, usize) = (input.int_in_range(0..=20)?, input.int_in_range(0..=70)?);
    // Now and then several tiles and splits.
    let kv_len = if input.ratio(1, 16)? { 16 * kv_len } else { kv_len };
    let mut built: Vec<Built> = Vec::new();
    for _ in 0..input.int_in_range(1..=3)? {
        let grid = BlockGrid {
            q_len: input.int_in_range(0..=q_len + 6)?,
            kv_len: input.int_in_range(kv_len.saturating_sub(20)..=kv_len + 6)?,
            q_block,
            kv_block,
        };
        built.extend(build(input, grid, tally)?);
    }
    let call = Call {
        seed: input.arbitrary()?,
        batch: input.int_in_range(1..=2)?,
        heads: *input.choose(&[[1, 1], [2, 1], [2, 2], [4, 2]])?,
        q_len: q_len.min(1 + 2000 / (kv_len + 1)),
        kv_len,
        dims: [input.int_in_range(1..=8)?, input.int_in_range(1..=8)?],
        start: if input.ratio(1, 16)? { input.arbitrary()? } else { input.int_in_range(-6..=12)? },
        causal: input.arbitrary()?,
        window: maybe(input, |input| input.int_in_range(0..=30))?,
        kv_lens: None,
    };
    let lens = maybe(input, |input| (0..call.batch).map(|_| input.int_in_range(0..=kv_len)).collect())?;
    let call = Call { kv_lens: lens, ..call };
    let Some((blocks, table)) = dealt(input, &built, &call, tally)? else { return Ok(()) };
    if input.ratio(1, 8)? {
        select(input, &call, tally)?;
    }
    let layout_of = |batch: usize, head: usize| {
        let [sequences, heads] = table.0;
        let at = if sequences == 1 { 0 } else { batch } * heads + if heads == 1 { 0 } else { head };
        &built[table.1[at]]
    };
    let numbers = call.numbers();
    // What no row attends to is poisoned.
    let mut poisoned = numbers.clone();
    let mut allowed = Vec::new();
    let mut attended = vec![false; call.batch * call.heads[1] * kv_len];
    for (batch, head) in (0..call.batch).flat_map(|batch| (0..call.heads[0]).map(move |head| (batch, head))) {
        for at in 0..call.q_len * kv_len {
            let (position, key) = (call.start.saturating_add((at / kv_len) as i64), at % kv_len);
            let in_block = layout_of(batch, head).allows(position, key);
            allowed.push(in_block);
            let kv_head = head / (call.heads[0] / call.heads[1]);
            attended[(batch * call.heads[1] + kv_head) * kv_len + key] |=
                in_block && call.leaves(batch, position, key);
        }
    }
    for (at, _) in attended.iter().enumerate().filter(|(_, attended)| !**attended) {
        poisoned.k[at * call.dims[0]..][..call.dims[0]].fill(f32::NAN);
        poisoned.v[at * call.dims[1]..][..call.dims[1]].fill(f32::INFINITY);
    }
    let shape = [call.batch, call.heads[0], call.q_len, kv_len];
    let allowed = View::new(&allowed, shape).expect("sized to it");
    let compared = call.compare([&numbers, &poisoned], &blocks, allowed, tally);
    compared.unwrap_or_else(|error| panic!("{error}, of {call:?} with {:?}", blocks.layouts()[0].grid()));
    Ok(())
}

/// Layouts dealt to sequences and heads, if they can be: shape and entries of the table too.
type Dealt = (BlockMask, ([usize; 2], Vec<usize>));

fn dealt(
    input: &mut Unstructured<'_>,
    built: &[Built],
    call: &Call,
    tally: &mut Tally,
) -> Result<Option<Dealt>> {
    let mut axis = |right: usize| -> Result<usize> {
        Ok(if input.ratio(1, 32)? {
            right + 1
        } else if input.arbitrary()? {
            1
        } else {
            right
        })
    };
    let shape = [axis(call.batch)?, axis(call.heads[0])?];
    let mut table = Vec::new();
    for _ in 0..shape[0] * shape[1] {
        let most = built.len().saturating_sub(1) + usize::from(input.ratio(1, 64)?);
        table.push(input.int_in_range(0..=most)?);
    }
    if input.ratio(1, 32)? {
        table.push(0);
    }
    let layouts: Vec<_> = built.iter().map(|built| built.layout.clone()).collect();
    let made = BlockMask::new(layouts.clone(), shape, table.clone());
    let right_size = table.len() == shape[0] * shape[1];
    if built.is_empty() || !right_size || table.iter().any(|&entry| entry >= built.len()) {
        refused(&made.expect_err(&format!("{table:?} of {}", built.len())), &["block mask"], tally);
        return Ok(None);
    }
    let blocks = made.expect("a table that fits");
    if shape[0] == 1 {
        assert_eq!(Ok(&blocks), BlockMask::per_head(layouts, table.clone()).as_ref(), "per head");
        tally.same += 1;
    }
    // A table for other sequences or heads is refused by the call, and nothing is written.
    let fits = |axis: usize, right: usize| shape[axis] == 1 || shape[axis] == right;
    if !fits(0, call.batch) || !fits(1, call.heads[0]) {
        let numbers = call.numbers();
        let inputs = call.inputs(&numbers, Mask::NONE.blocks(&blocks)).expect("sized to it");
        for level in levels() {
            refused(&run(&inputs, level, 1).expect_err("another table"), &["mask.blocks"], tally);
        }
        return Ok(None);
    }
    Ok(Some((blocks, (shape, table))))
}

/// Blocks selected by content: as many as the rule says, the same every time.
fn select(input: &mut Unstructured<'_>, call: &Call, tally: &mut Tally) -> Result<()> {
    let keep = if input.arbitrary()? {
        Keep::TopK(input.int_in_range(0..=4)?)
    } else {
        Keep::Mass(*input.choose(&[0.0, 0.5, 0.9, 1.0, 1.5, f32::NAN])?)
    };
    let selection = Selection {
        causal: input.arbitrary()?,
        sink_blocks: input.int_in_range(0..=2)?,
        local_blocks: input.int_in_range(0..=2)?,
        per_kv_head: input.arbitrary()?,
        ..Selection::new(keep)
    };
    let block = input.int_in_range(1..=20)?;
    let grid = BlockGrid { q_len: call.q_len, kv_len: call.kv_len, q_block: block, kv_block: block };
    let numbers = call.numbers();
    let inputs = call.inputs(&numbers, Mask::NONE).expect("sized to it");
    let k =
        View::new(&numbers.k, [call.batch, call.heads[1], call.kv_len, call.dims[0]]).expect("sized to it");
    let selected = selection.select(grid, inputs.q(), k);
    if matches!(keep, Keep::Mass(share) if !(0.0..=1.0).contains(&share)) {
        refused(&selected.expect_err("no share"), &["keep"], tally);
        return Ok(());
    }
    let selected = selected.expect("tokens that fit");
    for (batch, head) in (0..call.batch).flat_map(|batch| (0..call.heads[0]).map(move |head| (batch, head))) {
        let layout = selected.layout(batch, head).expect("one for each head");
        for row in 0..grid.rows() {
            let columns = (0..grid.columns()).filter(|&column| !selection.causal || column <= row);
            let stored: Vec<usize> =
                layout.iter().filter(|block| block.0 == row).map(|block| block.1).collect();
            let choice: Vec<usize> = columns.collect();
            assert!(
                stored.iter().all(|column| choice.contains(column)),
                "{selection:?}: row {row} has {stored:?}"
            );
            let local = |column: usize| column <= row && row < column + selection.local_blocks;
            // The last column, where keys end before the row does.
            let always =
                |&&column: &&usize| column < selection.sink_blocks || local(column) && row < grid.columns();
            let all = choice.iter().filter(always).all(|column| stored.contains(column));
            assert!(all, "{selection:?}: row {row} of {grid:?} has {stored:?}");
            let least = match keep {
                Keep::TopK(count) => count.min(choice.len()),
                Keep::Mass(_) => 1.min(choice.len()),
            };
            assert!(stored.len() >= least, "{selection:?}: row {row} has {stored:?}");
            tally.same += 1 + choice.len() as u64;
        }
    }
    Ok(())
}

impl Call {
    fn numbers(&self) -> Numbers {
        let rng = &mut Rng::new(self.seed.into());
        let mut drawn = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.normal()).collect() };
        Numbers {
            q: drawn(self.batch * self.heads[0] * self.q_len * self.dims[0]),
            k: drawn(self.batch * self.heads[1] * self.kv_len * self.dims[0]),
            v: drawn(self.batch * self.heads[1] * self.kv_len * self.dims[1]),
        }
    }

    /// Whether the other parts of the mask leave a key to a position.
    fn leaves(&self, batch: usize, position: i64, key: usize) -> bool {
        let (position, key_at) = (i128::from(position), key as i128);
        (!self.causal || key_at <= position)
            && self.window.is_none_or(|left| key_at >= position - left as i128)
            && self.kv_lens.as_ref().is_none_or(|lens| key < lens[batch])
    }

    fn inputs<'a>(
        &'a self,
        numbers: &'a Numbers,
        mask: Mask<'a>,
    ) -> std::result::Result<Inputs<'a, f32, f32>, AttentionError> {
        let &Self { batch, heads: [q_heads, kv_heads], q_len, kv_len, dims: [head_dim, v_dim], .. } = self;
        let q = View::new(&numbers.q, [batch, q_heads, q_len, head_dim])?;
        let k = View::new(&numbers.k, [batch, kv_heads, kv_len, head_dim])?;
        let v = View::new(&numbers.v, [batch, kv_heads, kv_len, v_dim])?;
        Ok(Inputs::new(q, k, v).mask(mask).q_start(QueryStart::At(self.start)))
    }

    fn compare(
        &self,
        [numbers, poisoned]: [&Numbers; 2],
        blocks: &BlockMask,
        allowed: View<'_, bool>,
        tally: &mut Tally,
    ) -> std::result::Result<(), AttentionError> {
        let mut mask = if self.causal { Mask::causal() } else { Mask::NONE };
        if self.window.is_some() {
            mask = mask.window(self.window, None);
        }
        if let Some(lens) = &self.kv_lens {
            mask = mask.kv_lens(lens);
        }
        let dense = self.inputs(numbers, mask.allowed(allowed))?;
        let sparse = self.inputs(numbers, mask.blocks(blocks))?;
        let poisoned = self.inputs(poisoned, mask.blocks(blocks))?;
        for level in levels() {
            let (expected, expected_lse) = run(&dense, level, 1)?;
            for (inputs, threads, what) in
                [(&sparse, 1, "alone"), (&sparse, 2, "on two"), (&poisoned, 1, "poisoned")]
            {
                let (out, lse) = run(inputs, level, threads)?;
                tally.same(&out, &expected, &|| format!("{level}, {what}: {self:?}"));
                tally.same(&lse, &expected_lse, &|| format!("{level}, {what}: LSE, {self:?}"));
            }
            // The dense call knows nothing of blocks.
            let view = View::new(&expected, dense.output_shape())?;
            let certificate = certify::check(&dense, &view, Some(&expected_lse), &Bound::exact(level))?;
            tally.certificate(&certificate, &|| format!("{level}: {self:?}"));
        }
        Ok(())
    }
}
