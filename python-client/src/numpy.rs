//! NumPy arrays of tensors: by NumPy's C API, or where that is not known by `numpy.ndarray(shape, dtype, buffer)`.

use forebay::DType;
use pyo3::{prelude::*, sync::PyOnceLock, types::PyString};

use crate::{
    array_api::{ArrayApi, Place},
    dtype, errors, keeper,
    memory::{Memory, Refusal},
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
    own.lend();
    let descr = dtype_of(py, own.memory.dtype())?;
    match API.get_or_try_init(py, || ArrayApi::find(py))? {
        Some(api) => api.array(descr, own.memory.place(), tensor),
        None => by_call(tensor, descr),
    }
}

/// An array of a received tensor, in one step: nothing but a lease is its base. With `back`, the message goes
/// back if that fails.
fn of_leased(py: Python<'_>, tensor: forebay::Tensor, back: bool) -> PyResult<Bound<'_, PyAny>> {
    let give_back = |tensor: &forebay::Tensor| {
        if back {
            tensor.message().nack();
        }
    };
    if tensor.is_foreign() {
        return Err(errors::refusal(py, Refusal::Forked));
    }
    if let Some(Some(api)) = API.get(py)
        && let Ok(descr) = dtype_of(py, tensor.dtype())
    {
        let keeper = keeper::new(py, tensor).map_err(|(e, tensor)| {
            give_back(&tensor);
            e
        })?;
        let tensor = keeper::tensor(&keeper).expect("it was just made of one");
        let place = Place { at: tensor.as_ptr(), meta: tensor.meta(), writable: tensor.is_writable() };
        return api.array(descr, place, &keeper).inspect_err(|_| give_back(tensor));
    }
    let kept = tensor.clone();
    let made = Bound::new(py, PyTensor::new(Memory::Leased(tensor))).and_then(|tensor| of(&tensor));
    made.inspect_err(|_| give_back(&kept))
}

/// An array of a tensor of a message that somebody has.
pub(crate) fn of_tensor(py: Python<'_>, tensor: forebay::Tensor) -> PyResult<Bound<'_, PyAny>> {
    of_leased(py, tensor, false)
}

/// An array of the only tensor of a message that was just received. If it cannot be made, the message goes back.
pub(crate) fn of_received(py: Python<'_>, tensor: forebay::Tensor) -> PyResult<Bound<'_, PyAny>> {
    of_leased(py, tensor, true)
}

/// The same by a call into Python, with any NumPy there is.
fn by_call<'py>(tensor: &Bound<'py, PyTensor>, descr: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = tensor.py();
    py.import("numpy")?.getattr("ndarray")?.call1((tensor.get().shape(py)?, descr, tensor))
}
