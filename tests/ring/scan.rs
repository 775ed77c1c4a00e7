//! A consumer that finds no position entry looks at the slots themselves, one after the other, while the producer goes
//! on. What it finds there must not make it pass by what was published meanwhile in slots it has looked at already.

use std::{cell::RefCell, rc::Rc};

use forebay_layout::{Kind, WhenFull, entry::ENTRY_WORDS, pool::SLOT_WORD_STRIDE};
use forebay_ring::{
    Claim, MemberId, Pool, Publisher, ReadOnly, Reader,
    broadcast::{BroadcastConsumer, BroadcastProducer, settle},
    queue::{Acquired, Next, QueueConsumer, QueueProducer, finish, give_back},
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

/// Lets in another member of the same ring, at which nothing is hooked.
fn second_member(ring: &Broadcast) -> BroadcastConsumer<Hooked> {
    let plan = ring.consumer.reader().plan().clone();
    let me = MemberId { index: 1, ..ME };
    let part = forebay_ring::Member::in_object(Hooked::bytes(plan.member_bytes), &plan);
    ring.producer.borrow_mut().admit(me.index, me.incarnation, part.clone());
    BroadcastConsumer::new(Reader::new(ReadOnly::new(ring.ring.quiet()), plan, 1), part, me, true)
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

/// Three slots: 0 is on loan all the time, so that a look at the slots begins with one look at its word; 1 will keep the
/// message 131, which the other member holds; all others go through 2. On the way from message 1 to there the member is
/// overtaken twice. The first time every look finds other messages than the one before, and the last finds none; the one
/// pass that is left for the second time sees 131, which no other look confirms. It is the oldest that still has an entry.
#[test]
fn an_overtaken_member_goes_on_with_the_oldest_entry_there_is() {
    let mut ring = broadcast(WhenFull::DropOldest, 3);
    let producer = Rc::clone(&ring.producer);
    let mut other = second_member(&ring);
    assert_eq!(producer.borrow_mut().acquire(0), Some(0));
    for _ in 0..70 {
        publish(&producer);
    }
    for _ in 0..5 {
        let producer = Rc::clone(&producer);
        ring.ring.before(ring.slot_word, move || {
            publish(&producer);
        });
    }
    let loans = Rc::new(RefCell::new(Vec::new()));
    let (then, taken) = (Rc::clone(&producer), Rc::clone(&loans));
    ring.ring.before(ring.slot_word, move || {
        let drop_oldest = |_| then.borrow_mut().drop_oldest(0).unwrap();
        taken.borrow_mut().extend([(); 2].map(drop_oldest));
    });
    let entry = ring.consumer.reader().plan().position_word + 2 * ENTRY_WORDS;
    ring.ring.before(entry, move || {
        for slot in loans.borrow_mut().drain(..) {
            let id = producer.borrow().publisher().next_sequence();
            with_draft(id, |draft| producer.borrow_mut().publish(slot, draft));
        }
        while publish(&producer) < 131 {}
        while let Next::Claimed(claim) = other.next(true, |_| true).unwrap()
            && claim.sequence < 131
        {
            let _ = settle(other.part(), other.reader(), claim.slot, claim.generation, true);
        }
        while publish(&producer) < 131 + 63 {}
    });
    assert_eq!(sequence(ring.consumer.next(true, |_| true).unwrap()), 131);
    assert!(ring.ring.fired());
    assert_eq!(ring.consumer.missed(), 130);
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
    /// Another consumer, at which nothing is hooked.
    other: Rc<RefCell<QueueConsumer<Hooked>>>,
    ring: Hooked,
    pool: Hooked,
    slot_word: usize,
}

fn queue(slots: u32) -> Queue {
    let geometry = geometry(Kind::Queue, slots, WhenFull::Block);
    let plan = plan(&geometry);
    let (ring, words) = (Hooked::bytes(plan.ring_bytes), Hooked::bytes(plan.pool_bytes));
    let publisher = Publisher::new(ring.quiet(), words.quiet(), plan.clone(), 1);
    let producer = QueueProducer::new(publisher);
    let consumer = |ring: Hooked, words: Hooked, me| {
        let reader = Reader::new(ReadOnly::new(ring), plan.clone(), 1);
        QueueConsumer::new(reader, Pool::new(words, &plan), me, false)
    };
    let other = Rc::new(RefCell::new(consumer(ring.quiet(), words.quiet(), MemberId { index: 1, ..ME })));
    let consumer = consumer(ring.clone(), words.clone(), ME);
    Queue { producer: Rc::new(RefCell::new(producer)), consumer, other, ring, pool: words, slot_word: plan.slot_word }
}

fn send(producer: &Rc<RefCell<QueueProducer<Hooked>>>) -> u64 {
    let mut producer = producer.borrow_mut();
    let Acquired::Slot(slot) = producer.acquire(0, true) else { panic!("no slot") };
    let id = producer.publisher().next_sequence();
    with_draft(id, |draft| producer.publish(slot, draft))
}

fn claim(consumer: &mut QueueConsumer<Hooked>) -> Claim {
    match consumer.next(false, |_| true).unwrap() {
        Next::Claimed(claim) => claim,
        other => panic!("expected a message, found {other:?}"),
    }
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

/// What a scan found has to be confirmed by the next look. If somebody else takes it in between, what that look finds
/// instead has to be confirmed as well.
#[test]
fn first_deliveries_stay_in_order_when_what_a_scan_found_is_lost_to_another() {
    let mut ring = queue(4);
    let slot = |slot: usize| ring.slot_word + slot * SLOT_WORD_STRIDE;
    // The first look has passed slot 0 already, so it finds message 2 and not message 1.
    let producer = Rc::clone(&ring.producer);
    ring.pool.before(slot(1), move || {
        send(&producer);
        send(&producer);
    });
    let other = Rc::clone(&ring.other);
    ring.pool.before(slot(0), move || {
        for _ in 0..2 {
            let taken = claim(&mut other.borrow_mut());
            finish(other.borrow().pool(), &taken);
        }
    });
    // The second has passed slot 2 already, so it finds message 4 and not message 3.
    let producer = Rc::clone(&ring.producer);
    ring.pool.before(slot(3), move || {
        send(&producer);
        send(&producer);
    });
    let got = [(); 2].map(|()| sequence(ring.consumer.next(true, |_| true).unwrap()));
    assert!(ring.pool.fired());
    assert_eq!(got, [3, 4]);
}

/// 65 messages on 64 entries, of which another consumer took all and still holds 3: nothing is to be had, and entry 1 says
/// so. What is given back as the consumer goes on with the oldest entry there is comes in its turn.
#[test]
fn an_overtaken_consumer_goes_on_with_the_oldest_entry_there_is() {
    let mut ring = queue(4);
    let mut held = None;
    for sequence in 1..=65 {
        send(&ring.producer);
        let taken = claim(&mut ring.other.borrow_mut());
        if sequence == 3 {
            held = Some(taken);
        } else {
            finish(ring.other.borrow().pool(), &taken);
        }
    }
    let (producer, other) = (Rc::clone(&ring.producer), Rc::clone(&ring.other));
    ring.ring.before(ring.consumer.reader().plan().position_word + 3 * ENTRY_WORDS, move || {
        give_back(other.borrow().pool(), &held.unwrap(), 0);
        send(&producer);
    });
    assert_eq!(claim(&mut ring.consumer).sequence, 3);
    assert!(ring.ring.fired());
    assert_eq!(claim(&mut ring.consumer).sequence, 66);
}
