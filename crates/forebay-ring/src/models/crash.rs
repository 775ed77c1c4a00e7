//! A producer dies before any of its accesses to shared memory, its successor does too, and consumers live through it.
//!
//! The successor runs in the thread of the dead: it holds the lock that the kernel took from them, so it sees all they
//! did. Consumers run beside it.

use super::{
    memory::{Memory, until_death},
    rig::{Broadcast, Queue, check, spawn},
};
use crate::{
    Claim, Publisher, Recovered, SlotState, SlotWord,
    broadcast::{self, BroadcastConsumer, BroadcastProducer},
    queue::{self, QueueConsumer},
};

/// More accesses than any one operation here makes; each test checks that.
const STEPS: usize = 120;

fn take_over(ring: &Queue, epoch: u64) -> (Publisher<Memory>, Recovered) {
    Publisher::take_over(ring.ring.clone(), ring.words.clone(), ring.plan.clone(), epoch).expect("nobody lies here")
}

/// Receives everything there is, and checks that it is `1..=last`, each once, but for what came `before`.
fn drain(ring: &Queue, consumer: &mut QueueConsumer<Memory>, before: Option<Claim>, last: u64) {
    let mut found: Vec<u64> = before.iter().map(|claim| claim.sequence).collect();
    while let Some(claim) = ring.receive(consumer, true) {
        queue::finish(&ring.pool(), &claim);
        found.push(claim.sequence);
    }
    found.sort_unstable();
    assert_eq!(found, (1..=last).collect::<Vec<_>>(), "lost, invented or delivered twice");
    assert_eq!(consumer.cursor(), last + 1, "a position is missing");
}

fn publish_dies_beside_a_consumer(step: usize) {
    check(2, move || {
        let ring = Queue::new(2);
        let mut consumer = ring.consumer(0);
        let dying = ring.mortal();
        let mut producer = dying.producer();
        dying.send_noted(&mut producer);
        dying.dies_in(step);
        let sender = {
            let ring = ring.clone();
            spawn(move || {
                let lived = until_death(|| _ = dying.send_noted(&mut producer));
                let (publisher, recovered) = take_over(&ring, 2);
                assert!(!lived || recovered.last_sequence == 2);
                assert_eq!(recovered.last_user, recovered.last_sequence.to_le_bytes(), "the place to go on from");
                assert_eq!(publisher.next_sequence(), recovered.last_sequence + 1);
                let mut producer = ring.producer_from(publisher);
                let next = ring.send_noted(&mut producer);
                recovered.last_sequence + u64::from(next.is_some())
            })
        };
        let claim = ring.receive(&mut consumer, true);
        if let Some(claim) = &claim {
            queue::finish(&ring.pool(), claim);
        }
        let last = sender.join().unwrap();
        drain(&ring, &mut consumer, claim, last);
        for slot in 0..2 {
            let word = SlotWord::checked(ring.pool().peek_slot(slot)).unwrap();
            assert!(matches!(word.state(), SlotState::Done | SlotState::Free), "slot {slot} is lost: {word:?}");
        }
    });
}

#[test]
fn a_producer_of_a_queue_dies_anywhere_in_a_publish() {
    for step in 0..30 {
        publish_dies_beside_a_consumer(step);
    }
}

/// Every pair of deaths: of a producer at `step` of its third message, of its successor at `second`. Before the third
/// producer comes, a consumer has looked.
#[test]
fn a_successor_of_a_queue_dies_anywhere_in_its_takeover() {
    for step in 0..30 {
        for second in 0..STEPS {
            check(0, move || {
                let ring = Queue::new(2);
                let mut consumer = ring.consumer(0);
                let dying = ring.mortal();
                let mut producer = dying.producer();
                for _ in 0..2 {
                    dying.send_noted(&mut producer);
                }
                let one = ring.receive(&mut consumer, false).expect("the first");
                queue::finish(&ring.pool(), &one);
                dying.dies_in(step);
                let lived = until_death(|| _ = dying.send_noted(&mut producer));
                let again = ring.mortal();
                again.dies_in(second);
                let took = until_death(|| drop(take_over(&again, 2)));
                assert!(took || second + 1 < STEPS, "raise STEPS");
                // Messages 2 and 3 may be taken in between.
                let two = ring.receive(&mut consumer, false).expect("the second");
                let three = ring.receive(&mut consumer, false);
                let (publisher, recovered) = take_over(&ring, 3);
                let last = recovered.last_sequence;
                assert!(last == 3 || !lived && last == 2 && three.is_none());
                assert_eq!(recovered.last_user, last.to_le_bytes());
                assert_eq!(publisher.next_sequence(), last + 1);
                for claim in [Some(two), three].iter().flatten() {
                    queue::finish(&ring.pool(), claim);
                }
                let mut producer = ring.producer_from(publisher);
                assert_eq!(ring.send_noted(&mut producer), Some(last + 1));
                let mut rest = Vec::new();
                while let Some(claim) = ring.receive(&mut consumer, true) {
                    queue::finish(&ring.pool(), &claim);
                    rest.push(claim.sequence);
                }
                let from = 3 + u64::from(three.is_some());
                assert_eq!(rest, (from..=last + 1).collect::<Vec<_>>());
                assert!(ring.send_noted(&mut producer).is_some() && ring.send_noted(&mut producer).is_some());
            });
        }
    }
}

