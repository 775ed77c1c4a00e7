//! What can go wrong with tokenizers and their rows, one type per operation.
//!
//! Why one text is refused is an [`ItemError`], which lines and texts share.

use std::io;
use std::path::PathBuf;

use crate::error::ItemError;

/// Why a tokenizer could not be made. Retrying does not help unless a file was repaired in between.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The file is missing or may not be read.
    #[error(
        "cannot read the tokenizer {}: {source}; expected a tokenizer.json, or a folder holding one; check the path \
         and its permissions",
        path.display()
    )]
    Unreadable {
        /// What was asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is far larger than any tokenizer.
    #[error(
        "{} is not a tokenizer: it is larger than {limit_bytes} bytes, the largest tokenizer.json read; expected the \
         file that Hugging Face tokenizers saves; check the path",
        path.display()
    )]
    TooLarge {
        /// The file read.
        path: PathBuf,
        /// The limit that it passed.
        limit_bytes: u64,
    },
    /// The file is not JSON at all: a vocabulary, a model or something unrelated.
    #[error(
        "{} is not a tokenizer: it is {found}, not JSON ({detail}); expected the tokenizer.json that Hugging Face \
         tokenizers saves; look for that file beside this one",
        path.display()
    )]
    NotJson {
        /// The file read.
        path: PathBuf,
        /// What it looks like.
        found: &'static str,
        /// Where the JSON parser stopped.
        detail: String,
    },
    /// The file is JSON, but not of a tokenizer, or of one that this build cannot run.
    #[error(
        "{} is not a tokenizer: it is {found} ({detail}); expected a JSON object with a \"model\", as Hugging Face \
         tokenizers saves it in tokenizer.json; look for that file beside this one",
        path.display()
    )]
    NotATokenizer {
        /// The file read.
        path: PathBuf,
        /// What it looks like.
        found: String,
        /// What the tokenizers library said.
        detail: String,
    },
    /// The rows would have no room for text.
    #[error(
        "max_length {max_length} is too small: the tokenizer adds {special_tokens} special tokens to each row; pass a \
         max_length of at least {}, or switch add_special_tokens off",
        special_tokens.saturating_add(1)
    )]
    MaxLengthTooSmall {
        /// The length asked for, in tokens.
        max_length: usize,
        /// The tokens that every row gets.
        special_tokens: usize,
    },
    /// Rows could be longer than the fixed width that they shall have.
    #[error(
        "max_length {max_length} is more than the fixed width {width} that rows are padded to; found tokens for which \
         there would be no column; lower max_length or raise the width"
    )]
    WidthBelowMaxLength {
        /// The length asked for, in tokens.
        max_length: usize,
        /// The width asked for, in tokens.
        width: usize,
    },
    /// Overflowing rows would repeat all that the one before had, and never come to an end.
    #[error(
        "the overlap of {stride} tokens is too large: a row has room for {room} tokens of text; pass an overlap below \
         that, or a larger max_length"
    )]
    StrideTooLarge {
        /// Tokens that a row repeats.
        stride: usize,
        /// Tokens of text that a row has room for.
        room: usize,
    },
    /// The tokenizers library cannot run what the file says.
    #[error(
        "this tokenizer cannot be used: {detail}; expected one that the Python package tokenizers runs; save it anew"
    )]
    Unusable {
        /// What it said.
        detail: String,
    },
    /// A line of a tiktoken vocabulary is not a token and its rank.
    #[error(
        "{} is not a tiktoken vocabulary: line {line} {found}; expected a token in base64, a space and its rank; look \
         for the .tiktoken file",
        path.display()
    )]
    NotTiktoken {
        /// The file read.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What stands there.
        found: String,
    },
    /// A pattern is not a regular expression that this build can run.
    #[error("the pattern cannot be used: {detail}; expected a regular expression as tiktoken has them; correct it")]
    BadPattern {
        /// What the library said.
        detail: String,
    },
    /// The multiple that widths are rounded up to is zero.
    #[error("pad_to_multiple_of is 0; expected 1 or more; leave it out to round nothing")]
    MultipleOfZero,
}

/// A text that the tokenizer refused, in [`Tokenizer::encode_batch`](crate::Tokenizer::encode_batch).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("text {row} of the batch could not be tokenized: {reason}; repair the text or leave it out")]
#[non_exhaustive]
pub struct EncodeError {
    /// Index of the text in the batch, from 0.
    pub row: usize,
    /// What the tokenizer said.
    pub reason: ItemError,
}

/// Slices that cannot take a batch, in [`Tokens::write_into`](crate::Tokens::write_into). Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot write {rows} × {cols} tokens: the slice {which} has room for {room}, expected at least {}; loan a slot with \
     the batch's own rows and cols",
    rows.saturating_mul(*cols)
)]
#[non_exhaustive]
pub struct WriteError {
    /// Name of the slice that is too short.
    pub which: &'static str,
    /// Its length.
    pub room: usize,
    /// Rows of the batch.
    pub rows: usize,
    /// Columns of the batch.
    pub cols: usize,
}

/// Ids that could not be turned back into text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("these ids have no text: {detail}; expected ids that this tokenizer gives; check which tokenizer made them")]
#[non_exhaustive]
pub struct DecodeError {
    /// What the tokenizer said.
    pub detail: String,
}
