//! Words that no peer writes that keeps to the protocol: an error or nothing, never a panic, never a loop without end.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use std::{iter, rc::Rc};

use forebay_layout::{
    Backing, Defect, Kind, WhenFull,
    entry::NO_SLOT,
    geometry::{Geometry, Plan, SlotClass},
    header::W_HEAD,
    pool,
};

use crate::{
    AtomicU64, Draft, Grant, GrantState, Member, MemberId, Pool, Publisher, ReadOnly, Reader, SlotWord, Words,
    broadcast::{BroadcastConsumer, BroadcastProducer},
    queue::{self, Next, QueueConsumer, QueueProducer},
    sync::Ordering::Relaxed,
    words::heap::Heap,
};

/// What the other side does when a word is looked at.
type Lie = dyn Fn(&Heap, usize);

/// Memory whose other side changes words at the very moment they are looked at.
#[derive(Clone)]
struct Liar {
    heap: Heap,
    lie: Rc<Lie>,
}

impl Words for Liar {
    fn word(&self, index: usize) -> &AtomicU64 {
        (self.lie)(&self.heap, index);
        self.heap.word(index)
    }
}

fn liar(heap: &Heap, lie: impl Fn(&Heap, usize) + 'static) -> Liar {
    Liar { heap: heap.clone(), lie: Rc::new(lie) }
}

fn honest(heap: &Heap) -> Liar {
    liar(heap, |_, _| {})
}

/// Far more words than an honest look needs on any ring, and a hundredth of a second of looking.
const MANY_LOOKS: u64 = 1 << 24;

/// A look that never ends would be asked about for ever: how many words were looked at, and a panic at too many.
fn counting(heap: &Heap, lie: impl Fn(&Heap, usize) + 'static) -> Liar {
    let asked = AtomicU64::new(0);
    liar(heap, move |heap, index| {
        assert!(asked.fetch_add(1, Relaxed) < MANY_LOOKS, "one look does not end");
        lie(heap, index);
    })
}

struct Rig {
    plan: Plan,
    ring: Heap,
    pool: Heap,
}

const ME: MemberId = MemberId { index: 0, incarnation: 1 };

impl Rig {
    fn new(kind: Kind) -> Self {
        Self::of(kind, 4)
    }

    fn of(kind: Kind, slots: u32) -> Self {
        let geometry = Geometry {
            kind,
            backing: Backing::Posix,
            when_full: WhenFull::DropOldest,
            writable: false,
            max_consumers: 4,
            max_attempts: 2,
            quota: 0,
            max_fields: 1,
            schema_bytes: 0,
            classes: iter::once(SlotClass { slots, slot_bytes: 256 }).collect(),
        };
        let plan = geometry.plan().unwrap();
        Self { ring: Heap::bytes(plan.ring_bytes), pool: Heap::bytes(plan.pool_bytes), plan }
    }

    fn set(&self, index: usize, value: u64) {
        self.ring.word(index).store(value, Relaxed);
    }

    fn stamp(&self, entry: u64) -> usize {
        self.plan.position_word + (entry & (self.plan.positions - 1)) as usize * 16
    }

    fn descriptor(&self, slot: u32) -> usize {
        self.plan.descriptor_word + slot as usize * self.plan.descriptor_words
    }

    fn set_slot(&self, slot: u32, word: SlotWord) {
        let words = if self.plan.pool_bytes == 0 { &self.ring } else { &self.pool };
        words.word(self.plan.slot_word + slot as usize * pool::SLOT_WORD_STRIDE).store(word.raw(), Relaxed);
    }

    fn reader(&self, ring: Liar) -> Reader<Liar> {
        Reader::new(ReadOnly::new(ring), self.plan.clone(), 1)
    }

    fn consumer(&self, ring: Liar, pool: Liar) -> QueueConsumer<Liar> {
        QueueConsumer::new(self.reader(ring), Pool::new(pool, &self.plan), ME, false)
    }

    fn member(&self, ring: Liar, lossy: bool) -> BroadcastConsumer<Liar> {
        let part = Member::in_object(honest(&Heap::bytes(self.plan.member_bytes)), &self.plan);
        BroadcastConsumer::new(self.reader(ring), part, ME, lossy)
    }

    fn producer(&self, words: Liar) -> QueueProducer<Liar> {
        QueueProducer::new(Publisher::new(honest(&self.ring), words, self.plan.clone(), 1))
    }
}

fn empty(next: Result<Next, Defect>) {
    assert_eq!(next, Ok(Next::Empty));
}

fn defect(next: Result<Next, Defect>, field: &str) {
    assert_eq!(next.unwrap_err().field, field);
}

#[test]
fn a_head_at_the_end_of_all_numbers_leads_to_no_message() {
    let rig = Rig::new(Kind::Queue);
    rig.set(W_HEAD, u64::MAX);
    let mut consumer = rig.consumer(honest(&rig.ring), honest(&rig.pool));
    empty(consumer.next(true, |_| true));
    for entry in 0..rig.plan.positions {
        rig.set(rig.stamp(entry), consumer.cursor());
        rig.set(rig.stamp(entry) + 1, NO_SLOT.into());
    }
    for _ in 0..1000 {
        empty(consumer.next(true, |_| true));
    }
}

