//! Queues: each message is dealt with exactly once, whoever nacks, drops, dies or takes over meanwhile.

use std::thread;

use forebay_layout::{Kind, WhenFull};
use forebay_ring::{
    Claim, Counter, MemberId,
    queue::{self, Acquired, Next, QueueConsumer, QueueProducer},
};

use crate::{
    memory::{Life, Memory},
    rig::{PLACES, Ring, member, with_draft},
    run::{Dice, Run, messages},
};

fn ring(slots: u32, members: u32, when_full: WhenFull) -> Ring {
    Ring::new(Kind::Queue, slots, members, when_full)
}

/// Publishes `ids`, waiting for slots.
fn publish(run: &Run, ring: &Ring, producer: &mut QueueProducer<Memory>, ids: std::ops::RangeInclusive<u64>) {
    for id in ids {
        let slot = loop {
            match producer.acquire(0, false) {
                Acquired::Slot(slot) => break slot,
                _ => run.wait(),
            }
        };
        ring.payload.write(slot, id);
        with_draft(id, |draft| producer.publish(slot, draft));
    }
}

fn take(consumer: &mut QueueConsumer<Memory>, scan: bool) -> Option<Claim> {
    match consumer.next(scan, |_| true).unwrap() {
        Next::Claimed(claim) => Some(claim),
        _ => None,
    }
}

/// Receives until everything is dealt with; `deal` says whether a message is (else it was given back). Returns the
/// numbers of those that were.
fn consume(run: &Run, ring: &Ring, me: MemberId, mut deal: impl FnMut(&Claim) -> bool) -> Vec<u64> {
    let mut consumer = ring.queue_consumer(me);
    let (mut dealt, mut last, mut scan) = (Vec::new(), 0, false);
    while !run.is_over() {
        let Some(claim) = take(&mut consumer, scan) else {
            scan = !scan;
            run.wait();
            continue;
        };
        if claim.attempts == 0 {
            assert!(claim.sequence > last, "first deliveries come in order");
            last = claim.sequence;
        }
        let id = ring.check(&claim);
        if deal(&claim) {
            queue::finish(consumer.pool(), &claim);
            dealt.push(id);
        } else {
            queue::give_back(consumer.pool(), &claim, 0);
        }
    }
    dealt
}

/// Waits until nothing is to be received any more.
fn drain(run: &Run, producer: &QueueProducer<Memory>) {
    while producer.undelivered() > 0 {
        run.wait();
    }
    run.finish();
}

/// Each of 1 to `messages` is there once.
fn account(dealt: Vec<Vec<u64>>, messages: u64) {
    let mut all: Vec<u64> = dealt.into_iter().flatten().collect();
    all.sort_unstable();
    assert!(all.iter().copied().eq(1..=messages), "{} of {messages} messages, or not each of them once", all.len());
}

/// A producer and members that finish what they get, or give it back as `deal` says.
fn exchange(ring: &Ring, members: u8, deal: impl Fn(u8, &Claim) -> bool + Sync) {
    let (run, messages) = (Run::new(), messages());
    let dealt = thread::scope(|scope| {
        let consumers: Vec<_> = (0..members)
            .map(|index| {
                let (run, deal) = (&run, &deal);
                scope.spawn(move || run.work(|| consume(run, ring, member(index), |claim| deal(index, claim))))
            })
            .collect();
        run.work(|| {
            let mut producer = ring.queue_producer();
            publish(&run, ring, &mut producer, 1..=messages);
            drain(&run, &producer);
        });
        consumers.into_iter().map(|consumer| consumer.join().unwrap()).collect()
    });
    account(dealt, messages);
}

#[test]
fn three_consumers_share_the_messages() {
    exchange(&ring(4, 3, WhenFull::Block), 3, |_, _| true);
}

#[test]
fn a_single_consumer_claims_by_a_store() {
    let ring = ring(4, 1, WhenFull::Block);
    assert!(ring.geometry.claims_by_store());
    exchange(&ring, 1, |_, _| true);
}

