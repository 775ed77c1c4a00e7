//! The short way of a queue's consumer: one look at the entry at its cursor, copied before the claim.

use forebay_layout::entry::ENTRY_WORDS;

use super::{
    memory::Memory,
    rig::{Broadcast, Queue, check, race, spawn},
};
use crate::{
    Claim, broadcast,
    queue::{self, Next, QueueConsumer, QueueProducer},
};

type Consumer = QueueConsumer<Memory>;
type Producer = QueueProducer<Memory>;

/// Takes a message the short way, if there is one, and reads all of it.
pub(super) fn take(ring: &Queue, consumer: &mut Consumer) -> Option<Claim> {
    let mut words = [0; ENTRY_WORDS];
    let claim = consumer.next_in_order(|_| Some(&mut words))?;
    let place = u64::from(claim.slot) | u64::from(claim.generation) << 32;
    assert_eq!(words[..3], [claim.sequence, place, 10 * claim.sequence], "words of another message");
    ring.read(&claim);
    Some(claim)
}

/// A consumer that had the first message and has been to the end: from the second on it may take the short way.
pub(super) fn settled(ring: &Queue, producer: &mut Producer, index: u8, by_store: bool) -> Consumer {
    let mut consumer = ring.consumer_of(index, by_store);
    ring.send(producer).expect("a free slot");
    let claim = ring.receive(&mut consumer, true).expect("it was published before");
    queue::finish(&ring.pool(), &claim);
    assert_eq!(consumer.next(true, |_| true), Ok(Next::Empty));
    consumer
}

#[test]
fn what_is_taken_in_order_is_whole() {
    for by_store in [true, false] {
        check(3, move || {
            let ring = Queue::new(2);
            let mut producer = ring.producer();
            let mut consumer = settled(&ring, &mut producer, 0, by_store);
            // It takes the entry and the slot of the first, whose line the consumer looks at.
            let sender = {
                let ring = ring.clone();
                spawn(move || [ring.send(&mut producer), ring.send(&mut producer)])
            };
            for _ in 0..2 {
                if let Some(claim) = take(&ring, &mut consumer) {
                    queue::finish(&ring.pool(), &claim);
                }
            }
            sender.join().unwrap();
        });
    }
}

#[test]
fn two_that_take_in_order_never_share_a_message() {
    check(3, || {
        let ring = Queue::new(2);
        let mut producer = ring.producer();
        let mut one = settled(&ring, &mut producer, 0, false);
        let mut other = ring.consumer(1);
        assert_eq!(other.next(true, |_| true), Ok(Next::Empty));
        ring.send(&mut producer);
        let (here, there) = (ring.clone(), ring.clone());
        let (a, b) = race(
            move || take(&here, &mut one).map(|claim| queue::finish(&here.pool(), &claim)),
            move || take(&there, &mut other).map(|claim| queue::finish(&there.pool(), &claim)),
        );
        assert!(a.is_some() != b.is_some(), "exactly one has it");
    });
}

/// Who lost a message passes over what others have, and only over that.
#[test]
fn two_that_pass_over_each_other_lose_nothing() {
    check(2, || {
        let ring = Queue::new(2);
        let mut producer = ring.producer();
        let (mut one, mut other) = (ring.consumer(0), ring.consumer(1));
        for consumer in [&mut one, &mut other] {
            assert_eq!(consumer.next(true, |_| true), Ok(Next::Empty));
        }
        ring.send(&mut producer);
        ring.send(&mut producer);
        let (here, there) = (ring.clone(), ring.clone());
        let (a, b) =
            race(move || [(); 3].map(|()| take(&here, &mut one)), move || [(); 2].map(|()| take(&there, &mut other)));
        let left = [(); 2].map(|()| ring.receive(&mut ring.consumer(2), true));
        let mut found: Vec<_> = a.iter().chain(&b).chain(&left).flatten().map(|claim| claim.sequence).collect();
        found.sort_unstable();
        assert_eq!(found, [1, 2]);
    });
}

/// Another consumer had the first two messages; the third takes the entry and the slot of the first.
#[test]
fn who_lags_takes_no_later_message_for_its_own() {
    check(3, || {
        let ring = Queue::new(2);
        let (mut producer, mut other) = (ring.producer(), ring.consumer(0));
        let mut lagging = ring.consumer(1);
        assert_eq!(lagging.next(true, |_| true), Ok(Next::Empty));
        for _ in 0..2 {
            ring.send(&mut producer);
            let claim = ring.receive(&mut other, false).expect("it was published before");
            queue::finish(&ring.pool(), &claim);
        }
        let here = ring.clone();
        let (_, taken) = race(move || here.send(&mut producer), move || take(&ring, &mut lagging));
        assert_eq!(taken, None, "the first is gone");
    });
}

/// A member of a broadcast ring: its word keeps the slot from the producer until it has read.
#[test]
fn a_member_that_takes_in_order_reads_what_was_published() {
    check(3, || {
        let ring = Broadcast::new(2, false);
        let mut producer = ring.producer();
        producer.admit(0, 1, ring.part(0));
        let mut member = ring.consumer(0, 1);
        assert!(member.joined());
        for _ in 0..2 {
            ring.send(&mut producer).expect("a free slot");
            let claim = ring.receive(&mut member, false).expect("it was published before");
            // Nobody sleeps yet.
            let _ = broadcast::settle(&ring.part(0), &ring.reader(), claim.slot, claim.generation, false);
        }
        // The third and fourth meet the entries and the slots of the first two.
        let sender = {
            let ring = ring.clone();
            spawn(move || [ring.send(&mut producer), ring.send(&mut producer)])
        };
        for _ in 0..2 {
            let mut words = [0; ENTRY_WORDS];
            if let Some(claim) = member.next_in_order(|_| Some(&mut words)) {
                assert_eq!((words[0], words[2]), (claim.sequence, 10 * claim.sequence), "words of another message");
                ring.read(&claim);
            }
        }
        sender.join().unwrap();
    });
}
