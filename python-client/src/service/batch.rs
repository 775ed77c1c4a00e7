//! `Batch`: a request, or some rows of one.

use std::sync::{Arc, Mutex, PoisonError};

use forebay::service::{ITEMS_FIELD, ItemStatus, Request};
use pyo3::{
    exceptions::{PyIndexError, PyTypeError},
    prelude::*,
    types::{PyDict, PyList, PyString},
};

use super::{show_deadline, trace};
use crate::{
    errors,
    memory::{Memory, Rows},
    numpy,
    tensor::PyTensor,
    torch::{self, Route},
};

/// One row of a batch: its id, and until when its answer is wanted (as `time.monotonic()` counts; None: always).
#[pyclass(frozen, get_all, name = "Item", module = "forebay")]
#[derive(Debug, Clone)]
pub(crate) struct PyItem {
    /// Its number, unique among what the client waits for.
    id: u64,
    /// Until when its answer is wanted.
    deadline: Option<f64>,
}

#[pymethods]
impl PyItem {
    fn __repr__(&self) -> String {
        format!("<forebay.Item {}>", self.id)
    }
}

/// A batch to work on: named tensors with a row for each item, and what the client says about them.
///
/// `batch["input_ids"]` is a Tensor, `model(**batch.torch())` takes them all, `len(batch)` is the number of items. Nothing
/// is copied: the tensors lie in the client's slot, which is free again when the batch and everything made of it are gone.
/// Keep `.copy()` or torch's `.clone()` of what is to be kept; keeping the tensors of every batch stops the service.
///
/// Tensors are read-only unless the client made the service writable; torch knows no read-only memory, so writing in place
/// to such a torch tensor ends the process (SIGSEGV).
#[pyclass(frozen, weakref, mapping, name = "Batch", module = "forebay")]
#[derive(Debug)]
pub(crate) struct PyBatch {
    pub(super) request: Arc<Request>,
    /// The rows it has.
    pub(super) from: usize,
    pub(super) to: usize,
    /// Whether all ranks must do the same with it.
    alike: bool,
    failures: Mutex<Vec<(usize, ItemStatus, String)>>,
}

impl PyBatch {
    pub(super) fn new(request: Request, alike: bool) -> Self {
        let to = request.items().len();
        Self { request: Arc::new(request), from: 0, to, alike, failures: Mutex::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.to - self.from
    }

    /// Whether it has all rows of its request.
    pub(super) fn is_whole(&self) -> bool {
        self.from == 0 && self.to == self.request.items().len()
    }

    pub(super) fn own_items(&self) -> &[forebay::service::Item] {
        self.request.items().get(self.from..self.to).unwrap_or_default()
    }

    /// What `fail` said.
    pub(super) fn failures(&self) -> Vec<(usize, ItemStatus, String)> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn check_index(&self, index: usize) -> PyResult<usize> {
        if index < self.len() {
            return Ok(self.from + index);
        }
        Err(PyIndexError::new_err(format!("there is no item {index}, the batch has {}", self.len())))
    }

    fn memory(&self, tensor: forebay::Tensor) -> PyResult<Memory> {
        if self.is_whole() || tensor.shape().is_empty() {
            return Ok(Memory::Leased(tensor));
        }
        Rows::of(tensor, self.from, self.to).ok_or_else(|| PyIndexError::new_err("the batch has fewer rows"))
    }

    fn names(&self) -> impl Iterator<Item = (usize, &str)> {
        let message = self.request.message();
        (0..message.len())
            .filter_map(|index| Some((index, message.name(index)?)))
            .filter(|(_, name)| *name != ITEMS_FIELD)
    }

    fn dict<'py>(
        &self,
        py: Python<'py>,
        make: impl Fn(Memory) -> PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for (index, name) in self.names() {
            if let Some(tensor) = self.request.message().tensor_at(index) {
                dict.set_item(PyString::intern(py, name), make(self.memory(tensor)?)?)?;
            }
        }
        Ok(dict)
    }
}

/// An exception as its type and text: `ValueError`, `what it says`; a text, or a kind and a text, as it is.
pub(super) fn describe(error: &Bound<'_, PyAny>) -> PyResult<(String, String)> {
    if let Ok(text) = error.cast::<PyString>() {
        return Ok(("Error".to_owned(), text.to_string_lossy().into_owned()));
    }
    if let Ok(said) = error.extract::<(String, String)>() {
        return Ok(said);
    }
    if !error.is_instance_of::<pyo3::exceptions::PyBaseException>() {
        let kind = error.get_type().name()?.to_string();
        return Err(PyTypeError::new_err(format!("what failed is a {kind}, expected an exception or a text")));
    }
    // The text of an exception is the program's code, which may raise itself.
    let text =
        error.str().map_or_else(|_| "(its text cannot be had)".to_owned(), |text| text.to_string_lossy().into_owned());
    Ok((error.get_type().name()?.to_string(), text))
}

