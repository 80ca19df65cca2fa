//! LSH attention: tokens, values, buckets and lengths, for every remainder of every size.

use super::{PLACES, numbers};
use crate::common::cases::*;
use crate::common::guard::announce;
use half::f16;
use lucid_attention::sparse::{Lsh, LshOutput, Rotations};
use lucid_attention::{Element, Level, Mask, View};

/// Tokens, sizes of a token and of a value.
type Size = [usize; 3];

fn call<T: Element>(level: Level, [tokens, dim, v_dim]: Size, place: Place) -> (Vec<u32>, LshOutput) {
    let lsh = Lsh { rounds: 2, buckets: 4, level: Some(level), max_threads: Some(1), ..Lsh::new(16) };
    let rows = numbers::<f32>(dim * lsh.rounds * lsh.buckets / 2, 1, place);
    let rotations = Rotations::import(1, dim, lsh.rounds, lsh.buckets, &rows).expect("as many as it takes");
    let (qk, v) = (numbers::<T>(2 * tokens * dim, 2, place), numbers::<T>(2 * tokens * v_dim, 3, place));
    let qk = View::new(&qk, [1, 2, tokens, dim]).expect("sized to its shape");
    let v = View::new(&v, [1, 2, tokens, v_dim]).expect("sized to its shape");
    let found = lsh.buckets(&rotations, qk).expect("operands that fit");
    let (buckets, lens) = (Memory::new(found.clone(), place), Memory::new(vec![tokens - tokens / 4], place));
    let mask = Mask::causal().kv_lens(&lens);
    (found, lsh.attention(qk, v, &buckets, mask).expect("operands that fit"))
}

fn every_size<T: Element>() {
    let tokens = (0..=40).chain([63, 64, 65]).map(|n| [n, 6, 5]);
    let dims = (1..=36).chain([64, 65]).flat_map(|n| [[21, n, 5], [21, 6, n]]);
    let sizes: Vec<Size> = tokens.chain(dims).collect();
    for (level, size) in levels().into_iter().flat_map(|level| sizes.iter().map(move |size| (level, *size))) {
        let expected = call::<T>(level, size, Place::Heap);
        for place in PLACES {
            let _announced = announce(&(level, T::DTYPE, size, place));
            let got = call::<T>(level, size, place);
            assert_eq!(got.0, expected.0, "{level}, {size:?}: buckets");
            assert_same(&got.1.out, &expected.1.out, &format!("{level}, {size:?}: out"));
            assert_same(&got.1.lse, &expected.1.lse, &format!("{level}, {size:?}: lse"));
        }
    }
}

#[test]
fn every_size_of_tokens() {
    every_size::<f32>();
    every_size::<f16>();
}
