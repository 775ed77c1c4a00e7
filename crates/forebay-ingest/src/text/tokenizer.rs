//! A Hugging Face tokenizer, with one answer to how long rows are and what they are filled up with.
//!
//! Wraps the `tokenizers` crate: texts go in, [`Tokens`] come out. Padding and batching are ours, because the crate
//! would pad by copying and run a thread pool of its own; only its single-text call is used, which starts no thread,
//! so the caller alone decides how many run. Loading is in `load.rs`.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use tokenizers::{TruncationDirection, TruncationParams};

use super::error::{EncodeError, TokenizerError};
use super::load;
use super::tokens::{PadSide, Tokens};
use crate::error::ItemError;

/// How wide the rows of a batch are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Width {
    /// As the longest row of the batch.
    #[default]
    Longest,
    /// Always this many tokens; texts are truncated to it.
    Fixed(usize),
}

/// Where a tokenizer's padding id came from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PadSource {
    /// From [`TokenizerOptions::pad_id`].
    Option,
    /// From the `padding` of tokenizer.json.
    PaddingConfig,
    /// From the `pad_token` of the tokenizer_config.json beside it; this is the token.
    TokenizerConfig(String),
    /// Guessed from the name of a token in the vocabulary; this is the token.
    Vocabulary(String),
    /// None was found: it is 0, which may be an ordinary token; the attention mask tells them apart.
    Nothing,
}

impl fmt::Display for PadSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Option => f.write_str("as asked for"),
            Self::PaddingConfig => f.write_str("from the padding in tokenizer.json"),
            Self::TokenizerConfig(token) => write!(f, "{token} from tokenizer_config.json"),
            Self::Vocabulary(token) => write!(f, "guessed from the token {token}"),
            Self::Nothing => f.write_str("no padding token found"),
        }
    }
}

/// How texts become rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerOptions {
    /// Longest row in tokens, special tokens included. Default: what tokenizer.json says in `truncation`, else the
    /// width if that is fixed, else no limit.
    pub max_length: Option<usize>,
    /// Width of the rows; the `padding` strategy in tokenizer.json is not followed.
    pub width: Width,
    /// Rounds the width up to a multiple of this, also past `max_length`. Default: not.
    pub pad_to_multiple_of: Option<usize>,
    /// What short rows are filled up with. Default: see [`PadSource`], tried in its order.
    pub pad_id: Option<u32>,
    /// The side that is filled up. Default: that of `padding` in tokenizer.json, else the right.
    pub pad_side: Option<PadSide>,
    /// Whether the tokenizer's own special tokens (`[CLS]`, `<s>`, …) are added; default yes.
    pub add_special_tokens: bool,
}

impl Default for TokenizerOptions {
    fn default() -> Self {
        Self {
            max_length: None,
            width: Width::default(),
            pad_to_multiple_of: None,
            pad_id: None,
            pad_side: None,
            add_special_tokens: true,
        }
    }
}

