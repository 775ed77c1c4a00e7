//! What a call on arrays can be refused for.

use crate::work::WorkError;

/// Why an array was not worked on.
///
/// Arguments are checked before anything is written; after [`NumericError::Infinite`] and
/// [`NumericError::Work`] an output may be partly written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NumericError {
    /// The slice does not hold whole rows, or no columns were said.
    #[error(
        "{what} has {len} elements, which are no rows of {columns}; pass rows × columns elements, columns at least 1"
    )]
    Ragged {
        /// Name of the argument.
        what: &'static str,
        /// Its elements.
        len: usize,
        /// Elements of a row, as said by the caller.
        columns: usize,
    },
    /// Two arguments that belong together differ in size.
    #[error("{what} is {found} long, expected {expected}; make it that long")]
    Length {
        /// What was counted.
        what: &'static str,
        /// What was found.
        found: usize,
        /// What fits the other arguments.
        expected: usize,
    },
    /// A fit needs at least one row.
    #[error("there is no row to fit; pass at least one")]
    Empty,
    /// An infinite number where only finite ones and NaN have a meaning. Retrying does not help.
    #[error("row {row}, column {column} is infinite, expected a number or NaN; clip or replace it")]
    Infinite {
        /// Its row, from 0.
        row: usize,
        /// Its column, from 0.
        column: usize,
    },
    /// A number that no norm can be made of: NaN or infinite.
    #[error("row {row} holds NaN or infinity, expected finite numbers; replace or leave out the row")]
    NotFinite {
        /// The first such row, from 0.
        row: usize,
    },
    /// The range to scale into is empty or not finite.
    #[error("the range to scale into is {low} to {high}, expected finite numbers that grow; change it")]
    Range {
        /// Lower end.
        low: f64,
        /// Upper end.
        high: f64,
    },
    /// The work was stopped or had no threads.
    #[error(transparent)]
    Work(#[from] WorkError),
}

/// Number of rows of `len` elements.
pub(crate) fn rows(what: &'static str, len: usize, columns: usize) -> Result<usize, NumericError> {
    if columns == 0 || !len.is_multiple_of(columns) {
        return Err(NumericError::Ragged { what, len, columns });
    }
    Ok(len / columns)
}

/// Refuses a length that is not the one expected.
pub(crate) fn same(what: &'static str, found: usize, expected: usize) -> Result<(), NumericError> {
    if found == expected { Ok(()) } else { Err(NumericError::Length { what, found, expected }) }
}
