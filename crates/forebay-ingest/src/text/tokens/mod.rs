//! The tokens of one batch: flat, unpadded, ready to be written where the tensors shall live.
//!
//! A batch keeps four bytes a token and one offset a row. Padding and widening to `i64` happen once, in the `write_…`
//! methods of `write`. The ragged form is the flat one as it is, with `cu_seqlens`. Nothing here knows a tokenizer.

mod write;

use std::ops::Range;

pub use self::write::Written;
use super::{
    error::EncodeError,
    options::{PadSide, RowOptions, Width},
};
use crate::pool::{each, is_helped};

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
}

/// Elements that a thread writes before it looks for more, about.
const PIECE: usize = 16 << 10;

/// Whether this is within a pool and there is work for more than one thread.
fn many_hands(elements: usize) -> bool {
    elements > 4 * PIECE && is_helped()
}

/// Share of `padded` tokens that is not `real`.
pub(super) fn waste(real: usize, padded: usize) -> f64 {
    if padded == 0 { 0.0 } else { 1.0 - real as f64 / padded as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Side, Truncate};

    pub(super) fn options() -> RowOptions {
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

    pub(super) fn tokens(rows: &[Vec<u32>], cols: usize, side: PadSide) -> Tokens {
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
}
