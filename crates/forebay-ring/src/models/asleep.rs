//! Who sleeps dies, or who would have woken it: the next look of somebody finds what the wake was for.
//!
//! A wake that died with its waker costs its sleeper the rest of a slice, after which it looks; a wake that was spent on
//! a dead sleeper is passed on by who frees its place.

use super::{
    death::vacate,
    memory::until_death,
    park::{bell, wake_one},
    rig::{Broadcast, LockByte, Queue, every_step, race},
};
use crate::{
    Publisher, SlotState, SlotWord, broadcast,
    queue::{self, Acquired},
    sync::{Ordering, fence},
    waker_fence,
};

/// Member 1 sleeps soundly; member 0 dies anywhere between going to sleep and having received what it was woken for.
#[test]
fn a_sleeper_dies_anywhere_and_its_wake_is_passed_on() {
    every_step(2, |step| {
        let ring = Queue::new(2);
        let mut producer = ring.producer();
        ring.pool().park(1);
        let slept_at = bell(&ring, 1);
        let byte = LockByte::held();
        let sleeper = {
            let (ring, mine, byte) = (ring.clone(), ring.mortal(), byte.clone());
            move || {
                let mut consumer = mine.consumer(0);
                mine.dies_in(step);
                let lived = until_death(|| {
                    mine.pool().park(0);
                    fence(Ordering::SeqCst);
                    let found = mine.receive(&mut consumer, false);
                    let woken = !mine.pool().unpark(0);
                    if woken && found.is_some() {
                        wake_one(&mine, true);
                    }
                    if let Some(claim) = found.or_else(|| mine.receive(&mut consumer, true)) {
                        queue::finish(&mine.pool(), &claim);
                    }
                });
                byte.die();
                vacate(&ring, &byte);
                lived
            }
        };
        let sender = {
            let ring = ring.clone();
            move || {
                ring.send(&mut producer);
                wake_one(&ring, true)
            }
        };
        let (lived, _) = race(sleeper, sender);
        let waiting = SlotWord::checked(ring.pool().peek_slot(0)).expect("nobody lies here").state() == SlotState::Full;
        let (woken, taken) = (bell(&ring, 1) != slept_at, ring.pool().parked() & 2 == 0);
        // A mark that was taken by who died before it rang the bell costs its sleeper the rest of a slice.
        assert!(
            if lived { woken == taken } else { !woken || taken },
            "a mark without a wake, or a wake without a mark"
        );
        assert!(!waiting || taken, "member 1 sleeps beside a message, and nobody would look for it");
        assert_eq!(ring.pool().parked() & 1, 0, "the dead one is still said to sleep");
        lived
    });
}

/// The producer dies anywhere between its first store and the wake.
#[test]
fn who_publishes_dies_anywhere_and_the_sleeper_finds_it_after_its_slice() {
    every_step(2, |step| {
        let ring = Queue::new(2);
        let mut consumer = ring.consumer(0);
        let sender = {
            let mine = ring.mortal();
            move || {
                let mut producer = mine.producer();
                mine.dies_in(step);
                until_death(|| {
                    mine.send_noted(&mut producer);
                    wake_one(&mine, true);
                })
            }
        };
        let sleeper = {
            let ring = ring.clone();
            move || {
                let seen = bell(&ring, 0);
                ring.pool().park(0);
                fence(Ordering::SeqCst);
                (seen, ring.receive(&mut consumer, false), consumer)
            }
        };
        let (lived, (seen, found, mut consumer)) = race(sender, sleeper);
        let sleeps = found.is_none();
        assert!(!lived || !sleeps || bell(&ring, 0) != seen, "it sleeps beside a message");
        // The slice is over; with its mark taken or not, it takes back its mark and scans.
        ring.pool().unpark(0);
        let found = found.or_else(|| ring.receive(&mut consumer, true));
        found.iter().for_each(|claim| queue::finish(&ring.pool(), claim));
        let taken = Publisher::take_over(ring.ring.clone(), ring.words.clone(), ring.plan.clone(), 2);
        let (publisher, recovered) = taken.expect("nobody lies here");
        assert_eq!(found.map_or(0, |claim| claim.sequence), recovered.last_sequence, "committed, and not found");
        // It sleeps again, and is woken for what the successor publishes.
        let seen = bell(&ring, 0);
        ring.pool().park(0);
        let mut producer = ring.producer_from(publisher);
        assert!(ring.send_noted(&mut producer).is_some());
        assert_eq!(wake_one(&ring, true), Some(0));
        assert_ne!(bell(&ring, 0), seen);
        assert!(ring.receive(&mut consumer, false).is_some());
        lived
    });
}

/// A consumer dies anywhere between giving a message back and waking somebody for it.
#[test]
fn who_gives_back_dies_anywhere_and_the_sleeper_finds_it_after_its_slice() {
    every_step(2, |step| {
        let ring = Queue::new(1);
        let (mut producer, mut giver, mut taker) = (ring.producer(), ring.consumer(0), ring.consumer(1));
        ring.send(&mut producer);
        let claim = ring.receive(&mut giver, false).expect("it was published before");
        let byte = LockByte::held();
        let giver = {
            let (mine, byte) = (ring.mortal(), byte.clone());
            move || {
                mine.dies_in(step);
                let lived = until_death(|| {
                    let _ = queue::give_back(&mine.pool(), &claim, 0);
                    wake_one(&mine, true);
                });
                byte.die();
                lived
            }
        };
        let sleeper = {
            let ring = ring.clone();
            move || {
                // The look before it parks, which scans.
                let found = ring.receive(&mut taker, true);
                if found.is_some() {
                    return (None, found, taker);
                }
                let seen = bell(&ring, 1);
                ring.pool().park(1);
                fence(Ordering::SeqCst);
                (Some(seen), ring.receive(&mut taker, false), taker)
            }
        };
        let (lived, (seen, found, mut taker)) = race(giver, sleeper);
        assert!(!lived || found.is_some() || seen != Some(bell(&ring, 1)), "it sleeps beside a message");
        // The slice is over: it mends and scans.
        ring.pool().unpark(1);
        vacate(&ring, &byte);
        let found = found.or_else(|| ring.receive(&mut taker, true)).expect("it came back");
        assert_eq!((found.sequence, found.attempts), (1, 1));
        lived
    });
}

