//! Texts: lines, plain or of JSON, tokenized.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::batch::{Batch, LineId};
use super::format::{Extracted, Format};
use super::pipeline::{Batches, PipelineOptions};
use super::position::Position;
use super::shuffle::Shuffle;
use super::source::Source;
use super::stage::{BatchData, Collected, Prepared, Prepares, Reads, Taken, Unit};
use crate::error::{IngestError, ItemError};
use crate::text::{Tokenizer, Tokens, WriteError, Written};

/// A pipeline from lines to token ids.
pub type Pipeline = Batches<Tokens>;

/// A tokenized batch.
pub type TokenBatch = Batch<Tokens>;

impl Pipeline {
    /// Starts the threads. Reading begins at once, and goes ahead of the caller by a bounded number of batches.
    ///
    /// # Errors
    /// [`IngestError::BadOption`], or [`Spawn`](IngestError::Spawn) if threads are used up; no thread is left then.
    pub fn start(source: Source, tokenizer: Arc<Tokenizer>, options: PipelineOptions) -> Result<Self, IngestError> {
        let lines = TextLines { source, format: options.format.clone(), keep_blank: options.keep_blank };
        Self::run(lines, Tokenizing(tokenizer), options)
    }
}

impl TokenBatch {
    /// Width of the padded rows, in tokens.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.data.cols()
    }

    /// See [`Tokens::write_into`].
    ///
    /// # Errors
    /// [`WriteError`] if a slice is shorter than rows × cols.
    pub fn write_into(&self, input_ids: &mut [i64], attention_mask: &mut [i64]) -> Result<Written, WriteError> {
        self.data.write_into(input_ids, attention_mask)
    }
}

impl BatchData for Tokens {
    fn rows(&self) -> usize {
        self.rows()
    }

    fn tokens(&self) -> u64 {
        self.token_count() as u64
    }

    fn padded_tokens(&self) -> u64 {
        (self.rows() * self.cols()) as u64
    }
}

/// Texts, one after the other, and where each ends.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    text: String,
    ends: Vec<usize>,
}

impl Texts {
    fn get(&self, item: usize) -> &str {
        let start = item.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start..self.ends[item]]
    }
}

impl Collected for Texts {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn bytes(&self) -> usize {
        self.text.len()
    }

    fn pick(&mut self, items: &[usize]) -> Self {
        let mut picked = Self::default();
        for &item in items {
            picked.text.push_str(self.get(item));
            picked.ends.push(picked.text.len());
        }
        picked
    }
}

/// Lines, and what their text is.
struct TextLines {
    source: Source,
    format: Format,
    keep_blank: bool,
}

impl Reads for TextLines {
    type Raw = Texts;
    const UNIT: Unit = Unit::Line;
    const BATCH_BYTES: usize = usize::MAX;

    fn take(&mut self, into: &mut Texts) -> Result<Taken, IngestError> {
        let Some(line) = self.source.next_line()? else { return Ok(Taken::EndOfPass) };
        let id = LineId { file: line.file, line: line.number };
        let extracted = match line.too_long {
            Some(found_bytes) => Err(ItemError::TooLong { found_bytes, limit_bytes: line.limit }),
            None => self.format.extract(line.bytes, self.keep_blank, &mut into.text),
        };
        Ok(match extracted {
            Ok(Extracted::Item) => {
                into.ends.push(into.text.len());
                Taken::Item(id)
            }
            Ok(Extracted::Blank) => Taken::Blank,
            Err(reason) => Taken::Bad(id, reason),
        })
    }

    super::lines_of_source!();
}

struct Tokenizing(Arc<Tokenizer>);

impl Prepares for Tokenizing {
    type Raw = Texts;
    type Data = Tokens;

    fn prepare(&self, raw: Texts, first_only: bool, stop: &dyn Fn() -> bool) -> Option<Prepared<Tokens>> {
        let tokenizer = &*self.0;
        let mut worker = tokenizer.worker();
        let mut data = tokenizer.start_batch();
        let mut bad = Vec::new();
        for item in 0..raw.len() {
            if stop() {
                return None;
            }
            if let Err(reason) = worker.row(raw.get(item).into(), tokenizer.rows(), &mut data) {
                bad.push((item, reason));
                if first_only {
                    break;
                }
            }
        }
        data.finish();
        Some(Prepared { data, bad })
    }
}
