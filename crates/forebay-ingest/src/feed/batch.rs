//! Batches: the raw one that the reading thread makes, the tokenized one that comes out.
//!
//! [`Batcher`] turns lines into batches and applies the policies for bad and blank lines; it knows no tokenizer and no
//! thread. Batches never reach over the end of a pass, so every pass has the same ones.

use std::ops::Range;

use super::format::{Extracted, Format};
use super::position::Position;
use super::report::{Skipped, SkippedLine};
use super::source::Source;
use crate::error::{IngestError, ItemError};
use crate::text::Tokenizer;
use crate::text::{Tokens, WriteError, Written};

/// What happens to a line that is no item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// It ends the run, after everything before it was delivered.
    #[default]
    Fail,
    /// It is left out, counted and reported.
    Skip,
}

impl std::fmt::Display for OnError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fail => "fail",
            Self::Skip => "skip",
        })
    }
}

impl std::str::FromStr for OnError {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fail" => Ok(Self::Fail),
            "skip" => Ok(Self::Skip),
            _ => Err(format!("on_error is {text:?}, expected \"skip\" or \"fail\"; change the option")),
        }
    }
}

/// The place of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineId {
    /// Index of the input in the list.
    pub file: u32,
    /// Number of the line in that input, from 1.
    pub line: u64,
}

/// A tokenized batch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenBatch {
    /// Its tokens, one row a line.
    pub tokens: Tokens,
    /// The line that each row came from.
    pub lines: Vec<LineId>,
    /// Ordinal of its first row over the whole run, from 0: rows delivered before it, also before a resume.
    pub first_item: u64,
    /// Where the source stood before it.
    pub first: Position,
    /// Where to resume once it has been delivered; goes into the message's user blob.
    pub next: Position,
    /// What was left out between `first` and `next`.
    pub skipped: Skipped,
    /// Bytes of input between `first` and `next`: what a progress bar advances by.
    pub input_bytes: u64,
}

impl TokenBatch {
    /// Number of rows: lines in the batch.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.tokens.rows()
    }

    /// Width of the padded rows, in tokens.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.tokens.cols()
    }

    /// See [`Tokens::write_into`].
    ///
    /// # Errors
    /// [`WriteError`] if a slice is shorter than rows × cols.
    pub fn write_into(&self, input_ids: &mut [i64], attention_mask: &mut [i64]) -> Result<Written, WriteError> {
        self.tokens.write_into(input_ids, attention_mask)
    }
}

/// A batch of texts.
#[derive(Debug)]
pub(crate) struct TextBatch {
    /// All texts, one after the other.
    text: String,
    /// Where each ends in `text`.
    ends: Vec<usize>,
    lines: Vec<LineId>,
    first: Position,
    next: Position,
    skipped: Skipped,
    input_bytes: u64,
}

impl TextBatch {
    fn new(first: Position, rows: usize) -> Self {
        Self {
            text: String::new(),
            ends: Vec::with_capacity(rows),
            lines: Vec::with_capacity(rows),
            first,
            next: first,
            skipped: Skipped::default(),
            input_bytes: 0,
        }
    }

    fn range(&self, row: usize) -> Range<usize> {
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        start..self.ends[row]
    }

    /// Tokenizes the batch. `stop` is asked between rows; `None` if it said yes.
    ///
    /// Under [`OnError::Fail`] a refused text fails the whole batch: nothing of it is delivered, so that the position
    /// delivered last is one to resume from.
    pub(crate) fn tokenize(
        mut self,
        tokenizer: &Tokenizer,
        on_error: OnError,
        stop: impl Fn() -> bool,
    ) -> Option<Result<TokenBatch, (LineId, ItemError)>> {
        let mut worker = tokenizer.worker();
        let mut tokens = tokenizer.start_batch();
        let mut lines = Vec::with_capacity(self.lines.len());
        for (row, &id) in self.lines.iter().enumerate() {
            if stop() {
                return None;
            }
            match worker.row(self.text[self.range(row)].into(), tokenizer.rows(), &mut tokens) {
                Ok(()) => lines.push(id),
                Err(reason) if on_error == OnError::Fail => return Some(Err((id, reason))),
                Err(reason) => self.skipped.add(SkippedLine { file: id.file, line: id.line, reason }),
            }
        }
        tokens.finish();
        Some(Ok(TokenBatch {
            tokens,
            lines,
            first_item: 0,
            first: self.first,
            next: self.next,
            skipped: self.skipped,
            input_bytes: self.input_bytes,
        }))
    }
}

