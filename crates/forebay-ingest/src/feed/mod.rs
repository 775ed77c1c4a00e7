//! Lines of files and pipes become batches, in order, on all cores, resumable.

mod batch;
mod format;
mod input;
mod line;
mod pipeline;
mod position;
mod report;
mod source;

pub use batch::{LineId, OnError, TokenBatch};
pub use format::Format;
pub use input::Input;
pub use pipeline::{Pipeline, PipelineOptions};
pub use position::Position;
pub use report::{Report, Skipped, SkippedLine};
pub use source::{Line, Repeat, Source, SourceOptions};
