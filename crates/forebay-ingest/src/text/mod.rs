//! Texts become rows of token ids, the same as the Python packages `tokenizers` and `tiktoken` give; and back.
//!
//! ```text
//!   tokenizer.json ─┐                 ┌─▶ Tokens: padded, or ragged with cu_seqlens
//!   .tiktoken ──────┴─▶ Tokenizer ────┤        └─▶ Plan: which rows make a batch that wastes little
//!                                     └─▶ DetokenizeStream: ids ─▶ text, as far as it is certain
//! ```
//!
//! Nothing here reads inputs or starts threads: lines are the business of `feed`, threads are the caller's [`Pool`].
//!
//! [`Pool`]: crate::Pool

mod bytes;
mod decode;
mod engine;
mod error;
mod load;
mod options;
mod plan;
mod tiktoken;
mod tokenizer;
mod tokens;

pub use decode::DetokenizeStream;
pub use engine::Text;
pub use error::{DecodeError, EncodeError, TokenizerError, WriteError};
pub use options::{OffsetUnit, PadSide, RowOptions, Side, Truncate, UnicodeForm, Width};
pub use plan::{Plan, PlanOptions, PlannedBatch};
pub use tiktoken::TiktokenOptions;
pub use tokenizer::{PadSource, Tokenizer, TokenizerOptions};
pub use tokens::{Tokens, Written};
