//! E5 park: no wake is lost between a sleeper's last look and its sleep.
//!
//! A sleeper that would sleep here ends instead; what is checked at the end is that it would have been woken: its mark
//! was taken and its wake word is not the one it would sleep on. Both ways to order the two sides look the same to a
//! model: a fence on both, which the membarrier call of the sleeper supplies to the waker.

use super::rig::{Broadcast, Queue, check, race, spawn};
use crate::{
    Pool, Words, broadcast,
    queue::{self, Acquired},
    sync::{Ordering, fence},
    waker_fence,
};

/// The sleeper's side of the barrier.
fn sleeper_fence() {
    fence(Ordering::SeqCst);
}

/// Wakes a consumer of a queue, if one sleeps, as who publishes or gives back does.
fn wake_one(ring: &Queue) -> Option<u8> {
    waker_fence(true);
    let index = ring.pool().pick_sleeper(31, u32::MAX)?;
    ring.pool().member(&ring.plan, index).ring_bell();
    Some(index)
}

fn bell(ring: &Queue, index: u8) -> u64 {
    // ORDER E5 park, Acquire: as sleepers do.
    ring.pool().member(&ring.plan, index).wake_word().load(Ordering::Acquire)
}

#[test]
fn a_consumer_that_goes_to_sleep_is_woken_for_what_is_published() {
    check(3, || {
        let ring = Queue::new(2);
        let (mut producer, mut consumer) = (ring.producer(), ring.consumer(0));
        let sender = {
            let ring = ring.clone();
            spawn(move || {
                ring.send(&mut producer);
                wake_one(&ring)
            })
        };
        let seen = bell(&ring, 0);
        ring.pool().park(0);
        sleeper_fence();
        let sleeps = ring.receive(&mut consumer, false).is_none();
        let woken = sender.join().unwrap();
        if sleeps {
            assert_eq!(woken, Some(0), "it sleeps beside a message");
            assert_ne!(bell(&ring, 0), seen, "the futex would sleep through it");
        }
    });
}

#[test]
fn a_consumer_that_goes_to_sleep_is_woken_for_what_is_given_back() {
    check(3, || {
        let ring = Queue::new(1);
        let (mut producer, mut giver, mut taker) = (ring.producer(), ring.consumer(0), ring.consumer(1));
        ring.send(&mut producer);
        let claim = ring.receive(&mut giver, false).expect("it was published before");
        let giver = {
            let ring = ring.clone();
            spawn(move || {
                let _ = queue::give_back(&ring.pool(), &claim, 0);
                wake_one(&ring)
            })
        };
        // The look before it parks, which scans.
        let mut sleeps = ring.receive(&mut taker, true).is_none();
        if sleeps {
            ring.pool().park(1);
            sleeper_fence();
            sleeps = ring.receive(&mut taker, false).is_none();
        }
        let woken = giver.join().unwrap();
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
            spawn(move || {
                part.store(FLAGS, EVENTFD);
                ring.pool().park(0);
            })
        };
        if ring.pool().parked() & 1 != 0 {
            assert_eq!(part.peek(FLAGS), EVENTFD, "its futex would be woken, which it does not sleep on");
        }
        if ring.pool().pick_sleeper(31, 1).is_some() {
            assert_eq!(part.peek(FLAGS), EVENTFD, "its futex would be woken, which it does not sleep on");
        }
        sleeper.join().unwrap();
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
            spawn(move || {
                part.store(FLAGS, EVENTFD);
                part.set_parked(true);
            })
        };
        if part.take_parked() {
            assert_eq!(part.peek(FLAGS), EVENTFD, "its futex would be woken, which it does not sleep on");
        }
        sleeper.join().unwrap();
    });
}

