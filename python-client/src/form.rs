//! What a received message becomes: a `Message`, or at once the arrays of its tensors.
//!
//! On a ring whose schema has one field that is the array itself, else a dict by field name. Whoever asks for arrays has
//! no `Message` to ack or nack: the message is acked when the last view of them is gone. If they cannot be made, it goes
//! back.

use std::str::FromStr;

use forebay::DType;
use pyo3::{exceptions::PyValueError, prelude::*, types::PyDict};

use crate::{
    memory::Memory,
    message::{Names, PyMessage},
    numpy, torch,
};

/// What a message becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Message,
    Numpy,
    Torch,
}

impl FromStr for Form {
    type Err = PyErr;

    fn from_str(name: &str) -> PyResult<Self> {
        Ok(match name {
            "message" => Self::Message,
            "numpy" => Self::Numpy,
            "torch" => Self::Torch,
            _ => {
                return Err(PyValueError::new_err(format!(
                    "as_ is {name:?}, expected \"message\", \"numpy\" or \"torch\""
                )));
            }
        })
    }
}

/// The fields that a ring's schema gives every message.
#[derive(Debug)]
pub(crate) struct Fields {
    pub(crate) names: Names,
    dtypes: Vec<DType>,
}

impl Fields {
    pub(crate) fn of(py: Python<'_>, schema: &forebay::Schema) -> Self {
        let names = schema.fields().iter().map(|field| pyo3::types::PyString::intern(py, &field.name).unbind());
        Self { names: names.collect(), dtypes: schema.fields().iter().map(|field| field.dtype).collect() }
    }
}

impl Form {
    /// Imports what it takes, and finds out whether it can be done, before there is a message.
    pub(crate) fn prepare(self, py: Python<'_>, fields: Option<&Fields>) -> PyResult<()> {
        let dtypes = fields.map_or(&[][..], |fields| &fields.dtypes);
        match self {
            Self::Message => Ok(()),
            Self::Numpy => numpy::prepare(py, dtypes),
            Self::Torch => torch::prepare(py, dtypes),
        }
    }

    /// What `message` becomes.
    #[inline]
    pub(crate) fn of<'py>(
        self,
        py: Python<'py>,
        message: forebay::Message,
        fields: Option<&Fields>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let single = fields.is_some_and(|fields| fields.names.len() == 1);
        match self {
            Self::Message => {
                let names = fields.map(|fields| Names::clone(&fields.names));
                Ok(Bound::new(py, PyMessage::new(message, names))?.into_any())
            }
            Self::Numpy if single => match message.into_tensor(0) {
                Ok(tensor) => numpy::of_received(py, tensor),
                Err(message) => self.all(py, message, fields),
            },
            Self::Torch if single => match message.tensor_at(0) {
                Some(tensor) => or_back(&message, torch::of(py, Memory::Leased(tensor), None)),
                None => self.all(py, message, fields),
            },
            Self::Numpy | Self::Torch => self.all(py, message, fields),
        }
    }

    fn all<'py>(
        self,
        py: Python<'py>,
        message: forebay::Message,
        fields: Option<&Fields>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let message = PyMessage::new(message, fields.map(|fields| Names::clone(&fields.names)));
        let made = match self {
            Self::Torch => message.torch(py, None),
            _ => message.numpy(py),
        };
        if made.is_err() {
            message.nack();
        }
        made.map(Bound::<PyDict>::into_any)
    }
}

/// `made`, or the message goes back.
fn or_back<T>(message: &forebay::Message, made: PyResult<T>) -> PyResult<T> {
    made.inspect_err(|_| {
        message.nack();
    })
}
