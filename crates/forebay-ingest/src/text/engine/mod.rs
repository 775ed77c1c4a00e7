//! One text, or a pair, to the ids of one row: the work itself.
//!
//! ```text
//!   text ─▶ cut at spaces ─▶ Words (seen before?) ─▶ crate: normalize, pre-tokenize, model ─▶ ids
//!   ids of both texts ─▶ truncate ─▶ Template puts special tokens around ─▶ a row of Tokens
//! ```
//!
//! The crate's own `Encoding` is made only where offsets or overflowing rows are asked for: it holds nine tables a
//! text. Tokenizers for which cutting is not known to be safe run whole texts through the crate.
//!
//! An [`Encoder`] belongs to one thread at a time; the tokenizer keeps those that are not in use.

mod cut;
mod template;
mod truncate;
mod words;

#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;
use tokenizers::tokenizer::{Model, PreTokenizer};
use tokenizers::{
    Encoding, OffsetReferential, OffsetType, PreTokenizedString, TruncationDirection, TruncationParams,
    TruncationStrategy, truncate_encodings,
};

use self::template::{Piece, Template};
use self::words::Words;
use super::options::{OffsetUnit, RowOptions, Side, Truncate};
use super::tokens::{Row, Tokens};
use crate::error::ItemError;

pub(crate) use template::Templates;

/// One item: a text, or two that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text<'t> {
    /// One text.
    Single(&'t str),
    /// Two, such as a question and the passage that may answer it.
    Pair(&'t str, &'t str),
    /// None: an item that is no text. It gets an empty row and stands among the errors.
    Absent,
}

impl<'t> From<&'t str> for Text<'t> {
    fn from(text: &'t str) -> Self {
        Self::Single(text)
    }
}

impl<'t> From<(&'t str, &'t str)> for Text<'t> {
    fn from((first, second): (&'t str, &'t str)) -> Self {
        Self::Pair(first, second)
    }
}

impl Text<'_> {
    /// Bytes of it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Single(text) => text.len(),
            Self::Pair(first, second) => first.len() + second.len(),
            Self::Absent => 0,
        }
    }

    pub(crate) fn is_pair(&self) -> bool {
        matches!(self, Self::Pair(..))
    }
}

/// What all encoders of a tokenizer share.
pub(crate) struct Engine {
    pub(crate) inner: tokenizers::Tokenizer,
    pub(crate) templates: Templates,
    cuts: bool,
}

impl Engine {
    /// Wraps `inner`, whose truncation and padding are off.
    pub(crate) fn new(inner: tokenizers::Tokenizer) -> Result<Self, String> {
        let templates = Templates::learn(&inner)?;
        let cuts = inner.to_string(false).is_ok_and(|json| cuts_of(&json));
        Ok(Self { inner, templates, cuts })
    }
}

fn cuts_of(json: &str) -> bool {
    serde_json::from_str::<Value>(json).is_ok_and(|json| cut::cuts_at_spaces(&json))
}

/// The working memory of one thread.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    words: Words,
    first: Vec<u32>,
    second: Vec<u32>,
}

impl Encoder {
    /// Appends the row (with overflow: rows) of `text`; on an error `tokens` is as before.
    pub(crate) fn row(
        &mut self,
        engine: &Engine,
        text: Text<'_>,
        options: &RowOptions,
        tokens: &mut Tokens,
    ) -> Result<(), ItemError> {
        match text {
            Text::Single(text) => check_blank_run(text)?,
            Text::Pair(first, second) => {
                check_blank_run(first)?;
                check_blank_run(second)?;
            }
            Text::Absent => return Err(absent()),
        }
        // The crate indexes and unwraps in places; one text must not take the whole run down. Nothing of ours is
        // left half-written by it (rows are appended after it returned), and what the crate shares (a cache of words)
        // is written whole or not at all.
        let work = AssertUnwindSafe(|| {
            if options.offsets.is_some() || options.overflow.is_some() {
                rows_with_tables(engine, text, options, tokens)
            } else {
                self.plain_row(engine, text, options, tokens)
            }
        });
        catch_unwind(work).unwrap_or_else(|_| Err(refused("the tokenizers crate panicked")))
    }

