//! A consumer that finds no position entry looks at the slots themselves, one after the other, while the producer goes
//! on. What it finds there must not make it pass by what was published meanwhile in slots it has looked at already.

use std::{cell::RefCell, rc::Rc};

use forebay_layout::{Kind, WhenFull, pool::SLOT_WORD_STRIDE};
use forebay_ring::{
    MemberId, Pool, Publisher, ReadOnly, Reader,
    broadcast::{BroadcastConsumer, BroadcastProducer, settle},
    queue::{Acquired, Next, QueueConsumer, QueueProducer, finish},
};

use crate::hooked::{Hooked, geometry, plan, with_draft};

const ME: MemberId = MemberId { index: 0, incarnation: 1 };

fn sequence(next: Next) -> u64 {
    match next {
        Next::Claimed(claim) => claim.sequence,
        other => panic!("expected a message, found {other:?}"),
    }
}

struct Broadcast {
    producer: Rc<RefCell<BroadcastProducer<Hooked>>>,
    consumer: BroadcastConsumer<Hooked>,
    ring: Hooked,
    part: forebay_ring::Member<Hooked>,
    slot_word: usize,
}

fn broadcast(when_full: WhenFull, slots: u32) -> Broadcast {
    let geometry = geometry(Kind::Broadcast, slots, when_full);
    let plan = plan(&geometry);
    let (ring, own) = (Hooked::bytes(plan.ring_bytes), Hooked::bytes(plan.member_bytes));
    let publisher = Publisher::new(ring.quiet(), ring.quiet(), plan.clone(), 1);
    let mut producer = BroadcastProducer::new(publisher, ring.quiet());
    let part = forebay_ring::Member::in_object(own.quiet(), &plan);
    part.set_identity(ME.incarnation, 2);
    producer.admit(ME.index, ME.incarnation, part.clone());
    let reader = Reader::new(ReadOnly::new(ring.clone()), plan.clone(), 1);
    let consumer = BroadcastConsumer::new(reader, part.clone(), ME, geometry.is_lossy());
    let slot_word = plan.slot_word;
    Broadcast { producer: Rc::new(RefCell::new(producer)), consumer, ring, part, slot_word }
}

fn publish(producer: &Rc<RefCell<BroadcastProducer<Hooked>>>) -> u64 {
    let mut producer = producer.borrow_mut();
    let slot = producer.acquire(0).or_else(|| producer.drop_oldest(0)).unwrap();
    let id = producer.publisher().next_sequence();
    with_draft(id, |draft| producer.publish(slot, draft))
}

/// Went wrong: the scan passed slot 0, then both messages were published, then it found the second one in slot 1 and
/// moved its cursor there. The first was never delivered, and its slot never free again.
#[test]
fn a_member_that_scans_while_two_messages_are_published_receives_both() {
    let mut ring = broadcast(WhenFull::Block, 4);
    let producer = Rc::clone(&ring.producer);
    ring.ring.before(ring.slot_word + SLOT_WORD_STRIDE, move || {
        publish(&producer);
        publish(&producer);
    });
    let mut got = Vec::new();
    while let Next::Claimed(claim) = ring.consumer.next(true, |_| true).unwrap() {
        got.push(claim.sequence);
        let _ = settle(&ring.part, ring.consumer.reader(), claim.slot, claim.generation, true);
    }
    assert!(ring.ring.fired());
    assert_eq!(got, [1, 2]);
    assert_eq!(ring.consumer.missed(), 0);
    assert_eq!(ring.producer.borrow().outstanding(), 0);
}

/// The same on a lossy ring: nothing was dropped, so nothing may be missed.
#[test]
fn a_lossy_member_that_scans_while_two_messages_are_published_misses_none() {
    let mut ring = broadcast(WhenFull::DropOldest, 4);
    let producer = Rc::clone(&ring.producer);
    ring.ring.before(ring.slot_word + SLOT_WORD_STRIDE, move || {
        publish(&producer);
        publish(&producer);
    });
    assert_eq!(sequence(ring.consumer.next(true, |_| true).unwrap()), 1);
    assert!(ring.ring.fired());
    assert_eq!((sequence(ring.consumer.next(true, |_| true).unwrap()), ring.consumer.missed()), (2, 0));
}

