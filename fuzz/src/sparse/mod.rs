//! Block masks: layouts from every builder against what they stand for, calls against dense ones with the same pairs; LSH
//! attention of a few tokens against its set of pairs.

mod builders;
mod calls;
#[allow(dead_code, reason = "a part of what tests use")]
#[path = "../../../tests/sparse/lsh.rs"]
mod definition;
mod grids;
mod hashing;

use crate::Tally;
use arbitrary::{Result, Unstructured};

pub fn sparse(data: &[u8], tally: &mut Tally) {
    // Decoding that ends early has done what there was to do.
    let _ = check(&mut Unstructured::new(data), tally);
}

fn check(input: &mut Unstructured<'_>, tally: &mut Tally) -> Result<()> {
    match input.int_in_range(0..=15)? {
        0 => grids::check(input, tally),
        1 | 2 => hashing::check(input, tally),
        _ => calls::check(input, tally),
    }
}
