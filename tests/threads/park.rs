//! Sleeping on futexes, without slices: a wake that is lost is a thread that sleeps for ever, and the test with it. With
//! membarrier and with fences.

use std::{sync::atomic::Ordering::Acquire, thread};

use forebay_layout::{Kind, WhenFull};
use forebay_os::{Barrier, barrier, futex};
use forebay_ring::{
    AtomicU64, Member,
    broadcast::settle,
    queue::{self, Acquired, Next},
    waker_fence,
};

use crate::{
    memory::Memory,
    rig::{Ring, member, with_draft},
    run::{LIMIT, Run, messages},
};

/// Both, where the kernel has both.
fn barriers() -> Vec<Barrier> {
    match barrier::register() {
        Barrier::Membarrier => vec![Barrier::Membarrier, Barrier::Fence],
        Barrier::Fence => vec![Barrier::Fence],
    }
}

/// Sleeps on `word` unless it changes: as a consumer or producer does after its second look. `again` is that look; what it
/// finds is returned.
fn sleep<R>(word: &AtomicU64, barrier: Barrier, park: impl FnOnce(), again: impl FnOnce() -> Option<R>) -> Option<R> {
    // ORDER E5 park, Acquire: as sleepers do.
    let seen = word.load(Acquire);
    park();
    assert!(barrier::heavy(barrier));
    let found = again();
    if found.is_none() {
        // Wakes may be spurious; the caller looks again in any case.
        let _ = futex::wait(futex::low_half(word), seen as u32, Some(LIMIT));
    }
    found
}

fn wake(word: &AtomicU64) {
    futex::wake(futex::low_half(word), 1);
}

fn wake_member(part: &Member<Memory>) {
    part.ring_bell();
    wake(part.wake_word());
}

/// Wakes one consumer of a queue if one sleeps.
fn wake_one(ring: &Ring, barrier: Barrier) {
    waker_fence(barrier == Barrier::Fence);
    if let Some(index) = ring.pool().pick_sleeper(31, u32::MAX) {
        wake_member(&ring.part(index));
    }
}

#[test]
fn a_queue_that_sleeps_on_both_sides_loses_no_wake() {
    for barrier in barriers() {
        let (run, messages) = (Run::new(), messages());
        let ring = Ring::new(Kind::Queue, 2, 2, WhenFull::Block);
        let received: u64 = thread::scope(|scope| {
            let consumers: Vec<_> = (0..2)
                .map(|index| {
                    let (run, ring) = (&run, &ring);
                    scope.spawn(move || run.work(|| queue_consumer(run, ring, index, barrier)))
                })
                .collect();
            run.work(|| queue_producer(&run, &ring, messages, barrier));
            consumers.into_iter().map(|consumer| consumer.join().unwrap()).sum()
        });
        assert_eq!(received, messages, "with {barrier:?}");
    }
}

fn queue_producer(run: &Run, ring: &Ring, messages: u64, barrier: Barrier) {
    let mut producer = ring.queue_producer();
    let pool = ring.pool();
    for id in 1..=messages {
        let slot = loop {
            run.wait();
            let mut look = || match producer.acquire(0, false) {
                Acquired::Slot(slot) => Some(slot),
                _ => None,
            };
            let found = look().or_else(|| sleep(pool.producer_wake_word(), barrier, || pool.park_producer(), look));
            pool.unpark_producer();
            if let Some(slot) = found {
                break slot;
            }
        };
        ring.payload.write(slot, id);
        with_draft(id, |draft| producer.publish(slot, draft));
        wake_one(ring, barrier);
    }
    while producer.undelivered() > 0 {
        run.wait();
    }
    // As closing: everybody is told, asleep or not.
    run.finish();
    waker_fence(true);
    (0..2).for_each(|index| wake_member(&ring.part(index)));
}

fn queue_consumer(run: &Run, ring: &Ring, index: u8, barrier: Barrier) -> u64 {
    let mut consumer = ring.queue_consumer(member(index));
    let (pool, part) = (ring.pool(), ring.part(index));
    let mut received = 0;
    while !run.is_over() {
        run.wait();
        let mut look = |scan| match consumer.next(scan, |_| true).unwrap() {
            Next::Claimed(claim) => Some(claim),
            _ => None,
        };
        let mut found = look(false).or_else(|| look(true));
        if found.is_none() {
            // At the second look the end counts as something too.
            let again = || look(false).map(Some).or_else(|| run.is_over().then_some(None));
            found = sleep(part.wake_word(), barrier, || pool.park(index), again).flatten();
            if !pool.unpark(index) && found.is_some() {
                // The mark was taken for another message: its wake is passed on.
                wake_one(ring, barrier);
            }
        }
        let Some(claim) = found else { continue };
        ring.check(&claim);
        if claim.attempts == 0 && claim.sequence % 7 == 0 {
            queue::give_back(&pool, &claim, 0);
            wake_one(ring, barrier);
            continue;
        }
        queue::finish(&pool, &claim);
        received += 1;
        waker_fence(barrier == Barrier::Fence);
        if pool.call_producer() {
            wake(pool.producer_wake_word());
        }
    }
    received
}

#[test]
fn a_broadcast_ring_that_sleeps_on_both_sides_loses_no_wake() {
    for barrier in barriers() {
        let (run, messages) = (Run::new(), messages());
        let ring = Ring::new(Kind::Broadcast, 2, 1, WhenFull::Block);
        let mut producer = ring.broadcast_producer();
        producer.admit(0, 1, ring.part(0));
        thread::scope(|scope| {
            scope.spawn(|| run.work(|| broadcast_member(&run, &ring, messages, barrier)));
            run.work(|| {
                let part = ring.part(0);
                for id in 1..=messages {
                    let slot = loop {
                        run.wait();
                        let found = producer.acquire(0).or_else(|| {
                            // ORDER E5 park, Acquire: as sleepers do.
                            let seen = part.producer_wake_word().load(Acquire);
                            producer.set_parked(true);
                            assert!(barrier::heavy(barrier));
                            let found = producer.acquire(0);
                            if found.is_none() {
                                let _ =
                                    futex::wait(futex::low_half(part.producer_wake_word()), seen as u32, Some(LIMIT));
                            }
                            producer.set_parked(false);
                            found
                        });
                        if let Some(slot) = found {
                            break slot;
                        }
                    };
                    ring.payload.write(slot, id);
                    with_draft(id, |draft| producer.publish(slot, draft));
                    waker_fence(barrier == Barrier::Fence);
                    if producer.ring_bells() != 0 {
                        wake(part.wake_word());
                    }
                }
            });
        });
    }
}

fn broadcast_member(run: &Run, ring: &Ring, messages: u64, barrier: Barrier) {
    let mut member = ring.broadcast_consumer(member(0));
    let part = ring.part(0);
    let mut due = 1;
    while due <= messages {
        run.wait();
        let mut look = || match member.next(false, |_| true).unwrap() {
            Next::Claimed(claim) => Some(claim),
            _ => None,
        };
        let found = look().or_else(|| sleep(part.wake_word(), barrier, || part.set_parked(true), look));
        part.set_parked(false);
        let Some(claim) = found else { continue };
        assert_eq!((ring.check(&claim), claim.sequence), (due, due));
        due += 1;
        if settle(&part, member.reader(), claim.slot, claim.generation, barrier == Barrier::Fence) {
            wake(part.producer_wake_word());
        }
    }
}
