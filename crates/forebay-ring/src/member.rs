//! A member's part of the shared memory, by name.

use forebay_layout::{geometry::Plan, member as at};

use crate::{
    sync::{AtomicU64, Ordering},
    words::Words,
};

/// Which member, in which of its lives. A member index is used again only when its lock byte is free and no slot word
/// names it, and then with another incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MemberId {
    /// 0 to 31.
    pub index: u8,
    /// From 1, wrapping past 0.
    pub incarnation: u16,
}

impl MemberId {
    /// The next life of the same index.
    #[must_use]
    pub fn successor(self) -> Self {
        Self { index: self.index, incarnation: self.incarnation.wrapping_add(1).max(1) }
    }
}

/// A member's part: a handle to the object it lies in, and where in it.
#[derive(Debug, Clone)]
pub struct Member<W> {
    words: W,
    base: usize,
    slots: usize,
}

impl<W: Words> Member<W> {
    /// The part of member `index` in the pool of a queue.
    pub fn in_pool(pool: W, plan: &Plan, index: u8) -> Self {
        Self {
            words: pool,
            base: plan.member_word + plan.member_words * usize::from(index),
            slots: plan.slots as usize,
        }
    }

    /// The part in a member's own object (broadcast).
    pub fn in_object(object: W, plan: &Plan) -> Self {
        Self { words: object, base: plan.member_word, slots: plan.slots as usize }
    }

    fn at(&self, offset: usize) -> &AtomicU64 {
        self.words.word(self.base + offset)
    }

    /// The word that wakes this member.
    pub fn wake_word(&self) -> &AtomicU64 {
        self.at(at::WAKE)
    }

    /// The word on which the producer of a broadcast ring waits for this member.
    pub fn producer_wake_word(&self) -> &AtomicU64 {
        self.at(at::PRODUCER_WAKE)
    }

    /// Changes the wake word, so that a sleeper that has not slept yet will not; the caller then wakes it.
    pub fn ring_bell(&self) {
        // ORDER none, Relaxed: only compared, by the futex. That the sleeper sees what it is woken for is for the barriers
        // and its mark (E5).
        self.wake_word().fetch_add(1, Ordering::Relaxed);
    }

    /// Broadcast: says whether the member sleeps.
    pub fn set_parked(&self, parked: bool) {
        // ORDER E5 park, Release: how the member sleeps (its FLAGS) is said before that it does; its barrier follows.
        self.at(at::PARKED).store(parked.into(), Ordering::Release);
    }

    /// Broadcast: takes the member's parked mark, if it is set.
    pub fn take_parked(&self) -> bool {
        // ORDER E5 park, Acquire: who takes the mark sees how the member sleeps. The load may be stale in the one way
        // that the barriers allow: then the sleeper's second look sees the message.
        self.at(at::PARKED).load(Ordering::Relaxed) != 0 && self.at(at::PARKED).swap(0, Ordering::Acquire) != 0
    }

    /// Stores a word that only this side writes and others read for display or recovery.
    pub fn store(&self, offset: usize, value: u64) {
        // ORDER none, Relaxed: stands alone.
        self.at(offset).store(value, Ordering::Relaxed);
    }

    /// Reads such a word.
    pub fn peek(&self, offset: usize) -> u64 {
        // ORDER none, Relaxed: stands alone.
        self.at(offset).load(Ordering::Relaxed)
    }

    /// Adds to a counter that only this side writes.
    pub fn count(&self, offset: usize, add: u64) {
        self.store(offset, self.peek(offset).wrapping_add(add));
    }

    /// Adds to a counter that several threads of this side may write.
    pub fn count_shared(&self, offset: usize, add: u64) {
        // ORDER none, Relaxed: a statistic.
        self.at(offset).fetch_add(add, Ordering::Relaxed);
    }

    /// When the member's lease on `slot` began (CLOCK_MONOTONIC ns), 0 for none.
    pub fn since(&self, slot: u32) -> u64 {
        self.peek(at::SINCE + slot as usize)
    }

    /// Notes when the lease on `slot` began; 0 when it ended.
    pub fn set_since(&self, slot: u32, monotonic_ns: u64) {
        self.store(at::SINCE + slot as usize, monotonic_ns);
    }

    /// Broadcast: the grant word of `slot`.
    pub(crate) fn grant(&self, slot: u32) -> &AtomicU64 {
        self.at(at::SINCE + self.slots + slot as usize)
    }

    /// Asks for the line of the grant word of `slot`.
    pub(crate) fn prefetch_grant(&self, slot: u32) {
        self.words.prefetch(self.base + at::SINCE + self.slots + slot as usize);
    }

    /// Zeroes the part for a new member, but for its identity: the last incarnation has to outlive a producer that dies
    /// in here, or the index is given out under it once more. Only while the lock byte is free and no slot word names the
    /// index.
    pub fn clear(&self, grants: bool) {
        const { assert!(at::IDENTITY == 0) };
        for offset in 1..at::SINCE + self.slots * if grants { 2 } else { 1 } {
            self.store(offset, 0);
        }
    }