/// A consumer dies anywhere between its release and the producer's wake.
#[test]
fn who_releases_dies_anywhere_and_the_producer_finds_the_slot_after_its_slice() {
    every_step(2, |step| {
        let ring = Queue::new(1);
        let (mut producer, mut consumer) = (ring.producer(), ring.consumer(0));
        ring.send(&mut producer);
        let claim = ring.receive(&mut consumer, false).expect("it was published before");
        queue::ack(&ring.pool(), &claim);
        let byte = LockByte::held();
        let releaser = {
            let (mine, byte) = (ring.mortal(), byte.clone());
            move || {
                mine.dies_in(step);
                let lived = until_death(|| {
                    queue::finish(&mine.pool(), &claim);
                    waker_fence(true);
                    let _ = mine.pool().call_producer();
                });
                byte.die();
                lived
            }
        };
        let sender = {
            let pool = ring.pool();
            move || {
                let seen = pool.producer_wake_word().load(Ordering::Acquire);
                pool.park_producer();
                fence(Ordering::SeqCst);
                (seen, producer.acquire(0, true) == Acquired::Full, producer)
            }
        };
        let (lived, (seen, sleeps, mut producer)) = race(releaser, sender);
        let woken = ring.pool().producer_wake_word().load(Ordering::Acquire) != seen;
        assert!(!lived || !sleeps || woken, "it sleeps beside a free slot");
        if sleeps {
            // The slice is over: what was acked by the dead is free for the producer once it has mended.
            ring.pool().unpark_producer();
            vacate(&ring, &byte);
            assert_eq!(producer.acquire(0, true), Acquired::Slot(0));
        }
        lived
    });
}

/// A broadcast producer dies anywhere between its first store and the last bell.
#[test]
fn who_publishes_to_members_dies_anywhere_and_they_find_it_after_their_slice() {
    every_step(2, |step| {
        let ring = Broadcast::new(2, false);
        let mut first = ring.producer();
        first.admit(0, 1, ring.part(0));
        let mut member = ring.consumer(0, 1);
        assert!(member.joined());
        let sender = {
            let mine = ring.mortal();
            move || {
                let mut producer = mine.producer();
                producer.readmit(0, 1, mine.part(0));
                mine.dies_in(step);
                until_death(|| {
                    mine.send_noted(&mut producer);
                    waker_fence(true);
                    let _ = producer.ring_bells();
                })
            }
        };
        let sleeper = {
            let ring = ring.clone();
            move || {
                let part = ring.part(0);
                let seen = part.wake_word().load(Ordering::Acquire);
                part.set_parked(true);
                fence(Ordering::SeqCst);
                (seen, ring.receive(&mut member, false), member)
            }
        };
        let (lived, (seen, found, mut member)) = race(sender, sleeper);
        let woken = ring.part(0).wake_word().load(Ordering::Acquire) != seen;
        assert!(!lived || found.is_some() || woken, "it sleeps beside a message");
        ring.part(0).set_parked(false);
        let found = found.or_else(|| ring.receive(&mut member, true));
        let taken = Publisher::take_over(ring.ring.clone(), ring.ring.clone(), ring.plan.clone(), 2);
        let (publisher, recovered) = taken.expect("nobody lies here");
        assert_eq!(found.map_or(0, |claim| claim.sequence), recovered.last_sequence, "committed, and not found");
        let mut producer = ring.producer_from(publisher);
        producer.readmit(0, 1, ring.part(0));
        let next = ring.send_noted(&mut producer);
        assert_eq!(next, Some(recovered.last_sequence + 1));
        assert_eq!(ring.receive(&mut member, false).map(|claim| claim.sequence), next);
        lived
    });
}

/// A member dies anywhere between its settling and the producer's wake.
#[test]
fn who_settles_dies_anywhere_and_the_producer_finds_the_slot_after_its_slice() {
    every_step(2, |step| {
        let ring = Broadcast::new(1, false);
        let mut producer = ring.producer();
        producer.admit(0, 1, ring.part(0));
        ring.send(&mut producer);
        let mut member = ring.consumer(0, 1);
        let claim = ring.receive(&mut member, false).expect("it was published before");
        let settler = {
            let mine = ring.mortal();
            move || {
                mine.dies_in(step);
                let (slot, generation) = (claim.slot, claim.generation);
                until_death(|| _ = broadcast::settle(&mine.part(0), &mine.reader(), slot, generation, true))
            }
        };
        let sender = {
            let ring = ring.clone();
            move || {
                let seen = ring.part(0).producer_wake_word().load(Ordering::Acquire);
                producer.set_parked(true);
                fence(Ordering::SeqCst);
                (seen, producer.acquire(0).is_none(), producer)
            }
        };
        let (lived, (seen, sleeps, mut producer)) = race(settler, sender);
        let woken = ring.part(0).producer_wake_word().load(Ordering::Acquire) != seen;
        assert!(!lived || !sleeps || woken, "it sleeps beside a free slot");
        if sleeps {
            // The slice is over; the member is dead by now.
            producer.set_parked(false);
            producer.remove(0);
            assert_eq!(producer.acquire(0), Some(0));
        }
        lived
    });
}
