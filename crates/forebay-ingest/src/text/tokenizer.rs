//! A tokenizer: loaded once, shared between threads, and the rows that it makes of texts.
//!
//! Wraps the `tokenizers` crate. What happens to one text is in `engine/`, what a batch is in `tokens`; loading is in
//! `load.rs` and `tiktoken.rs`. This file puts them together and cuts batches over the threads of a pool.

use std::fmt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ThreadId};

use tokenizers::normalizers::{NFC, NFKC, Sequence};
use tokenizers::{NormalizerWrapper, PaddingDirection, TruncationDirection, TruncationStrategy};

use super::engine::{Encoder, Engine, Text};
use super::error::{EncodeError, TokenizerError};
use super::load;
use super::options::{PadSide, RowOptions, Side, Truncate, UnicodeForm, Width};
use super::tokens::Tokens;
use crate::error::ItemError;
use crate::pool::{Pool, each_with};

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

/// How a tokenizer is set up. What is about rows can be changed for each call, see [`RowOptions`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerOptions {
    /// Longest row in tokens, special tokens included. Default: what tokenizer.json says in `truncation`, else the
    /// width if that is fixed, else no limit.
    pub max_length: Option<usize>,
    /// Which text of a pair gives way. Default: what tokenizer.json says, else the longer one.
    pub truncate: Option<Truncate>,
    /// The side on which texts lose tokens. Default: what tokenizer.json says, else the right.
    pub truncate_side: Option<Side>,
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
    /// A Unicode normalization before that of the tokenizer. Default: only the tokenizer's own.
    pub normalize: Option<UnicodeForm>,
    /// Whether special tokens that stand in a text (`"[MASK]"`) are those tokens, as in Python; default yes. Switch it off
    /// for texts that others wrote.
    pub special_in_text: bool,
}

impl Default for TokenizerOptions {
    fn default() -> Self {
        Self {
            max_length: None,
            truncate: None,
            truncate_side: None,
            width: Width::default(),
            pad_to_multiple_of: None,
            pad_id: None,
            pad_side: None,
            add_special_tokens: true,
            normalize: None,
            special_in_text: true,
        }
    }
}

/// Turns texts into rows of token ids, the same as the Python package `tokenizers` gives.
///
/// Shared between threads by reference; encoding takes a lock twice a batch, to fetch its working memory and to put it
/// back.
///
/// # Costs
/// Words that came before are looked up: each thread that has encoded keeps up to 4 MB of them. A text, or with most
/// tokenizers a piece of one without cuts (see `engine/cut.rs`), takes 60 to 150 times its bytes in memory while it is
/// tokenized; a batch keeps 4 bytes a token.
///
/// # Exactness
/// Regular expressions run in `fancy-regex`, which gives up after a million steps, and the crate then treats the rest of
/// the text as one word without saying so. Runs of white space are what gets there, so a text with more than half a
/// million white-space characters in a row is refused.
pub struct Tokenizer {
    engine: Engine,
    rows: RowOptions,
    pad_source: PadSource,
    /// Encoders that no thread uses now.
    spare: Mutex<Vec<(ThreadId, Encoder)>>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("rows", &self.rows)
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

    pub(super) fn build(
        mut inner: tokenizers::Tokenizer,
        options: &TokenizerOptions,
        configured_pad: Option<String>,
    ) -> Result<Self, TokenizerError> {
        let (pad_id, pad_source) = match (options.pad_id, inner.get_padding()) {
            (Some(id), _) => (id, PadSource::Option),
            (None, Some(padding)) => (padding.pad_id, PadSource::PaddingConfig),
            (None, None) => load::guess_pad(&inner, configured_pad),
        };
        let rows = rows(&inner, options, pad_id)?;
        inner.with_padding(None);
        // Only switching it on can fail.
        inner.with_truncation(None).map(drop).ok();
        inner.set_encode_special_tokens(!options.special_in_text);
        if let Some(form) = options.normalize {
            normalize_first(&mut inner, form).map_err(|detail| TokenizerError::Unusable { detail })?;
        }
        let engine = Engine::new(inner).map_err(|detail| TokenizerError::Unusable { detail })?;
        rows.check(engine.templates.added(false, rows.add_special_tokens))?;
        Ok(Self { engine, rows, pad_source, spare: Mutex::default() })
    }