/// A lossy member that was overtaken: what it receives and what it missed together are all that was published.
#[test]
fn an_overtaken_member_receives_or_misses_every_message_even_if_more_come_while_it_scans() {
    for at in 0..4 {
        let mut ring = broadcast(WhenFull::DropOldest, 4);
        for _ in 0..70 {
            publish(&ring.producer);
        }
        let producer = Rc::clone(&ring.producer);
        ring.ring.before(ring.slot_word + at * SLOT_WORD_STRIDE, move || {
            for _ in 0..3 {
                publish(&producer);
            }
        });
        let mut got = Vec::new();
        while let Next::Claimed(claim) = ring.consumer.next(true, |_| true).unwrap() {
            got.push(claim.sequence);
            let _ = settle(&ring.part, ring.consumer.reader(), claim.slot, claim.generation, true);
        }
        assert!(ring.ring.fired());
        let dropped = ring.producer.borrow().publisher().counted(forebay_ring::Counter::Dropped);
        assert_eq!((got.len() as u64, ring.consumer.missed()), (73 - dropped, dropped), "at {at}: got {got:?}");
    }
}

/// A message that its producer committed and died before it wrote the entry is found all the same.
#[test]
fn a_member_finds_a_message_without_an_entry() {
    let mut ring = broadcast(WhenFull::Block, 4);
    publish(&ring.producer);
    let entry = ring.consumer.reader().plan().position_word + 16;
    forebay_ring::Words::word(&ring.ring, entry).store(0, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(ring.consumer.next(false, |_| true), Ok(Next::Empty));
    assert_eq!(sequence(ring.consumer.next(true, |_| true).unwrap()), 1);
}

struct Queue {
    producer: Rc<RefCell<QueueProducer<Hooked>>>,
    consumer: QueueConsumer<Hooked>,
    pool: Hooked,
    slot_word: usize,
}

fn queue(slots: u32) -> Queue {
    let geometry = geometry(Kind::Queue, slots, WhenFull::Block);
    let plan = plan(&geometry);
    let (ring, words) = (Hooked::bytes(plan.ring_bytes), Hooked::bytes(plan.pool_bytes));
    let publisher = Publisher::new(ring.quiet(), words.quiet(), plan.clone(), 1);
    let producer = QueueProducer::new(publisher);
    let reader = Reader::new(ReadOnly::new(ring), plan.clone(), 1);
    let slot_word = plan.slot_word;
    let pool = Pool::new(words.clone(), &plan);
    let consumer = QueueConsumer::new(reader, pool, ME, false);
    Queue { producer: Rc::new(RefCell::new(producer)), consumer, pool: words, slot_word }
}

fn send(producer: &Rc<RefCell<QueueProducer<Hooked>>>) -> u64 {
    let mut producer = producer.borrow_mut();
    let Acquired::Slot(slot) = producer.acquire(0, true) else { panic!("no slot") };
    let id = producer.publisher().next_sequence();
    with_draft(id, |draft| producer.publish(slot, draft))
}

/// Went wrong: as above, the scan found the second message first and claimed it; the first came after it.
#[test]
fn first_deliveries_stay_in_order_when_messages_are_published_during_a_scan() {
    for at in 0..4 {
        let mut ring = queue(4);
        let producer = Rc::clone(&ring.producer);
        ring.pool.before(ring.slot_word + at * SLOT_WORD_STRIDE, move || {
            for _ in 0..3 {
                send(&producer);
            }
        });
        let mut got = Vec::new();
        // A scan that had passed all three slots finds nothing; the next look does.
        for _ in 0..2 {
            while let Next::Claimed(claim) = ring.consumer.next(true, |_| true).unwrap() {
                got.push(claim.sequence);
                finish(ring.consumer.pool(), &claim);
            }
        }
        assert!(ring.pool.fired());
        assert_eq!(got, [1, 2, 3], "at {at}");
    }
}