    fn plain_row(
        &mut self,
        engine: &Engine,
        text: Text<'_>,
        options: &RowOptions,
        tokens: &mut Tokens,
    ) -> Result<(), ItemError> {
        let template = engine.templates.get(text.is_pair(), options.add_special_tokens);
        let room = options.limit().map(|limit| limit.saturating_sub(template.added));
        self.first.clear();
        self.second.clear();
        let (first, second) = match text {
            Text::Single(text) => {
                // What comes after a full row is not even looked at.
                let enough =
                    room.filter(|_| options.truncate_side == Side::Right && options.truncate != Truncate::OnlySecond);
                ids_of(engine, text, enough, &mut self.words, &mut self.first)?;
                (self.first.len(), None)
            }
            Text::Pair(first, second) => {
                ids_of(engine, first, None, &mut self.words, &mut self.first)?;
                ids_of(engine, second, None, &mut self.words, &mut self.second)?;
                (self.first.len(), Some(self.second.len()))
            }
            Text::Absent => return Err(absent()),
        };
        let (first, second) = match room {
            Some(room) => truncate::kept(first, second, room, options.truncate)?,
            None => (first, second.unwrap_or(0)),
        };
        let first = truncate::part(&self.first, first, options.truncate_side);
        let second = truncate::part(&self.second, second, options.truncate_side);
        write(template, first, second, options, tokens)
    }
}

/// Appends one row as `template` has it.
fn write(
    template: &Template,
    first: &[u32],
    second: &[u32],
    options: &RowOptions,
    tokens: &mut Tokens,
) -> Result<(), ItemError> {
    let length = |piece: &Piece| match piece {
        Piece::Special { .. } => 1,
        Piece::First { .. } => first.len(),
        Piece::Second { .. } => second.len(),
    };
    check_limit(template.pieces.iter().map(length).sum(), options)?;
    let mut row = tokens.start_row();
    for piece in &template.pieces {
        match *piece {
            Piece::Special { id, type_id } => row.push(&[id], type_id),
            Piece::First { type_id } => row.push(first, type_id),
            Piece::Second { type_id } => row.push(second, type_id),
        }
    }
    row.end();
    Ok(())
}

/// A post-processor that adds more than it announces would overrun the width.
fn check_limit(found: usize, options: &RowOptions) -> Result<(), ItemError> {
    match options.limit() {
        Some(limit) if found > limit => {
            Err(refused(&format!("it gave {found} tokens, at most {limit} were asked for")))
        }
        _ => Ok(()),
    }
}

/// Appends the ids of `text` to `ids`, at least the first `enough` of them.
fn ids_of(
    engine: &Engine,
    text: &str,
    enough: Option<usize>,
    words: &mut Words,
    ids: &mut Vec<u32>,
) -> Result<(), ItemError> {
    if !engine.cuts {
        return whole(engine, text, enough, ids);
    }
    let full = |ids: &[u32]| enough.is_some_and(|enough| ids.len() >= enough);
    let longest_run = if enough.is_some() { 256 } else { 1024 };
    let mut run = Run::default();
    let mut at = 0;
    while at < text.len() && !full(ids) {
        let end = cut::first_cut(&text[at..]).map_or(text.len(), |cut| at + cut);
        let piece = &text[at..end];
        if !run.is_empty() && words.get(piece).is_some() {
            run.tokenize(engine, text, words, ids)?;
        }
        // Looked up again: the run may have begun a new cache.
        match words.get(piece) {
            Some(_) if full(ids) => {}
            Some(known) => ids.extend_from_slice(known),
            None => {
                run.push(at, end);
                if run.bytes() >= longest_run {
                    run.tokenize(engine, text, words, ids)?;
                }
            }
        }
        at = end;
    }
    if full(ids) { Ok(()) } else { run.tokenize(engine, text, words, ids) }
}

