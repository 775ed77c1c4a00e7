//! A producer dies before any of its accesses while it lets a member in, takes a message back, buries a dead letter or
//! abandons a loan, and its successor goes on. Deaths in a publish and in a takeover are in `crash`.

use super::{
    memory::{Memory, until_death},
    rig::{Broadcast, Queue, every_step, race},
};
use crate::{
    Publisher, SlotState, SlotWord,
    broadcast::{BroadcastProducer, settle},
    queue::{self, Acquired, QueueProducer},
};

fn succeed(ring: &Queue, epoch: u64) -> (QueueProducer<Memory>, u64) {
    let taken = Publisher::take_over(ring.ring.clone(), ring.words.clone(), ring.plan.clone(), epoch);
    let (publisher, recovered) = taken.expect("nobody lies here");
    (ring.producer_from(publisher), recovered.last_sequence)
}

fn succeed_broadcast(ring: &Broadcast, incarnation: u16, members: u8) -> (BroadcastProducer<Memory>, u64) {
    let taken = Publisher::take_over(ring.ring.clone(), ring.ring.clone(), ring.plan.clone(), 2);
    let (publisher, recovered) = taken.expect("nobody lies here");
    let mut producer = ring.producer_from(publisher);
    for index in 0..members {
        producer.readmit(index, incarnation, ring.part(index));
    }
    (producer, recovered.last_sequence)
}

fn slot_word(ring: &Queue, slot: u32) -> SlotWord {
    SlotWord::checked(ring.pool().peek_slot(slot)).expect("nobody lies here")
}

/// Drop-oldest against a claim, and the producer dies anywhere between its look and the head of the next message.
#[test]
fn a_producer_dies_anywhere_while_it_drops_the_oldest() {
    every_step(2, |step| {
        let ring = Queue::new(1);
        let mut consumer = ring.consumer(0);
        let mine = ring.mortal();
        let mut producer = mine.producer();
        mine.send_noted(&mut producer);
        let dropping = {
            let ring = ring.clone();
            move || {
                mine.dies_in(step);
                let lived = until_death(|| {
                    if let Some(slot) = producer.drop_oldest(0) {
                        mine.fill(&mut producer, slot);
                    }
                });
                // What the CAS has done is done, whatever the dead one knew of it.
                let dropped = slot_word(&ring, 0).generation() == 2;
                let (producer, last) = succeed(&ring, 2);
                (lived, dropped, producer, last)
            }
        };
        let claiming = {
            let ring = ring.clone();
            move || {
                let claim = ring.receive(&mut consumer, true);
                claim.iter().for_each(|claim| queue::finish(&ring.pool(), claim));
                (claim, consumer)
            }
        };
        let ((lived, dropped, mut producer, last), (claim, mut consumer)) = race(dropping, claiming);
        let later = claim.is_none().then(|| ring.receive(&mut consumer, true)).flatten();
        later.iter().for_each(|claim| queue::finish(&ring.pool(), claim));
        let found = claim.or(later).map(|claim| claim.sequence);
        let expected = match (dropped, last) {
            (false, 1) => Some(1),
            (true, 2) => Some(2),
            // Dropped, and the next one never committed.
            (true, 1) => None,
            other => panic!("{other:?}"),
        };
        assert_eq!(found, expected, "lost, or both claimed and dropped");
        assert_eq!(ring.send_noted(&mut producer), Some(last + 1), "the slot is lost");
        assert_eq!(ring.receive(&mut consumer, false).map(|claim| claim.sequence), Some(last + 1));
        lived
    });
}

/// A dead letter is copied, then buried; a successor hands it out again unless the burial was seen.
#[test]
fn a_producer_dies_anywhere_while_it_buries_a_dead_letter() {
    every_step(2, |step| {
        let ring = Queue::new(1);
        let mut consumer = ring.consumer(0);
        let mine = ring.mortal();
        let mut producer = mine.producer();
        mine.send_noted(&mut producer);
        let claim = ring.receive(&mut consumer, false).expect("it was published before");
        let giver = {
            let ring = ring.clone();
            move || {
                ring.write(&claim);
                queue::give_back(&ring.pool(), &claim, 1)
            }
        };
        let burier = {
            let ring = ring.clone();
            move || {
                let mut copied = false;
                mine.dies_in(step);
                let lived = until_death(|| {
                    if let Acquired::DeadLetter(slot) = producer.acquire(0, true) {
                        mine.read(&claim);
                        copied = true;
                        producer.bury(slot);
                        mine.send_noted(&mut producer);
                    }
                });
                let (producer, last) = succeed(&ring, 2);
                (lived, copied, last, producer)
            }
        };
        let (_, (lived, copied, last, mut producer)) = race(giver, burier);
        let waiting = producer.find_dead_letter();
        match (waiting, last) {
            (Some(slot), 1) => {
                ring.read(&claim);
                producer.bury(slot);
            }
            (None, 2) => assert!(copied, "its slot was used again, and nobody has it"),
            (None, 1) => assert!(copied, "buried by nobody"),
            other => panic!("{other:?}"),
        }
        let next = ring.receive(&mut consumer, true);
        assert_eq!(next.map(|claim| claim.sequence), (last == 2).then_some(2));
        next.iter().for_each(|claim| queue::finish(&ring.pool(), claim));
        assert_eq!(ring.send_noted(&mut producer), Some(last + 1), "the slot is lost");
        lived
    });
}

