//! How a call gets at the producer: at once if nobody has it, else by turns with the threads that wait in it.
//!
//! A wait lets the interpreter go, hears Ctrl-C and a close, and gives way to other threads at short intervals. What is
//! done with the producer is not known here.

use std::{
    sync::{
        MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use forebay::{DetachedLoan, FieldSpec, LoanError, WaitError, WhenFull};
use pyo3::prelude::*;

use super::PyProducer;
use crate::{
    copying::Copies,
    errors,
    lifecycle::{Birth, Close, Signals},
    turns::Turns,
};

/// The producer, shared between its Python object and the hook at exit.
pub(super) struct Shared {
    pub(super) ring: String,
    pub(super) birth: Birth,
    /// `None` once closed.
    pub(super) inner: Turns<Option<forebay::Producer>>,
    /// Asks who waits to let go.
    closing: AtomicBool,
    /// Slots that `send` copies into.
    pub(super) copies: Copies,
}

/// Whether a loan was refused without waiting, because all slots are loans and letters of this producer: what other
/// threads copy into is published soon, and some may have been given back since it looked.
fn is_in_vain(producer: &forebay::Producer, e: &LoanError) -> bool {
    match e {
        LoanError::OwnLoans { .. } => true,
        LoanError::Full { slots, loaned, dead, .. } => {
            producer.geometry().when_full != WhenFull::Fail && loaned + dead == *slots
        }
        _ => false,
    }
}

impl Shared {
    pub(super) fn new(ring: &str, producer: forebay::Producer) -> Self {
        Self {
            ring: ring.to_owned(),
            birth: Birth::here(),
            inner: Turns::new(Some(producer)),
            closing: AtomicBool::new(false),
            copies: Copies::default(),
        }
    }

    /// Takes the producer; the calling thread must be detached.
    fn lock(&self) -> MutexGuard<'_, Option<forebay::Producer>> {
        self.inner.lock()
    }

    /// The producer, which nobody finds here afterwards; whoever waits lets go. The calling thread must be detached.
    pub(super) fn take(&self) -> Option<forebay::Producer> {
        // ORDER none, Relaxed: a request to hurry; the mutex orders what lies behind it.
        self.closing.store(true, Ordering::Relaxed);
        self.lock().take()
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }
}

impl Close for Shared {
    fn close(&self) {
        if let Some(mut producer) = self.take() {
            producer.close();
        }
    }
}

/// What the caller of a wait gets when it ends without an answer.
enum Failure<E> {
    Closed,
    Raised(PyErr),
    Failed(E),
}

impl PyProducer {
    pub(super) fn check(&self, py: Python<'_>) -> PyResult<()> {
        if self.shared.birth.is_here() { Ok(()) } else { Err(errors::forked(py, "producer", &self.shared.ring)) }
    }

    pub(super) fn closed(&self, py: Python<'_>) -> PyErr {
        errors::closed(py, "producer", &self.shared.ring)
    }

    /// Calls `f` with the producer, detached if it must be waited for.
    pub(super) fn with<R: Send>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut forebay::Producer) -> R + Send,
    ) -> PyResult<R> {
        self.check(py)?;
        let found = match self.shared.inner.try_lock() {
            Some(mut guard) => guard.as_mut().map(f),
            None => py.detach(|| self.shared.lock().as_mut().map(f)),
        };
        // Errors are made when nobody has it: that may run the collector, and so any code.
        found.ok_or_else(|| self.closed(py))
    }

    /// Calls `f`, which may wait, detached, with the time that is left and a question that says when to let go: others may
    /// use the producer in between. `Ok(None)` of `f` means that it was interrupted.
    fn wait<R: Send, E: Send>(
        &self,
        py: Python<'_>,
        timeout: Option<Duration>,
        mut f: impl FnMut(&mut forebay::Producer, Option<Duration>, &mut dyn FnMut() -> bool) -> Result<Option<R>, E> + Send,
    ) -> Result<R, Failure<E>> {
        if let Err(e) = self.check(py) {
            return Err(Failure::Raised(e));
        }
        let mut signals = Signals::default();
        let answer = py.detach(|| {
            let mut over = || signals.raised() || self.shared.is_closing();
            self.shared.inner.wait(timeout, &mut over, |producer, left, stop| match producer {
                Some(producer) => f(producer, left, stop).map(|done| done.map(Some)),
                None => Ok(Some(None)),
            })
        });
        match (answer, signals.into_error()) {
            (Ok(Some(Some(done))), _) => Ok(done),
            (_, Some(raised)) => Err(Failure::Raised(raised)),
            (Err(e), None) => Err(Failure::Failed(e)),
            (Ok(Some(None) | None), None) => Err(Failure::Closed),
        }
    }

    /// As [`wait`](Self::wait), for what is not a loan.
    pub(super) fn wait_until(
        &self,
        py: Python<'_>,
        timeout: Option<Duration>,
        mut f: impl FnMut(&mut forebay::Producer, Option<Duration>, &mut dyn FnMut() -> bool) -> Result<(), WaitError>
        + Send,
    ) -> PyResult<()> {
        let start = Instant::now();
        let answer = self.wait(py, timeout, |producer, left, stop| match f(producer, left, stop) {
            Ok(()) => Ok(Some(())),
            Err(WaitError::Interrupted) => Ok(None),
            Err(WaitError::Timeout { what, .. }) => Err(WaitError::Timeout { what, waited: start.elapsed() }),
            Err(e) => Err(e),
        });
        answer.map_err(|failure| match failure {
            Failure::Closed => self.closed(py),
            Failure::Raised(e) => e,
            Failure::Failed(e) => errors::wait(py, e),
        })
    }

    /// A slot, and what `begin` gives, which is called before any other thread may look for one.
    pub(super) fn detached_loan<B: Send>(
        &self,
        py: Python<'_>,
        specs: &[FieldSpec<'_>],
        timeout: Option<Duration>,
        begin: impl Fn() -> B + Sync,
    ) -> PyResult<(B, DetachedLoan)> {
        self.check(py)?;
        // What is there at once needs no detaching.
        let at_once = self.shared.inner.try_lock().map(|mut guard| {
            let found = guard.as_mut().map(|producer| producer.try_loan(specs).map(|loan| (begin(), loan.detach())));
            found.ok_or(())
        });
        match at_once {
            None => {}
            Some(Err(())) => return Err(self.closed(py)),
            Some(Ok(Err(LoanError::Full { .. }))) if timeout != Some(Duration::ZERO) => {}
            Some(Ok(found)) => return found.map_err(|e| errors::loan(py, e)),
        }
        let start = Instant::now();
        let answer = self.wait(py, timeout, |producer, left, stop| {
            let mut found = producer.loan_within(specs, left, stop).map(|loan| (begin(), loan.detach()));
            if left != Some(Duration::ZERO) && found.as_ref().is_err_and(|e| is_in_vain(producer, e)) {
                if self.shared.copies.under_way() {
                    return Ok(None);
                }
                if let Ok(loan) = producer.try_loan(specs) {
                    found = Ok((begin(), loan.detach()));
                }
            }
            match found {
                Ok(found) => Ok(Some(found)),
                Err(LoanError::Interrupted { .. }) => Ok(None),
                Err(mut e) => {
                    if let LoanError::Full { waited, .. } = &mut e {
                        *waited = start.elapsed();
                    }
                    Err(e)
                }
            }
        });
        answer.map_err(|failure| match failure {
            Failure::Closed => self.closed(py),
            Failure::Raised(e) => e,
            Failure::Failed(e) => errors::loan(py, e),
        })
    }
}
