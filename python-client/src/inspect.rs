//! `list_rings`: looking at the rings of a directory from outside.

use std::path::PathBuf;

use pyo3::{prelude::*, types::PyDict};

use crate::errors;

/// A slot that a consumer holds.
#[pyclass(frozen, get_all, module = "forebay")]
#[derive(Debug)]
pub(crate) struct HeldSlot {
    /// The slot.
    slot: u32,
    /// Sequence of the message in it.
    sequence: u64,
    /// Seconds since it was taken.
    age_s: f64,
    /// Whether the message was acked: only its memory is still held.
    acked: bool,
}

/// A consumer of a ring, as seen from outside.
#[pyclass(frozen, get_all, module = "forebay")]
#[derive(Debug)]
pub(crate) struct ConsumerReport {
    /// Its place in the ring.
    index: u8,
    /// Whether a living process holds that place.
    alive: bool,
    /// "joining", "active", "leaving" or "empty".
    state: &'static str,
    /// Its pid in its own namespace.
    pid: u32,
    /// What it calls itself.
    label: String,
    /// Messages received.
    received: u64,
    /// What it holds.
    held: Py<PyAny>,
}

#[pymethods]
impl ConsumerReport {
    fn __repr__(&self) -> String {
        format!("<forebay.ConsumerReport {} pid {} {}>", self.index, self.pid, self.state)
    }
}

/// A ring, as far as it could be looked at. All of it may be stale at once.
#[pyclass(frozen, get_all, module = "forebay")]
#[derive(Debug)]
pub(crate) struct RingReport {
    /// Its name.
    name: String,
    /// Whether a living process holds the ring's name.
    alive: bool,
    /// The producer's pid in its own namespace, 0 if unknown.
    pid: u32,
    /// What the producer calls itself.
    label: String,
    /// Why what follows cannot be told (it is then None, 0 or empty), else None.
    problem: Option<String>,
    /// "queue" or "broadcast".
    kind: Option<&'static str>,
    /// "posix" or "memfd".
    backing: Option<&'static str>,
    /// The schema, as text; None if each message names its own fields.
    schema: Option<String>,
    /// "open", "closed" or "replaced".
    state: Option<String>,
    /// The producer's life number.
    epoch: u64,
    /// Slots by what they are: "free", "writing", "full", "claimed", "acked", "done", "dead", "unreadable".
    slots: Py<PyDict>,
    /// Messages published and taken by nobody; on broadcast, that some consumer has not read.
    depth: u64,
    /// Messages published, by all producers this ring had.
    published: u64,
    /// Messages dropped.
    dropped: u64,
    /// Messages that became dead letters.
    dead_letters: u64,
    /// Payload bytes published.
    bytes: u64,
    /// Bytes of shared memory, all objects together.
    memory_bytes: u64,
    /// The NUMA node that the slots lie on, if the producer was asked for one.
    numa_node: Option<u32>,
    /// Who is attached, or died and was not mended yet.
    consumers: Py<PyAny>,
}

#[pymethods]
impl RingReport {
    fn __repr__(&self) -> String {
        let life = if self.alive { "alive" } else { "dead" };
        format!("<forebay.RingReport {:?} {life}, {} published, {} wait>", self.name, self.published, self.depth)
    }
}

fn consumer(py: Python<'_>, of: &forebay::inspect::ConsumerReport) -> PyResult<Py<ConsumerReport>> {
    let held: PyResult<Vec<_>> = of
        .held
        .iter()
        .map(|held| {
            let age_s = held.since.as_secs_f64();
            Py::new(py, HeldSlot { slot: held.slot, sequence: held.sequence, age_s, acked: held.acked })
        })
        .collect();
    let report = ConsumerReport {
        index: of.index,
        alive: of.alive,
        state: of.state,
        pid: of.pid,
        label: of.label.clone(),
        received: of.received,
        held: held?.into_pyobject(py)?.unbind(),
    };
    Py::new(py, report)
}

fn report(py: Python<'_>, of: &forebay::inspect::RingReport) -> PyResult<RingReport> {
    let slots = PyDict::new(py);
    let view = of.view.as_ref().ok();
    if let Some(view) = view {
        let counts = &view.slots;
        let named = [
            ("free", counts.free),
            ("writing", counts.writing),
            ("full", counts.full),
            ("claimed", counts.claimed),
            ("acked", counts.acked),
            ("done", counts.done),
            ("dead", counts.dead),
            ("unreadable", counts.unreadable),
        ];
        for (name, count) in named {
            slots.set_item(name, count)?;
        }
    }
    let consumers = view.map_or(&[][..], |view| &view.consumers);
    let consumers: PyResult<Vec<_>> = consumers.iter().map(|of| consumer(py, of)).collect();
    Ok(RingReport {
        name: of.name.clone(),
        alive: of.producer.alive,
        pid: of.producer.pid,
        label: of.producer.label.clone(),
        problem: of.view.as_ref().err().cloned(),
        kind: view.map(|view| view.kind.name()),
        backing: view.map(|view| view.backing.name()),
        schema: view.and_then(|view| view.schema.clone()),
        state: view.map(|view| view.state.to_string()),
        epoch: view.map_or(0, |view| view.epoch),
        slots: slots.unbind(),
        depth: view.map_or(0, |view| view.depth),
        published: view.map_or(0, |view| view.head.saturating_sub(1)),
        dropped: view.map_or(0, |view| view.dropped),
        dead_letters: view.map_or(0, |view| view.dead_letters),
        bytes: view.map_or(0, |view| view.bytes),
        memory_bytes: view.map_or(0, |view| view.memory_bytes),
        numa_node: view.and_then(|view| view.numa_node),
        consumers: consumers?.into_pyobject(py)?.unbind(),
    })
}

/// The rings of a directory, with or without a living producer, by name.
///
/// Args:
///     directory: None: $FOREBAY_DIR, else $XDG_RUNTIME_DIR/forebay, else /tmp/forebay-<uid>.
/// Returns:
///     list of RingReport
/// Raises:
///     SystemCallError: the directory cannot be used (an OSError).
#[pyfunction]
#[pyo3(signature = (directory = None))]
pub(crate) fn list_rings(py: Python<'_>, directory: Option<PathBuf>) -> PyResult<Vec<RingReport>> {
    let found = py.detach(|| forebay::inspect::list(directory.as_deref())).map_err(|e| errors::os(py, &e))?;
    found.iter().map(|of| report(py, of)).collect()
}
