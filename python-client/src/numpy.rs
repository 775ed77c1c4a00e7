//! NumPy arrays of tensors: `numpy.ndarray(shape, dtype, buffer)`, the cheapest way that NumPy offers, over the buffer
//! protocol.

use forebay::DType;
use pyo3::{
    prelude::*,
    sync::PyOnceLock,
    types::{PyString, PyType},
};

use crate::{dtype, errors, tensor::PyTensor};

static NDARRAY: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static DTYPES: [PyOnceLock<Py<PyAny>>; DType::ALL.len()] = [const { PyOnceLock::new() }; DType::ALL.len()];

/// NumPy's object for an element type.
pub(crate) fn dtype_of(py: Python<'_>, dtype: DType) -> PyResult<&Bound<'_, PyAny>> {
    let made = DTYPES[dtype::index(dtype)].get_or_try_init(py, || {
        let name = PyString::new(py, dtype.name()).into_any();
        let of = match dtype {
            DType::BF16 | DType::F8E4M3 | DType::F8E5M2 => {
                let extra = py.import("ml_dtypes").map_err(|cause| errors::dtype_unavailable(py, dtype, cause))?;
                extra.getattr(dtype.name())?
            }
            _ => name,
        };
        Ok::<_, PyErr>(py.import("numpy")?.call_method1("dtype", (of,))?.unbind())
    })?;
    Ok(made.bind(py))
}

/// An array of a tensor's memory.
pub(crate) fn of<'py>(tensor: &Bound<'py, PyTensor>) -> PyResult<Bound<'py, PyAny>> {
    let py = tensor.py();
    let own = tensor.get();
    own.check(py)?;
    let ndarray = NDARRAY.import(py, "numpy", "ndarray")?;
    ndarray.call1((own.shape(py)?, dtype_of(py, own.memory.dtype())?, tensor))
}