/// On a writable ring the holder of a lease writes into the slot, and gives it back: the next one sees that.
#[test]
fn a_message_that_is_given_back_comes_again_with_what_was_written() {
    let ring = ring(4, 3, WhenFull::Block);
    exchange(&ring, 3, |index, claim| {
        let again = claim.attempts == 0 && claim.sequence % 5 == u64::from(index);
        if again {
            ring.payload.write(claim.slot, claim.sequence);
        }
        !again
    });
}

#[test]
fn what_is_dropped_is_never_received_and_the_rest_is() {
    let (run, messages) = (Run::new(), messages());
    let ring = ring(3, 2, WhenFull::DropOldest);
    let (dealt, dropped) = thread::scope(|scope| {
        let consumers: Vec<_> = (0..2)
            .map(|index| {
                let (run, ring) = (&run, &ring);
                scope.spawn(move || {
                    run.work(|| {
                        consume(run, ring, member(index), |claim| claim.attempts != 0 || claim.sequence % 3 != 0)
                    })
                })
            })
            .collect();
        let dropped = run.work(|| {
            let mut producer = ring.queue_producer();
            for id in 1..=messages {
                let slot = loop {
                    if let Acquired::Slot(slot) = producer.acquire(0, false) {
                        break slot;
                    }
                    if let Some(slot) = producer.drop_oldest(0) {
                        break slot;
                    }
                    run.wait();
                };
                ring.payload.write(slot, id);
                with_draft(id, |draft| producer.publish(slot, draft));
                if id % 4 == 0 {
                    thread::yield_now();
                }
            }
            drain(&run, &producer);
            producer.publisher().counted(Counter::Dropped)
        });
        let dealt: Vec<Vec<u64>> = consumers.into_iter().map(|consumer| consumer.join().unwrap()).collect();
        (dealt, dropped)
    });
    let mut all: Vec<u64> = dealt.into_iter().flatten().collect();
    all.sort_unstable();
    let received = all.len();
    all.dedup();
    assert_eq!(received, all.len(), "received twice");
    assert_eq!(received as u64 + dropped, messages);
}

/// One life of a member: it dies at some access, perhaps with messages in hand. Returns what it is sure to have dealt with
/// and what it may have.
fn one_life(run: &Run, ring: &Ring, me: MemberId, dice: &mut Dice) -> (Vec<u64>, Vec<u64>) {
    let life = Life::ends_in(dice.roll(3000));
    let mine = ring.of(&life);
    ring.living.begin(me);
    let mut consumer = mine.queue_consumer(me);
    let (mut sure, mut perhaps, mut held) = (Vec::new(), Vec::new(), Vec::<(Claim, u64)>::new());
    while !life.is_over() && !run.is_over() {
        if dice.roll(8) == 0 {
            // It mends while others do, and may die doing it.
            let _ = queue::mend(consumer.pool(), 0, |owner| owner == me || ring.living.is_alive(owner)).unwrap();
        }
        let enough = match take(&mut consumer, dice.roll(2) == 0) {
            Some(claim) if !life.is_over() => {
                held.push((claim, ring.check(&claim)));
                2
            }
            _ => {
                run.wait();
                1
            }
        };
        if held.len() >= enough && !life.is_over() {
            let (claim, id) = held.swap_remove(dice.roll(held.len() as u64) as usize);
            ring.payload.check(claim.slot, id);
            if dice.roll(4) == 0 {
                queue::give_back(consumer.pool(), &claim, 0);
                continue;
            }
            if dice.roll(2) == 0 {
                queue::ack(consumer.pool(), &claim);
            }
            queue::finish(consumer.pool(), &claim);
            if life.is_over() { perhaps.push(id) } else { sure.push(id) }
        }
    }
    if !life.is_over() {
        // Everything is dealt with but for what it holds itself, which the next one will get.
        held.iter().for_each(|(claim, _)| _ = queue::give_back(consumer.pool(), claim, 0));
    }
    ring.living.end(me);
    (sure, perhaps)
}

