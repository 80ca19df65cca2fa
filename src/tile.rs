//! All tuning: how a call is cut into blocks and tasks. Nothing here changes a bit of a result; the tile of 256 keys
//! and the split of 1024, which do, are constants of the order of operations and live in [`crate::exact`].

use crate::element::DType;
use crate::kernel::MAX_ROWS;
use crate::parallel::MAX_PARTS;

/// Query rows of a block at most: their weights, accumulators and queries stay in L2 while keys and values pass.
/// Flat between 48 and 96, 1 to 3 points less at 24 and 192 (bench `attention/prefill`).
pub(crate) const BLOCK_ROWS: usize = 96;

/// Units (see `exact::grid`) of at most this many query rows are one block, which reads each key and value once: few
/// queries are bound by memory, and their parallelism comes from heads and splits of keys.
pub(crate) const FEW_ROWS: usize = 32;

/// Up to this many rows, keys held as rows are transposed in registers; above it they are packed first, because each
/// group of rows would transpose them again.
pub(crate) const FUSED_ROWS: usize = MAX_ROWS;

/// Rows of the next group of a block of which `left` are left, where no lists say which keys they visit: a whole register tile's,
/// if there are as many. With vectors of 16 lanes and keys from a cache 7 and 8 rows are halved, as a tile of one or two rows has
/// hardly more multiply-adds than loads: 7 rows are 1.08 to 1.1 times as fast as 6 and 1 (f32, f16, bf16), 8 rows 1.02 to 1.06
/// times (the same, and the bf16 tier); 9 to 11 make no difference. From memory 8 rows of f32 lose up to a fifth by it, with 8
/// lanes 5 % (example `bench_worker`, 256 keys of 64 and 4096 of 128 dimensions, levels AVX-512 and AVX2).
#[inline(always)]
pub(crate) fn group_rows(lanes: usize, from_memory: bool, left: usize) -> usize {
    let halved = lanes == 16 && !from_memory && MAX_ROWS < left && left <= MAX_ROWS + 2;
    if halved { left.div_ceil(2) } else { left.min(MAX_ROWS) }
}

/// Whether the groups of a block of so many rows ask for the next tile together, each for its share: memory and L2 then bring it
/// while all of them compute, not while the first group does. With vectors of 16 lanes 12 to 64 rows of 4096 keys are 1.1 to 1.17
/// times as fast in f32 from memory, 8 the same, 8 of 1024 keys from L2 1.05 times; f16 and bf16 1 to 1.04; from rows of keys 1.02
/// to 1.1; 8192 tokens 1.05, what stays in L2 the same; where the next head begins, too, heads of 512 and 1024 keys another 1.02 to
/// 1.07. A line a step is as good as all that is loaded, 4 lines, even for two and three groups, whose steps do not suffice then
/// (8 rows 1.0 for 0.96 to 0.99, 12 and 16 rows within a hundredth or two, 64 rows better by three). With 8 lanes, where a step has
/// half as many multiply-adds, 64 rows gain up to 1.08, but fewer lose as much, and tokens 2 % (example `bench_worker`, Emerald
/// Rapids).
#[inline(always)]
pub(crate) fn asks_together(lanes: usize, rows: usize) -> bool {
    lanes == 16 && rows > MAX_ROWS
}

/// How many of some KV heads of `rows` query rows each are worked on as one block, where the keys of each are few: as many as
/// divide them and have no more rows than a register tile.
pub(crate) fn heads_together(kv_heads: usize, rows: usize) -> usize {
    let most = MAX_ROWS.checked_div(rows).unwrap_or(0);
    (2..=most).rev().find(|&heads| kv_heads.is_multiple_of(heads)).unwrap_or(1)
}

const _: () =
    assert!(MAX_ROWS <= FUSED_ROWS && MAX_ROWS <= FEW_ROWS, "heads together pack neither keys nor values");

/// Rows of a block from which on values that other blocks pack too are packed once for all.
const PACKED_VALUE_ROWS: usize = 2 * MAX_ROWS;

