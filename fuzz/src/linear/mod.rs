//! Linear attention: calls whole, in pieces, by states that are saved, restored and merged, against the quadratic form in
//! `f64` and its bound; and what is refused.

mod case;
mod definition;
mod plans;
mod states;

use crate::Tally;
use arbitrary::{Result, Unstructured};

pub fn linear(data: &[u8], tally: &mut Tally) {
    // Decoding that ends early has done what there was to do.
    let _ = check(&mut Unstructured::new(data), tally);
}

fn check(input: &mut Unstructured<'_>, tally: &mut Tally) -> Result<()> {
    match input.int_in_range(0..=7)? {
        0 => plans::check(input, tally),
        _ => states::check(input, tally),
    }
}
