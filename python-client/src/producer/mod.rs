//! `Producer`: creates a ring and publishes messages.

mod access;
mod records;

use std::{path::PathBuf, sync::Arc, time::Duration};

use forebay::{DetachedLoan, FieldSpec, LoanError, PublishError, SlotClass};
use pyo3::{
    prelude::*,
    types::{PyDict, PyString, PyTuple},
};

use self::access::Shared;
pub(crate) use self::records::{DeadLetter, ProducerStats, Takeover};
use crate::{
    consumer::value_error,
    dtype, errors,
    incoming::Incoming,
    lifecycle::{self, Close, seconds},
    loan::{self, PyLoan},
    schema::{self, PySchema},
};

/// What is copied with the interpreter held, in bytes: more is long enough to let other threads run meanwhile.
const LITTLE: usize = 1 << 18;

/// Why nothing was sent at once.
enum Unsent {
    Loan(LoanError),
    Publish(PublishError),
    /// The field at this place is not what the loan has.
    Differs(usize),
}

fn does_not_fit(name: &str, bytes: &[u8]) -> PyErr {
    value_error(format!("field {name:?} has {} bytes, not what its shape says", bytes.len()))
}

/// Creates a ring and publishes messages to it. One living producer per ring; on a posix ring a new one takes over what a
/// dead one published (`takeover` says what).
///
/// Closing it (also by leaving `with`, by dropping it, or at the interpreter's exit) closes the ring: consumers receive
/// what is there and then see the end. Waiting lets other threads run, and Ctrl-C ends it.
///
/// Args:
///     ring: its name, [a-z0-9][a-z0-9._-]{0,63}.
///     schema: the fields of every message; None: each message names its own.
///     slots: messages that fit at a time.
///     slot_bytes: bytes of a slot; None: as the schema needs, else 1 MiB.
///     classes: instead of both, several sizes: [(slots, slot_bytes), ...].
///     kind: "queue" (each message to one consumer) or "broadcast" (to all).
///     backing: "posix" (survives this process) or "memfd" (sealed, leaves nothing behind).
///     when_full: "block" (up to full_timeout_s), "fail" or "drop-oldest".
///     full_timeout_s: seconds that loan() and send() wait for a slot; None waits without end.
///     max_consumers: consumers attached at a time, 1 to 32.
///     max_attempts: deliveries before a message becomes a dead letter, 0: no limit.
///     dead_letters: "keep" (in their slots until take_dead_letters) or "discard" (counted when their slots are needed).
///     quota: messages a consumer may hold at a time; None: all slots but one.
///     wait: "adaptive", "spin" or "block".
///     writable: consumers may write to what they hold (queue only).
///     timestamps: stamp each message with the time of publishing.
///     fresh: discard what a dead producer left.
///     prefault, mlock, huge_pages: how to get the memory; see `notes` for wishes that were not granted.
///     numa: the NUMA node to take the slots from: its number, "gpu:0" for the one that a GPU is attached to (in the order
///         of nvidia-smi), or "gpu:<PCI bus id>".
///     directory: where to listen; None: $FOREBAY_DIR, else $XDG_RUNTIME_DIR/forebay, else /tmp/forebay-<uid>.
///     label: what `forebay ls` calls it.
/// Raises:
///     RingTaken: a living producer has the name.
///     InsufficientMemory: the ring does not fit; says how many bytes it needs and how many there are (a MemoryError).
///     RingDiffers: a dead producer left another ring of this name (a ValueError).
///     InvalidOptions: a name or number is out of range (a ValueError).
#[pyclass(frozen, weakref, subclass, name = "Producer", module = "forebay")]
pub(crate) struct PyProducer {
    shared: Arc<Shared>,
    arguments: Py<PyDict>,
    schema: Option<Arc<forebay::Schema>>,
    full_timeout: Option<Duration>,
}

impl std::fmt::Debug for PyProducer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PyProducer").field("ring", &self.shared.ring).finish_non_exhaustive()
    }
}

