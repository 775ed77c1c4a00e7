//! Schemas, lines and outputs that are refused, each in its own words.

use std::io;

use super::element::{IndexType, NumberType};
use crate::work::WorkError;

/// Why there is no schema or encoder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SchemaError {
    /// The file cannot be read.
    #[error("cannot read the table schema {path}: {source}")]
    Unreadable {
        /// What was to be read.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The name of the file does not say what is in it.
    #[error("{path} ends neither in .toml nor in .json; rename it")]
    Extension {
        /// What was to be read.
        path: String,
    },
    /// The text is not what a schema looks like.
    #[error("{name} is not a table schema: {detail}")]
    Syntax {
        /// Where the text came from.
        name: String,
        /// What was wrong, with line and column.
        detail: String,
    },
    /// The schema is of another version than this build reads.
    #[error("the table schema is of version {found}, this build reads 1; update one of them")]
    Version {
        /// What the schema says.
        found: u32,
    },
    /// What it says cannot be done.
    #[error("tensor {tensor:?}{}: {problem}", .column.as_ref().map(|path| format!(", column {path:?}")).unwrap_or_default())]
    Invalid {
        /// The tensor it says it of.
        tensor: String,
        /// The column, if it is about one.
        column: Option<String>,
        /// What is wrong, and what to do.
        problem: String,
    },
}

/// What is wrong with one line. It is left out of the batch; reading it again does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// It is longer than allowed.
    #[error("{length} bytes long, at most {max} are allowed; raise max_line_bytes if it is meant to be")]
    TooLong {
        /// Its length.
        length: usize,
        /// The limit.
        max: usize,
    },
    /// It is not UTF-8.
    #[error("not UTF-8: byte {byte:#04x} at position {at}; JSON is UTF-8")]
    NotUtf8 {
        /// Position from 1.
        at: usize,
        /// The byte there.
        byte: u8,
    },
    /// It is not JSON: bare NaN and Infinity and numbers beyond 1.8e308 are not, either.
    #[error("not JSON: {detail}")]
    BadJson {
        /// What the parser said, with the column.
        detail: String,
    },
    /// A value is of a kind that its columns cannot take.
    #[error("{path} is {found}, expected {expected}")]
    Kind {
        /// Path of the value; empty for the line itself.
        path: String,
        /// What it is.
        found: &'static str,
        /// What would do.
        expected: &'static str,
    },
    /// A key stands there twice.
    #[error("{path} stands there twice, expected once")]
    Duplicate {
        /// Path of the second.
        path: String,
    },
    /// A value that must be there is not, or is null.
    #[error("{path} is missing, and its rule for missing values is \"error\"")]
    Missing {
        /// Path of the value.
        path: String,
    },
    /// A number does not fit the element type.
    #[error("{path} is {value}, which does not fit {of}")]
    Range {
        /// Path of the value.
        path: String,
        /// The number.
        value: String,
        /// The element type.
        of: NumberType,
    },
    /// A value that the vocabulary lacks.
    #[error("{path} is {value:?}, which is not in its vocabulary, and its rule for unknown values is \"error\"")]
    Unknown {
        /// Path of the value.
        path: String,
        /// The value, shortened.
        value: String,
    },
}

/// Why lines were not encoded at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// Dense rows of so many lines would need more memory than allowed.
    #[error(
        "{lines} lines need {bytes} bytes of dense rows, at most {max} are allowed; encode fewer at a time, or raise max_batch_bytes"
    )]
    TooLarge {
        /// Lines that were passed.
        lines: usize,
        /// What their rows would need.
        bytes: u128,
        /// The limit.
        max: usize,
    },
    /// The work was stopped or had no threads.
    #[error(transparent)]
    Work(#[from] WorkError),
}

/// Why a tensor was not written. Nothing was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteTableError {
    /// There is no such tensor.
    #[error("there is no tensor {index}, there are {count}; count from 0")]
    NoTensor {
        /// What was asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// It is dense and was to be written as sparse, or the other way round.
    #[error("tensor {tensor:?} is {is}; write it as such")]
    Layout {
        /// Its name.
        tensor: String,
        /// What it is.
        is: &'static str,
    },
    /// Elements of another type.
    #[error("tensor {tensor:?} is of {expected}, not {found}; pass a slice of that")]
    Type {
        /// Its name.
        tensor: String,
        /// Type of the slice.
        found: &'static str,
        /// Type in the schema.
        expected: &'static str,
    },
    /// A slice of another length.
    #[error("{part} of tensor {tensor:?} takes {expected} elements, the slice has {found}; make it that long")]
    Length {
        /// Its name.
        tensor: String,
        /// Which of its parts.
        part: &'static str,
        /// Length of the slice.
        found: usize,
        /// Length needed.
        expected: usize,
    },
    /// Row offsets that 32 bits cannot count.
    #[error("tensor {tensor:?} has {entries} entries, more than i32 counts; say indices = \"i64\" in the schema")]
    IndexOverflow {
        /// Its name.
        tensor: String,
        /// Its entries.
        entries: usize,
    },
}

impl IndexType {
    /// Its name: `"i32"` or `"i64"`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::I32 => "i32",
            Self::I64 => "i64",
        }
    }
}
