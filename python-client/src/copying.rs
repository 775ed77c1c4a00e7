//! Slots on loan that a call copies into: another call that finds no slot waits for them, since they are published soon,
//! instead of failing because all slots are its own process's.

use std::sync::atomic::{AtomicU32, Ordering};

/// How many there are. Raised while the producer is locked, so whoever finds a slot on loan there finds it counted, too.
#[derive(Debug, Default)]
pub(crate) struct Copies(AtomicU32);

impl Copies {
    /// One more; the caller has the producer locked.
    pub(crate) fn begin(&self) -> Copying<'_> {
        // ORDER none, Relaxed: who raises it and who asks hold the mutex.
        self.0.fetch_add(1, Ordering::Relaxed);
        Copying(&self.0)
    }

    /// Whether there are any; the caller has the producer locked.
    pub(crate) fn under_way(&self) -> bool {
        // ORDER Acquire, with Copying's Release: of a slot whose copying ended, it is seen next that it is free.
        self.0.load(Ordering::Acquire) > 0
    }
}

/// Counts a slot while it lives: until that is published, or given back.
#[derive(Debug)]
#[must_use]
pub(crate) struct Copying<'a>(&'a AtomicU32);

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        // ORDER Release, with the Acquire of who asks: the slot was published or given back before.
        self.0.fetch_sub(1, Ordering::Release);
    }
}