#[test]
fn two_wakers_wake_two_sleepers() {
    check(2, || {
        let ring = Queue::new(2);
        ring.pool().park(0);
        ring.pool().park(1);
        let waker = {
            let ring = ring.clone();
            spawn(move || wake_one(&ring))
        };
        let mine = wake_one(&ring);
        let woken = [mine, waker.join().unwrap()];
        assert!(woken == [Some(0), Some(1)] || woken == [Some(1), Some(0)], "{woken:?}");
    });
}

fn producer_sleeps(pool: &Pool<super::memory::Memory>) -> u64 {
    // ORDER E5 park, Acquire: as the producer does.
    let seen = pool.producer_wake_word().load(Ordering::Acquire);
    pool.park_producer();
    sleeper_fence();
    seen
}

#[test]
fn a_producer_that_goes_to_sleep_is_woken_for_a_free_slot() {
    check(3, || {
        let ring = Queue::new(1);
        let (mut producer, mut consumer) = (ring.producer(), ring.consumer(0));
        ring.send(&mut producer);
        let claim = ring.receive(&mut consumer, false).expect("it was published before");
        let receiver = {
            let ring = ring.clone();
            spawn(move || {
                queue::finish(&ring.pool(), &claim);
                waker_fence(true);
                ring.pool().call_producer()
            })
        };
        let seen = producer_sleeps(&ring.pool());
        let sleeps = producer.acquire(0, true) == Acquired::Full;
        let woken = receiver.join().unwrap();
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
    check(3, || {
        let ring = Broadcast::new(2, false);
        let mut producer = ring.producer();
        producer.admit(0, 1, ring.part(0));
        let mut member = ring.consumer(0, 1);
        let sender = {
            let ring = ring.clone();
            spawn(move || {
                ring.send(&mut producer);
                waker_fence(true);
                producer.ring_bells()
            })
        };
        let seen = ring.part(0).wake_word().load(Ordering::Acquire);
        ring.part(0).set_parked(true);
        sleeper_fence();
        let sleeps = ring.receive(&mut member, false).is_none();
        let woken = sender.join().unwrap();
        if sleeps {
            assert_eq!(woken, 1, "it sleeps beside a message");
            assert_ne!(ring.part(0).wake_word().load(Ordering::Acquire), seen);
        }
    });
}

#[test]
fn a_producer_that_goes_to_sleep_is_woken_when_a_member_settles() {
    check(3, || {
        let ring = Broadcast::new(1, false);
        let mut producer = ring.producer();
        producer.admit(0, 1, ring.part(0));
        ring.send(&mut producer);
        let mut member = ring.consumer(0, 1);
        let claim = ring.receive(&mut member, false).expect("it was published before");
        let settler = {
            let ring = ring.clone();
            spawn(move || broadcast::settle(&ring.part(0), &ring.reader(), claim.slot, claim.generation, true))
        };
        let seen = ring.part(0).producer_wake_word().load(Ordering::Acquire);
        producer.set_parked(true);
        sleeper_fence();
        let sleeps = producer.acquire(0).is_none();
        let woken = settler.join().unwrap();
        if sleeps {
            assert!(woken, "it sleeps beside a free slot");
            assert_ne!(ring.part(0).producer_wake_word().load(Ordering::Acquire), seen);
        }
    });
}

#[test]
fn a_consumer_that_goes_to_sleep_is_woken_when_the_ring_closes() {
    use forebay_layout::header::{W_STATE, state};
    check(3, || {
        let ring = Queue::new(1);
        let closer = {
            let ring = ring.clone();
            spawn(move || {
                // ORDER E1 commit, Release: as the producer closes; it rings every bell, parked or not.
                ring.ring.word(W_STATE).store(state::CLOSED, Ordering::Release);
                waker_fence(true);
                ring.pool().member(&ring.plan, 0).ring_bell();
            })
        };
        let seen = bell(&ring, 0);
        ring.pool().park(0);
        sleeper_fence();
        let sleeps = !ring.reader().is_closed();
        closer.join().unwrap();
        assert!(!sleeps || bell(&ring, 0) != seen, "it sleeps on a closed ring");
    });
}
