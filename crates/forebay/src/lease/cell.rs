//! What a consumer knows of a slot that it holds: how many handles there are, what is to happen at the end, and what the
//! message in it says of itself. One cell per slot, used again without allocation: a consumer holds a slot at most once.
//!
//! May: hand out a cell's description to whoever has a handle. May not: change it while there is one; only
//! [`LeaseCell::begin`] does, which the consumer alone calls.

#![allow(
    unsafe_code,
    reason = "a description is written in place and read by every handle; each block argues why it may"
)]

use std::{
    cell::UnsafeCell,
    sync::atomic::{AtomicU8, AtomicU64, Ordering, fence},
};

use forebay_layout::entry::ENTRY_WORDS;
use forebay_ring::Claim;

use super::{Outcome, description::Description};

/// The state of one slot, as its holder sees it.
pub(super) struct LeaseCell {
    /// Handles: the program's in the lower half, in the upper one those that are kept for a device. One word, so that
    /// "the program has none" is never half true.
    refs: AtomicU64,
    pub(super) outcome: AtomicU8,
    /// Queue: the slot word as the claim left it. Broadcast: the generation, in the upper half.
    pub(super) word: AtomicU64,
    pub(super) sequence: AtomicU64,
    /// The size class of the slot, which never changes.
    pub(super) class: u8,
    description: UnsafeCell<Description>,
}

// SAFETY: everything but the description is atomic or constant. The description is written by `begin` alone, while there
// is no handle, and read through handles alone; `begin` and `end` order the one before the other (see there).
unsafe impl Sync for LeaseCell {}

impl std::fmt::Debug for LeaseCell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeaseCell").field("refs", &self.refs).field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

/// One handle that is kept for a device.
#[cfg(feature = "cuda")]
const FOR_DEVICE: u64 = 1 << 32;

/// How many handles there are to a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handles(u64);

impl Handles {
    /// The lease is over.
    pub(crate) fn is_none(self) -> bool {
        self.0 == 0
    }

    /// There is one, and the program has it.
    pub(crate) fn is_one(self) -> bool {
        self.0 == 1
    }

    /// The program's.
    #[cfg(feature = "cuda")]
    pub(crate) fn of_the_program(self) -> u32 {
        self.0 as u32
    }
}

impl LeaseCell {
    pub(super) fn new(class: u8) -> Self {
        Self {
            refs: AtomicU64::new(0),
            outcome: AtomicU8::new(0),
            word: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
            class,
            description: UnsafeCell::default(),
        }
    }

    /// Whether there are handles to a lease on the slot.
    pub(super) fn is_held(&self) -> bool {
        // ORDER Acquire: pairs with the Release of the last handle's end: what it read of the description is read before
        // the next lease writes there, whatever the peers' words say.
        self.refs.load(Ordering::Acquire) > 0
    }

    /// How many handles there are.
    pub(super) fn handles(&self) -> Handles {
        // ORDER Acquire: a handle that ended elsewhere has ended its reads if it is not counted here.
        Handles(self.refs.load(Ordering::Acquire))
    }

    /// Where the position entry of the next message in the slot goes.
    ///
    /// # Safety
    /// As [`begin`](Self::begin), until the answer is used no more.
    #[expect(clippy::mut_from_ref, reason = "exclusive by what the caller promises")]
    pub(super) unsafe fn room(&self) -> &mut [u64; ENTRY_WORDS] {
        // SAFETY: there is no handle, so nobody reads; nobody else is in here, so nobody writes. The reads of the last
        // handle are over by `is_held`.
        unsafe { &mut *self.description.get() }.room()
    }

    /// Begins a lease with one handle. `describe` writes what the message says.
    ///
    /// # Safety
    /// No other thread is in here for this cell, and nobody has a handle ([`is_held`](Self::is_held) said so).
    pub(super) unsafe fn begin<R>(
        &self,
        claim: &Claim,
        word: u64,
        outcome: Outcome,
        describe: impl FnOnce(&mut Description) -> R,
    ) -> R {
        // SAFETY: there is no handle, so nobody reads; nobody else is in here, so nobody writes. The reads of the last
        // handle are over by `is_held`.
        let described = describe(unsafe { &mut *self.description.get() });
        // ORDER none, Relaxed: the cell is nobody's between two leases on its slot; handles are passed on by means that
        // order these stores before their use.
        self.outcome.store(outcome as u8, Ordering::Relaxed);
        self.word.store(word, Ordering::Relaxed);
        self.sequence.store(claim.sequence, Ordering::Relaxed);
        self.refs.store(1, Ordering::Relaxed);
        described
    }

    /// One handle more, made from one that there is.
    pub(super) fn share(&self) {
        // ORDER none, Relaxed: as `Arc`: the handle it is made from keeps the lease.
        self.refs.fetch_add(1, Ordering::Relaxed);
    }

    /// One handle more that is kept for a device, made from one that there is.
    #[cfg(feature = "cuda")]
    pub(super) fn share_for_device(&self) {
        // ORDER none, Relaxed: as `share`.
        self.refs.fetch_add(FOR_DEVICE, Ordering::Relaxed);
    }

    /// One handle of the program less. Which are left: if none, the slot may be given up.
    pub(super) fn end(&self) -> Handles {
        self.less(1)
    }

    /// One handle less that was kept for a device; as [`end`](Self::end).
    #[cfg(feature = "cuda")]
    pub(super) fn end_for_device(&self) -> Handles {
        self.less(FOR_DEVICE)
    }

    fn less(&self, one: u64) -> Handles {
        // ORDER Acquire: what handles that ended before read of the slot is read. A handle that finds itself the only one
        // stays it: there is no other to make one from. So no exchange is needed.
        if self.refs.load(Ordering::Acquire) == one {
            // ORDER Release: what was read through handles is read before the cell is seen free.
            self.refs.store(0, Ordering::Release);
            return Handles(0);
        }
        // ORDER as `Arc`, Release then Acquire: all handles' reads are over before the slot is given up.
        let left = self.refs.fetch_sub(one, Ordering::Release).wrapping_sub(one);
        if left == 0 {
            fence(Ordering::Acquire);
        }
        Handles(left)
    }

    /// What the message says of itself.
    ///
    /// # Safety
    /// The caller has a handle, and keeps it as long as it uses the answer.
    pub(super) unsafe fn description(&self) -> &Description {
        // SAFETY: while there is a handle nobody writes here; `begin` wrote before it made the first one.
        unsafe { &*self.description.get() }
    }
}