    /// The rows of `texts`, in their order, as [`rows`](Self::rows) says, on this thread.
    ///
    /// # Errors
    /// [`EncodeError`] for the first text that the tokenizer refuses (rare: a vocabulary without an unknown token, an
    /// error in the crate).
    pub fn encode_batch<'t>(&self, texts: impl IntoIterator<Item = &'t str>) -> Result<Tokens, EncodeError> {
        let mut worker = self.worker();
        let mut tokens = self.start_batch();
        for (row, text) in texts.into_iter().enumerate() {
            worker.row(text.into(), &self.rows, &mut tokens).map_err(|reason| EncodeError { row, reason })?;
        }
        tokens.finish();
        Ok(tokens)
    }

    /// The rows of `texts`, in their order, as `options` say; on the threads of `pool`, or on this one.
    ///
    /// A text that is refused gets an empty row and stands in [`Tokens::errors`]; [`Tokens::complete`] turns the first
    /// of them into an error. The rows do not depend on the number of threads.
    ///
    /// ```
    /// use forebay_ingest::{Pool, RowOptions, Tokenizer, TokenizerOptions};
    ///
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/tokenizer.json");
    /// let tokenizer = Tokenizer::from_file(path, &TokenizerOptions::default())?;
    /// let options = RowOptions { max_length: Some(9), type_ids: true, ..tokenizer.rows().clone() };
    /// let pairs = [("Who made the heaven?", "In the beginning God created the heaven").into()];
    /// let tokens = tokenizer.encode(&pairs, &options, Some(Pool::shared()?))?.complete()?;
    /// assert_eq!(tokens.row(0), [101, 2040, 2081, 1996, 102, 1999, 1996, 2927, 102]);
    /// assert_eq!(tokens.type_ids(), Some(&[0, 0, 0, 0, 0, 1, 1, 1, 1][..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`TokenizerError`] if the options leave no room for text.
    pub fn encode(
        &self,
        texts: &[Text<'_>],
        options: &RowOptions,
        pool: Option<&Pool>,
    ) -> Result<Tokens, TokenizerError> {
        let all = self.encode_while(texts, options, pool, || true)?;
        Ok(all.unwrap_or_else(|| self.start_batch()))
    }

    /// As [`encode`](Self::encode), but asks `go_on` after every 2 MiB of text a thread, on the calling thread; `None` if it
    /// said no.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_while(
        &self,
        texts: &[Text<'_>],
        options: &RowOptions,
        pool: Option<&Pool>,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<Option<Tokens>, TokenizerError> {
        let pairs = texts.iter().any(Text::is_pair);
        options.check(self.engine.templates.added(pairs, options.add_special_tokens))?;
        let pool = pool.filter(|pool| pool.threads() > 1);
        let mut all = Tokens::new(options);
        for (at, texts) in chunks(0, texts, SLAB_BYTES * pool.map_or(1, Pool::threads)) {
            if at > 0 && !go_on() {
                return Ok(None);
            }
            let bytes: usize = texts.iter().map(Text::bytes).sum();
            match pool {
                Some(pool) if bytes > 2 * MIN_CHUNK_BYTES => {
                    let size = (bytes / (pool.threads() * CHUNKS_A_THREAD)).max(MIN_CHUNK_BYTES);
                    let chunks = chunks(at, texts, size).into_iter();
                    pool.run(|| {
                        all.append(each_with(
                            chunks,
                            || self.worker(),
                            |worker, (at, texts)| chunk(worker, at, texts, options),
                        ))
                    });
                }
                _ => all.append(vec![chunk(&mut self.worker(), at, texts, options)]),
            }
        }
        all.finish();
        Ok(Some(all))
    }

    pub(crate) fn start_batch(&self) -> Tokens {
        Tokens::new(&self.rows)
    }

    /// Working memory for one thread, given back when dropped.
    pub(crate) fn worker(&self) -> Worker<'_> {
        let me = thread::current().id();
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread's is megabytes in another core's cache.
        let own = spare.iter().rposition(|&(owner, _)| owner == me);
        let encoder = match own {
            Some(index) => spare.swap_remove(index).1,
            None => spare.pop().map(|(_, encoder)| encoder).unwrap_or_default(),
        };
        Worker { tokenizer: self, encoder }
    }

    /// How rows are made unless a call says otherwise.
    #[must_use]
    pub fn rows(&self) -> &RowOptions {
        &self.rows
    }

    /// Longest row in tokens before padding, if there is a limit.
    #[must_use]
    pub fn max_length(&self) -> Option<usize> {
        self.rows.limit()
    }

    /// Widest row in tokens after padding, if there is a limit: what slots must have room for.
    #[must_use]
    pub fn max_cols(&self) -> Option<usize> {
        self.rows.max_cols()
    }

    /// The id that short rows are filled up with.
    #[must_use]
    pub fn pad_id(&self) -> u32 {
        self.rows.pad_id
    }

    /// Where that id came from.
    #[must_use]
    pub fn pad_source(&self) -> &PadSource {
        &self.pad_source
    }

    /// The side that is filled up.
    #[must_use]
    pub fn pad_side(&self) -> PadSide {
        self.rows.pad_side
    }

    /// Tokens in the vocabulary, added ones included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.engine.inner.get_vocab_size(true)
    }

    /// The id of a token, written as in the vocabulary.
    #[must_use]
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.engine.inner.token_to_id(token)
    }

    /// The token with this id, written as in the vocabulary.
    #[must_use]
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.engine.inner.id_to_token(id)
    }

    /// Special tokens that each row gets.
    #[must_use]
    pub fn special_tokens(&self, pair: bool) -> usize {
        self.engine.templates.added(pair, true)
    }

    pub(super) fn inner(&self) -> &tokenizers::Tokenizer {
        &self.engine.inner
    }
}

