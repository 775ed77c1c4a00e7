//! The queue's shared object, by name: slot words, who sleeps, and the members' parts.

use forebay_layout::{
    MAX_CONSUMERS, WORD,
    geometry::Plan,
    pool::{PARKED, PARKED_PRODUCER, PRODUCER_WAKE, RETURNS, SLOT_WORD_STRIDE},
};

use crate::{
    Member,
    sync::{AtomicU64, Ordering},
    words::Words,
};

/// A waker tries this often to take a mark before it leaves the message to the next slice of a sleeper.
const PICKS: u32 = 64;

/// A handle to a queue's pool.
#[derive(Debug, Clone)]
pub struct Pool<W> {
    words: W,
    slot_word: usize,
    slots: u32,
    /// A bit for each member there can be.
    members: u32,
}

impl<W: Words> Pool<W> {
    /// The pool in `words`, which the plan was checked against.
    pub fn new(words: W, plan: &Plan) -> Self {
        let words_left = ((plan.pool_bytes / WORD) as usize).saturating_sub(plan.member_word);
        let members = words_left.checked_div(plan.member_words).unwrap_or(0).min(MAX_CONSUMERS);
        let members = u32::MAX.checked_shr(u32::BITS - members as u32).unwrap_or(0);
        Self { words, slot_word: plan.slot_word, slots: plan.slots, members }
    }

    /// How many slots there are.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// The slot word of `slot`.
    pub(crate) fn slot(&self, slot: u32) -> &AtomicU64 {
        self.words.word(self.slot_word + slot as usize * SLOT_WORD_STRIDE)
    }

    /// The slot word's value, for display and audits.
    pub fn peek_slot(&self, slot: u32) -> u64 {
        // ORDER none, Relaxed: for people to read; nothing is read on the strength of it.
        self.slot(slot).load(Ordering::Relaxed)
    }

    /// Member `index`'s part.
    pub fn member(&self, plan: &Plan, index: u8) -> Member<W> {
        Member::in_pool(self.words.clone(), plan, index)
    }

    /// The word that wakes the producer.
    pub fn producer_wake_word(&self) -> &AtomicU64 {
        self.words.word(PRODUCER_WAKE)
    }

    /// How often messages were given back; a change means that a scan of the slot words may find some.
    pub fn returns(&self) -> u64 {
        // ORDER E4 return, Acquire: a scan that follows sees every message that is counted here. Without it the scan
        // might find nothing and yet take the return as dealt with; the second look before sleep would then skip it.
        self.words.word(RETURNS).load(Ordering::Acquire)
    }

    pub(crate) fn count_return(&self) {
        // ORDER E4 return, Release: the message is FULL before it is counted, see `returns`.
        self.words.word(RETURNS).fetch_add(1, Ordering::Release);
    }

    /// Marks member `index` as asleep. The caller then executes its barrier and looks again before it sleeps.
    pub fn park(&self, index: u8) {
        // ORDER E5 park, Release: how the member sleeps (its FLAGS) is said before that it does. That the mark is seen
        // before the second look is the barrier's business.
        self.words.word(PARKED).fetch_or(1 << index, Ordering::Release);
    }

    /// Takes back the mark of member `index`. False if a waker already took it: then a wake is meant for this member.
    pub fn unpark(&self, index: u8) -> bool {
        // ORDER E5 park, AcqRel: a member that finds its mark taken sees the message it was taken for; a waker that
        // takes a mark sees how the member sleeps.
        self.words.word(PARKED).fetch_and(!(1 << index), Ordering::AcqRel) & 1 << index != 0
    }

    /// Marks the producer as asleep; as with [`park`](Self::park).
    pub fn park_producer(&self) {
        // ORDER none, Relaxed: the barrier that follows orders it before the second look (E5).
        self.words.word(PARKED).fetch_or(PARKED_PRODUCER, Ordering::Relaxed);
    }

    /// Takes back the producer's mark.
    pub fn unpark_producer(&self) {
        // ORDER none, Relaxed: the producer looks again whenever it is awake, and nothing else is spent on its mark.
        self.words.word(PARKED).fetch_and(!PARKED_PRODUCER, Ordering::Relaxed);
    }

