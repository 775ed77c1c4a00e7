//! `ServiceServer`: the end that answers.

use std::{os::fd::RawFd, path::PathBuf, sync::Arc};

use forebay::{
    LoanError, RecvError, WaitPolicy,
    service::{DEFAULT_MAX_ITEMS, DetachedAnswer, ItemStatus, PartItem, Server, ServiceError, Timings},
};
use pyo3::{
    exceptions::PyIndexError,
    prelude::*,
    types::{PyDict, PyTuple},
};

use super::{
    Held,
    batch::{PyBatch, describe},
    outgoing::Outgoing,
    value_error,
};
use crate::{
    copying::{Copies, Copying},
    errors,
    lifecycle::{Close, Signals, seconds},
    patience::Patience,
};

/// Attaches to a service and answers its requests; `Worker` is the loop around it.
///
/// Waiting lets other threads run, and Ctrl-C ends it. Closing it (also by leaving `with`, by dropping it, or at the
/// interpreter's exit) ends the service for the client, after it read every answer.
///
/// Args:
///     service: its name.
///     directory: where the client listens; None: $FOREBAY_DIR, else $XDG_RUNTIME_DIR/forebay, else /tmp/forebay-<uid>.
///     timeout_s: seconds to wait for the client; None waits without end.
///     answer_slots: answers that may be under way at a time, those included that the client still reads.
///     answer_slot_bytes: bytes of the largest answer.
///     max_items: items of an answer that there is room for.
///     rank: this process's rank, if the service has several. Only rank 0 answers.
///     writable: map requests writable; the client must have made the service so.
///     wait: "adaptive", "spin" or "block".
///     label: what `forebay ls` calls it.
/// Raises:
///     RingNotFound: no client appeared in time (a TimeoutError and ConnectionError).
///     CreateError: the ring of answers cannot be made.
#[pyclass(frozen, weakref, name = "ServiceServer", module = "forebay")]
#[derive(Debug)]
pub(crate) struct PyServiceServer {
    held: Arc<Held<Server>>,
    rank: u32,
    ranks: u32,
    /// Slots that answers are copied into.
    copies: Copies,
}

const fn is_own_loans<R>(found: &Result<R, ServiceError>) -> bool {
    matches!(found, Err(ServiceError::Loan(LoanError::OwnLoans { .. })))
}

impl PyServiceServer {
    /// Waits, detached, for what takes a slot of the answers' ring, until the client let go of enough. What other threads
    /// copy into is published soon, too.
    fn wait_for_slot<R: Send>(
        &self,
        py: Python<'_>,
        make: impl Fn(&mut Server, &mut dyn FnMut() -> bool) -> Result<R, ServiceError> + Send + Sync,
    ) -> PyResult<R> {
        self.held.wait(py, None, |server, _, stop| {
            let mut made = make(server, stop);
            if is_own_loans(&made) {
                if self.copies.under_way() {
                    return Ok(None);
                }
                made = make(server, stop);
            }
            match made {
                Ok(made) => Ok(Some(made)),
                Err(ServiceError::Interrupted { .. }) => Ok(None),
                Err(e) => Err(e),
            }
        })
    }

    /// A slot of the answers' ring: at once if there is one, else waited for.
    fn loan(
        &self,
        py: Python<'_>,
        make: impl Fn(&mut Server, &mut dyn FnMut() -> bool) -> Result<DetachedAnswer, ServiceError> + Send + Sync,
    ) -> PyResult<(Copying<'_>, DetachedAnswer)> {
        self.held.check(py)?;
        let make = |server: &mut Server, stop: &mut dyn FnMut() -> bool| {
            make(server, stop).map(|answer| (self.copies.begin(), answer))
        };
        let at_once =
            self.held.inner.try_lock().map(|mut guard| guard.as_mut().map(|inner| make(&mut inner.end, &mut || true)));
        match at_once {
            None | Some(Some(Err(ServiceError::Interrupted { .. }))) => {}
            Some(Some(found)) if is_own_loans(&found) => {}
            Some(Some(found)) => return found.map_err(|e| errors::service(py, e)),
            Some(None) => return Err(self.held.closed(py)),
        }
        self.wait_for_slot(py, make)
    }

