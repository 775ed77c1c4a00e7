//! Broadcast rings: every member sees every message from its join to its leave, in order, whoever comes, goes, dies or
//! takes over meanwhile.

use std::{
    sync::{Mutex, mpsc},
    thread,
};

use forebay_layout::{Kind, WhenFull};
use forebay_ring::{
    MemberId,
    broadcast::{BroadcastConsumer, BroadcastProducer, settle},
    queue::Next,
};

use crate::{
    memory::{Life, Memory},
    rig::{Ring, member, with_draft},
    run::{Dice, Run, messages},
};

fn ring(slots: u32, members: u32, when_full: WhenFull) -> Ring {
    Ring::new(Kind::Broadcast, slots, members, when_full)
}

/// Publishes message `id` as soon as there is a slot; `meanwhile` runs while there is none.
fn publish(
    run: &Run,
    ring: &Ring,
    producer: &mut BroadcastProducer<Memory>,
    id: u64,
    mut meanwhile: impl FnMut(&mut BroadcastProducer<Memory>),
) {
    let slot = loop {
        if let Some(slot) = producer.acquire(0) {
            break slot;
        }
        if ring.geometry.is_lossy()
            && let Some(slot) = producer.drop_oldest(0)
        {
            break slot;
        }
        meanwhile(producer);
        run.wait();
    };
    ring.payload.write(slot, id);
    with_draft(id, |draft| producer.publish(slot, draft));
}

/// One look: checks what it finds and settles it. The sequence of the message, if there was one.
fn receive(ring: &Ring, member: &mut BroadcastConsumer<Memory>, scan: bool) -> Option<u64> {
    let Next::Claimed(claim) = member.next(scan, |_| true).unwrap() else { return None };
    assert_eq!(ring.check(&claim), claim.sequence);
    let _ = settle(member.part(), member.reader(), claim.slot, claim.generation, true);
    Some(claim.sequence)
}

/// Receives up to message `last`; all of them in order, or on a lossy ring those that were not missed.
fn follow(run: &Run, ring: &Ring, me: MemberId, first: u64, last: u64) -> u64 {
    let mut member = ring.broadcast_consumer(me);
    let (mut due, mut received, mut scan) = (first, 0, false);
    while due <= last {
        match receive(ring, &mut member, scan) {
            Some(sequence) => {
                received += 1;
                assert_eq!(sequence, first + received - 1 + member.missed(), "neither received nor missed");
                due = sequence + 1;
            }
            None => {
                due = due.max(member.cursor());
                scan = !scan;
                run.wait();
            }
        }
    }
    if !ring.geometry.is_lossy() {
        assert_eq!((received, member.missed()), (last + 1 - first, 0));
    }
    member.missed()
}

fn everybody(when_full: WhenFull) -> Vec<u64> {
    let (run, messages) = (Run::new(), messages());
    let ring = ring(4, 3, when_full);
    let mut producer = ring.broadcast_producer();
    (0..3).for_each(|index| producer.admit(index, 1, ring.part(index)));
    thread::scope(|scope| {
        let members: Vec<_> = (0..3)
            .map(|index| {
                let (run, ring) = (&run, &ring);
                scope.spawn(move || run.work(|| follow(run, ring, member(index), 1, messages)))
            })
            .collect();
        run.work(|| {
            for id in 1..=messages {
                publish(&run, &ring, &mut producer, id, |_| ());
                if id % 8 == 0 {
                    thread::yield_now();
                }
            }
            while producer.outstanding() > 0 {
                run.wait();
            }
        });
        members.into_iter().map(|member| member.join().unwrap()).collect()
    })
}

#[test]
fn three_members_see_every_message() {
    assert_eq!(everybody(WhenFull::Block), [0; 3]);
}

#[test]
fn three_members_receive_or_miss_every_message() {
    everybody(WhenFull::DropOldest);
}

/// What a member asks of the publishing thread.
enum News {
    Join(MemberId),
    /// It left and holds nothing, or it died.
    Gone(u8),
}

