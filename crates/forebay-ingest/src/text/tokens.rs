//! The tokens of one batch: flat, unpadded, ready to be written where the tensors shall live.
//!
//! A batch keeps four bytes a token and one offset a row. Padding and widening to `i64` happen once, in the `write_…`
//! methods, in the memory of a slot or an array; called from within `Pool::run`, large batches are written by all
//! of its threads. The ragged form is the flat one as it is, with `cu_seqlens`. This file knows no tokenizer.

use std::ops::Range;

use super::error::{EncodeError, WriteError};
use super::options::{PadSide, RowOptions, Side, Width};
use crate::pool::{each, is_helped};

/// How many tokens were written: the shape of the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Rows, one a text.
    pub rows: usize,
    /// Columns, the width of every row.
    pub cols: usize,
}

/// The tokens of a batch of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    ids: Vec<u32>,
    /// Where each row ends in `ids`.
    ends: Vec<usize>,
    /// As long as `ids`, if asked for.
    type_ids: Option<Vec<u32>>,
    /// As long as `ids`, if asked for.
    offsets: Option<Vec<[u64; 2]>>,
    /// The item of each row, if an item may have several.
    items: Option<Vec<usize>>,
    /// Items begun.
    item_count: usize,
    errors: Vec<EncodeError>,
    cols: usize,
    multiple_of: usize,
    width: Width,
    pad_id: u32,
    pad_side: PadSide,
}

/// A row being made; [`end`](Row::end) makes it part of the batch.
pub(crate) struct Row<'t> {
    tokens: &'t mut Tokens,
}

impl Row<'_> {
    pub(crate) fn push(&mut self, ids: &[u32], type_id: u32) {
        self.tokens.ids.extend_from_slice(ids);
        if let Some(type_ids) = &mut self.tokens.type_ids {
            type_ids.resize(self.tokens.ids.len(), type_id);
        }
    }

    /// The place of the one token pushed last.
    pub(crate) fn offset(&mut self, offset: [u64; 2]) {
        if let Some(offsets) = &mut self.tokens.offsets {
            offsets.push(offset);
        }
    }

    pub(crate) fn end(self) {
        let tokens = self.tokens;
        tokens.ends.push(tokens.ids.len());
        if let Some(items) = &mut tokens.items {
            items.push(tokens.item_count.saturating_sub(1));
        }
    }
}

impl Tokens {
    /// An empty batch with room for what `options` ask for.
    pub(crate) fn new(options: &RowOptions) -> Self {
        Self {
            ids: Vec::new(),
            ends: Vec::new(),
            type_ids: options.type_ids.then(Vec::new),
            offsets: options.offsets.map(|_| Vec::new()),
            items: options.overflow.map(|_| Vec::new()),
            item_count: 0,
            errors: Vec::new(),
            cols: 0,
            multiple_of: options.pad_to_multiple_of.max(1),
            width: options.width,
            pad_id: options.pad_id,
            pad_side: options.pad_side,
        }
    }

