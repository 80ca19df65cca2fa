//! Buckets by random rotations: the nearest of the axes of a random frame, and their opposites.

use super::super::memory::{filled, reserved};
use super::spread::{parts, piece, workers};
use crate::element::Element;
use crate::error::{AttentionError, check_size};
use crate::isa::{Isa, Kernel, Level};
use crate::kernel::MAX_ROWS;
use crate::kernel::pack::widen;
use crate::kernel::prefetch::Near;
use crate::kernel::score::ScoreRows;
use crate::kernel::tiles::ScorePanels;
use crate::panels::{KeyPanels, PANEL};
use crate::parallel::for_each_part_with;
use crate::random::Normals;
use crate::tile;
use crate::view::View;
use std::ops::Range;

/// The directions that tokens are hashed by: `buckets / 2` for each round, and for each head or for all.
#[derive(Debug)]
pub struct Rotations {
    /// `[1, heads, rounds * buckets / 2, dim]`.
    directions: KeyPanels<f32>,
    rounds: usize,
    buckets: usize,
}

impl Rotations {
    /// Independent normal numbers that depend on the seed only, whatever the system; `heads` is 1 to serve all.
    ///
    /// # Errors
    /// `buckets` is odd or 0, another size is 0, or memory cannot be had.
    pub fn seeded(
        seed: u64,
        heads: usize,
        dim: usize,
        rounds: usize,
        buckets: usize,
    ) -> Result<Self, AttentionError> {
        let len = size([heads, dim, rounds, buckets / 2])?;
        let mut values = reserved(len)?;
        values.extend(Normals::new(seed, 0).take(len).map(|x| x as f32));
        Self::import(heads, dim, rounds, buckets, &values)
    }

    /// Someone else's: `[heads, dim, rounds, buckets / 2]`, contiguous, which is how Hugging Face's Reformer and, with one
    /// head, reformer-pytorch have them.
    ///
    /// # Errors
    /// As [`Rotations::seeded`]; or there is another number of values.
    pub fn import(
        heads: usize,
        dim: usize,
        rounds: usize,
        buckets: usize,
        values: &[f32],
    ) -> Result<Self, AttentionError> {
        check_buckets(buckets)?;
        for (operand, size) in [("heads", heads), ("head_dim", dim), ("rounds", rounds)] {
            if size == 0 {
                return Err(AttentionError::Value { operand, expected: "at least 1", got: "0".to_owned() });
            }
        }
        let expected = size([heads, dim, rounds, buckets / 2])?;
        check_size("rotations", "elements", expected, values.len())?;
        let count = rounds * (buckets / 2);
        // Rows of a matrix whose columns are the directions.
        let mut rows = reserved(expected)?;
        for head in values.chunks_exact(dim * count) {
            for direction in 0..count {
                rows.extend(head.iter().skip(direction).step_by(count));
            }
        }
        let directions = KeyPanels::from_rows(View::new(&rows, [1, heads, count, dim])?, count)?;
        Ok(Self { directions, rounds, buckets })
    }

    /// The bucket of every token of `x`, `[batch, heads, tokens, dim]`, in every round: `[batch, heads, rounds, tokens]`, numbers
    /// below `buckets`. The first of equals counts, as it does for `argmax`; a token of NaN has bucket 0.
    ///
    /// # Errors
    /// `x` has other heads (unless there is one frame for all) or another size than the rotations, memory cannot be had, or
    /// `LUCID_LEVEL` names a level that is not there.
    pub fn buckets<T: Element>(&self, x: View<'_, T>) -> Result<Vec<u32>, AttentionError> {
        self.buckets_on(x, Level::detect()?, usize::MAX)
    }

    /// Rounds, and buckets of a round.
    pub(super) fn sizes(&self) -> [usize; 2] {
        [self.rounds, self.buckets]
    }

    pub(super) fn buckets_on<T: Element>(
        &self,
        x: View<'_, T>,
        level: Level,
        threads: usize,
    ) -> Result<Vec<u32>, AttentionError> {
        let [batch, heads, tokens, dim] = x.shape();
        let [_, own, directions, own_dim] = self.directions.shape();
        check_size("x", "head_dim", own_dim, dim)?;
        if own != 1 {
            check_size("x", "heads", own, heads)?;
        }
        let mut buckets = filled(size([batch, heads, self.rounds, tokens])?, 0)?;
        let columns = directions.next_multiple_of(16);
        let multiply_adds = (batch * heads * tokens * dim) as f64 * directions as f64;
        let workers = workers(threads, tile::nanoseconds([multiply_adds, 0.0]));
        let mut scratches = reserved(workers)?;
        for _ in 0..workers {
            scratches.push([filled(MAX_ROWS * dim, 0.0)?, filled(MAX_ROWS * columns, 0.0)?]);
        }
        let mut left = &mut buckets[..];
        let each = self.rounds * tokens;
        let parts = parts(batch * heads).map(|units| (piece(&mut left, units.len() * each), units));
        for_each_part_with(parts, &mut scratches, &|(buckets, units): (&mut [u32], _), [rows, scores]| {
            for (unit, buckets) in Range::<usize>::zip(units, buckets.chunks_exact_mut(each.max(1))) {
                level.dispatch(Hash {
                    rotations: self,
                    x,
                    unit,
                    rows: &mut rows[..],
                    scores: &mut scores[..],
                    buckets,
                });
            }
        });
        Ok(buckets)
    }
}

