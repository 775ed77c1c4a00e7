//! Work with the interpreter released, on the threads asked for, that Ctrl-C ends.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use forebay_ingest::Work;
use pyo3::prelude::*;

use crate::pools::Threads;

/// How often signals are looked for. Each time waits for the interpreter, which another thread may hold for 5 ms.
const LOOK_EVERY: Duration = Duration::from_millis(40);

/// Runs `work` without the interpreter. `threads`: None for one a core, 1 for the calling thread.
///
/// The outer error is what a signal handler raised; the work is then unfinished.
pub(crate) fn released<R: Send, E: Send>(
    py: Python<'_>,
    threads: Option<usize>,
    work: impl FnOnce(&Work<'_>) -> Result<R, E> + Send,
) -> PyResult<Result<R, E>> {
    let threads = match threads {
        // Not started before there is enough to do.
        None => None,
        Some(_) => Some(Threads::of(threads)?),
    };
    py.detach(move || {
        let where_to = match threads.as_ref().map(Threads::pool) {
            None => Work::shared(),
            Some(None) => Work::here(),
            Some(Some(pool)) => Work::on(pool),
        };
        let raised = RefCell::new(None);
        let looked = Cell::new(Instant::now());
        let stop = || {
            if looked.get().elapsed() < LOOK_EVERY {
                return false;
            }
            let signal = Python::attach(|py| py.check_signals()).err();
            looked.set(Instant::now());
            let stop = signal.is_some();
            if stop {
                // Nothing else is put here: another part of the work may ask once more.
                raised.replace(signal);
            }
            stop
        };
        let done = work(&where_to.stop_when(&stop));
        match raised.into_inner() {
            Some(signal) => Err(signal),
            None => Ok(done),
        }
    })
}
