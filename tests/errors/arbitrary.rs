//! Arbitrary calls, mostly wrong: no panic, and an error leaves the outputs as they were.

use crate::asking::assert_names_its_fields;
use crate::hostile::{Choices, make};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_panics(choices in prop::collection::vec(any::<u16>(), 0..200)) {
        if let Err(error) = make(&mut Choices(choices.iter())) {
            assert_names_its_fields(&error);
        }
    }
}
