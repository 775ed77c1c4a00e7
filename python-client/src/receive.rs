//! Receiving: the waits of a `Consumer`, and what its messages are handed out as.
//!
//! A message is taken with the interpreter held and no code of the program in between; what is made of it is made after
//! the lock was let go, because making Python objects may run the collector, and that any code.

use std::time::{Duration, Instant};

use forebay::{AckMode, Message, RecvError};
use pyo3::{
    exceptions::{PyException, PyStopAsyncIteration, PyValueError},
    prelude::*,
    types::PyList,
};

use crate::{
    consumer::{Inner, PyConsumer, Shared},
    errors,
    form::Form,
    lifecycle::{Signals, seconds},
    message::PyMessage,
    quota::AtQuota,
};

/// A batch begins with room for so many.
const BATCH: usize = 64;

impl Shared {
    /// Waits for a message; `None` if closed meanwhile. The calling thread must be detached.
    fn wait(
        &self,
        timeout: Option<Duration>,
        interrupt: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Message>, RecvError> {
        let start = Instant::now();
        let mut over = || interrupt() || self.is_closing();
        let mut at_quota = AtQuota::default();
        let found = self.inner.wait(timeout, &mut over, |inner, left, stop| {
            let Some(Inner { consumer, .. }) = inner else { return Ok(Some(None)) };
            if left.is_none() {
                let received = consumer.stats().received;
                if let Some(message) = at_quota.judge(consumer.try_recv(), received)? {
                    return Ok(Some(Some(message)));
                }
            }
            match consumer.recv_interruptible(left, stop) {
                Ok(found) => Ok(found.map(Some)),
                Err(RecvError::Timeout { ring, note, .. }) => {
                    Err(RecvError::Timeout { ring, waited: start.elapsed(), note })
                }
                Err(e) => Err(e),
            }
        });
        found.map(Option::flatten)
    }
}

impl PyConsumer {
    /// Waits for a message and takes it.
    #[inline]
    fn receive(&self, py: Python<'_>, timeout: Option<Duration>) -> PyResult<Message> {
        self.check(py)?;
        self.let_go();
        let mut left = timeout;
        if let Some(mut guard) = self.shared.inner.try_lock() {
            // Errors are made when nobody has it.
            let Some(inner) = guard.as_mut() else {
                drop(guard);
                return Err(self.closed(py));
            };
            match inner.consumer.try_recv() {
                Ok(Some(message)) => return Ok(message),
                Ok(None) if timeout == Some(Duration::ZERO) => {}
                Ok(None) => {
                    if let Some(keep) = inner.patience.next() {
                        let keep = timeout.map_or(keep, |timeout| keep.min(timeout));
                        // Spins and does not sleep: where it would, it is interrupted.
                        let found = inner.consumer.recv_interruptible(Some(keep), &mut || true);
                        inner.patience.learn(matches!(found, Ok(Some(_))));
                        match found {
                            Ok(Some(message)) => return Ok(message),
                            Ok(None) | Err(RecvError::Timeout { .. } | RecvError::Quota { .. }) => {
                                left = timeout.map(|timeout| timeout.saturating_sub(keep));
                            }
                            Err(e) => {
                                drop(guard);
                                return Err(errors::recv(py, e));
                            }
                        }
                    }
                }
                // At quota, waiting may help: something that is held here may be dropped by another thread.
                Err(RecvError::Quota { .. }) => {}
                Err(e) => {
                    drop(guard);
                    return Err(errors::recv(py, e));
                }
            }
        }
        let mut signals = Signals::default();
        let found = py.detach(|| self.shared.wait(left, &mut || signals.raised()));
        match (found, signals.into_error()) {
            (Ok(Some(message)), _) => Ok(message),
            (_, Some(raised)) => Err(raised),
            (Err(e), None) => Err(errors::recv(py, in_all(e, timeout, left))),
            (Ok(None), None) => Err(self.closed(py)),
        }
    }

    /// Takes a message if there is one now.
    fn look(&self, py: Python<'_>) -> PyResult<Option<Message>> {
        self.check(py)?;
        self.let_go();
        // Whoever has it waits for messages himself.
        let Some(mut guard) = self.shared.inner.try_lock() else { return Ok(None) };
        let found = guard.as_mut().map(|inner| inner.consumer.try_recv());
        // Errors are made when nobody has it.
        drop(guard);
        found.ok_or_else(|| self.closed(py))?.map_err(|e| errors::recv(py, e))
    }

