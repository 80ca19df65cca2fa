//! The answer: as tables, as JSON, or compared with what another implementation says.

use crate::Result;
use crate::model::LAYERS;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// A sentence and what the encoder makes of it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Sentence {
    pub(crate) text: String,
    pub(crate) tokens: usize,
    /// 384 numbers, of Euclidean length 1.
    pub(crate) embedding: Vec<f32>,
    /// By layer and head, in nats.
    pub(crate) entropy: Vec<Vec<f32>>,
}

/// `Display` gives the tables, `Serialize` what `--json` prints.
#[derive(Default, Serialize)]
pub(crate) struct Report {
    pub(crate) sentences: Vec<Sentence>,
    /// In the encoder.
    seconds: f64,
    /// Of these in the attention modules, projections included.
    attention_seconds: f64,
}

/// More sentences than this do not make a table that fits a screen.
const LARGEST_TABLE: usize = 12;
/// Characters of a sentence to show.
const SHOWN: usize = 40;

impl Report {
    pub(crate) fn add_time(&mut self, all: Duration, attention: Duration) {
        self.seconds += all.as_secs_f64();
        self.attention_seconds += attention.as_secs_f64();
    }

    fn similarity(&self, a: usize, b: usize) -> f32 {
        let [a, b] = [a, b].map(|index| &self.sentences[index].embedding);
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    /// All against all.
    fn write_table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Cosine similarity")?;
        let count = self.sentences.len();
        write!(f, "    ")?;
        (1..=count).try_for_each(|number| write!(f, "{number:>7}"))?;
        for (row, sentence) in self.sentences.iter().enumerate() {
            write!(f, "\n{:>4}", row + 1)?;
            (0..count).try_for_each(|column| write!(f, "{:>7.3}", self.similarity(row, column)))?;
            write!(f, "  {}", shown(&sentence.text))?;
        }
        writeln!(f)
    }

    /// Of each, the one that is most like it.
    fn write_nearest(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Most similar sentence of each, by cosine")?;
        for (row, sentence) in self.sentences.iter().enumerate() {
            let others = (0..self.sentences.len()).filter(|&other| other != row);
            let nearest = others
                .map(|other| (self.similarity(row, other), other))
                .max_by(|(a, _), (b, _)| a.total_cmp(b));
            if let Some((similarity, other)) = nearest {
                let (text, like) = (shown(&sentence.text), shown(&self.sentences[other].text));
                writeln!(f, "{:>5} {text}\n{similarity:>13.3} {:>5} {like}", row + 1, other + 1)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.sentences.len() <= LARGEST_TABLE {
            self.write_table(f)?;
        } else {
            self.write_nearest(f)?;
        }
        writeln!(f, "\nAttention entropy in nats, mean over sentences and heads")?;
        for layer in 0..LAYERS {
            let heads = self.sentences.iter().flat_map(|sentence| &sentence.entropy[layer]);
            let mean = heads.clone().sum::<f32>() / heads.count() as f32;
            writeln!(f, "  layer {layer}  {mean:.3}")?;
        }
        let tokens: usize = self.sentences.iter().map(|sentence| sentence.tokens).sum();
        writeln!(
            f,
            "\n{tokens} tokens in {:.1} ms: {:.0} tokens/s, {:.1} % of the time in attention and its projections",
            self.seconds * 1e3,
            tokens as f64 / self.seconds,
            self.attention_seconds / self.seconds * 100.0
        )
    }
}

/// The beginning of a text on one line, in quotes.
fn shown(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut start: String = text.chars().map(clean).take(SHOWN).collect();
    if text.chars().nth(SHOWN).is_some() {
        start.push('…');
    }
    format!("\"{start}\"")
}

/// The sentences of a file that has the form of `--json`'s output.
pub(crate) fn read(path: &Path) -> Result<Vec<Sentence>> {
    #[derive(Deserialize)]
    struct File {
        sentences: Vec<Sentence>,
    }
    let problem = |error: &dyn fmt::Display| format!("cannot read {}: {error}", path.display());
    let text = std::fs::read(path).map_err(|error| problem(&error))?;
    let file: File = serde_json::from_slice(&text).map_err(|error| problem(&error))?;
    if file.sentences.is_empty() {
        return Err(problem(&"there are no sentences in it").into());
    }
    Ok(file.sentences)
}

const EMBEDDING_TOLERANCE: f32 = 1e-5;
const ENTROPY_TOLERANCE: f32 = 1e-4;

/// Compares sentence by sentence; says what the largest differences are.
pub(crate) fn check(got: &[Sentence], expected: &[Sentence]) -> Result<()> {
    let (mut in_embedding, mut in_entropy) = (0.0, 0.0);
    let mut failed = Vec::new();
    for (number, (got, expected)) in got.iter().zip(expected).enumerate() {
        let embedding = difference(&got.embedding, &expected.embedding);
        let entropy = difference(&got.entropy.concat(), &expected.entropy.concat());
        let agrees = embedding <= EMBEDDING_TOLERANCE && entropy <= ENTROPY_TOLERANCE;
        if !agrees || got.tokens != expected.tokens {
            failed.push(format!("{} {}", number + 1, shown(&expected.text)));
        }
        in_embedding = embedding.max(in_embedding);
        in_entropy = entropy.max(in_entropy);
    }
    eprintln!(
        "{} sentences: the largest difference is {in_embedding:.1e} in an embedding (at most \
         {EMBEDDING_TOLERANCE:.0e}), {in_entropy:.1e} in an entropy (at most {ENTROPY_TOLERANCE:.0e})",
        got.len()
    );
    if failed.is_empty() {
        return Ok(());
    }
    Err(format!("embedding, entropy or number of tokens is wrong: sentence {}", failed.join(", ")).into())
}

/// The largest difference; infinite if the sizes differ or something is not a number.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() {
        return f32::INFINITY;
    }
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.map(|d| if d.is_nan() { f32::INFINITY } else { d }).fold(0.0, f32::max)
}
