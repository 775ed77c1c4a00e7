//! Rows of hashed features that are collected one by one, then sorted and added up on all cores.

use super::element::IndexElement;
use super::error::WriteTableError;
use super::hash::{FeatureHasher, sum_duplicates_in};
use crate::work::{Work, WorkError};

/// Entries in a job of the sorting.
const JOB_ENTRIES: usize = 1 << 14;

/// Sparse rows in the making, for callers that hash names themselves.
///
/// ```
/// use forebay_ingest::Work;
/// use forebay_ingest::table::{FeatureHasher, HashedRows};
///
/// let hasher = FeatureHasher::new(16, true).ok_or("no columns")?;
/// let mut rows = HashedRows::new(true);
/// for row in [["dog", "cat"], ["dog", "dog"]] {
///     row.iter().for_each(|name| rows.push(hasher, name.as_bytes(), 1.0));
///     rows.end_row();
/// }
/// let rows = rows.finish(&Work::shared())?;
/// assert_eq!((rows.rows(), rows.entries()), (2, 3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct HashedRows {
    /// Values are rounded to `f32`, and sums are taken in it.
    single: bool,
    /// Column and value; those of a job lie at its front once it is done.
    entries: Vec<(u32, f64)>,
    /// Where each row ends: among the entries at first, then among those that are left.
    ends: Vec<usize>,
    /// What each job left.
    parts: Vec<Part>,
}

/// What a job left: its entries start at `start`, `kept` of them, of `rows` rows.
#[derive(Debug, Clone, Copy)]
struct Part {
    start: usize,
    kept: usize,
    rows: usize,
}

/// A value of an entry: `f32` or `f64`.
pub trait HashedValue: Copy + Send + Sync + 'static {
    #[doc(hidden)]
    fn of(value: f64) -> Self;
}

impl HashedValue for f32 {
    fn of(value: f64) -> Self {
        value as Self
    }
}

impl HashedValue for f64 {
    fn of(value: f64) -> Self {
        value
    }
}

impl HashedRows {
    /// No rows yet. With `single` values are `f32`, else `f64`.
    #[must_use]
    pub fn new(single: bool) -> Self {
        Self { single, ..Self::default() }
    }

    /// Adds a name to the row that has not ended.
    pub fn push(&mut self, hasher: FeatureHasher, name: &[u8], value: f64) {
        let (column, sign) = hasher.place(name);
        let value = if self.single { f64::from(value as f32) } else { value };
        self.entries.push((column, sign * value));
    }

    /// Forgets what was added since the last row ended.
    pub fn restart_row(&mut self) {
        self.entries.truncate(self.ends.last().copied().unwrap_or(0));
    }

    /// Ends a row.
    pub fn end_row(&mut self) {
        self.ends.push(self.entries.len());
    }

    /// Sorts each row by column and adds up equal columns, in the order in which they were added. What was added after the
    /// last end is left out.
    ///
    /// # Errors
    /// [`WorkError`] if the work was stopped or there are no threads.
    pub fn finish(mut self, work: &Work<'_>) -> Result<Self, WorkError> {
        let single = self.single;
        let mut jobs = Vec::new();
        let (mut rest, mut rows) = (&mut self.entries[..], &mut self.ends[..]);
        let mut start = 0;
        while !rows.is_empty() {
            let count = rows.partition_point(|&end| end < start + JOB_ENTRIES).max(1).min(rows.len());
            let (here, later_rows) = rows.split_at_mut(count);
            let end = here[count - 1];
            let (entries, later) = rest.split_at_mut(end - start);
            jobs.push((start, entries, here));
            (rest, rows, start) = (later, later_rows, end);
        }
        let add = move |a: f64, b: f64| if single { f64::from(a as f32 + b as f32) } else { a + b };
        self.parts = work.map(jobs.into_iter(), |(start, entries, ends)| {
            let (rows, mut kept, mut row_start) = (ends.len(), 0, 0);
            for end in ends {
                let row_end = *end - start;
                let left = sum_duplicates_in(&mut entries[row_start..row_end], add);
                entries.copy_within(row_start..row_start + left, kept);
                kept += left;
                row_start = row_end;
                *end = kept;
            }
            Part { start, kept, rows }
        })?;
        // The ends that a job wrote count from its own start.
        let (mut first, mut before) = (0, 0);
        for part in &self.parts {
            self.ends[first..first + part.rows].iter_mut().for_each(|end| *end += before);
            first += part.rows;
            before += part.kept;
        }
        Ok(self)
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.ends.len()
    }

    /// Number of entries, after [`finish`](Self::finish).
    #[must_use]
    pub fn entries(&self) -> usize {
        self.parts.iter().map(|part| part.kept).sum()
    }

    /// Writes rows + 1 offsets, and column and value of each entry. Columns grow within a row.
    ///
    /// # Errors
    /// [`WriteTableError`] if a slice is of another length, or `I` cannot count the entries.
    pub fn write<I: IndexElement, V: HashedValue>(
        &self,
        offsets: &mut [I],
        columns: &mut [I],
        values: &mut [V],
    ) -> Result<(), WriteTableError> {
        let tensor = || "hashed rows".to_owned();
        let entries = self.entries();
        let expected = [
            ("the offsets", offsets.len(), self.rows() + 1),
            ("the columns", columns.len(), entries),
            ("the values", values.len(), entries),
        ];
        for (part, found, expected) in expected {
            if found != expected {
                return Err(WriteTableError::Length { tensor: tensor(), part, found, expected });
            }
        }
        let number =
            |x: usize| I::try_from(x).map_err(|_| WriteTableError::IndexOverflow { tensor: tensor(), entries });
        number(entries)?;
        offsets[0] = number(0)?;
        for (out, &end) in offsets[1..].iter_mut().zip(&self.ends) {
            *out = number(end)?;
        }
        let mut places = columns.iter_mut().zip(values);
        for part in &self.parts {
            for (&(column, value), (column_out, value_out)) in
                self.entries[part.start..][..part.kept].iter().zip(places.by_ref())
            {
                *column_out = number(column as usize)?;
                *value_out = V::of(value);
            }
        }
        Ok(())
    }
}
