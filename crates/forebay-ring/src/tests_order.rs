//! Which message comes next, and where a consumer goes on when one is not there to be had.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use forebay_layout::{
    Kind,
    entry::{ENTRY_WORDS, NO_SLOT},
    member as at,
};

use crate::{
    Grant, GrantState, Member, MemberId, Publisher, SlotWord,
    broadcast::{BroadcastConsumer, BroadcastProducer, settle},
    queue::{self, Next, QueueConsumer},
    reader::{SEQUENCES, bounded, passes},
    sync::Ordering::Relaxed,
    tests::{Rig, draft, field, publish, take},
    words::{Words, heap::Heap},
};

fn entry(rig: &Rig, sequence: u64) -> usize {
    rig.plan.position_word + (sequence & (rig.plan.positions - 1)) as usize * ENTRY_WORDS
}

/// What a successor writes for a sequence that lies nowhere any more.
fn make_void(rig: &Rig, sequence: u64) {
    rig.ring.word(entry(rig, sequence) + 1).store(NO_SLOT.into(), Relaxed);
}

/// As after the death of a producer that committed the message and did not come to the entry.
fn forget_entry(rig: &Rig, sequence: u64) {
    rig.ring.word(entry(rig, sequence)).store(0, Relaxed);
}

fn sequence(next: Next) -> u64 {
    match next {
        Next::Claimed(claim) => claim.sequence,
        other => panic!("expected a message, found {other:?}"),
    }
}

#[test]
fn a_consumer_passes_by_what_is_void_and_what_others_took() {
    let rig = Rig::queue(4);
    let (mut producer, mut one, mut two) = (rig.producer(), rig.consumer(0), rig.consumer(1));
    for _ in 0..3 {
        publish(&mut producer);
    }
    assert_eq!(take(&mut one).map(|claim| claim.sequence), Some(1));
    rig.pool().slot(1).store(SlotWord::done(1).raw(), Relaxed);
    make_void(&rig, 2);
    assert_eq!(sequence(two.next(false, |_| true).unwrap()), 3);
    assert_eq!(two.cursor(), 4);
    assert_eq!((one.next(false, |_| true), one.cursor()), (Ok(Next::Empty), 4), "2 is void, 3 is the other's");
}

#[test]
fn what_came_back_comes_lowest_first_wherever_it_lies() {
    let rig = Rig::queue(4);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    for _ in 0..4 {
        publish(&mut producer);
    }
    let mut held: Vec<_> = (0..4).map(|_| take(&mut consumer).unwrap()).collect();
    queue::finish(consumer.pool(), &held.remove(0));
    publish(&mut producer);
    held.push(take(&mut consumer).unwrap());
    assert_eq!(held.iter().map(|claim| claim.slot).collect::<Vec<_>>(), [1, 2, 3, 0]);
    for claim in &held {
        queue::give_back(consumer.pool(), claim, 0);
    }
    for expected in 2..=5 {
        assert_eq!(take(&mut consumer).unwrap().sequence, expected);
    }
}

/// A ring of up to 1,447 slots is looked at as often as all of them could be lost one by one, twice; a larger one less.
#[test]
fn the_passes_of_one_look_are_as_many_as_the_ring_needs_and_no_more() {
    let slots = [0, 1, 4, 1447, 1449, 4096, 1 << 18, 1 << 20, u32::MAX];
    assert_eq!(slots.map(passes), [1, 3, 9, 2895, 2894, 1024, 16, 16, 16]);
    assert_eq!(Rig::queue(100).reader().patience(), 256 * 16);
}

/// What a scan found ahead of the cursor, because it had no entry yet, is not claimed again once it has one.
#[test]
fn a_single_consumer_claims_what_a_scan_found_only_once() {
    let rig = Rig::queue(2);
    let mut producer = rig.producer();
    let me = MemberId { index: 0, incarnation: 1 };
    let mut consumer = QueueConsumer::new(rig.reader(), rig.pool(), me, true);
    publish(&mut producer);
    queue::finish(&rig.pool(), &take(&mut consumer).unwrap());
    publish(&mut producer);
    let stamp = rig.ring.word(entry(&rig, 2)).swap(0, Relaxed);
    let claim = take(&mut consumer).unwrap();
    assert_eq!((claim.sequence, consumer.cursor()), (2, 2));
    queue::finish(&rig.pool(), &claim);
    rig.ring.word(entry(&rig, 2)).store(stamp, Relaxed);
    assert_eq!(take(&mut consumer), None);
    // And what comes next is claimed without looking, if it may be held.
    publish(&mut producer);
    assert_eq!(consumer.next(false, |_| false), Ok(Next::AtQuota(0)));
    let claim = take(&mut consumer).unwrap();
    assert_eq!((claim.sequence, claim.attempts, claim.word.owner()), (3, 0, Some(me)));
    assert_eq!(rig.pool().peek_slot(claim.slot), claim.word.raw());
}

