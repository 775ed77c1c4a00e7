//! E2 release: reads are over before a slot is used again.

use super::rig::{Broadcast, Queue, check, spawn};
use crate::{
    Outstanding, SlotWord, broadcast,
    queue::{self, Next},
    sync::Ordering,
};

#[test]
fn a_slot_is_written_again_only_after_the_last_read() {
    check(3, || {
        let ring = Queue::new(1);
        let (mut producer, mut consumer) = (ring.producer(), ring.consumer(0));
        ring.send(&mut producer);
        let receiver = {
            let ring = ring.clone();
            spawn(move || {
                let claim = ring.receive(&mut consumer, false).expect("it was published before");
                queue::finish(&ring.pool(), &claim);
            })
        };
        let _ = ring.send(&mut producer);
        receiver.join().unwrap();
        assert!(ring.send(&mut producer).is_none_or(|sequence| sequence == 2));
    });
}

#[test]
fn an_acked_slot_is_not_written_again_while_it_is_read() {
    check(3, || {
        let ring = Queue::new(1);
        let (mut producer, mut consumer) = (ring.producer(), ring.consumer(0));
        ring.send(&mut producer);
        let receiver = {
            let ring = ring.clone();
            spawn(move || {
                let claim = ring.receive(&mut consumer, false).expect("it was published before");
                queue::ack(&ring.pool(), &claim);
                ring.read(&claim);
                queue::finish(&ring.pool(), &claim);
            })
        };
        let _ = ring.send(&mut producer);
        receiver.join().unwrap();
    });
}

#[test]
fn a_message_given_back_and_dropped_is_no_longer_read() {
    check(3, || {
        let ring = Queue::new(1);
        let (mut producer, mut consumer) = (ring.producer(), ring.consumer(0));
        ring.send(&mut producer);
        let claim = ring.receive(&mut consumer, false).expect("it was published before");
        let receiver = {
            let ring = ring.clone();
            spawn(move || {
                ring.read(&claim);
                let _ = queue::give_back(&ring.pool(), &claim, 0);
            })
        };
        if let Some(slot) = producer.drop_oldest(0) {
            ring.fill(&mut producer, slot);
        }
        receiver.join().unwrap();
    });
}

/// With its attempts saturated a word looks the same before a claim and after it, so that the CAS of drop-oldest may
/// meet another FULL than the one it looked at.
#[test]
fn a_message_given_back_twice_and_dropped_is_no_longer_read() {
    check(3, || {
        let ring = Queue::new(1);
        let (mut producer, mut consumer) = (ring.producer(), ring.consumer(0));
        ring.send(&mut producer);
        let often = SlotWord::full(1, u8::MAX);
        ring.pool().slot(0).store(often.raw(), Ordering::Relaxed);
        let receiver = {
            let ring = ring.clone();
            spawn(move || {
                if let Some(claim) = ring.receive(&mut consumer, false) {
                    let _ = queue::give_back(&ring.pool(), &claim, 0);
                }
            })
        };
        if let Some(slot) = producer.drop_oldest(0) {
            ring.fill(&mut producer, slot);
        }
        receiver.join().unwrap();
    });
}

#[test]
fn a_dead_letter_is_copied_after_its_last_reader() {
    check(3, || {
        let ring = Queue::new(1);
        let (mut producer, mut consumer) = (ring.producer(), ring.consumer(0));
        ring.send(&mut producer);
        let claim = ring.receive(&mut consumer, false).expect("it was published before");
        let receiver = {
            let ring = ring.clone();
            spawn(move || {
                // On a writable ring the lease holder writes, too.
                ring.write(&claim);
                let _ = queue::give_back(&ring.pool(), &claim, 1);
            })
        };
        if let Some(slot) = producer.find_dead_letter() {
            ring.read(&claim);
            producer.bury(slot);
            ring.send(&mut producer);
        }
        receiver.join().unwrap();
    });
}

#[test]
fn a_broadcast_slot_is_written_again_only_after_the_last_member_read_it() {
    check(2, || {
        let ring = Broadcast::new(1, false);
        let mut producer = ring.producer();
        for index in [0, 1] {
            producer.admit(index, 1, ring.part(index));
        }
        ring.send(&mut producer);
        let members = [0, 1].map(|index| {
            let ring = ring.clone();
            let mut member = ring.consumer(index, 1);
            spawn(move || {
                let claim = ring.receive(&mut member, false).expect("it was published before");
                let _ = broadcast::settle(&ring.part(index), &ring.reader(), claim.slot, claim.generation, false);
            })
        });
        let early = ring.send(&mut producer);
        for member in members {
            member.join().unwrap();
        }
        assert_eq!(early.or_else(|| ring.send(&mut producer)), Some(2));
    });
}

#[test]
fn a_member_that_leaves_still_keeps_the_slot_that_it_reads() {
    check(3, || {
        let ring = Broadcast::new(2, false);
        let mut producer = ring.producer();
        producer.admit(0, 1, ring.part(0));
        ring.send(&mut producer);
        ring.send(&mut producer);
        let mut member = ring.consumer(0, 1);
        let leaver = {
            let ring = ring.clone();
            spawn(move || {
                let claim = ring.receive(&mut member, false).expect("it was published before");
                member.leave();
                ring.read(&claim);
                let _ = broadcast::settle(&ring.part(0), &ring.reader(), claim.slot, claim.generation, false);
            })
        };
        let _ = (ring.send(&mut producer), ring.send(&mut producer));
        leaver.join().unwrap();
        assert!(ring.send(&mut producer).is_some(), "nobody is owed anything");
    });
}

/// The state of the first slot is looked at, but only while it is published.
#[test]
fn a_successor_writes_only_what_was_read_to_the_end() {
    check(3, || {
        let ring = Queue::new(1);
        let (mut producer, mut consumer) = (ring.producer(), ring.consumer(0));
        ring.send(&mut producer);
        drop(producer);
        let receiver = {
            let ring = ring.clone();
            spawn(move || {
                if let Ok(Next::Claimed(claim)) = consumer.next(false, |_| true) {
                    ring.read(&claim);
                    queue::finish(&ring.pool(), &claim);
                }
            })
        };
        let mut successor = ring.successor(2).expect("nobody lies here");
        if successor.publisher().shadow(0).0 == Outstanding::Free {
            ring.send(&mut successor);
        }
        receiver.join().unwrap();
    });
}
