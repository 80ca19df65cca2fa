//! Sentences to tokens.

use crate::Result;
use crate::fetch::ModelFile;
use crate::model::MAX_TOKENS;
use std::ops::Range;
use tokenizers::TruncationParams;

pub(crate) struct Tokenizer(tokenizers::Tokenizer);

impl Tokenizer {
    /// Reads `tokenizer.json`. Its own settings cut and pad every sentence to 128 tokens; the encoder was made for
    /// `max_seq_length` 256 (`sentence_bert_config.json`), and a ragged batch needs no padding.
    pub(crate) fn new(file: &ModelFile) -> Result<Self> {
        let mut tokenizer =
            tokenizers::Tokenizer::from_bytes(&file.bytes).map_err(|error| file.unusable(error))?;
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(Some(TruncationParams { max_length: MAX_TOKENS, ..Default::default() }))
            .map_err(|error| file.unusable(error))?;
        let tokenizer = Self(tokenizer);
        match tokenizer.encode("")?.len() {
            2 => Ok(tokenizer),
            _ => Err(file.unusable("it does not put [CLS] and [SEP] around a text")),
        }
    }

    /// The tokens as words and pieces of words, one for each id.
    #[cfg_attr(not(feature = "viz"), allow(dead_code, reason = "for pictures"))]
    pub(crate) fn words(&self, text: &str) -> Result<Vec<String>> {
        // The fast way leaves the words out.
        Ok(self.0.encode(text, true)?.get_tokens().to_vec())
    }

    /// Token ids with `[CLS]` and `[SEP]` around them, so 2 even for the empty text.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.0.encode_fast(text, true)?.get_ids().to_vec())
    }
}

/// Token ids of several sentences, packed one after another: no padding, so none is computed on.
pub(crate) struct Batch {
    pub(crate) ids: Vec<u32>,
    /// Sentence `s` is `ids[bounds[s]..bounds[s + 1]]`.
    pub(crate) bounds: Vec<usize>,
}

impl Default for Batch {
    fn default() -> Self {
        Self { ids: Vec::new(), bounds: vec![0] }
    }
}

impl Batch {
    pub(crate) fn push(&mut self, ids: &[u32]) {
        self.ids.extend_from_slice(ids);
        self.bounds.push(self.ids.len());
    }

    pub(crate) fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The tokens of each sentence in turn.
    pub(crate) fn ranges(&self) -> impl ExactSizeIterator<Item = Range<usize>> {
        self.bounds.windows(2).map(|pair| pair[0]..pair[1])
    }
}
