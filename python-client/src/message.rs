//! `Message`: a received message, as a mapping from field name to `Tensor`.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use pyo3::{
    exceptions::PyIndexError,
    prelude::*,
    types::{PyBytes, PyDict, PyInt, PyList, PyString, PyTuple},
};

use crate::{
    errors,
    memory::Memory,
    numpy,
    tensor::PyTensor,
    torch::{self, Route},
};

/// The field names of a ring with a schema, made once per consumer.
pub(crate) type Names = Arc<[Py<PyString>]>;

/// A received message: a mapping from field name to Tensor, and what the sender said about it.
///
/// Its slot stays as it is until the message and everything made of its tensors are dropped. Ack is another matter: a
/// message may be acked while tensors of it live on.
///
/// As a context manager it is acked at the end of the block, or nacked if the block raises.
#[pyclass(frozen, weakref, mapping, name = "Message", module = "forebay")]
#[derive(Debug)]
pub(crate) struct PyMessage {
    pub(crate) message: forebay::Message,
    names: Option<Names>,
    /// Whether it was acked or nacked by hand, or by the end of a `with`.
    decided: AtomicBool,
}

impl PyMessage {
    #[inline]
    pub(crate) fn new(message: forebay::Message, names: Option<Names>) -> Self {
        Self { message, names, decided: AtomicBool::new(false) }
    }

    /// Whether somebody said what becomes of it.
    #[inline]
    pub(crate) fn is_decided(&self) -> bool {
        // ORDER none, Relaxed: who decides and who asks hold the interpreter, or do not depend on each other.
        self.decided.load(Ordering::Relaxed)
    }

    fn memory(&self, index: usize) -> PyResult<Memory> {
        let tensor = self.message.tensor_at(index);
        tensor.map(Memory::Leased).ok_or_else(|| PyIndexError::new_err(format!("no tensor {index}")))
    }

    fn name<'py>(&self, py: Python<'py>, index: usize) -> Bound<'py, PyString> {
        match self.names.as_ref().and_then(|names| names.get(index)) {
            Some(name) => name.bind(py).clone(),
            None => PyString::intern(py, self.message.name(index).unwrap_or_default()),
        }
    }

    pub(crate) fn index_of(&self, key: &Bound<'_, PyString>) -> PyResult<Option<usize>> {
        if let Some(names) = &self.names
            && let Some(index) = names.iter().position(|name| name.is(key))
        {
            return Ok(Some(index));
        }
        let key = key.to_str()?;
        Ok(self.message.names().position(|name| name == key))
    }

    pub(crate) fn dict<'py>(
        &self,
        py: Python<'py>,
        make: impl Fn(Memory) -> PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for index in 0..self.message.len() {
            dict.set_item(self.name(py, index), make(self.memory(index)?)?)?;
        }
        Ok(dict)
    }
}

#[pymethods]
impl PyMessage {
    fn __getitem__(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<PyTensor> {
        if let Ok(key) = key.cast::<PyString>() {
            return match self.index_of(key)? {
                Some(index) => Ok(PyTensor::new(self.memory(index)?)),
                None => match self.message.tensor(key.to_str()?) {
                    Ok(tensor) => Ok(PyTensor::new(Memory::Leased(tensor))),
                    Err(e) => Err(errors::tensor(py, e)),
                },
            };
        }
        Ok(PyTensor::new(self.memory(key.cast::<PyInt>()?.extract()?)?))
    }

    fn __contains__(&self, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        match key.cast::<PyString>() {
            Ok(key) => Ok(self.index_of(key)?.is_some()),
            Err(_) => Ok(false),
        }
    }

    fn __len__(&self) -> usize {
        self.message.len()
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.keys(py)?.try_iter()?.into_any())
    }

