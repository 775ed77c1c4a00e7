//! Items of files and pipes become batches of tensors, on all cores, in order or not, resumable.
//!
//! ```text
//!   kinds    texts.rs tables.rs images.rs      what an item is, and how it is prepared (the traits of stage.rs)
//!   reading  input.rs line.rs source.rs        lines of files and pipes      format.rs   the text in a line
//!            samples.rs                        images of files and shards    order.rs    which input comes next
//!   running  batcher.rs shuffle.rs             items to batches, policies    pipeline.rs threads.rs  workers, order
//!   results  batch.rs report.rs                position.rs checkpoint.rs     where to go on
//! ```

mod batch;
mod batcher;
mod checkpoint;
mod format;
#[cfg(feature = "images")]
mod images;
mod input;
mod line;
mod order;
mod pipeline;
mod position;
mod report;
#[cfg(feature = "images")]
mod samples;
mod shuffle;
mod source;
mod stage;
#[cfg(feature = "tables")]
mod tables;
#[cfg(feature = "text")]
mod texts;
mod threads;

pub use batch::{Batch, LineId, OnError};
pub use checkpoint::{Ahead, Checkpoint};
pub use format::Format;
#[cfg(feature = "images")]
pub use images::{ImageBatch, ImagePipeline, ImageTensors};
pub use input::Input;
pub use order::Repeat;
pub use pipeline::{Batches, PipelineOptions};
pub use position::Position;
pub use report::{Report, Skipped, SkippedItem, Watcher};
#[cfg(feature = "images")]
pub use samples::{ImageFeed, ImageFeedOptions};
pub use shuffle::Shuffle;
pub use source::{Line, Source, SourceOptions};
pub use stage::{BatchData, Unit};
#[cfg(feature = "tables")]
pub use tables::{RowBatch, TablePipeline};
#[cfg(feature = "text")]
pub use texts::{Pipeline, TokenBatch};

/// What [`stage::Reads`] asks of lines, for a struct whose `source` is a [`Source`].
macro_rules! lines_of_source {
    () => {
        fn position(&self) -> Position {
            self.source.position()
        }
        fn is_done(&self) -> bool {
            self.source.is_done()
        }
        fn read_bytes(&self) -> u64 {
            self.source.read_bytes()
        }
        fn remaining_bytes(&self) -> Option<u64> {
            self.source.remaining_bytes()
        }
        fn name(&self, file: u32) -> String {
            self.source.name(file)
        }
        fn inputs(&self) -> usize {
            self.source.inputs()
        }
        fn has_stream(&self) -> bool {
            self.source.has_stream()
        }
        fn cancel_flag(&self) -> Arc<AtomicBool> {
            self.source.cancel_flag()
        }
        fn shuffle(&self) -> Option<Shuffle> {
            self.source.shuffle()
        }
    };
}
use lines_of_source;
