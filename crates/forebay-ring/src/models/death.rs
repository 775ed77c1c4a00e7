//! A consumer of a queue dies before any of its accesses to shared memory, and others live on beside it: nothing is
//! lost, nothing comes again that was acked, no slot is lost.
//!
//! What its slot word says when it dies decides what must follow, so there is no tolerance: CLAIMED comes back exactly
//! once, with one attempt more; ACKED never does; anything else it has not touched.

use super::{
    in_order,
    memory::{Memory, until_death},
    park::wake_one,
    rig::{LockByte, Queue, check, every_step, race},
};
use crate::{
    Claim, MemberId, SlotState, SlotWord,
    queue::{self, Acquired, Mended, QueueConsumer, QueueProducer, held_by, mend},
};

/// Who dies here.
const DEAD: MemberId = MemberId { index: 0, incarnation: 1 };

fn mend_now(ring: &Queue, byte: &LockByte) -> Mended {
    mend(&ring.pool(), 0, |owner| owner.index != DEAD.index || byte.lives()).expect("nobody lies here")
}

/// Takes all there is, to the end.
fn drain(ring: &Queue, consumer: &mut QueueConsumer<Memory>) -> Vec<Claim> {
    let mut found = Vec::new();
    while let Some(claim) = ring.receive(consumer, true) {
        queue::finish(&ring.pool(), &claim);
        found.push(claim);
    }
    found
}

/// Every slot can be written again, and no more than there are.
fn all_slots_return(ring: &Queue, producer: &mut QueueProducer<Memory>) {
    for _ in 0..ring.plan.slots {
        assert!(ring.send(producer).is_some(), "a slot is lost");
    }
    assert_eq!(producer.acquire(0, true), Acquired::Full);
}

fn word(ring: &Queue, slot: u32) -> SlotWord {
    SlotWord::checked(ring.pool().peek_slot(slot)).expect("nobody lies here")
}

/// What the dying consumer does with the message that it receives.
#[derive(Clone, Copy, PartialEq)]
enum Deed {
    AckAndFinish,
    Finish,
    GiveBack,
}

/// How it claims that message.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Looking,
    ByStore,
    InOrder,
}

/// A life that ends at access number `step`: whether it came to its own end, whether it ended its message, and what its
/// slot said when it was over.
fn live(ring: &Queue, byte: &LockByte, step: usize, deed: Deed, way: Way) -> (bool, bool, SlotWord) {
    let mine = ring.mortal();
    let mut consumer = mine.consumer_of(DEAD.index, way == Way::ByStore);
    let mut ended = false;
    mine.dies_in(step);
    let lived = until_death(|| {
        let short = if way == Way::InOrder { in_order::take(&mine, &mut consumer) } else { None };
        let Some(claim) = short.or_else(|| mine.receive(&mut consumer, true)) else { return };
        match deed {
            Deed::AckAndFinish => {
                queue::ack(&mine.pool(), &claim);
                mine.read(&claim);
                queue::finish(&mine.pool(), &claim);
            }
            Deed::Finish => queue::finish(&mine.pool(), &claim),
            Deed::GiveBack => _ = queue::give_back(&mine.pool(), &claim, 0),
        }
        ended = deed != Deed::GiveBack;
    });
    let left = word(ring, 0);
    byte.die();
    (lived, ended, left)
}

/// What must follow from that: (returned, released, attempts of what others then receive, of which they `saw` some).
fn expected(ended: bool, left: SlotWord, saw: Option<u8>) -> (u32, u32, Option<u8>) {
    match left.state() {
        _ if ended => (0, 0, None),
        SlotState::Claimed if left.owner() == Some(DEAD) => (1, 0, Some(left.attempts() + 1)),
        SlotState::Acked if left.owner() == Some(DEAD) => (0, 1, None),
        // The other one has received it already; the word no longer says in which attempt.
        SlotState::Done => (0, 0, Some(saw.expect("it ended, but nobody has received it"))),
        // Nobody has it, or the other one does.
        _ => (0, 0, Some(left.attempts())),
    }
}

fn a_life_ends_beside_another_consumer(deed: Deed, way: Way) {
    every_step(2, move |step| {
        let ring = Queue::new(1);
        let mut producer = ring.producer();
        ring.send(&mut producer);
        let byte = LockByte::held();
        let mut other = ring.consumer(1);
        let dying = {
            let (ring, byte) = (ring.clone(), byte.clone());
            move || live(&ring, &byte, step, deed, way)
        };
        let living = {
            let (ring, byte) = (ring.clone(), byte.clone());
            move || {
                let mended = mend_now(&ring, &byte);
                let first = ring.receive(&mut other, true);
                first.iter().for_each(|claim| queue::finish(&ring.pool(), claim));
                (mended, first, other)
            }
        };
        let ((lived, ended, left), (mended, first, mut other)) = race(dying, living);
        let again = mend_now(&ring, &byte);
        let found: Vec<_> = first.into_iter().chain(drain(&ring, &mut other)).map(|claim| claim.attempts).collect();
        let (returned, released) = (mended.returned + again.returned, mended.released + again.released);
        let expected = expected(ended, left, found.first().copied());
        assert_eq!((returned, released, found), (expected.0, expected.1, Vec::from_iter(expected.2)), "{left:?}");
        all_slots_return(&ring, &mut producer);
        lived
    });
}

