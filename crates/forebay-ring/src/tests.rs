//! The protocol in one thread, on the heap: what each side sees after each step.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use std::{cell::Cell, iter};

use forebay_layout::{
    Backing, DType, Kind, WhenFull,
    descriptor::TensorMeta,
    geometry::{Geometry, Plan, SlotClass},
};

use crate::{
    Claim, Draft, Member, MemberId, Pool, Publisher, ReadOnly, Reader, SlotState, SlotWord,
    broadcast::{BroadcastConsumer, BroadcastProducer, settle},
    queue::{self, Acquired, Next, QueueConsumer, QueueProducer},
    words::heap::Heap,
};

pub(crate) struct Rig {
    pub(crate) plan: Plan,
    pub(crate) ring: Heap,
    pub(crate) pool: Heap,
}

pub(crate) fn geometry(kind: Kind, slots: u32, when_full: WhenFull) -> Geometry {
    Geometry {
        kind,
        backing: Backing::Posix,
        when_full,
        writable: false,
        max_consumers: 4,
        max_attempts: 2,
        quota: 0,
        max_fields: 2,
        schema_bytes: 0,
        classes: iter::once(SlotClass { slots, slot_bytes: 256 }).collect(),
    }
}

impl Rig {
    pub(crate) fn queue(slots: u32) -> Self {
        Self::of(Kind::Queue, slots)
    }

    pub(crate) fn of(kind: Kind, slots: u32) -> Self {
        let plan = geometry(kind, slots, WhenFull::Block).plan().unwrap();
        Self { ring: Heap::bytes(plan.ring_bytes), pool: Heap::bytes(plan.pool_bytes), plan }
    }

    pub(crate) fn producer(&self) -> QueueProducer<Heap> {
        QueueProducer::new(Publisher::new(self.ring.clone(), self.pool.clone(), self.plan.clone(), 1))
    }

    pub(crate) fn reader(&self) -> Reader<Heap> {
        Reader::new(ReadOnly::new(self.ring.clone()), self.plan.clone(), 2)
    }

    pub(crate) fn pool(&self) -> Pool<Heap> {
        Pool::new(self.pool.clone(), &self.plan)
    }

    pub(crate) fn consumer(&self, index: u8) -> QueueConsumer<Heap> {
        QueueConsumer::new(self.reader(), self.pool(), MemberId { index, incarnation: 1 }, false)
    }
}

pub(crate) fn draft<'a>(fields: &'a [TensorMeta], user: &'a [u8]) -> Draft<'a> {
    Draft { correlation_id: 7, payload_bytes: 64, fields, user, ..Draft::default() }
}

pub(crate) fn field() -> [TensorMeta; 1] {
    [TensorMeta::new(DType::I64, &[2, 4], 0).unwrap()]
}

pub(crate) fn publish(producer: &mut QueueProducer<Heap>) -> u64 {
    let Acquired::Slot(slot) = producer.acquire(0, true) else { panic!("no slot is free") };
    producer.publish(slot, &draft(&field(), b"user"))
}

pub(crate) fn take(consumer: &mut QueueConsumer<Heap>) -> Option<Claim> {
    match consumer.next(true, |_| true).unwrap() {
        Next::Claimed(claim) => Some(claim),
        Next::Empty => None,
        Next::AtQuota(_) => panic!("no quota was set"),
    }
}

#[test]
fn messages_come_in_order_and_carry_what_was_published() {
    let rig = Rig::queue(4);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    for round in 0..100u64 {
        for i in 1..=3 {
            assert_eq!(publish(&mut producer), round * 3 + i);
        }
        for i in 1..=3 {
            let claim = take(&mut consumer).unwrap();
            assert_eq!(claim.sequence, round * 3 + i);
            let head = consumer.reader().head_of(&claim).unwrap();
            assert_eq!((head.correlation_id, head.fields, head.user_bytes), (7, 1, 4));
            assert_eq!(consumer.reader().field_of(&claim, 0).unwrap().0, field()[0]);
            assert_eq!(consumer.reader().user_of(&claim, &head), b"user");
            queue::finish(consumer.pool(), &claim);
        }
        assert_eq!(take(&mut consumer), None);
    }
}

