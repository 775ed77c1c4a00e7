//! A member of a broadcast ring dies before any of its accesses, or leaves: the producer takes its place back, no slot
//! stays owed for ever, and the other members notice nothing.

use super::{
    memory::{Memory, until_death},
    rig::{Broadcast, LockByte, check, every_step, race},
};
use crate::broadcast::{BroadcastConsumer, BroadcastProducer, settle};

/// Who dies here.
const DEAD: u8 = 0;

/// Publishes; a lossy ring drops the oldest where it must.
fn send(ring: &Broadcast, producer: &mut BroadcastProducer<Memory>, lossy: bool) -> Option<u64> {
    ring.send(producer).or_else(|| {
        let slot = if lossy { producer.drop_oldest(0) } else { None }?;
        Some(ring.fill(producer, slot))
    })
}

/// Takes all there is, in order, and settles it; returns the sequences.
fn follow(ring: &Broadcast, member: &mut BroadcastConsumer<Memory>, index: u8) -> Vec<u64> {
    let mut found = Vec::new();
    while let Some(claim) = ring.receive(member, true) {
        let _ = settle(&ring.part(index), &ring.reader(), claim.slot, claim.generation, true);
        found.push(claim.sequence);
    }
    found
}

fn a_member_dies_anywhere_beside_the_producer(lossy: bool, leaves: bool) {
    // Holding and revoking have ten times the accesses.
    every_step(if lossy { 1 } else { 2 }, move |step| {
        let ring = Broadcast::new(if lossy { 1 } else { 2 }, lossy);
        let mut producer = ring.producer();
        for index in [DEAD, 1] {
            producer.admit(index, 1, ring.part(index));
        }
        let mut other = ring.consumer(1, 1);
        ring.send(&mut producer);
        let byte = LockByte::held();
        let dying = {
            let (mine, byte) = (ring.mortal(), byte.clone());
            move || {
                let mut member = mine.consumer(DEAD, 1);
                mine.dies_in(step);
                let lived = until_death(|| {
                    let claim = mine.receive(&mut member, true);
                    if leaves {
                        member.leave();
                    }
                    if let Some(claim) = claim {
                        mine.read(&claim);
                        let _ = settle(&mine.part(DEAD), &mine.reader(), claim.slot, claim.generation, true);
                    }
                });
                byte.die();
                lived
            }
        };
        let living = {
            let ring = ring.clone();
            move || {
                // With two slots the third message waits for the first; with one the second drops it.
                let sent: Vec<_> = (0..if lossy { 1 } else { 2 }).map(|_| send(&ring, &mut producer, lossy)).collect();
                (sent, producer)
            }
        };
        let (lived, (sent, mut producer)) = race(dying, living);
        let mut last = 1 + sent.iter().flatten().count() as u64;
        assert!(!byte.lives());
        producer.remove(DEAD);
        let found = follow(&ring, &mut other, 1);
        let expected: Vec<_> = (1..=last).collect();
        assert!(found.is_sorted_by(|a, b| a < b), "out of order: {found:?}");
        assert_eq!(found.len() as u64 + other.missed(), last, "neither received nor missed");
        assert!(lossy || found == expected, "lost: {found:?} of {expected:?}");
        for _ in 0..3 {
            assert_eq!(ring.send(&mut producer), Some(last + 1), "a slot is owed for ever");
            last += 1;
            assert_eq!(follow(&ring, &mut other, 1), [last]);
        }
        lived
    });
}

#[test]
fn a_member_dies_anywhere() {
    a_member_dies_anywhere_beside_the_producer(false, false);
}

#[test]
fn a_lossy_member_dies_anywhere() {
    a_member_dies_anywhere_beside_the_producer(true, false);
}

#[test]
fn a_member_dies_anywhere_in_leaving() {
    a_member_dies_anywhere_beside_the_producer(false, true);
}

#[test]
fn a_lossy_member_dies_anywhere_in_leaving() {
    a_member_dies_anywhere_beside_the_producer(true, true);
}

/// Its successor at the same index looks at the join table while the producer removes the one and lets in the other.
#[test]
fn an_index_passes_from_the_dead_to_the_next() {
    check(3, || {
        let ring = Broadcast::new(2, false);
        let mut producer = ring.producer();
        producer.admit(DEAD, 1, ring.part(DEAD));
        ring.send(&mut producer);
        let admitter = {
            let ring = ring.clone();
            move || {
                producer.remove(DEAD);
                producer.admit(DEAD, 2, ring.part(DEAD));
                ring.send(&mut producer);
                producer
            }
        };
        let joiner = {
            let ring = ring.clone();
            move || {
                let mut member = ring.consumer(DEAD, 2);
                (follow(&ring, &mut member, DEAD), member)
            }
        };
        let (mut producer, (mut found, mut member)) = race(admitter, joiner);
        found.extend(follow(&ring, &mut member, DEAD));
        assert_eq!(found, [2], "what the dead one was owed, or not what it is");
        assert!(ring.send(&mut producer).is_some() && ring.send(&mut producer).is_some(), "owed to the dead");
    });
}
