//! Unpadded tokens that are written where the caller has room: into a loan, or arrays of one's own.

use forebay_ingest::Tokens;
use numpy::{PyArrayDyn, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::errors::value_error;

/// A batch of texts as token ids, not padded yet.
#[pyclass(name = "Tokens", module = "forebay_ingest", frozen)]
#[derive(Debug)]
pub(crate) struct PyTokens {
    pub(super) inner: Tokens,
}

/// `object`, or another buffer of `int64`, as an array that a padded batch of `shape` can be written into.
fn writable<'py>(object: &Bound<'py, PyAny>, name: &str, shape: [usize; 2]) -> PyResult<Bound<'py, PyArrayDyn<i64>>> {
    let array = match object.cast::<PyArrayDyn<i64>>() {
        Ok(array) => array.clone(),
        Err(_) => {
            PyBuffer::<i64>::get(object)
                .map_err(|e| PyTypeError::new_err(format!("{name} is no int64 buffer: {e}")))?;
            object.py().import("numpy")?.call_method1("asarray", (object,))?.cast_into()?
        }
    };
    if array.shape() != shape || !array.is_c_contiguous() {
        let found = array.shape();
        return Err(value_error(format!(
            "{name} has shape {found:?}, expected contiguous {shape:?}; make it of tokens.shape"
        )));
    }
    Ok(array)
}

#[pymethods]
impl PyTokens {
    /// Rows and columns of the padded batch.
    #[getter]
    fn shape(&self) -> (usize, usize) {
        (self.inner.rows(), self.inner.cols())
    }

    /// Tokens without padding.
    #[getter]
    fn token_count(&self) -> usize {
        self.inner.token_count()
    }

    /// Write ids and mask, padded, into two writable int64 arrays of this shape, without a copy in between.
    fn write_into(
        &self,
        py: Python<'_>,
        input_ids: &Bound<'_, PyAny>,
        attention_mask: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let shape = [self.inner.rows(), self.inner.cols()];
        let ids = writable(input_ids, "input_ids", shape)?;
        let mask = writable(attention_mask, "attention_mask", shape)?;
        let borrowed = |name: &str, error: numpy::BorrowError| {
            value_error(format!("{name} cannot be written into: {error}; pass a writable array of its own"))
        };
        let mut ids = ids.try_readwrite().map_err(|e| borrowed("input_ids", e))?;
        let mut mask = mask.try_readwrite().map_err(|e| borrowed("attention_mask", e))?;
        let (ids, mask) = (ids.as_slice_mut().map_err(value_error)?, mask.as_slice_mut().map_err(value_error)?);
        py.detach(|| self.inner.write_into(ids, mask)).map_err(value_error)?;
        Ok(())
    }

    fn __len__(&self) -> usize {
        self.inner.rows()
    }
}
