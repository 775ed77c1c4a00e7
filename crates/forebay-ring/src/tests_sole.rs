//! The only consumer of a queue: it claims by a store, and what nobody ever claimed without a look at the slot word.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use forebay_layout::entry::ENTRY_WORDS;

use crate::{
    Claim, MemberId, SlotWord,
    queue::{self, Acquired, Next, QueueConsumer, QueueProducer},
    tests::{Rig, publish, take},
    words::heap::Heap,
};

fn sole(rig: &Rig) -> QueueConsumer<Heap> {
    QueueConsumer::new(rig.reader(), rig.pool(), MemberId { index: 0, incarnation: 1 }, true)
}

/// The next message, the short way if there is one.
fn claim(consumer: &mut QueueConsumer<Heap>) -> Option<Claim> {
    let mut words = [0; ENTRY_WORDS];
    if let Some(claim) = consumer.next_in_order(|_| Some(&mut words)) {
        assert_eq!((words[0], words[1] as u32), (claim.sequence, claim.slot));
        return Some(claim);
    }
    match consumer.next(false, |_| true) {
        Ok(Next::Claimed(claim)) => Some(claim),
        _ => None,
    }
}

/// The sequence of the next message, which is released at once; 0 if there is none.
fn next(rig: &Rig, consumer: &mut QueueConsumer<Heap>) -> u64 {
    let Some(claim) = claim(consumer) else { return 0 };
    queue::finish(&rig.pool(), &claim);
    claim.sequence
}

#[test]
fn a_claim_by_a_store_is_a_claim() {
    let rig = Rig::queue(1);
    let (mut producer, mut consumer): (QueueProducer<Heap>, _) = (rig.producer(), sole(&rig));
    publish(&mut producer);
    let claim = take(&mut consumer).unwrap();
    assert_eq!(SlotWord::checked(rig.pool().peek_slot(0)), Ok(claim.word));
    assert_eq!(claim.word.owner(), Some(consumer.me()));
}

#[test]
fn each_message_is_claimed_once_and_in_order() {
    let rig = Rig::queue(4);
    let (mut producer, mut consumer) = (rig.producer(), sole(&rig));
    for round in 0..40 {
        for _ in 0..4 {
            publish(&mut producer);
        }
        let first = 4 * round + 1;
        let found: Vec<_> = (0..5).map(|_| next(&rig, &mut consumer)).collect();
        assert_eq!(found, [first, first + 1, first + 2, first + 3, 0]);
    }
}

#[test]
fn what_was_never_claimed_is_claimed_without_a_look_at_its_slot() {
    let rig = Rig::queue(4);
    let (mut producer, mut consumer) = (rig.producer(), sole(&rig));
    let done = |slot: u32| {
        let word = SlotWord::done(1).raw();
        rig.pool().slot(slot).store(word, crate::sync::Ordering::Relaxed);
    };
    // One that the predecessor of this consumer may have claimed is looked at: the word says that it is done.
    assert_eq!(publish(&mut producer), 1);
    done(0);
    assert_eq!(next(&rig, &mut consumer), 0);
    // Nobody else can have claimed the second. The word, which no protocol gives, is not asked.
    assert_eq!(publish(&mut producer), 2);
    done(1);
    assert_eq!(next(&rig, &mut consumer), 2);
    assert_eq!(next(&rig, &mut consumer), 0);
}

#[test]
fn without_room_nothing_is_claimed() {
    let rig = Rig::queue(4);
    let (mut producer, mut consumer) = (rig.producer(), sole(&rig));
    publish(&mut producer);
    assert_eq!(next(&rig, &mut consumer), 1);
    assert_eq!(publish(&mut producer), 2);
    let mut asked = Vec::new();
    let none = consumer.next_in_order(|slot| {
        asked.push(slot);
        None
    });
    assert_eq!((none, asked), (None, vec![1]));
    assert_eq!(SlotWord::checked(rig.pool().peek_slot(1)), Ok(SlotWord::full(1, 0)));
    assert_eq!(next(&rig, &mut consumer), 2);
}

#[test]
fn what_came_back_is_found_though_new_messages_go_on_coming() {
    for by_store in [true, false] {
        let rig = Rig::queue(4);
        let me = MemberId { index: 0, incarnation: 1 };
        let (mut producer, mut consumer) = (rig.producer(), QueueConsumer::new(rig.reader(), rig.pool(), me, by_store));
        assert_eq!(next(&rig, &mut consumer), 0);
        publish(&mut producer);
        let first = claim(&mut consumer).unwrap();
        let _ = queue::give_back(&rig.pool(), &first, 0);
        let again = (0..40).find_map(|_| {
            publish(&mut producer);
            let claim = claim(&mut consumer).unwrap();
            queue::finish(&rig.pool(), &claim);
            (claim.sequence == 1).then_some(claim.attempts)
        });
        assert_eq!(again, Some(1), "by store: {by_store}");
    }
}

#[test]
fn what_others_have_is_passed_over_and_what_came_back_is_not() {
    let rig = Rig::queue(16);
    let consumer = |index| QueueConsumer::new(rig.reader(), rig.pool(), MemberId { index, incarnation: 1 }, false);
    let (mut producer, mut one, mut other) = (rig.producer(), consumer(0), consumer(1));
    assert_eq!((next(&rig, &mut one), next(&rig, &mut other)), (0, 0));
    (1..=12).for_each(|sequence| assert_eq!(publish(&mut producer), sequence));
    let short = |consumer: &mut QueueConsumer<Heap>| {
        let mut words = [0; ENTRY_WORDS];
        consumer.next_in_order(|_| Some(&mut words))
    };
    let had: Vec<_> = (1..=4).map(|_| short(&mut one).unwrap()).collect();
    assert_eq!(had.iter().map(|claim| claim.sequence).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(short(&mut other), None, "it loses the first");
    assert_eq!(short(&mut other).map(|claim| claim.sequence), Some(5), "and knows then");
    let _ = short(&mut one);
    let sixth = short(&mut one).unwrap();
    assert_eq!(sixth.sequence, 6);
    let _ = queue::give_back(&rig.pool(), &sixth, 0);
    assert_eq!(short(&mut other), None, "what came back is not passed over");
    let again = claim(&mut other).unwrap();
    assert_eq!((again.sequence, again.attempts), (6, 1));
    assert_eq!(short(&mut other).map(|claim| claim.sequence), Some(7));
}

#[test]
fn a_wait_sees_that_its_next_message_has_come() {
    let rig = Rig::queue(2);
    let (mut producer, mut consumer) = (rig.producer(), sole(&rig));
    for _ in 0..3 {
        assert!(!consumer.may_have_next());
        publish(&mut producer);
        assert!(consumer.may_have_next());
        assert_ne!(next(&rig, &mut consumer), 0);
    }
    // Also one of later messages that took its entry.
    let mut late = rig.consumer(1);
    while producer.publisher().next_sequence() <= rig.plan.positions + 1 {
        publish(&mut producer);
        assert_ne!(next(&rig, &mut consumer), 0);
    }
    assert!(late.may_have_next());
    assert_eq!(take(&mut late), None);
    assert!(!late.may_have_next());
    let Acquired::Slot(slot) = producer.acquire(0, true) else { panic!("both slots are done") };
    producer.abandon(slot);
    assert!(!late.may_have_next(), "a loan is no message");
}
