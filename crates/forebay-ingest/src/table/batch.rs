//! Encoded rows, held until there is a place for them.

use std::sync::Arc;

use super::element::{Element, IndexElement, Values};
use super::error::{RowError, WriteTableError};
use super::plan::{Plan, TensorPlan};
use super::schema::Layout;

/// The rows of one tensor in one job.
#[derive(Debug)]
pub(crate) enum Stored {
    Dense(Values),
    Sparse {
        /// Where each row ends.
        ends: Vec<usize>,
        columns: Vec<u32>,
        values: Vec<f32>,
    },
}

impl Stored {
    pub(crate) fn new(tensor: &TensorPlan) -> Self {
        match tensor.layout {
            Layout::Dense => Self::Dense(Values::new(tensor.dtype)),
            Layout::Sparse => Self::Sparse { ends: Vec::new(), columns: Vec::new(), values: Vec::new() },
        }
    }

    /// Takes the last row back.
    pub(crate) fn drop_row(&mut self, width: usize) {
        match self {
            Self::Dense(values) => values.drop_last(width),
            Self::Sparse { ends, columns, values } => {
                ends.pop();
                let end = ends.last().copied().unwrap_or(0);
                columns.truncate(end);
                values.truncate(end);
            }
        }
    }
}

/// What one job made of its lines.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) rows: usize,
    pub(crate) stored: Vec<Stored>,
    pub(crate) bad: Vec<BadRow>,
}

/// A line that was left out, and why.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("item {index}: {reason}")]
pub struct BadRow {
    /// Its index among the lines that were passed, from 0.
    pub index: usize,
    /// What was wrong.
    pub reason: RowError,
}

/// Size of a sparse tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SparseShape {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Elements that are stored.
    pub entries: usize,
}

/// Rows of all tensors of a schema, made by a [`TableEncoder`](super::TableEncoder), ready to be written.
#[derive(Debug)]
pub struct TableBatch {
    plan: Arc<Plan>,
    lines: usize,
    rows: usize,
    parts: Vec<Part>,
    bad: Vec<BadRow>,
}

impl TableBatch {
    pub(crate) fn new(plan: Arc<Plan>, lines: usize, mut parts: Vec<Part>) -> Self {
        let bad = parts.iter_mut().flat_map(|part| std::mem::take(&mut part.bad)).collect();
        let rows = parts.iter().map(|part| part.rows).sum();
        Self { plan, lines, rows, parts, bad }
    }

    /// Number of rows: lines that were not left out.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The lines that were left out, in their order.
    #[must_use]
    pub fn bad(&self) -> &[BadRow] {
        &self.bad
    }

    pub(crate) fn take_bad(&mut self) -> Vec<BadRow> {
        std::mem::take(&mut self.bad)
    }

    /// The batch, if no line was left out.
    ///
    /// # Errors
    /// The first [`BadRow`].
    pub fn all(mut self) -> Result<Self, BadRow> {
        if self.bad.is_empty() { Ok(self) } else { Err(self.bad.swap_remove(0)) }
    }

