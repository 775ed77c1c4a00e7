//! `ServiceClient`: the end that asks.

use std::{
    os::fd::RawFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use forebay::{
    DEFAULT_SLOTS, FieldSpec, WaitPolicy,
    service::{Client, DEFAULT_MAX_ITEMS, Item, Meta},
};
use pyo3::{
    exceptions::PyTimeoutError,
    prelude::*,
    types::{PyDict, PyString, PyTuple},
};

use super::{Held, answer::PyAnswer, read_deadline, trace, value_error};
use crate::{
    errors,
    incoming::Incoming,
    lifecycle::{Close, seconds},
    loan::fill,
    patience::Patience,
    schema::PySchema,
};

/// Begins a service and asks its server.
///
/// A service lives as long as both ends: the death of either ends it for the other, and a new one takes a new name. Only
/// `accept` and `recv` wait; they let other threads run, and Ctrl-C ends them. Closing it (also by leaving `with`, by
/// dropping it, or at the interpreter's exit) ends the service for the server.
///
/// Args:
///     service: its name, [a-z0-9][a-z0-9._-]*, at most 62 bytes.
///     schema: the fields of every request, the batch as dim 0; None: each request names its own.
///     slots: requests that may be under way at a time, those included that the server still reads.
///     slot_bytes: bytes of the largest request; None: as the schema needs, else 1 MiB.
///     max_items: items of a request that there is room for.
///     ranks: processes of the server, each of which sees every request; rank 0 answers.
///     writable: the server may write into the tensors of requests (one rank only).
///     directory: where to listen; None: $FOREBAY_DIR, else $XDG_RUNTIME_DIR/forebay, else /tmp/forebay-<uid>.
///     wait: "adaptive", "spin" or "block".
///     label: what `forebay ls` calls it.
/// Raises:
///     RingTaken: another client has the name.
///     InsufficientMemory: the requests' ring does not fit (a MemoryError).
///     InvalidOptions: a name or number is out of range (a ValueError).
#[pyclass(frozen, weakref, name = "ServiceClient", module = "forebay")]
#[derive(Debug)]
pub(crate) struct PyServiceClient {
    held: Arc<Held<Client>>,
    schema: Option<forebay::Schema>,
    /// The next item's id, for requests that give none.
    next: AtomicU64,
}

#[pymethods]
impl PyServiceClient {
    #[new]
    #[pyo3(signature = (service, *, schema = None, slots = DEFAULT_SLOTS, slot_bytes = None, max_items = DEFAULT_MAX_ITEMS,
        ranks = 1, writable = false, directory = None, wait = "adaptive", label = None),
        text_signature = "(service, *, schema=None, slots=16, slot_bytes=None, max_items=1024, ranks=1, writable=False, \
        directory=None, wait='adaptive', label=None)")]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python constructor")]
    fn new(
        py: Python<'_>,
        service: &str,
        schema: Option<&Bound<'_, PySchema>>,
        slots: u32,
        slot_bytes: Option<u64>,
        max_items: u32,
        ranks: u32,
        writable: bool,
        directory: Option<PathBuf>,
        wait: &str,
        label: Option<&str>,
    ) -> PyResult<Self> {
        let wait: WaitPolicy = wait.parse().map_err(value_error)?;
        let schema = schema.map(|schema| schema.get().0.clone());
        let mut options =
            Client::options(service).slots(slots).max_items(max_items).ranks(ranks).writable(writable).wait(wait);
        if let Some(schema) = &schema {
            options = options.schema(schema.clone());
        }
        if let Some(slot_bytes) = slot_bytes {
            options = options.slot_bytes(slot_bytes);
        }
        if let Some(directory) = directory {
            options = options.dir(directory);
        }
        if let Some(label) = label {
            options = options.label(label);
        }
        let client = py.detach(|| options.create()).map_err(|e| errors::create(py, e))?;
        let held = Held::new(service, "client", client, Patience::new(wait));
        Ok(Self { held, schema, next: AtomicU64::new(1) })
    }

    /// Waits until the server, with all its ranks, is attached. That it is also ready is its first answer.
    ///
    /// Args:
    ///     timeout_s: seconds to wait; None waits without end.
    /// Raises:
    ///     TimeoutError: it did not come in time.
    #[pyo3(signature = (timeout_s = None))]
    fn accept(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<()> {
        let timeout = seconds("timeout_s", timeout_s)?;
        let start = Instant::now();
        let over = || timeout.is_some_and(|timeout| start.elapsed() >= timeout);
        let accepted = self.held.wait(py, None, |client, _, stop| {
            let mut late = false;
            let mut stop = || {
                late = over();
                late || stop()
            };
            match client.accept_within(&mut stop)? {
                true => Ok(Some(true)),
                // Or it did not ask: nobody can come any more.
                false if late || over() => Ok(Some(false)),
                false => Ok(None),
            }
        })?;
        if accepted {
            return Ok(());
        }
        let (name, waited) = (&self.held.name, start.elapsed());
        Err(PyTimeoutError::new_err(format!("no server of service {name:?} after {waited:.1?}; look at its log")))
    }

    /// Copies arrays into a slot and asks. Does not wait.
    ///
    /// Args:
    ///     arrays: field name to array, as in Producer.send; each that is no scalar with a row for each item.
    ///     ids: the items' ids, unique among those without an answer; None: numbers that this client gives out.
    ///     deadline: until when the answer is wanted, as `time.monotonic()` counts; None: always.
    ///     trace: a W3C traceparent.
    /// Returns:
    ///     the request's number, by which its answers are known.
    /// Raises:
    ///     RingFull: as many requests as there are slots are under way, or the server keeps tensors of old ones.
    ///     FieldsMismatch: not a row for each item, not the schema's fields, or an id that is taken (a ValueError).
    ///     HandleClosed: after drain or close.
    #[pyo3(signature = (arrays, *, ids = None, deadline = None, trace = None))]
    fn send(
        &self,
        py: Python<'_>,
        arrays: &Bound<'_, PyDict>,
        ids: Option<Vec<u64>>,
        deadline: Option<f64>,
        trace: Option<&str>,
    ) -> PyResult<u64> {
        let mut read = Vec::with_capacity(arrays.len());
        for (name, array) in arrays.iter() {
            let name = name.cast_into::<PyString>()?;
            let incoming = Incoming::read(name.to_str()?, &array)?;
            read.push((name, incoming));
        }
        let specs = read
            .iter()
            .map(|(name, incoming)| Ok(FieldSpec::new(name.to_str()?, incoming.dtype, &incoming.shape)))
            .collect::<PyResult<Vec<_>>>()?;
        let deadline_ns = read_deadline("deadline", deadline)?;
        let trace = trace.map(trace::read).transpose()?;
        let ids = match ids {
            Some(ids) => ids,
            None => {
                let rows = specs.iter().find_map(|spec| spec.shape.first().copied()).unwrap_or(1);
                // ORDER none, Relaxed: numbers that differ, no memory travels.
                let first = self.next.fetch_add(rows, Ordering::Relaxed);
                (first..first + rows).collect()
            }
        };
        let items: Vec<_> = ids.into_iter().map(|id| Item::until(id, deadline_ns)).collect();
        let places: Vec<_> = specs
            .iter()
            .enumerate()
            .map(|(place, spec)| self.schema.as_ref().map_or(Some(place), |schema| schema.index_of(spec.name)))
            .collect();
        let loan = self.held.with(py, |client| client.request(&specs, &items).map(|loan| loan.detach()))?;
        let mut loan = loan.map_err(|e| errors::loan(py, e))?;
        for (place, (name, incoming)) in places.into_iter().zip(&read) {
            if !place.is_some_and(|place| fill(&mut loan, place, incoming.bytes())) {
                return Err(value_error(format!(
                    "field {:?} has not the bytes its shape says",
                    name.to_string_lossy()
                )));
            }
        }
        let meta = Meta { deadline_ns, trace };
        self.held.with(py, |client| client.publish(loan, &meta))?.map_err(|e| errors::publish(py, e))
    }

    /// Waits for the next answer.
    ///
    /// Args:
    ///     timeout_s: seconds to wait; None waits without end, 0 only looks.
    /// Raises:
    ///     ReceiveTimeout: nothing came in time; calling again is fine (a TimeoutError).
    ///     PeerDied: the server, or one of its ranks, died; everything it answered came first. `outstanding` requests are
    ///         unanswered.
    ///     ServiceClosed: the server left; everything it answered came first.
    ///     ServiceError: no server was accepted yet.
    #[pyo3(signature = (timeout_s = None))]
    fn recv(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<PyAnswer> {
        let timeout = seconds("timeout_s", timeout_s)?;
        self.held.receive(py, timeout, Client::recv_interruptible, Client::try_answer).map(PyAnswer)
    }

    /// The next answer if there is one now, else None. Does not wait.
    ///
    /// Raises:
    ///     As recv, but for ReceiveTimeout.
    fn try_recv(&self, py: Python<'_>) -> PyResult<Option<PyAnswer>> {
        Ok(self.held.call(py, Client::try_answer)?.map(PyAnswer))
    }

    /// Tells the server that nobody wants these items of a request any more. A hint: each still gets an answer.
    ///
    /// Args:
    ///     request: its number.
    ///     items: their ids; None: all of them.
    #[pyo3(signature = (request, items = None))]
    fn cancel(&self, py: Python<'_>, request: u64, items: Option<Vec<u64>>) -> PyResult<()> {
        match items {
            Some(items) if items.is_empty() => Ok(()),
            items => self.held.with(py, |client| client.cancel(request, &items.unwrap_or_default())),
        }
    }

    /// Asks the server to answer what was asked and then leave; after its last answer `recv` raises ServiceClosed.
    fn drain(&self, py: Python<'_>) -> PyResult<()> {
        self.held.check(py)?;
        py.detach(|| self.held.lock().as_mut().map(|inner| inner.end.drain())).ok_or_else(|| self.held.closed(py))
    }

    /// Requests that are not answered yet.
    #[getter]
    fn outstanding(&self, py: Python<'_>) -> PyResult<usize> {
        self.held.with(py, |client| client.outstanding())
    }

    /// Whether the server is attached, as far as is known; stale at once.
    #[getter]
    fn is_alive(&self, py: Python<'_>) -> PyResult<bool> {
        self.held.with(py, |client| client.is_alive())
    }

    /// A descriptor that is readable when `try_recv` should be called, after `accept`; do not close it.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.held.call(py, Client::fileno)
    }

    /// The service's name.
    #[getter]
    fn service(&self) -> &str {
        &self.held.name
    }

    /// Ends the service. Closing twice is fine; in a forked child it does nothing.
    fn close(&self, py: Python<'_>) {
        if self.held.birth.is_here() {
            py.detach(|| self.held.close());
        }
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) {
        self.close(py);
    }

    fn __repr__(&self) -> String {
        let state = if self.held.is_closing() { ", closed" } else { "" };
        format!("<forebay.ServiceClient {:?}{state}>", self.held.name)
    }
}

impl Drop for PyServiceClient {
    fn drop(&mut self) {
        if self.held.birth.is_here() {
            self.held.close();
        }
    }
}
