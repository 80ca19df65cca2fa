//! SVG: cells, colours, labels, layout.

use crate::page::Page;
use crate::{TOKENS, map, values, view};
use lucid_attention::Mask;
use lucid_attention::viz::{EntropyMap, HeatMap};
use proptest::prelude::*;

fn rgb(colour: &str) -> [i32; 3] {
    [1, 3, 5].map(|at| i32::from_str_radix(&colour[at..at + 2], 16).expect("#rrggbb"))
}

/// Viridis, as its authors' table has it (Smith and van der Walt; matplotlib `_cm_listed.py`), to a step of the scale.
#[test]
fn numbers_have_their_colours() {
    let known = [
        (0.0, [68, 1, 84]),
        (0.25, [59, 82, 139]),
        (0.5, [33, 145, 140]),
        (0.75, [94, 201, 98]),
        (1.0, [253, 231, 37]),
    ];
    let row = known.map(|(value, _)| value);
    let page = Page::read(&map(&row, 1, 5).draw().unwrap());
    for (square, (value, expected)) in page.panels[0].squares[0].iter().zip(known) {
        let got = rgb(&square.colour);
        let difference = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).max();
        assert!(difference <= Some(4), "{value}: {got:?}, not {expected:?}");
    }
    assert!(page.legend.is_empty());
}

/// The scale ends at the largest number, or where it is told to; what is above has the colour of its end.
#[test]
fn the_scale_has_an_end() {
    let colours = |map: HeatMap<'_>| {
        let page = Page::read(&map.draw().unwrap());
        page.panels[0].squares[0].iter().map(|square| square.colour.clone()).collect::<Vec<_>>()
    };
    let full = colours(map(&[0.0, 0.5, 1.0], 1, 3));
    assert_eq!(colours(map(&[0.0, 0.125, 0.25], 1, 3)), full);
    let fixed = colours(map(&[0.0, 0.25, 0.5, 0.9], 1, 4).upper(0.5));
    assert_eq!(fixed, [&full[0], &full[1], &full[2], &full[2]].map(String::as_str));
    let notes = |upper| Page::read(&map(&[0.0, 0.9], 1, 2).upper(upper).draw().unwrap()).texts().join("\n");
    assert!(notes(0.5).contains("colours end at 0.5, the largest number is 0.9"), "{}", notes(0.5));
    assert!(!notes(1.0).contains("colours end"));
    // A row without keys is all 0.
    assert_eq!(colours(map(&[0.0, 0.0], 1, 2)), [full[0].clone(), full[0].clone()]);
}

/// NaN and masked cells have colours that no number has, and a legend; a masked NaN is masked.
#[test]
fn what_is_no_number_is_told_apart() {
    let mut square = values([1, 1, 16, 16]);
    square[16] = f32::NAN; // query 1, key 0
    square[5] = f32::NAN; // query 0, key 5: removed
    let page = Page::read(&map(&square, 16, 16).mask(Mask::causal()).draw().unwrap());
    let (masked, nan) = (&page.legend["masked"], &page.legend["NaN"]);
    assert_ne!(masked, nan);
    for (row, squares) in page.panels[0].squares.iter().enumerate() {
        for (key, square) in squares.iter().enumerate() {
            assert_eq!(square.colour == *masked, key > row, "query {row}, key {key}");
            assert_eq!(square.colour == *nan, (row, key) == (1, 0), "query {row}, key {key}");
        }
    }
    page.assert_readable();
}

/// The mask is asked about positions, of chosen rows and with a query start too.
#[test]
fn masks_count_from_the_query_start() {
    let numbers = values([1, 1, 2, 12]);
    let picture = map(&numbers, 2, 12).rows(&[1, 4]).q_start(5).mask(Mask::causal()).draw().unwrap();
    let page = Page::read(&picture);
    let seen = |row: usize| {
        let squares = &page.panels[0].squares[row];
        squares.iter().filter(|square| square.colour != page.legend["masked"]).count()
    };
    assert_eq!([seen(0), seen(1)], [7, 10]);
    assert!(page.texts().contains(&"9"));
}

/// Text of every kind arrives as it was, and cannot become markup.
#[test]
fn labels_are_escaped() {
    let tokens = ["<b>", "&amp;", "\"q\"", "naïve", "猫", "\u{1b}[31m\n", "]]>", "a\u{ffff}"];
    let numbers = values([1, 1, 8, 8]);
    let picture = map(&numbers, 8, 8).tokens(&tokens).title("a < b & c").draw().unwrap();
    let page = Page::read(&picture);
    let shown = ["<b>", "&amp;", "\"q\"", "naïve", "猫", "\\u{1b}[31m\\n", "]]>", "a\\u{ffff}"];
    for text in shown {
        assert_eq!(page.texts().iter().filter(|found| **found == text).count(), 2, "{text} on both axes");
    }
    assert!(page.texts().contains(&"a < b & c"));
    assert!(picture.svg().contains("&lt;b&gt;") && picture.svg().contains("&amp;amp;"));
    assert!(!picture.svg().contains("<b>") && !picture.svg().contains('\u{1b}'));
    page.assert_readable();
}

#[test]
fn cross_attention_has_two_sets_of_tokens() {
    let numbers = values([1, 1, 2, 3]);
    let map = map(&numbers, 2, 3).tokens(&["le", "chat", "dort"]).query_tokens(&["the", "cat", "sleeps"]);
    let page = Page::read(&map.rows(&[0, 2]).draw().unwrap());
    let panel: Vec<_> = page.panels[0].words.iter().map(|words| words.text.as_str()).collect();
    assert_eq!(panel, ["the", "sleeps", "le", "chat", "dort"]);
}

