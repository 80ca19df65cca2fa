//! Runs the sentence encoder all-MiniLM-L6-v2 on this crate's module: attention, feed-forward layers and norms.
//!
//! ```text
//! cargo run --release --example minilm -- "A man eats." "Someone has lunch." "The sky is blue."
//!
//! sentences -> text.rs: tokens -> model.rs: 6 layers -> embeddings of 384 numbers -> report.rs: similarities
//!                                    `- the calls into this crate                   `- or picture.rs: heat maps
//! ```
//!
//! `fetch.rs` gets the model on first use; `bench.rs` times the encoder; `args.rs` knows the options (`--help` lists
//! them).

mod args;
mod bench;
mod fetch;
mod model;
mod picture;
mod report;
mod text;

use args::{Command, Output};
use report::{Report, Sentence};
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

/// Every failure is a message for the person at the terminal.
type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Error>;

/// How many tokens go through the network at once. Bounds the memory: the widest activation is 1536 numbers a token.
const BATCH_TOKENS: usize = 2048;

struct Model {
    tokenizer: text::Tokenizer,
    encoder: model::Encoder,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("minilm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let (options, cases) = match args::parse()? {
        Command::Help => return print(args::HELP),
        Command::Encode(options) => (options, None),
        Command::Bench(options, cases) => (options, Some(cases)),
    };
    if let Some(threads) = options.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    // In the pool: each product of a call from outside would be handed over to it and back, asleep meanwhile.
    rayon::scope(|_| answer(options, cases))
}

fn answer(options: args::Options, cases: Option<Vec<bench::Case>>) -> Result<()> {
    let model = options.model.as_deref();
    if let Some(cases) = cases {
        let timings = bench::run(load(model)?.encoder, &cases)?;
        return print(&match options.output {
            Output::Json => serde_json::to_string(&timings)? + "\n",
            _ => timings.to_string(),
        });
    }
    let (texts, expected) = match &options.output {
        Output::Check(file) => {
            let expected = report::read(file)?;
            (expected.iter().map(|sentence| sentence.text.clone()).collect(), expected)
        }
        _ if options.sentences.is_empty() => (read_lines()?, Vec::new()),
        _ => (options.sentences, Vec::new()),
    };
    match options.output {
        Output::Table => print(&encode(texts, model)?.to_string()),
        Output::Json => print(&(serde_json::to_string(&encode(texts, model)?)? + "\n")),
        Output::Check(_) => report::check(&encode(texts, model)?.sentences, &expected),
        Output::Picture(wanted) => print(&picture::draw(&wanted, &texts, model)?),
    }
}

fn load(model_dir: Option<&Path>) -> Result<Model> {
    let files = fetch::load(model_dir)?;
    Ok(Model {
        tokenizer: text::Tokenizer::new(&files.tokenizer)?,
        encoder: model::Encoder::new(&files.weights)?,
    })
}

/// Puts all sentences through the model, a batch at a time.
fn encode(texts: Vec<String>, model_dir: Option<&Path>) -> Result<Report> {
    let Model { tokenizer, mut encoder } = load(model_dir)?;
    let mut report = Report::default();
    let mut texts = texts.into_iter().peekable();
    while texts.peek().is_some() {
        let (mut batch, mut batch_texts) = (text::Batch::default(), Vec::new());
        while batch.tokens() < BATCH_TOKENS
            && let Some(text) = texts.next()
        {
            batch.push(&tokenizer.encode(&text)?);
            batch_texts.push(text);
        }
        let encoded = encoder.encode(&batch, model::Watch { entropy: true, probabilities_of: None })?;
        report.add_time(encoded.time, encoded.attention_time);
        let outcomes = encoded.embeddings.into_iter().zip(encoded.entropy);
        for ((text, range), (embedding, entropy)) in batch_texts.into_iter().zip(batch.ranges()).zip(outcomes)
        {
            report.sentences.push(Sentence { text, tokens: range.len(), embedding, entropy });
        }
    }
    Ok(report)
}

/// The lines of standard input, empty ones too: sentence `n` of the answer is line `n`.
fn read_lines() -> Result<Vec<String>> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        eprintln!("Type one sentence a line and end with Ctrl-D (Ctrl-Z on Windows). See --help for more.");
    }
    let lines = stdin.lock().lines().collect::<io::Result<Vec<_>>>();
    let lines = lines.map_err(|error| format!("cannot read sentences from standard input: {error}"))?;
    if lines.is_empty() {
        return Err("no sentences: pass them as arguments or one a line on standard input".into());
    }
    Ok(lines)
}

/// Prints to standard output; a reader that has gone away, as `head` does, is no failure.
fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {error}").into())
        }
        _ => Ok(()),
    }
}