    fn send(
        &self,
        py: Python<'_>,
        fields: &Outgoing<'_>,
        timings: Timings,
        statuses: &[(usize, ItemStatus, String)],
        begin: impl for<'s> Fn(
            &'s mut Server,
            &mut dyn FnMut() -> bool,
        ) -> Result<forebay::service::AnswerLoan<'s>, ServiceError>
        + Send
        + Sync,
    ) -> PyResult<()> {
        // In this order: the answer ends first.
        let (_copying, answer) = self.loan(py, |server, stop| {
            let mut loan = begin(server, stop)?;
            loan.set_timings(timings);
            for (index, status, text) in statuses {
                loan.set_status(*index, *status, text);
            }
            Ok(loan.detach())
        })?;
        let answer = fields.write(py, answer)?;
        self.held.call(py, |server| server.publish(answer))
    }
}

fn part_items(batch: &PyBatch) -> Vec<PartItem> {
    batch.own_items().iter().map(|item| PartItem::last(item.id)).collect()
}

#[pymethods]
impl PyServiceServer {
    #[new]
    #[pyo3(signature = (service, *, directory = None, timeout_s = Some(10.0), answer_slots = 8, answer_slot_bytes = 1 << 20,
        max_items = DEFAULT_MAX_ITEMS, rank = 0, writable = false, wait = "adaptive", label = None),
        text_signature = "(service, *, directory=None, timeout_s=10.0, answer_slots=8, answer_slot_bytes=1048576, \
        max_items=1024, rank=0, writable=False, wait='adaptive', label=None)")]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python constructor")]
    fn new(
        py: Python<'_>,
        service: &str,
        directory: Option<PathBuf>,
        timeout_s: Option<f64>,
        answer_slots: u32,
        answer_slot_bytes: u64,
        max_items: u32,
        rank: u32,
        writable: bool,
        wait: &str,
        label: Option<&str>,
    ) -> PyResult<Self> {
        let wait: WaitPolicy = wait.parse().map_err(value_error)?;
        let mut options = Server::options(service)
            .timeout(seconds("timeout_s", timeout_s)?)
            .answer_slots(answer_slots)
            .answer_slot_bytes(answer_slot_bytes)
            .max_items(max_items)
            .rank(rank)
            .writable(writable)
            .wait(wait);
        if let Some(directory) = directory {
            options = options.dir(directory);
        }
        if let Some(label) = label {
            options = options.label(label);
        }
        let mut signals = Signals::default();
        let found = py.detach(|| options.attach_within(&mut || signals.raised()));
        let server = match (found, signals.into_error()) {
            (_, Some(raised)) => return Err(raised),
            (Err(e), None) => return Err(errors::service(py, e)),
            (Ok(None), None) => return Err(errors::closed(py, "server", service)),
            (Ok(Some(server)), None) => server,
        };
        let ranks = server.ranks();
        let held = Held::new(service, "server", server, Patience::new(wait));
        Ok(Self { held, rank, ranks, copies: Copies::default() })
    }

    /// Tells the client that this server is warmed up.
    ///
    /// Args:
    ///     text: a short text for people, such as the framework's name and version.
    #[pyo3(signature = (text = ""))]
    fn ready(&self, py: Python<'_>, text: &str) -> PyResult<()> {
        self.wait_for_slot(py, |server, stop| server.ready_within(text, stop))
    }

    /// Waits for the next request.
    ///
    /// Args:
    ///     timeout_s: seconds to wait; None waits without end, 0 only looks.
    /// Returns:
    ///     Batch. Answer it once: with answer, fail, or part for each of its items.
    /// Raises:
    ///     ReceiveTimeout: nothing came in time; calling again is fine (a TimeoutError).
    ///     ServiceClosed: the client drained or left, and everything it asked was received.
    ///     PeerDied: the client died.
    #[pyo3(signature = (timeout_s = None))]
    fn recv(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<PyBatch> {
        let timeout = seconds("timeout_s", timeout_s)?;
        let request = self.held.receive(
            py,
            timeout,
            |server, left, stop| match server.recv_interruptible(left, stop) {
                // What is held here may be let go of by another thread, or by the collector.
                Err(ServiceError::Recv(RecvError::Quota { .. })) if left.is_none() => Ok(None),
                found => found,
            },
            Server::try_recv,
        )?;
        Ok(PyBatch::new(request, self.ranks > 1))
    }

    /// The next request if there is one now, else None. Does not wait.
    ///
    /// Raises:
    ///     As recv, but for ReceiveTimeout.
    fn try_recv(&self, py: Python<'_>) -> PyResult<Option<PyBatch>> {
        let found = self.held.call(py, Server::try_recv)?;
        Ok(found.map(|request| PyBatch::new(request, self.ranks > 1)))
    }

    /// Answers a batch, or the rows of one that `Batch.rows` gave.
    ///
    /// Each array is copied once, into the slot that the client reads.
    ///
    /// Args:
    ///     fields: field name to array, with a row for each item: torch (any strides, any device), NumPy, Tensor, anything
    ///         with the buffer protocol or DLPack, or a list of numbers.
    ///     started_ns, ended_ns: when it was computed (`time.monotonic_ns()`); 0: not said.
    /// Raises:
    ///     FieldsMismatch: an array has not a row for each item (a ValueError).
    ///     MessageTooLarge: they do not fit a slot; names both sizes (a ValueError).
    ///     ServiceError: the batch is answered already.
    ///     PeerDied, ServiceClosed: the client is gone.
    #[pyo3(signature = (batch, fields, *, started_ns = 0, ended_ns = 0))]
    fn answer(
        &self,
        py: Python<'_>,
        batch: &Bound<'_, PyBatch>,
        fields: &Bound<'_, PyDict>,
        started_ns: u64,
        ended_ns: u64,
    ) -> PyResult<()> {
        let batch = batch.get();
        let fields = Outgoing::read(fields)?;
        let specs = fields.specs()?;
        let timings = Timings { start_ns: started_ns, end_ns: ended_ns };
        let failures = batch.failures();
        if batch.is_whole() {
            self.send(py, &fields, timings, &failures, |server, stop| {
                server.answer_within(&batch.request, &specs, stop)
            })
        } else {
            let items = part_items(batch);
            self.send(py, &fields, timings, &failures, |server, stop| server.part_within(&items, &specs, stop))
        }
    }

    /// Sends rows of some items, perhaps of several batches.
    ///
    /// Args:
    ///     items: (id, last) for each row; after a last one nothing more comes for that item.
    ///     fields: as in answer, with a row for each of `items`; may be empty.
    ///     errors: place in `items` to exception or text: those items failed.
    ///     cancelled: places in `items` that were given up because nobody wants them.
    ///     started_ns, ended_ns: as in answer.
    /// Raises:
    ///     ServiceError: an item is not open.
    ///     IndexError: `errors` or `cancelled` name a place that is not in `items`. Nothing is sent.
    ///     As answer.
    #[pyo3(signature = (items, fields, *, errors = None, cancelled = None, started_ns = 0, ended_ns = 0))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python method")]
    fn part(
        &self,
        py: Python<'_>,
        items: Vec<(u64, bool)>,
        fields: &Bound<'_, PyDict>,
        errors: Option<&Bound<'_, PyDict>>,
        cancelled: Option<Vec<usize>>,
        started_ns: u64,
        ended_ns: u64,
    ) -> PyResult<()> {
        let items: Vec<_> = items.into_iter().map(|(id, last)| PartItem { id, last }).collect();
        let fields = Outgoing::read(fields)?;
        let specs = fields.specs()?;
        let mut statuses = Vec::new();
        for (index, error) in errors.into_iter().flat_map(|errors| errors.iter()) {
            let (kind, text) = describe(&error)?;
            statuses.push((index.extract::<usize>()?, ItemStatus::Error, format!("{kind}: {text}")));
        }
        statuses.extend(cancelled.unwrap_or_default().into_iter().map(|i| (i, ItemStatus::Cancelled, String::new())));
        // Perhaps an item's id in the place of its place: it would go out as if all were well.
        if let Some((index, ..)) = statuses.iter().find(|(index, ..)| *index >= items.len()) {
            return Err(PyIndexError::new_err(format!("there is no item {index}, {} are given", items.len())));
        }
        let timings = Timings { start_ns: started_ns, end_ns: ended_ns };
        self.send(py, &fields, timings, &statuses, |server, stop| server.part_within(&items, &specs, stop))
    }

    /// Says that a batch failed: as a whole, or the rows of one that `Batch.rows` gave.
    ///
    /// Args:
    ///     error: the exception, or a text, or a kind and a text.
    fn fail(&self, py: Python<'_>, batch: &Bound<'_, PyBatch>, error: &Bound<'_, PyAny>) -> PyResult<()> {
        let batch = batch.get();
        let (kind, text) = describe(error)?;
        if batch.is_whole() {
            return self.wait_for_slot(py, |server, stop| server.fail_within(&batch.request, &kind, &text, stop));
        }
        let text = format!("{kind}: {text}");
        let statuses: Vec<_> = (0..batch.len()).map(|index| (index, ItemStatus::Error, text.clone())).collect();
        let (items, fields) = (part_items(batch), Outgoing::read(&PyDict::new(py))?);
        self.send(py, &fields, Timings::default(), &statuses, |server, stop| server.part_within(&items, &[], stop))
    }

    /// Gives a batch, or the rows of one, up because nobody wants it: each item is answered as cancelled.
    fn give_up(&self, py: Python<'_>, batch: &Bound<'_, PyBatch>) -> PyResult<()> {
        let batch = batch.get();
        let statuses: Vec<_> = (0..batch.len()).map(|index| (index, ItemStatus::Cancelled, String::new())).collect();
        let (items, fields) = (part_items(batch), Outgoing::read(&PyDict::new(py))?);
        self.send(py, &fields, Timings::default(), &statuses, |server, stop| server.part_within(&items, &[], stop))
    }

    /// Is through with a batch without answering it: for ranks other than 0.
    fn finish(&self, py: Python<'_>, batch: &Bound<'_, PyBatch>) -> PyResult<()> {
        let batch = batch.get();
        self.held.with(py, |server| server.finish(&batch.request))
    }

    /// Whether nobody wants this item of a request any more. With several ranks only rank 0 hears of it, and must tell the
    /// others.
    fn is_cancelled(&self, py: Python<'_>, request: u64, item: u64) -> PyResult<bool> {
        self.held.with(py, |server| server.is_cancelled(request, item))
    }

    /// The items that were received, are not answered and that nobody wants any more: (request, item), in no order, some
    /// perhaps twice. With several ranks as is_cancelled.
    fn cancelled(&self, py: Python<'_>) -> PyResult<Vec<(u64, u64)>> {
        self.held.with(py, |server| server.cancelled())
    }

    /// Requests that were received and are not answered yet.
    #[getter]
    fn outstanding(&self, py: Python<'_>) -> PyResult<usize> {
        self.held.with(py, |server| server.outstanding())
    }

    /// (slots of requests that are still held here, all slots).
    #[getter]
    fn held(&self, py: Python<'_>) -> PyResult<(usize, usize)> {
        self.held.with(py, |server| server.held())
    }

    /// A descriptor that is readable when `try_recv` should be called; do not close it.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.held.call(py, Server::fileno)
    }

    /// The service's name.
    #[getter]
    fn service(&self) -> &str {
        &self.held.name
    }

    /// This process's rank, from 0.
    #[getter]
    fn rank(&self) -> u32 {
        self.rank
    }

    /// How many ranks there are.
    #[getter]
    fn ranks(&self) -> u32 {
        self.ranks
    }

    /// Ends the service for the client, after it read every answer. Closing twice is fine; in a forked child it does
    /// nothing.
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
        format!("<forebay.ServiceServer {:?}, rank {} of {}{state}>", self.held.name, self.rank, self.ranks)
    }
}

impl Drop for PyServiceServer {
    fn drop(&mut self) {
        if self.held.birth.is_here() {
            self.held.close();
        }
    }
}
