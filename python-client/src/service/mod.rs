//! Services: request and response over rings, as thin classes over `forebay::service`.
//!
//! ```text
//!   client.rs  ServiceClient    server.rs  ServiceServer    outgoing.rs  arrays on their way into an answer
//!   answer.rs  Answer           batch.rs   Batch            trace.rs     W3C traceparent texts
//! ```
//!
//! `python/forebay/_worker.py` has the loop around a `ServiceServer`.

mod answer;
mod batch;
mod client;
mod outgoing;
mod server;
mod trace;

pub(crate) use answer::{PyAnswer, PyAnswerItem};
pub(crate) use batch::{PyBatch, PyItem};
pub(crate) use client::PyServiceClient;
pub(crate) use server::PyServiceServer;

use std::{
    sync::{
        Arc, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use forebay::{RecvError, service::ServiceError};
use pyo3::{exceptions::PyValueError, prelude::*};

use crate::{
    errors,
    lifecycle::{self, Birth, Close, Signals},
    patience::Patience,
    turns::Turns,
};

/// One end of a service, shared between its Python object and the hook at exit.
pub(crate) struct Held<T> {
    name: String,
    what: &'static str,
    birth: Birth,
    /// `None` once closed.
    inner: Turns<Option<Inner<T>>>,
    closing: AtomicBool,
}

/// The end, and what is known of waiting for it.
pub(crate) struct Inner<T> {
    end: T,
    patience: Patience,
}

impl<T> std::fmt::Debug for Held<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<T: Send + 'static> Close for Held<T> {
    fn close(&self) {
        // ORDER none, Relaxed (also below): requests to hurry; the mutex orders what lies behind it.
        self.closing.store(true, Ordering::Relaxed);
        drop(self.lock().take());
    }
}

impl<T: Send + 'static> Held<T> {
    fn new(name: &str, what: &'static str, end: T, patience: Patience) -> Arc<Self> {
        let held = Arc::new(Self {
            name: name.to_owned(),
            what,
            birth: Birth::here(),
            inner: Turns::new(Some(Inner { end, patience })),
            closing: AtomicBool::new(false),
        });
        lifecycle::register(&held);
        held
    }

    fn lock(&self) -> MutexGuard<'_, Option<Inner<T>>> {
        self.inner.lock()
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    fn check(&self, py: Python<'_>) -> PyResult<()> {
        if self.birth.is_here() { Ok(()) } else { Err(errors::forked(py, self.what, &self.name)) }
    }

    fn closed(&self, py: Python<'_>) -> PyErr {
        errors::closed(py, self.what, &self.name)
    }

    /// Calls `f` with the end, detached if it must be waited for.
    fn with<R: Send>(&self, py: Python<'_>, f: impl FnOnce(&mut T) -> R + Send) -> PyResult<R> {
        self.check(py)?;
        let f = |inner: &mut Inner<T>| f(&mut inner.end);
        let found = match self.inner.try_lock() {
            Some(mut guard) => guard.as_mut().map(f),
            None => py.detach(|| self.lock().as_mut().map(f)),
        };
        // Errors are made when nobody has it: that may run the collector, and so any code.
        found.ok_or_else(|| self.closed(py))
    }

    /// As [`with`](Self::with), for what may fail.
    fn call<R: Send>(&self, py: Python<'_>, f: impl FnOnce(&mut T) -> Result<R, ServiceError> + Send) -> PyResult<R> {
        self.with(py, f)?.map_err(|e| errors::service(py, e))
    }

    /// Waits, detached, for what `f` may give: it is asked again with the time that is left, in which others may use the
    /// end in between. `Ok(None)` of `f` means that it was interrupted.
    fn wait<R: Send>(
        &self,
        py: Python<'_>,
        timeout: Option<Duration>,
        mut f: impl FnMut(&mut T, Option<Duration>, &mut dyn FnMut() -> bool) -> Result<Option<R>, ServiceError> + Send,
    ) -> PyResult<R> {
        self.check(py)?;
        let mut signals = Signals::default();
        let start = Instant::now();
        let found = py.detach(|| {
            let mut over = || signals.raised() || self.is_closing();
            self.inner.wait(timeout, &mut over, |inner, left, stop| match inner {
                Some(inner) => f(&mut inner.end, left, stop).map(|done| done.map(Some)),
                None => Ok(Some(None)),
            })
        });
        match (found.map(Option::flatten), signals.into_error()) {
            (Ok(Some(found)), _) => Ok(found),
            (_, Some(raised)) => Err(raised),
            (Err(ServiceError::Recv(RecvError::Timeout { ring, note, .. })), None) => {
                Err(errors::recv(py, RecvError::Timeout { ring, waited: start.elapsed(), note }))
            }
            (Err(e), None) => Err(errors::service(py, e)),
            (Ok(None), None) => Err(self.closed(py)),
        }
    }

    /// Receives: looks, spins a little with the interpreter held, then waits without it.
    fn receive<R: Send>(
        &self,
        py: Python<'_>,
        timeout: Option<Duration>,
        mut f: impl FnMut(&mut T, Option<Duration>, &mut dyn FnMut() -> bool) -> Result<Option<R>, ServiceError> + Send,
        look: impl FnOnce(&mut T) -> Result<Option<R>, ServiceError>,
    ) -> PyResult<R> {
        self.check(py)?;
        let mut left = timeout;
        if let Some(mut guard) = self.inner.try_lock() {
            // Errors are made when nobody has it.
            let Some(inner) = guard.as_mut() else {
                drop(guard);
                return Err(self.closed(py));
            };
            match look(&mut inner.end) {
                Ok(Some(found)) => return Ok(found),
                Err(ServiceError::Recv(RecvError::Quota { .. })) => {}
                Err(e) => {
                    drop(guard);
                    return Err(errors::service(py, e));
                }
                Ok(None) if timeout == Some(Duration::ZERO) => {}
                Ok(None) => {
                    if let Some(keep) = inner.patience.next() {
                        let keep = timeout.map_or(keep, |timeout| keep.min(timeout));
                        // Spins and does not sleep: where it would, it is interrupted.
                        let found = f(&mut inner.end, Some(keep), &mut || true);
                        inner.patience.learn(matches!(found, Ok(Some(_))));
                        match found {
                            Ok(Some(found)) => return Ok(found),
                            Ok(None) | Err(ServiceError::Recv(RecvError::Timeout { .. } | RecvError::Quota { .. })) => {
                                left = timeout.map(|timeout| timeout.saturating_sub(keep));
                            }
                            Err(e) => {
                                drop(guard);
                                return Err(errors::service(py, e));
                            }
                        }
                    }
                }
            }
        }
        self.wait(py, left, f)
    }
}

fn value_error(e: impl ToString) -> PyErr {
    PyValueError::new_err(e.to_string())
}

/// Reads a point of time as `time.monotonic()` counts it; `None` is 0, never.
fn read_deadline(name: &str, value: Option<f64>) -> PyResult<u64> {
    match value {
        None | Some(f64::INFINITY) => Ok(0),
        Some(value) => Duration::try_from_secs_f64(value)
            // 0 means never, so the first instant of all is the second one.
            .map(|value| u64::try_from(value.as_nanos()).unwrap_or(u64::MAX).max(1))
            .map_err(|_| value_error(format!("{name} is {value}, expected a time.monotonic() value, or None"))),
    }
}

fn show_deadline(ns: u64) -> Option<f64> {
    (ns != 0).then(|| Duration::from_nanos(ns).as_secs_f64())
}
