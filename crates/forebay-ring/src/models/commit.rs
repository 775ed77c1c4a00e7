//! E1 commit: a claim sees payload and descriptor, however it found the message.

use super::rig::{Broadcast, Queue, check, spawn};
use crate::{queue::mend, sync::Ordering, words::Words};
use forebay_layout::header::{W_STATE, state};

#[test]
fn a_message_found_by_its_position_arrives_whole() {
    check(2, || {
        let ring = Queue::new(2);
        let (mut producer, mut consumer) = (ring.producer(), ring.consumer(0));
        let sender = {
            let ring = ring.clone();
            spawn(move || ring.send(&mut producer))
        };
        let early = ring.receive(&mut consumer, false);
        assert_eq!(sender.join().unwrap(), Some(1));
        let claim = early.or_else(|| ring.receive(&mut consumer, false)).expect("it is published now");
        assert_eq!((claim.sequence, claim.attempts), (1, 0));
        assert_eq!(ring.receive(&mut consumer, true), None);
    });
}

#[test]
fn a_message_found_by_a_scan_arrives_whole() {
    check(2, || {
        let ring = Queue::new(2);
        let (mut producer, mut consumer) = (ring.producer(), ring.consumer(0));
        let sender = {
            let ring = ring.clone();
            spawn(move || ring.send(&mut producer))
        };
        let _ = ring.receive(&mut consumer, true);
        sender.join().unwrap();
    });
}

#[test]
fn a_single_consumer_may_claim_by_a_store() {
    check(2, || {
        let ring = Queue::new(2);
        let (mut producer, mut consumer) = (ring.producer(), ring.consumer_of(0, true));
        let sender = {
            let ring = ring.clone();
            spawn(move || ring.send(&mut producer))
        };
        let _ = ring.receive(&mut consumer, true);
        sender.join().unwrap();
    });
}

/// A ring for one consumer, whose first dies over a message that its producer has not counted yet.
#[test]
fn what_an_earlier_consumer_had_is_looked_at_before_it_is_claimed() {
    check(3, || {
        let ring = Queue::new(1);
        let (mut producer, mut first) = (ring.producer(), ring.consumer_of(0, true));
        let sender = {
            let ring = ring.clone();
            spawn(move || ring.send(&mut producer))
        };
        let had = ring.receive(&mut first, true);
        mend(&ring.pool(), 0, |_| false).expect("nobody lies here");
        let mut second = ring.consumer_of(0, true);
        let found = ring.receive(&mut second, true);
        if had.is_some() {
            assert_eq!(found.expect("it came back").attempts, 1);
        }
        sender.join().unwrap();
    });
}

#[test]
fn first_deliveries_come_in_order_though_a_scan_finds_them() {
    check(3, || {
        let ring = Queue::new(2);
        let (mut producer, mut consumer) = (ring.producer(), ring.consumer(0));
        let sender = {
            let ring = ring.clone();
            spawn(move || (ring.send(&mut producer), ring.send(&mut producer)))
        };
        let claim = ring.receive(&mut consumer, true);
        assert!(claim.is_none_or(|claim| claim.sequence == 1), "the second came first");
        sender.join().unwrap();
    });
}

#[test]
fn a_member_takes_a_whole_message_by_its_position() {
    check(2, || {
        let ring = Broadcast::new(2, false);
        let mut producer = ring.producer();
        producer.admit(0, 1, ring.part(0));
        let mut member = ring.consumer(0, 1);
        let sender = {
            let ring = ring.clone();
            spawn(move || ring.send(&mut producer))
        };
        let _ = ring.receive(&mut member, false);
        sender.join().unwrap();
    });
}

#[test]
fn a_member_takes_a_whole_message_by_a_scan() {
    check(2, || {
        let ring = Broadcast::new(2, false);
        let mut producer = ring.producer();
        producer.admit(0, 1, ring.part(0));
        let mut member = ring.consumer(0, 1);
        let sender = {
            let ring = ring.clone();
            spawn(move || ring.send(&mut producer))
        };
        let _ = ring.receive(&mut member, true);
        sender.join().unwrap();
    });
}

#[test]
fn a_member_that_scans_while_two_are_published_skips_none() {
    check(3, || {
        let ring = Broadcast::new(2, false);
        let mut producer = ring.producer();
        producer.admit(0, 1, ring.part(0));
        let mut member = ring.consumer(0, 1);
        let sender = {
            let ring = ring.clone();
            spawn(move || (ring.send(&mut producer), ring.send(&mut producer)))
        };
        let claim = ring.receive(&mut member, true);
        assert!(claim.is_none_or(|claim| claim.sequence == 1), "the first was skipped, and stays owed for ever");
        sender.join().unwrap();
    });
}

#[test]
fn who_sees_the_ring_closed_sees_everything_published() {
    check(2, || {
        let ring = Queue::new(2);
        let (mut producer, mut consumer) = (ring.producer(), ring.consumer(0));
        let sender = {
            let ring = ring.clone();
            spawn(move || {
                ring.send(&mut producer);
                // ORDER E1 commit, Release: as the producer closes.
                ring.ring.word(W_STATE).store(state::CLOSED, Ordering::Release);
            })
        };
        if ring.reader().is_closed() {
            assert!(ring.receive(&mut consumer, false).is_some(), "closed, but what was published is not there");
        }
        sender.join().unwrap();
    });
}
