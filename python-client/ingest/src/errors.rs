//! What Python sees of an error: one class for items, with the item's index; the usual ones for files and options.

use forebay_ingest::{EncodeError, TokenizerError};
use pyo3::{
    create_exception,
    exceptions::{PyFileNotFoundError, PyOSError, PyValueError},
    prelude::*,
};

create_exception!(
    forebay_ingest,
    IngestError,
    PyValueError,
    "An item that could not be used; `index` is its place among those given, from 0, or None."
);

/// An [`IngestError`] of item `index`.
pub(crate) fn item_error(py: Python<'_>, index: usize, text: String) -> PyErr {
    let error = IngestError::new_err(text);
    // An attribute of an exception of our own can be set.
    match error.value(py).setattr("index", index) {
        Ok(()) => error,
        Err(other) => other,
    }
}

/// One refused text as an exception.
pub(crate) fn encode_error(py: Python<'_>, error: &EncodeError) -> PyErr {
    item_error(py, error.row, error.to_string())
}

/// Something wrong with what was passed.
pub(crate) fn value_error(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// Why there is no tokenizer.
pub(crate) fn tokenizer_error(error: TokenizerError) -> PyErr {
    let text = error.to_string();
    match error {
        TokenizerError::Unreadable { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            PyFileNotFoundError::new_err(text)
        }
        TokenizerError::Unreadable { .. } => PyOSError::new_err(text),
        _ => PyValueError::new_err(text),
    }
}