/// The rows of `texts`, the first of which is item `at`.
fn chunk(worker: &mut Worker<'_>, at: usize, texts: &[Text<'_>], options: &RowOptions) -> Tokens {
    let mut tokens = Tokens::new(options);
    for (index, &text) in texts.iter().enumerate() {
        if let Err(reason) = worker.row(text, options, &mut tokens) {
            tokens.push_error(EncodeError { row: at + index, reason });
        }
    }
    tokens
}

/// Less than this is not worth handing to another thread.
const MIN_CHUNK_BYTES: usize = 8 << 10;
/// Small enough pieces that no thread waits long for the last one.
const CHUNKS_A_THREAD: usize = 32;

/// Between two of these a run can be given up.
const SLAB_BYTES: usize = 2 << 20;

/// `texts` in runs of about `bytes`, each with the index of its first; the first of all is item `at`.
fn chunks<'s, 't>(at: usize, texts: &'s [Text<'t>], bytes: usize) -> Vec<(usize, &'s [Text<'t>])> {
    let mut chunks = Vec::new();
    let (mut start, mut held) = (0, 0);
    for (index, text) in texts.iter().enumerate() {
        held += text.bytes();
        if held >= bytes || index + 1 == texts.len() {
            chunks.push((at + start, &texts[start..=index]));
            (start, held) = (index + 1, 0);
        }
    }
    chunks
}

/// A tokenizer with working memory of its own.
pub(crate) struct Worker<'t> {
    tokenizer: &'t Tokenizer,
    encoder: Encoder,
}

impl Worker<'_> {
    /// Appends the row of `text`; on an error the batch is as before.
    pub(crate) fn row(&mut self, text: Text<'_>, options: &RowOptions, tokens: &mut Tokens) -> Result<(), ItemError> {
        self.encoder.row(&self.tokenizer.engine, text, options, tokens)
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        let encoder = std::mem::take(&mut self.encoder);
        let me = thread::current().id();
        self.tokenizer.spare.lock().unwrap_or_else(PoisonError::into_inner).push((me, encoder));
    }
}

/// Rows as options and file say.
fn rows(inner: &tokenizers::Tokenizer, options: &TokenizerOptions, pad_id: u32) -> Result<RowOptions, TokenizerError> {
    let (truncation, padding) = (inner.get_truncation(), inner.get_padding());
    if let (Some(max_length), Width::Fixed(width)) = (options.max_length, options.width)
        && max_length > width
    {
        return Err(TokenizerError::WidthBelowMaxLength { max_length, width });
    }
    let side = truncation.map(|t| match t.direction {
        TruncationDirection::Left => Side::Left,
        TruncationDirection::Right => Side::Right,
    });
    let strategy = truncation.map(|t| match t.strategy {
        TruncationStrategy::LongestFirst => Truncate::LongestFirst,
        TruncationStrategy::OnlyFirst => Truncate::OnlyFirst,
        TruncationStrategy::OnlySecond => Truncate::OnlySecond,
    });
    let pad_side = padding.map(|p| match p.direction {
        PaddingDirection::Left => Side::Left,
        PaddingDirection::Right => Side::Right,
    });
    Ok(RowOptions {
        max_length: options.max_length.or(truncation.map(|t| t.max_length)),
        truncate: options.truncate.or(strategy).unwrap_or_default(),
        truncate_side: options.truncate_side.or(side).unwrap_or_default(),
        overflow: None,
        width: options.width,
        pad_to_multiple_of: options.pad_to_multiple_of.unwrap_or(1),
        pad_side: options.pad_side.or(pad_side).unwrap_or_default(),
        pad_id,
        add_special_tokens: options.add_special_tokens,
        type_ids: false,
        offsets: None,
    })
}

/// Puts a normalization before that of the tokenizer; offsets still count in the text as given.
fn normalize_first(inner: &mut tokenizers::Tokenizer, form: UnicodeForm) -> Result<(), String> {
    let first: NormalizerWrapper = match form {
        UnicodeForm::Nfc => NFC.into(),
        UnicodeForm::Nfkc => NFKC.into(),
    };
    let all = std::iter::once(first).chain(inner.get_normalizer().cloned()).collect();
    inner.with_normalizer(Some(Sequence::new(all))).map(drop).map_err(|e| e.to_string())
}
