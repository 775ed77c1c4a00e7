//! E5 park: no wake is lost between a sleeper's last look and its sleep.
//!
//! A sleeper that would sleep here ends instead; what is checked at the end is that it would have been woken: its mark
//! was taken and its wake word is not the one it would sleep on. Every such model runs with a fence on both sides, and
//! with a membarrier of the sleeper at each place of the waker's program ([`membarrier`](super::membarrier)).

use super::{
    membarrier::{Barriers, Waker, check_barriers},
    rig::{Broadcast, Queue, check, race},
};
use crate::{
    Words, broadcast,
    queue::{self, Acquired},
    sync::Ordering,
    waker_fence,
};

/// Wakes a consumer of a queue, if one sleeps, as who publishes or gives back does.
pub(super) fn wake_one(ring: &Queue, fences: bool) -> Option<u8> {
    waker_fence(fences);
    let index = ring.pool().pick_sleeper(31, u32::MAX)?;
    ring.pool().member(&ring.plan, index).ring_bell();
    Some(index)
}

pub(super) fn bell(ring: &Queue, index: u8) -> u64 {
    // ORDER E5 park, Acquire: as sleepers do.
    ring.pool().member(&ring.plan, index).wake_word().load(Ordering::Acquire)
}

fn under(ring: &Queue, waker: &Waker) -> Queue {
    waker.fate().map_or(ring.clone(), |fate| ring.under(&fate))
}

fn broadcast_under(ring: &Broadcast, waker: &Waker) -> Broadcast {
    waker.fate().map_or(ring.clone(), |fate| ring.under(&fate))
}

fn wakes_for_what_is_published(barriers: &Barriers, by_store: bool) {
    let ring = Queue::new(2);
    let (sleeper, waker) = barriers.halves();
    let mut consumer = ring.consumer_of(0, by_store);
    let sender = {
        let theirs = under(&ring, &waker);
        move || {
            let mut producer = theirs.producer();
            theirs.send(&mut producer);
            let woken = wake_one(&theirs, waker.fences());
            waker.ends();
            woken
        }
    };
    let sleeper = {
        let ring = ring.clone();
        move || {
            let seen = bell(&ring, 0);
            ring.pool().park(0);
            sleeper.barrier();
            (seen, ring.receive(&mut consumer, false).is_none())
        }
    };
    let (woken, (seen, sleeps)) = race(sender, sleeper);
    if sleeps {
        assert_eq!(woken, Some(0), "it sleeps beside a message");
        assert_ne!(bell(&ring, 0), seen, "the futex would sleep through it");
    }
}

#[test]
fn a_consumer_that_goes_to_sleep_is_woken_for_what_is_published() {
    check_barriers(3, |barriers| wakes_for_what_is_published(barriers, false));
}

#[test]
fn so_is_a_consumer_that_claims_by_a_store() {
    check_barriers(2, |barriers| wakes_for_what_is_published(barriers, true));
}

#[test]
fn a_consumer_that_goes_to_sleep_is_woken_for_what_is_given_back() {
    check_barriers(3, |barriers| {
        let ring = Queue::new(1);
        let (sleeper, waker) = barriers.halves();
        let (mut producer, mut giver, mut taker) = (ring.producer(), ring.consumer(0), ring.consumer(1));
        ring.send(&mut producer);
        let claim = ring.receive(&mut giver, false).expect("it was published before");
        let giver = {
            let theirs = under(&ring, &waker);
            move || {
                let _ = queue::give_back(&theirs.pool(), &claim, 0);
                let woken = wake_one(&theirs, waker.fences());
                waker.ends();
                woken
            }
        };
        let sleeper = {
            let ring = ring.clone();
            move || {
                // The look before it parks, which scans.
                if ring.receive(&mut taker, true).is_some() {
                    sleeper.stays_awake();
                    return false;
                }
                ring.pool().park(1);
                sleeper.barrier();
                ring.receive(&mut taker, false).is_none()
            }
        };
        let (woken, sleeps) = race(giver, sleeper);
        assert!(!sleeps || woken == Some(1), "it sleeps beside a message");
    });
}