impl PyProducer {
    /// Sends little, where there is a slot, in one step. `None` leaves it to whoever lets other threads run meanwhile.
    fn send_at_once(
        &self,
        py: Python<'_>,
        read: &[(Bound<'_, PyString>, Incoming<'_>)],
        specs: &[FieldSpec<'_>],
        correlation_id: u64,
        user: Option<&[u8]>,
    ) -> PyResult<Option<u64>> {
        if read.iter().map(|(_, incoming)| incoming.bytes().len()).sum::<usize>() > LITTLE {
            return Ok(None);
        }
        let schema = self.schema.as_deref();
        let send = |producer: &mut forebay::Producer| {
            let mut loan = producer.try_loan(specs).map_err(Unsent::Loan)?;
            loan.set_correlation_id(correlation_id);
            if let Some(user) = user {
                loan.set_user(user).map_err(Unsent::Publish)?;
            }
            for (place, (spec, (_, incoming))) in specs.iter().zip(read).enumerate() {
                // The fields of a loan are in the schema's order, or as they were asked for.
                let index = schema.map_or(Some(place), |schema| schema.index_of(spec.name));
                let bytes = incoming.bytes();
                match index.and_then(|index| loan.bytes_mut(index)) {
                    Some(to) if to.len() == bytes.len() => to.copy_from_slice(bytes),
                    _ => return Err(Unsent::Differs(place)),
                }
            }
            loan.publish().map_err(Unsent::Publish)
        };
        let Some(mut guard) = self.shared.inner.try_lock() else { return Ok(None) };
        let sent = guard.as_mut().map(send);
        // Errors are made when nobody has it: that may run the collector, and so any code.
        drop(guard);
        match sent {
            Some(Ok(sequence)) => Ok(Some(sequence)),
            // Whether that is to be waited for, and what to say if not, is known elsewhere.
            Some(Err(Unsent::Loan(LoanError::Full { .. }))) => Ok(None),
            Some(Err(Unsent::Loan(e))) => Err(errors::loan(py, e)),
            Some(Err(Unsent::Publish(e))) => Err(errors::publish(py, e)),
            Some(Err(Unsent::Differs(place))) => Err(does_not_fit(specs[place].name, read[place].1.bytes())),
            None => Err(self.closed(py)),
        }
    }

    pub(crate) fn publish_loan(&self, py: Python<'_>, loan: DetachedLoan) -> PyResult<u64> {
        self.with(py, |producer| producer.publish(loan))?.map_err(|e| errors::publish(py, e))
    }

    fn timeout(&self, timeout_s: Option<f64>) -> PyResult<Option<Duration>> {
        match timeout_s {
            Some(_) => seconds("timeout_s", timeout_s),
            None => Ok(self.full_timeout),
        }
    }
}

#[pymethods]
impl PyProducer {
    #[new]
    #[pyo3(signature = (ring, *, schema = None, slots = forebay::DEFAULT_SLOTS, slot_bytes = None, classes = None,
        kind = "queue", backing = "posix", when_full = "block", full_timeout_s = Some(60.0),
        max_consumers = forebay::DEFAULT_MAX_CONSUMERS, max_attempts = forebay::DEFAULT_MAX_ATTEMPTS,
        dead_letters = "keep", quota = None, wait = "adaptive", writable = false, timestamps = false, fresh = false, prefault = true, mlock = false,
        huge_pages = false, numa = None, directory = None, label = None),
        text_signature = "(ring, *, schema=None, slots=16, slot_bytes=None, classes=None, kind='queue', backing='posix', \
        when_full='block', full_timeout_s=60.0, max_consumers=8, max_attempts=3, dead_letters='keep', quota=None, wait='adaptive', \
        writable=False, timestamps=False, fresh=False, prefault=True, mlock=False, huge_pages=False, numa=None, directory=None, \
        label=None)")]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python constructor")]
    #[expect(clippy::fn_params_excessive_bools, reason = "keyword arguments of a Python constructor")]
    fn new(
        py: Python<'_>,
        ring: &str,
        schema: Option<&Bound<'_, PySchema>>,
        slots: u32,
        slot_bytes: Option<u64>,
        classes: Option<Vec<(u32, u64)>>,
        kind: &str,
        backing: &str,
        when_full: &str,
        full_timeout_s: Option<f64>,
        max_consumers: u32,
        max_attempts: u32,
        dead_letters: &str,
        quota: Option<u32>,
        wait: &str,
        writable: bool,
        timestamps: bool,
        fresh: bool,
        prefault: bool,
        mlock: bool,
        huge_pages: bool,
        numa: Option<&Bound<'_, PyAny>>,
        directory: Option<PathBuf>,
        label: Option<&str>,
    ) -> PyResult<Self> {
        let full_timeout = seconds("full_timeout_s", full_timeout_s)?;
        let mut options = forebay::Producer::options(ring)
            .slots(slots)
            .kind(kind.parse().map_err(value_error)?)
            .backing(backing.parse().map_err(value_error)?)
            .when_full(when_full.parse().map_err(value_error)?)
            .full_timeout(full_timeout)
            .max_consumers(max_consumers)
            .max_attempts(max_attempts)
            .dead_letters(dead_letters.parse().map_err(value_error)?)
            .wait(wait.parse().map_err(value_error)?)
            .writable(writable)
            .timestamps(timestamps)
            .fresh(fresh)
            .prefault(prefault)
            .mlock(mlock)
            .huge_pages(huge_pages);
        let arguments = PyDict::new(py);
        for (name, value) in [("slots", slots), ("max_consumers", max_consumers), ("max_attempts", max_attempts)] {
            arguments.set_item(name, value)?;
        }
        let names = [
            ("kind", kind),
            ("backing", backing),
            ("when_full", when_full),
            ("dead_letters", dead_letters),
            ("wait", wait),
        ];
        for (name, value) in names {
            arguments.set_item(name, value)?;
        }
        let flags = [
            ("writable", writable),
            ("timestamps", timestamps),
            ("prefault", prefault),
            ("mlock", mlock),
            ("huge_pages", huge_pages),
        ];
        for (name, value) in flags {
            arguments.set_item(name, value)?;
        }
        arguments.set_item("schema", schema)?;
        arguments.set_item("slot_bytes", slot_bytes)?;
        arguments.set_item("classes", &classes)?;
        arguments.set_item("full_timeout_s", full_timeout_s)?;
        arguments.set_item("quota", quota)?;
        arguments.set_item("numa", numa)?;
        arguments.set_item("directory", &directory)?;
        arguments.set_item("label", label)?;
        if let Some(schema) = schema {
            options = options.schema(schema.get().0.clone());
        }
        if let Some(numa) = numa {
            options = options.numa(numa.str()?.to_str()?.parse().map_err(value_error)?);
        }
        if let Some(slot_bytes) = slot_bytes {
            options = options.slot_bytes(slot_bytes);
        }
        if let Some(classes) = classes {
            let classes: Vec<_> =
                classes.into_iter().map(|(slots, slot_bytes)| SlotClass { slots, slot_bytes }).collect();
            options = options.classes(&classes);
        }
        if let Some(quota) = quota {
            options = options.quota(quota);
        }
        if let Some(directory) = directory {
            options = options.dir(directory);
        }
        if let Some(label) = label {
            options = options.label(label);
        }
        let producer = py.detach(|| options.create()).map_err(|e| errors::create(py, e))?;
        let shared = Arc::new(Shared::new(ring, producer));
        lifecycle::register(&shared);
        let schema = schema.map(|schema| Arc::new(schema.get().0.clone()));
        Ok(Self { shared, arguments: arguments.unbind(), schema, full_timeout })
    }

    /// A slot to write a message into, without a copy.
    ///
    /// Args:
    ///     fields: field name to (dtype, shape).
    ///     timeout_s: seconds to wait for a slot when the ring is full; None: the producer's full_timeout_s; 0: do not
    ///         wait.
    /// Returns:
    ///     Loan
    /// Raises:
    ///     RingFull: no slot became free in time; says who holds them (a TimeoutError).
    ///     MessageTooLarge: it fits no slot, ever (a ValueError).
    ///     FieldsMismatch: not the schema's fields, dtypes, ranks or bounds (a ValueError).
    ///     OwnLoansOutstanding: all slots are on loan to this producer. Those that `send` copies into in other threads are
    ///         waited for.
    #[pyo3(signature = (fields, *, timeout_s = None))]
    fn loan(slf: &Bound<'_, Self>, fields: &Bound<'_, PyDict>, timeout_s: Option<f64>) -> PyResult<PyLoan> {
        let (py, own) = (slf.py(), slf.get());
        let mut read = Vec::with_capacity(fields.len());
        for (name, spec) in fields.iter() {
            let (dtype, shape) = spec.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
            let name = name.cast_into::<PyString>()?.to_str()?.to_owned();
            read.push((name, dtype::from_python(&dtype)?, schema::dims(&shape, false)?));
        }
        let specs: Vec<_> = read.iter().map(|(name, dtype, shape)| FieldSpec::new(name, *dtype, shape)).collect();
        let ((), loan) = own.detached_loan(py, &specs, own.timeout(timeout_s)?, || ())?;
        let names = read.into_iter().map(|(name, ..)| name).collect();
        Ok(PyLoan::new(slf.clone().unbind(), names, loan))
    }

    /// Copies arrays into a slot and publishes it.
    ///
    /// Args:
    ///     arrays: field name to array: NumPy, torch, JAX, bytes, anything with the buffer protocol or DLPack; contiguous
    ///         and in host memory.
    ///     correlation_id: a number that the receiver sees.
    ///     user: up to 256 bytes that the receiver sees.
    ///     timeout_s: as in loan.
    /// Returns:
    ///     its sequence, from 1.
    /// Raises:
    ///     ValueError: an array is not contiguous, not in host memory, or of a dtype that no ring carries; names the field.
    ///     As loan.
    #[pyo3(signature = (arrays, *, correlation_id = 0, user = None, timeout_s = None))]
    fn send(
        &self,
        py: Python<'_>,
        arrays: &Bound<'_, PyDict>,
        correlation_id: u64,
        user: Option<&[u8]>,
        timeout_s: Option<f64>,
    ) -> PyResult<u64> {
        self.check(py)?;
        let mut read = Vec::with_capacity(arrays.len());
        for (name, array) in arrays.iter() {
            let name = name.cast_into::<PyString>()?;
            let incoming = Incoming::read(name.to_str()?, &array)?;
            read.push((name, incoming));
        }
        let mut specs = Vec::with_capacity(read.len());
        for (name, incoming) in &read {
            specs.push(FieldSpec::new(name.to_str()?, incoming.dtype, &incoming.shape));
        }
        let timeout = self.timeout(timeout_s)?;
        if let Some(sent) = self.send_at_once(py, &read, &specs, correlation_id, user)? {
            return Ok(sent);
        }
        // In this order: the loan ends first.
        let (_copying, mut loan) = self.detached_loan(py, &specs, timeout, || self.shared.copies.begin())?;
        loan.set_correlation_id(correlation_id);
        if let Some(user) = user {
            loan.set_user(user).map_err(|e| errors::publish(py, e))?;
        }
        for (name, incoming) in &read {
            let name = name.to_str()?;
            let index = loan.index_of(name).map_err(|e| errors::tensor(py, e))?;
            let bytes = incoming.bytes();
            let fits = py.detach(|| loan::fill(&mut loan, index, bytes));
            if !fits {
                return Err(does_not_fit(name, bytes));
            }
        }
        self.publish_loan(py, loan)
    }

    /// Waits until `count` consumers are attached.
    ///
    /// Raises:
    ///     WaitTimeout: fewer came in time (a TimeoutError).
    #[pyo3(signature = (count = 1, timeout_s = None))]
    fn wait_for_consumers(&self, py: Python<'_>, count: usize, timeout_s: Option<f64>) -> PyResult<()> {
        let timeout = seconds("timeout_s", timeout_s)?;
        self.wait_until(py, timeout, |producer, left, stop| producer.wait_for_consumers_within(count, left, stop))
    }

    /// Waits until every message was finished with: acked and released, or a dead letter.
    ///
    /// Raises:
    ///     WaitTimeout: some were not in time (a TimeoutError).
    #[pyo3(signature = (timeout_s = None))]
    fn drain(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<()> {
        let timeout = seconds("timeout_s", timeout_s)?;
        self.wait_until(py, timeout, |producer, left, stop| producer.drain_within(left, stop))
    }

    /// The messages that were given up and not handed out yet, oldest first.
    ///
    /// Their slots are used again after the next call, when a loan finds no other, or at close: a producer that dies while
    /// it deals with letters loses none, its successor hands them out once more.
    ///
    /// Returns:
    ///     list of DeadLetter
    fn take_dead_letters(&self, py: Python<'_>) -> PyResult<Vec<DeadLetter>> {
        let letters = self.with(py, forebay::Producer::take_dead_letters)?;
        letters.iter().map(|letter| DeadLetter::of(py, letter)).collect()
    }

    /// What it counted.
    #[getter]
    fn stats(&self, py: Python<'_>) -> PyResult<ProducerStats> {
        self.with(py, |producer| ProducerStats::of(&producer.stats()))
    }

    /// What was taken over, if a dead producer left this ring; else None.
    #[getter]
    fn takeover(&self, py: Python<'_>) -> PyResult<Option<Takeover>> {
        let found = self.with(py, |producer| producer.takeover().cloned())?;
        Ok(found.map(|found| Takeover::of(py, &found)))
    }

    /// Wishes that could not be granted (huge pages, mlock), and why.
    #[getter]
    fn notes(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.with(py, |producer| producer.notes().to_vec())
    }

    /// Consumers attached now.
    #[getter]
    fn consumers(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |producer| producer.consumers())
    }

    /// The ring's name.
    #[getter]
    fn ring(&self) -> &str {
        &self.shared.ring
    }

    /// "queue" or "broadcast".
    #[getter]
    fn kind(&self, py: Python<'_>) -> PyResult<&'static str> {
        self.with(py, |producer| producer.geometry().kind.name())
    }

    /// The ring's Schema, None if it has none.
    #[getter]
    fn schema(&self, py: Python<'_>) -> PyResult<Option<PySchema>> {
        self.with(py, |producer| producer.schema().cloned().map(PySchema))
    }

    /// (start, end) addresses of the mapped slots.
    #[getter]
    fn data_range(&self, py: Python<'_>) -> PyResult<(usize, usize)> {
        let range = self.with(py, |producer| producer.data_range())?;
        Ok((range.start, range.end))
    }

    /// Closes the ring: nothing more is published; consumers receive what is there. Closing twice is fine; in a forked
    /// child it does nothing.
    fn close(&self, py: Python<'_>) {
        if self.shared.birth.is_here() {
            py.detach(|| self.shared.close());
        }
    }

    /// Closes the ring and removes it, with whatever nobody has received.
    fn discard(&self, py: Python<'_>) -> PyResult<()> {
        self.check(py)?;
        let taken = py.detach(|| self.shared.take()).ok_or_else(|| self.closed(py))?;
        py.detach(|| taken.discard());
        Ok(())
    }

    /// Closes the ring and keeps it for a successor, which finds the last message's user data in `takeover` (posix).
    fn suspend(&self, py: Python<'_>) -> PyResult<()> {
        self.check(py)?;
        let taken = py.detach(|| self.shared.take()).ok_or_else(|| self.closed(py))?;
        py.detach(|| taken.suspend());
        Ok(())
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
        let state = if self.shared.is_closing() { ", closed" } else { "" };
        format!("<forebay.Producer {:?}{state}>", self.shared.ring)
    }
}

impl Drop for PyProducer {
    fn drop(&mut self) {
        if self.shared.birth.is_here() {
            self.shared.close();
        }
    }
}
