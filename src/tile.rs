//! All tuning: how a call is cut into blocks and tasks. Nothing here changes a bit of a result; the tile of 256 keys
//! and the split of 1024, which do, are constants of the order of operations and live in [`crate::exact`].

use crate::kernel::MAX_ROWS;
use crate::parallel::MAX_PARTS;

/// Query rows of a block at most: their weights, accumulators and queries stay in L2 while keys and values pass.
/// Flat between 48 and 96, 1 to 3 points less at 24 and 192 (bench `attention/prefill`).
pub(crate) const BLOCK_ROWS: usize = 96;

/// Units (a sequence's KV head) of at most this many query rows are one block, which reads each key and value once: few
/// queries are bound by memory, and their parallelism comes from heads and splits of keys.
pub(crate) const FEW_ROWS: usize = 32;

/// Up to this many rows, keys held as rows are transposed in registers; above it they are packed first, because each
/// group of rows would transpose them again.
pub(crate) const FUSED_ROWS: usize = MAX_ROWS;

/// Blocks of more rows than this pack values, where vectors have 8 lanes: in f32 1.03 to 1.09 times from 512 rows on, the
/// same at 128 and 197 (bench `roofline`, `prefill` of level AVX2). Fewer rows were not compared.
const PACKED_VALUE_ROWS: usize = 2 * MAX_ROWS;

/// Whether a block of so many rows packs its values: with 8 lanes a row of values is visited 16 dimensions at a time.
#[inline(always)]
pub(crate) fn packs_values(lanes: usize, rows: usize) -> bool {
    lanes < 16 && rows > PACKED_VALUE_ROWS
}

/// Values that are read once stream from memory this many keys at a time, so that visiting them once per register tile
/// stays within L1 (bench `attention/decode`, several query heads per KV head).
pub(crate) const STREAMED_KEYS: usize = 16;

/// Keys and values of fewer bytes are taken to lie in a cache (bench `roofline`, `decode` and `small`: what prefetching gains
/// a single row from memory, it loses from L2).
const CACHED_BYTES: f64 = (16 << 20) as f64;

/// Estimated work in nanoseconds from which a call is spread over the pool: waking a worker takes some 50 us
/// (bench `latency`).
pub(crate) const PARALLEL_NANOSECONDS: f64 = 60_000.0;

/// Rough speeds of one thread, for the estimate: multiply-adds and bytes of keys and values per nanosecond (bench
/// `roofline`, `prefill` and `decode`).
const MULTIPLY_ADDS_PER_NANOSECOND: f64 = 40.0;
const BYTES_PER_NANOSECOND: f64 = 20.0;

/// Tasks each worker should find, so that a slow one can be helped out.
const TASKS_PER_WORKER: usize = 4;

/// Estimated time of a call on one thread.
pub(crate) fn nanoseconds(multiply_adds: f64, kv_bytes: f64) -> f64 {
    multiply_adds / MULTIPLY_ADDS_PER_NANOSECOND + kv_bytes / BYTES_PER_NANOSECOND
}

/// Whether a call of so many multiply-adds and bytes of keys and values is spread over the pool.
pub(crate) fn worth_spreading([multiply_adds, kv_bytes]: [f64; 2]) -> bool {
    nanoseconds(multiply_adds, kv_bytes) >= PARALLEL_NANOSECONDS
}

/// Whether a call's keys and values are expected to come from memory.
pub(crate) fn from_memory([_, kv_bytes]: [f64; 2]) -> bool {
    kv_bytes >= CACHED_BYTES
}

/// Rows per block for `units` (sequence, KV head) pairs of `rows` query rows each, whose keys make `splits`.
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

/// Rows per block, about `rows` of them, where it pays that blocks end at multiples of `unit` rows: rows of a block mask's
/// block visit the same keys. `None` if no such number fits a block.
pub(crate) fn aligned_rows(rows: usize, unit: usize) -> Option<usize> {
    if unit <= BLOCK_ROWS {
        return Some((rows / unit.max(1)).max(1) * unit);
    }
    let parts = unit.div_ceil(BLOCK_ROWS);
    (parts..=2 * parts).find(|parts| unit.is_multiple_of(*parts)).map(|parts| unit / parts)
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