/// Whether a block of so many rows packs its values. Blocks of a head share what is packed, for a copy of its values in each
/// worker's scratch.
///
/// With vectors of 8 lanes, by which a row of values is visited 16 dimensions at a time, f32 is 1.03 to 1.09 times as fast from
/// 512 rows on, the same at 128 and 197, and another 1.02 to 1.08 where blocks share. (Bench `roofline`, `prefill` of level AVX2.)
/// A unit of few rows is one block, which packs for itself alone: 32 rows of 4096 keys are 1.1 times as fast without (`few`).
///
/// With 16 lanes it is for what blocks share: where a core does two multiply-adds a cycle, values in L2 that do not start on
/// cache lines, as hardly any do, keep it waiting for a tenth of its time, and f16 and bf16 are widened anew for each group. 1.07
/// to 1.14 times as fast from 197 tokens on, in f32 and f16 (example `bench_worker`, 64 and 128 dimensions, Emerald Rapids).
/// `elements` of values that fit L1 beside the rest gain nothing, and lose the copy: 128 tokens of 32 dimensions 2 %. Of what is not
/// shared f32 gains nothing, `half` precision what [`widens_tiles`] says.
#[inline(always)]
pub(crate) fn packs_values(lanes: usize, half: bool, rows: usize, shared: bool, elements: usize) -> bool {
    match (lanes < 16, shared) {
        (true, false) => rows > FEW_ROWS,
        (true, true) => rows > PACKED_VALUE_ROWS,
        (false, false) => half && widens_tiles(lanes, rows) && elements > L1_VALUES,
        (false, true) => rows > PACKED_VALUE_ROWS && elements > L1_VALUES,
    }
}

/// Whether a block of so many rows, alone with its keys, widens what is stored in half precision tile by tile, not for each group
/// anew. With 16 lanes 64 rows of 4096 keys of 128 dimensions are 1.18 times as fast from panels, 1.08 times from rows, 48 rows 1.1
/// and 1.05 times, 64 and 96 tokens of 64 dimensions 1 to 1.13 times, 32 rows 0.96 to 1.05 times, 16 rows 0.86 to 0.9 (example
/// `bench_worker`, f16 and bf16, Emerald Rapids).
#[inline(always)]
pub(crate) fn widens_tiles(lanes: usize, rows: usize) -> bool {
    lanes == 16 && rows > FEW_ROWS
}

/// Elements of values that are taken to stay in L1.
const L1_VALUES: usize = (16 << 10) / size_of::<f32>();

/// Whether the bf16 tier pairs keys and values in registers that are stored as bf16, where no other block of rows shares them:
/// each group of rows anew, where scratch would serve them all. With 4096 keys of 128 dimensions 4 rows are twice as fast so, 8
/// rows 1.3 to 1.9 times, 12 rows 1.3 times, 16 rows 1.1 to 1.25; 24 and 32 rows gain 1.15 and 1.08 from panels, nothing or lose a
/// tenth from rows of keys, which are transposed each time (example `bench_worker`, `LUCID_BF16_DOT=1`).
#[inline(always)]
pub(crate) fn pairs_in_registers(dtype: DType, rows: usize, panels: bool) -> bool {
    dtype == DType::Bf16 && rows <= if panels { FEW_ROWS } else { 3 * MAX_ROWS }
}

/// How many keys (in the bf16 tier: pairs of keys) a register tile of some dimensions covers before the next tile begins, where tiles
/// are not narrow.
pub(crate) const STREAMED_KEYS: usize = 16;

