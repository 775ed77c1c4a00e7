//! Texts become rows of token ids, the same as the Python package `tokenizers` gives.
//!
//! Nothing here reads inputs or starts threads: lines are the business of `feed`, threads are the caller's.

mod error;
mod load;
mod tokenizer;
mod tokens;

pub use error::{EncodeError, TokenizerError, WriteError};
pub use tokenizer::{PadSource, Tokenizer, TokenizerOptions, Width};
pub use tokens::{PadSide, Tokens, Written};
