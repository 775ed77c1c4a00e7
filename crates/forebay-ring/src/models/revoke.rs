//! E7 revoke: on a lossy broadcast ring a message is held or revoked, never both.

use super::rig::{Broadcast, check, spawn};
use crate::broadcast;

#[test]
fn a_message_is_held_or_revoked() {
    check(3, || {
        let ring = Broadcast::new(1, true);
        let mut producer = ring.producer();
        producer.admit(0, 1, ring.part(0));
        ring.send(&mut producer);
        let mut member = ring.consumer(0, 1);
        let sender = {
            let ring = ring.clone();
            spawn(move || producer.drop_oldest(0).map(|slot| ring.fill(&mut producer, slot)))
        };
        let claim = ring.receive(&mut member, false);
        let dropped = sender.join().unwrap();
        match claim.map(|claim| claim.sequence) {
            Some(1) => assert_eq!(dropped, None, "taken from under its reader"),
            Some(2) | None => assert_eq!(dropped, Some(2)),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn what_was_settled_in_between_is_written_again_only_after_its_reads() {
    check(4, || {
        let ring = Broadcast::new(1, true);
        let mut producer = ring.producer();
        producer.admit(0, 1, ring.part(0));
        ring.send(&mut producer);
        let mut member = ring.consumer(0, 1);
        let reader = {
            let ring = ring.clone();
            spawn(move || {
                if let Some(claim) = ring.receive(&mut member, false) {
                    let _ = broadcast::settle(&ring.part(0), &ring.reader(), claim.slot, claim.generation, false);
                }
            })
        };
        if let Some(slot) = producer.drop_oldest(0) {
            ring.fill(&mut producer, slot);
        }
        reader.join().unwrap();
    });
}

#[test]
fn a_message_that_one_member_holds_is_not_written_again() {
    check(2, || {
        let ring = Broadcast::new(1, true);
        let mut producer = ring.producer();
        for index in [0, 1] {
            producer.admit(index, 1, ring.part(index));
        }
        ring.send(&mut producer);
        let members = [0, 1].map(|index| {
            let ring = ring.clone();
            let mut member = ring.consumer(index, 1);
            spawn(move || {
                if let Some(claim) = ring.receive(&mut member, false)
                    && index == 0
                {
                    let _ = broadcast::settle(&ring.part(0), &ring.reader(), claim.slot, claim.generation, false);
                }
            })
        });
        if let Some(slot) = producer.drop_oldest(0) {
            ring.fill(&mut producer, slot);
        }
        for member in members {
            member.join().unwrap();
        }
    });
}