#[test]
fn stamps_at_the_end_of_all_numbers_are_refused() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        let rig = Rig::new(kind);
        for entry in 0..rig.plan.positions {
            rig.set(rig.stamp(entry), u64::MAX);
        }
        if kind == Kind::Queue {
            defect(rig.consumer(honest(&rig.ring), honest(&rig.pool)).next(true, |_| true), "position.stamp");
        } else {
            rig.set(rig.plan.join_word, 1);
            rig.set(rig.plan.join_word + 1, 1);
            defect(rig.member(honest(&rig.ring), true).next(true, |_| true), "position.stamp");
        }
    }
}

/// Every entry says, whenever it is asked, that just the sequence looked for was never published.
#[test]
fn entries_that_are_void_for_ever_end_a_look() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        let rig = Rig::new(kind);
        let (first, end) = (rig.stamp(0), rig.stamp(0) + rig.plan.positions as usize * 16);
        let asked = AtomicU64::new(0);
        let ring = liar(&rig.ring, move |heap, index| {
            if (first..end).contains(&index) && (index - first).is_multiple_of(16) {
                // A look at an entry loads its stamp twice.
                let sequence = 1 + asked.fetch_add(1, Relaxed) / 2;
                heap.word(index).store(sequence, Relaxed);
                heap.word(index + 1).store(NO_SLOT.into(), Relaxed);
            }
        });
        if kind == Kind::Queue {
            empty(rig.consumer(ring, honest(&rig.pool)).next(true, |_| true));
        } else {
            rig.set(rig.plan.join_word, 1);
            rig.set(rig.plan.join_word + 1, 1);
            empty(rig.member(ring, true).next(true, |_| true));
        }
    }
}

/// Every entry is, whenever it is asked, of a later sequence.
#[test]
fn entries_that_are_overtaken_for_ever_end_a_look() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        let rig = Rig::new(kind);
        let (first, end) = (rig.stamp(0), rig.stamp(0) + rig.plan.positions as usize * 16);
        let asked = AtomicU64::new(0);
        let ring = liar(&rig.ring, move |heap, index| {
            if (first..end).contains(&index) && (index - first).is_multiple_of(16) {
                heap.word(index).store(1000 + 100 * asked.fetch_add(1, Relaxed), Relaxed);
            }
        });
        if kind == Kind::Queue {
            empty(rig.consumer(ring, honest(&rig.pool)).next(true, |_| true));
        } else {
            rig.set(rig.plan.join_word, 1);
            rig.set(rig.plan.join_word + 1, 1);
            empty(rig.member(ring, true).next(true, |_| true));
        }
    }
}

/// Each entry is of a later sequence than the one before it, so that each is a reason to look at all slots; and there are
/// many of both.
#[test]
fn a_chain_of_overtaken_entries_on_a_large_ring_ends_a_look() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        let rig = Rig::of(kind, 1 << 13);
        let lap = rig.plan.positions;
        for entry in 0..lap {
            // The cursor goes from one to the next.
            rig.set(rig.stamp(entry), entry + lap);
        }
        let ring = counting(&rig.ring, |_, _| {});
        if kind == Kind::Queue {
            let mut consumer = rig.consumer(ring, counting(&rig.pool, |_, _| {}));
            empty(consumer.next(true, |_| true));
            let before = consumer.cursor();
            empty(consumer.next(true, |_| true));
            assert!(consumer.cursor() > before, "the next look goes on where this one gave up");
        } else {
            rig.set(rig.plan.join_word, 1);
            rig.set(rig.plan.join_word + 1, 1);
            empty(rig.member(ring, true).next(true, |_| true));
        }
    }
}

/// Whichever message is the oldest is claimed and given back at the very moment it is to be dropped.
#[test]
fn a_large_ring_whose_words_change_under_the_producer_s_eyes_ends_its_search() {
    let rig = Rig::of(Kind::Queue, 1 << 13);
    let (first, asked) = (rig.plan.slot_word, AtomicU64::new(0));
    let mut producer = rig.producer(counting(&rig.pool, move |heap, index| {
        if index == first {
            let attempts = asked.fetch_add(1, Relaxed) as u8;
            heap.word(index).store(SlotWord::full(1, attempts).raw(), Relaxed);
        }
    }));
    for slot in 0..1 << 13 {
        assert_eq!(producer.acquire(0, true), queue::Acquired::Slot(slot));
        let draft = Draft::default();
        producer.publish(slot, &draft);
    }
    assert_eq!(producer.drop_oldest(0), None);
}

#[test]
fn a_descriptor_at_the_end_of_all_numbers_is_refused() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        let rig = Rig::new(kind);
        rig.set(rig.descriptor(2), u64::MAX);
        rig.set_slot(2, SlotWord::full(1, 0));
        if kind == Kind::Queue {
            let next = rig.consumer(honest(&rig.ring), honest(&rig.pool)).next(true, |_| true);
            defect(next, "descriptor.sequence");
        } else {
            rig.set(rig.plan.join_word, 1);
            rig.set(rig.plan.join_word + 1, 1);
            defect(rig.member(honest(&rig.ring), true).next(true, |_| true), "descriptor.sequence");
        }
    }
}