#[test]
fn a_held_slot_does_not_stop_the_ring_and_is_not_touched() {
    let rig = Rig::queue(3);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    publish(&mut producer);
    let held = take(&mut consumer).unwrap();
    for sequence in 2..1000 {
        assert_eq!(publish(&mut producer), sequence);
        let claim = take(&mut consumer).unwrap();
        assert_eq!(claim.sequence, sequence);
        assert_ne!(claim.slot, held.slot);
        queue::finish(consumer.pool(), &claim);
    }
    assert_eq!(consumer.reader().head_of(&held).unwrap().sequence, 1);
    let _ = (publish(&mut producer), publish(&mut producer));
    assert_eq!(producer.acquire(0, true), Acquired::Full);
    queue::finish(consumer.pool(), &held);
    assert_eq!(producer.acquire(0, true), Acquired::Slot(held.slot));
}

#[test]
fn a_message_given_back_comes_again_and_then_becomes_a_dead_letter() {
    let rig = Rig::queue(4);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    publish(&mut producer);
    publish(&mut producer);
    let first = take(&mut consumer).unwrap();
    assert_eq!(queue::give_back(consumer.pool(), &first, 2), SlotState::Full);
    assert_eq!(take(&mut consumer).unwrap().sequence, 2, "first deliveries go first");
    let again = take(&mut consumer).unwrap();
    assert_eq!((again.sequence, again.attempts), (1, 1));
    assert_eq!(queue::give_back(consumer.pool(), &again, 2), SlotState::Dead);
    assert_eq!(take(&mut consumer), None);
    assert_eq!(producer.find_dead_letter(), Some(again.slot));
    assert_eq!(producer.attempts(again.slot), 2);
    producer.bury(again.slot);
    assert_eq!(producer.find_dead_letter(), None);
}

#[test]
fn what_a_dead_consumer_held_is_mended_once_and_what_a_living_one_holds_is_not() {
    let rig = Rig::queue(4);
    let mut producer = rig.producer();
    let (mut dead, mut alive) = (rig.consumer(0), rig.consumer(1));
    for _ in 0..3 {
        publish(&mut producer);
    }
    let claimed = take(&mut dead).unwrap();
    let acked = take(&mut dead).unwrap();
    queue::ack(dead.pool(), &acked);
    let kept = take(&mut alive).unwrap();
    let probes = Cell::new(0);
    let probe = |owner: MemberId| {
        probes.set(probes.get() + 1);
        owner.index == 1
    };
    let mended = queue::mend(&rig.pool(), 2, probe).unwrap();
    assert_eq!((mended.returned, mended.released, mended.dead), (1, 1, 0));
    assert_eq!(probes.get(), 3);
    assert!(queue::mend(&rig.pool(), 2, probe).unwrap().is_nothing());
    let again = take(&mut alive).unwrap();
    assert_eq!((again.sequence, again.attempts), (claimed.sequence, 1));
    assert_eq!(SlotWord::checked(rig.pool().peek_slot(kept.slot)), Ok(kept.word));
}

#[test]
fn drop_oldest_takes_the_oldest_that_nobody_claimed() {
    let rig = Rig::queue(3);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    for _ in 0..3 {
        publish(&mut producer);
    }
    let held = take(&mut consumer).unwrap();
    let slot = producer.drop_oldest(0).unwrap();
    assert_ne!(slot, held.slot);
    producer.publish(slot, &draft(&field(), &[]));
    assert_eq!(take(&mut consumer).unwrap().sequence, 3);
    assert_eq!(take(&mut consumer).unwrap().sequence, 4);
    assert_eq!(producer.drop_oldest(0), None);
}