/// A sleeper whose slice ends as it is woken: the wake was spent on it, so it must find what it was woken for, or the
/// message would lie there while others sleep.
#[test]
fn who_finds_its_mark_taken_finds_the_message() {
    check(3, || {
        let ring = Queue::new(2);
        let (mut producer, mut consumer) = (ring.producer(), ring.consumer(0));
        ring.pool().park(0);
        let waker = {
            let ring = ring.clone();
            move || {
                ring.send(&mut producer);
                // No fence: with membarrier a waker executes none.
                ring.pool().pick_sleeper(31, u32::MAX)
            }
        };
        let sleeper = {
            let ring = ring.clone();
            move || {
                if !ring.pool().unpark(0) {
                    assert!(ring.receive(&mut consumer, true).is_some(), "woken for a message that it does not see");
                }
            }
        };
        let _ = race(waker, sleeper);
    });
}

#[test]
fn who_finds_its_mark_taken_finds_what_was_given_back() {
    check(3, || {
        let ring = Queue::new(1);
        let (mut producer, mut giver, mut taker) = (ring.producer(), ring.consumer(0), ring.consumer(1));
        ring.send(&mut producer);
        let claim = ring.receive(&mut giver, false).expect("it was published before");
        ring.pool().park(1);
        let waker = {
            let ring = ring.clone();
            move || {
                let _ = queue::give_back(&ring.pool(), &claim, 0);
                // No fence: with membarrier a waker executes none.
                ring.pool().pick_sleeper(31, u32::MAX)
            }
        };
        let sleeper = {
            let ring = ring.clone();
            move || {
                if !ring.pool().unpark(1) {
                    assert!(ring.receive(&mut taker, true).is_some(), "woken for a message that it does not see");
                }
            }
        };
        let _ = race(waker, sleeper);
    });
}

#[test]
fn a_waker_sees_how_a_sleeper_sleeps() {
    use forebay_layout::member::{FLAGS, flags::EVENTFD};
    check(3, || {
        let ring = Queue::new(2);
        let part = ring.pool().member(&ring.plan, 0);
        let sleeper = {
            let (ring, part) = (ring.clone(), part.clone());
            move || {
                part.store(FLAGS, EVENTFD);
                ring.pool().park(0);
            }
        };
        let waker = move || {
            if ring.pool().parked() & 1 != 0 {
                assert_eq!(part.peek(FLAGS), EVENTFD, "its futex would be woken, which it does not sleep on");
            }
            if ring.pool().pick_sleeper(31, 1).is_some() {
                assert_eq!(part.peek(FLAGS), EVENTFD, "its futex would be woken, which it does not sleep on");
            }
        };
        let ((), ()) = race(sleeper, waker);
    });
}

#[test]
fn the_producer_sees_how_a_member_sleeps() {
    use forebay_layout::member::{FLAGS, flags::EVENTFD};
    check(3, || {
        let ring = Broadcast::new(1, false);
        let part = ring.part(0);
        let sleeper = {
            let part = part.clone();
            move || {
                part.store(FLAGS, EVENTFD);
                part.set_parked(true);
            }
        };
        let waker = move || {
            if part.take_parked() {
                assert_eq!(part.peek(FLAGS), EVENTFD, "its futex would be woken, which it does not sleep on");
            }
        };
        let ((), ()) = race(sleeper, waker);
    });
}

#[test]
fn two_wakers_wake_two_sleepers() {
    check(2, || {
        let ring = Queue::new(2);
        ring.pool().park(0);
        ring.pool().park(1);
        let wakers = [ring.clone(), ring].map(|ring| move || wake_one(&ring, true));
        let [one, other] = wakers;
        let woken = race(one, other);
        assert!(woken == (Some(0), Some(1)) || woken == (Some(1), Some(0)), "{woken:?}");
    });
}

