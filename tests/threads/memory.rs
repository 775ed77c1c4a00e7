//! Memory of a ring that threads share: words, which are atomic, and payload, which is not.

use std::{
    cell::UnsafeCell,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use forebay_ring::Words;

/// How many accesses to words a process has left. One thread counts.
#[derive(Clone, Default)]
pub(crate) struct Life(Arc<AtomicU64>);

impl Life {
    /// It dies right before its access number `accesses`, from 0.
    pub(crate) fn ends_in(accesses: u64) -> Self {
        let life = Self::default();
        life.0.store(accesses + 1, Relaxed);
        life
    }

    /// Nothing it does from now on reaches the memory.
    pub(crate) fn is_over(&self) -> bool {
        self.0.load(Relaxed) == 1
    }

    fn access(&self) -> bool {
        // 0: for ever. Otherwise one more than what is left.
        match self.0.load(Relaxed) {
            0 => true,
            1 => false,
            left => {
                self.0.store(left - 1, Relaxed);
                true
            }
        }
    }
}

/// The words of one object as one process sees it. From its death on it goes on with a copy that nobody else has: what it
/// does then never happened.
#[derive(Clone)]
pub(crate) struct Memory {
    words: Arc<[AtomicU64]>,
    grave: Arc<OnceLock<Arc<[AtomicU64]>>>,
    life: Life,
}

impl Memory {
    pub(crate) fn bytes(bytes: u64) -> Self {
        let words = (0..bytes / 8).map(|_| AtomicU64::new(0)).collect();
        Self { words, grave: Arc::default(), life: Life::default() }
    }

    /// The same words, seen by a process with this life.
    pub(crate) fn of(&self, life: &Life) -> Self {
        Self { words: Arc::clone(&self.words), grave: Arc::default(), life: life.clone() }
    }
}

impl Words for Memory {
    fn word(&self, index: usize) -> &AtomicU64 {
        if self.life.access() {
            return &self.words[index];
        }
        let copy = || self.words.iter().map(|word| AtomicU64::new(word.load(Relaxed))).collect();
        &self.grave.get_or_init(copy)[index]
    }
}

/// Words of one slot's payload: two cache lines.
const WORDS: usize = 16;

/// The payload of every slot: plain memory, as in the product.
#[derive(Clone)]
pub(crate) struct Payload(Arc<[Slot]>);

struct Slot([UnsafeCell<u64>; WORDS]);

// SAFETY: the ring protocol gives a slot to one writer or to readers, never to both at a time. That this is so is what
// these tests are for; ThreadSanitizer watches it.
unsafe impl Sync for Slot {}

fn value(id: u64, word: usize) -> u64 {
    (id << 8 | word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Payload {
    pub(crate) fn new(slots: u32) -> Self {
        Self((0..slots).map(|_| Slot([0; WORDS].map(UnsafeCell::new))).collect())
    }

    /// Writes every word of message `id`. The caller has the slot on loan, or on lease on a writable ring.
    pub(crate) fn write(&self, slot: u32, id: u64) {
        for (word, cell) in self.0[slot as usize].0.iter().enumerate() {
            // SAFETY: the cell lives as long as `self`; nobody else has the slot (see `Slot`).
            unsafe { *cell.get() = value(id, word) };
        }
    }

    /// Checks every word of message `id`. The caller has a lease.
    pub(crate) fn check(&self, slot: u32, id: u64) {
        for (word, cell) in self.0[slot as usize].0.iter().enumerate() {
            // SAFETY: the cell lives as long as `self`; nobody writes the slot (see `Slot`).
            let found = unsafe { *cell.get() };
            assert_eq!(found, value(id, word), "word {word} of message {id} in slot {slot} is torn");
        }
    }
}