/// All heads, each with its title, under one scale: the same number has the same colour in every panel.
#[test]
fn a_grid_shares_its_scale() {
    let mut numbers = vec![0.1f32; 12 * 8 * 8];
    numbers[12 * 64 - 1] = 0.8;
    let map = HeatMap::new(view(&numbers, [1, 12, 8, 8])).tokens(&TOKENS).title("all heads");
    let page = Page::read(&map.draw().unwrap());
    assert_eq!(page.panels.len(), 12);
    assert!((0..12).all(|head| page.texts().contains(&format!("head {head}").as_str())));
    let colours = |panel: usize| page.panels[panel].squares.iter().flatten().map(|square| &square.colour);
    let low = colours(0).next().unwrap();
    assert!((0..11).all(|panel| colours(panel).count() == 64 && colours(panel).all(|colour| colour == low)));
    assert_eq!(colours(11).filter(|colour| *colour != low).count(), 1);
    assert_eq!(page.texts().iter().filter(|text| **text == "probability").count(), 1);
    page.assert_readable();

    let chosen = HeatMap::new(view(&numbers[..192], [1, 3, 8, 8])).heads(&[2, 5, 7]);
    let page = Page::read(&chosen.draw().unwrap());
    assert!(["head 2", "head 5", "head 7"].iter().all(|title| page.texts().contains(title)));
    let alone = Page::read(&chosen.head(5).draw().unwrap());
    assert_eq!(alone.panels.len(), 1);
}

/// Labels that have no room are left out evenly, the first never.
#[test]
fn labels_are_thinned() {
    let tokens: Vec<_> = (0..200).map(|token| format!("token{token}")).collect();
    let numbers = values([1, 1, 200, 200]);
    let page = Page::read(&map(&numbers, 200, 200).tokens(&tokens).draw().unwrap());
    let labels: Vec<usize> =
        page.texts().iter().filter_map(|text| text.strip_prefix("token")?.parse().ok()).collect();
    let (rows, keys) = labels.split_at(labels.len() / 2);
    assert_eq!(rows, keys);
    assert!((20..100).contains(&rows.len()) && rows[0] == 0, "{rows:?}");
    assert!(rows.windows(3).all(|three| three[1] - three[0] == three[2] - three[1]), "{rows:?}");
    page.assert_readable();
}

#[test]
fn entropy_shows_its_numbers() {
    let entropy = [0.0, 1.234, 2.5, f32::NAN, 0.5, 3.0];
    let page = Page::read(&EntropyMap::new(&entropy, [2, 3]).title("by layer and head").draw().unwrap());
    let squares = &page.panels[0].squares;
    assert_eq!([squares.len(), squares[0].len()], [2, 3]);
    assert_eq!(squares[1][0].colour, page.legend["NaN"]);
    let texts = page.texts();
    for text in ["0.00", "1.23", "2.50", "NaN", "0.50", "3.00", "layer", "head", "entropy (nats)"] {
        assert!(texts.contains(&text), "{text} is not in {texts:?}");
    }
    page.assert_readable();
}

#[test]
fn bytes_are_the_same_twice() {
    let numbers = values([1, 4, 30, 50]);
    let map = HeatMap::new(view(&numbers, [1, 4, 30, 50])).mask(Mask::causal()).title("twice");
    assert_eq!(map.draw().unwrap(), map.draw().unwrap());
}

/// 16 rows of 8192 keys are a picture of a usual size.
#[test]
fn a_long_sequence_stays_small() {
    let numbers = values([1, 1, 16, 8192]);
    let rows: Vec<_> = (0..16).map(|row| row * 546).collect();
    let picture = map(&numbers, 16, 8192).rows(&rows).mask(Mask::causal()).draw().unwrap();
    let page = Page::read(&picture);
    assert!(page.panels[0].squares.len() == 16 && page.panels[0].squares[0].len() == 256);
    assert!(page.texts().contains(&"each cell: largest of 1 x 32 (queries x keys)"));
    assert!(page.texts().contains(&"7644"), "a row's position");
    assert!(picture.svg().len() < 150_000, "{} bytes", picture.svg().len());
    page.assert_readable();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the shape and the labels: texts neither overlap nor leave the page, cells are complete.
    #[test]
    fn layouts_are_readable(
        heads in 1usize..14, rows in 1usize..90, keys in 1usize..90, words in 0usize..3, length in 0usize..24,
        title in "[a-z ]{0,120}", scale in -6i32..3,
    ) {
        let numbers: Vec<_> = values([1, heads, rows, keys]).iter().map(|x| x * 10f32.powi(scale)).collect();
        let label = |kind: &str, i| format!("{kind}{i}{}", "x".repeat(i * 7 % (length + 1)));
        let [of_keys, of_queries] =
            [("k", keys), ("q", rows)].map(|(kind, n)| (0..n).map(|i| label(kind, i)).collect::<Vec<_>>());
        let mut map = HeatMap::new(view(&numbers, [1, heads, rows, keys])).title(title).max_cells(64);
        if words > 0 {
            map = map.query_tokens(&of_queries);
        }
        if words > 1 {
            map = map.tokens(&of_keys);
        }
        let page = Page::read(&map.draw().unwrap());
        page.assert_readable();
        prop_assert_eq!(page.panels.len(), heads);
        for panel in &page.panels {
            prop_assert!(panel.squares.len() == rows.div_ceil(rows.div_ceil(64)));
            prop_assert!(panel.squares[0].len() == keys.div_ceil(keys.div_ceil(64)));
        }
    }
}
