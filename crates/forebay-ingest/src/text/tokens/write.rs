//! Tokens are written where the tensors shall live: padded or ragged, widened to `i64`, in one pass.
//!
//! Every method checks its room first and writes nothing if there is too little. Called from within `Pool::run`, large
//! batches are written by all of its threads. What a batch is, and how it grows, is not known here.

use std::ops::Range;

use super::{PIECE, Tokens, many_hands};
use crate::{
    pool::each,
    text::{error::WriteError, options::Side},
};

/// How many tokens were written: the shape of the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Rows, one a text.
    pub rows: usize,
    /// Columns, the width of every row.
    pub cols: usize,
}

impl Tokens {
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

fn widen(places: &mut [i64], ids: &[u32]) {
    for (place, &id) in places.iter_mut().zip(ids) {
        *place = i64::from(id);
    }
}

/// Fills `row` with `padding` except for the `length` places from `at` on.
fn fill<T: Copy>(row: &mut [T], at: usize, length: usize, padding: T) {
    row[..at].fill(padding);
    row[at + length..].fill(padding);
}

#[cfg(test)]
mod tests {
    use super::super::tests::{options, tokens};
    use super::*;
    use crate::text::options::{PadSide, RowOptions};
    use proptest::prelude::*;

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
