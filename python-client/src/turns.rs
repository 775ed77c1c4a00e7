//! A mutex in which a thread may wait for long, as for a slot or a message: it lets go when others want what lies in it.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How long who gave way leaves it to others.
const NAP: Duration = Duration::from_millis(1);
/// Who has waited so long lets go at the first question: it slept, or spun, before it asked.
const SLICE: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(crate) struct Turns<T> {
    inner: Mutex<T>,
    /// Threads that want it while another one waits in it.
    wanted: AtomicU32,
}

impl<T> Turns<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self { inner: Mutex::new(inner), wanted: AtomicU32::new(0) }
    }

    /// If nobody has it.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.inner.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// As soon as whoever waits in it gives way. The calling thread must be detached.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        // ORDER none, Relaxed (also below): a request to hurry; the mutex orders what lies behind it.
        self.wanted.fetch_add(1, Ordering::Relaxed);
        let guard = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        self.wanted.fetch_sub(1, Ordering::Relaxed);
        guard
    }

    /// Waits in it, detached: asks `f` again and again, with the time that is left and a question that says when to let
    /// go, and lets others have it in between. `f` says `Ok(None)` when it was interrupted. `None`, if `over` says so.
    ///
    /// `over` may run code of the program that wants what lies in here, as a signal handler that closes it does: it is
    /// asked while nobody has it. So `f` lets go after each slice of its wait, and begins the next one anew.
    pub(crate) fn wait<R, E>(
        &self,
        timeout: Option<Duration>,
        over: &mut dyn FnMut() -> bool,
        mut f: impl FnMut(&mut T, Option<Duration>, &mut dyn FnMut() -> bool) -> Result<Option<R>, E>,
    ) -> Result<Option<R>, E> {
        let start = Instant::now();
        let mut guard = self.lock();
        loop {
            let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
            let began = Instant::now();
            let (mut asked, mut slept) = (false, false);
            let mut stop = || {
                // Who waits asks before it sleeps, and again after a slice or a signal.
                slept = asked || began.elapsed() >= SLICE;
                asked = true;
                slept || self.wanted.load(Ordering::Relaxed) > 0
            };
            match f(&mut guard, left, &mut stop) {
                Ok(None) => {}
                done => return done,
            }
            let wanted = self.wanted.load(Ordering::Relaxed) > 0;
            drop(guard);
            if wanted || !slept {
                // Whoever asked has it now. Not at once again, or two that wait would hurry each other without end.
                thread::sleep(NAP);
            }
            if over() {
                return Ok(None);
            }
            guard = self.lock();
        }
    }
}