    /// The first row of the next item.
    pub(crate) fn start_row(&mut self) -> Row<'_> {
        self.item_count += 1;
        Row { tokens: self }
    }

    /// One more row of the same item.
    pub(crate) fn start_further_row(&mut self) -> Row<'_> {
        Row { tokens: self }
    }

    /// An item that could not be tokenized: an empty row, so that rows stay beside their items.
    pub(crate) fn push_error(&mut self, error: EncodeError) {
        self.errors.push(error);
        self.start_row().end();
    }

    /// Appends what was made of the items behind, part after part; within a pool its threads help.
    pub(crate) fn append(&mut self, mut parts: Vec<Self>) {
        if self.ends.is_empty() && parts.len() == 1 {
            // The only one most times: nothing to copy.
            *self = parts.remove(0);
            return;
        }
        let kept = self.ids.len();
        let total = kept + parts.iter().map(Self::token_count).sum::<usize>();
        for part in &mut parts {
            let (tokens, items) = (self.ends.last().copied().unwrap_or(0), self.item_count);
            self.ends.extend(part.ends.iter().map(|end| end + tokens));
            if let (Some(all), Some(more)) = (&mut self.type_ids, &mut part.type_ids) {
                all.append(more);
            }
            if let (Some(all), Some(more)) = (&mut self.offsets, &mut part.offsets) {
                all.append(more);
            }
            if let (Some(all), Some(more)) = (&mut self.items, &part.items) {
                all.extend(more.iter().map(|item| item + items));
            }
            self.errors.append(&mut part.errors);
            self.item_count += part.item_count;
        }
        let mut moved = Vec::new();
        if total > self.ids.capacity() {
            // Doubled: a call of many slabs would else copy all of its tokens with each of them. Zeroed memory comes as
            // untouched pages, which whoever copies into them touches first, and what is never used is never touched.
            moved = std::mem::replace(&mut self.ids, vec![0; total.max(2 * kept)]);
            self.ids.truncate(total);
        } else {
            self.ids.resize(total, 0);
        }
        let mut places = &mut self.ids[kept - moved.len()..];
        let count = places.len();
        let mut copies = Vec::with_capacity(parts.len() + 1);
        for from in std::iter::once(&moved).chain(parts.iter().map(|part| &part.ids)) {
            let (to, rest) = places.split_at_mut(from.len());
            copies.push((to, from));
            places = rest;
        }
        let copies = copies.into_iter();
        if many_hands(count) {
            each(copies, |(to, from)| to.copy_from_slice(from));
        } else {
            copies.for_each(|(to, from)| to.copy_from_slice(from));
        }
    }

    /// Sets the width that the options ask for, now that all rows are there.
    pub(crate) fn finish(&mut self) {
        let longest = self.longest();
        let cols = match self.width {
            Width::Longest => longest,
            Width::Fixed(width) => width,
        };
        assert!(cols >= longest, "a row does not fit {cols} columns: the limit is capped by the width");
        self.cols = cols.next_multiple_of(self.multiple_of);
    }

    /// The batch of these rows, in this order, as wide as they need: what a plan is carried out with.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn pick(&self, rows: &[usize]) -> Self {
        let count = rows.iter().map(|&row| self.row(row).len()).sum();
        let mut picked = Self {
            ids: Vec::with_capacity(count),
            ends: Vec::with_capacity(rows.len()),
            type_ids: self.type_ids.as_ref().map(|_| Vec::with_capacity(count)),
            offsets: self.offsets.as_ref().map(|_| Vec::with_capacity(count)),
            items: Some(rows.iter().map(|&row| self.item(row)).collect()),
            item_count: self.item_count,
            errors: Vec::new(),
            ..*self
        };
        for &row in rows {
            let range = self.range(row);
            picked.ids.extend_from_slice(&self.ids[range.clone()]);
            picked.ends.push(picked.ids.len());
            if let (Some(to), Some(from)) = (&mut picked.type_ids, &self.type_ids) {
                to.extend_from_slice(&from[range.clone()]);
            }
            if let (Some(to), Some(from)) = (&mut picked.offsets, &self.offsets) {
                to.extend_from_slice(&from[range]);
            }
        }
        picked.errors =
            self.errors.iter().filter(|e| rows.iter().any(|&row| self.item(row) == e.row)).cloned().collect();
        picked.finish();
        picked
    }

    /// Tokens in the longest row.
    pub(crate) fn longest(&self) -> usize {
        self.iter().map(<[u32]>::len).max().unwrap_or(0)
    }

    /// Number of rows: texts in the batch, and with overflow their further rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.ends.len()
    }

    /// Width of the padded rows, in tokens.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Tokens in all rows, special tokens included, padding not.
    #[must_use]
    pub fn token_count(&self) -> usize {
        self.ids.len()
    }

    /// Tokens that padded rows have: rows × cols.
    #[must_use]
    pub fn padded_count(&self) -> usize {
        self.rows() * self.cols
    }

    /// Share of the padded tokens that is padding, 0 to 1.
    #[must_use]
    pub fn waste(&self) -> f64 {
        waste(self.token_count(), self.padded_count())
    }

    /// The unpadded rows.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        (0..self.rows()).map(|row| self.row(row))
    }

    /// The unpadded tokens of one row.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[u32] {
        &self.ids[self.range(row)]
    }

    fn range(&self, row: usize) -> Range<usize> {
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        start..self.ends[row]
    }

    /// The item that `row` belongs to: the row itself, unless overflowing rows were asked for or rows were picked.
    #[must_use]
    pub fn item(&self, row: usize) -> usize {
        self.items.as_ref().map_or(row, |items| items[row])
    }

    /// The items of all rows.
    pub fn items(&self) -> impl ExactSizeIterator<Item = usize> {
        (0..self.rows()).map(|row| self.item(row))
    }

    /// The items that could not be tokenized, in their order; each has an empty row. Only
    /// [`Tokenizer::encode`](super::Tokenizer::encode) leaves any.
    #[must_use]
    pub fn errors(&self) -> &[EncodeError] {
        &self.errors
    }

    /// The batch itself if every item was tokenized.
    ///
    /// # Errors
    /// The first of [`errors`](Self::errors).
    pub fn complete(self) -> Result<Self, EncodeError> {
        match self.errors.first() {
            Some(error) => Err(error.clone()),
            None => Ok(self),
        }
    }

    /// Where each token stands in its text, `[start, end)`; `None` unless asked for. Special tokens have `[0, 0]`.
    #[must_use]
    pub fn offsets(&self) -> Option<&[[u64; 2]]> {
        self.offsets.as_deref()
    }

    /// The number of the text, 0 or 1, that each token belongs to, as the tokenizer numbers them; `None` unless asked for.
    #[must_use]
    pub fn type_ids(&self) -> Option<&[u32]> {
        self.type_ids.as_deref()
    }

    /// All ids, row after row without padding: the ragged form.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Where each row begins in the ragged form, and where the last one ends: `rows + 1` numbers, the `cu_seqlens` of
    /// varlen attention.
    ///
    /// # Errors
    /// [`WriteError`] if `into` has another length; nothing was written then.
    ///
    /// # Panics
    /// With more than `i32::MAX` tokens, which is what the kernels can count.
    pub fn write_cu_seqlens(&self, into: &mut [i32]) -> Result<(), WriteError> {
        let (rows, room) = (self.rows() + 1, into.len());
        if room != rows {
            return Err(WriteError { which: "cu_seqlens", room, rows, cols: 1 });
        }
        let ends = std::iter::once(&0).chain(&self.ends);
        for (place, &end) in into.iter_mut().zip(ends) {
            *place = i32::try_from(end).expect("no batch has 2^31 tokens");
        }
        Ok(())
    }

    /// Writes the ragged form, widened, into the first [`token_count`](Self::token_count) places of `input_ids`.
    ///
    /// # Errors
    /// [`WriteError`] if it is shorter; nothing was written then.
    pub fn write_ragged(&self, input_ids: &mut [i64]) -> Result<(), WriteError> {
        let room = input_ids.len();
        if room < self.ids.len() {
            return Err(WriteError { which: "input_ids", room, rows: 1, cols: self.ids.len() });
        }
        if many_hands(self.ids.len()) {
            let pieces = input_ids.chunks_mut(PIECE).zip(self.ids.chunks(PIECE));
            each(pieces, |(places, ids)| widen(places, ids));
        } else {
            widen(input_ids, &self.ids);
        }
        Ok(())
    }

    /// Writes rows × cols tokens and their mask (1 for a token, 0 for padding), row after row without gaps, and says
    /// how many of each. Slices may be longer; what is behind the last row stays as it was.
    ///
    /// ```
    /// # use forebay_ingest::{Tokenizer, TokenizerOptions};
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/tokenizer.json");
    /// let tokenizer = Tokenizer::from_file(path, &TokenizerOptions::default())?;
    /// let tokens = tokenizer.encode_batch(["Let there be light", "And"])?;
    /// let mut input_ids = vec![0i64; tokens.rows() * tokens.cols()]; // in a feeder: the tensors of a loan
    /// let mut attention_mask = input_ids.clone();
    /// let written = tokens.write_into(&mut input_ids, &mut attention_mask)?;
    /// assert_eq!((written.rows, written.cols), (2, 6));
    /// assert_eq!(input_ids[6..], [101, 1998, 102, 0, 0, 0]);
    /// assert_eq!(attention_mask[6..], [1, 1, 1, 0, 0, 0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`WriteError`] if a slice is shorter than rows × cols; nothing was written then.
    pub fn write_into(&self, input_ids: &mut [i64], attention_mask: &mut [i64]) -> Result<Written, WriteError> {
        self.check_room("input_ids", input_ids.len())?;
        self.check_room("attention_mask", attention_mask.len())?;
        self.write_rows(&self.ids, i64::from(self.pad_id), input_ids, |&id| i64::from(id));
        self.each_row(attention_mask, |places, at, range| {
            fill(places, at, range.len(), 0);
            places[at..at + range.len()].fill(1);
        });
        Ok(Written { rows: self.rows(), cols: self.cols })
    }

    /// Writes rows × cols type ids, 0 for padding; all 0 unless they were asked for.
    ///
    /// # Errors
    /// [`WriteError`] if the slice is shorter; nothing was written then.
    pub fn write_type_ids(&self, token_type_ids: &mut [i64]) -> Result<(), WriteError> {
        self.check_room("token_type_ids", token_type_ids.len())?;
        match &self.type_ids {
            Some(type_ids) => self.write_rows(type_ids, 0, token_type_ids, |&id| i64::from(id)),
            None => token_type_ids[..self.padded_count()].fill(0),
        }
        Ok(())
    }

    /// Writes rows × cols offsets as pairs, `[0, 0]` for padding; all that unless they were asked for.
    ///
    /// # Errors
    /// [`WriteError`] if the slice is shorter; nothing was written then.
    pub fn write_offsets(&self, offset_mapping: &mut [[i64; 2]]) -> Result<(), WriteError> {
        self.check_room("offset_mapping", offset_mapping.len())?;
        match &self.offsets {
            Some(offsets) => {
                self.write_rows(offsets, [0; 2], offset_mapping, |&[start, end]| [start as i64, end as i64]);
            }
            None => offset_mapping[..self.padded_count()].fill([0; 2]),
        }
        Ok(())
    }

    /// Writes the tokens of one row into all of `input_ids`, however wide that is, with padding: for batches that are put
    /// together from rows of several calls.
    ///
    /// # Errors
    /// [`WriteError`] if the row is longer; nothing was written then.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn write_row(&self, row: usize, input_ids: &mut [i64]) -> Result<(), WriteError> {
        let at = self.place("input_ids", row, input_ids)?;
        let ids = self.row(row);
        fill(input_ids, at, ids.len(), i64::from(self.pad_id));
        widen(&mut input_ids[at..], ids);
        Ok(())
    }

    /// Writes the mask of one row, see [`write_row`](Self::write_row).
    ///
    /// # Errors
    /// As [`write_row`](Self::write_row).
    ///
    /// # Panics
    /// If there is no such row.
    pub fn write_row_mask(&self, row: usize, attention_mask: &mut [i64]) -> Result<(), WriteError> {
        let at = self.place("attention_mask", row, attention_mask)?;
        let length = self.row(row).len();
        fill(attention_mask, at, length, 0);
        attention_mask[at..at + length].fill(1);
        Ok(())
    }

    /// Writes the type ids of one row, 0 for padding; all 0 unless they were asked for. See
    /// [`write_row`](Self::write_row).
    ///
    /// # Errors
    /// As [`write_row`](Self::write_row).
    ///
    /// # Panics
    /// If there is no such row.
    pub fn write_row_type_ids(&self, row: usize, token_type_ids: &mut [i64]) -> Result<(), WriteError> {
        let at = self.place("token_type_ids", row, token_type_ids)?;
        let range = self.range(row);
        fill(token_type_ids, at, range.len(), 0);
        match &self.type_ids {
            Some(type_ids) => widen(&mut token_type_ids[at..], &type_ids[range]),
            None => token_type_ids[at..at + range.len()].fill(0),
        }
        Ok(())
    }

    /// Where the tokens of `row` begin in `places`.
    fn place(&self, which: &'static str, row: usize, places: &[i64]) -> Result<usize, WriteError> {
        let (length, room) = (self.row(row).len(), places.len());
        if length > room {
            return Err(WriteError { which, room, rows: 1, cols: length });
        }
        Ok(match self.pad_side {
            Side::Right => 0,
            Side::Left => room - length,
        })
    }

    fn check_room(&self, which: &'static str, room: usize) -> Result<(), WriteError> {
        let (rows, cols) = (self.rows(), self.cols);
        if room < rows * cols { Err(WriteError { which, room, rows, cols }) } else { Ok(()) }
    }

    /// Does `write` for each padded row of `into`: its places, where its tokens begin there, where they lie in the flat
    /// tables.
    fn each_row<T: Send>(&self, into: &mut [T], write: impl Fn(&mut [T], usize, Range<usize>) + Sync) {
        let one = |row: usize, places: &mut [T]| write(places, self.at(row), self.range(row));
        let into = &mut into[..self.padded_count()];
        // With no column there is nothing to write, and chunks of zero do not exist.
        let cols = self.cols.max(1);
        if many_hands(into.len()) {
            let rows = (PIECE / cols).max(1);
            each(into.chunks_mut(rows * cols).enumerate(), |(piece, into)| {
                into.chunks_exact_mut(cols).enumerate().for_each(|(row, places)| one(piece * rows + row, places));
            });
        } else {
            into.chunks_exact_mut(cols).enumerate().for_each(|(row, places)| one(row, places));
        }
    }

    /// Where the tokens of `row` begin in its padded row.
    fn at(&self, row: usize) -> usize {
        match self.pad_side {
            Side::Right => 0,
            Side::Left => self.cols - self.row(row).len(),
        }
    }

    /// Writes one of the flat tables, as long as `ids`, padded.
    fn write_rows<F: Sync, T: Copy + Send + Sync>(
        &self,
        flat: &[F],
        padding: T,
        into: &mut [T],
        widen: impl Fn(&F) -> T + Sync,
    ) {
        self.each_row(into, |places, at, range| {
            fill(places, at, range.len(), padding);
            for (place, value) in places[at..].iter_mut().zip(&flat[range]) {
                *place = widen(value);
            }
        });
    }
}