#[test]
fn a_consumer_dies_anywhere_between_claim_and_ack_and_release() {
    a_life_ends_beside_another_consumer(Deed::AckAndFinish, Way::Looking);
}

#[test]
fn a_consumer_dies_anywhere_between_claim_and_release() {
    a_life_ends_beside_another_consumer(Deed::Finish, Way::Looking);
}

#[test]
fn a_consumer_dies_anywhere_in_giving_back() {
    a_life_ends_beside_another_consumer(Deed::GiveBack, Way::Looking);
}

#[test]
fn a_consumer_that_takes_in_order_dies_anywhere_between_claim_and_ack_and_release() {
    a_life_ends_beside_another_consumer(Deed::AckAndFinish, Way::InOrder);
}

/// Its claim is a store; the producer mends, and goes on.
#[test]
fn a_single_consumer_dies_anywhere_beside_the_producer() {
    every_step(2, |step| {
        let ring = Queue::new(1);
        let mut producer = ring.producer();
        ring.send(&mut producer);
        let byte = LockByte::held();
        let dying = {
            let (ring, byte) = (ring.clone(), byte.clone());
            move || live(&ring, &byte, step, Deed::AckAndFinish, Way::ByStore)
        };
        let living = {
            let (ring, byte) = (ring.clone(), byte.clone());
            move || {
                let mended = mend_now(&ring, &byte);
                (mended, ring.send(&mut producer), producer)
            }
        };
        let ((lived, ended, left), (mended, sent, mut producer)) = race(dying, living);
        let again = mend_now(&ring, &byte);
        let found: Vec<_> =
            drain(&ring, &mut ring.consumer_of(1, true)).iter().map(|c| (c.sequence, c.attempts)).collect();
        let (returned, released, first) = expected(ended, left, None);
        assert_eq!((mended.returned + again.returned, mended.released + again.released), (returned, released));
        let all = first.map(|attempts| (1, attempts)).into_iter().chain(sent.map(|sequence| (sequence, 0)));
        // There is one slot: the second message is there only if the first is through.
        assert_eq!(found, all.collect::<Vec<_>>(), "{left:?}");
        all_slots_return(&ring, &mut producer);
        lived
    });
}

fn a_life_ends_while_the_oldest_is_dropped(way: Way) {
    every_step(2, move |step| {
        let ring = Queue::new(1);
        let mut producer = ring.producer();
        ring.send(&mut producer);
        let byte = LockByte::held();
        let dying = {
            let (ring, byte) = (ring.clone(), byte.clone());
            move || live(&ring, &byte, step, Deed::AckAndFinish, way)
        };
        let dropping = {
            let ring = ring.clone();
            move || {
                let dropped = producer.drop_oldest(0);
                (dropped.map(|slot| ring.fill(&mut producer, slot)), producer)
            }
        };
        let ((lived, ended, left), (second, mut producer)) = race(dying, dropping);
        let mended = mend_now(&ring, &byte);
        let found: Vec<_> = drain(&ring, &mut ring.consumer(1)).iter().map(|c| (c.sequence, c.attempts)).collect();
        let held = left.owner() == Some(DEAD);
        assert_eq!(mended.is_nothing(), !held);
        let last = second.unwrap_or(1);
        // What the dead claimed may be the second message; either is received, given back, acked or dropped, once.
        let through = ended || held && left.state() == SlotState::Acked;
        let attempts = u8::from(held);
        assert_eq!(found, Vec::from_iter((!through).then_some((last, attempts))), "{left:?}");
        all_slots_return(&ring, &mut producer);
        lived
    });
}

#[test]
fn a_consumer_dies_anywhere_while_the_oldest_is_dropped() {
    a_life_ends_while_the_oldest_is_dropped(Way::Looking);
}

#[test]
fn a_consumer_that_takes_in_order_dies_anywhere_while_the_oldest_is_dropped() {
    a_life_ends_while_the_oldest_is_dropped(Way::InOrder);
}

/// Two mend what the dead left, and one of them dies doing it.
#[test]
fn who_mends_dies_anywhere() {
    every_step(3, |step| {
        let ring = Queue::new(2);
        let (mut producer, mut dead) = (ring.producer(), ring.consumer(DEAD.index));
        let byte = LockByte::held();
        ring.send(&mut producer);
        ring.send(&mut producer);
        let acked = ring.receive(&mut dead, false).expect("the first");
        let claimed = ring.receive(&mut dead, false).expect("the second");
        queue::ack(&ring.pool(), &acked);
        byte.die();
        let dying = {
            let (mine, byte) = (ring.mortal(), byte.clone());
            move || {
                mine.dies_in(step);
                until_death(|| _ = mend_now(&mine, &byte))
            }
        };
        let other = {
            let (ring, byte) = (ring.clone(), byte.clone());
            move || mend_now(&ring, &byte)
        };
        let (lived, _) = race(dying, other);
        assert_eq!(word(&ring, acked.slot).state(), SlotState::Done, "the living one has mended all");
        let again = word(&ring, claimed.slot);
        assert_eq!((again.state(), again.attempts()), (SlotState::Full, 1), "returned twice, or not at all");
        // Counted or not: the look of who is about to sleep finds it.
        let found = drain(&ring, &mut ring.consumer(1));
        assert_eq!(found.iter().map(|c| (c.sequence, c.attempts)).collect::<Vec<_>>(), [(claimed.sequence, 1)]);
        all_slots_return(&ring, &mut producer);
        lived
    });
}