/// The same for values of `row_bytes` that blocks of `rows` rows read once: what is visited again for the next tile should be in
/// L1 by then (bench `attention/decode`, several query heads per KV head).
///
/// With 16 registers of 8 lanes, several rows cover half of L1, 1.04 to 1.08 times as fast as 16 keys. A single row covers a KiB
/// or two, so that its tiles leave the order of memory no further than the hardware's prefetchers follow: 128 dimensions in
/// `f32` are 1.3 times as fast from memory as with 16 keys, 256 are 1.5 times; from a cache, and in half precision, 1.05 (bench
/// `roofline`, `decode` of level AVX2). At AVX-512 half of L1 gains the first rows of a block nothing from a cache, and loses them
/// 3 to 20 % from memory (`few` and `decode` of level AVX-512); for those after them see [`streamed_again`].
#[inline(always)]
pub(crate) fn streamed_keys(
    has_narrow_tiles: bool,
    rows: usize,
    dtype: DType,
    row_bytes: usize,
    from_memory: bool,
) -> usize {
    if !has_narrow_tiles {
        return STREAMED_KEYS;
    }
    let bytes: usize = match rows {
        2.. => 16 << 10,
        _ if from_memory && dtype == DType::F32 => 1 << 10,
        _ => 2 << 10,
    };
    bytes.div_ceil(row_bytes.max(1))
}

/// The same for rows that find values in L2, as those after a block's first do: with vectors of 16 lanes all that there are, as
/// fewer load and store the accumulators more often (16 and 32 rows per KV head are 1.06 to 1.1 times as fast in f32, no faster in
/// f16; example `bench_worker`, 4096 keys of 128 dimensions in a cache, Emerald Rapids).
#[inline(always)]
pub(crate) fn streamed_again(lanes: usize, streamed: usize) -> usize {
    if lanes < 16 { streamed } else { usize::MAX }
}

/// Whether a single row asks for values ahead of time: not where [`streamed_keys`] leaves that to the hardware, as asking costs a
/// tenth there.
#[inline(always)]
pub(crate) fn asks_for_values(has_narrow_tiles: bool, dtype: DType, from_memory: bool) -> bool {
    from_memory && !(has_narrow_tiles && dtype == DType::F32)
}

/// Rows of weights that may go through values in pairs at AVX-512.
pub(crate) const PAIRED_ROWS: usize = 4;

/// Whether [`PAIRED_ROWS`] rows, alone in their block, do so, 128 dimensions at a time. Memory wants values to be read in order, and
/// tiles for more than two rows of weights are 64 dimensions wide: in pairs, 4 rows of 128 or 256 dimensions in `f32` are 1.08 to
/// 1.3 times as fast from memory (bench `roofline`, `decode` and `few`, level AVX-512); from a cache they gain nothing. Elsewhere it
/// was tried with the example `bench_worker`: 5 and 6 rows gain at most 5 %, 3 lose 6 to 15; half precision, which pairs widen more
/// often, loses 7 to 11 %, and so do more rows, the later ones of which find values in L2.
#[inline(always)]
pub(crate) fn adds_in_pairs(
    has_narrow_tiles: bool,
    rows: usize,
    dtype: DType,
    v_dim: usize,
    from_memory: bool,
) -> bool {
    // Dimensions of the widest tile.
    const WIDEST: usize = 128;
    from_memory
        && !has_narrow_tiles
        && rows == PAIRED_ROWS
        && dtype == DType::F32
        && v_dim.is_multiple_of(WIDEST)
}

/// Keys and values of fewer bytes are taken to lie in a cache (bench `roofline`, `decode` and `small`: what prefetching gains
/// a single row from memory, it loses from L2).
const CACHED_BYTES: f64 = (16 << 20) as f64;

/// Estimated work in nanoseconds from which a call is spread over the pool, unless options say: waking a worker takes some
/// 50 us (bench `latency`).
pub(crate) const SPREAD_NANOSECONDS: f64 = 60_000.0;

/// The same between steps that are spread, as in a layer: workers are awake still, and stay so only if they find something to
/// do. A layer of 16 tokens (384 wide, 12 heads) is 1.2 times as fast at 2 threads (`benches/peers/layer.py`, AVX2).
pub(crate) const AWAKE_NANOSECONDS: f64 = 4_000.0;

