//! A position entry is copied while the producer writes it anew: a copy of two messages is none.

use forebay_layout::{Kind, WhenFull, entry::ENTRY_WORDS};
use forebay_ring::{
    Claim, MemberId, Pool, Publisher, ReadOnly, Reader, Words,
    queue::{Acquired, Next, QueueConsumer, QueueProducer},
};

use crate::hooked::{Hooked, geometry, plan, with_draft};

struct Ring {
    producer: QueueProducer<Hooked>,
    reader: Reader<Hooked>,
    ring: Hooked,
    claim: Claim,
    entry: usize,
}

/// A queue of two slots with one message, which is claimed; only the ring object has hooks.
fn claimed() -> Ring {
    let plan = plan(&geometry(Kind::Queue, 2, WhenFull::Block));
    let (ring, pool) = (Hooked::bytes(plan.ring_bytes), Hooked::bytes(plan.pool_bytes));
    let mut producer = QueueProducer::new(Publisher::new(ring.quiet(), pool.clone(), plan.clone(), 1));
    send(&mut producer);
    let reader = Reader::new(ReadOnly::new(ring.clone()), plan.clone(), 1);
    let me = MemberId { index: 0, incarnation: 1 };
    let mut consumer = QueueConsumer::new(reader.clone(), Pool::new(pool, &plan), me, false);
    let Ok(Next::Claimed(claim)) = consumer.next(false, |_| true) else { panic!("it was published") };
    Ring { producer, reader, ring, claim, entry: plan.position_word + ENTRY_WORDS }
}

/// Publishes, or drops the message before and then publishes.
fn send(producer: &mut QueueProducer<Hooked>) {
    let slot = match producer.acquire(0, true) {
        Acquired::Slot(slot) => slot,
        _ => producer.drop_oldest(0).unwrap(),
    };
    let id = producer.publisher().next_sequence();
    with_draft(id, |draft| producer.publish(slot, draft));
}

#[test]
fn a_copy_during_which_the_entry_became_that_of_another_message_is_refused() {
    for word in 2..ENTRY_WORDS {
        let Ring { mut producer, reader, ring, claim, entry } = claimed();
        ring.before(entry + word, move || (0..64).for_each(|_| send(&mut producer)));
        assert_eq!(reader.inline_of(&claim), Ok(None), "at word {word}");
        assert!(ring.fired());
    }
}

#[test]
fn a_copy_that_began_before_the_entry_was_whole_is_refused() {
    for word in 1..ENTRY_WORDS {
        let Ring { reader, ring, claim, entry, .. } = claimed();
        let quiet = ring.quiet();
        let stamp = quiet.word(entry).swap(0, std::sync::atomic::Ordering::Relaxed);
        ring.before(entry + word, move || quiet.word(entry).store(stamp, std::sync::atomic::Ordering::Relaxed));
        assert_eq!(reader.inline_of(&claim), Ok(None), "at word {word}");
        assert!(ring.fired());
        assert!(matches!(reader.inline_of(&claim), Ok(Some((head, Some(_)))) if head.correlation_id == 1));
    }
}