#[test]
fn reserved_bits_in_an_entry_are_refused() {
    let rig = Rig::queue(2);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    let queue::Acquired::Slot(slot) = producer.acquire(0, true) else { panic!("it is free") };
    producer.publish(slot, &draft(&field(), &[]));
    let claim = take(&mut consumer).unwrap();
    for bit in [56, 63] {
        rig.ring.word(entry(&rig, 1) + 5).fetch_xor(1 << bit, Relaxed);
        assert_eq!(rig.reader().inline_of(&claim).unwrap_err().field, "position.tensor");
        rig.ring.word(entry(&rig, 1) + 5).fetch_xor(1 << bit, Relaxed);
    }
    assert!(matches!(rig.reader().inline_of(&claim), Ok(Some(_))));
}

#[test]
fn sequences_end_below_their_bound() {
    assert_eq!(bounded("head", SEQUENCES - 1), Ok(SEQUENCES - 1));
    assert_eq!(bounded("head", SEQUENCES).unwrap_err().bound, Some(SEQUENCES));
}

struct Member1 {
    rig: Rig,
    producer: BroadcastProducer<Heap>,
    part: Heap,
    consumer: BroadcastConsumer<Heap>,
}

fn broadcast(slots: u32, lossy: bool) -> Member1 {
    let rig = Rig::of(Kind::Broadcast, slots);
    let publisher = Publisher::new(rig.ring.clone(), rig.ring.clone(), rig.plan.clone(), 1);
    let mut producer = BroadcastProducer::new(publisher, rig.ring.clone());
    let words = Heap::bytes(rig.plan.member_bytes);
    let part = Member::in_object(words.clone(), &rig.plan);
    producer.admit(0, 1, part.clone());
    let consumer = BroadcastConsumer::new(rig.reader(), part, MemberId { index: 0, incarnation: 1 }, lossy);
    Member1 { rig, producer, part: words, consumer }
}

impl Member1 {
    fn send(&mut self) -> u64 {
        let slot = self.producer.acquire(0).or_else(|| self.producer.drop_oldest(0)).unwrap();
        self.producer.publish(slot, &draft(&[], &[]))
    }

    fn receive(&mut self, scan: bool) -> u64 {
        let Next::Claimed(claim) = self.consumer.next(scan, |_| true).unwrap() else { panic!("there is one") };
        let _ = settle(self.consumer.part(), self.consumer.reader(), claim.slot, claim.generation, false);
        claim.sequence
    }

    fn grant(&self, slot: usize) -> &crate::AtomicU64 {
        self.part.word(self.rig.plan.member_word + at::SINCE + self.rig.plan.slots as usize + slot)
    }
}

#[test]
fn a_member_passes_by_what_is_void() {
    let mut ring = broadcast(4, false);
    (1..=3).for_each(|sequence| assert_eq!(ring.send(), sequence));
    make_void(&ring.rig, 1);
    make_void(&ring.rig, 2);
    assert_eq!((ring.receive(false), ring.consumer.cursor(), ring.consumer.missed()), (3, 4, 0));
}

/// Where messages are taken away, one is a member's only once its word says so.
#[test]
fn a_member_takes_the_short_way_where_nothing_is_taken_away() {
    let short = |ring: &mut Member1| {
        let mut words = [0; ENTRY_WORDS];
        let claim = ring.consumer.next_in_order(|_| Some(&mut words))?;
        assert_eq!(
            (words[0], claim.slot, claim.generation),
            (claim.sequence, words[1] as u32, (words[1] >> 32) as u32)
        );
        let _ = settle(ring.consumer.part(), ring.consumer.reader(), claim.slot, claim.generation, false);
        Some(claim.sequence)
    };
    let mut ring = broadcast(2, false);
    ring.send();
    assert_eq!(short(&mut ring), None, "it has not looked where it joined");
    assert_eq!(ring.receive(false), 1);
    for sequence in 2..200 {
        assert_eq!(short(&mut ring), None);
        assert_eq!(ring.send(), sequence);
        assert!(ring.consumer.next_in_order(|_| None).is_none(), "no room");
        assert_eq!((short(&mut ring), ring.consumer.cursor()), (Some(sequence), sequence + 1));
    }
    let mut ring = broadcast(2, true);
    ring.send();
    ring.receive(false);
    ring.send();
    assert_eq!((short(&mut ring), ring.receive(false)), (None, 2));
}

