//! E3 position: a reader whose entry is rewritten under it takes the old words, the new ones, or none, never a mix.

use super::rig::{Broadcast, Queue, check, spawn};
use crate::{Claim, SlotWord, queue, reader::Position};

/// A ring on which messages 1 and 2 came and went, so that publishing the third rewrites the entry of the first.
fn used() -> (Queue, crate::queue::QueueProducer<super::memory::Memory>) {
    let ring = Queue::new(2);
    let (mut producer, mut consumer) = (ring.producer(), ring.consumer(0));
    for _ in 0..2 {
        ring.send(&mut producer);
        let claim = ring.receive(&mut consumer, false).expect("it was published before");
        queue::finish(&ring.pool(), &claim);
    }
    (ring, producer)
}

#[test]
fn a_lagging_reader_is_never_sent_to_the_slot_of_a_later_message() {
    check(4, || {
        let (ring, mut producer) = used();
        let sender = {
            let ring = ring.clone();
            spawn(move || ring.send(&mut producer))
        };
        match ring.reader().position(1) {
            Ok(Position::At { slot, generation }) => assert_eq!((slot, generation), (0, 1), "the place of the third"),
            Ok(Position::Overtaken(later)) => assert_eq!(later, 3),
            found => assert!(matches!(found, Ok(Position::NotYet)), "{found:?}"),
        }
        sender.join().unwrap();
    });
}

#[test]
fn a_reader_in_time_is_sent_to_the_slot_of_its_message() {
    check(4, || {
        let (ring, mut producer) = used();
        let sender = {
            let ring = ring.clone();
            spawn(move || ring.send(&mut producer))
        };
        match ring.reader().position(3) {
            Ok(Position::At { slot, generation }) => assert_eq!((slot, generation), (0, 2), "the place of the first"),
            found => assert!(matches!(found, Ok(Position::NotYet)), "{found:?}"),
        }
        sender.join().unwrap();
    });
}

/// The hot copy of message `sequence`, if the entry is whole, must be that message's.
fn check_inline(ring: &Queue, sequence: u64, generation: u32) {
    let claim = Claim { sequence, slot: 0, generation, attempts: 0, word: SlotWord::full(generation, 0) };
    if let Some((head, _)) = ring.reader().inline_of(&claim).expect("nobody lies here") {
        assert_eq!((head.sequence, head.correlation_id), (sequence, 10 * sequence), "words of two messages");
    }
}

#[test]
fn the_hot_copy_of_an_overtaken_message_is_whole_or_refused() {
    check(4, || {
        let (ring, mut producer) = used();
        let sender = {
            let ring = ring.clone();
            spawn(move || ring.send(&mut producer))
        };
        check_inline(&ring, 1, 1);
        sender.join().unwrap();
    });
}

#[test]
fn the_hot_copy_of_a_new_message_is_whole_or_refused() {
    check(4, || {
        let (ring, mut producer) = used();
        let sender = {
            let ring = ring.clone();
            spawn(move || ring.send(&mut producer))
        };
        check_inline(&ring, 3, 2);
        sender.join().unwrap();
    });
}

/// A slow member of a lossy ring is overtaken while it looks.
#[test]
fn a_slow_member_never_holds_another_message_than_it_says() {
    check(2, || {
        let ring = Broadcast::new(2, true);
        let mut producer = ring.producer();
        producer.admit(0, 1, ring.part(0));
        ring.send(&mut producer);
        ring.send(&mut producer);
        let mut member = ring.consumer(0, 1);
        let sender = {
            let ring = ring.clone();
            spawn(move || producer.drop_oldest(0).map(|slot| ring.fill(&mut producer, slot)))
        };
        let claim = ring.receive(&mut member, true);
        assert!(claim.is_some(), "one of two is always there");
        sender.join().unwrap();
    });
}
