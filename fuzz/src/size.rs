//! How large cases are.

/// Multiply-adds that a case may have, by its seed: most are small, for libFuzzer to make hundreds a second, and some are large
/// enough for several groups of rows in several tiles and splits.
pub(crate) fn most_work(seed: u64) -> usize {
    match seed % 32 {
        0..16 => 500,
        16..28 => 2_000,
        28..31 => 10_000,
        _ => 60_000,
    }
}

/// Halves sizes, the first ones first and none to less than 1, until their product times `each` is at most so much.
pub(crate) fn shrink<const N: usize>(most: usize, each: usize, sizes: [&mut usize; N]) {
    let mut total = sizes.iter().fold(each, |total, size| total * **size);
    for size in sizes {
        while total > most && *size > 1 {
            total /= *size;
            *size /= 2;
            total *= *size;
        }
    }
}
