//! Texts, images and tables become tensors, on all cores, written straight into the slots of a forebay ring or wherever
//! they are wanted.
//!
//! Of texts:
//!
//! ```text
//!   Source ── lines ──▶ Format ── texts ──▶ Tokenizer ── rows ──▶ TokenBatch::write_into ──▶ a slot
//!   files, stdin        plain, JSON         N threads             padding, i64, mask
//!                       └────────────── Pipeline ──────────────┘
//! ```
//!
//! - [`Source`] reads lines of files and standard input, once or repeatedly, and knows its [`Position`], which is small
//!   enough to travel with every message and from which a restarted run goes on.
//! - [`Format`] finds the text in a line.
//! - [`Tokenizer`] runs a Hugging Face tokenizer.json; its ids are those of the Python package `tokenizers`.
//! - [`Pipeline`] puts these together on all cores and gives [`TokenBatch`]es in the order of the lines.
//!
//! This crate owns no ring and no socket: it writes into slices, wherever they are.
//!
//! ```
//! use std::sync::Arc;
//! use forebay_ingest::{Input, Pipeline, PipelineOptions, Source, SourceOptions, Tokenizer, TokenizerOptions};
//!
//! # let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data");
//! let tokenizer = Tokenizer::from_file(format!("{data}/tokenizer.json"), &TokenizerOptions::default())?;
//! let source = Source::open(&[Input::from(format!("{data}/kjv.txt"))], SourceOptions::default())?;
//! let mut pipeline = Pipeline::start(source, Arc::new(tokenizer), PipelineOptions::default())?;
//! for batch in pipeline.by_ref().take(3) {
//!     let batch = batch?;
//!     // In a feeder: loan a slot for (rows, cols), write in place, publish with `next` as the user blob.
//!     let mut input_ids = vec![0i64; batch.rows() * batch.cols()];
//!     let mut attention_mask = input_ids.clone();
//!     batch.write_into(&mut input_ids, &mut attention_mask)?;
//!     let blob = batch.next.encode();
//! #   assert_eq!(input_ids[0], 101);
//! #   assert!(blob.len() <= 200);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Parts
//!
//! [`ImagePipeline`] and [`TablePipeline`] do the same for images and for lines of JSON: one machinery, [`Batches`], whatever the
//! items are, in the order of reading or not, shuffled or not, always resumable.
//!
//! `image` (feature `images`, on by default) turns photographs into tensors.
//! `text` (feature `text`, on by default) holds the tokenizers; [`Pool`] is the one set of threads that parallel work
//! runs on.
//!
//! [`table`] (feature `tables`) turns JSON lines into features, [`numeric`] (feature `numbers`) scales, normalizes and
//! searches arrays; both are on by default and do what a [`Work`] says, where it says.
//!
//! With the feature `ring` the element types of images and tables convert into `forebay::DType`.
//!
//! # What is an item
//!
//! Every line is one item, in the order of the inputs. A line ends at LF; a CR before it belongs to the end; a last line
//! needs none. Nothing else ends a line. A byte order mark at the start of an input is dropped. NULs are text. Lines
//! of nothing but white space are passed over and counted, unless [`PipelineOptions::keep_blank`] is set. A line that
//! is not UTF-8, longer than [`SourceOptions::max_line_bytes`], or without the field asked for is an error for that
//! line: it ends the run ([`OnError::Fail`], the default) or is left out, counted and reported ([`OnError::Skip`]).
//!
//! # Limits
//!
//! Memory does not depend on the length of the inputs or of their lines, see [`Pipeline`] for the sum. A
//! batch waits until it is full or its input ends: a slow pipe is not flushed by time. A tokenizer with random merges (BPE
//! dropout) gives other ids each time. What a [`Pipeline`] gives is per line: no pairs, no overflowing windows, no
//! offsets; [`Tokenizer::encode`] has them.

mod error;
#[cfg(feature = "feed")]
#[cfg_attr(
    not(all(feature = "images", feature = "tables", feature = "text")),
    allow(dead_code, unused_imports, unused_macros, reason = "each kind uses a part of it")
)]
mod feed;
#[cfg(feature = "images")]
pub mod image;
#[cfg(feature = "numbers")]
pub mod numeric;
mod pool;
#[cfg(all(feature = "ring", any(feature = "images", feature = "tables")))]
mod ring;
#[cfg(feature = "tables")]
pub mod table;
#[cfg(feature = "text")]
pub mod text;
#[cfg(any(feature = "images", feature = "numbers", feature = "tables"))]
mod work;

pub use error::{IngestError, ItemError, PositionError};
#[cfg(feature = "feed")]
pub use feed::{
    Ahead, Batch, BatchData, Batches, Checkpoint, Format, Input, Line, LineId, OnError, PipelineOptions, Position,
    Repeat, Report, Shuffle, Skipped, SkippedItem, Source, SourceOptions, Unit, Watcher,
};
#[cfg(feature = "images")]
pub use feed::{ImageBatch, ImageFeed, ImageFeedOptions, ImagePipeline, ImageTensors};
#[cfg(feature = "text")]
pub use feed::{Pipeline, TokenBatch};
#[cfg(feature = "tables")]
pub use feed::{RowBatch, TablePipeline};
pub use pool::{MAX_THREADS, Pool, PoolError};
#[cfg(feature = "text")]
pub use text::{
    DecodeError, DetokenizeStream, EncodeError, OffsetUnit, PadSide, PadSource, Plan, PlanOptions, PlannedBatch,
    RowOptions, Side, Text, TiktokenOptions, Tokenizer, TokenizerError, TokenizerOptions, Tokens, Truncate,
    UnicodeForm, Width, WriteError, Written,
};
#[cfg(any(feature = "images", feature = "numbers", feature = "tables"))]
pub use work::{Work, WorkError};