    /// The index of the line that each row was made of.
    pub fn items(&self) -> impl Iterator<Item = usize> + '_ {
        let mut bad = self.bad.iter().map(|bad| bad.index).peekable();
        (0..self.lines).filter(move |index| bad.next_if_eq(index).is_none())
    }

    fn tensor(&self, index: usize, layout: Layout) -> Result<&TensorPlan, WriteTableError> {
        let count = self.plan.tensors.len();
        let tensor = self.plan.tensors.get(index).ok_or(WriteTableError::NoTensor { index, count })?;
        if tensor.layout != layout {
            let is = match tensor.layout {
                Layout::Dense => "dense",
                Layout::Sparse => "sparse",
            };
            return Err(WriteTableError::Layout { tensor: tensor.name.clone(), is });
        }
        Ok(tensor)
    }

    /// Rows and columns of the dense tensor `index`.
    ///
    /// # Errors
    /// [`WriteTableError`] if there is no such tensor.
    pub fn dense_shape(&self, index: usize) -> Result<[usize; 2], WriteTableError> {
        Ok([self.rows, self.tensor(index, Layout::Dense)?.width])
    }

    /// Rows, columns and entries of the sparse tensor `index`.
    ///
    /// # Errors
    /// [`WriteTableError`] if there is no such tensor.
    pub fn sparse_shape(&self, index: usize) -> Result<SparseShape, WriteTableError> {
        let tensor = self.tensor(index, Layout::Sparse)?;
        let entries = self.sparse_parts(index).map(|(_, columns, _)| columns.len()).sum();
        Ok(SparseShape { rows: self.rows, columns: tensor.width, entries })
    }

    fn sparse_parts(&self, index: usize) -> impl Iterator<Item = (&[usize], &[u32], &[f32])> {
        self.parts.iter().filter_map(move |part| match &part.stored[index] {
            Stored::Sparse { ends, columns, values } => Some((&ends[..], &columns[..], &values[..])),
            Stored::Dense(_) => None,
        })
    }

    /// Writes the dense tensor `index`, row by row, into `out`, which has rows × columns elements.
    ///
    /// # Errors
    /// [`WriteTableError`] if there is no such tensor, it is of another type, or `out` of another length.
    pub fn write_dense<T: Element>(&self, index: usize, out: &mut [T]) -> Result<(), WriteTableError> {
        let tensor = self.tensor(index, Layout::Dense)?;
        if T::TYPE != tensor.dtype {
            let (found, expected) = (T::TYPE.name(), tensor.dtype.name());
            return Err(WriteTableError::Type { tensor: tensor.name.clone(), found, expected });
        }
        length(tensor, "the elements", out.len(), self.rows * tensor.width)?;
        let mut rest = out;
        for part in &self.parts {
            if let Stored::Dense(values) = &part.stored[index]
                && let Some(values) = T::values(values)
            {
                let (here, later) = rest.split_at_mut(values.len());
                here.copy_from_slice(values);
                rest = later;
            }
        }
        Ok(())
    }

    /// Writes the sparse tensor `index`: rows + 1 offsets, and column and value of each entry. Columns grow within a row.
    ///
    /// # Errors
    /// [`WriteTableError`] if there is no such tensor, its indices are of another type, or a slice is of another length.
    pub fn write_sparse<I: IndexElement>(
        &self,
        index: usize,
        offsets: &mut [I],
        columns: &mut [I],
        values: &mut [f32],
    ) -> Result<(), WriteTableError> {
        let entries = self.sparse_shape(index)?.entries;
        let tensor = self.sparse_of::<I>(index)?;
        length(tensor, "the offsets", offsets.len(), self.rows + 1)?;
        length(tensor, "the columns", columns.len(), entries)?;
        length(tensor, "the values", values.len(), entries)?;
        self.write_offsets(index, offsets)?;
        self.write_columns(index, columns)?;
        self.write_values(index, values)
    }

    /// The rows + 1 offsets alone, see [`write_sparse`](Self::write_sparse).
    ///
    /// # Errors
    /// As [`write_sparse`](Self::write_sparse).
    pub fn write_offsets<I: IndexElement>(&self, index: usize, offsets: &mut [I]) -> Result<(), WriteTableError> {
        let tensor = self.sparse_of::<I>(index)?;
        let entries = self.sparse_shape(index)?.entries;
        length(tensor, "the offsets", offsets.len(), self.rows + 1)?;
        let number = |x: usize| {
            I::try_from(x).map_err(|_| WriteTableError::IndexOverflow { tensor: tensor.name.clone(), entries })
        };
        number(entries)?;
        offsets[0] = number(0)?;
        let (mut row, mut first) = (1, 0);
        for (ends, columns, _) in self.sparse_parts(index) {
            for &end in ends {
                offsets[row] = number(first + end)?;
                row += 1;
            }
            first += columns.len();
        }
        Ok(())
    }

    /// The column numbers alone, see [`write_sparse`](Self::write_sparse).
    ///
    /// # Errors
    /// As [`write_sparse`](Self::write_sparse).
    pub fn write_columns<I: IndexElement>(&self, index: usize, columns: &mut [I]) -> Result<(), WriteTableError> {
        let tensor = self.sparse_of::<I>(index)?;
        let entries = self.sparse_shape(index)?.entries;
        length(tensor, "the columns", columns.len(), entries)?;
        let all = self.sparse_parts(index).flat_map(|(_, columns, _)| columns);
        for (out, &column) in columns.iter_mut().zip(all) {
            *out = I::try_from(column as usize)
                .map_err(|_| WriteTableError::IndexOverflow { tensor: tensor.name.clone(), entries })?;
        }
        Ok(())
    }

    /// The values alone, see [`write_sparse`](Self::write_sparse).
    ///
    /// # Errors
    /// As [`write_sparse`](Self::write_sparse).
    pub fn write_values(&self, index: usize, values: &mut [f32]) -> Result<(), WriteTableError> {
        let tensor = self.tensor(index, Layout::Sparse)?;
        length(tensor, "the values", values.len(), self.sparse_shape(index)?.entries)?;
        let mut rest = values;
        for (_, _, part) in self.sparse_parts(index) {
            let (here, later) = rest.split_at_mut(part.len());
            here.copy_from_slice(part);
            rest = later;
        }
        Ok(())
    }

    /// The sparse tensor `index`, if its indices are of this type.
    fn sparse_of<I: IndexElement>(&self, index: usize) -> Result<&TensorPlan, WriteTableError> {
        let tensor = self.tensor(index, Layout::Sparse)?;
        if I::TYPE != tensor.indices {
            let (found, expected) = (I::TYPE.name(), tensor.indices.name());
            return Err(WriteTableError::Type { tensor: tensor.name.clone(), found, expected });
        }
        Ok(tensor)
    }
}

fn length(tensor: &TensorPlan, part: &'static str, found: usize, expected: usize) -> Result<(), WriteTableError> {
    if found == expected {
        return Ok(());
    }
    Err(WriteTableError::Length { tensor: tensor.name.clone(), part, found, expected })
}