/// The index of the dead is used again while somebody who has read its last word still mends.
#[test]
fn an_index_is_used_again_beside_a_slow_mender() {
    check(3, || {
        let ring = Queue::new(1);
        let (mut producer, mut dead) = (ring.producer(), ring.consumer(DEAD.index));
        let byte = LockByte::held();
        ring.send(&mut producer);
        let first = ring.receive(&mut dead, false).expect("it was published before");
        byte.die();
        let reuse = {
            let (ring, byte) = (ring.clone(), byte.clone());
            move || {
                let mended = queue::release_all_of(&ring.pool(), 0, DEAD.index).expect("nobody lies here");
                assert_eq!(held_by(&ring.pool(), DEAD.index).count(), 0, "the index is not free");
                byte.take();
                let next = DEAD.successor();
                let mut consumer = QueueConsumer::new(ring.reader(), ring.pool(), next, false);
                let claim = ring.receive(&mut consumer, true).expect("it came back");
                (mended.returned, claim)
            }
        };
        let mender = {
            let ring = ring.clone();
            move || mend_now(&ring, &byte).returned
        };
        let ((mine, claim), theirs) = race(reuse, mender);
        assert_eq!(mine + theirs, 1, "one death, one return");
        assert_eq!((claim.sequence, claim.attempts), (first.sequence, 1));
        assert_eq!(word(&ring, claim.slot), claim.word, "taken from a living consumer");
    });
}

#[test]
fn a_second_consumer_joins_while_messages_come_and_go() {
    check(2, || {
        let ring = Queue::new(2);
        let (mut producer, mut first) = (ring.producer(), ring.consumer(0));
        ring.send(&mut producer);
        let sender = {
            let ring = ring.clone();
            move || {
                ring.send(&mut producer);
                let claim = ring.receive(&mut first, false);
                claim.iter().for_each(|claim| queue::finish(&ring.pool(), claim));
                (claim, first, producer)
            }
        };
        let joiner = {
            let ring = ring.clone();
            move || {
                let mut second = ring.consumer(1);
                let claim = ring.receive(&mut second, true);
                claim.iter().for_each(|claim| queue::finish(&ring.pool(), claim));
                (claim, second)
            }
        };
        let ((one, mut first, mut producer), (other, mut second)) = race(sender, joiner);
        let mut all: Vec<_> = one.into_iter().chain(other).map(|claim| claim.sequence).collect();
        all.extend(drain(&ring, &mut second).iter().chain(&drain(&ring, &mut first)).map(|claim| claim.sequence));
        all.sort_unstable();
        assert_eq!(all, [1, 2], "lost, or delivered twice");
        all_slots_return(&ring, &mut producer);
    });
}

/// What the producer does with the place of a member that is gone: it passes on a wake that was spent on it, mends what
/// it held, and wakes for that.
pub(super) fn vacate(ring: &Queue, byte: &LockByte) {
    if !ring.pool().unpark(DEAD.index) {
        wake_one(ring, true);
    }
    for _ in 0..mend_now(ring, byte).returned {
        wake_one(ring, true);
    }
}

/// A consumer leaves: it gives back what it has and wakes somebody for it; it dies anywhere in that.
#[test]
fn a_consumer_dies_anywhere_in_leaving_and_the_sleeper_is_woken() {
    every_step(2, |step| {
        let ring = Queue::new(1);
        let (mut producer, mut leaver, mut sleeper) = (ring.producer(), ring.consumer(DEAD.index), ring.consumer(1));
        ring.send(&mut producer);
        let claim = ring.receive(&mut leaver, false).expect("it was published before");
        let byte = LockByte::held();
        let leaver = {
            let (ring, mine, byte) = (ring.clone(), ring.mortal(), byte.clone());
            move || {
                mine.dies_in(step);
                let lived = until_death(|| {
                    let _ = queue::give_back(&mine.pool(), &claim, 0);
                    wake_one(&mine, true);
                });
                byte.die();
                vacate(&ring, &byte);
                lived
            }
        };
        let sleeper = {
            let ring = ring.clone();
            move || {
                ring.pool().park(1);
                crate::sync::fence(crate::sync::Ordering::SeqCst);
                ring.receive(&mut sleeper, true).is_none()
            }
        };
        let (lived, sleeps) = race(leaver, sleeper);
        assert!(!sleeps || ring.pool().parked() & 2 == 0, "it sleeps beside a message");
        lived
    });
}