/// Rough speeds of one thread, for the estimate: multiply-adds and bytes of keys and values per nanosecond (bench
/// `roofline`, `prefill` and `decode`).
const MULTIPLY_ADDS_PER_NANOSECOND: f64 = 40.0;
const BYTES_PER_NANOSECOND: f64 = 20.0;

/// Tasks each worker should find, so that a slow one can be helped out.
const TASKS_PER_WORKER: usize = 4;

/// Estimated time, on one thread, of so many multiply-adds and bytes of keys and values.
pub(crate) fn nanoseconds([multiply_adds, kv_bytes]: [f64; 2]) -> f64 {
    multiply_adds / MULTIPLY_ADDS_PER_NANOSECOND + kv_bytes / BYTES_PER_NANOSECOND
}

/// Whether a call's keys and values are expected to come from memory.
pub(crate) fn from_memory([_, kv_bytes]: [f64; 2]) -> bool {
    kv_bytes >= CACHED_BYTES
}

/// Rows per block for `units` of `rows` query rows each, whose keys make `splits`.
///
/// Where there are fewer units than workers, rows that fit one block stay together and splits are shared out: workers that
/// share a unit would all read, and pack, all of its keys (bench `roofline`, `few` with one KV head on two threads:
/// 1.1 times from rows, the same from panels).
pub(crate) fn block_rows(rows: usize, units: usize, workers: usize, splits: usize) -> usize {
    if rows <= FEW_ROWS || rows <= BLOCK_ROWS && splits > 1 && units < workers {
        return rows;
    }
    let at_least = if workers == 1 { 1 } else { (TASKS_PER_WORKER * workers).div_ceil(units.max(1)) };
    let blocks = rows.div_ceil(BLOCK_ROWS).max(at_least.min(rows.div_ceil(2 * MAX_ROWS)));
    rows.div_ceil(blocks.max(1)).next_multiple_of(MAX_ROWS).min(BLOCK_ROWS)
}

/// How `total` rows are cut where it pays that blocks end with a block mask's rows of blocks, `unit` query rows each, which
/// visit the same keys: rows of a stretch, which is some units or one, and of the blocks that a stretch is cut into. There
/// are about as many blocks as with `rows` rows each.
pub(crate) fn aligned_rows(rows: usize, total: usize, unit: usize) -> [usize; 2] {
    if unit <= rows {
        return [rows / unit.max(1) * unit; 2];
    }
    let wanted = total.div_ceil(rows.max(1)).div_ceil(total.div_ceil(unit));
    let parts = wanted.min(unit / (2 * MAX_ROWS)).max(unit.div_ceil(BLOCK_ROWS));
    [unit, unit.div_ceil(parts).next_multiple_of(MAX_ROWS).min(unit)]
}

/// Blocks of a unit that are ordered by their work, at most: 800 000 query rows, or more.
const ORDERED_BLOCKS: usize = 1 << 14;

/// No fewer blocks than a unit of so many rows is ever cut into, by [`block_rows`] or [`aligned_rows`], as long as they are
/// ordered by their work.
pub(crate) fn most_blocks(rows: usize, workers: usize) -> usize {
    let spread = TASKS_PER_WORKER.saturating_mul(workers).min(rows.div_ceil(2 * MAX_ROWS));
    let blocks = rows.div_ceil(BLOCK_ROWS).max(spread);
    // Aligned, up to three times as many, half as many again where there are two stretches, and a stretch more.
    blocks.saturating_mul(5).saturating_add(5).min(ORDERED_BLOCKS)
}

/// Rows of a matrix product up to which its parts are columns, and each weight is read once: above it they are rows, as
/// weights that were fetched serve enough of them.
pub(crate) const COLUMN_PARTS_ROWS: usize = 32;

/// Fewest rows that should share a pass over the weights.
const PRODUCT_ROWS: usize = 48;