#[test]
fn a_join_at_the_end_of_all_numbers_leads_to_no_message() {
    let rig = Rig::new(Kind::Broadcast);
    rig.set(rig.plan.join_word, u64::MAX);
    rig.set(rig.plan.join_word + 1, 1);
    let mut member = rig.member(honest(&rig.ring), false);
    empty(member.next(true, |_| true));
    rig.set(rig.stamp(member.cursor()), member.cursor());
    rig.set(rig.stamp(member.cursor()) + 1, NO_SLOT.into());
    let _ = member.next(true, |_| true);
    member.leave();
}

#[test]
fn a_mark_that_is_always_gone_when_it_is_taken_ends_the_search() {
    let rig = Rig::new(Kind::Queue);
    let asked = AtomicU64::new(0);
    let words = liar(&rig.pool, move |heap, index| {
        if index == pool::PARKED {
            heap.word(index).store((asked.fetch_add(1, Relaxed) + 1) & 1, Relaxed);
        }
    });
    assert_eq!(Pool::new(words, &rig.plan).pick_sleeper(31, u32::MAX), None);
}

#[test]
fn a_message_that_is_always_claimed_when_it_is_dropped_ends_the_search() {
    let rig = Rig::new(Kind::Queue);
    let (slot_word, asked) = (rig.plan.slot_word, AtomicU64::new(0));
    let words = liar(&rig.pool, move |heap, index| {
        if index == slot_word {
            // As others claim it and give it back.
            let attempts = asked.fetch_add(1, Relaxed) as u8;
            heap.word(index).store(SlotWord::full(1, attempts).raw(), Relaxed);
        }
    });
    let mut producer = rig.producer(words);
    let queue::Acquired::Slot(0) = producer.acquire(0, true) else { panic!("the first slot is free") };
    producer.publish(0, &Draft::default());
    assert_eq!(producer.drop_oldest(0), None);
}

/// The 2^32nd use of a slot comes after generation u32::MAX.
#[test]
fn generations_wrap() {
    let draft = Draft { correlation_id: 7, ..Draft::default() };
    let rig = Rig::new(Kind::Queue);
    for slot in 0..4 {
        rig.set_slot(slot, SlotWord::done(u32::MAX));
        rig.set(rig.descriptor(slot), 1 + u64::from(slot));
    }
    let taken = Publisher::take_over(honest(&rig.ring), honest(&rig.pool), rig.plan.clone(), 2);
    let mut producer = QueueProducer::new(taken.unwrap().0);
    let mut consumer = rig.consumer(honest(&rig.ring), honest(&rig.pool));
    let queue::Acquired::Slot(slot) = producer.acquire(0, true) else { panic!("all are free") };
    producer.publish(slot, &draft);
    let Ok(Next::Claimed(claim)) = consumer.next(false, |_| true) else { panic!("it was published") };
    assert_eq!((claim.sequence, claim.generation), (5, 0));
    queue::finish(consumer.pool(), &claim);
    assert_eq!(producer.outstanding(), (0, 0, 0));

    let rig = Rig::new(Kind::Broadcast);
    rig.set_slot(0, SlotWord::full(u32::MAX, 0));
    rig.set(rig.descriptor(0), 1);
    let taken = Publisher::take_over(honest(&rig.ring), honest(&rig.ring), rig.plan.clone(), 2);
    let mut producer = BroadcastProducer::new(taken.unwrap().0, honest(&rig.ring));
    let mut member = rig.member(honest(&rig.ring), true);
    producer.admit(0, 1, member.part().clone());
    let last = Grant { state: GrantState::Done, generation: u32::MAX };
    member.part().grant(0).store(last.raw(), Relaxed);
    assert_eq!(producer.acquire(0), Some(0));
    producer.publish(0, &draft);
    let Ok(Next::Claimed(claim)) = member.next(false, |_| true) else { panic!("it is owed") };
    assert_eq!((claim.sequence, claim.generation), (2, 0));
    assert_eq!(producer.drop_oldest(0), None, "it is held");
}

#[test]
fn a_claim_of_a_dead_member_that_nobody_has_mended_may_still_come_back() {
    let rig = Rig::new(Kind::Queue);
    let pool = Pool::new(rig.pool.clone(), &rig.plan);
    let other = MemberId { index: 1, incarnation: 1 };
    assert!(queue::is_drained(&pool, ME));
    rig.set_slot(1, SlotWord::full(1, 0).claimed_by(ME));
    rig.set_slot(2, SlotWord::full(1, 0).claimed_by(other).acked());
    assert!(queue::is_drained(&pool, ME), "its own claims are its own affair; acked ones do not come back");
    rig.set_slot(3, SlotWord::full(1, 0).claimed_by(other));
    assert!(!queue::is_drained(&pool, ME), "dead or alive");
}
