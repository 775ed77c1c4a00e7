//! Shared memory as typed words and byte slices: the only file of this crate with `unsafe` code.
//!
//! May: turn an offset that a [`Plan`] gave into a reference. May not: take an offset from a peer, or hand out payload
//! bytes without being told by a [`Loan`](crate::Loan) or a lease that they are ours to use.

#![allow(unsafe_code, reason = "this file is where shared memory becomes references; each block argues why it may")]

use std::{
    ptr::NonNull,
    sync::{Arc, atomic::Ordering},
};

use forebay_layout::{geometry::Plan, header::pack};
use forebay_os::Mapping;
use forebay_ring::{AtomicU64, Words};

/// One mapped object, as words.
#[derive(Clone)]
pub(crate) struct Segment {
    words: NonNull<AtomicU64>,
    len: usize,
    mapping: Arc<Mapping>,
}

// SAFETY: the words are atomics in a mapping that `mapping` keeps; atomics may be used from any thread.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment").field("bytes", &(self.len * 8)).finish_non_exhaustive()
    }
}

impl Segment {
    /// The words of `mapping`. Whoever maps read-only wraps the result into
    /// [`ReadOnly`](forebay_ring::ReadOnly), which never stores.
    pub(crate) fn new(mapping: Mapping) -> Self {
        let mapping = Arc::new(mapping);
        Self { words: mapping.base().cast(), len: mapping.len() / 8, mapping }
    }

    /// The mapping itself.
    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Several words in a row.
    #[inline]
    fn words(&self, index: usize, len: usize) -> &[AtomicU64] {
        if index.checked_add(len).is_none_or(|end| end > self.len) {
            outside(index, self.len);
        }
        // SAFETY: in bounds of the mapping by the assertion, in one allocation.
        let first = unsafe { self.words.add(index) };
        // SAFETY: as `word`, for each of them; they lie in one mapping, one after the other, to the end by the assertion.
        unsafe { std::slice::from_raw_parts(first.as_ptr(), len) }
    }
}

/// Out of the way of the words that do exist.
#[cold]
fn outside(index: usize, len: usize) -> ! {
    panic!("word {index} lies outside an object of {len} words")
}

impl Words for Segment {
    #[inline]
    fn word(&self, index: usize) -> &AtomicU64 {
        if index >= self.len {
            outside(index, self.len);
        }
        // SAFETY: in bounds of the mapping by the assertion, in one allocation.
        let word = unsafe { self.words.add(index) };
        // SAFETY:
        // - The mapping starts at a page, so the word is aligned; it lives as long as `self.mapping`.
        // - No `&mut` to these bytes exists: this file makes none inside an object of words.
        // - Every bit pattern is an `AtomicU64`; peers change it through atomics of the same size only.
        // - If the mapping is read-only, callers only load (`ReadOnly`), which no supported target does by writing.
        unsafe { word.as_ref() }
    }

    #[inline]
    fn store_all(&self, index: usize, values: &[u64]) {
        for (word, &value) in self.words(index, values.len()).iter().zip(values) {
            word.store(value, Ordering::Relaxed);
        }
    }

    #[inline]
    fn store_bytes(&self, index: usize, bytes: &[u8]) {
        let (whole, rest) = bytes.as_chunks::<8>();
        let words = self.words(index, bytes.len().div_ceil(8));
        for (word, chunk) in words.iter().zip(whole) {
            word.store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
        }
        if let (false, Some(last)) = (rest.is_empty(), words.last()) {
            last.store(pack(rest), Ordering::Relaxed);
        }
    }

    #[inline]
    fn load_all(&self, index: usize, values: &mut [u64]) {
        for (word, value) in self.words(index, values.len()).iter().zip(values) {
            *value = word.load(Ordering::Relaxed);
        }
    }

