//! How large cases are.

/// Multiply-adds of a case, by its seed: most are small, for libFuzzer to make a thousand a second, and some are large
/// enough for several tiles and splits.
pub(crate) fn limit(seed: u64) -> usize {
    match seed % 8 {
        0..4 => 500,
        4..7 => 2_000,
        _ => 10_000,
    }
}

/// Halves sizes, the first ones first and none to less than 1, until their product times `each` is within a limit.
pub(crate) fn shrink<const N: usize>(limit: usize, each: usize, sizes: [&mut usize; N]) {
    let mut total = sizes.iter().fold(each, |total, size| total * **size);
    for size in sizes {
        while total > limit && *size > 1 {
            total /= *size;
            *size /= 2;
            total *= *size;
        }
    }
}