/// Comings, goings and deaths at one place, until everything is published.
fn guests(run: &Run, ring: &Ring, index: u8, news: &mpsc::Sender<News>) {
    let mut dice = Dice::new(u64::from(index) + 1);
    for incarnation in 1.. {
        let me = MemberId { index, incarnation };
        while !run.is_over() && ring.living.is_alive(MemberId { index, incarnation: u16::MAX }) {
            run.wait();
        }
        if run.is_over() {
            return;
        }
        ring.part(index).clear(true);
        ring.living.begin(me);
        news.send(News::Join(me)).unwrap();
        let life = if dice.roll(2) == 0 { Life::ends_in(dice.roll(2000)) } else { Life::default() };
        let stay = dice.roll(200);
        let mut member = ring.of(&life).broadcast_consumer(me);
        let (mut last, mut received) = (0, 0);
        while received < stay && !run.is_over() && !life.is_over() {
            let Next::Claimed(claim) = member.next(dice.roll(2) == 0, |_| true).unwrap() else {
                run.wait();
                continue;
            };
            if life.is_over() {
                break;
            }
            assert_eq!(ring.check(&claim), claim.sequence);
            assert!(last == 0 || claim.sequence == last + 1, "{} follows {last}", claim.sequence);
            (last, received) = (claim.sequence, received + 1);
            let _ = settle(member.part(), member.reader(), claim.slot, claim.generation, true);
        }
        member.leave();
        // The place is free when the producer has seen it.
        ring.living.begin(MemberId { index, incarnation: u16::MAX });
        news.send(News::Gone(index)).unwrap();
    }
}

/// The publishing thread alone changes who is a member.
fn apply(ring: &Ring, producer: &mut BroadcastProducer<Memory>, news: &mpsc::Receiver<News>) {
    for event in news.try_iter() {
        match event {
            News::Join(me) => producer.admit(me.index, me.incarnation, ring.part(me.index)),
            News::Gone(index) => {
                producer.remove(index);
                ring.living.end(member(index));
            }
        }
    }
}

#[test]
fn members_come_go_and_die_while_one_stays() {
    let (run, messages) = (Run::new(), messages());
    let ring = ring(4, 3, WhenFull::Block);
    let mut producer = ring.broadcast_producer();
    producer.admit(0, 1, ring.part(0));
    let (send, news) = mpsc::channel();
    thread::scope(|scope| {
        let stays = scope.spawn(|| run.work(|| follow(&run, &ring, member(0), 1, messages)));
        for index in 1..3 {
            let (run, ring, send) = (&run, &ring, send.clone());
            scope.spawn(move || run.work(|| guests(run, ring, index, &send)));
        }
        run.work(|| {
            for id in 1..=messages {
                apply(&ring, &mut producer, &news);
                publish(&run, &ring, &mut producer, id, |producer| apply(&ring, producer, &news));
            }
            run.finish();
        });
        assert_eq!(stays.join().unwrap(), 0);
    });
}

#[test]
fn successors_take_over_while_members_receive() {
    for when_full in [WhenFull::Block, WhenFull::DropOldest] {
        let (run, messages) = (Run::new(), messages());
        let ring = ring(4, 2, when_full);
        let mut first = ring.broadcast_producer();
        (0..2).for_each(|index| first.admit(index, 1, ring.part(index)));
        drop(first);
        let dice = Mutex::new(Dice::new(5));
        thread::scope(|scope| {
            let members: Vec<_> = (0..2)
                .map(|index| {
                    let (run, ring) = (&run, &ring);
                    scope.spawn(move || run.work(|| follow(run, ring, member(index), 1, messages)))
                })
                .collect();
            run.work(|| {
                for epoch in 2.. {
                    let life = Life::ends_in(dice.lock().unwrap().roll(6000));
                    // A thread of its own, so that its end is all that its successor knows of it.
                    let last = thread::scope(|scope| {
                        scope.spawn(|| run.work(|| reign(&run, &ring, &life, epoch, messages))).join().unwrap()
                    });
                    if last == messages {
                        return;
                    }
                }
            });
            members.into_iter().for_each(|member| _ = member.join().unwrap());
        });
    }
}

/// One life of a producer; the last message that it knows to be published.
fn reign(run: &Run, ring: &Ring, life: &Life, epoch: u64, messages: u64) -> u64 {
    let mine = ring.of(life);
    let (publisher, recovered) = mine.take_over(epoch);
    let mut last = if life.is_over() { 0 } else { recovered.last_sequence };
    let mut producer = mine.broadcast_from(publisher);
    (0..2).for_each(|index| producer.readmit(index, 1, mine.part(index)));
    while last < messages && !life.is_over() {
        let found = producer.acquire(0);
        let found = found.or_else(|| if ring.geometry.is_lossy() { producer.drop_oldest(0) } else { None });
        match found {
            Some(slot) if !life.is_over() => {
                ring.payload.write(slot, last + 1);
                with_draft(last + 1, |draft| producer.publish(slot, draft));
                if !life.is_over() {
                    last += 1;
                }
            }
            _ => run.wait(),
        }
    }
    last
}