#[test]
fn a_consumer_far_behind_finds_what_is_left_by_a_scan() {
    let rig = Rig::queue(4);
    let (mut producer, mut slow, mut fast) = (rig.producer(), rig.consumer(0), rig.consumer(1));
    for _ in 0..1000 {
        publish(&mut producer);
        let claim = take(&mut fast).unwrap();
        queue::finish(fast.pool(), &claim);
    }
    let last = publish(&mut producer);
    assert_eq!(take(&mut slow).unwrap().sequence, last);
    assert_eq!(take(&mut slow), None);
}

#[test]
fn a_successor_finds_everything_published_and_nothing_else() {
    let rig = Rig::queue(4);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    for _ in 0..3 {
        publish(&mut producer);
    }
    let held = take(&mut consumer).unwrap();
    assert!(matches!(producer.acquire(0, true), Acquired::Slot(_)));
    drop(producer);
    let taken = Publisher::take_over(rig.ring.clone(), rig.pool.clone(), rig.plan.clone(), 2);
    let (publisher, recovered) = taken.unwrap();
    assert_eq!((recovered.last_sequence, &recovered.last_user[..], recovered.outstanding), (3, &b"user"[..], 3));
    let mut producer = QueueProducer::new(publisher);
    assert_eq!(publish(&mut producer), 4);
    assert_eq!(producer.acquire(0, true), Acquired::Full);
    queue::finish(consumer.pool(), &held);
    for sequence in 2..=4 {
        assert_eq!(take(&mut consumer).unwrap().sequence, sequence);
    }
}

#[test]
fn a_successor_tells_a_commit_that_happened_from_one_that_did_not() {
    // The producer dies after it wrote the descriptor of sequence 4 into the slot that published 3, before the commit.
    let rig = Rig::queue(1);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    for _ in 0..3 {
        publish(&mut producer);
        let claim = take(&mut consumer).unwrap();
        queue::finish(consumer.pool(), &claim);
    }
    assert_eq!(producer.acquire(0, true), Acquired::Slot(0));
    let writing = rig.pool().peek_slot(0);
    producer.publish(0, &draft(&field(), b"never"));
    use crate::{sync::Ordering, words::Words};
    rig.pool().slot(0).store(writing, Ordering::Relaxed);
    rig.ring.word(forebay_layout::header::W_HEAD).store(4, Ordering::Relaxed);
    rig.ring.word(rig.plan.position_word + 4 * 16).store(0, Ordering::Relaxed);
    for epoch in 2..5 {
        let taken = Publisher::take_over(rig.ring.clone(), rig.pool.clone(), rig.plan.clone(), epoch);
        let (publisher, recovered) = taken.unwrap();
        assert_eq!((recovered.last_sequence, &recovered.last_user[..]), (3, &b"user"[..]));
        assert_eq!(publisher.next_sequence(), 4);
    }
}

#[test]
fn a_message_committed_without_an_entry_is_found() {
    let rig = Rig::queue(2);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    publish(&mut producer);
    use crate::{sync::Ordering, words::Words};
    rig.ring.word(rig.plan.position_word + 16).store(0, Ordering::Relaxed);
    let claim = take(&mut consumer).unwrap();
    assert_eq!(claim.sequence, 1);
    queue::give_back(consumer.pool(), &claim, 0);
    Publisher::take_over(rig.ring.clone(), rig.pool.clone(), rig.plan.clone(), 2).unwrap();
    assert_eq!(rig.ring.word(rig.plan.position_word + 16).load(Ordering::Relaxed), 1);
}

struct Broadcast {
    plan: Plan,
    ring: Heap,
    producer: BroadcastProducer<Heap>,
    lossy: bool,
}

impl Broadcast {
    fn new(slots: u32, when_full: WhenFull) -> Self {
        let plan = geometry(Kind::Broadcast, slots, when_full).plan().unwrap();
        let ring = Heap::bytes(plan.ring_bytes);
        let publisher = Publisher::new(ring.clone(), ring.clone(), plan.clone(), 1);
        let producer = BroadcastProducer::new(publisher, ring.clone());
        Self { plan, ring, producer, lossy: when_full == WhenFull::DropOldest }
    }

