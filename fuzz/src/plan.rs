//! Sizes, strides and lists that no machine has.

#[path = "../../tests/errors/asking.rs"]
mod asking;
#[path = "../../tests/errors/hostile.rs"]
mod hostile;

use crate::Tally;

pub fn plan(data: &[u8], tally: &mut Tally) {
    let choices: Vec<u16> =
        data.as_chunks().0.iter().take(300).map(|&bytes| u16::from_le_bytes(bytes)).collect();
    match hostile::make(&mut hostile::Choices(choices.iter())) {
        // What was called is certified there, or explained.
        Ok(_) => tally.same += 1,
        Err(error) => {
            asking::assert_names_its_fields(&error);
            tally.refused += 1;
        }
    }
}
