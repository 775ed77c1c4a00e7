//! NumPy arrays of tensors: by NumPy's C API, or where that is not known by `numpy.ndarray(shape, dtype, buffer)`.

use forebay::DType;
use pyo3::{prelude::*, sync::PyOnceLock, types::PyString};

use crate::{
    array_api::{ArrayApi, Place},
    dtype, errors, keeper,
    memory::Memory,
    tensor::PyTensor,
};

static API: PyOnceLock<Option<ArrayApi>> = PyOnceLock::new();
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

/// Imports NumPy, and finds these element types in it.
pub(crate) fn prepare(py: Python<'_>, dtypes: &[DType]) -> PyResult<()> {
    API.get_or_try_init(py, || ArrayApi::find(py))?;
    dtypes.iter().try_for_each(|&dtype| dtype_of(py, dtype).map(drop))
}

/// An array of a tensor's memory. The tensor is its base: what keeps that memory.
pub(crate) fn of<'py>(tensor: &Bound<'py, PyTensor>) -> PyResult<Bound<'py, PyAny>> {
    let py = tensor.py();
    let own = tensor.get();
    own.check(py)?;
    let descr = dtype_of(py, own.memory.dtype())?;
    match API.get_or_try_init(py, || ArrayApi::find(py))? {
        Some(api) => api.array(descr, own.memory.place(), tensor),
        None => by_call(tensor, descr),
    }
}

/// An array of a tensor that was just received, in one step. If it cannot be made, the message goes back.
pub(crate) fn of_received(py: Python<'_>, tensor: forebay::Tensor) -> PyResult<Bound<'_, PyAny>> {
    if let Some(Some(api)) = API.get(py)
        && let Ok(descr) = dtype_of(py, tensor.dtype())
    {
        let keeper = keeper::new(py, tensor)?;
        let tensor = keeper::tensor(&keeper).expect("just made");
        let place = Place { at: tensor.as_ptr(), meta: tensor.meta(), writable: tensor.is_writable() };
        return api.array(descr, place, &keeper).inspect_err(|_| {
            tensor.message().nack();
        });
    }
    let message = tensor.message();
    let made = Bound::new(py, PyTensor::new(Memory::Leased(tensor))).and_then(|tensor| of(&tensor));
    made.inspect_err(|_| {
        message.nack();
    })
}

/// The same by a call into Python, with any NumPy there is.
fn by_call<'py>(tensor: &Bound<'py, PyTensor>, descr: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = tensor.py();
    py.import("numpy")?.getattr("ndarray")?.call1((tensor.get().shape(py)?, descr, tensor))
}
