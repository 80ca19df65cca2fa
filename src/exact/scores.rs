//! Scores and probabilities on request, for chosen heads and rows: a pass of its own over the keys, with the kernels of
//! the main one, so that nothing of size `q_len x kv_len` is held and the output's bits do not depend on it. Metrics that
//! need the finished probabilities look at them here, a tile at a time.
//!
//! In both tiers: in the bf16 one they are those of its own dot products, probabilities before rounding.
//! Probabilities need the row's final maximum and sum, so their keys are visited twice.

use super::block::Block;
use super::call::Call;
use super::columns::Columns;
use super::finish::with_sink;
use super::group::{GroupShape, Visible, WeighGroup, row_bits, shape_row};
use super::peaks::{Details, add_top_keys};
use super::rows::BlockRow;
use super::tier::{Accumulators, At, Engine, Tier, TierKernel};
use super::workspace::Scratch;
use crate::element::Element;
use crate::error::AttentionError;
use crate::isa::Isa;
use crate::kernel::MAX_ROWS;
use crate::mask::{TILE, TileBits};
use crate::math;
use crate::metrics::{MetricsOptions, RowMetrics};
use crate::outputs::{ScoreStage, TopKey};
use crate::parallel;
use crate::rows::SharedRows;
use crate::softmax::{Partial, RowState, mask_at, shift};
use std::f32::consts::LN_2;
use std::ops::Range;

/// Where scores go.
#[derive(Clone, Copy)]
pub(crate) enum Written<'a> {
    /// To `[batch, heads, rows, kv_len]`.
    Scores(SharedRows<'a, f32>),
    /// Of those that are largest, each row's, to `[batch, heads, rows, k]`.
    Top(SharedRows<'a, TopKey>),
    /// Nowhere: what [`Details`] makes of them goes to `[batch, heads, rows, 1]`.
    Metrics { rows: SharedRows<'a, RowMetrics>, options: MetricsOptions },
}

/// Rows of which scores are wanted.
#[derive(Clone, Copy)]
pub(crate) struct Chosen<'a> {
    /// The chosen query heads; `None` for all.
    heads: Option<&'a [usize]>,
    /// The chosen query tokens; `None` for all.
    rows: Option<&'a [usize]>,
    batch: usize,
    head_count: usize,
    row_count: usize,
}

impl<'a> Chosen<'a> {
    /// All rows of queries `[batch, q_heads, q_len]`.
    pub(crate) fn all([batch, head_count, row_count]: [usize; 3]) -> Self {
        Self { heads: None, rows: None, batch, head_count, row_count }
    }

    /// Lists of heads and rows of queries `[batch, q_heads, q_len]`, checked; `operands` are their names.
    pub(crate) fn new(
        operands: [&'static str; 2],
        [heads, rows]: [Option<&'a [usize]>; 2],
        [batch, q_heads, q_len]: [usize; 3],
    ) -> Result<Self, AttentionError> {
        let count = |operand, list: Option<&[usize]>, limit: usize| match list {
            None => Ok(limit),
            Some(list) => match list.iter().find(|&&index| index >= limit) {
                Some(got) => {
                    let (expected, got) = ("indices below the number there are", format!("{got} of {limit}"));
                    Err(AttentionError::Value { operand, expected, got })
                }
                None => Ok(list.len()),
            },
        };
        let head_count = count(operands[0], heads, q_heads)?;
        let row_count = count(operands[1], rows, q_len)?;
        Ok(Self { heads, rows, batch, head_count, row_count })
    }

    /// That of an output with `last` numbers of each row.
    pub(crate) fn shape(&self, last: usize) -> [usize; 4] {
        [self.batch, self.head_count, self.row_count, last]
    }
}

/// What to write where.
#[derive(Clone, Copy)]
pub(crate) struct ScoreTargets<'a> {
    pub(crate) stage: ScoreStage,
    pub(crate) written: Written<'a>,
    pub(crate) chosen: Chosen<'a>,
}

impl ScoreTargets<'_> {
    /// Whether there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        match self.written {
            Written::Scores(out) => out.is_empty(),
            Written::Top(out) => out.is_empty(),
            Written::Metrics { rows, .. } => rows.is_empty(),
        }
    }
}