/// After this much input without an item a batch without rows is made, so that waiting threads hear of it.
const PROGRESS_BYTES: u64 = 4 << 20;

/// What [`Batcher::next`] made.
#[derive(Debug)]
pub(crate) enum Made {
    /// A batch; one without rows tells what was left out.
    Batch(TextBatch),
    /// The run cannot go on.
    Failed(IngestError),
    /// All passes are done.
    End,
}

/// Makes batches of texts from the lines of a source.
#[derive(Debug)]
pub(crate) struct Batcher {
    source: Source,
    format: Format,
    keep_blank: bool,
    on_error: OnError,
    rows: usize,
    failed: Option<IngestError>,
    /// Items of the pass being read, not 0 if it was resumed in the middle.
    pass_items: u64,
    pass_lines: u64,
}

impl Batcher {
    pub(crate) fn new(source: Source, format: Format, keep_blank: bool, on_error: OnError, rows: usize) -> Self {
        let at = source.position();
        Self {
            source,
            format,
            keep_blank,
            on_error,
            rows,
            failed: None,
            pass_items: u64::from(at.file > 0 || at.line > 0),
            pass_lines: 0,
        }
    }

    /// The next batch. After an error or the end there is none.
    pub(crate) fn next(&mut self) -> Made {
        if let Some(error) = self.failed.take() {
            return Made::Failed(error);
        }
        let start = self.source.read_bytes();
        let mut batch = TextBatch::new(self.source.position(), self.rows);
        let stopped = loop {
            let nothing_yet = batch.lines.is_empty() && self.source.read_bytes() - start > PROGRESS_BYTES;
            if batch.lines.len() == self.rows || nothing_yet {
                break None;
            }
            match self.take_line(&mut batch) {
                Ok(true) => {}
                Ok(false) if self.source.is_done() => break Some(None),
                Ok(false) => {
                    if let Err(error) = self.end_pass() {
                        break Some(Some(error));
                    }
                    if self.source.read_bytes() > start {
                        break None;
                    }
                }
                Err(error) => break Some(Some(error)),
            }
        };
        batch.input_bytes = self.source.read_bytes() - start;
        match stopped {
            None => Made::Batch(batch),
            Some(None) if batch.input_bytes > 0 => Made::Batch(batch),
            Some(None) => Made::End,
            Some(Some(error)) if batch.input_bytes > 0 => {
                self.failed = Some(error);
                Made::Batch(batch)
            }
            Some(Some(error)) => Made::Failed(error),
        }
    }

    /// Puts the next line where it belongs; false at the end of a pass.
    fn take_line(&mut self, batch: &mut TextBatch) -> Result<bool, IngestError> {
        let Some(line) = self.source.next_line()? else {
            batch.next = self.source.position();
            return Ok(false);
        };
        self.pass_lines += 1;
        let id = LineId { file: line.file, line: line.number };
        let extracted = match line.too_long {
            Some(found_bytes) => Err(ItemError::TooLong { found_bytes, limit_bytes: line.limit }),
            None => self.format.extract(line.bytes, self.keep_blank, &mut batch.text),
        };
        match extracted {
            Ok(Extracted::Item) => {
                self.pass_items += 1;
                batch.ends.push(batch.text.len());
                batch.lines.push(id);
            }
            Ok(Extracted::Blank) => batch.skipped.add_blank(),
            Err(reason) if self.on_error == OnError::Fail => {
                let file = self.source.name(id.file);
                return Err(IngestError::BadLine { file, line: id.line, reason });
            }
            Err(reason) => batch.skipped.add(SkippedLine { file: id.file, line: id.line, reason }),
        }
        batch.next = self.source.position();
        Ok(true)
    }

    /// Between two passes: an endless run over nothing would never give a batch.
    fn end_pass(&mut self) -> Result<(), IngestError> {
        if self.pass_items == 0 {
            return Err(IngestError::NothingToRepeat { lines: self.pass_lines });
        }
        (self.pass_items, self.pass_lines) = (0, 0);
        Ok(())
    }
}