    /// Who sleeps.
    pub fn parked(&self) -> u64 {
        // ORDER E5 park, Acquire: the FLAGS of who is seen here are how it sleeps. That either this load sees the bit or
        // the sleeper sees the store before it, is for the barriers on both sides.
        self.words.word(PARKED).load(Ordering::Acquire)
    }

    /// Picks one sleeping member of those in `among` (bit m for member m), from `after` + 1 on and around, and takes its
    /// mark. The caller rings its bell and wakes it.
    #[must_use = "a member whose mark was taken sleeps on until it is woken"]
    pub fn pick_sleeper(&self, after: u8, among: u32) -> Option<u8> {
        // Each round that does not end here lost a mark to another waker, or to the member itself.
        for _ in 0..PICKS {
            // Any member can set any bit: one of a member that there cannot be is nobody's.
            let members = self.parked() as u32 & among & self.members;
            if members == 0 {
                return None;
            }
            let turn = u32::from(after).wrapping_add(1) & 31;
            let index = (members.rotate_right(turn).trailing_zeros() + turn) & 31;
            if self.unpark(index as u8) {
                return Some(index as u8);
            }
        }
        None
    }

    /// If the producer sleeps: takes its mark and changes its wake word. True means: wake it.
    #[must_use = "a producer whose mark was taken sleeps on until it is woken"]
    pub fn call_producer(&self) -> bool {
        if self.parked() & PARKED_PRODUCER == 0 {
            return false;
        }
        self.unpark_producer();
        // ORDER none, Relaxed: only compared, by the futex; the producer's barrier makes it see the release (E5).
        self.producer_wake_word().fetch_add(1, Ordering::Relaxed);
        true
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::tests::Rig;

    #[test]
    fn sleepers_are_picked_in_turn_among_those_that_are_meant() {
        let pool = Rig::queue(1).pool();
        assert_eq!(pool.pick_sleeper(31, u32::MAX), None);
        for index in [0, 2, 3] {
            pool.park(index);
        }
        // Nobody has the index 4 on a ring for four.
        pool.words.word(PARKED).fetch_or(1 << 4 | 1 << 31, Ordering::Relaxed);
        assert_eq!(pool.pick_sleeper(0, u32::MAX), Some(2), "the next after 0");
        assert_eq!(pool.pick_sleeper(2, 1 << 2), None, "its mark is taken");
        assert_eq!(pool.pick_sleeper(3, u32::MAX), Some(0), "around the end");
        assert_eq!(pool.pick_sleeper(31, 1 << 3), Some(3));
        assert_eq!(pool.pick_sleeper(31, u32::MAX), None);
        assert_eq!(pool.parked(), 1 << 4 | 1 << 31);
    }

    #[test]
    fn a_mark_that_is_gone_was_a_wake() {
        let pool = Rig::queue(1).pool();
        pool.park(3);
        pool.park(1);
        assert_eq!(pool.parked(), 0b1010);
        assert!(pool.unpark(3));
        assert!(!pool.unpark(3));
        assert_eq!(pool.parked(), 0b10, "the other's stays");
    }

    #[test]
    fn the_producer_is_called_only_while_it_sleeps_and_once() {
        let rig = Rig::queue(1);
        let pool = rig.pool();
        pool.park(0);
        assert!(!pool.call_producer());
        pool.park_producer();
        assert_eq!(pool.parked(), PARKED_PRODUCER | 1);
        assert!(pool.call_producer());
        assert!(!pool.call_producer());
        assert_eq!((pool.parked(), pool.producer_wake_word().load(Ordering::Relaxed)), (1, 1));
        assert_eq!(rig.pool.word(PRODUCER_WAKE).load(Ordering::Relaxed), 1);
        pool.park_producer();
        pool.unpark_producer();
        assert_eq!(pool.parked(), 1);
    }

    #[test]
    fn returns_are_counted_where_the_layout_says() {
        let rig = Rig::queue(1);
        rig.pool().count_return();
        rig.pool().count_return();
        assert_eq!((rig.pool().returns(), rig.pool.word(RETURNS).load(Ordering::Relaxed)), (2, 2));
    }
}
