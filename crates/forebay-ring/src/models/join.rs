//! E6 join: a member starts at the sequence from which on the producer owes it messages, and at no other.

use super::rig::{Broadcast, check, race, spawn};
use crate::{Publisher, broadcast};

#[test]
fn a_member_gets_everything_from_its_join_on_and_nothing_before() {
    check(3, || {
        let ring = Broadcast::new(2, false);
        let mut producer = ring.producer();
        ring.send(&mut producer);
        let mut member = ring.consumer(0, 1);
        let sender = {
            let ring = ring.clone();
            spawn(move || {
                producer.admit(0, 1, ring.part(0));
                ring.send(&mut producer);
                producer
            })
        };
        let early = ring.receive(&mut member, false);
        let mut producer = sender.join().unwrap();
        let claim = early.or_else(|| ring.receive(&mut member, false)).expect("it is owed the second");
        assert_eq!(claim.sequence, 2);
        assert_eq!(producer.owed_by(claim.slot), 1);
        let _ = broadcast::settle(&ring.part(0), &ring.reader(), claim.slot, claim.generation, false);
        assert!(ring.send(&mut producer).is_some());
    });
}

/// Index 0 passes from a member that died to the next, which already looks for the word that lets it in.
#[test]
fn a_member_never_starts_where_an_earlier_holder_of_its_index_did() {
    check(3, || {
        let ring = Broadcast::new(2, false);
        let mut producer = ring.producer();
        producer.admit(0, 1, ring.part(0));
        ring.send(&mut producer);
        let mut member = ring.consumer(0, 2);
        let admitter = {
            let ring = ring.clone();
            spawn(move || {
                producer.remove(0);
                producer.admit(0, 2, ring.part(0));
            })
        };
        if member.joined() {
            assert_eq!(member.cursor(), 2, "where the dead member started");
        }
        admitter.join().unwrap();
        assert!(member.joined());
        assert_eq!(member.cursor(), 2);
    });
}

/// As above, but the producer that let the earlier holder in is dead as well, and nobody removed it.
#[test]
fn nor_where_a_member_of_a_dead_producer_did() {
    check(3, || {
        let ring = Broadcast::new(2, false);
        let mut dead = ring.producer();
        dead.admit(0, 1, ring.part(0));
        ring.send(&mut dead);
        drop(dead);
        let taken = Publisher::take_over(ring.ring.clone(), ring.ring.clone(), ring.plan.clone(), 2);
        let mut producer = ring.producer_from(taken.expect("nobody lies here").0);
        let mut member = ring.consumer(0, 2);
        let admitter = {
            let ring = ring.clone();
            spawn(move || producer.admit(0, 2, ring.part(0)))
        };
        if member.joined() {
            assert_eq!(member.cursor(), 2, "where the dead member started");
        }
        admitter.join().unwrap();
    });
}

#[test]
fn who_leaves_before_it_was_let_in_is_owed_nothing() {
    check(3, || {
        let ring = Broadcast::new(1, false);
        let mut producer = ring.producer();
        let mut member = ring.consumer(0, 1);
        let sender = {
            let ring = ring.clone();
            spawn(move || {
                producer.admit(0, 1, ring.part(0));
                ring.send(&mut producer);
                producer
            })
        };
        member.leave();
        let mut producer = sender.join().unwrap();
        assert!(ring.send(&mut producer).is_some(), "a message is owed to who has left");
    });
}

/// The slot of a message from before the join is written again while the member scans: its word still says FULL of the
/// old generation when the descriptor already says the new sequence, which the member is owed.
#[test]
fn a_late_member_takes_no_message_before_it_is_committed() {
    check(3, || {
        let ring = Broadcast::new(1, false);
        let mut producer = ring.producer();
        ring.send(&mut producer);
        producer.admit(0, 1, ring.part(0));
        let mut member = ring.consumer(0, 1);
        let sender = {
            let ring = ring.clone();
            move || ring.send(&mut producer)
        };
        let scanner = {
            let ring = ring.clone();
            move || (ring.receive(&mut member, true), member)
        };
        let (_, (early, mut member)) = race(sender, scanner);
        let claim = early.or_else(|| ring.receive(&mut member, true)).expect("it is owed the second");
        assert_eq!((claim.sequence, claim.generation), (2, 2));
    });
}
