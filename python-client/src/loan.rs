//! `Loan`: the exclusive right to write one slot of a ring.

use std::sync::Arc;

use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyList, PyString, PyTuple},
};

use crate::{
    buffer, errors,
    incoming::Incoming,
    lifecycle::Birth,
    memory::{Draft, SharedLoan},
    producer::PyProducer,
    tensor::PyTensor,
};

/// One slot, to write: a mapping from field name to writable Tensor. Publish it; a loan that is dropped, or left by an
/// exception, publishes nothing.
///
///     with producer.loan({"logits": ("float32", (8, 1000))}) as loan:
///         loan["logits"].numpy()[:] = model(x)
///         loan.publish(correlation_id=7)
///
/// Arrays made before `publish` stay mapped and even writable after it, but the slot then belongs to the consumers:
/// writing to it changes what they read. No new arrays can be made then. What a slot held before is still in it: write
/// all of it. A slot that is given back is free again when the last array of it is dropped.
#[pyclass(frozen, weakref, mapping, name = "Loan", module = "forebay")]
#[derive(Debug)]
pub(crate) struct PyLoan {
    producer: Py<PyProducer>,
    /// In the order in which the fields were asked for.
    names: Vec<String>,
    loan: std::sync::Mutex<Option<Arc<SharedLoan>>>,
    slot: u32,
    birth: Birth,
}

impl PyLoan {
    pub(crate) fn new(producer: Py<PyProducer>, names: Vec<String>, loan: forebay::DetachedLoan) -> Self {
        let slot = loan.slot();
        let loan = std::sync::Mutex::new(Some(SharedLoan::new(Draft::Message(loan))));
        Self { producer, names, loan, slot, birth: Birth::here() }
    }

    fn shared(&self, py: Python<'_>) -> PyResult<Arc<SharedLoan>> {
        if !self.birth.is_here() {
            return Err(errors::refusal(py, crate::memory::Refusal::Forked));
        }
        let loan = self.loan.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        match loan {
            Some(loan) if loan.is_foreign() => Err(errors::refusal(py, crate::memory::Refusal::Forked)),
            Some(loan) => Ok(loan),
            None => Err(errors::loan_ended(py)),
        }
    }

    fn tensor(&self, py: Python<'_>, name: &str) -> PyResult<PyTensor> {
        let found = self.shared(py)?.tensor(name).ok_or_else(|| errors::loan_ended(py))?;
        found.map(PyTensor::new).map_err(|e| errors::tensor(py, e))
    }
}

#[pymethods]
impl PyLoan {
    fn __getitem__(&self, py: Python<'_>, name: &str) -> PyResult<PyTensor> {
        self.tensor(py, name)
    }

    /// Copies an array into a field: `loan["x"] = array`. Its dtype and shape must be those of the field.
    fn __setitem__(&self, py: Python<'_>, name: &str, array: &Bound<'_, PyAny>) -> PyResult<()> {
        let tensor = self.tensor(py, name)?;
        let incoming = Incoming::read(name, array)?;
        let meta = *tensor.memory.meta();
        if incoming.dtype != meta.dtype || incoming.shape != meta.shape() {
            return Err(PyValueError::new_err(format!(
                "field {name:?} is {}{:?}, the array is {}{:?}; convert or reshape it",
                meta.dtype,
                meta.shape(),
                incoming.dtype,
                incoming.shape
            )));
        }
        let loan = self.shared(py)?;
        let index = loan.with(|loan| loan.index_of(name)).ok_or_else(|| errors::loan_ended(py))?;
        let index = index.map_err(|e| errors::tensor(py, e))?;
        let copied = buffer::same_place(&tensor.memory, incoming.bytes())
            || loan.with(|loan| fill(loan, index, incoming.bytes())).unwrap_or(false);
        if copied { Ok(()) } else { Err(errors::loan_ended(py)) }
    }

    fn __contains__(&self, name: &str) -> bool {
        self.names.iter().any(|own| own == name)
    }

    fn __len__(&self) -> usize {
        self.names.len()
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.keys(py)?.try_iter()?.into_any())
    }

    /// The field names.
    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.names.iter().map(|name| PyString::intern(py, name)))
    }

    /// The tensors.
    fn values<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let tensors: PyResult<Vec<_>> = self.names.iter().map(|name| Bound::new(py, self.tensor(py, name)?)).collect();
        PyList::new(py, tensors?)
    }

    /// (name, tensor) pairs.
    fn items<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let pairs: PyResult<Vec<_>> =
            self.names.iter().map(|name| Ok((name, Bound::new(py, self.tensor(py, name)?)?))).collect();
        PyList::new(py, pairs?)
    }

    /// The slot it lies in.
    #[getter]
    fn slot(&self) -> u32 {
        self.slot
    }

    /// Publishes the message.
    ///
    /// Args:
    ///     correlation_id: a number that the receiver sees.
    ///     user: up to 256 bytes that the receiver sees.
    /// Returns:
    ///     its sequence, from 1.
    /// Raises:
    ///     LoanEnded: it was published or given back before (a ValueError).
    ///     PublishError: too many user bytes (a ValueError); the loan is then still there.
    #[pyo3(signature = (*, correlation_id = 0, user = None))]
    fn publish(&self, py: Python<'_>, correlation_id: u64, user: Option<&[u8]>) -> PyResult<u64> {
        let loan = self.shared(py)?;
        let taken = loan.take(|loan| {
            loan.set_correlation_id(correlation_id);
            user.map_or(Ok(()), |user| loan.set_user(user))
        });
        let taken = taken.ok_or_else(|| errors::loan_ended(py))?.map_err(|e| errors::publish(py, e))?;
        let Draft::Message(taken) = taken else { return Err(errors::loan_ended(py)) };
        let published = self.producer.bind(py).get().publish_loan(py, taken);
        *self.loan.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        published
    }

    /// Gives the slot back without publishing. Doing so twice, or after publish(), is fine.
    fn discard(&self) {
        if self.birth.is_here() {
            *self.loan.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        }
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyTuple>) {
        self.discard();
    }

    fn __repr__(&self) -> String {
        format!("<forebay.Loan of slot {} {:?}>", self.slot, self.names)
    }
}

/// Copies `bytes` into tensor `index`; false if they do not fit.
pub(crate) fn fill(loan: &mut forebay::DetachedLoan, index: usize, bytes: &[u8]) -> bool {
    match loan.bytes_mut(index) {
        Some(room) if room.len() == bytes.len() => {
            room.copy_from_slice(bytes);
            true
        }
        _ => false,
    }
}
