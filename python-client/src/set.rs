//! `ConsumerSet`: one wait on many rings.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use forebay::RecvError;
use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyList, PyTuple},
};

use crate::{
    consumer::PyConsumer,
    errors,
    lifecycle::{self, Birth, Close, Signals, seconds},
    message::{Names, PyMessage},
    quota::AtQuota,
    turns::Turns,
};

struct Shared {
    rings: String,
    birth: Birth,
    /// `None` once closed.
    inner: Turns<Option<forebay::ConsumerSet>>,
    closing: AtomicBool,
}

impl Close for Shared {
    fn close(&self) {
        // ORDER none, Relaxed: a request to hurry; the mutex orders what lies behind it.
        self.closing.store(true, Ordering::Relaxed);
        drop(self.inner.lock().take());
    }
}

/// Receives from several rings, fairly: one wait for all of them.
///
/// Args:
///     consumers: the consumers; the set takes them over, they are closed to other use.
#[pyclass(frozen, weakref, name = "ConsumerSet", module = "forebay")]
pub(crate) struct PyConsumerSet {
    shared: Arc<Shared>,
    names: Vec<Option<Names>>,
}

impl std::fmt::Debug for PyConsumerSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PyConsumerSet").field("rings", &self.shared.rings).finish_non_exhaustive()
    }
}

impl PyConsumerSet {
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        if self.shared.birth.is_here() { Ok(()) } else { Err(errors::forked(py, "consumer set", &self.shared.rings)) }
    }

    fn closed(&self, py: Python<'_>) -> PyErr {
        errors::closed(py, "consumer set", &self.shared.rings)
    }

    fn wrap(&self, (index, message): (usize, forebay::Message)) -> (usize, PyMessage) {
        (index, PyMessage::new(message, self.names.get(index).cloned().flatten()))
    }
}

#[pymethods]
impl PyConsumerSet {
    #[new]
    fn new(py: Python<'_>, consumers: &Bound<'_, PyAny>) -> PyResult<Self> {
        let given: Vec<Bound<'_, PyConsumer>> =
            consumers.try_iter()?.map(|one| Ok(one?.cast_into::<PyConsumer>()?)).collect::<PyResult<_>>()?;
        // All of them or none: what is taken over is closed for whoever had it.
        for (place, consumer) in given.iter().enumerate() {
            if given[..place].iter().any(|other| other.is(consumer)) {
                return Err(PyValueError::new_err(format!(
                    "consumer {place} is in the list twice, expected each once"
                )));
            }
            consumer.get().with(py, |_| ())?;
        }
        let mut taken = Vec::with_capacity(given.len());
        for consumer in &given {
            match consumer.get().take(py) {
                Ok(own) => taken.push(own),
                Err(e) => {
                    // Another thread closed this one since it was looked at.
                    for (consumer, own) in given.iter().zip(taken) {
                        consumer.get().put_back(py, own);
                    }
                    return Err(e);
                }
            }
        }
        let names = given.iter().map(|consumer| consumer.get().names()).collect();
        let taken: Vec<_> = taken.into_iter().map(|own| own.consumer).collect();
        let rings = taken.iter().map(forebay::Consumer::ring).collect::<Vec<_>>().join(", ");
        let shared = Arc::new(Shared {
            rings,
            birth: Birth::here(),
            inner: Turns::new(Some(forebay::ConsumerSet::new(taken))),
            closing: AtomicBool::new(false),
        });
        lifecycle::register(&shared);
        Ok(Self { shared, names })
    }

    /// Waits for the next message of any ring.
    ///
    /// Args:
    ///     timeout_s: seconds to wait; None waits without end, 0 only looks.
    /// Returns:
    ///     (place of its consumer in the set, Message)
    /// Raises:
    ///     ReceiveTimeout: nothing came in time.
    ///     RingClosed: every ring is closed.
    ///     ReceiveError: one ring failed, as Consumer.recv says; it drops out of the set.
    #[pyo3(signature = (timeout_s = None))]
    fn recv(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<(usize, PyMessage)> {
        self.check(py)?;
        let timeout = seconds("timeout_s", timeout_s)?;
        let mut signals = Signals::default();
        let found = py.detach(|| {
            let mut over = || signals.raised() || self.shared.closing.load(Ordering::Relaxed);
            let start = Instant::now();
            let mut at_quota = AtQuota::default();
            self.shared.inner.wait(timeout, &mut over, |set, left, stop| {
                let Some(set) = set else { return Ok(Some(None)) };
                if left.is_none() {
                    let received: u64 = set.consumers().iter().map(|consumer| consumer.stats().received).sum();
                    if let Some(found) = at_quota.judge(set.try_recv(), received)? {
                        return Ok(Some(Some(found)));
                    }
                }
                match set.recv_interruptible(left, stop) {
                    Ok(found) => Ok(found.map(Some)),
                    Err(RecvError::Timeout { ring, note, .. }) => {
                        Err(RecvError::Timeout { ring, waited: start.elapsed(), note })
                    }
                    Err(e) => Err(e),
                }
            })
        });
        match (found.map(Option::flatten), signals.into_error()) {
            (Ok(Some(found)), _) => Ok(self.wrap(found)),
            (_, Some(raised)) => Err(raised),
            (Err(e), None) => Err(errors::recv(py, e)),
            (Ok(None), None) => Err(self.closed(py)),
        }
    }

    /// (place, Message) if there is one now, else None. Does not wait.
    fn try_recv(&self, py: Python<'_>) -> PyResult<Option<(usize, PyMessage)>> {
        self.check(py)?;
        let Some(mut guard) = self.shared.inner.try_lock() else { return Ok(None) };
        let found = guard.as_mut().map(forebay::ConsumerSet::try_recv);
        // Errors are made when nobody has it.
        drop(guard);
        match found.ok_or_else(|| self.closed(py))? {
            Ok(found) => Ok(found.map(|found| self.wrap(found))),
            Err(e) => Err(errors::recv(py, e)),
        }
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<(usize, PyMessage)>> {
        match self.recv(py, None) {
            Err(e) if errors::is_end(py, &e)? => Ok(None),
            other => other.map(Some),
        }
    }

    /// The rings' names, in the order of the set.
    #[getter]
    fn rings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let names: Vec<&str> = self.shared.rings.split(", ").filter(|name| !name.is_empty()).collect();
        PyList::new(py, names)
    }

    fn __len__(&self) -> usize {
        self.names.len()
    }

    /// Closes all its consumers. What is held stays valid.
    fn close(&self, py: Python<'_>) {
        if self.check(py).is_ok() {
            py.detach(|| self.shared.close());
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
        format!("<forebay.ConsumerSet {}>", self.shared.rings)
    }
}
