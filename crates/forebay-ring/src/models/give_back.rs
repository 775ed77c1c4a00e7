//! E4 return: a message that was given back, by its reader or after its reader's death, reaches the next one whole.

use super::{
    in_order,
    rig::{LockByte, Queue, check, race, spawn},
};
use crate::{
    MemberId, SlotState, SlotWord,
    queue::{self, mend},
    sync::Ordering,
};

#[test]
fn what_one_reader_gives_back_the_next_may_write() {
    check(3, || {
        let ring = Queue::new(1);
        let (mut producer, mut giver, mut taker) = (ring.producer(), ring.consumer(0), ring.consumer(1));
        ring.send(&mut producer);
        let claim = ring.receive(&mut giver, false).expect("it was published before");
        let giver = {
            let ring = ring.clone();
            spawn(move || {
                ring.read(&claim);
                queue::give_back(&ring.pool(), &claim, 0)
            })
        };
        if let Some(claim) = ring.receive(&mut taker, true) {
            assert_eq!(claim.attempts, 1);
            ring.write(&claim);
        }
        assert_eq!(giver.join().unwrap(), SlotState::Full);
    });
}

/// With its attempts saturated a word looks the same before a claim and after it, so that a claim may take another FULL
/// than the one it looked at.
#[test]
fn what_was_given_back_between_a_look_and_the_claim_arrives_whole() {
    check(3, || {
        let ring = Queue::new(1);
        let (mut producer, mut giver, mut taker) = (ring.producer(), ring.consumer(0), ring.consumer(1));
        ring.send(&mut producer);
        ring.pool().slot(0).store(SlotWord::full(1, u8::MAX).raw(), Ordering::Relaxed);
        let giver = {
            let ring = ring.clone();
            spawn(move || {
                if let Some(claim) = ring.receive(&mut giver, false) {
                    ring.write(&claim);
                    let _ = queue::give_back(&ring.pool(), &claim, 0);
                }
            })
        };
        if let Some(claim) = ring.receive(&mut taker, true) {
            ring.write(&claim);
        }
        giver.join().unwrap();
    });
}

#[test]
fn who_sees_that_something_came_back_finds_it() {
    check(3, || {
        let ring = Queue::new(1);
        let (mut producer, mut giver, mut taker) = (ring.producer(), ring.consumer(0), ring.consumer(1));
        ring.send(&mut producer);
        let claim = ring.receive(&mut giver, false).expect("it was published before");
        assert_eq!(ring.receive(&mut taker, true), None);
        let giver = {
            let ring = ring.clone();
            spawn(move || queue::give_back(&ring.pool(), &claim, 0))
        };
        let found = ring.receive(&mut taker, true);
        let _ = giver.join().unwrap();
        // The second look of a sleeper: no scan is forced, so the counter alone has to lead to it.
        if found.is_none() {
            assert!(ring.receive(&mut taker, false).is_some(), "its return was counted, and it is passed by");
        }
    });
}

#[test]
fn what_a_dead_consumer_held_is_returned_whole_and_once() {
    check(2, || {
        let ring = Queue::new(1);
        let (mut producer, mut dead, mut taker) = (ring.producer(), ring.consumer(0), ring.consumer(1));
        let byte = LockByte::held();
        ring.send(&mut producer);
        let dying = {
            let (ring, byte) = (ring.clone(), byte.clone());
            spawn(move || {
                let _ = ring.receive(&mut dead, false);
                byte.die();
            })
        };
        // Two at once: the producer's control thread, and this member.
        let other = {
            let (ring, byte) = (ring.clone(), byte.clone());
            spawn(move || mend(&ring.pool(), 0, |owner| owner.index != 0 || byte.lives()).unwrap().returned)
        };
        let mut returned = mend(&ring.pool(), 0, |owner| owner.index != 0 || byte.lives()).unwrap().returned;
        if let Some(claim) = ring.receive(&mut taker, true) {
            // On a writable ring.
            ring.write(&claim);
        }
        dying.join().unwrap();
        returned += other.join().unwrap();
        assert!(returned <= 1, "one death, two returns");
    });
}

/// The claim of a single consumer is a plain store, which ends the release sequence of the commit.
#[test]
fn what_a_dead_single_consumer_held_is_returned_whole() {
    check(3, || {
        let ring = Queue::new(1);
        let (mut producer, mut dead, mut taker) = (ring.producer(), ring.consumer_of(0, true), ring.consumer(1));
        let byte = LockByte::held();
        let sender = {
            let ring = ring.clone();
            spawn(move || ring.send(&mut producer))
        };
        let dying = {
            let (ring, byte) = (ring.clone(), byte.clone());
            spawn(move || {
                let _ = ring.receive(&mut dead, true);
                byte.die();
            })
        };
        let mended = mend(&ring.pool(), 0, |owner| owner.index != 0 || byte.lives()).unwrap();
        if mended.returned == 1 {
            assert!(ring.receive(&mut taker, true).is_some_and(|claim| claim.attempts == 1));
        }
        dying.join().unwrap();
        sender.join().unwrap();
    });
}