    fn join(&mut self, index: u8) -> BroadcastConsumer<Heap> {
        let part = Member::in_object(Heap::bytes(self.plan.member_bytes), &self.plan);
        self.producer.admit(index, 1, part.clone());
        let reader = Reader::new(ReadOnly::new(self.ring.clone()), self.plan.clone(), 2);
        BroadcastConsumer::new(reader, part, MemberId { index, incarnation: 1 }, self.lossy)
    }

    fn publish(&mut self) -> Option<u64> {
        let slot = self.producer.acquire(0)?;
        Some(self.producer.publish(slot, &draft(&field(), &[])))
    }
}

fn see(member: &mut BroadcastConsumer<Heap>) -> Option<Claim> {
    match member.next(false, |_| true).unwrap() {
        Next::Claimed(claim) => Some(claim),
        _ => None,
    }
}

fn done(member: &BroadcastConsumer<Heap>, claim: &Claim) {
    // With the fence and without: what is done is the same.
    let fences = claim.sequence.is_multiple_of(2);
    let _ = settle(member.part(), member.reader(), claim.slot, claim.generation, fences);
}

#[test]
fn every_member_sees_every_message_from_its_join_on() {
    let mut ring = Broadcast::new(3, WhenFull::Block);
    assert_eq!(ring.publish(), Some(1));
    let mut early = ring.join(0);
    assert_eq!(ring.publish(), Some(2));
    let mut late = ring.join(1);
    assert_eq!(ring.publish(), Some(3));
    for sequence in [2, 3] {
        let claim = see(&mut early).unwrap();
        assert_eq!(claim.sequence, sequence);
        done(&early, &claim);
    }
    assert_eq!(ring.publish(), Some(4), "slots 1 and 2 are settled: nobody joined, and early is through");
    let held = see(&mut late).unwrap();
    assert_eq!(held.sequence, 3);
    assert_eq!(ring.publish(), Some(5));
    assert_eq!(ring.publish(), None);
    done(&late, &held);
    assert_eq!(ring.publish(), Some(6));
}

#[test]
fn who_leaves_or_dies_owes_nothing_more() {
    let mut ring = Broadcast::new(2, WhenFull::Block);
    let (mut stays, mut leaves) = (ring.join(0), ring.join(1));
    ring.publish().unwrap();
    let claim = see(&mut leaves).unwrap();
    ring.publish().unwrap();
    leaves.leave();
    for _ in 0..2 {
        let claim = see(&mut stays).unwrap();
        done(&stays, &claim);
    }
    assert_eq!(ring.publish(), Some(3), "the slot of 2, which the leaver never took");
    assert_eq!(ring.publish(), None, "the leaver still reads 1");
    done(&leaves, &claim);
    assert_eq!(ring.publish(), Some(4));
    assert_eq!(ring.publish(), None);
    ring.producer.remove(0);
    assert_eq!(ring.publish(), Some(5));
}

#[test]
fn drop_oldest_revokes_what_nobody_holds_and_members_count_what_they_missed() {
    let mut ring = Broadcast::new(2, WhenFull::DropOldest);
    let (mut slow, mut idle) = (ring.join(0), ring.join(1));
    ring.publish().unwrap();
    let held = see(&mut slow).unwrap();
    for _ in 0..500 {
        let slot = ring.producer.acquire(0).or_else(|| ring.producer.drop_oldest(0)).unwrap();
        assert_ne!(slot, held.slot, "held by slow");
        ring.producer.publish(slot, &draft(&field(), &[]));
    }
    assert_eq!(slow.reader().head_of(&held).unwrap().sequence, 1);
    let claim = see(&mut slow).unwrap();
    assert_eq!((claim.sequence, slow.missed()), (501, 499));
    done(&slow, &claim);
    done(&slow, &held);
    assert_eq!(see(&mut idle).unwrap().sequence, 1, "its slot was held, so it was never revoked");
    assert_eq!(see(&mut idle).unwrap().sequence, 501);
    assert_eq!(idle.missed(), 499);
    assert_eq!(see(&mut idle), None);
}