    fn wrap(&self, message: Message) -> PyMessage {
        PyMessage::new(message, self.names())
    }

    /// Waits for a message and makes of it what `form` says.
    fn receive_as<'py>(&self, py: Python<'py>, form: Form, timeout_s: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        let timeout = seconds("timeout_s", timeout_s)?;
        self.ready(py, form)?;
        let message = self.receive(py, timeout)?;
        form.of(py, message, self.fields.as_ref())
    }

    /// Refuses a form that cannot be had, before there is a message to lose.
    #[inline]
    fn ready(&self, py: Python<'_>, form: Form) -> PyResult<()> {
        if form == Form::Message {
            return Ok(());
        }
        if self.ack == AckMode::Manual {
            return Err(PyValueError::new_err(
                "an array cannot be acked, and this consumer acks by hand; use recv(), or attach with ack=\"auto\"",
            ));
        }
        if self.is_prepared(form) {
            return Ok(());
        }
        form.prepare(py, self.fields.as_ref())?;
        self.set_prepared(form);
        Ok(())
    }

    /// Acks what iteration gave out last: the next one is asked for.
    fn settle(&self, py: Python<'_>) {
        if let Some(last) = self.current.take()
            && self.ack == AckMode::Auto
        {
            last.bind(py).get().ack();
        }
    }

    /// Forgets what iteration gave out last if its fate is known: a nacked one goes to the next only when nobody holds
    /// it. An undecided one stays, for a loop whose body receives.
    #[inline]
    fn let_go(&self) {
        // Its end may run code of the program, which may come back here.
        drop(self.current.take_if(PyMessage::is_decided));
    }
}

/// A timeout says how long was waited in all.
fn in_all(e: RecvError, timeout: Option<Duration>, left: Option<Duration>) -> RecvError {
    match (e, timeout, left) {
        (RecvError::Timeout { ring, waited, note }, Some(timeout), Some(left)) => {
            RecvError::Timeout { ring, waited: waited + timeout.saturating_sub(left), note }
        }
        (e, ..) => e,
    }
}

#[pymethods]
impl PyConsumer {
    /// Waits for the next message.
    ///
    /// Args:
    ///     timeout_s: seconds to wait; None waits without end, 0 only looks.
    /// Returns:
    ///     Message. It is acked when it and everything made of it are gone (unless ack="manual").
    /// Raises:
    ///     ReceiveTimeout: nothing came in time; calling again is fine (a TimeoutError).
    ///     RingClosed: the producer closed, and everything it published was received.
    ///     PeerDied: the producer died; everything it had published came first (a ConnectionError).
    ///     QuotaExceeded: this consumer holds all it may; `held` lists what.
    #[pyo3(signature = (timeout_s = None))]
    fn recv(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<PyMessage> {
        let message = self.receive(py, seconds("timeout_s", timeout_s)?)?;
        Ok(self.wrap(message))
    }

    /// Waits for the next message and gives it as NumPy arrays of its memory: what `recv().numpy()` gives, in one step and
    /// sooner. For who needs neither the message's number nor its user data, nor to ack it by hand.
    ///
    /// Nothing is copied. The message is acked when its arrays and all views of them are gone; it goes back if the process
    /// dies, or the consumer is closed, before that.
    ///
    /// Args:
    ///     timeout_s: as in recv.
    /// Returns:
    ///     numpy.ndarray if the ring's schema has one field, else a dict by field name; read-only unless the ring is
    ///     `writable`.
    /// Raises:
    ///     ValueError: this consumer acks by hand.
    ///     DTypeUnavailable: NumPy has no such element type and `ml_dtypes` is not installed. No message is taken.
    ///     As recv.
    #[pyo3(signature = (timeout_s = None))]
    fn recv_numpy<'py>(&self, py: Python<'py>, timeout_s: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        self.receive_as(py, Form::Numpy, timeout_s)
    }

