//! Shared memory as this crate sees it: numbered 64-bit words, on the heap or in a mapping.

use forebay_layout::header::pack;

use crate::sync::{AtomicU64, Ordering};

/// An object of a ring: its words, from 0. Cloning gives another handle to the same words.
pub trait Words: Clone {
    /// The word at `index`.
    ///
    /// # Panics
    /// If the object has no such word. Indices come from a [`Plan`](forebay_layout::geometry::Plan) that the object
    /// was checked against, never from a peer, so this is a broken invariant of this process.
    fn word(&self, index: usize) -> &AtomicU64;

    /// Stores `values` from `index` on, each for itself (Relaxed).
    ///
    /// # Panics
    /// As [`word`](Self::word).
    fn store_all(&self, index: usize, values: &[u64]) {
        for (i, &value) in values.iter().enumerate() {
            // ORDER none, Relaxed: the caller orders all of them.
            self.word(index + i).store(value, Ordering::Relaxed);
        }
    }

    /// Stores `bytes` from the word at `index` on, each word for itself (Relaxed), the last one filled up with zeros.
    ///
    /// # Panics
    /// As [`word`](Self::word).
    #[inline]
    fn store_bytes(&self, index: usize, bytes: &[u8]) {
        let (whole, rest) = bytes.as_chunks::<8>();
        for (i, chunk) in whole.iter().enumerate() {
            // ORDER none, Relaxed: the caller orders all of them.
            self.word(index + i).store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
        }
        if !rest.is_empty() {
            self.word(index + whole.len()).store(pack(rest), Ordering::Relaxed);
        }
    }

    /// Loads as many words as `values` has room for, each for itself (Relaxed).
    ///
    /// # Panics
    /// As [`word`](Self::word).
    fn load_all(&self, index: usize, values: &mut [u64]) {
        for (i, value) in values.iter_mut().enumerate() {
            // ORDER none, Relaxed: the caller orders all of them.
            *value = self.word(index + i).load(Ordering::Relaxed);
        }
    }

    /// Whether the words from `index` on are these, each looked at for itself (Relaxed).
    ///
    /// # Panics
    /// As [`word`](Self::word).
    #[inline]
    fn are(&self, index: usize, values: &[u64]) -> bool {
        // ORDER none, Relaxed: the caller orders all of them.
        values.iter().enumerate().all(|(i, &value)| self.word(index + i).load(Ordering::Relaxed) == value)
    }

    /// Asks for the cache line of the word at `index`, which will be needed soon. Changes nothing but times.
    fn prefetch(&self, _index: usize) {}
}

/// Words that may only be read: a consumer's view of what the producer owns. The mapping behind it may be read-only,
/// where a store would be a fault.
#[derive(Debug, Clone)]
pub struct ReadOnly<W>(W);

impl<W: Words> ReadOnly<W> {
    /// Gives up the right to write.
    pub fn new(words: W) -> Self {
        Self(words)
    }

    pub(crate) fn load(&self, index: usize, order: Ordering) -> u64 {
        self.0.word(index).load(order)
    }

    pub(crate) fn load_all(&self, index: usize, values: &mut [u64]) {
        self.0.load_all(index, values);
    }

    pub(crate) fn are(&self, index: usize, values: &[u64]) -> bool {
        self.0.are(index, values)
    }

    pub(crate) fn prefetch(&self, index: usize) {
        self.0.prefetch(index);
    }

    /// The word's value now; nothing else is ordered by this.
    #[must_use]
    pub fn peek(&self, index: usize) -> u64 {
        // ORDER none, Relaxed: for values that stand alone.
        self.load(index, Ordering::Relaxed)
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
pub(crate) mod heap {
    //! Words on the heap, for tests; models have fewer of them.
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Debug)]
    pub(crate) struct Heap(Arc<Vec<AtomicU64>>);

    impl Heap {
        pub(crate) fn bytes(bytes: u64) -> Self {
            Self((0..bytes / 8).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().into())
        }
    }

    impl Words for Heap {
        fn word(&self, index: usize) -> &AtomicU64 {
            &self.0[index]
        }
    }
}