/// How a matrix product is dealt to workers: how many `[rows, panels of columns]` a part has, of `rows` and `panels`.
pub(crate) fn product_part([rows, panels]: [usize; 2], workers: usize) -> [usize; 2] {
    if workers <= 1 {
        return [rows, panels];
    }
    let most = (TASKS_PER_WORKER * workers).min(MAX_PARTS);
    if rows <= COLUMN_PARTS_ROWS {
        return [rows, panels.div_ceil(most).max(1)];
    }
    // As many for each worker as keep parts large.
    let per_worker = (rows / (workers * PRODUCT_ROWS)).clamp(1, TASKS_PER_WORKER);
    let parts = (per_worker * workers).min(MAX_PARTS);
    [rows.div_ceil(parts).next_multiple_of(MAX_ROWS), panels]
}

/// What a multiply-add of a vector's product with a matrix costs, in those of the matrix products and of attention: it reads
/// as many weights for one row as they do for six.
const VECTOR_PRODUCT: f64 = 4.0;

/// Whether a module's call absorbs its projections: multiply-adds of projections and of attention, directly and so.
pub(crate) fn absorbs(direct: [f64; 2], absorbed: [f64; 2]) -> bool {
    VECTOR_PRODUCT * absorbed[0] + absorbed[1] <= direct[0] + direct[1]
}

/// Whether a unit's keys are cut into splits that run side by side, their states merged afterwards: only where the
/// units alone do not keep the workers busy.
pub(crate) fn split_keys(units: usize, workers: usize, blocks_per_unit: usize, splits: usize) -> bool {
    workers > 1 && blocks_per_unit == 1 && splits > 1 && units < TASKS_PER_WORKER * workers
}

/// The most units for which [`split_keys`] can say yes.
pub(crate) fn max_split_units(workers: usize) -> usize {
    if workers > 1 { TASKS_PER_WORKER.saturating_mul(workers) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups are all rows, and no more than a register tile has.
    #[test]
    fn groups_of_rows() {
        let groups = |lanes, from_memory, rows: usize| {
            let mut left = rows;
            let mut groups = Vec::new();
            while left > 0 {
                groups.push(group_rows(lanes, from_memory, left));
                left -= groups[groups.len() - 1];
            }
            groups
        };
        for (rows, halved, whole) in [
            (1, vec![1], vec![1]),
            (6, vec![6], vec![6]),
            (7, vec![4, 3], vec![6, 1]),
            (8, vec![4, 4], vec![6, 2]),
            (9, vec![6, 3], vec![6, 3]),
            (14, vec![6, 4, 4], vec![6, 6, 2]),
        ] {
            assert_eq!(groups(16, false, rows), halved, "{rows} rows");
            assert_eq!(
                [groups(16, true, rows), groups(8, false, rows)],
                [whole.clone(), whole],
                "{rows} rows"
            );
        }
    }

    /// Blocks that are aligned are as many as are wanted, no larger than scratch, and no more than there is room to order.
    #[test]
    fn aligned_blocks() {
        for (total, workers) in [(40, 2), (100, 1), (256, 2), (256, 8), (1000, 3), (5000, 64), (70_000, 2)] {
            for unit in [1, 5, 16, 30, 64, 96, 97, 128, 200, 1000] {
                let rows = block_rows(total, 1, workers, 1);
                if unit >= total || rows >= total {
                    continue;
                }
                let [stretch, block] = aligned_rows(rows, total, unit);
                let what = format!("{total} rows in units of {unit} for {workers}: {stretch}, {block}");
                assert!(
                    stretch.is_multiple_of(unit) && 0 < block && block <= BLOCK_ROWS.min(stretch),
                    "{what}"
                );
                let parts = stretch.div_ceil(block);
                assert!(total.div_ceil(stretch) * parts + parts <= most_blocks(total, workers), "{what}");
                // Fewer only where parts would be tiny.
                let wanted = total.div_ceil(rows);
                let enough = total.div_ceil(stretch) * parts * 2 >= wanted;
                assert!(enough || block <= 3 * MAX_ROWS, "{what}: fewer than half of {wanted} blocks");
            }
        }
    }
}
