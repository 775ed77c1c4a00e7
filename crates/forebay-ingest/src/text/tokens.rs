//! The tokens of one batch: flat, unpadded, ready to be written into a slot.
//!
//! A batch keeps four bytes a token and one offset a row. Padding and widening to `i64` happen once, in
//! [`Tokens::write_into`], in the memory where the tensor shall live. This file knows no tokenizer.

use super::error::WriteError;

/// The side on which short rows are filled up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PadSide {
    /// After the text.
    #[default]
    Right,
    /// Before the text, as generating models want it.
    Left,
}

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
    cols: usize,
    pad_id: u32,
    pad_side: PadSide,
}

impl Tokens {
    pub(crate) fn new(pad_id: u32, pad_side: PadSide) -> Self {
        Self { ids: Vec::new(), ends: Vec::new(), cols: 0, pad_id, pad_side }
    }

    pub(crate) fn push_row(&mut self, ids: &[u32]) {
        self.ids.extend_from_slice(ids);
        self.ends.push(self.ids.len());
    }

    /// Sets the width, which is at least the longest row's.
    pub(crate) fn set_cols(&mut self, cols: usize) {
        assert!(cols >= self.longest(), "a row does not fit {cols} columns: max_length is capped by the width");
        self.cols = cols;
    }

    /// Tokens in the longest row.
    pub(crate) fn longest(&self) -> usize {
        self.iter().map(<[u32]>::len).max().unwrap_or(0)
    }

    /// Number of rows: texts in the batch.
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
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.ids[start..self.ends[row]]
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
        let (rows, cols) = (self.rows(), self.cols);
        let needed = rows * cols;
        for (which, room) in [("input_ids", input_ids.len()), ("attention_mask", attention_mask.len())] {
            if room < needed {
                return Err(WriteError { which, room, rows, cols });
            }
        }
        // With no column there is nothing to write, and chunks of zero do not exist.
        let id_rows = input_ids[..needed].chunks_exact_mut(cols.max(1));
        let mask_rows = attention_mask[..needed].chunks_exact_mut(cols.max(1));
        for ((row, ids), mask) in self.iter().zip(id_rows).zip(mask_rows) {
            let at = match self.pad_side {
                PadSide::Right => 0,
                PadSide::Left => cols - row.len(),
            };
            fill(ids, at, row.len(), i64::from(self.pad_id));
            fill(mask, at, row.len(), 0);
            for (slot, &id) in ids[at..].iter_mut().zip(row) {
                *slot = i64::from(id);
            }
            mask[at..at + row.len()].fill(1);
        }
        Ok(Written { rows, cols })
    }
}

/// Fills `row` with `padding` except for the `length` places from `at` on.
fn fill(row: &mut [i64], at: usize, length: usize, padding: i64) {
    row[..at].fill(padding);
    row[at + length..].fill(padding);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(rows: &[Vec<u32>], cols: usize, side: PadSide) -> Tokens {
        let mut tokens = Tokens::new(9, side);
        for row in rows {
            tokens.push_row(row);
        }
        tokens.set_cols(cols.max(tokens.longest()));
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
}