/// Neighbouring pieces that were not seen before: the crate takes them in one go.
#[derive(Debug, Default)]
struct Run {
    start: usize,
    /// Where each piece ends in the text.
    ends: Vec<usize>,
}

impl Run {
    fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    fn bytes(&self) -> usize {
        self.ends.last().map_or(0, |end| end - self.start)
    }

    fn push(&mut self, start: usize, end: usize) {
        if self.ends.is_empty() {
            self.start = start;
        }
        self.ends.push(end);
    }

    /// Appends the ids of its pieces, remembers each of them, and is empty.
    fn tokenize(
        &mut self,
        engine: &Engine,
        text: &str,
        words: &mut Words,
        ids: &mut Vec<u32>,
    ) -> Result<(), ItemError> {
        let Some(&end) = self.ends.last() else { return Ok(()) };
        let split = split(engine, &text[self.start..end], None)?;
        let mut pieces = Pieces { run: self, text, index: 0, begin: ids.len() };
        for (_, (start, _), tokens) in split.get_splits(OffsetReferential::Original, OffsetType::Byte) {
            // No split reaches over a cut, so it is of the piece in which it starts.
            pieces.end_before(start, words, ids);
            ids.extend(tokens.iter().flatten().map(|token| token.id));
        }
        pieces.end_before(usize::MAX, words, ids);
        self.ends.clear();
        Ok(())
    }
}

/// The pieces of a run, while their ids are appended.
struct Pieces<'r> {
    run: &'r Run,
    text: &'r str,
    /// The piece that ids belong to now.
    index: usize,
    /// Where its ids begin.
    begin: usize,
}

impl Pieces<'_> {
    /// Remembers the pieces that end before `start`, counted from the start of the run.
    fn end_before(&mut self, start: usize, words: &mut Words, ids: &[u32]) {
        while let Some(&end) = self.run.ends.get(self.index)
            && end - self.run.start <= start
        {
            let from = self.index.checked_sub(1).map_or(self.run.start, |before| self.run.ends[before]);
            words.insert(&self.text[from..end], &ids[self.begin..]);
            self.index += 1;
            self.begin = ids.len();
        }
    }
}

/// The same through the crate in one go.
fn whole(engine: &Engine, text: &str, enough: Option<usize>, ids: &mut Vec<u32>) -> Result<(), ItemError> {
    let direction = TruncationDirection::Right;
    let split = split(engine, text, enough.map(|enough| (enough, direction)))?;
    for (_, _, tokens) in split.get_splits(OffsetReferential::Original, OffsetType::None) {
        ids.extend(tokens.iter().flatten().map(|token| token.id));
    }
    Ok(())
}

/// `text` normalized, split, and each split tokenized.
fn split(
    engine: &Engine,
    text: &str,
    limit: Option<(usize, TruncationDirection)>,
) -> Result<PreTokenizedString, ItemError> {
    let inner = &engine.inner;
    let failed = |error: tokenizers::Error| refused(&error.to_string());
    let mut split = inner.get_added_vocabulary().extract_and_normalize(inner.get_normalizer(), text);
    if let Some(pre_tokenizer) = inner.get_pre_tokenizer() {
        pre_tokenizer.pre_tokenize(&mut split).map_err(failed)?;
    }
    inner.get_model().tokenize_in_pretokenized(&mut split, limit).map_err(failed)?;
    Ok(split)
}