pub(super) fn check_buckets(buckets: usize) -> Result<(), AttentionError> {
    if buckets > 0 && buckets.is_multiple_of(2) && u32::try_from(buckets).is_ok() {
        return Ok(());
    }
    let (expected, got) = ("an even number, at least 2", buckets.to_string());
    Err(AttentionError::Value { operand: "buckets", expected, got })
}

pub(super) fn size<const N: usize>(sizes: [usize; N]) -> Result<usize, AttentionError> {
    let size = sizes.iter().try_fold(1usize, |size, &n| size.checked_mul(n));
    size.ok_or(AttentionError::SizeOverflow { operand: "LSH attention" })
}

/// The buckets of one head's tokens, `[rounds, tokens]`.
struct Hash<'a, T> {
    rotations: &'a Rotations,
    x: View<'a, T>,
    /// The head, counted over all sequences.
    unit: usize,
    /// Room for some tokens and their scores, those rounded up to vectors.
    rows: &'a mut [f32],
    scores: &'a mut [f32],
    buckets: &'a mut [u32],
}

impl<T: Element> Kernel for Hash<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Hash { rotations, x, unit, rows, scores, buckets } = self;
        let [_, heads, tokens, dim] = x.shape();
        let half = rotations.buckets / 2;
        let columns = scores.len() / MAX_ROWS;
        let own = if rotations.directions.shape()[1] == 1 { 0 } else { unit % heads };
        let panels = rotations.directions.from(0, own);
        assert!(rotations.directions.capacity() >= columns.div_ceil(PANEL) * PANEL, "panels are whole");
        for first in (0..tokens).step_by(MAX_ROWS) {
            let count = MAX_ROWS.min(tokens - first);
            for (token, row) in (first..first + count).zip(rows.chunks_exact_mut(dim)) {
                widen_row(isa, x, [unit / heads, unit % heads, token], row);
            }
            isa.call(ScorePanels {
                rows: count,
                q: &rows[..count * dim],
                dims: dim,
                panels,
                ahead: Near::Nothing,
                columns: 0..columns,
                out: ScoreRows { out: &mut *scores, stride: columns, scale: () },
            });
            for (token, scores) in (first..).zip(scores.chunks_exact(columns)).take(count) {
                for (round, scores) in scores.chunks_exact(half).enumerate().take(rotations.rounds) {
                    buckets[round * tokens + token] = nearest(scores);
                }
            }
        }
    }
}

/// The first of the largest of some numbers and their opposites, which come after them. NaN is none of them.
#[inline(always)]
fn nearest(scores: &[f32]) -> u32 {
    // Lanes are compared side by side, and the place looked for afterwards.
    let (eights, rest) = scores.as_chunks::<8>();
    let (mut largest, mut smallest) = ([f32::NEG_INFINITY; 8], [f32::INFINITY; 8]);
    let mut compare = |lane: usize, score: f32| {
        largest[lane] = if score > largest[lane] { score } else { largest[lane] };
        smallest[lane] = if score < smallest[lane] { score } else { smallest[lane] };
    };
    for eight in eights {
        (0..8).for_each(|lane| compare(lane, eight[lane]));
    }
    rest.iter().enumerate().for_each(|(lane, &score)| compare(lane, score));
    let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let smallest = smallest.into_iter().fold(f32::INFINITY, f32::min);
    let first = |value: f32| {
        let has = |eight: &[f32; 8]| eight.iter().fold(false, |has, &score| has | (score == value));
        let whole = eights.iter().position(has).unwrap_or(eights.len()) * 8;
        scores[whole..].iter().position(|&score| score == value).map_or(0, |place| whole + place)
    };
    let opposite = mutant!("no-opposite-buckets", -smallest > largest, false);
    (if opposite { scores.len() + first(smallest) } else { first(largest) }) as u32
}

/// A token's numbers in f32, as many as `out` holds.
#[inline(always)]
pub(super) fn widen_row<I: Isa, T: Element>(
    isa: I,
    x: View<'_, T>,
    [batch, head, token]: [usize; 3],
    out: &mut [f32],
) {
    let row = x.from(batch, head, token);
    match x.strides()[3] {
        1 => widen(isa, row, out),
        0 => out.fill(row.first().map_or(f32::NAN, |x| x.to_f32())),
        stride => out.iter_mut().zip(row.iter().step_by(stride)).for_each(|(out, x)| *out = x.to_f32()),
    }
}

#[cfg(test)]
mod tests {
    use super::nearest;

    /// One by one, as it is defined.
    fn one_by_one(scores: &[f32]) -> u32 {
        let opposites = scores.iter().map(|score| -score);
        let (mut best, mut at) = (f32::NEG_INFINITY, 0);
        for (index, score) in scores.iter().copied().chain(opposites).enumerate() {
            if score > best {
                (best, at) = (score, index);
            }
        }
        at as u32
    }

    #[test]
    fn the_first_of_the_largest() {
        let special = [0.0, -0.0, 1.0, -1.0, 1.5, -1.5, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        let mut state = 1u64;
        for case in 0..20_000usize {
            let scores: Vec<f32> = (0..1 + case % 21)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                    special[(state >> 33) as usize % (3 + case / 21 % (special.len() - 2))]
                })
                .collect();
            assert_eq!(nearest(&scores), one_by_one(&scores), "{scores:?}");
        }
    }
}