/// Elements that a thread writes before it looks for more, about.
const PIECE: usize = 16 << 10;

/// Whether this is within a pool and there is work for more than one thread.
fn many_hands(elements: usize) -> bool {
    elements > 4 * PIECE && is_helped()
}

fn widen(places: &mut [i64], ids: &[u32]) {
    for (place, &id) in places.iter_mut().zip(ids) {
        *place = i64::from(id);
    }
}

/// Share of `padded` tokens that is not `real`.
pub(super) fn waste(real: usize, padded: usize) -> f64 {
    if padded == 0 { 0.0 } else { 1.0 - real as f64 / padded as f64 }
}

/// Fills `row` with `padding` except for the `length` places from `at` on.
fn fill<T: Copy>(row: &mut [T], at: usize, length: usize, padding: T) {
    row[..at].fill(padding);
    row[at + length..].fill(padding);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Truncate;
    use proptest::prelude::*;

    fn options() -> RowOptions {
        RowOptions {
            max_length: None,
            truncate: Truncate::default(),
            truncate_side: Side::Right,
            overflow: None,
            width: Width::Longest,
            pad_to_multiple_of: 1,
            pad_side: Side::Right,
            pad_id: 0,
            add_special_tokens: true,
            type_ids: true,
            offsets: None,
        }
    }

    fn tokens(rows: &[Vec<u32>], cols: usize, side: PadSide) -> Tokens {
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        let options = RowOptions { pad_id: 9, pad_side: side, width: Width::Fixed(cols.max(longest)), ..options() };
        let mut tokens = Tokens::new(&options);
        for ids in rows {
            let mut row = tokens.start_row();
            row.push(ids, 1);
            row.end();
        }
        tokens.finish();
        tokens
    }

    #[test]
    fn short_slices_are_refused_untouched() {
        let tokens = tokens(&[vec![1, 2], vec![3]], 0, PadSide::Right);
        let (mut long, mut short) = ([7; 4], [7; 3]);
        let error = tokens.write_into(&mut long, &mut short).unwrap_err();
        assert_eq!((error.which, error.room), ("attention_mask", 3));
        assert_eq!((long, short), ([7; 4], [7; 3]));
        let error = tokens.write_into(&mut short, &mut long).unwrap_err();
        assert_eq!(error.which, "input_ids");
    }

    #[test]
    fn no_rows_and_no_columns_write_nothing() {
        for (rows, cols) in [(vec![], 0), (vec![], 5), (vec![vec![], vec![]], 0)] {
            let count = rows.len();
            let tokens = tokens(&rows, cols, PadSide::Left);
            let written = tokens.write_into(&mut [], &mut []).unwrap();
            assert_eq!(written.rows, count);
        }
    }

    #[test]
    fn what_is_appended_a_slab_at_a_time_moves_only_when_it_doubled() {
        let slab = |first: u32| {
            let mut part = Tokens::new(&options());
            let mut row = part.start_row();
            row.push(&[first, first + 1, first + 2], 1);
            row.end();
            part
        };
        let mut all = Tokens::new(&options());
        let (mut place, mut moves) = (all.ids.as_ptr(), 0);
        for at in 0..500 {
            all.append(vec![slab(6 * at), slab(6 * at + 3)]);
            moves += usize::from(place != all.ids.as_ptr());
            place = all.ids.as_ptr();
        }
        assert!(moves <= 10, "{moves}");
        assert!(all.ids().iter().copied().eq(0..3000));
        assert_eq!((all.rows(), all.row(999)), (1000, &[2997, 2998, 2999][..]));
        assert_eq!(all.type_ids(), Some(&[1; 3000][..]));
    }

    #[test]
    fn the_ragged_form_has_every_row_and_its_ends() {
        let tokens = tokens(&[vec![1, 2], vec![], vec![3]], 0, PadSide::Right);
        let (mut ids, mut ends) = ([0; 3], [9; 4]);
        tokens.write_ragged(&mut ids).unwrap();
        tokens.write_cu_seqlens(&mut ends).unwrap();
        assert_eq!((ids, ends), ([1, 2, 3], [0, 2, 2, 3]));
        assert_eq!(tokens.write_ragged(&mut [0; 2]).unwrap_err().room, 2);
        assert_eq!(tokens.write_cu_seqlens(&mut [0; 5]).unwrap_err().which, "cu_seqlens");
        let mut types = [9; 6];
        tokens.write_type_ids(&mut types).unwrap();
        assert_eq!(types, [1, 1, 0, 0, 1, 0]);
    }

    #[test]
    fn picked_rows_are_as_wide_as_they_need_and_remember_their_items() {
        let mut options = options();
        options.pad_to_multiple_of = 2;
        let mut tokens = Tokens::new(&options);
        for ids in [&[1, 2, 3, 4, 5][..], &[6], &[7, 8, 9]] {
            let mut row = tokens.start_row();
            row.push(ids, 0);
            row.end();
        }
        tokens.finish();
        assert_eq!((tokens.cols(), tokens.token_count(), tokens.padded_count()), (6, 9, 18));
        assert_eq!(tokens.waste(), 0.5);
        let picked = tokens.pick(&[2, 1]);
        assert_eq!((picked.rows(), picked.cols(), picked.row(0)), (2, 4, &[7, 8, 9][..]));
        assert_eq!(picked.items().collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn the_threads_of_a_pool_write_what_one_writes() {
        let rows: Vec<Vec<u32>> = (0..3000).map(|row| (0..row % 61).collect()).collect();
        for side in [PadSide::Left, PadSide::Right] {
            let tokens = tokens(&rows, 0, side);
            let write = || {
                let (mut ids, mut mask) = (vec![-1; tokens.padded_count()], vec![-1; tokens.padded_count()]);
                let mut ragged = vec![-1; tokens.token_count()];
                tokens.write_into(&mut ids, &mut mask).unwrap();
                tokens.write_ragged(&mut ragged).unwrap();
                (ids, mask, ragged)
            };
            assert!(!many_hands(tokens.padded_count()));
            let pool = crate::Pool::new(3).unwrap();
            assert!(pool.run(|| many_hands(tokens.padded_count())));
            assert_eq!(pool.run(write), write());
        }
    }

    proptest! {
        #[test]
        fn every_place_is_written_and_none_behind(
            rows in proptest::collection::vec(proptest::collection::vec(10u32.., 0..6), 0..6),
            cols in 0usize..9,
            left: bool,
        ) {
            let side = if left { PadSide::Left } else { PadSide::Right };
            let tokens = tokens(&rows, cols, side);
            let cols = tokens.cols();
            let needed = rows.len() * cols;
            let (mut ids, mut mask) = (vec![-1; needed + 3], vec![-1; needed + 2]);
            let written = tokens.write_into(&mut ids, &mut mask).unwrap();
            prop_assert_eq!(written, Written { rows: rows.len(), cols });
            prop_assert_eq!(&ids[needed..], [-1; 3]);
            prop_assert_eq!(&mask[needed..], [-1; 2]);
            for (r, row) in rows.iter().enumerate() {
                let padding = cols - row.len();
                for c in 0..cols {
                    let token = if left { c.checked_sub(padding) } else { Some(c) }.and_then(|at| row.get(at));
                    prop_assert_eq!(ids[r * cols + c], token.map_or(9, |&id| i64::from(id)));
                    prop_assert_eq!(mask[r * cols + c], i64::from(token.is_some()));
                }
            }
        }
    }

    #[test]
    fn a_row_alone_is_written_as_in_its_batch() {
        for pad_side in [Side::Right, Side::Left] {
            let mut tokens = Tokens::new(&RowOptions { pad_side, pad_id: 9, ..options() });
            for ids in [&[5u32, 6, 7][..], &[8], &[]] {
                let mut row = tokens.start_row();
                row.push(ids, 1);
                row.end();
            }
            tokens.finish();
            let (mut ids, mut mask, mut types) = ([0; 9], [0; 9], [0; 9]);
            tokens.write_into(&mut ids, &mut mask).unwrap();
            tokens.write_type_ids(&mut types).unwrap();
            for row in 0..3 {
                let mut out = [[77; 3]; 3];
                tokens.write_row(row, &mut out[0]).unwrap();
                tokens.write_row_mask(row, &mut out[1]).unwrap();
                tokens.write_row_type_ids(row, &mut out[2]).unwrap();
                for (out, all) in out.iter().zip([&ids, &mask, &types]) {
                    assert_eq!(out[..], all[row * 3..][..3]);
                }
            }
            let mut wide = [77; 5];
            tokens.write_row(1, &mut wide).unwrap();
            let expected = if pad_side == Side::Right { [8, 9, 9, 9, 9] } else { [9, 9, 9, 9, 8] };
            assert_eq!(wide, expected);
            assert_eq!(tokens.write_row(0, &mut wide[..2]).unwrap_err().room, 2);
        }
    }
}
