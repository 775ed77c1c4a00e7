//! Threads that end together: when one panics, or all take too long, every one of them does.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

/// Longer than any of these tests takes under a sanitizer on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(240);

/// Messages of one test; `FOREBAY_MESSAGES` says otherwise.
pub(crate) fn messages() -> u64 {
    std::env::var("FOREBAY_MESSAGES").ok().and_then(|text| text.parse().ok()).unwrap_or(4_000)
}

/// One test's threads.
pub(crate) struct Run {
    deadline: Instant,
    failed: AtomicBool,
    over: AtomicBool,
}

impl Run {
    pub(crate) fn new() -> Self {
        Self { deadline: Instant::now() + LIMIT, failed: AtomicBool::new(false), over: AtomicBool::new(false) }
    }

    /// For every round of every loop that waits for somebody else.
    pub(crate) fn wait(&self) {
        assert!(!self.failed.load(Relaxed), "another thread has failed");
        assert!(Instant::now() < self.deadline, "took longer than {LIMIT:?}");
        thread::yield_now();
    }

    /// Says that whatever was to be done is done.
    pub(crate) fn finish(&self) {
        self.over.store(true, Relaxed);
    }

    /// Whether it is.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Relaxed)
    }

    /// Runs `work`; if that panics, the others are told.
    pub(crate) fn work<R>(&self, work: impl FnOnce() -> R) -> R {
        struct Tell<'a>(&'a Run);
        impl Drop for Tell<'_> {
            fn drop(&mut self) {
                if thread::panicking() {
                    self.0.failed.store(true, Relaxed);
                }
            }
        }
        let _tell = Tell(self);
        work()
    }
}

/// Numbers that look random and are the same each time.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `limit`.
    pub(crate) fn roll(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % limit
    }
}
