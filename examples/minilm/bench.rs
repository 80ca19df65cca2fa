//! How long the encoder takes, from token ids to embeddings.

use crate::Result;
use crate::model::{Encoder, VOCABULARY, Watch};
use crate::text::Batch;
use serde::Serialize;
use std::fmt;
use std::time::{Duration, Instant};

/// Sentences of so many tokens each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Case {
    pub(crate) sentences: usize,
    pub(crate) tokens: usize,
}

impl Case {
    /// A short sentence, longer ones, and a batch.
    pub(crate) const ALL: [Case; 4] = [
        Case { sentences: 1, tokens: 14 },
        Case { sentences: 1, tokens: 128 },
        Case { sentences: 1, tokens: 256 },
        Case { sentences: 8, tokens: 128 },
    ];

    /// `[CLS]`, words that are spread over the vocabulary, `[SEP]`; the same ones wherever this formula is written.
    fn batch(&self) -> Batch {
        let (cls, sep, first_word) = (101, 102, 1000);
        let mut batch = Batch::default();
        for sentence in 0..self.sentences {
            let word = |t: usize| first_word + (t * 7919 + sentence * 104_729) % (VOCABULARY - first_word);
            let words = (1..self.tokens - 1).map(|t| word(t) as u32);
            batch.push(&[cls].into_iter().chain(words).chain([sep]).collect::<Vec<_>>());
        }
        batch
    }
}

/// `Display` gives a table, `Serialize` what `--bench --json` prints.
#[derive(Serialize)]
pub(crate) struct Timings {
    cases: Vec<Timing>,
}

#[derive(Serialize)]
struct Timing {
    case: Case,
    calls: usize,
    median_seconds: f64,
    /// Of each sentence, to compare with others'.
    embeddings: Vec<Vec<f32>>,
}

/// How long calls of a case go on, and how many there are at least.
const TIME: Duration = Duration::from_millis(500);
const CALLS: usize = 5;

/// Times one case after another.
pub(crate) fn run(mut encoder: Encoder, cases: &[Case]) -> Result<Timings> {
    Ok(Timings { cases: cases.iter().map(|case| time(&mut encoder, *case)).collect::<Result<_>>()? })
}

fn time(encoder: &mut Encoder, case: Case) -> Result<Timing> {
    let batch = case.batch();
    // Warms up caches and scratch.
    let embeddings = encoder.encode(&batch, Watch::default())?.embeddings;
    let (start, mut times) = (Instant::now(), Vec::new());
    while start.elapsed() < TIME || times.len() < CALLS {
        times.push(encoder.encode(&batch, Watch::default())?.time.as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(Timing { case, calls: times.len(), median_seconds: times[times.len() / 2], embeddings })
}

impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "sentences x tokens   median ms   tokens/s   calls")?;
        for Timing { case: Case { sentences, tokens }, calls, median_seconds, .. } in &self.cases {
            let case = format!("{sentences} x {tokens}");
            let rate = (sentences * tokens) as f64 / median_seconds;
            writeln!(f, "{case:>18}   {:>9.2}   {rate:>8.0}   {calls:>5}", median_seconds * 1e3)?;
        }
        Ok(())
    }
}
