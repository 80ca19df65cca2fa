//! A sentence's attention as a picture, by the crate's feature `viz`.

use crate::Result;
use crate::args::Picture;
use std::path::Path;

/// Draws into the file, or as the text that is to be printed.
#[cfg(feature = "viz")]
pub(crate) fn draw(wanted: &Picture, texts: &[String], model_dir: Option<&Path>) -> Result<String> {
    use crate::Model;
    use crate::model::{HEADS, Watch};
    use crate::text::Batch;
    use lucid_attention::View;
    use lucid_attention::viz::HeatMap;

    let [text] = texts else {
        return Err(format!("--picture draws one sentence, got {}", texts.len()).into());
    };
    let Model { tokenizer, mut encoder } = crate::load(model_dir)?;
    let mut batch = Batch::default();
    batch.push(&tokenizer.encode(text)?);
    let watch = Watch { probabilities_of: Some(wanted.layer), ..Watch::default() };
    let probabilities = encoder.encode(&batch, watch)?.probabilities;

    let tokens = batch.tokens();
    let title = match wanted.head {
        Some(head) => format!("MiniLM, layer {}, head {head}: {text}", wanted.layer),
        None => format!("MiniLM, layer {}: {text}", wanted.layer),
    };
    let mut map = HeatMap::new(View::new(&probabilities, [1, HEADS, tokens, tokens])?)
        .tokens(&tokenizer.words(text)?)
        .title(title);
    if let Some(head) = wanted.head {
        map = map.head(head);
    }
    if wanted.file.as_os_str() == "-" {
        return Ok(map.terminal(columns(), colors())?);
    }
    map.draw()?.save(&wanted.file)?;
    Ok(String::new())
}

/// The width of the terminal where the shell tells it, or that of most.
#[cfg(feature = "viz")]
fn columns() -> usize {
    let told = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    told.filter(|&columns| columns >= 40).unwrap_or(80)
}

/// What standard output can show. See <https://no-color.org>.
#[cfg(feature = "viz")]
fn colors() -> lucid_attention::viz::TerminalColors {
    use lucid_attention::viz::TerminalColors;
    use std::io::IsTerminal;

    if !std::io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
    {
        return TerminalColors::Ascii;
    }
    match std::env::var("COLORTERM").as_deref() {
        Ok("truecolor" | "24bit") => TerminalColors::True,
        _ => TerminalColors::Indexed,
    }
}

/// Says how to get pictures.
#[cfg(not(feature = "viz"))]
pub(crate) fn draw(wanted: &Picture, _: &[String], _: Option<&Path>) -> Result<String> {
    let Picture { file, layer, head } = wanted;
    let head = head.map_or(String::new(), |head| format!(" --head {head}"));
    let options = format!("--picture {} --layer {layer}{head} ...", file.display());
    Err(format!(
        "this build draws no pictures: cargo run --release --features viz --example minilm -- {options}"
    )
    .into())
}
