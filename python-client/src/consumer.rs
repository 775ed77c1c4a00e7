//! `Consumer`: receives the messages of a ring.
//!
//! The Rust consumer lies behind a mutex that is taken with the interpreter held only by `try_lock`; whoever must wait
//! for it detaches first. A thread that waits for messages lets go of it when another one wants it (`turns.rs`).

use std::{
    os::fd::RawFd,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Duration,
};

use forebay::{AckMode, WaitPolicy};
use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    sync::PyOnceLock,
    types::{PyDict, PyTuple},
};

use crate::{
    errors,
    form::{Fields, Form},
    lifecycle::{self, Birth, Close, Signals, seconds},
    message::{Names, PyMessage},
    patience::Patience,
    schema::PySchema,
    turns::Turns,
};

/// Functions of `_asyncio.py`.
static RECV: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static ANEXT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// A lease that a consumer holds.
#[pyclass(frozen, get_all, module = "forebay")]
#[derive(Debug, Clone)]
pub(crate) struct HeldLease {
    /// Sequence of the message.
    sequence: u64,
    /// Its slot.
    slot: u32,
    /// Bytes of that slot.
    slot_bytes: u64,
    /// Seconds since it was received.
    age_s: f64,
}

impl From<forebay::HeldLease> for HeldLease {
    fn from(of: forebay::HeldLease) -> Self {
        Self { sequence: of.sequence, slot: of.slot, slot_bytes: of.slot_bytes, age_s: of.age.as_secs_f64() }
    }
}

#[pymethods]
impl HeldLease {
    fn __repr__(&self) -> String {
        format!("<forebay.HeldLease message {} in slot {} for {:.3} s>", self.sequence, self.slot, self.age_s)
    }
}

/// What a consumer counted since it attached.
#[pyclass(frozen, get_all, module = "forebay")]
#[derive(Debug, Clone)]
pub(crate) struct ConsumerStats {
    /// Messages received.
    received: u64,
    /// Messages acked.
    acked: u64,
    /// Messages given back.
    nacked: u64,
    /// Messages of dead consumers that this one put back.
    recovered: u64,
    /// Messages revoked before this consumer took them (broadcast, drop-oldest).
    missed: u64,
}

#[pymethods]
impl ConsumerStats {
    fn __repr__(&self) -> String {
        let Self { received, acked, nacked, recovered, missed } = self;
        format!(
            "<forebay.ConsumerStats received {received}, acked {acked}, nacked {nacked}, recovered {recovered}, missed {missed}>"
        )
    }
}

/// The consumer, shared between its Python object and the hook at exit.
pub(crate) struct Shared {
    ring: String,
    birth: Birth,
    /// `None` once closed.
    pub(crate) inner: Turns<Option<Inner>>,
    closing: AtomicBool,
}

/// The Rust consumer, and what is known of waiting for it.
pub(crate) struct Inner {
    pub(crate) consumer: forebay::Consumer,
    pub(crate) patience: Patience,
}

impl Shared {
    /// Takes the consumer; the calling thread must be detached.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Option<Inner>> {
        self.inner.lock()
    }

    pub(crate) fn is_closing(&self) -> bool {
        // ORDER none, Relaxed (also below): a request to hurry; the mutex orders what lies behind it.
        self.closing.load(Ordering::Relaxed)
    }
}

impl Close for Shared {
    fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        // Dropping it gives back what is not acked.
        drop(self.lock().take());
    }
}

