//! The view for terminals.

use crate::{map, values, view};
use lucid_attention::Mask;
use lucid_attention::viz::TerminalColors::{self, Ascii, Indexed, True};
use lucid_attention::viz::{EntropyMap, HeatMap};
use proptest::prelude::*;
use unicode_width::UnicodeWidthStr;

/// Without escape sequences, each of which has to be one that sets colours.
fn plain(text: &str) -> String {
    let mut parts = text.split('\x1b');
    let mut plain = parts.next().unwrap_or("").to_owned();
    for part in parts {
        let (codes, rest) = part.strip_prefix('[').and_then(|part| part.split_once('m')).expect(part);
        assert!(codes.chars().all(|c| c.is_ascii_digit() || c == ';'), "escape {codes}");
        plain.push_str(rest);
    }
    plain
}

/// No line ends in colour.
fn assert_reset(text: &str) {
    for line in text.lines() {
        let [mut ink, mut ground] = [false; 2];
        for part in line.split('\x1b').skip(1) {
            let codes = part[1..].split_once('m').expect(part).0;
            match codes.split(';').next() {
                Some("38") => ink = true,
                Some("39") => ink = false,
                Some("48") => ground = true,
                Some("49") => ground = false,
                _ => panic!("escape {codes}"),
            }
        }
        assert!(!ink && !ground, "{line:?}");
    }
}

#[test]
fn ascii() {
    let numbers = [0.0, 0.5, 1.0, f32::NAN, 0.25, 0.7, 0.13, 0.88, 0.0];
    let map = map(&numbers, 3, 3).tokens(&["the", "naïve", "cat"]).mask(Mask::causal()).title("three words");
    let expected = "\
three words
  the ..
na?ve ??--
  cat ::@@..
      t n c
      h a a
      e ? t
        v
        e
0 .:-=+*#%@ 0.88 probability
query down, key right
blank masked
? NaN
";
    assert_eq!(
        map.terminal(40, Ascii).unwrap().lines().map(str::trim_end).collect::<Vec<_>>().join("\n") + "\n",
        expected
    );
}

#[test]
fn true_colours() {
    let text = map(&[0.0, 1.0], 1, 2).terminal(40, True).unwrap();
    let first = text.lines().next().unwrap();
    assert_eq!(first, "0 \x1b[48;2;68;1;84m  \x1b[48;2;253;231;37m  \x1b[49m");
}

/// Half blocks hold two rows a line; an odd last row has nothing below.
#[test]
fn half_blocks() {
    let numbers = values([1, 1, 5, 30]);
    let text = map(&numbers, 5, 30).terminal(40, True).unwrap();
    let lines: Vec<_> = text.lines().take(3).map(plain).collect();
    assert_eq!(lines, [0, 2, 4].map(|row| format!("{row} {}", "▀".repeat(30))));
    let third = text.lines().nth(2).unwrap();
    assert!(!third.contains("\x1b[48;2"), "{third:?}");
    assert!(text.lines().next().unwrap().contains("\x1b[48;2"));
    assert_reset(&text);
}

#[test]
fn indexed_colours() {
    let text = map(&[0.0, 1.0], 1, 2).terminal(40, Indexed).unwrap();
    assert!(text.contains("\x1b[48;5;") && !text.contains("48;2;"));
    assert_reset(&text);
}

#[test]
fn entropy_has_numbers_where_they_fit() {
    let entropy: Vec<_> = (0..24).map(|i| i as f32 / 10.0).collect();
    let map = EntropyMap::new(&entropy, [2, 12]);
    for colors in [Ascii, True] {
        assert!(plain(&map.terminal(80, colors).unwrap()).contains(" 1.20  1.30 "));
        let narrow = map.terminal(40, colors).unwrap();
        assert!(!plain(&narrow).contains("1.20"));
    }
}

/// A token cannot send commands to the terminal.
#[test]
fn tokens_are_only_text() {
    let map = map(&[0.5], 1, 1).tokens(&["\x1b[2Jx"]).title("\x1b]0;title\x07 two");
    for colors in [True, Indexed, Ascii] {
        let text = plain(&map.terminal(80, colors).unwrap());
        assert!(text.contains("\\u{1b}[2Jx") && !text.contains('\x07'), "{text:?}");
    }
}

/// 8192 keys fit a narrow sheet, and it says how.
#[test]
fn long_sequences_fit() {
    let numbers = values([1, 1, 16, 8192]);
    let text = map(&numbers, 16, 8192).terminal(60, Ascii).unwrap();
    assert!(text.contains("each cell: largest of 1 x "), "{text}");
    assert!(text.lines().all(|line| line.len() <= 60));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_wider_than_asked(
        heads in 1usize..14, rows in 1usize..60, keys in 1usize..200, width in 40usize..140, mode in 0usize..3,
        with_tokens in any::<bool>(), length in 0usize..30,
    ) {
        let colors: TerminalColors = [True, Indexed, Ascii][mode];
        let numbers = values([1, heads, rows, keys]);
        let tokens: Vec<_> = (0..keys.max(rows)).map(|i| format!("{i}{}", "猫é"[..].repeat(i * 5 % (length + 1)))).collect();
        let mut map = HeatMap::new(view(&numbers, [1, heads, rows, keys])).title("some words of a title, and more");
        if with_tokens {
            map = map.tokens(&tokens[..keys]).query_tokens(&tokens[..rows]);
        }
        let text = map.terminal(width, colors).unwrap();
        assert_reset(&text);
        prop_assert_eq!(&text, &map.terminal(width, colors).unwrap());
        let plain = plain(&text);
        for line in plain.lines() {
            prop_assert!(line.width() <= width, "{:?} is {} wide", line, line.width());
        }
        for head in (0..heads).filter(|_| heads > 1) {
            let title = format!("head {head}");
            prop_assert!(plain.contains(&title));
        }
        prop_assert!(colors != Ascii || text.is_ascii());
    }
}

/// Characters without a width, and such as are wider together than apart.
#[test]
fn characters_that_join() {
    let joined = format!("{}❤\u{fe0f}bbbbb", "a".repeat(14));
    for token in ["e\u{301}", "ก\u{e49}\u{e34}", "\u{301}", &joined] {
        for colors in [Ascii, Indexed, True] {
            let text = map(&[0.5], 1, 1).tokens(&[token]).title(token).terminal(40, colors).unwrap();
            assert!(text.lines().all(|line| plain(line).width() <= 40), "{token:?}: {text}");
        }
    }
}
