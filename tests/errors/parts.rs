//! What calls are made of, and what is made of their results.

use super::*;

#[test]
fn views() {
    let overflow = |operand| SizeOverflow { operand };
    let short = |operand, expected, got| BufferTooShort { operand, expected, got };
    let huge = [[MAX, MAX, MAX, MAX], [1, 1, 2, MAX], [1, 1 << 32, 1 << 31, 1], [0, MAX, MAX, 2]];
    for shape in huge {
        assert_error(View::<f32>::new(&[], shape), &overflow("view"));
        assert_error(View::<f32>::with_layout(&[], shape, Layout::TokenMajor), &overflow("view"));
        assert_error(ViewMut::<f32>::new(&mut [], shape), &overflow("view"));
    }
    for strides in [[MAX, 1, 1, 1], [MAX / 2, MAX / 2, 1, 1], [0, 0, 0, MAX]] {
        assert_error(View::with_strides(&NUMBERS, [3, 3, 3, 3], strides), &overflow("view"));
        assert_error(ViewMut::with_strides(&mut [0.0], [3, 3, 3, 3], strides), &overflow("output view"));
    }
    assert_eq!(View::new(&NUMBERS[..25], [1, 2, 3, 4]).unwrap().data(), &NUMBERS[..25], "all of it");
    assert_error(View::new(&NUMBERS[..23], [1, 2, 3, 4]), &short("view", 24, 23));
    assert_error(ViewMut::new(&mut [0.0; 23], [1, 2, 3, 4]), &short("output view", 24, 23));
    assert_error(View::split_qkv(&NUMBERS[..31], 1, 2, [2, 1], 4), &short("packed qkv", 32, 31));
    assert_error(View::split_interleaved_qkv(&NUMBERS[..23], 1, 2, 1, 4), &short("packed qkv", 24, 23));
    for [batch, tokens, heads, dim] in [[1, MAX, 1, 2], [1, 1, MAX, 2], [1, 1, 1, MAX], [MAX, 2, 1, 1]] {
        assert_error(View::split_qkv(&NUMBERS, batch, tokens, [heads, 1], dim), &overflow("packed qkv"));
        assert_error(
            View::split_interleaved_qkv(&NUMBERS, batch, tokens, heads, dim),
            &overflow("packed qkv"),
        );
    }
    for strides in [[0, 4, 4, 1], [12, 3, 4, 1], [1, 1, 1, 1], [24, 12, 0, 1]] {
        let expected = Overlap { operand: "output view", shape: [2, 3, 2, 4], strides };
        assert_error(ViewMut::with_strides(&mut [0.0; 64], [2, 3, 2, 4], strides), &expected);
    }
}

#[test]
fn interval_lists() {
    let span = |start, end| Span { start, end };
    let offsets = "offsets that ascend from 0 to the number of spans";
    let spans = "sorted, disjoint spans with start <= end in every row";
    let new =
        |offsets: &'static [usize], spans: &[Span]| Intervals::new([1, 1, 2], offsets, spans).map(|_| ());
    assert_error(Intervals::new([MAX, 2, 1], &[0], &[]), &SizeOverflow { operand: "intervals" });
    assert_error(Intervals::new([MAX, 1, 1], &[0], &[]), &SizeOverflow { operand: "intervals" });
    assert_error(new(&[0, 0], &[]), &shape("intervals", "offsets", 3, 2));
    for wrong in [[0, 2, 1], [1, 1, 1], [0, 1, 2], [0, MAX, 1]] {
        let expected = value("intervals", offsets, format!("{wrong:?} for 1 spans"));
        assert_error(Intervals::new([1, 1, 2], &wrong, &[span(0, 1)]), &expected);
    }
    for wrong in [[span(3, 2), span(4, 5)], [span(0, 3), span(2, 5)], [span(4, 5), span(0, 1)]] {
        assert_error(new(&[0, 2, 2], &wrong), &value("intervals", spans, format!("{wrong:?}")));
    }
    new(&[0, 1, 2], &[span(0, MAX), span(MAX, MAX)]).unwrap();
}

