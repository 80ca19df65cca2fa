//! Labels: what can be shown of a token, and which labels of an axis have room.

use unicode_width::UnicodeWidthStr;

/// Longer labels are cut.
pub(super) const LONGEST: usize = 16;

/// A text on one line: control characters and what XML has no way to write become escapes, so that a token can neither
/// break a document nor command a terminal.
pub(super) fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_format(c) {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    clean
}

/// Not characters to XML (U+FFFE, U+FFFF), or line ends and marks that turn the direction of all that follows.
fn is_format(c: char) -> bool {
    matches!(c, '\u{fffe}' | '\u{ffff}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// [`clean`], at most `columns` wide.
pub(super) fn cut(text: &str, columns: usize) -> String {
    let text = clean(text);
    if text.width() <= columns {
        return text;
    }
    let mut start = String::new();
    for c in text.chars() {
        let kept = start.len();
        start.push(c);
        // Characters that join can be wider together than apart.
        if start.width() >= columns {
            start.truncate(kept);
            break;
        }
    }
    start.push('…');
    start
}

/// Columns of the widest.
pub(super) fn widest(labels: &[String]) -> usize {
    labels.iter().map(|label| label.width()).max().unwrap_or(0)
}

/// Every how many cells a label has room, if it takes `needed` and a cell has `cell` of the same unit.
///
/// Numbers get round steps (1, 2, 5, 10, ...), words just enough.
pub(super) fn step(needed: usize, cell: usize, words: bool) -> usize {
    let least = needed.div_ceil(cell.max(1)).max(1);
    if words {
        return least;
    }
    let mut decade = 1usize;
    loop {
        if let Some(step) =
            [1, 2, 5].map(|digit| decade.saturating_mul(digit)).into_iter().find(|&s| s >= least)
        {
            return step;
        }
        decade = decade.saturating_mul(10);
    }
}

/// Round numbers from 0 to `upper`, 3 to 7 of them, as they are printed.
pub(super) fn ticks(upper: f32) -> Vec<(f32, String)> {
    let upper = f64::from(upper);
    let decade = (upper / 5.0).log10().floor();
    let unit = 10f64.powf(decade);
    let digit = [1.0, 2.0, 5.0, 10.0].into_iter().find(|digit| upper / (digit * unit) <= 6.0).unwrap_or(10.0);
    let step = digit * unit;
    let decimals = if digit == 10.0 { -decade - 1.0 } else { -decade }.max(0.0) as usize;
    let print = |value: f64| match decimals {
        0..=5 if upper < 1e6 => format!("{value:.decimals$}"),
        _ => format!("{:e}", value as f32),
    };
    let count = (upper / step * (1.0 + 1e-6)).floor() as usize;
    (0..=count).map(|i| i as f64 * step).map(|value| (value as f32, print(value))).collect()
}

/// Three digits or so of a number, for a reader.
pub(super) fn number(value: f32) -> String {
    match value {
        0.0 => "0".into(),
        0.001..1000.0 => {
            let digits = format!("{value:.3}");
            digits.trim_end_matches('0').trim_end_matches('.').into()
        }
        _ => format!("{value:.2e}"),
    }
}

/// A number that stands in its cell.
pub(super) fn in_cell(value: f32) -> String {
    if value < 1000.0 { format!("{value:.2}") } else { format!("{value:.0e}") }
}

/// Lines of whole words, each at most `columns` wide; a longer word is cut.
pub(super) fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in clean(text).split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.width() + 1 + word.width() <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(cut(word, columns)),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_becomes_plain() {
        assert_eq!(clean("a\nb\u{1b}[2J\u{202e}"), "a\\nb\\u{1b}[2J\\u{202e}");
        assert_eq!(clean("naïve <b> 猫"), "naïve <b> 猫");
    }

    #[test]
    fn long_text_is_cut_by_columns_not_bytes() {
        assert_eq!(cut("猫猫猫", 6), "猫猫猫");
        assert_eq!(cut("猫猫猫", 5), "猫猫…");
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "ab…");
    }

    #[test]
    fn steps_leave_room() {
        assert_eq!(step(13, 20, true), 1);
        assert_eq!(step(13, 5, true), 3);
        assert_eq!(step(13, 5, false), 5);
        assert_eq!(step(60, 2, false), 50);
        assert_eq!(step(0, 0, false), 1);
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let texts = |upper| ticks(upper).into_iter().map(|(_, text)| text).collect::<Vec<_>>();
        assert_eq!(texts(1.0), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(texts(0.37), ["0.0", "0.1", "0.2", "0.3"]);
        assert_eq!(texts(4.75), ["0", "1", "2", "3", "4"]);
        for upper in [1e-38f32, 3e-7, 0.004, 0.053, 0.2, 0.99, 1.0, 5.5, 120.0, 3e9, f32::MAX] {
            let ticks = ticks(upper);
            assert!((3..=7).contains(&ticks.len()), "{upper}: {ticks:?}");
            assert!(ticks.iter().all(|(value, _)| (0.0..=upper).contains(value)), "{upper}: {ticks:?}");
            assert!(ticks.windows(2).all(|pair| pair[0].1 != pair[1].1), "{upper}: {ticks:?}");
        }
    }

    #[test]
    fn wrapped_lines_fit() {
        assert_eq!(wrap("a man is  eating", 8), ["a man is", "eating"]);
        assert_eq!(wrap("incomprehensible no", 8), ["incompr…", "no"]);
        assert!(wrap("  ", 8).is_empty());
    }
}