/// Turns texts into rows of token ids, the same as the Python package `tokenizers` gives.
///
/// Shared between threads by reference; encoding locks nothing.
///
/// # Costs
/// While a text is tokenized it takes 60 to 150 times its bytes in memory, depending on the model; a batch keeps 4 bytes
/// a token.
///
/// # Exactness
/// Regular expressions run in `fancy-regex`, which gives up after a million steps, and the crate then treats the rest of
/// the text as one word without saying so. Runs of white space are what gets there, so a text with more than half a
/// million white-space characters in a row is refused.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    width: Width,
    multiple_of: usize,
    pad_id: u32,
    pad_source: PadSource,
    pad_side: PadSide,
    add_special_tokens: bool,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("max_length", &self.max_length())
            .field("width", &self.width)
            .field("pad_id", &self.pad_id)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// The tokenizer saved at `path`: a tokenizer.json, or a folder that holds one.
    ///
    /// # Errors
    /// [`TokenizerError`]: the file is missing or is no tokenizer, or the options do not fit it.
    pub fn from_file(path: impl AsRef<Path>, options: &TokenizerOptions) -> Result<Self, TokenizerError> {
        let (bytes, path) = load::read(path.as_ref())?;
        let configured = load::pad_token_beside(&path);
        Self::build(load::parse(&bytes, &path)?, options, configured)
    }

    /// The tokenizer in `json`, the content of a tokenizer.json; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file), without those of reading.
    pub fn from_bytes(json: &[u8], name: impl AsRef<Path>, options: &TokenizerOptions) -> Result<Self, TokenizerError> {
        Self::build(load::parse(json, name.as_ref())?, options, None)
    }

    fn build(
        mut inner: tokenizers::Tokenizer,
        options: &TokenizerOptions,
        configured_pad: Option<String>,
    ) -> Result<Self, TokenizerError> {
        let padding = inner.get_padding().cloned();
        let file_side = padding.as_ref().map(|p| match p.direction {
            tokenizers::PaddingDirection::Left => PadSide::Left,
            tokenizers::PaddingDirection::Right => PadSide::Right,
        });
        let (pad_id, pad_source) = match (options.pad_id, padding) {
            (Some(id), _) => (id, PadSource::Option),
            (None, Some(padding)) => (padding.pad_id, PadSource::PaddingConfig),
            (None, None) => load::guess_pad(&inner, configured_pad),
        };
        inner.with_padding(None);
        let max_length = max_length(&inner, options)?;
        set_max_length(&mut inner, max_length, options.add_special_tokens)?;
        let multiple_of = options.pad_to_multiple_of.unwrap_or(1);
        if multiple_of == 0 {
            return Err(TokenizerError::MultipleOfZero);
        }
        Ok(Self {
            inner,
            width: options.width,
            multiple_of,
            pad_id,
            pad_source,
            pad_side: options.pad_side.or(file_side).unwrap_or_default(),
            add_special_tokens: options.add_special_tokens,
        })
    }

    /// The rows of `texts`, in their order, padded to one width.
    ///
    /// # Errors
    /// [`EncodeError`] for the first text that the tokenizer refuses (rare: a vocabulary without an unknown token, an
    /// error in the crate).
    pub fn encode_batch<'t>(&self, texts: impl IntoIterator<Item = &'t str>) -> Result<Tokens, EncodeError> {
        let mut tokens = self.start_batch();
        for (row, text) in texts.into_iter().enumerate() {
            self.encode_row(text, &mut tokens).map_err(|reason| EncodeError { row, reason })?;
        }
        self.finish_batch(&mut tokens);
        Ok(tokens)
    }

    pub(crate) fn start_batch(&self) -> Tokens {
        Tokens::new(self.pad_id, self.pad_side)
    }

    /// Appends the row of `text`; on an error the batch is as before.
    pub(crate) fn encode_row(&self, text: &str, tokens: &mut Tokens) -> Result<(), ItemError> {
        if text.len() > MAX_BLANK_RUN {
            check_blank_run(text)?;
        }
        // The crate indexes and unwraps in places; one text must not take the whole run down. Nothing of ours is
        // changed inside, and what the crate shares (a cache of words) is written whole or not at all.
        let encoded = catch_unwind(AssertUnwindSafe(|| self.inner.encode_fast(text, self.add_special_tokens)));
        let refused = |detail: String| ItemError::Refused { detail };
        match encoded {
            Ok(Ok(encoding)) => {
                let ids = encoding.get_ids();
                // A post-processor that adds more than it announces would overrun the width.
                if let Some(limit) = self.max_length().filter(|&limit| ids.len() > limit) {
                    let found = ids.len();
                    return Err(refused(format!("it gave {found} tokens, at most {limit} were asked for")));
                }
                tokens.push_row(ids);
            }
            Ok(Err(error)) => return Err(refused(error.to_string())),
            Err(_) => return Err(refused("the tokenizers crate panicked".into())),
        }
        Ok(())
    }

    pub(crate) fn finish_batch(&self, tokens: &mut Tokens) {
        let cols = match self.width {
            Width::Longest => tokens.longest(),
            Width::Fixed(width) => width,
        };
        tokens.set_cols(cols.next_multiple_of(self.multiple_of));
    }

    /// Longest row in tokens before padding, if there is a limit.
    #[must_use]
    pub fn max_length(&self) -> Option<usize> {
        self.inner.get_truncation().map(|truncation| truncation.max_length)
    }

    /// Widest row in tokens after padding, if there is a limit: what slots must have room for.
    #[must_use]
    pub fn max_cols(&self) -> Option<usize> {
        let widest = match self.width {
            Width::Longest => self.max_length()?,
            Width::Fixed(width) => width,
        };
        Some(widest.next_multiple_of(self.multiple_of))
    }

    /// The id that short rows are filled up with.
    #[must_use]
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// Where that id came from.
    #[must_use]
    pub fn pad_source(&self) -> &PadSource {
        &self.pad_source
    }

    /// The side that is filled up.
    #[must_use]
    pub fn pad_side(&self) -> PadSide {
        self.pad_side
    }

    /// Tokens in the vocabulary, added ones included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

