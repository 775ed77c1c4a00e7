//! What differs between texts, images and tables: how items are read, and what a worker makes of a batch of them.
//!
//! Everything else (batches, order, threads, policies, positions) is the same for all and knows only these traits.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::batch::LineId;
use super::position::Position;
use super::shuffle::Shuffle;
use crate::error::{IngestError, ItemError};

/// Items as they were read, waiting for a worker.
pub(crate) trait Collected: Default + Send + 'static {
    /// Number of items.
    fn len(&self) -> usize;

    /// Bytes that they hold, about.
    fn bytes(&self) -> usize;

    /// Takes these items out, in this order; each is asked for once.
    fn pick(&mut self, items: &[usize]) -> Self;
}

/// What became of the next item of a source.
#[derive(Debug)]
pub(crate) enum Taken {
    /// It was appended to what is collected.
    Item(LineId),
    /// There was nothing in it.
    Blank,
    /// It is none, and nothing was appended.
    Bad(LineId, ItemError),
    /// There was none: a pass over the inputs has ended.
    EndOfPass,
}

/// Reads items one after the other, the same ones in the same order each time.
pub(crate) trait Reads: Send + 'static {
    /// What items are collected in.
    type Raw: Collected;
    /// What its items are called.
    const UNIT: Unit;
    /// A batch is closed once it holds more bytes than this.
    const BATCH_BYTES: usize;

    fn take(&mut self, into: &mut Self::Raw) -> Result<Taken, IngestError>;
    /// Where it stands; `items` is as it was at the start or resume.
    fn position(&self) -> Position;
    /// Whether all passes have ended.
    fn is_done(&self) -> bool;
    fn read_bytes(&self) -> u64;
    fn remaining_bytes(&self) -> Option<u64>;
    fn name(&self, file: u32) -> String;
    fn inputs(&self) -> usize;
    /// Whether a read may wait for somebody.
    fn has_stream(&self) -> bool;
    fn cancel_flag(&self) -> Arc<AtomicBool>;
    fn shuffle(&self) -> Option<Shuffle>;
}

/// Makes tensors of a batch; on any thread, the same whichever it is.
pub(crate) trait Prepares: Send + Sync + 'static {
    type Raw: Collected;
    type Data: BatchData;

    /// Prepares a batch. With `first_only` it may stop at the first bad item. `None` if `stop`, asked between items,
    /// said yes.
    fn prepare(&self, raw: Self::Raw, first_only: bool, stop: &dyn Fn() -> bool) -> Option<Prepared<Self::Data>>;
}

/// What was made of a batch.
pub(crate) struct Prepared<D> {
    pub(crate) data: D,
    /// Items that are not in it, by their index in the batch, ascending.
    pub(crate) bad: Vec<(usize, ItemError)>,
}

/// The tensors of a batch.
pub trait BatchData: Send + 'static {
    /// Number of rows: items in it.
    fn rows(&self) -> usize;

    /// Tokens in it, padding not counted; 0 for what has none.
    fn tokens(&self) -> u64 {
        0
    }

    /// Tokens in it, padding counted.
    fn padded_tokens(&self) -> u64 {
        0
    }
}

/// What the items of a source are, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unit {
    /// Lines of a file.
    Line,
    /// Images, with what stands beside them.
    Sample,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Line => "line",
            Self::Sample => "sample",
        })
    }
}