/// Lives at one place, one after the other, until everything is dealt with.
fn lives(run: &Run, ring: &Ring, index: u8) -> (Vec<u64>, Vec<u64>) {
    let mut dice = Dice::new(u64::from(index) + 7);
    let (mut sure, mut perhaps) = (Vec::new(), Vec::new());
    for incarnation in 1.. {
        let me = MemberId { index, incarnation };
        // A place is given away again only when no slot names it.
        while !run.is_over() && queue::held_by(&ring.pool(), index).next().is_some() {
            let _ = queue::mend(&ring.pool(), 0, |owner| ring.living.is_alive(owner)).unwrap();
            run.wait();
        }
        if run.is_over() {
            break;
        }
        let (some, others) = one_life(run, ring, me, &mut dice);
        sure.extend(some);
        perhaps.extend(others);
    }
    (sure, perhaps)
}

#[test]
fn what_dead_members_held_comes_back_while_others_go_on() {
    deaths(false);
}

#[test]
fn successors_take_over_while_members_receive_and_die() {
    deaths(true);
}

/// Members die at any access; with `mortal`, so does the producer.
fn deaths(mortal: bool) {
    let (run, messages) = (Run::new(), messages());
    let ring = ring(6, PLACES as u32, WhenFull::Block);
    let outcome = thread::scope(|scope| {
        let members: Vec<_> = (0..3)
            .map(|index| {
                let (run, ring) = (&run, &ring);
                scope.spawn(move || run.work(|| lives(run, ring, index)))
            })
            .collect();
        run.work(|| produce(&run, &ring, messages, mortal));
        members.into_iter().map(|member| member.join().unwrap()).collect::<Vec<_>>()
    });
    let (sure, perhaps): (Vec<_>, Vec<_>) = outcome.into_iter().unzip();
    let mut sure: Vec<u64> = sure.into_iter().flatten().collect();
    let mut perhaps: Vec<u64> = perhaps.into_iter().flatten().collect();
    sure.sort_unstable();
    perhaps.sort_unstable();
    assert!(sure.is_sorted_by(|a, b| a < b), "dealt with twice");
    for id in 1..=messages {
        assert!(sure.binary_search(&id).is_ok() || perhaps.binary_search(&id).is_ok(), "message {id} is lost");
    }
}

/// Publishes all messages, over several lives if it is mortal, each a thread of its own.
fn produce(run: &Run, ring: &Ring, messages: u64, mortal: bool) {
    let mut dice = Dice::new(99);
    drop(ring.queue_producer());
    let mut next = 1;
    for epoch in 2.. {
        let life = if mortal { Life::ends_in(dice.roll(8000)) } else { Life::default() };
        let mine = ring.of(&life);
        let done = thread::scope(|scope| {
            scope
                .spawn(|| {
                    run.work(|| {
                        let (publisher, recovered) = mine.take_over(epoch);
                        let mut producer = QueueProducer::new(publisher);
                        if !life.is_over() {
                            next = recovered.last_sequence + 1;
                            if let Ok(user) = recovered.last_user.try_into() {
                                assert_eq!(u64::from_le_bytes(user), recovered.last_sequence);
                            }
                        }
                        while next <= messages && !life.is_over() {
                            match producer.acquire(0, false) {
                                Acquired::Slot(slot) if !life.is_over() => {
                                    ring.payload.write(slot, next);
                                    with_draft(next, |draft| producer.publish(slot, draft));
                                    next += 1;
                                }
                                _ => run.wait(),
                            }
                        }
                        if !life.is_over() {
                            while producer.undelivered() > 0 && !life.is_over() {
                                let _ = queue::mend(&mine.pool(), 0, |owner| ring.living.is_alive(owner)).unwrap();
                                run.wait();
                            }
                        }
                        !life.is_over()
                    })
                })
                .join()
                .unwrap()
        });
        if done {
            run.finish();
            return;
        }
    }
}