    /// The field names, in order.
    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, (0..self.message.len()).map(|index| self.name(py, index)))
    }

    /// The tensors, in order.
    fn values<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for index in 0..self.message.len() {
            list.append(Bound::new(py, PyTensor::new(self.memory(index)?))?)?;
        }
        Ok(list)
    }

    /// (name, tensor) pairs, in order.
    fn items<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for index in 0..self.message.len() {
            list.append((self.name(py, index), Bound::new(py, PyTensor::new(self.memory(index)?))?))?;
        }
        Ok(list)
    }

    /// The tensor of this name, or `default`.
    #[pyo3(signature = (key, default = None))]
    fn get<'py>(
        &self,
        key: &Bound<'py, PyAny>,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        if !self.__contains__(key)? {
            return Ok(default);
        }
        Ok(Some(Bound::new(key.py(), self.__getitem__(key.py(), key)?)?.into_any()))
    }

    /// All tensors as torch tensors, by name; nothing is copied. `model(**message.torch())`.
    ///
    /// Args:
    ///     route: as in Tensor.torch.
    #[pyo3(signature = (*, route = None))]
    pub(crate) fn torch<'py>(&self, py: Python<'py>, route: Option<&str>) -> PyResult<Bound<'py, PyDict>> {
        let route = route.map(str::parse::<Route>).transpose()?;
        self.dict(py, |memory| torch::of(py, memory, route))
    }

    /// All tensors as NumPy arrays, by name; nothing is copied.
    pub(crate) fn numpy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.dict(py, |memory| match memory {
            Memory::Leased(tensor) => numpy::of_tensor(py, tensor),
            memory => numpy::of(&Bound::new(py, PyTensor::new(memory))?),
        })
    }

    /// All tensors as copies in private memory, by name: they hold no slot.
    fn copy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.dict(py, |memory| Bound::new(py, PyTensor::new(memory))?.call_method0("copy"))
    }

    /// Its place in the order of publishing, from 1.
    #[getter]
    fn sequence(&self) -> u64 {
        self.message.sequence()
    }

    /// The number the sender gave it, 0 if none.
    #[getter]
    fn correlation_id(&self) -> u64 {
        self.message.correlation_id()
    }

    /// Earlier deliveries that ended without an ack: 0 the first time. Always 0 on a broadcast ring.
    #[getter]
    fn attempts(&self) -> u8 {
        self.message.attempts()
    }

    /// The sender's user data, at most 256 bytes.
    #[getter]
    fn user<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.message.user())
    }

    /// When it was published, in ns of CLOCK_MONOTONIC (`time.monotonic_ns()`); None unless the producer was created with
    /// timestamps=True.
    #[getter]
    fn timestamp_ns(&self) -> Option<u64> {
        self.message.timestamp_ns()
    }

    /// Bytes of the slot in use.
    #[getter]
    fn payload_bytes(&self) -> u64 {
        self.message.payload_bytes()
    }

    /// The slot it lies in.
    #[getter]
    fn slot(&self) -> u32 {
        self.message.slot()
    }

    /// Seconds since it was received, to a few ms.
    #[getter]
    fn held_for_s(&self) -> f64 {
        self.message.held_for().as_secs_f64()
    }

    /// The message is dealt with: it will not come back, even if this process dies. Its memory stays as it is until the
    /// last view is dropped.
    ///
    /// Returns:
    ///     False if it was nacked before.
    pub(crate) fn ack(&self) -> bool {
        self.decided.store(true, Ordering::Relaxed);
        self.message.ack()
    }

    /// The message was not dealt with: once the last view is dropped it goes to a consumer again (perhaps this one), or
    /// becomes a dead letter when its attempts are spent.
    ///
    /// Returns:
    ///     False if it was acked before.
    pub(crate) fn nack(&self) -> bool {
        self.decided.store(true, Ordering::Relaxed);
        self.message.nack()
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*exception))]
    fn __exit__(&self, exception: &Bound<'_, PyTuple>) -> PyResult<bool> {
        if exception.get_item(0)?.is_none() {
            self.ack();
        } else {
            self.nack();
        }
        Ok(false)
    }

    fn __repr__(&self) -> String {
        let fields: Vec<_> = (0..self.message.len())
            .filter_map(|index| Some((self.message.name(index)?, self.message.meta(index)?)))
            .map(|(name, meta)| format!("{name}: {}{:?}", meta.dtype, meta.shape()))
            .collect();
        format!("<forebay.Message {} {{{}}}>", self.message.sequence(), fields.join(", "))
    }
}