/// Most white-space characters in a row: half of the steps after which the regex engine gives up.
const MAX_BLANK_RUN: usize = 500_000;

/// Refuses a text for which the regex engine might silently give other ids; see [`Tokenizer`].
fn check_blank_run(text: &str) -> Result<(), ItemError> {
    let mut run = 0;
    for character in text.chars() {
        run = if character.is_whitespace() { run + 1 } else { 0 };
        if run > MAX_BLANK_RUN {
            let detail = format!("more than {MAX_BLANK_RUN} white-space characters in a row, whose ids might be wrong");
            return Err(ItemError::Refused { detail });
        }
    }
    Ok(())
}

/// The limit that options and file ask for together.
fn max_length(inner: &tokenizers::Tokenizer, options: &TokenizerOptions) -> Result<Option<usize>, TokenizerError> {
    let from_file = inner.get_truncation().map(|t| t.max_length);
    match (options.max_length, options.width) {
        (Some(max_length), Width::Fixed(width)) if max_length > width => {
            Err(TokenizerError::WidthBelowMaxLength { max_length, width })
        }
        (Some(max_length), _) => Ok(Some(max_length)),
        (None, Width::Fixed(width)) => Ok(Some(from_file.unwrap_or(width).min(width))),
        (None, Width::Longest) => Ok(from_file),
    }
}

/// Truncates to `max_length`, on the side that the file says.
fn set_max_length(
    inner: &mut tokenizers::Tokenizer,
    max_length: Option<usize>,
    add_special_tokens: bool,
) -> Result<(), TokenizerError> {
    let direction = inner.get_truncation().map_or(TruncationDirection::Right, |t| t.direction);
    let Some(max_length) = max_length else {
        // Without this, a file's own limit would stay.
        inner.with_truncation(None).map(drop).ok();
        return Ok(());
    };
    let special_tokens = special_tokens(inner);
    let needed = if add_special_tokens { special_tokens + 1 } else { 1 };
    let too_small = TokenizerError::MaxLengthTooSmall { max_length, special_tokens: needed - 1 };
    // The crate subtracts unchecked, also where no special tokens are added.
    if max_length < needed || max_length < special_tokens {
        return Err(too_small);
    }
    let truncation = TruncationParams { max_length, direction, stride: 0, ..TruncationParams::default() };
    inner.with_truncation(Some(truncation)).map(drop).map_err(|_| too_small)
}

/// Special tokens that the tokenizer adds to a single text.
fn special_tokens(inner: &tokenizers::Tokenizer) -> usize {
    use tokenizers::PostProcessor;
    inner.get_post_processor().map_or(0, |processor| processor.added_tokens(false))
}
