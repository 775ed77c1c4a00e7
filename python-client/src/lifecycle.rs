//! What the interpreter does to us: it forks, it exits, it has signals to deliver.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use pyo3::{exceptions::PyValueError, prelude::*};

/// Forks of this process tree that made this process. The crate `forebay` notices a fork itself; this is looked at before
/// taking a lock that a thread of the parent may have held.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// The process that made an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Birth(u32);

impl Birth {
    pub(crate) fn here() -> Self {
        // ORDER none, Relaxed: written only by the one thread of a fresh child.
        Self(FORKS.load(Ordering::Relaxed))
    }

    pub(crate) fn is_here(self) -> bool {
        self == Self::here()
    }
}

/// Called by Python in a forked child.
#[pyfunction(name = "_after_fork_in_child")]
pub(crate) fn after_fork_in_child() {
    // ORDER none, Relaxed: the child has one thread.
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Something that is closed when the interpreter exits, so that what is not acked goes back at once.
pub(crate) trait Close: Send + Sync {
    fn close(&self);
}

static OPEN: Mutex<Vec<(Birth, Weak<dyn Close>)>> = Mutex::new(Vec::new());

/// Registers an object to be closed at exit.
pub(crate) fn register<T: Close + 'static>(object: &Arc<T>) {
    let object: Weak<T> = Arc::downgrade(object);
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    open.retain(|(_, other)| other.strong_count() > 0);
    open.push((Birth::here(), object));
}

/// Called by Python when the interpreter exits.
#[pyfunction(name = "_close_everything")]
pub(crate) fn close_everything(py: Python<'_>) {
    py.detach(|| {
        let open = std::mem::take(&mut *OPEN.lock().unwrap_or_else(PoisonError::into_inner));
        for object in open.iter().filter(|(birth, _)| birth.is_here()).filter_map(|(_, object)| object.upgrade()) {
            object.close();
        }
        forebay::cuda::process_ends();
    });
}

/// Asks the interpreter for pending signals while it is detached; keeps what their handlers raised.
#[derive(Debug, Default)]
pub(crate) struct Signals(Option<PyErr>);

impl Signals {
    /// True if a handler raised, or there is no interpreter to ask any more: it is being finalized.
    pub(crate) fn raised(&mut self) -> bool {
        match Python::try_attach(|py| py.check_signals()) {
            Some(Ok(())) => self.0.is_some(),
            Some(Err(e)) => {
                self.0 = Some(e);
                true
            }
            None => true,
        }
    }

    pub(crate) fn into_error(self) -> Option<PyErr> {
        self.0
    }
}

/// Reads seconds; `None` and infinity mean no limit.
pub(crate) fn seconds(name: &str, value: Option<f64>) -> PyResult<Option<Duration>> {
    match value {
        None | Some(f64::INFINITY) => Ok(None),
        Some(value) => Duration::try_from_secs_f64(value)
            .map(Some)
            .map_err(|_| PyValueError::new_err(format!("{name} is {value}, expected seconds, 0 or more, or None"))),
    }
}