#[test]
fn a_producer_dies_anywhere_in_taking_and_abandoning_a_loan() {
    every_step(2, |step| {
        let ring = Queue::new(1);
        let mut consumer = ring.consumer(0);
        let mine = ring.mortal();
        let mut producer = mine.producer();
        mine.send_noted(&mut producer);
        let one = ring.receive(&mut consumer, false).expect("it was published before");
        queue::finish(&ring.pool(), &one);
        let loaning = {
            let ring = ring.clone();
            move || {
                mine.dies_in(step);
                let lived = until_death(|| {
                    let Acquired::Slot(slot) = producer.acquire(0, true) else { panic!("it is free") };
                    producer.abandon(slot);
                });
                let (producer, last) = succeed(&ring, 2);
                (lived, producer, last)
            }
        };
        let looking = {
            let ring = ring.clone();
            move || (ring.receive(&mut consumer, true), consumer)
        };
        let ((lived, mut producer, last), (early, mut consumer)) = race(loaning, looking);
        assert_eq!((early, last), (None, 1), "a message that was never published");
        let word = slot_word(&ring, 0);
        assert!(matches!(word.state(), SlotState::Free | SlotState::Done), "{word:?}");
        assert_eq!(ring.send_noted(&mut producer), Some(2), "the slot is lost");
        assert_eq!(ring.receive(&mut consumer, false).map(|claim| claim.sequence), Some(2));
        lived
    });
}

/// The producer dies anywhere while it removes the last holder of an index, lets in the next and publishes; that one
/// looks all the time.
#[test]
fn a_producer_dies_anywhere_while_it_lets_a_member_in() {
    every_step(2, |step| {
        let ring = Broadcast::new(2, false);
        let mine = ring.mortal();
        let mut producer = mine.producer();
        producer.admit(0, 1, mine.part(0));
        mine.send_noted(&mut producer);
        let admitter = {
            let ring = ring.clone();
            move || {
                mine.dies_in(step);
                let lived = until_death(|| {
                    producer.remove(0);
                    producer.admit(0, 2, mine.part(0));
                    mine.send_noted(&mut producer);
                });
                let (mut producer, last) = succeed_broadcast(&ring, 2, 1);
                let next = ring.send_noted(&mut producer);
                (lived, producer, last, next)
            }
        };
        let joiner = {
            let ring = ring.clone();
            move || {
                let mut member = ring.consumer(0, 2);
                let claim = ring.receive(&mut member, false);
                (claim, member)
            }
        };
        let ((lived, mut producer, last, next), (mut claim, mut member)) = race(admitter, joiner);
        assert_eq!(next, Some(last + 1), "nobody is owed the first message any more");
        let mut found = Vec::new();
        while let Some(taken) = claim.take().or_else(|| ring.receive(&mut member, true)) {
            let _ = settle(&ring.part(0), &ring.reader(), taken.slot, taken.generation, true);
            found.push(taken.sequence);
        }
        // From the second message on if the dead one had said so, else from the successor's first.
        assert!(found == [last + 1] || last == 2 && found == [2, 3], "{found:?} of {last}");
        assert!(!lived || found == [2, 3]);
        assert!(ring.send_noted(&mut producer).is_some() && ring.send_noted(&mut producer).is_some(), "owed for ever");
        lived
    });
}

/// Two members, one of which looks; the producer dies anywhere between its first look at who holds the oldest message
/// and the publish of the next. What was taken from some and not from others is still owed to those.
#[test]
fn a_producer_dies_anywhere_while_it_revokes() {
    every_step(2, |step| {
        let ring = Broadcast::new(1, true);
        let mine = ring.mortal();
        let mut producer = mine.producer();
        for index in [0, 1] {
            producer.admit(index, 1, mine.part(index));
        }
        mine.send_noted(&mut producer);
        let (mut looking, mut idle) = (ring.consumer(0, 1), ring.consumer(1, 1));
        let revoker = {
            let ring = ring.clone();
            move || {
                mine.dies_in(step);
                let lived = until_death(|| {
                    if let Some(slot) = producer.drop_oldest(0) {
                        mine.fill(&mut producer, slot);
                    }
                });
                let (producer, last) = succeed_broadcast(&ring, 1, 2);
                (lived, producer, last)
            }
        };
        let member = {
            let ring = ring.clone();
            move || {
                let claim = ring.receive(&mut looking, false);
                if let Some(claim) = claim {
                    ring.read(&claim);
                    let _ = settle(&ring.part(0), &ring.reader(), claim.slot, claim.generation, true);
                }
                (claim, looking)
            }
        };
        let ((lived, mut producer, last), (claim, mut looking)) = race(revoker, member);
        for (index, member, first) in [(0, &mut looking, claim), (1, &mut idle, None)] {
            let mut seen = u64::from(first.is_some());
            while let Some(claim) = ring.receive(member, true) {
                let _ = settle(&ring.part(index), &ring.reader(), claim.slot, claim.generation, true);
                seen += 1;
            }
            assert!(seen + member.missed() <= last, "member {index}: {seen} and {} of {last}", member.missed());
        }
        let next = ring.send_noted(&mut producer);
        assert_eq!(next, Some(last + 1), "a slot is owed for ever");
        for (index, member) in [(0, &mut looking), (1, &mut idle)] {
            let claim = ring.receive(member, true).expect("it is owed the last one");
            assert_eq!(Some(claim.sequence), next);
            let _ = settle(&ring.part(index), &ring.reader(), claim.slot, claim.generation, true);
        }
        lived
    });
}