fn broadcast_producer(ring: &Broadcast, epoch: u64) -> (BroadcastProducer<Memory>, Recovered) {
    let taken = Publisher::take_over(ring.ring.clone(), ring.ring.clone(), ring.plan.clone(), epoch);
    let (publisher, recovered) = taken.expect("nobody lies here");
    let mut producer = ring.producer_from(publisher);
    producer.readmit(0, 1, ring.part(0));
    (producer, recovered)
}

/// Takes everything there is, in order, from `next` on; returns what comes next.
fn follow(ring: &Broadcast, member: &mut BroadcastConsumer<Memory>, mut next: u64, scan: bool) -> u64 {
    while let Some(claim) = ring.receive(member, scan) {
        assert_eq!(claim.sequence, next, "lost or out of order");
        next += 1;
        let _ = broadcast::settle(&ring.part(0), &ring.reader(), claim.slot, claim.generation, false);
    }
    next
}

#[test]
fn a_broadcast_producer_and_its_successor_die_anywhere() {
    for step in 0..30 {
        for second in 0..STEPS {
            check(0, move || {
                let ring = Broadcast::new(2, false);
                let dying = ring.mortal();
                let mut producer = dying.producer();
                producer.admit(0, 1, ring.part(0));
                let mut member = ring.consumer(0, 1);
                dying.send_noted(&mut producer);
                let mut next = follow(&ring, &mut member, 1, false);
                dying.dies_in(step);
                let lived = until_death(|| _ = dying.send_noted(&mut producer));
                let again = ring.mortal();
                again.dies_in(second);
                let took = until_death(|| drop(broadcast_producer(&again, 2)));
                assert!(took || second + 1 < STEPS, "raise STEPS");
                // The member lives on in between, and neither loses the message nor takes it twice.
                next = follow(&ring, &mut member, next, false);
                let (mut producer, recovered) = broadcast_producer(&ring, 3);
                assert!(recovered.last_sequence == 2 || !lived && recovered.last_sequence == 1 && next == 2);
                next = follow(&ring, &mut member, next, true);
                assert_eq!(next, recovered.last_sequence + 1);
                for _ in 0..3 {
                    assert!(ring.send_noted(&mut producer).is_some(), "a slot is owed for ever");
                    next = follow(&ring, &mut member, next, false);
                }
                assert_eq!(next, recovered.last_sequence + 4);
            });
        }
    }
}

/// The member looks while the successor fills in the entry that the dead producer did not write.
#[test]
fn a_member_that_looks_during_a_takeover_loses_nothing() {
    for step in 0..30 {
        check(2, move || {
            let ring = Broadcast::new(2, false);
            let dying = ring.mortal();
            let mut producer = dying.producer();
            producer.admit(0, 1, ring.part(0));
            let mut member = ring.consumer(0, 1);
            dying.dies_in(step);
            until_death(|| _ = dying.send_noted(&mut producer));
            let successor = {
                let ring = ring.clone();
                spawn(move || broadcast_producer(&ring, 2))
            };
            let next = follow(&ring, &mut member, 1, true);
            let (_, recovered) = successor.join().unwrap();
            let next = follow(&ring, &mut member, next, false);
            assert_eq!(next, recovered.last_sequence + 1);
        });
    }
}