/// Slot 0 has message 4 by then, slot 1 message 2.
#[test]
fn a_member_finds_what_has_no_entry_lowest_first_wherever_it_lies() {
    for lossy in [false, true] {
        let mut ring = broadcast(3, lossy);
        (1..=3).for_each(|sequence| assert_eq!(ring.send(), sequence));
        assert_eq!(ring.receive(false), 1);
        assert_eq!(ring.send(), 4);
        (2..=4).for_each(|sequence| forget_entry(&ring.rig, sequence));
        assert_eq!(ring.consumer.next(false, |_| true), Ok(Next::Empty));
        assert_eq!([(); 3].map(|()| ring.receive(true)), [2, 3, 4]);
        assert_eq!((ring.consumer.next(true, |_| true), ring.consumer.missed()), (Ok(Next::Empty), 0));
    }
}

/// A lossy member's word says of which use of the slot it speaks; uses may wrap around.
#[test]
fn a_member_holds_what_is_newer_than_its_word() {
    let word = |state, generation| Grant { state, generation }.raw();
    let half = 1 << 31;
    for (old, held) in [
        (word(GrantState::Never, 0), true),
        (word(GrantState::Never, 1), true),
        (word(GrantState::Done, 0), true),
        (word(GrantState::Revoked, u32::MAX), true),
        (word(GrantState::Done, half + 1), true),
        (word(GrantState::Done, half), false),
        (word(GrantState::Done, 1), false),
        (word(GrantState::Revoked, 1), false),
        (word(GrantState::Revoked, 2), false),
        (word(GrantState::Held, 1), false),
    ] {
        let mut ring = broadcast(1, true);
        assert_eq!(ring.send(), 1);
        ring.grant(0).store(old, Relaxed);
        let got = match ring.consumer.next(false, |_| true) {
            Ok(Next::Claimed(claim)) => claim.sequence,
            Ok(Next::Empty) => 0,
            other => panic!("{other:?}"),
        };
        assert_eq!((got == 1, ring.consumer.missed()), (held, u64::from(!held)), "{old:#x}");
        let now = if held { word(GrantState::Held, 1) } else { old };
        assert_eq!(ring.grant(0).load(Relaxed), now);
        assert_eq!(ring.part.word(ring.rig.plan.member_word + at::MISSED).load(Relaxed), u64::from(!held));
    }
}

/// What a member missed is counted one by one, up to the oldest message that is still there.
#[test]
fn a_member_that_was_away_counts_what_it_missed() {
    for (sent, slots) in [(3, 2), (66, 2), (130, 4), (200, 1)] {
        let mut ring = broadcast(slots, true);
        (1..=sent).for_each(|sequence| assert_eq!(ring.send(), sequence));
        let oldest = sent - u64::from(slots) + 1;
        assert_eq!((ring.receive(false), ring.consumer.missed()), (oldest, oldest - 1));
        assert_eq!(ring.producer.publisher().counted(crate::Counter::Dropped), oldest - 1);
    }
}

/// Where nothing may be missed, an entry that was used again before its message was read is the producer's lie.
#[test]
fn a_member_that_may_miss_nothing_refuses_to_be_overtaken() {
    let mut ring = broadcast(2, false);
    assert_eq!(ring.send(), 1);
    ring.rig.ring.word(entry(&ring.rig, 1)).store(65, Relaxed);
    let defect = ring.consumer.next(true, |_| true).unwrap_err();
    assert_eq!((defect.field, defect.found, ring.consumer.missed()), ("position.stamp", 65, 0));
}

/// No producer that keeps to the protocol uses an entry for another sequence than one that is a lap ahead.
#[test]
fn an_entry_of_a_later_message_leads_on_whatever_it_says() {
    for stamp in [2, 3, 64] {
        let rig = Rig::queue(2);
        rig.ring.word(entry(&rig, 1)).store(stamp, Relaxed);
        let mut consumer = rig.consumer(0);
        assert_eq!((consumer.next(false, |_| true), consumer.cursor()), (Ok(Next::Empty), 2));

        let mut ring = broadcast(2, true);
        ring.rig.ring.word(entry(&ring.rig, 1)).store(stamp, Relaxed);
        assert_eq!(ring.consumer.next(false, |_| true), Ok(Next::Empty));
        assert_eq!((ring.consumer.cursor(), ring.consumer.missed()), (2, 1));
    }
}

/// A message that is settled is none, however often the slots are looked at.
#[test]
fn a_scan_finds_nothing_that_was_received() {
    let mut ring = broadcast(2, true);
    (1..=2).for_each(|sequence| assert_eq!((ring.send(), ring.receive(true)), (sequence, sequence)));
    assert_eq!((ring.consumer.next(true, |_| true), ring.consumer.cursor()), (Ok(Next::Empty), 3));
}
