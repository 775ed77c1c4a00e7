//! `Answer`: what came back.

use forebay::service::{Answer, AnswerKind, ITEMS_FIELD, ItemStatus, TEXT_FIELD};
use pyo3::{
    exceptions::PyIndexError,
    prelude::*,
    types::{PyDict, PyList, PyString},
};

use crate::{
    errors,
    memory::Memory,
    numpy,
    tensor::PyTensor,
    torch::{self, Route},
};

/// One row of an answer: how it went with an item.
#[pyclass(frozen, get_all, name = "AnswerItem", module = "forebay")]
#[derive(Debug, Clone)]
pub(crate) struct PyAnswerItem {
    /// The item.
    id: u64,
    /// The request it belongs to.
    request: u64,
    /// "ok", "error" or "cancelled".
    status: &'static str,
    /// Whether nothing more comes for it.
    last: bool,
    /// What went wrong; None if nothing is said.
    error: Option<String>,
}

#[pymethods]
impl PyAnswerItem {
    fn __repr__(&self) -> String {
        let Self { id, request, status, last, .. } = self;
        let more = if *last { "" } else { ", more to come" };
        format!("<forebay.AnswerItem {id} of request {request}, {status}{more}>")
    }
}

/// An answer: named tensors with a row for each of its items. Its slot is free again when it and everything made of it are
/// gone.
#[pyclass(frozen, weakref, mapping, name = "Answer", module = "forebay")]
#[derive(Debug)]
pub(crate) struct PyAnswer(pub(super) Answer);

impl PyAnswer {
    fn names(&self) -> impl Iterator<Item = (usize, &str)> {
        let message = self.0.message();
        (0..message.len())
            .filter_map(|index| Some((index, message.name(index)?)))
            .filter(|(_, name)| *name != ITEMS_FIELD && *name != TEXT_FIELD)
    }

    fn kind_name(&self) -> &'static str {
        match self.0.kind() {
            AnswerKind::Ready => "ready",
            AnswerKind::Part => "part",
            AnswerKind::Failed => "failed",
            _ => "result",
        }
    }

    fn dict<'py>(
        &self,
        py: Python<'py>,
        make: impl Fn(forebay::Tensor) -> PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for (index, name) in self.names() {
            if let Some(tensor) = self.0.message().tensor_at(index) {
                dict.set_item(PyString::intern(py, name), make(tensor)?)?;
            }
        }
        Ok(dict)
    }
}

#[pymethods]
impl PyAnswer {
    fn __getitem__(&self, py: Python<'_>, name: &str) -> PyResult<PyTensor> {
        let found = self.0.tensor(name).map_err(|e| errors::tensor(py, e))?;
        Ok(PyTensor::new(Memory::Leased(found)))
    }

    fn __contains__(&self, name: &str) -> bool {
        self.names().any(|(_, own)| own == name)
    }

    /// The number of items.
    fn __len__(&self) -> usize {
        self.0.items().len()
    }

    /// The field names, in order.
    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for (_, name) in self.names() {
            list.append(PyString::intern(py, name))?;
        }
        Ok(list)
    }

    /// All fields as torch tensors, by name; nothing is copied.
    ///
    /// Args:
    ///     route: as in Tensor.torch.
    #[pyo3(signature = (*, route = None))]
    fn torch<'py>(&self, py: Python<'py>, route: Option<&str>) -> PyResult<Bound<'py, PyDict>> {
        let route = route.map(str::parse::<Route>).transpose()?;
        self.dict(py, |tensor| torch::of(py, Memory::Leased(tensor), route))
    }

    /// All fields as NumPy arrays, by name; nothing is copied.
    fn numpy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.dict(py, |tensor| numpy::of_tensor(py, tensor))
    }

    /// "ready" (the server's first word), "result" (a whole batch), "part" (rows of some items, perhaps of several
    /// requests) or "failed" (a whole request, or what was left of it).
    #[getter]
    fn kind(&self) -> &'static str {
        self.kind_name()
    }

    /// The request it answers; 0 for "ready" and "part", whose items say it.
    #[getter]
    fn request(&self) -> u64 {
        self.0.request()
    }

    /// Its rows. Empty for "ready" and "failed".
    #[getter]
    fn items<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for index in 0..self.0.items().len() {
            list.append(Bound::new(py, self.item(index)?)?)?;
        }
        Ok(list)
    }

    /// Row `index` of `items`.
    fn item(&self, index: usize) -> PyResult<PyAnswerItem> {
        let items = self.0.items();
        let item = items.get(index).ok_or_else(|| {
            PyIndexError::new_err(format!("there is no item {index}, the answer has {}", items.len()))
        })?;
        let status = match item.status {
            ItemStatus::Ok => "ok",
            ItemStatus::Error => "error",
            ItemStatus::Cancelled => "cancelled",
        };
        let error = self.0.error(index).map(str::to_owned);
        Ok(PyAnswerItem { id: item.id, request: item.request, status, last: item.last, error })
    }

    /// (type, text) of the exception, if the request failed as a whole; else None.
    #[getter]
    fn failure(&self) -> Option<(&str, &str)> {
        self.0.failure()
    }

    /// (pid, ranks, text) that the server says of itself, if this is its first word; else None.
    #[getter]
    fn readiness(&self) -> Option<(u32, u32, &str)> {
        self.0.readiness().map(|ready| (ready.pid, ready.ranks, ready.text))
    }

    /// When the server began to compute it (`time.monotonic_ns()`), 0 if it did not say.
    #[getter]
    fn started_ns(&self) -> u64 {
        self.0.timings().start_ns
    }

    /// When the server had computed it, 0 if it did not say.
    #[getter]
    fn ended_ns(&self) -> u64 {
        self.0.timings().end_ns
    }

    fn __repr__(&self) -> String {
        let fields: Vec<_> =
            self.0.fields().map(|(name, meta)| format!("{name}: {}{:?}", meta.dtype, meta.shape())).collect();
        let (kind, items) = (self.kind_name(), self.0.items().len());
        format!("<forebay.Answer {kind}, {items} items {{{}}}>", fields.join(", "))
    }
}
