//! Makes batches of the items of a source, and applies the policies for bad and blank ones.
//!
//! It knows no tokenizer, no decoder and no thread. Batches never reach over the end of a pass, nor, when shuffled, of a
//! block, so every pass has the same ones.

use super::batch::{LineId, OnError, RawBatch};
use super::position::Position;
use super::report::{SkippedItem, Watcher};
use super::shuffle::{BLOCK_BYTES, Shuffle};
use super::stage::{Collected, Reads, Taken, Unit};
use crate::error::{IngestError, ItemError};

/// After this much input without an item a batch without rows is made, so that waiting threads hear of it.
const PROGRESS_BYTES: u64 = 4 << 20;

/// What [`Batcher::next`] made.
#[derive(Debug)]
pub(crate) enum Made<R> {
    /// A batch; one without rows tells what was left out.
    Batch(RawBatch<R>),
    /// The run cannot go on.
    Failed(IngestError),
    /// All passes are done.
    End,
}

/// What is left of a block that is given out.
#[derive(Debug)]
struct Block<R> {
    all: RawBatch<R>,
    order: Vec<usize>,
    given: usize,
}

/// Makes batches of the items of a source.
#[derive(Debug)]
pub(crate) struct Batcher<R: Reads> {
    source: R,
    on_error: OnError,
    watcher: Watcher,
    rows: usize,
    shuffle: Option<Shuffle>,
    block: Option<Block<R::Raw>>,
    /// Items of the first block that an earlier run delivered.
    delivered: usize,
    failed: Option<IngestError>,
    /// Items of the pass being read, not 0 if it was resumed in the middle.
    pass_items: u64,
    pass_lines: u64,
}

impl<R: Reads> Batcher<R> {
    pub(crate) fn new(source: R, on_error: OnError, rows: usize, watcher: Watcher) -> Self {
        let at = source.position();
        Self {
            shuffle: source.shuffle(),
            source,
            on_error,
            watcher,
            rows,
            block: None,
            delivered: at.block_items as usize,
            failed: None,
            pass_items: u64::from(at.file > 0 || at.line > 0),
            pass_lines: 0,
        }
    }

    /// The next batch. After an error or the end there is none.
    pub(crate) fn next(&mut self) -> Made<R::Raw> {
        let Some(shuffle) = self.shuffle else {
            return self.fill(self.rows, R::BATCH_BYTES);
        };
        if self.block.is_none() {
            let all = match self.fill(shuffle.block_items, BLOCK_BYTES) {
                // Its items may be in any batch: all of the block is given out or nothing.
                Made::Batch(_) if self.failed.is_some() => return self.failed.take().map_or(Made::End, Made::Failed),
                Made::Batch(all) if !all.lines.is_empty() => all,
                other => return other,
            };
            let Position { pass, file, offset, line, .. } = all.first;
            let given = std::mem::take(&mut self.delivered);
            if given >= all.lines.len() {
                return Made::Failed(IngestError::Changed { file: self.source.name(file), offset, line });
            }
            let order = shuffle.block((pass, file, offset), all.lines.len());
            self.block = Some(Block { all, order, given });
        }
        match self.block.take() {
            Some(block) => Made::Batch(self.cut(block)),
            None => Made::End,
        }
    }

    /// Takes the next batch out of a block, and keeps the rest.
    fn cut(&mut self, mut block: Block<R::Raw>) -> RawBatch<R::Raw> {
        let Block { all, order, given } = &mut block;
        let end = (*given + self.rows).min(order.len());
        let items = &order[*given..end];
        let mut batch = RawBatch::new(Position { block_items: *given as u32, ..all.first });
        batch.raw = all.raw.pick(items);
        batch.lines = items.iter().map(|&item| all.lines[item]).collect();
        if *given == 0 {
            batch.skipped = std::mem::take(&mut all.skipped);
        }
        batch.input_bytes = std::mem::take(&mut all.input_bytes);
        *given = end;
        if end == order.len() {
            batch.next = all.next;
        } else {
            batch.next = Position { block_items: end as u32, ..all.first };
            self.block = Some(block);
        }
        batch
    }

    /// The next batch of up to `rows` items in the order of reading.
    fn fill(&mut self, rows: usize, bytes: usize) -> Made<R::Raw> {
        if let Some(error) = self.failed.take() {
            return Made::Failed(error);
        }
        let start = self.source.read_bytes();
        let mut batch: RawBatch<R::Raw> = RawBatch::new(Position { block_items: 0, ..self.source.position() });
        let stopped = loop {
            let nothing_yet = batch.lines.is_empty() && self.source.read_bytes() - start > PROGRESS_BYTES;
            if batch.lines.len() == rows || nothing_yet || batch.raw.bytes() > bytes {
                break None;
            }
            match self.take(&mut batch) {
                Ok(true) => {}
                Ok(false) if self.source.is_done() => break Some(None),
                Ok(false) => {
                    if let Err(error) = self.end_pass() {
                        break Some(Some(error));
                    }
                    if self.source.read_bytes() > start || !batch.lines.is_empty() || batch.skipped.total() > 0 {
                        break None;
                    }
                }
                Err(error) => break Some(Some(error)),
            }
        };
        batch.input_bytes = self.source.read_bytes() - start;
        let something = batch.input_bytes > 0 || !batch.lines.is_empty() || batch.skipped.total() > 0;
        match stopped {
            None => Made::Batch(batch),
            Some(None) if something => Made::Batch(batch),
            Some(None) => Made::End,
            Some(Some(error)) if something => {
                self.failed = Some(error);
                Made::Batch(batch)
            }
            Some(Some(error)) => Made::Failed(error),
        }
    }

    /// Puts the next item where it belongs; false at the end of a pass.
    fn take(&mut self, batch: &mut RawBatch<R::Raw>) -> Result<bool, IngestError> {
        match self.source.take(&mut batch.raw)? {
            Taken::EndOfPass => {
                batch.next = Position { block_items: 0, ..self.source.position() };
                return Ok(false);
            }
            Taken::Item(id) => {
                self.pass_items += 1;
                batch.lines.push(id);
            }
            Taken::Blank => batch.skipped.add_blank(),
            Taken::Bad(id, reason) if self.on_error == OnError::Fail => {
                return Err(bad_item(R::UNIT, self.source.name(id.file), id, reason));
            }
            Taken::Bad(id, reason) => {
                let item = SkippedItem { file: id.file, line: id.line, reason };
                self.watcher.tell(|file| self.source.name(file), &item);
                batch.skipped.add(item);
            }
        }
        self.pass_lines += 1;
        batch.next = Position { block_items: 0, ..self.source.position() };
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

/// The error that a bad item is under [`OnError::Fail`].
pub(crate) fn bad_item(unit: Unit, file: String, id: LineId, reason: ItemError) -> IngestError {
    match unit {
        Unit::Line => IngestError::BadLine { file, line: id.line, reason },
        Unit::Sample => IngestError::BadSample { file, sample: id.line, reason },
    }
}
