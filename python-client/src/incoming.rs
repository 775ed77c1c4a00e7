//! Arrays that Python code hands to a producer: anything with the buffer protocol or DLPack, contiguous, in host memory.

use forebay::{DType, TensorMeta};
use pyo3::{
    buffer::PyUntypedBuffer,
    exceptions::{PyException, PyTypeError, PyValueError},
    prelude::*,
    types::PyCapsule,
};

use crate::{
    buffer::{self, Contiguous},
    dlpack::{self, Foreign},
    dtype,
    tensor::PyTensor,
};

/// An array, with what keeps its bytes in place.
pub(crate) struct Incoming<'py> {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<u64>,
    source: Source<'py>,
}

enum Source<'py> {
    Own(Bound<'py, PyTensor>),
    Contiguous(Contiguous),
    Buffer(PyUntypedBuffer),
    Capsule(Foreign, Bound<'py, PyCapsule>),
}

impl<'py> Incoming<'py> {
    /// Looks at an array; what is wrong with it is said together with the name of its field.
    pub(crate) fn read(field: &str, array: &Bound<'py, PyAny>) -> PyResult<Self> {
        Self::look(array).map_err(|e| {
            let py = array.py();
            // Ctrl-C within a library of Python's, and the like, say nothing of the array.
            if !e.is_instance_of::<PyException>(py) {
                return e;
            }
            let named = PyValueError::new_err(format!("field {field:?} {}", e.value(py)));
            named.set_cause(py, Some(e));
            named
        })
    }

    fn look(array: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(own) = array.cast::<PyTensor>() {
            own.get().check(array.py())?;
            let meta = own.get().memory.meta();
            return Ok(Self { dtype: meta.dtype, shape: meta.shape().to_vec(), source: Source::Own(own.clone()) });
        }
        if buffer::has_buffer(array) {
            // Whatever is special about it, or wrong, is for the slower look.
            if let Some(view) = Contiguous::of(array)
                && let Some(dtype) = view.dtype()
            {
                return Ok(Self { dtype, shape: view.shape(), source: Source::Contiguous(view) });
            }
            return Self::of_buffer(array);
        }
        if array.hasattr("__dlpack_device__")? {
            let export = |method| {
                array.call_method0(method).map_err(|e: PyErr| {
                    let py = array.py();
                    if !e.is_instance_of::<PyException>(py) {
                        return e;
                    }
                    let told = PyValueError::new_err(format!("cannot be exported: {}", e.value(py)));
                    told.set_cause(py, Some(e));
                    told
                })
            };
            let (kind, _) = export("__dlpack_device__")?.extract::<(i32, i32)>()?;
            if !dlpack::is_host(kind) {
                return Err(PyValueError::new_err("is not in host memory; move it to the CPU first"));
            }
            let capsule = export("__dlpack__")?;
            let capsule = capsule.cast_into::<PyCapsule>().map_err(PyErr::from)?;
            let foreign = dlpack::inspect(&capsule)?;
            let shape = foreign.shape.clone();
            return Ok(Self { dtype: foreign.dtype, shape, source: Source::Capsule(foreign, capsule) });
        }
        let kind = array.get_type().name()?.to_string();
        Err(PyTypeError::new_err(format!(
            "is a {kind}, expected an array with the buffer protocol or DLPack; use numpy.asarray() on it"
        )))
    }

    fn of_buffer(array: &Bound<'py, PyAny>) -> PyResult<Self> {
        // NumPy refuses a buffer of the element types that ml_dtypes adds: look at those as integers.
        let added = array
            .getattr("dtype")
            .ok()
            .and_then(|found| dtype::from_python(&found).ok())
            .filter(|found| matches!(found, DType::BF16 | DType::F8E4M3 | DType::F8E5M2));
        let viewed = match added {
            Some(dtype) => array.call_method1("view", (if dtype.size() == 1 { "uint8" } else { "uint16" },))?,
            None => array.clone(),
        };
        // PyO3 takes no buffer without dims, which has a null pointer in the place of its shape.
        let scalar = viewed.getattr("ndim").and_then(|ndim| ndim.extract::<usize>()).is_ok_and(|ndim| ndim == 0);
        let viewed = if scalar { viewed.call_method1("reshape", (1,))? } else { viewed };
        let view = PyUntypedBuffer::get(&viewed)?;
        if !view.is_c_contiguous() {
            return Err(PyValueError::new_err("is not contiguous; pass numpy.ascontiguousarray() of it"));
        }
        let format = view.format().to_string_lossy().into_owned();
        let dtype = added.or_else(|| dtype::from_format(format.as_bytes(), view.item_size())).ok_or_else(|| {
            PyValueError::new_err(format!(
                "has elements of format {format:?} ({} bytes), which no ring carries; convert it, e.g. with .astype()",
                view.item_size()
            ))
        })?;
        let shape = if scalar { Vec::new() } else { view.shape().iter().map(|&dim| dim as u64).collect() };
        Ok(Self { dtype, shape, source: Source::Buffer(view) })
    }

    /// Its bytes, row-major. While this is borrowed nobody moves them.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.source {
            Source::Own(tensor) => buffer::bytes(&tensor.get().memory),
            Source::Contiguous(view) => view.bytes(),
            Source::Buffer(view) => buffer::of_buffer(view).unwrap_or_default(),
            Source::Capsule(foreign, capsule) => {
                let nbytes = TensorMeta::new(self.dtype, &self.shape, 0).map_or(0, |meta| meta.nbytes);
                buffer::of_capsule(foreign, usize::try_from(nbytes).unwrap_or(0), capsule)
            }
        }
    }
}