/// Writes all that was asked for.
pub(crate) fn run<T: Element>(
    engine: Engine,
    call: &Call<'_, T>,
    targets: &ScoreTargets<'_>,
    scratches: &mut [Scratch],
) {
    let Chosen { batch, head_count, row_count, .. } = targets.chosen;
    let chunks = row_count.div_ceil(MAX_ROWS);
    let tasks = batch * head_count * chunks;
    parallel::for_each_task(tasks, scratches, &|task, scratch: &mut Scratch| {
        let (index, chunk) = (task / chunks, task % chunks);
        let (batch, head) = (index / head_count, index % head_count);
        let mut rows = chunk * MAX_ROWS..row_count.min((chunk + 1) * MAX_ROWS);
        while !rows.is_empty() {
            let token = |row: usize| targets.chosen.rows.map_or(row, |rows| rows[row]);
            let find = |row: usize| call.sequences.find(batch, token(row));
            let sequence = find(rows.start);
            let same = rows.clone().take_while(|&row| find(row) == sequence).count();
            let place = Place { sequence, head, rows: rows.start..rows.start + same };
            engine.dispatch(ScoreKernel { call, targets, place, scratch });
            rows.start += same;
        }
    });
}

/// Some chosen rows of one sequence and head.
struct Place {
    sequence: usize,
    /// Index among the chosen heads.
    head: usize,
    /// Indices among the chosen rows.
    rows: Range<usize>,
}

struct ScoreKernel<'a, 's, T: Element> {
    call: &'a Call<'a, T>,
    targets: &'a ScoreTargets<'a>,
    place: Place,
    scratch: &'s mut Scratch,
}

impl<T: Element> TierKernel for ScoreKernel<'_, '_, T> {
    #[inline(always)]
    fn run<I: Isa, E: Tier<I>>(self, isa: I) {
        let ScoreKernel { call, targets, place, scratch } = self;
        let sequence = call.sequences.get(place.sequence);
        let q_head = targets.chosen.heads.map_or(place.head, |heads| heads[place.head]);
        scratch.rows.clear();
        for row in place.rows.clone() {
            let token = targets.chosen.rows.map_or(row, |rows| rows[row]);
            let mut described = BlockRow::EMPTY;
            described.describe(call, &sequence, token - sequence.q_first, q_head);
            scratch.rows.push(described);
        }
        E::pack_queries(isa, call, &sequence, &scratch.rows, &mut scratch.operands);
        let kv_head =
            mutant!("scores-of-tiled-heads", q_head / call.problem.group(), q_head % call.problem.kv_heads);
        let (rows, keys) = (0..place.rows.len(), 0..sequence.kv_len);
        let block = Block {
            sequence,
            kv_head,
            heads: 1,
            head_rows: rows.len(),
            rows,
            keys: keys.clone(),
            shares_keys: false,
        };
        let source = E::open(call, &block, kv_head);
        if targets.stage == ScoreStage::Softmax {
            sum_rows::<I, E, T>(isa, call, &source, scratch, &keys);
        }
        let mut details = [Details::EMPTY; MAX_ROWS];
        for tile in tiles(call, &keys) {
            if call.is_stopped() {
                return;
            }
            score_tile::<I, E, T>(isa, &source, scratch, &tile);
            let columns = 0..tile.len().next_multiple_of(16);
            let rows = scratch.rows.iter().zip(scratch.scores.chunks_mut(TILE));
            for (index, (row, scores)) in rows.enumerate() {
                let allowed = write_row(isa, call, targets.stage, row, &tile, columns.clone(), scores);
                match &targets.written {
                    Written::Scores(out) => {
                        // SAFETY: tasks partition the chosen (head, row) pairs.
                        let out = unsafe { out.row(sequence.batch, place.head, place.rows.start + index) };
                        out[tile.clone()].copy_from_slice(&scores[..tile.len()]);
                    }
                    Written::Top(out) => {
                        // SAFETY: as above.
                        let out = unsafe { out.row(sequence.batch, place.head, place.rows.start + index) };
                        if tile.start == 0 {
                            out.fill(TopKey::NONE);
                        }
                        add_top_keys(isa, out, tile.start, &scores[columns.clone()], &allowed);
                    }
                    Written::Metrics { options, .. } => {
                        details[index].add(isa, options, &scores[columns.clone()], &allowed);
                    }
                }
            }
        }
        for (index, details) in place.rows.zip(&details) {
            match &targets.written {
                Written::Scores(out) => {
                    // SAFETY: as above.
                    let out = unsafe { out.row(sequence.batch, place.head, index) };
                    let softmax = targets.stage == ScoreStage::Softmax;
                    out[keys.end..].fill(if softmax { 0.0 } else { f32::NEG_INFINITY });
                }
                Written::Top(out) if keys.is_empty() => {
                    // SAFETY: as above.
                    unsafe { out.row(sequence.batch, place.head, index) }.fill(TopKey::NONE);
                }
                Written::Top(_) => {}
                Written::Metrics { rows, options } => {
                    // SAFETY: as above.
                    let row = unsafe { rows.row(sequence.batch, place.head, index) };
                    row.iter_mut().for_each(|row| details.write(options, row));
                }
            }
        }
    }
}