    /// As recv_numpy, with torch tensors: what `recv().torch()` gives, in one step and sooner.
    ///
    /// torch has no read-only tensors: do not write to them in place unless the ring is `writable`.
    ///
    /// Args:
    ///     timeout_s: as in recv.
    /// Returns:
    ///     torch.Tensor if the ring's schema has one field, else a dict by field name.
    /// Raises:
    ///     As recv_numpy.
    #[pyo3(signature = (timeout_s = None))]
    fn recv_torch<'py>(&self, py: Python<'py>, timeout_s: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        self.receive_as(py, Form::Torch, timeout_s)
    }

    /// The next message if there is one now, else None. Does not wait.
    ///
    /// Raises:
    ///     As recv, but for ReceiveTimeout.
    fn try_recv(&self, py: Python<'_>) -> PyResult<Option<PyMessage>> {
        Ok(self.look(py)?.map(|message| self.wrap(message)))
    }

    /// Waits for a message, then takes what else is there, up to `limit`.
    ///
    /// Args:
    ///     limit: most messages to return, 1 or more.
    ///     timeout_s: as in recv, for the first one.
    ///     as_: "message"; or "numpy" or "torch" for what recv_numpy and recv_torch make of each.
    /// Returns:
    ///     list of 1 to `limit` messages; fewer if this consumer's quota is reached.
    /// Raises:
    ///     As recv, recv_numpy and recv_torch.
    #[pyo3(signature = (limit, timeout_s = None, *, as_ = "message"))]
    fn recv_many<'py>(
        &self,
        py: Python<'py>,
        limit: usize,
        timeout_s: Option<f64>,
        as_: &str,
    ) -> PyResult<Bound<'py, PyList>> {
        if limit == 0 {
            return Err(PyValueError::new_err("limit is 0, expected 1 or more"));
        }
        let (form, timeout) = (as_.parse::<Form>()?, seconds("timeout_s", timeout_s)?);
        self.ready(py, form)?;
        let mut taken = Vec::with_capacity(limit.min(BATCH));
        taken.push(self.receive(py, timeout)?);
        if let Some(mut guard) = self.shared.inner.try_lock()
            && let Some(inner) = guard.as_mut()
        {
            while taken.len() < limit {
                // Whatever ends the stream is for the next call to say.
                let Ok(Some(message)) = inner.consumer.try_recv() else { break };
                taken.push(message);
            }
        }
        let mut made = Vec::with_capacity(taken.len());
        // Of what arrays were made of: dropping those would ack it. Messages are not looked at, and that is not interrupted.
        let mut leases = Vec::new();
        let mut taken = taken.into_iter();
        for message in taken.by_ref() {
            if form != Form::Message {
                leases.extend(message.tensor_at(0).map(|tensor| tensor.message()));
            }
            match form.of(py, message, self.fields.as_ref()) {
                Ok(of) => made.push(of),
                Err(e) => {
                    // That one goes back, and so do those behind it.
                    for message in taken {
                        message.nack();
                    }
                    // Ctrl-C and the like say nothing of a message, and must be heard: those before it go back too.
                    if !e.is_instance_of::<PyException>(py) {
                        for lease in leases {
                            lease.nack();
                        }
                        return Err(e);
                    }
                    return if made.is_empty() { Err(e) } else { PyList::new(py, made) };
                }
            }
        }
        PyList::new(py, made)
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf.get().give_back(slf.py());
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyMessage>>> {
        self.settle(py);
        match self.receive(py, None) {
            Ok(message) => {
                let message = Bound::new(py, self.wrap(message))?;
                self.current.set(message.clone().unbind());
                Ok(Some(message))
            }
            Err(e) if errors::is_end(py, &e)? => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// For `_asyncio.py`: the next message of an iteration, if there is one; acks the one before.
    fn _try_next<'py>(slf: &Bound<'py, Self>) -> PyResult<Option<Bound<'py, PyMessage>>> {
        let (py, own) = (slf.py(), slf.get());
        own.settle(py);
        match own.look(py) {
            Ok(None) => Ok(None),
            Ok(Some(message)) => {
                let message = Bound::new(py, own.wrap(message))?;
                own.current.set(message.clone().unbind());
                Ok(Some(message))
            }
            Err(e) if errors::is_end(py, &e)? => Err(PyStopAsyncIteration::new_err(())),
            Err(e) => Err(e),
        }
    }
}