/// Attaches to a ring and receives its messages.
///
/// Iterating receives without end, acks each message when the next one is asked for, and ends when the producer closed
/// the ring and everything was received:
///
///     for message in forebay.Consumer("tokens"):
///         model(**message.torch())
///
/// `async for` does the same under asyncio. A message from `recv()` is acked when it and everything made of it are gone;
/// `with message:` acks on a clean exit and nacks on an exception; `ack="manual"` leaves it to `message.ack()`. Closing,
/// leaving `with consumer:` and the interpreter's exit give back whatever is not acked.
///
/// Waiting lets other threads run, and Ctrl-C ends it. Pickling keeps name and options and attaches anew; so does
/// `copy.copy()`, which is the way on in a forked child, where the parent's consumer raises ForkedError.
///
/// Args:
///     ring: the ring's name.
///     timeout_s: seconds to wait for the ring to appear; None waits without end.
///     ack: "auto" as described, or "manual": a message that is dropped without ack() comes back.
///     wait: "adaptive", "spin" (lowest latency, one core busy) or "block".
///     quota: messages this consumer may hold at a time and size class; None: all slots but one.
///     reconnect: whether (True: 30 s), or for how many seconds, to wait for a dead producer's successor (posix).
///     directory: where the producer listens; None: $FOREBAY_DIR, else $XDG_RUNTIME_DIR/forebay, else
///         /tmp/forebay-<uid>.
///     schema: the Schema expected; another one is refused with a diff.
///     writable: map the slots writable; the ring must have been created so.
///     prefault: map every page before the first message.
///     pin: register the slots with CUDA at once, as pin() does.
///     label: what `forebay ls` calls this consumer.
/// Raises:
///     RingNotFound: no producer appeared in time (a TimeoutError and ConnectionError).
///     SchemaMismatch: the ring has another schema (a ValueError).
///     AttachError: any other reason.
#[pyclass(frozen, weakref, subclass, name = "Consumer", module = "forebay")]
pub(crate) struct PyConsumer {
    pub(crate) shared: Arc<Shared>,
    arguments: Py<PyDict>,
    /// Of the ring's schema, if it has one.
    pub(crate) fields: Option<Fields>,
    pub(crate) ack: AckMode,
    /// The message that iteration gave out last: to be acked when the next one is asked for.
    pub(crate) current: Current,
    /// The forms that were found to be possible, a bit each.
    prepared: AtomicU8,
    /// What `_asyncio.py` keeps about who waits.
    waiters: PyOnceLock<Py<PyAny>>,
}

impl std::fmt::Debug for PyConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PyConsumer").field("ring", &self.shared.ring).finish_non_exhaustive()
    }
}

/// The message that iteration gave out last, if there is one.
#[derive(Default)]
pub(crate) struct Current {
    message: Mutex<Option<Py<PyMessage>>>,
    /// Whether there is one, for who has no message to look for.
    is_set: AtomicBool,
}

impl Current {
    pub(crate) fn set(&self, message: Py<PyMessage>) {
        let before = self.message.lock().unwrap_or_else(PoisonError::into_inner).replace(message);
        // ORDER none, Relaxed: who sets and who asks hold the interpreter, or do not depend on each other.
        self.is_set.store(true, Ordering::Relaxed);
        drop(before);
    }

    pub(crate) fn take(&self) -> Option<Py<PyMessage>> {
        self.take_if(|_| true)
    }

    /// Takes it if `which` says so. Dropping it may run code of the program.
    #[inline]
    pub(crate) fn take_if(&self, which: impl Fn(&PyMessage) -> bool) -> Option<Py<PyMessage>> {
        if !self.is_set.load(Ordering::Relaxed) {
            return None;
        }
        let mut message = self.message.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = message.take_if(|message| which(message.get()));
        self.is_set.store(message.is_some(), Ordering::Relaxed);
        taken
    }
}

impl PyConsumer {
    /// Refuses a forked child, before any lock is touched that a thread of the parent may have held.
    #[inline]
    pub(crate) fn check(&self, py: Python<'_>) -> PyResult<()> {
        if self.shared.birth.is_here() { Ok(()) } else { Err(errors::forked(py, "consumer", &self.shared.ring)) }
    }

    pub(crate) fn closed(&self, py: Python<'_>) -> PyErr {
        errors::closed(py, "consumer", &self.shared.ring)
    }

    /// Calls `f` with the consumer, detached if it must be waited for.
    pub(crate) fn with<R: Send>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut forebay::Consumer) -> R + Send,
    ) -> PyResult<R> {
        self.check(py)?;
        let f = |inner: &mut Inner| f(&mut inner.consumer);
        let found = match self.shared.inner.try_lock() {
            Some(mut guard) => guard.as_mut().map(f),
            None => py.detach(|| self.shared.lock().as_mut().map(f)),
        };
        // Errors are made when nobody has it: that may run the collector, and so any code.
        found.ok_or_else(|| self.closed(py))
    }

    /// Whether `form` was found to be possible.
    #[inline]
    pub(crate) fn is_prepared(&self, form: Form) -> bool {
        // ORDER none, Relaxed (also below): what was prepared is found through locks of its own.
        self.prepared.load(Ordering::Relaxed) & 1 << form as u8 != 0
    }

    pub(crate) fn set_prepared(&self, form: Form) {
        self.prepared.fetch_or(1 << form as u8, Ordering::Relaxed);
    }

    pub(crate) fn names(&self) -> Option<Names> {
        self.fields.as_ref().map(|fields| Names::clone(&fields.names))
    }

    /// Gives back what iteration gave out last, if its loop was left.
    pub(crate) fn give_back(&self, py: Python<'_>) {
        if let Some(last) = self.current.take() {
            last.bind(py).get().nack();
        }
    }

    /// Takes the Rust consumer out, for a ConsumerSet.
    pub(crate) fn take(&self, py: Python<'_>) -> PyResult<Inner> {
        self.check(py)?;
        py.detach(|| self.shared.lock().take()).ok_or_else(|| self.closed(py))
    }

    /// Puts back what `take` took, unless it was closed meanwhile.
    pub(crate) fn put_back(&self, py: Python<'_>, taken: Inner) {
        py.detach(|| {
            let mut guard = self.shared.lock();
            // Who closes it says so first, then waits for the lock.
            if !self.shared.is_closing() {
                *guard = Some(taken);
            }
        });
    }
}

