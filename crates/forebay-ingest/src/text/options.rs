//! How texts become rows: what is cut, what is filled up, what is given beside the ids.

use super::error::TokenizerError;

/// A side of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Side {
    /// Behind the text.
    #[default]
    Right,
    /// Before the text.
    Left,
}

/// The side on which short rows are filled up: right, or left as generating models want it.
pub type PadSide = Side;

/// How wide the rows of a batch are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Width {
    /// As the longest row of the batch.
    #[default]
    Longest,
    /// Always this many tokens; texts are truncated to it.
    Fixed(usize),
}

/// Which text of a pair gives way when both do not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Truncate {
    /// The longer one until both are equally long, then both.
    #[default]
    LongestFirst,
    /// Only the first; a pair whose first text is too short for it is refused.
    OnlyFirst,
    /// Only the second; a pair whose second text is too short for it is refused.
    OnlySecond,
}

/// What offsets count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OffsetUnit {
    /// Bytes of the UTF-8 text, as Rust slices it.
    #[default]
    Bytes,
    /// Characters (code points), as Python slices it.
    Chars,
}

/// A Unicode normalization that is done before that of the tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnicodeForm {
    /// Canonical composition.
    Nfc,
    /// Compatibility composition.
    Nfkc,
}

/// How the rows of one call are made; [`Tokenizer::rows`](super::Tokenizer::rows) gives the tokenizer's own to start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowOptions {
    /// Longest row in tokens, special tokens included; `None` is no limit.
    pub max_length: Option<usize>,
    /// Which text of a pair gives way.
    pub truncate: Truncate,
    /// The side on which texts lose tokens.
    pub truncate_side: Side,
    /// `None`: what does not fit is dropped. `Some(stride)`: it becomes further rows of the same item, each of which
    /// begins with the last `stride` tokens of the one before; [`Tokens::items`](super::Tokens::items) says whose they are.
    pub overflow: Option<usize>,
    /// Width of the rows.
    pub width: Width,
    /// Rounds the width up to a multiple of this, also past `max_length`; 1 rounds nothing.
    pub pad_to_multiple_of: usize,
    /// The side that is filled up.
    pub pad_side: Side,
    /// What it is filled up with.
    pub pad_id: u32,
    /// Whether the tokenizer's own special tokens (`[CLS]`, `<s>`, …) are added.
    pub add_special_tokens: bool,
    /// Whether the number of the text that each token belongs to is kept (`token_type_ids`).
    pub type_ids: bool,
    /// Whether the place of each token in its text is kept, and in which unit. Costs about twice the time.
    pub offsets: Option<OffsetUnit>,
}

impl RowOptions {
    /// The limit that `max_length` and a fixed width set together.
    #[must_use]
    pub fn limit(&self) -> Option<usize> {
        match (self.max_length, self.width) {
            (Some(length), Width::Fixed(width)) => Some(length.min(width)),
            (None, Width::Fixed(width)) => Some(width),
            (length, Width::Longest) => length,
        }
    }

    /// Widest row in tokens after padding, if there is a limit: what slots must have room for.
    #[must_use]
    pub fn max_cols(&self) -> Option<usize> {
        let widest = match self.width {
            Width::Longest => self.max_length?,
            Width::Fixed(width) => width,
        };
        Some(widest.next_multiple_of(self.pad_to_multiple_of.max(1)))
    }

    /// Refuses what no text could be tokenized with; `added` special tokens stand in every row.
    pub(crate) fn check(&self, added: usize) -> Result<(), TokenizerError> {
        if self.pad_to_multiple_of == 0 {
            return Err(TokenizerError::MultipleOfZero);
        }
        let Some(limit) = self.limit() else { return Ok(()) };
        if limit <= added {
            return Err(TokenizerError::MaxLengthTooSmall { max_length: limit, special_tokens: added });
        }
        match self.overflow {
            Some(stride) if stride >= limit - added => {
                Err(TokenizerError::StrideTooLarge { stride, room: limit - added })
            }
            _ => Ok(()),
        }
    }
}
