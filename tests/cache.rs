//! [`KvCache`]: attention over a cache is attention over the rows that were put into it, bit for bit, however it came to
//! hold them; what it refuses leaves it as it was.

mod common;

use common::cases::Rng;
use half::{bf16, f16};
use lucid_attention::{AttentionError, Element, Inputs, KvCache, Mask, Problem, QueryStart, View, attention};

const BATCH: usize = 2;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 19;
const V_DIM: usize = 21;
const TOKENS: usize = 300;

fn problem() -> Problem {
    Problem {
        q_heads: 6,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        v_dim: V_DIM,
        max_q_len: 2,
        max_kv_len: 320,
    }
}

/// Numbers from -1 to 1.
fn numbers<T: Element>(count: usize, seed: u64) -> Vec<T> {
    let mut rng = Rng::new(seed);
    (0..count).map(|_| T::from_f32(rng.uniform())).collect()
}

/// Tokens `from..to` of rows of `dim`.
fn tokens<T>(rows: &[T], dim: usize, from: usize, to: usize) -> View<'_, T> {
    let strides = [KV_HEADS * TOKENS * dim, TOKENS * dim, dim, 1];
    View::with_strides(&rows[from * dim..], [BATCH, KV_HEADS, to - from, dim], strides).unwrap()
}

fn any_history<T: Element>() {
    let k = numbers::<T>(BATCH * KV_HEADS * TOKENS * HEAD_DIM, 1);
    let v = numbers::<T>(BATCH * KV_HEADS * TOKENS * V_DIM, 2);
    let q = numbers::<T>(BATCH * 6 * 2 * HEAD_DIM, 3);
    let q = View::new(&q, [BATCH, 6, 2, HEAD_DIM]).unwrap();
    let causal = |inputs: Inputs<'_, T, T>| {
        let inputs = inputs.mask(Mask::causal().window(Some(200), None)).q_start(QueryStart::BottomRight);
        attention(&inputs).unwrap()
    };
    let whole = tokens(&k, HEAD_DIM, 0, TOKENS);
    let expected = causal(Inputs::new(q, whole, tokens(&v, V_DIM, 0, TOKENS)));
    let garbage =
        [numbers::<T>(BATCH * KV_HEADS * 9 * HEAD_DIM, 4), numbers(BATCH * KV_HEADS * 9 * V_DIM, 5)];
    for piece in [1, 7, 64, TOKENS] {
        let mut cache = KvCache::<T>::new(BATCH, &problem()).unwrap();
        for first in (0..TOKENS).step_by(piece) {
            let last = TOKENS.min(first + piece);
            // A draft that is taken back.
            let draft = View::new(&garbage[0], [BATCH, KV_HEADS, 9, HEAD_DIM]).unwrap();
            cache.append(draft, View::new(&garbage[1], [BATCH, KV_HEADS, 9, V_DIM]).unwrap()).unwrap();
            cache.truncate(first);
            cache.append(tokens(&k, HEAD_DIM, first, last), tokens(&v, V_DIM, first, last)).unwrap();
            assert_eq!(cache.len(), last);
        }
        for (b, h, t, d) in [(0, 0, 0, 0), (1, 2, TOKENS - 1, V_DIM - 1), (1, 0, 64, 3)] {
            let value = tokens(&v, V_DIM, 0, TOKENS).get([b, h, t, d]).copied();
            assert_eq!(cache.values().get([b, h, t, d]).copied(), value, "value {:?}", (b, h, t, d));
        }
        assert!(causal(cache.inputs(q)) == expected, "{} in pieces of {piece}", T::DTYPE);
    }
}

#[test]
fn bits_do_not_depend_on_the_history() {
    any_history::<f32>();
    any_history::<f16>();
    any_history::<bf16>();
}

#[test]
fn what_does_not_fit_changes_nothing() {
    let mut cache = KvCache::<f32>::new(BATCH, &problem()).unwrap();
    assert!(cache.is_empty());
    assert_eq!(cache.capacity(), 320);
    let (k, v) = ([1.0f32; 400 * 19 * 6], [2.0f32; 400 * 21 * 6]);
    let k = |batch, heads, tokens, dim| View::new(&k, [batch, heads, tokens, dim]).unwrap();
    let v = |batch, heads, tokens, dim| View::new(&v, [batch, heads, tokens, dim]).unwrap();
    cache.append(k(2, 3, 10, 19), v(2, 3, 10, 21)).unwrap();
    assert!(!cache.is_empty() && !cache.keys().is_empty());
    let shape = |operand, axis, expected, got| AttentionError::Shape { operand, axis, expected, got };
    let room = AttentionError::TooLarge { operand: "keys", axis: "tokens", limit: 310, got: 311 };
    for (keys, values, expected) in [
        (k(1, 3, 4, 19), v(1, 3, 4, 21), shape("keys", "batch", 2, 1)),
        (k(2, 2, 4, 19), v(2, 2, 4, 21), shape("keys", "heads", 3, 2)),
        (k(2, 3, 4, 18), v(2, 3, 4, 21), shape("keys", "dim", 19, 18)),
        (k(2, 3, 4, 19), v(2, 3, 4, 20), shape("values", "dim", 21, 20)),
        (k(2, 3, 4, 19), v(2, 3, 5, 21), shape("values", "tokens", 4, 5)),
        (k(2, 3, 311, 19), v(2, 3, 311, 21), room),
    ] {
        let error = cache.append(keys, values).unwrap_err();
        assert_eq!(error.to_string(), expected.to_string());
        assert_eq!((cache.len(), cache.keys().len()), (10, 10), "{error}");
    }
    cache.truncate(64);
    assert_eq!(cache.len(), 10, "there is no more to keep");
    cache.append(k(2, 3, 310, 19), v(2, 3, 310, 21)).unwrap();
    assert_eq!(cache.values().shape(), [2, 3, 320, 21]);
}

#[test]
fn sizes_of_nothing_and_of_too_much() {
    for (batch, v_dim) in [(0, 21), (2, 0)] {
        let mut cache = KvCache::<f32>::new(batch, &Problem { v_dim, ..problem() }).unwrap();
        let (keys, none) = (vec![1.0; batch * 3 * 4 * 19], []);
        let keys = View::new(&keys, [batch, 3, 4, 19]).unwrap();
        cache.append(keys, View::new(&none, [batch, 3, 4, v_dim]).unwrap()).unwrap();
        assert_eq!(cache.values().shape(), [batch, 3, 4, v_dim]);
    }
    let most = Problem { max_kv_len: usize::MAX, ..problem() };
    assert!(matches!(KvCache::<f32>::new(1, &most), Err(AttentionError::SizeOverflow { .. })));
    assert!(matches!(KvCache::<f32>::new(usize::MAX, &problem()), Err(AttentionError::SizeOverflow { .. })));
    let large = Problem { max_kv_len: 1 << 40, ..problem() };
    assert!(matches!(KvCache::<f32>::new(1, &large), Err(AttentionError::OutOfMemory { .. })));
}