/// The tiles of some keys that start at 0.
fn tiles<T: Element>(call: &Call<'_, T>, keys: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<T> {
    let (end, tile) = (keys.end, call.order.tile);
    (0..end).step_by(tile).map(move |start| start..end.min(start + tile))
}

/// Scaled dot products of all rows in scratch with a tile.
#[inline(always)]
fn score_tile<I: Isa, E: Tier<I>, T: Element>(
    isa: I,
    source: &E::Source<'_, T>,
    scratch: &mut Scratch,
    tile: &Range<usize>,
) {
    let Scratch { rows, operands, scores, .. } = scratch;
    let columns = Columns::up_to(tile.len());
    E::enter_tile(isa, source, operands, tile, columns);
    for run in columns.runs() {
        E::score_group(isa, source, operands, 0..rows.len(), At::alone(tile, rows.len()), &run, scores);
    }
}

/// Leaves each row's final maximum and sum, sink included, in its total.
#[inline(always)]
fn sum_rows<I: Isa, E: Tier<I>, T: Element>(
    isa: I,
    call: &Call<'_, T>,
    source: &E::Source<'_, T>,
    scratch: &mut Scratch,
    keys: &Range<usize>,
) {
    for tile in tiles(call, keys) {
        if call.is_stopped() {
            return;
        }
        score_tile::<I, E, T>(isa, source, scratch, &tile);
        if tile.start.is_multiple_of(call.order.split) {
            for row in &mut scratch.rows {
                close_split(isa, row);
            }
        }
        let Scratch { rows, scores, bits, shared, .. } = &mut *scratch;
        let shape = GroupShape::all_columns(call, rows, &tile, bits);
        let acc = Accumulators { rows: 0, acc: &mut [], stride: 1 };
        isa.call(WeighGroup {
            call,
            rows,
            measured: None,
            tile: &tile,
            shape: &shape,
            scores,
            bits,
            shared,
            acc,
        });
    }
    for row in &mut scratch.rows {
        close_split(isa, row);
        row.total = row.total.finished();
        if let Some(sinks) = call.sinks {
            let sink = mutant!("probabilities-without-the-sink", sinks[row.mask.q_head], f32::NEG_INFINITY);
            row.total = with_sink(isa, &row.total, sink).0;
        }
    }
}

/// Joins a row's split to its total and starts another.
#[inline(always)]
fn close_split<I: Isa>(isa: I, row: &mut BlockRow) {
    let part = row.state.fold(isa);
    if !row.total.seen {
        row.total = part;
    } else if part.seen {
        row.total.merge(isa, &part);
    }
    row.state = RowState::EMPTY;
}

/// Turns scaled dot products of a tile into what the stage asks for; returns which columns it takes for keys of the row.
#[inline(always)]
fn write_row<I: Isa, T: Element>(
    isa: I,
    call: &Call<'_, T>,
    stage: ScoreStage,
    row: &BlockRow,
    tile: &Range<usize>,
    columns: Range<usize>,
    scores: &mut [f32],
) -> TileBits {
    let (mut bits, mut visible) = (TileBits::default(), Visible::All);
    let Partial { max, sum, seen } = row.total;
    match stage {
        ScoreStage::Raw => {}
        ScoreStage::Capped => call.rules.cap(isa, scores, columns.clone()),
        ScoreStage::Biased | ScoreStage::Softmax => {
            if call.mask.has_bits() {
                bits = row_bits(call, row, tile);
            }
            visible = shape_row(isa, call, row, tile, Columns::up_to(tile.len()), scores, &mut bits);
        }
    }
    let empty = stage == ScoreStage::Softmax && !seen;
    let bits = if empty {
        TileBits::default()
    } else {
        *visible.masked(&bits, &columns).unwrap_or(&[u64::MAX; TILE / 64])
    };
    for column in columns.step_by(I::LANES) {
        let scores = &mut scores[column..];
        let allowed = mask_at(isa, &bits, column);
        let t = isa.load(scores);
        let (score, removed) = match stage {
            ScoreStage::Softmax => {
                let weight = math::vector::exp2(isa, isa.sub(t, isa.splat(shift(max))));
                (isa.div(weight, isa.splat(sum)), 0.0)
            }
            _ => {
                let removed = mutant!("removed-score-is-finite", f32::NEG_INFINITY, f32::MIN);
                (isa.mul(t, isa.splat(LN_2)), removed)
            }
        };
        isa.store(isa.select(allowed, score, isa.splat(removed)), scores);
    }
    bits
}