#[test]
fn a_producer_that_goes_to_sleep_is_woken_for_a_free_slot() {
    check_barriers(3, |barriers| {
        let ring = Queue::new(1);
        let (sleeper, waker) = barriers.halves();
        let (mut producer, mut consumer) = (ring.producer(), ring.consumer(0));
        ring.send(&mut producer);
        let claim = ring.receive(&mut consumer, false).expect("it was published before");
        let receiver = {
            let theirs = under(&ring, &waker);
            move || {
                queue::finish(&theirs.pool(), &claim);
                waker_fence(waker.fences());
                let called = theirs.pool().call_producer();
                waker.ends();
                called
            }
        };
        let sender = {
            let pool = ring.pool();
            move || {
                // ORDER E5 park, Acquire: as the producer does.
                let seen = pool.producer_wake_word().load(Ordering::Acquire);
                pool.park_producer();
                sleeper.barrier();
                let sleeps = producer.acquire(0, true) == Acquired::Full;
                (seen, sleeps, producer)
            }
        };
        let (woken, (seen, sleeps, mut producer)) = race(receiver, sender);
        if sleeps {
            assert!(woken, "it sleeps beside a free slot");
            assert_ne!(ring.pool().producer_wake_word().load(Ordering::Acquire), seen);
            // Whoever is woken finds the slot.
            assert_ne!(producer.acquire(0, true), Acquired::Full);
        }
    });
}

#[test]
fn a_member_that_goes_to_sleep_is_woken_for_what_is_published() {
    check_barriers(3, |barriers| {
        let ring = Broadcast::new(2, false);
        let (sleeper, waker) = barriers.halves();
        let mut member = ring.consumer(0, 1);
        let sender = {
            let theirs = broadcast_under(&ring, &waker);
            move || {
                let mut producer = theirs.producer();
                producer.admit(0, 1, theirs.part(0));
                theirs.send(&mut producer);
                waker_fence(waker.fences());
                let woken = producer.ring_bells();
                waker.ends();
                woken
            }
        };
        let sleeper = {
            let ring = ring.clone();
            move || {
                let seen = ring.part(0).wake_word().load(Ordering::Acquire);
                ring.part(0).set_parked(true);
                sleeper.barrier();
                (seen, ring.receive(&mut member, false).is_none())
            }
        };
        let (woken, (seen, sleeps)) = race(sender, sleeper);
        if sleeps {
            assert_eq!(woken, 1, "it sleeps beside a message");
            assert_ne!(ring.part(0).wake_word().load(Ordering::Acquire), seen);
        }
    });
}

#[test]
fn a_producer_that_goes_to_sleep_is_woken_when_a_member_settles() {
    check_barriers(3, |barriers| {
        let ring = Broadcast::new(1, false);
        let (sleeper, waker) = barriers.halves();
        let mut producer = ring.producer();
        producer.admit(0, 1, ring.part(0));
        ring.send(&mut producer);
        let mut member = ring.consumer(0, 1);
        let claim = ring.receive(&mut member, false).expect("it was published before");
        let settler = {
            let theirs = broadcast_under(&ring, &waker);
            move || {
                let (slot, generation) = (claim.slot, claim.generation);
                let calls = broadcast::settle(&theirs.part(0), &theirs.reader(), slot, generation, waker.fences());
                waker.ends();
                calls
            }
        };
        let sender = {
            let ring = ring.clone();
            move || {
                let seen = ring.part(0).producer_wake_word().load(Ordering::Acquire);
                producer.set_parked(true);
                sleeper.barrier();
                (seen, producer.acquire(0).is_none())
            }
        };
        let (woken, (seen, sleeps)) = race(settler, sender);
        if sleeps {
            assert!(woken, "it sleeps beside a free slot");
            assert_ne!(ring.part(0).producer_wake_word().load(Ordering::Acquire), seen);
        }
    });
}

#[test]
fn a_consumer_that_goes_to_sleep_is_woken_when_the_ring_closes() {
    use forebay_layout::header::{W_STATE, state};
    check_barriers(3, |barriers| {
        let ring = Queue::new(1);
        let (sleeper, waker) = barriers.halves();
        let closer = {
            let theirs = under(&ring, &waker);
            move || {
                // ORDER E1 commit, Release: as the producer closes; it rings every bell, parked or not.
                theirs.ring.word(W_STATE).store(state::CLOSED, Ordering::Release);
                waker_fence(waker.fences());
                theirs.pool().member(&theirs.plan, 0).ring_bell();
                waker.ends();
            }
        };
        let sleeper = {
            let ring = ring.clone();
            move || {
                let seen = bell(&ring, 0);
                ring.pool().park(0);
                sleeper.barrier();
                (seen, !ring.reader().is_closed())
            }
        };
        let ((), (seen, sleeps)) = race(closer, sleeper);
        assert!(!sleeps || bell(&ring, 0) != seen, "it sleeps on a closed ring");
    });
}
