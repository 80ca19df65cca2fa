//! Sizes, strides and lists that no machine has.

#[path = "../../tests/errors/asking.rs"]
mod asking;
#[path = "../../tests/errors/hostile.rs"]
mod hostile;

pub fn plan(data: &[u8]) {
    let choices: Vec<u16> =
        data.as_chunks().0.iter().take(300).map(|&bytes| u16::from_le_bytes(bytes)).collect();
    if let Err(error) = hostile::make(&mut hostile::Choices(choices.iter())) {
        asking::assert_names_its_fields(&error);
    }
}