    /// The incarnation and state the producer gave this part.
    pub fn identity(&self) -> (u16, u64) {
        let word = self.peek(at::IDENTITY);
        ((word >> 8) as u16, word & 0xff)
    }

    /// Gives the part an incarnation and a state (see [`forebay_layout::member::state`]).
    pub fn set_identity(&self, incarnation: u16, state: u64) {
        self.store(at::IDENTITY, u64::from(incarnation) << 8 | state);
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::{tests::Rig, words::heap::Heap};
    use forebay_layout::Kind;

    /// The words of `part` that are not 0, by their place in it.
    fn set(words: &Heap, base: usize, end: usize) -> Vec<(usize, u64)> {
        (base..end)
            .filter_map(|i| Some((i - base, words.word(i).load(Ordering::Relaxed))).filter(|w| w.1 != 0))
            .collect()
    }

    #[test]
    fn every_word_lies_where_the_layout_says_in_the_members_part() {
        let rig = Rig::queue(3);
        let (base, next) =
            (rig.plan.member_word + 2 * rig.plan.member_words, rig.plan.member_word + 3 * rig.plan.member_words);
        let part = rig.pool().member(&rig.plan, 2);
        part.ring_bell();
        part.ring_bell();
        part.producer_wake_word().store(5, Ordering::Relaxed);
        part.set_identity(0x1234, 2);
        part.set_parked(true);
        part.count(at::RECEIVED, 3);
        part.count(at::RECEIVED, 4);
        part.count_shared(at::NACKED, 6);
        part.count_shared(at::NACKED, 6);
        part.set_since(2, 99);
        assert_eq!(part.wake_word().load(Ordering::Relaxed), 2);
        assert_eq!((part.identity(), part.since(2), part.since(1)), ((0x1234, 2), 99, 0));
        let expected = [
            (at::IDENTITY, 0x1234 << 8 | 2),
            (at::WAKE, 2),
            (at::PARKED, 1),
            (at::RECEIVED, 7),
            (at::NACKED, 12),
            (at::PRODUCER_WAKE, 5),
            (at::SINCE + 2, 99),
        ];
        assert_eq!(set(&rig.pool, base, next), expected);
        assert_eq!(set(&rig.pool, 0, base), [], "of another member");
        part.clear(false);
        assert_eq!(set(&rig.pool, base, next), [(at::IDENTITY, 0x1234 << 8 | 2)]);
    }

    #[test]
    fn a_part_is_cleared_to_its_end_and_no_further() {
        for grants in [false, true] {
            let rig = Rig::of(Kind::Broadcast, 3);
            let words = Heap::bytes(rig.plan.member_bytes);
            let part = Member::in_object(words.clone(), &rig.plan);
            let all = rig.plan.member_word..(rig.plan.member_bytes / 8) as usize;
            all.clone().for_each(|i| words.word(i).store(7, Ordering::Relaxed));
            part.grant(2).store(9, Ordering::Relaxed);
            assert_eq!(words.word(rig.plan.member_word + at::SINCE + 3 + 2).load(Ordering::Relaxed), 9);
            part.clear(grants);
            let left = set(&words, all.start, all.end).len();
            assert_eq!(all.len() - left, at::SINCE - 1 + if grants { 6 } else { 3 });
        }
    }

    // A producer that died between the first store of `clear` and the new identity left incarnation 0, so the index's next
    // member had the first one's. On a broadcast ring it then took the join sequence of that one for its own, and read
    // messages that it was not owed, in slots that were being written.
    #[test]
    fn a_part_that_is_cleared_still_says_which_life_was_the_last() {
        for grants in [false, true] {
            let rig = Rig::of(Kind::Broadcast, 3);
            let part = Member::in_object(Heap::bytes(rig.plan.member_bytes), &rig.plan);
            let first = MemberId { index: 2, incarnation: 1 };
            part.set_identity(first.incarnation, at::state::EMPTY);
            part.clear(grants);
            let last = MemberId { index: 2, incarnation: part.identity().0 };
            assert_eq!((last, part.identity().1), (first, at::state::EMPTY));
            assert_ne!(last.successor(), first);
        }
    }

    #[test]
    fn a_mark_is_taken_once() {
        let part = Rig::queue(1).pool().member(&Rig::queue(1).plan, 0);
        assert!(!part.take_parked());
        part.set_parked(true);
        assert!(part.take_parked());
        assert!(!part.take_parked());
        part.set_parked(true);
        part.set_parked(false);
        assert!(!part.take_parked());
        assert_eq!(MemberId { index: 3, incarnation: u16::MAX }.successor(), MemberId { index: 3, incarnation: 1 });
    }
}