/// What is asked about cells that no list has is answered.
#[test]
fn cells_outside_a_mask() {
    let cell = lucid_attention::Cell { sequence: 7, q_head: MAX, query: MAX, q_pos: i64::MIN, k_pos: MAX };
    let intervals = Intervals::new([2, 1, 1], &[0; 3], &[]).unwrap();
    for mask in [Mask::NONE.kv_lens(&[1, 2]), Mask::prefix_lm(&[]), Mask::NONE.intervals(intervals)] {
        assert!(!mask.allows(cell), "{mask:?}");
    }
    assert!(
        Mask::NONE
            .window(None, Some(MAX))
            .window(Some(MAX), None)
            .allows(lucid_attention::Cell { q_pos: 0, ..cell })
    );
}

#[test]
fn key_panels() {
    let overflow = SizeOverflow { operand: "key panels" };
    for [batch, heads, dim, capacity] in
        [[1, 1, 1, MAX], [MAX, 2, 1, 1], [1, MAX, MAX, 64], [2, 2, MAX / 2, 64]]
    {
        assert_error(KeyPanels::<f32>::with_capacity(batch, heads, dim, capacity), &overflow);
    }
    assert_error(KeyPanels::<f32>::with_capacity(1, 1, 0, 1), &value("head_dim", "at least 1", "0"));
    let mut panels = KeyPanels::from_rows(view(K), 64).unwrap();
    let strided = View::with_strides(&NUMBERS, K, [1, 1, 1, 2]).unwrap();
    let table = [
        (view([1, 2, 5, 8]), shape("keys", "batch", 2, 1)),
        (view([2, 3, 5, 8]), shape("keys", "heads", 2, 3)),
        (view([2, 2, 5, 4]), shape("keys", "dim", 8, 4)),
        (strided, Stride { operand: "keys", got: 2 }),
        (repeat([2, 2, 60, 8]), TooLarge { operand: "keys", axis: "tokens", limit: 59, got: 60 }),
        (repeat([2, 2, MAX, 8]), TooLarge { operand: "keys", axis: "tokens", limit: 59, got: MAX }),
    ];
    for (keys, expected) in &table {
        assert_error(panels.append(*keys), expected);
        assert_eq!(panels.shape(), K, "nothing is added");
    }
    assert_eq!(panels.get([MAX; 4]), None);
    panels.truncate(MAX);
    panels.append(repeat([2, 2, 59, 8])).unwrap();
    assert_eq!(panels.get([1, 1, 63, 7]), Some(0.5), "the last place");
    for [batch, heads, dim, tokens] in [[MAX, 0, MAX, 3], [0, MAX, MAX, 64], [MAX / 2, 2, 1, 0]] {
        let panels = KeyPanels::from_rows(repeat([batch, heads, tokens, dim]), tokens).unwrap();
        assert_eq!(panels.shape(), [batch, heads, tokens, dim], "no element, whatever the other sizes");
    }
}

#[test]
fn merging() {
    let wide = View::with_strides(&NUMBERS, OUT, [1, 1, 1, 2]).unwrap();
    let table = [
        (view([1, 4, 3, 6]), ROWS, ROWS, shape("other", "batch", 2, 1)),
        (view([2, 4, 3, 5]), ROWS, ROWS, shape("other", "dim", 6, 5)),
        (wide, ROWS, ROWS, Stride { operand: "other", got: 2 }),
        (view(OUT), ROWS - 1, ROWS, shape("lse", "rows", 24, 23)),
        (view(OUT), ROWS, ROWS + 1, shape("other_lse", "rows", 24, 25)),
    ];
    for (other, rows, other_rows, expected) in &table {
        let (mut out, mut lse) = ([UNTOUCHED; 144], vec![UNTOUCHED; *rows]);
        let into = ViewMut::new(&mut out, OUT).unwrap();
        assert_error(merge(into, &mut lse, *other, &NUMBERS[..*other_rows]), expected);
        assert!(untouched(&out) && untouched(&lse), "{expected}");
    }
    let strided = ViewMut::with_strides(&mut [0.0; 300], OUT, [144, 36, 12, 2]).map(|mut out| {
        assert_error(
            merge(out.reborrow(), &mut [0.0; ROWS], view(OUT), &NUMBERS[..ROWS]),
            &Stride { operand: "out", got: 2 },
        );
    });
    strided.unwrap();
    let empty = [MAX, 2, 1, 0];
    let into = ViewMut::<f32>::with_strides(&mut [], empty, [0; 4]).unwrap();
    assert_error(merge(into, &mut [], repeat(empty), &[]), &SizeOverflow { operand: "lse" });
}