#[pymethods]
impl PyConsumer {
    #[new]
    #[pyo3(signature = (ring, *, timeout_s = Some(10.0), ack = "auto", wait = "adaptive", quota = None, reconnect = None,
        directory = None, schema = None, writable = false, prefault = true, pin = false, label = None),
        text_signature = "(ring, *, timeout_s=10.0, ack='auto', wait='adaptive', quota=None, reconnect=None, \
        directory=None, schema=None, writable=False, prefault=True, pin=False, label=None)")]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python constructor")]
    fn new(
        py: Python<'_>,
        ring: &str,
        timeout_s: Option<f64>,
        ack: &str,
        wait: &str,
        quota: Option<u32>,
        reconnect: Option<&Bound<'_, PyAny>>,
        directory: Option<PathBuf>,
        schema: Option<&Bound<'_, PySchema>>,
        writable: bool,
        prefault: bool,
        pin: bool,
        label: Option<&str>,
    ) -> PyResult<Self> {
        let ack: AckMode = ack.parse().map_err(value_error)?;
        let wait: WaitPolicy = wait.parse().map_err(value_error)?;
        let mut options = forebay::Consumer::options(ring)
            .timeout(seconds("timeout_s", timeout_s)?)
            .ack(ack)
            .wait(wait)
            .prefault(prefault)
            .writable(writable);
        let arguments = PyDict::new(py);
        arguments.set_item("timeout_s", timeout_s)?;
        arguments.set_item("ack", ack.name())?;
        arguments.set_item("wait", wait.name())?;
        arguments.set_item("quota", quota)?;
        arguments.set_item("reconnect", reconnect)?;
        arguments.set_item("directory", &directory)?;
        arguments.set_item("schema", schema)?;
        arguments.set_item("writable", writable)?;
        arguments.set_item("prefault", prefault)?;
        arguments.set_item("pin", pin)?;
        arguments.set_item("label", label)?;
        if let Some(quota) = quota {
            options = options.quota(quota);
        }
        if let Some(reconnect) = reconnect {
            options = match reconnect.extract::<bool>() {
                Ok(true) => options,
                Ok(false) => options.reconnect(Duration::ZERO),
                Err(_) => options.reconnect(seconds("reconnect", Some(reconnect.extract()?))?.unwrap_or(Duration::MAX)),
            };
        }
        if let Some(directory) = directory {
            options = options.dir(directory);
        }
        if let Some(schema) = schema {
            options = options.schema(schema.get().0.clone());
        }
        if let Some(label) = label {
            options = options.label(label);
        }
        let mut signals = Signals::default();
        let attached = py.detach(|| options.attach_within(&mut || signals.raised()));
        let consumer = match (attached, signals.into_error()) {
            (Ok(Some(consumer)), _) => consumer,
            (_, Some(raised)) => return Err(raised),
            (Err(e), None) => return Err(errors::attach(py, e)),
            (Ok(None), None) => return Err(errors::closed(py, "consumer", ring)),
        };
        let fields = consumer.schema().map(|schema| Fields::of(py, schema));
        let shared = Arc::new(Shared {
            ring: ring.to_owned(),
            birth: Birth::here(),
            inner: Turns::new(Some(Inner { consumer, patience: Patience::new(wait) })),
            closing: AtomicBool::new(false),
        });
        lifecycle::register(&shared);
        let arguments = arguments.unbind();
        let (current, prepared, waiters) = (Current::default(), AtomicU8::new(0), PyOnceLock::new());
        let attached = Self { shared, arguments, fields, ack, current, prepared, waiters };
        if pin {
            attached.pin_or_warn(py, None)?;
        }
        Ok(attached)
    }

    fn __aiter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf.get().give_back(slf.py());
        slf
    }

    fn __anext__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        ANEXT.import(slf.py(), "forebay._asyncio", "anext_message")?.call1((slf,))
    }

    /// Waits for the next message under asyncio. Cancelling it loses and holds nothing.
    ///
    /// Args, Returns, Raises:
    ///     As recv.
    #[pyo3(signature = (timeout_s = None))]
    fn recv_async<'py>(slf: &Bound<'py, Self>, timeout_s: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        seconds("timeout_s", timeout_s)?;
        RECV.import(slf.py(), "forebay._asyncio", "recv_async")?.call1((slf, timeout_s))
    }

    /// For `_asyncio.py`: what it keeps about who waits.
    #[getter]
    fn _waiters<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let (py, own) = (slf.py(), slf.get());
        if let Some(made) = own.waiters.get(py) {
            return Ok(made.bind(py).clone());
        }
        let made = py.import("forebay._asyncio")?.call_method1("Waiters", (slf,))?;
        Ok(own.waiters.get_or_init(py, || made.unbind()).bind(py).clone())
    }

    /// For `_asyncio.py`: the loop saw the descriptor readable, and somebody will look.
    fn _silence(&self) {
        // Whoever has it looks himself, and the loop calls again.
        if self.shared.birth.is_here()
            && let Some(mut guard) = self.shared.inner.try_lock()
            && let Some(inner) = guard.as_mut()
        {
            inner.consumer.silence();
        }
    }

    /// A descriptor that is readable when try_recv() should be called: for select, poll and other event loops. It belongs
    /// to this consumer; do not close it.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.with(py, forebay::Consumer::fileno)?.map_err(|e| errors::recv(py, e))
    }

    /// What this consumer holds, oldest sequence first.
    ///
    /// Returns:
    ///     list of HeldLease
    fn held(&self, py: Python<'_>) -> PyResult<Vec<HeldLease>> {
        Ok(self.with(py, |consumer| consumer.held())?.into_iter().map(HeldLease::from).collect())
    }

    /// What it counted since it attached.
    #[getter]
    fn stats(&self, py: Python<'_>) -> PyResult<ConsumerStats> {
        let forebay::ConsumerStats { received, acked, nacked, recovered, missed } =
            self.with(py, |consumer| consumer.stats())?;
        Ok(ConsumerStats { received, acked, nacked, recovered, missed })
    }

    /// The ring's name.
    #[getter]
    fn ring(&self) -> &str {
        &self.shared.ring
    }

    /// "queue" or "broadcast".
    #[getter]
    fn kind(&self, py: Python<'_>) -> PyResult<&'static str> {
        self.with(py, |consumer| consumer.kind().name())
    }

    /// The ring's Schema, None if it has none.
    #[getter]
    fn schema(&self, py: Python<'_>) -> PyResult<Option<PySchema>> {
        self.with(py, |consumer| consumer.schema().cloned().map(PySchema))
    }

    /// This consumer's member index, 0 to 31.
    #[getter]
    fn index(&self, py: Python<'_>) -> PyResult<u8> {
        self.with(py, |consumer| consumer.index())
    }

    /// (start, end) addresses of the mapped slots: every tensor's data_ptr lies in there.
    #[getter]
    fn data_range(&self, py: Python<'_>) -> PyResult<(usize, usize)> {
        let range = self.with(py, |consumer| consumer.data_range())?;
        Ok((range.start, range.end))
    }

    /// Whether it was closed.
    #[getter(closed)]
    fn is_closed(&self) -> bool {
        self.shared.closing.load(Ordering::Relaxed)
    }

    /// Stops receiving. What is held stays valid; whatever of it is not acked goes back when its lease ends. Closing twice
    /// is fine; in a forked child it does nothing.
    fn close(&self, py: Python<'_>) {
        if self.check(py).is_err() {
            return;
        }
        self.give_back(py);
        py.detach(|| self.shared.close());
        if let Some(waiters) = self.waiters.get(py) {
            // Whoever waits looks, and finds it closed. What the loop watches is a duplicate, which is let go here.
            if let Err(e) = waiters.call_method0(py, "close") {
                e.write_unraisable(py, None);
            }
        }
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) {
        self.close(py);
    }

    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> ((&str,), Bound<'py, PyDict>) {
        ((&self.shared.ring,), self.arguments.bind(py).clone())
    }

    fn __repr__(&self) -> String {
        let state = if self.shared.closing.load(Ordering::Relaxed) { ", closed" } else { "" };
        format!("<forebay.Consumer {:?}{state}>", self.shared.ring)
    }
}

impl Drop for PyConsumer {
    fn drop(&mut self) {
        if !self.shared.birth.is_here() {
            return;
        }
        // The message that iteration gave out last was never settled: it goes back. Closing sees to that.
        self.shared.close();
    }
}

/// An option that is none of the names it may be.
pub(crate) fn value_error(e: impl ToString) -> PyErr {
    PyValueError::new_err(e.to_string())
}