/// The row or rows of `text` through the crate's own `Encoding`, which knows offsets and overflow.
fn rows_with_tables(
    engine: &Engine,
    text: Text<'_>,
    options: &RowOptions,
    tokens: &mut Tokens,
) -> Result<(), ItemError> {
    let unit = match options.offsets {
        // Without offsets the crate would not tell the texts of a pair apart either.
        None | Some(OffsetUnit::Bytes) => OffsetType::Byte,
        Some(OffsetUnit::Chars) => OffsetType::Char,
    };
    let failed = |error: tokenizers::Error| refused(&error.to_string());
    let encode = |text: &str, type_id| split(engine, text, None)?.into_encoding(None, type_id, unit).map_err(failed);
    let (first, second) = match text {
        Text::Single(text) => (encode(text, 0)?, None),
        Text::Pair(first, second) => (encode(first, 0)?, Some(encode(second, 1)?)),
        Text::Absent => return Err(absent()),
    };
    let added = engine.templates.added(second.is_some(), options.add_special_tokens);
    let (first, second) = match options.limit() {
        None => (first, second),
        Some(limit) => truncated(first, second, limit.saturating_sub(added), options)?,
    };
    let encoding = engine.inner.post_process(first, second, options.add_special_tokens).map_err(failed)?;
    let further = if options.overflow.is_some() { encoding.get_overflowing().as_slice() } else { &[] };
    for encoding in std::iter::once(&encoding).chain(further) {
        check_limit(encoding.len(), options)?;
    }
    append(&encoding, tokens.start_row());
    for encoding in further {
        append(encoding, tokens.start_further_row());
    }
    Ok(())
}

/// Both texts cut to `room` tokens, with the parts that were cut off where those become rows.
fn truncated(
    first: Encoding,
    second: Option<Encoding>,
    room: usize,
    options: &RowOptions,
) -> Result<(Encoding, Option<Encoding>), ItemError> {
    let (mut first, mut second) =
        truncate_encodings(first, second, &params(room, options)).map_err(|error| refused(&error.to_string()))?;
    if options.overflow.is_none() {
        // The crate would join every part of the first text with every part of the second.
        for encoding in std::iter::once(&mut first).chain(&mut second) {
            drop(encoding.take_overflowing());
        }
    }
    Ok((first, second))
}

fn append(encoding: &Encoding, mut row: Row<'_>) {
    for ((&id, &type_id), &(start, end)) in
        encoding.get_ids().iter().zip(encoding.get_type_ids()).zip(encoding.get_offsets())
    {
        row.push(&[id], type_id);
        row.offset([start as u64, end as u64]);
    }
    row.end();
}

fn params(max_length: usize, options: &RowOptions) -> TruncationParams {
    TruncationParams {
        max_length,
        stride: options.overflow.unwrap_or(0),
        direction: match options.truncate_side {
            Side::Right => TruncationDirection::Right,
            Side::Left => TruncationDirection::Left,
        },
        strategy: match options.truncate {
            Truncate::LongestFirst => TruncationStrategy::LongestFirst,
            Truncate::OnlyFirst => TruncationStrategy::OnlyFirst,
            Truncate::OnlySecond => TruncationStrategy::OnlySecond,
        },
    }
}

fn absent() -> ItemError {
    refused("there is none")
}

fn refused(detail: &str) -> ItemError {
    ItemError::Refused { detail: detail.to_owned() }
}

/// Most white-space characters in a row: half of the steps after which the regex engine gives up.
const MAX_BLANK_RUN: usize = 500_000;

/// Refuses a text for which the regex engine might silently give other ids; see [`Tokenizer`](super::Tokenizer).
fn check_blank_run(text: &str) -> Result<(), ItemError> {
    if text.len() <= MAX_BLANK_RUN {
        return Ok(());
    }
    let mut run = 0;
    for character in text.chars() {
        run = if character.is_whitespace() { run + 1 } else { 0 };
        if run > MAX_BLANK_RUN {
            return Err(refused(&format!(
                "more than {MAX_BLANK_RUN} white-space characters in a row, whose ids might be wrong"
            )));
        }
    }
    Ok(())
}
