//! Ids to text one by one, for tokens as a model makes them.

use std::sync::{Arc, Mutex, PoisonError};

use forebay_ingest::{DetokenizeStream, Tokenizer};
use pyo3::prelude::*;

use crate::errors::value_error;

/// Text as it becomes certain; made by `Tokenizer.decode_stream`.
#[pyclass(name = "DecodeStream", module = "forebay_ingest", frozen)]
pub(crate) struct PyDecodeStream {
    inner: Mutex<DetokenizeStream<Arc<Tokenizer>>>,
}

impl PyDecodeStream {
    pub(super) fn new(tokenizer: Arc<Tokenizer>, skip_special_tokens: bool) -> Self {
        Self { inner: Mutex::new(DetokenizeStream::new(tokenizer, skip_special_tokens)) }
    }
}

#[pymethods]
impl PyDecodeStream {
    /// The text that is certain now that `id` came: no half characters, nothing that a later id changes. None for none.
    fn push(&self, id: u32) -> PyResult<Option<String>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).push(id).map_err(value_error)
    }

    /// What was held back, now that nothing comes any more. The stream is at its start again.
    fn finish(&self) -> PyResult<Option<String>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).finish().map_err(value_error)
    }
}