#[test]
fn an_acked_slot_of_the_dead_is_written_again_only_after_their_reads() {
    check(3, || {
        let ring = Queue::new(1);
        let (mut producer, mut dead) = (ring.producer(), ring.consumer(0));
        let byte = LockByte::held();
        ring.send(&mut producer);
        let dying = {
            let (ring, byte) = (ring.clone(), byte.clone());
            spawn(move || {
                let claim = ring.receive(&mut dead, false).expect("it was published before");
                queue::ack(&ring.pool(), &claim);
                ring.read(&claim);
                byte.die();
            })
        };
        let mender = {
            let (ring, byte) = (ring.clone(), byte.clone());
            spawn(move || mend(&ring.pool(), 0, |_| byte.lives()).unwrap())
        };
        let _ = ring.send(&mut producer);
        dying.join().unwrap();
        mender.join().unwrap();
    });
}

#[test]
fn a_mender_that_slept_since_it_read_a_word_changes_nothing() {
    check(4, || {
        let ring = Queue::new(1);
        let (mut producer, mut member) = (ring.producer(), ring.consumer(0));
        let byte = LockByte::held();
        ring.send(&mut producer);
        let claim = ring.receive(&mut member, false).expect("it was published before");
        let living = {
            let (ring, byte) = (ring.clone(), byte.clone());
            spawn(move || {
                // Gives back, takes again, and dies with the second claim: the mender may have read the first.
                let _ = queue::give_back(&ring.pool(), &claim, 0);
                let again = ring.receive(&mut member, true);
                byte.die();
                again
            })
        };
        let mended = mend(&ring.pool(), 0, |_| byte.lives()).unwrap();
        let again = living.join().unwrap().expect("nobody else takes it");
        assert_eq!(again.attempts, 1);
        let word = SlotWord::checked(ring.pool().peek_slot(0)).unwrap();
        match mended.returned {
            0 => assert_eq!(word, again.word, "the claim of the dead waits to be mended"),
            _ => assert_eq!((word.state(), word.attempts()), (SlotState::Full, 2)),
        }
    });
}

#[test]
fn the_words_of_a_living_consumer_are_left_alone() {
    check(4, || {
        let ring = Queue::new(2);
        let (mut producer, mut member) = (ring.producer(), ring.consumer(0));
        ring.send(&mut producer);
        ring.send(&mut producer);
        let living = {
            let ring = ring.clone();
            spawn(move || {
                let first = ring.receive(&mut member, false).unwrap();
                let second = ring.receive(&mut member, false).unwrap();
                queue::ack(&ring.pool(), &first);
                queue::finish(&ring.pool(), &first);
                second
            })
        };
        let mended = mend(&ring.pool(), 0, |owner| owner == MemberId { index: 0, incarnation: 1 }).unwrap();
        assert!(mended.is_nothing());
        let second = living.join().unwrap();
        assert_eq!(SlotWord::checked(ring.pool().peek_slot(second.slot)), Ok(second.word));
    });
}

/// The lock byte of an index whose last holder is dead, and which is used again now.
fn mend_beside_a_new_life(by_store: bool, in_order: bool, ack: bool) {
    check(if in_order { 3 } else { 4 }, move || {
        let ring = Queue::new(1);
        let mut producer = ring.producer();
        let mut member =
            if in_order { in_order::settled(&ring, &mut producer, 0, by_store) } else { ring.consumer_of(0, by_store) };
        let byte = LockByte::held();
        byte.die();
        ring.send(&mut producer);
        let living = {
            let (ring, byte) = (ring.clone(), byte.clone());
            move || {
                byte.take();
                let claim =
                    if in_order { in_order::take(&ring, &mut member) } else { ring.receive(&mut member, false) };
                let claim = claim.unwrap();
                if ack {
                    queue::ack(&ring.pool(), &claim);
                }
                ring.read(&claim);
                claim
            }
        };
        let mender = {
            let ring = ring.clone();
            move || mend(&ring.pool(), 0, |_| byte.lives()).unwrap()
        };
        let (claim, mended) = race(living, mender);
        assert!(mended.is_nothing(), "taken from a living consumer");
        let word = if ack { claim.word.acked() } else { claim.word };
        assert_eq!(SlotWord::checked(ring.pool().peek_slot(0)), Ok(word));
    });
}

#[test]
fn a_new_life_is_never_taken_for_its_dead_predecessor() {
    mend_beside_a_new_life(false, false, false);
}

#[test]
fn nor_when_it_claims_by_a_store() {
    mend_beside_a_new_life(true, false, false);
}

#[test]
fn nor_when_it_has_acked() {
    mend_beside_a_new_life(false, false, true);
}

#[test]
fn nor_when_it_takes_in_order() {
    mend_beside_a_new_life(false, true, false);
    mend_beside_a_new_life(true, true, false);
}
