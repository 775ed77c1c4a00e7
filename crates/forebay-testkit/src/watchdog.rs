//! No test waits without end: every wait is for an event, and ends in a panic that says which one did not come.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// Longer than any event takes on a busy machine. No test asserts that something is faster than this.
pub const WATCHDOG: Duration = Duration::from_secs(20);

/// Runs `work` on a thread of its own and returns what it returned; panics if that takes longer than [`WATCHDOG`].
///
/// # Panics
/// It took too long, or `work` panicked.
pub fn within<R: Send + 'static>(what: &str, work: impl FnOnce() -> R + Send + 'static) -> R {
    let (done, wait) = mpsc::channel();
    let worker = thread::spawn(move || {
        // A receiver that is gone has panicked already.
        let _ = done.send(work());
    });
    match wait.recv_timeout(WATCHDOG) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Disconnected) => match worker.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("a worker that ends without panicking has sent its result"),
        },
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what} did not happen within {WATCHDOG:?}"),
    }
}

/// Asks again and again until `event` says yes.
///
/// # Panics
/// It did not within [`WATCHDOG`].
pub fn until(what: &str, mut event: impl FnMut() -> bool) {
    let start = Instant::now();
    while !event() {
        assert!(start.elapsed() < WATCHDOG, "{what} did not happen within {WATCHDOG:?}");
        thread::sleep(Duration::from_millis(1));
    }
}