    #[inline]
    fn are(&self, index: usize, values: &[u64]) -> bool {
        // Without a branch at each word: they nearly always are.
        let differ = |differ: u64, (word, &value): (&AtomicU64, &u64)| differ | word.load(Ordering::Relaxed) ^ value;
        self.words(index, values.len()).iter().zip(values).fold(0, differ) == 0
    }

    #[inline]
    fn prefetch(&self, index: usize) {
        #[cfg(target_arch = "x86_64")]
        if index < self.len {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: in bounds of the mapping, in one allocation.
            let word = unsafe { self.words.add(index) };
            // SAFETY: every CPU of this target has the instruction; it reads nothing that anybody could see.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(word.as_ptr().cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = index;
    }
}

/// The data object: all slots.
#[derive(Clone)]
pub(crate) struct Slots {
    mapping: Arc<Mapping>,
    /// Byte offset and length of each slot.
    spans: Arc<[(usize, usize)]>,
    writable: bool,
}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slots").field("slots", &self.spans.len()).finish_non_exhaustive()
    }
}

impl Slots {
    /// The slots of `plan` in `mapping`.
    ///
    /// # Panics
    /// If the mapping is shorter than the plan, which whoever mapped it has checked.
    pub(crate) fn new(mapping: Mapping, plan: &Plan, writable: bool) -> Self {
        assert!(mapping.len() as u64 >= plan.data_bytes, "the data object was mapped whole");
        let spans = (0..plan.slots)
            .filter_map(|slot| plan.slot_span(slot))
            .map(|(_, class, offset)| (offset as usize, class.slot_bytes as usize))
            .collect();
        Self { mapping: Arc::new(mapping), spans, writable }
    }

    /// The mapping itself.
    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// The mapping itself, to keep.
    #[cfg(feature = "cuda")]
    pub(crate) fn shared_mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Whether this process may write the slots.
    pub(crate) fn is_writable(&self) -> bool {
        self.writable
    }

    /// Where `len` bytes at `offset` of `slot` lie.
    ///
    /// # Panics
    /// If they do not lie inside the slot: offsets were checked when the descriptor was.
    pub(crate) fn address(&self, slot: u32, offset: u64, len: u64) -> NonNull<u8> {
        let (start, size) = self.spans[slot as usize];
        let inside = offset.checked_add(len).is_some_and(|end| end <= size as u64);
        assert!(inside, "bytes {offset}+{len} lie outside slot {slot} of {size} bytes");
        // SAFETY: `start + offset` lies in the data object by the plan and the assertion, and that in one mapping.
        unsafe { self.mapping.base().add(start + offset as usize) }
    }

    /// The bytes of a slot that the caller holds a lease on.
    ///
    /// A peer that keeps to the protocol does not write them while the lease lasts; what happens with one that does not
    /// is said in `docs/trust.md`: values change, nothing else, because nothing that steers us lies here.
    pub(crate) fn leased(&self, slot: u32, offset: u64, len: u64) -> &[u8] {
        let at = self.address(slot, offset, len);
        // SAFETY: in bounds and mapped (`address`), initialised (objects are filled with zeros), alive as long as
        // `self.mapping`; the caller's lease keeps writers that follow the protocol away (`docs/trust.md`).
        unsafe { std::slice::from_raw_parts(at.as_ptr(), len as usize) }
    }

    /// The bytes of a slot that the caller alone may write: a loan, or the lease on a slot of a writable queue.
    #[expect(clippy::mut_from_ref, reason = "exclusive by the slot word: callers borrow their Loan or Tensor mutably")]
    pub(crate) fn exclusive(&self, slot: u32, offset: u64, len: u64) -> &mut [u8] {
        assert!(self.writable, "slots are mapped read-only");
        let at = self.address(slot, offset, len);
        // SAFETY: in bounds, mapped read-write (assertion), initialised, alive as long as `self.mapping`. WRITING (or
        // CLAIMED on a writable queue) makes this process the only one that touches the slot, and each caller borrows
        // the loan or lease, of which there is one per slot, mutably for disjoint tensors.
        unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), len as usize) }
    }
}