#[pymethods]
impl PyBatch {
    fn __getitem__(&self, py: Python<'_>, name: &str) -> PyResult<PyTensor> {
        let found = self.request.tensor(name).map_err(|e| errors::tensor(py, e))?;
        self.memory(found).map(PyTensor::new)
    }

    fn __contains__(&self, name: &str) -> bool {
        self.names().any(|(_, own)| own == name)
    }

    /// The number of items.
    fn __len__(&self) -> usize {
        self.len()
    }

    /// The field names, in order.
    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for (_, name) in self.names() {
            list.append(PyString::intern(py, name))?;
        }
        Ok(list)
    }

    /// All fields as torch tensors, by name; nothing is copied. `model(**batch.torch())`.
    ///
    /// Args:
    ///     route: as in Tensor.torch.
    #[pyo3(signature = (*, route = None))]
    fn torch<'py>(&self, py: Python<'py>, route: Option<&str>) -> PyResult<Bound<'py, PyDict>> {
        let route = route.map(str::parse::<Route>).transpose()?;
        self.dict(py, |memory| torch::of(py, memory, route))
    }

    /// All fields as NumPy arrays, by name; nothing is copied.
    fn numpy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.dict(py, |memory| match memory {
            Memory::Leased(tensor) => numpy::of_tensor(py, tensor),
            memory => numpy::of(&Bound::new(py, PyTensor::new(memory))?),
        })
    }

    /// Some of its rows as a batch of their own; nothing is copied.
    ///
    /// Args:
    ///     start, stop: the first row, and the one after the last.
    fn rows(&self, start: usize, stop: usize) -> PyResult<Self> {
        if start >= stop || stop > self.len() {
            return Err(PyIndexError::new_err(format!("rows {start} to {stop} of a batch of {}", self.len())));
        }
        let (from, to) = (self.from + start, self.from + stop);
        Ok(Self { request: Arc::clone(&self.request), from, to, alike: self.alike, failures: Mutex::default() })
    }

    /// As rows, with what `fail` said of them.
    fn _part(&self, start: usize, stop: usize) -> PyResult<Self> {
        let kept = self.failures().into_iter().filter(|(index, ..)| (start..stop).contains(index));
        let kept = kept.map(|(index, status, text)| (index - start, status, text)).collect();
        Ok(Self { failures: Mutex::new(kept), ..self.rows(start, stop)? })
    }

    /// Its items, one for each row.
    #[getter]
    fn items<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for item in self.own_items() {
            list.append(Bound::new(py, PyItem { id: item.id, deadline: show_deadline(item.deadline_ns) })?)?;
        }
        Ok(list)
    }

    /// The ids of its items.
    #[getter]
    fn ids(&self) -> Vec<u64> {
        self.own_items().iter().map(|item| item.id).collect()
    }

    /// The number of the request it is, or is part of.
    #[getter]
    fn request(&self) -> u64 {
        self.request.id()
    }

    /// Until when any of it is wanted, as `time.monotonic()` counts; None: always.
    #[getter]
    fn deadline(&self) -> Option<f64> {
        show_deadline(self.request.deadline_ns())
    }

    /// The client's W3C traceparent, None if it gave none.
    #[getter]
    fn trace(&self) -> Option<String> {
        self.request.trace().map(|trace| trace::show(&trace))
    }

    /// Whether nobody wants item `index` any more. Looks now; takes well under a microsecond. With several ranks always
    /// False, because they would look at different times.
    fn cancelled(&self, index: usize) -> PyResult<bool> {
        Ok(self.request.cancelled(self.check_index(index)?))
    }

    /// Says that item `index` failed, while the others go on: its row of what forward returns means nothing.
    ///
    /// Args:
    ///     error: an exception, or a text.
    fn fail(&self, index: usize, error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.check_index(index)?;
        let (kind, text) = describe(error)?;
        let text = format!("{kind}: {text}");
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push((index, ItemStatus::Error, text));
        Ok(())
    }

    /// What `fail` said: index and text of each.
    #[getter]
    fn _failures(&self) -> Vec<(usize, String)> {
        self.failures().into_iter().map(|(index, _, text)| (index, text)).collect()
    }

    /// Whether no item is wanted any more: each is cancelled, or its deadline is over. With several ranks always False.
    fn unwanted(&self) -> bool {
        if self.alike {
            return false;
        }
        let now = forebay::service::now_ns();
        let late = |deadline_ns: u64| deadline_ns != 0 && deadline_ns < now;
        late(self.request.deadline_ns())
            || (self.from..self.to).all(|index| {
                self.request.items().get(index).is_some_and(|item| late(item.deadline_ns))
                    || self.request.cancelled(index)
            })
    }

    fn __repr__(&self) -> String {
        let fields: Vec<_> =
            self.request.fields().map(|(name, meta)| format!("{name}: {}{:?}", meta.dtype, meta.shape())).collect();
        let part = if self.is_whole() { String::new() } else { format!(", rows {} to {} of", self.from, self.to) };
        format!("<forebay.Batch {}, {} items{part} {{{}}}>", self.request.id(), self.len(), fields.join(", "))
    }
}
