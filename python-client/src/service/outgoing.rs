//! Arrays on their way into an answer: whatever a forward returns.
//!
//! What lies contiguous in host memory is copied by us, once, into the slot. What does not (strided, on a GPU, part of a
//! gradient's graph) is written there by its own library, also once. Lists of numbers become NumPy arrays first.

use forebay::{DType, FieldSpec, service::DetachedAnswer};
use pyo3::{
    exceptions::{PyException, PyTypeError, PyValueError},
    intern,
    prelude::*,
    types::{PyDict, PyFloat, PyInt, PyList, PyString, PyTuple},
};

use crate::{
    dtype, errors,
    incoming::Incoming,
    loan::fill,
    memory::{Draft, Memory, SharedLoan},
    numpy, schema,
    tensor::PyTensor,
    torch,
};

/// What is copied with the interpreter held, in bytes: more is long enough to let other threads run meanwhile.
const LITTLE: usize = 1 << 18;

/// The fields of an answer.
pub(super) struct Outgoing<'py>(Vec<(Bound<'py, PyString>, Value<'py>)>);

enum Value<'py> {
    /// Copied by us.
    Ready(Incoming<'py>),
    /// Written by its own library.
    Late { value: Bound<'py, PyAny>, dtype: DType, shape: Vec<u64> },
}

impl<'py> Outgoing<'py> {
    /// Looks at the arrays; what is wrong with one is said with the name of its field.
    pub(super) fn read(fields: &Bound<'py, PyDict>) -> PyResult<Self> {
        let mut read = Vec::with_capacity(fields.len());
        for (name, value) in fields.iter() {
            let name = name
                .cast_into::<PyString>()
                .map_err(|e| PyTypeError::new_err(format!("a field's name is no text: {e}")))?;
            let value = Value::read(name.to_str()?, value)?;
            read.push((name, value));
        }
        Ok(Self(read))
    }

    /// What they are.
    pub(super) fn specs(&self) -> PyResult<Vec<FieldSpec<'_>>> {
        self.0
            .iter()
            .map(|(name, value)| {
                let (dtype, shape) = match value {
                    Value::Ready(incoming) => (incoming.dtype, &incoming.shape),
                    Value::Late { dtype, shape, .. } => (*dtype, shape),
                };
                Ok(FieldSpec::new(name.to_str()?, dtype, shape))
            })
            .collect()
    }

    /// Writes them into an answer with fields as [`specs`](Self::specs) says, in that order.
    pub(super) fn write(&self, py: Python<'py>, mut answer: DetachedAnswer) -> PyResult<DetachedAnswer> {
        let mut late = false;
        for (index, (name, value)) in self.0.iter().enumerate() {
            let Value::Ready(incoming) = value else {
                late = true;
                continue;
            };
            let bytes = incoming.bytes();
            let fits = if bytes.len() > LITTLE {
                let answer = &mut answer;
                py.detach(|| fill(answer, index, bytes))
            } else {
                fill(&mut answer, index, bytes)
            };
            if !fits {
                return Err(PyValueError::new_err(format!(
                    "field {:?} has {} bytes, not what its shape says",
                    name.to_string_lossy(),
                    bytes.len()
                )));
            }
        }
        if late { self.write_late(py, answer) } else { Ok(answer) }
    }

    fn write_late(&self, py: Python<'py>, answer: DetachedAnswer) -> PyResult<DetachedAnswer> {
        let shared = SharedLoan::new(Draft::Answer(answer));
        for (name, value) in &self.0 {
            let Value::Late { value, .. } = value else { continue };
            let memory = shared.tensor(name.to_str()?).ok_or_else(|| errors::loan_ended(py))?;
            copy_by_its_library(py, memory.map_err(|e| errors::tensor(py, e))?, value)?;
        }
        match shared.take(|_| Ok::<_, PyErr>(())) {
            Some(Ok(Draft::Answer(answer))) => Ok(answer),
            _ => Err(errors::loan_ended(py)),
        }
    }
}

/// Lets the library that a value is of write it into a slot.
fn copy_by_its_library<'py>(py: Python<'py>, memory: Memory, value: &Bound<'py, PyAny>) -> PyResult<()> {
    if value.hasattr(intern!(py, "detach"))? {
        let to = torch::of(py, memory, None)?;
        to.call_method1(intern!(py, "copy_"), (value.call_method0(intern!(py, "detach"))?,))?;
    } else {
        let to = numpy::of(&Bound::new(py, PyTensor::new(memory))?)?;
        py.import("numpy")?.call_method1(intern!(py, "copyto"), (to, value))?;
    }
    Ok(())
}

impl<'py> Value<'py> {
    fn read(name: &str, value: Bound<'py, PyAny>) -> PyResult<Self> {
        let py = value.py();
        if value.is_instance_of::<PyList>()
            || value.is_instance_of::<PyTuple>()
            || value.is_instance_of::<PyFloat>()
            || value.is_instance_of::<PyInt>()
        {
            let numpy = py.import("numpy").map_err(|cause| {
                let e = PyTypeError::new_err(format!("field {name:?} is a list; that needs NumPy, or return an array"));
                e.set_cause(py, Some(cause));
                e
            })?;
            return Ok(Self::Ready(Incoming::read(name, &numpy.call_method1(intern!(py, "asarray"), (value,))?)?));
        }
        match Incoming::read(name, &value) {
            Ok(incoming) => Ok(Self::Ready(incoming)),
            // Perhaps its own library can do what we cannot: strides, other devices, gradients.
            Err(e) if e.is_instance_of::<PyException>(py) => {
                Self::late(&value).map(|(dtype, shape)| Self::Late { value, dtype, shape }).ok_or(e)
            }
            Err(e) => Err(e),
        }
    }

    fn late(value: &Bound<'py, PyAny>) -> Option<(DType, Vec<u64>)> {
        let py = value.py();
        let dtype = dtype::from_python(&value.getattr(intern!(py, "dtype")).ok()?).ok()?;
        let shape = schema::dims(&value.getattr(intern!(py, "shape")).ok()?, false).ok()?;
        Some((dtype, shape))
    }
}
