//! Batches: the raw one that the reading thread makes, the prepared one that comes out.
//!
//! What is read and how it is prepared are in the files of the kinds (`texts.rs`, `tables.rs`, `images.rs`); batches
//! are made in `batcher.rs`.

use super::checkpoint::{Ahead, Checkpoint};
use super::position::Position;
use super::report::{Skipped, SkippedItem};
use super::stage::{BatchData, Prepared, Prepares};
use crate::error::ItemError;

/// What happens to an item that is none.
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

/// The place of a line, or of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineId {
    /// Index of the input in the list.
    pub file: u32,
    /// Number of the line or sample in that input, from 1.
    pub line: u64,
}

/// A batch, ready to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Batch<D> {
    /// Its tensors, one row an item.
    pub data: D,
    /// The item that each row came from.
    pub lines: Vec<LineId>,
    /// Ordinal of its first row over the whole run, from 0: rows delivered before it, also before a resume.
    pub first_item: u64,
    /// Where the source stood before it.
    pub first: Position,
    /// Where the batch before it ended, whether that had rows or not; as `first` if that is not delivered yet. The same in
    /// every run, where `first` may be the end of a pass in one and the beginning of the next pass in another.
    pub follows: Position,
    /// Where to resume once it has been delivered, together with `ahead`.
    pub next: Position,
    /// Which batches after `next` were delivered already: in an ordered run none, unless it goes on from one that was
    /// not.
    pub ahead: Ahead,
    /// What was left out between `first` and the end of the batch.
    pub skipped: Skipped,
    /// Bytes of input in it: what a progress bar advances by.
    pub input_bytes: u64,
}

impl<D: BatchData> Batch<D> {
    /// Number of rows: items in the batch.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.data.rows()
    }

    /// Where to resume once it has been delivered; its encoding goes into the message's user blob.
    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint { position: self.next, ahead: self.ahead.clone() }
    }
}

/// A prepared batch, or the item that failed it.
pub(crate) type Answered<D> = Result<Batch<D>, (LineId, ItemError)>;

/// A batch as it was read.
#[derive(Debug)]
pub(crate) struct RawBatch<R> {
    pub(crate) raw: R,
    pub(crate) lines: Vec<LineId>,
    pub(crate) first: Position,
    pub(crate) next: Position,
    pub(crate) skipped: Skipped,
    pub(crate) input_bytes: u64,
}

impl<R: Default> RawBatch<R> {
    pub(crate) fn new(first: Position) -> Self {
        let (raw, lines, skipped) = (R::default(), Vec::new(), Skipped::default());
        Self { raw, lines, first, next: first, skipped, input_bytes: 0 }
    }

    /// Prepares the batch. `stop` is asked between items; `None` if it said yes. `left_out` is told of what is skipped.
    ///
    /// Under [`OnError::Fail`] a bad item fails the whole batch: nothing of it is delivered, so that the position
    /// delivered last is one to resume from.
    pub(crate) fn prepare<P: Prepares<Raw = R>>(
        mut self,
        prepares: &P,
        on_error: OnError,
        stop: &dyn Fn() -> bool,
        left_out: &dyn Fn(&SkippedItem),
    ) -> Option<Answered<P::Data>> {
        let Prepared { data, bad } = prepares.prepare(self.raw, on_error == OnError::Fail, stop)?;
        let mut lines = self.lines;
        if !bad.is_empty() {
            let mut kept = Vec::with_capacity(lines.len());
            let mut bad = bad.into_iter().peekable();
            for (index, &id) in lines.iter().enumerate() {
                match bad.next_if(|(at, _)| *at == index) {
                    None => kept.push(id),
                    Some((_, reason)) if on_error == OnError::Fail => return Some(Err((id, reason))),
                    Some((_, reason)) => {
                        let item = SkippedItem { file: id.file, line: id.line, reason };
                        left_out(&item);
                        self.skipped.add(item);
                    }
                }
            }
            lines = kept;
        }
        Some(Ok(Batch {
            data,
            lines,
            first_item: 0,
            first: self.first,
            follows: self.first,
            next: self.next,
            ahead: Ahead::default(),
            skipped: self.skipped,
            input_bytes: self.input_bytes,
        }))
    }
}
