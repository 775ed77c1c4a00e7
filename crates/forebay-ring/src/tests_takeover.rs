//! What a successor finds, frees and completes, and what it leaves alone; rings of more than one class.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use forebay_layout::{
    DType, Defect, Kind, MAX_USER_BYTES, WhenFull,
    descriptor::{HEAD_WORDS, TensorMeta},
    entry::{ENTRY_TAIL, ENTRY_WORDS, EntryTensor},
    geometry::SlotClass,
    header::pack,
};

use crate::{
    Claim, Counter, Draft, Member, MemberId, Outstanding, Publisher, Recovered, SlotWord,
    broadcast::BroadcastProducer,
    queue::{self, Acquired, QueueConsumer},
    reader::Position,
    sync::Ordering::Relaxed,
    tests::{Rig, draft, field, geometry, publish, take},
    words::{Words, heap::Heap},
};

fn word(words: &Heap, index: usize) -> u64 {
    words.word(index).load(Relaxed)
}

fn take_over(rig: &Rig) -> Result<(Publisher<Heap>, Recovered), Defect> {
    Publisher::take_over(rig.ring.clone(), rig.pool.clone(), rig.plan.clone(), 2)
}

fn count_left(rig: &Rig) -> u64 {
    Publisher::count_left(&rig.ring, &rig.pool, &rig.plan)
}

fn next(consumer: &mut QueueConsumer<Heap>) -> Claim {
    take(consumer).unwrap()
}

fn through(consumer: &mut QueueConsumer<Heap>) {
    let claim = next(consumer);
    queue::finish(consumer.pool(), &claim);
}

/// Of seven slots, one in each state.
#[test]
fn who_looks_at_a_ring_without_a_producer_is_told_how_many_messages_are_left() {
    let rig = Rig::queue(7);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    assert_eq!(count_left(&rig), 0);
    for sequence in 1..=6 {
        publish(&mut producer);
        assert_eq!(count_left(&rig), sequence);
    }
    let [claimed, acked, dead, back, done, free] = [(); 6].map(|()| next(&mut consumer));
    assert_eq!(claimed.word.owner(), Some(MemberId { index: 0, incarnation: 1 }));
    assert_eq!(count_left(&rig), 6, "what is read is left");
    queue::ack(consumer.pool(), &acked);
    queue::give_back(consumer.pool(), &dead, 1);
    queue::give_back(consumer.pool(), &back, 2);
    assert_eq!(count_left(&rig), 6, "acked, dead and given back");
    queue::finish(consumer.pool(), &done);
    rig.pool().slot(free.slot).store(SlotWord::free(1).raw(), Relaxed);
    assert_eq!(count_left(&rig), 4);
    assert_eq!(producer.acquire(0, true), Acquired::Slot(6));
    assert_eq!(count_left(&rig), 4, "what is being written is not a message");
    rig.pool().slot(6).store(SlotWord::full(1, 0).raw(), Relaxed);
    assert_eq!(count_left(&rig), 4, "a message without a sequence is a lie");
    rig.pool().slot(claimed.slot).store(7, Relaxed);
    assert_eq!(count_left(&rig), 3, "and so is a word that none writes");
}

#[test]
fn a_successor_says_which_slot_lies() {
    let rig = Rig::queue(3);
    publish(&mut rig.producer());
    rig.pool().slot(2).store(7, Relaxed);
    let defect = take_over(&rig).unwrap_err();
    assert_eq!(defect, Defect::bounded("slot_word.state", 7, "a state from 0 to 6, in slot", 2));
}

/// A member that reads the slot meanwhile must never meet a message that was not committed, whatever its number.
#[test]
fn a_successor_frees_what_was_being_written() {
    let rig = Rig::queue(2);
    let mut producer = rig.producer();
    publish(&mut producer);
    assert_eq!(producer.acquire(0, true), Acquired::Slot(1));
    // Sequence 2 had got as far as its descriptor.
    let descriptor = rig.plan.descriptor_word + rig.plan.descriptor_words;
    rig.ring.word(descriptor).store(2, Relaxed);
    let (publisher, recovered) = take_over(&rig).unwrap();
    assert_eq!((recovered.last_sequence, recovered.outstanding, publisher.next_sequence()), (1, 1, 2));
    assert_eq!(SlotWord::checked(rig.pool().peek_slot(1)), Ok(SlotWord::free(1)));
    assert_eq!((word(&rig.ring, descriptor), word(&rig.ring, rig.plan.descriptor_word)), (0, 1));
    assert_eq!((publisher.shadow(0), publisher.shadow(1)), ((Outstanding::Published(1), 1), (Outstanding::Free, 1)));
}

#[test]
fn the_last_user_data_is_found_to_its_end() {
    let rig = Rig::queue(2);
    let mut producer = rig.producer();
    let mut consumer = rig.consumer(0);
    let all: Vec<u8> = (0..MAX_USER_BYTES).map(|i| i as u8).collect();
    for user in [&b"three words of eight or less"[..], b"", &all, b"8 bytes.", b"nine more"] {
        let Acquired::Slot(slot) = producer.acquire(0, true) else { panic!("no slot is free") };
        producer.publish(slot, &draft(&field(), user));
        assert_eq!(take_over(&rig).unwrap().1.last_user, user);
        let claim = next(&mut consumer);
        let head = rig.reader().head_of(&claim).unwrap();
        assert_eq!(rig.reader().user_of(&claim, &head), user);
        queue::finish(consumer.pool(), &claim);
    }
}

/// 70 messages on 64 entries. The first is still read, so that its entry is that of message 65 by now.
#[test]
fn a_successor_leaves_the_entries_alone_that_are_right() {
    let rig = Rig::queue(4);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    publish(&mut producer);
    let first = next(&mut consumer);
    for _ in 2..=64 {
        publish(&mut producer);
        through(&mut consumer);
    }
    publish(&mut producer);
    let held = next(&mut consumer);
    for _ in 66..=69 {
        publish(&mut producer);
        through(&mut consumer);
    }
    publish(&mut producer);
    let entry = |sequence: usize| rig.plan.position_word + (sequence & 63) * ENTRY_WORDS;
    // Members look at the entries meanwhile: one that is right is not written again. This one would be mended.
    rig.ring.word(entry(70) + 2).store(8, Relaxed);
    assert_eq!(take_over(&rig).unwrap().1.outstanding, 3);
    assert_eq!(word(&rig.ring, entry(70) + 2), 8);
    let reader = rig.reader();
    assert_eq!(reader.position(65), Ok(Position::At { slot: held.slot, generation: held.generation }));
    assert_eq!(reader.position(first.sequence), Ok(Position::Overtaken(65)));
    assert!(matches!(reader.position(70), Ok(Position::At { .. })));
    assert_eq!(next(&mut consumer).sequence, 70);
}

/// Each word of this one is another number.
#[test]
fn a_successor_writes_an_entry_as_it_was() {
    let rig = Rig::queue(3);
    let mut producer = rig.producer();
    publish(&mut producer);
    assert_eq!(producer.acquire(0, true), Acquired::Slot(1));
    let fields = [TensorMeta::new(DType::I64, &[2, 3, 4], 0).unwrap()];
    let sent = Draft { timestamp_ns: 9, payload_bytes: 200, ..draft(&fields, b"user data") };
    producer.publish(1, &sent);
    let entry = rig.plan.position_word + 2 * ENTRY_WORDS;
    let words = || (entry..entry + ENTRY_WORDS).map(|i| word(&rig.ring, i)).collect::<Vec<_>>();
    let before = words();
    let tensor = fields[0].type_word() << 32;
    assert_eq!(before[..9], [2, 1 | 1 << 32, 7, 200, 9, 1 | 9 << 16 | tensor, 2, 3, 4]);
    (entry..entry + ENTRY_WORDS).for_each(|i| rig.ring.word(i).store(0, Relaxed));
    take_over(&rig).unwrap();
    assert_eq!(words(), before);
}

/// The entry that the oldest of 64 had is that of the newest.
#[test]
fn a_successor_keeps_the_newest_message_where_members_look_for_it() {
    let rig = Rig::queue(2);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    for last in 1..=130 {
        publish(&mut producer);
        let (publisher, recovered) = take_over(&rig).unwrap();
        assert_eq!((recovered.last_sequence, publisher.next_sequence()), (last, last + 1));
        assert!(matches!(rig.reader().position(last), Ok(Position::At { .. })), "{last}");
        assert_eq!(rig.reader().position(last + 1), Ok(Position::NotYet));
        through(&mut consumer);
    }
}

/// Slots 0 and 1 are of the first class, 2 to 4 of the second.
fn two_classes(kind: Kind) -> Rig {
    let mut geometry = geometry(kind, 2, WhenFull::DropOldest);
    let sizes = [(2, 256), (3, 512)].map(|(slots, slot_bytes)| SlotClass { slots, slot_bytes });
    geometry.classes = sizes.into_iter().collect();
    let plan = geometry.plan().unwrap();
    Rig { ring: Heap::bytes(plan.ring_bytes), pool: Heap::bytes(plan.pool_bytes), plan }
}

#[test]
fn each_class_takes_its_slots_in_turn() {
    let rig = two_classes(Kind::Queue);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    for round in 0..9 {
        for (class, expected) in [(0, round % 2), (1, 2 + round % 3)] {
            assert_eq!(producer.acquire(class, true), Acquired::Slot(expected));
            producer.publish(expected, &draft(&field(), &[]));
            through(&mut consumer);
        }
    }
    let all: Vec<_> = std::iter::from_fn(|| match producer.acquire(0, true) {
        Acquired::Slot(slot) => Some(slot),
        _ => None,
    })
    .collect();
    assert_eq!(all, [1, 0, 2, 3, 4], "a small message takes a large slot if no small one is free");
}

/// A large message is not written into the slot of an older, smaller one.
#[test]
fn the_oldest_is_dropped_from_a_class_that_is_large_enough() {
    let rig = two_classes(Kind::Queue);
    let mut producer = rig.producer();
    for (class, slot) in [(0, 0), (1, 2), (1, 3), (0, 1)] {
        assert_eq!(producer.acquire(class, true), Acquired::Slot(slot));
        producer.publish(slot, &draft(&field(), &[]));
    }
    assert_eq!([1, 0, 0, 0].map(|class| producer.drop_oldest(class)), [Some(2), Some(0), Some(3), Some(1)]);

    let rig = two_classes(Kind::Broadcast);
    let publisher = Publisher::new(rig.ring.clone(), rig.ring.clone(), rig.plan.clone(), 1);
    let mut producer = BroadcastProducer::new(publisher, rig.ring.clone());
    producer.admit(0, 1, Member::in_object(Heap::bytes(rig.plan.member_bytes), &rig.plan));
    for (class, slot) in [(0, 0), (1, 2), (1, 3), (0, 1)] {
        assert_eq!(producer.acquire(class), Some(slot));
        producer.publish(slot, &draft(&field(), &[]));
        assert_eq!(producer.peek_slot(slot), SlotWord::full(1, 0).raw());
    }
    assert_eq!([1, 0, 0, 0, 2].map(|class| producer.drop_oldest(class)), [Some(2), Some(0), Some(3), Some(1), None]);
}

#[test]
fn an_entry_describes_a_tensor_at_the_start_of_its_slot_and_no_other() {
    let rig = Rig::queue(2);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    assert_eq!(producer.acquire(0, true), Acquired::Slot(0));
    let fields = [TensorMeta::new(DType::I64, &[2, 1, 4], 0).unwrap()];
    producer.publish(0, &draft(&fields, &[]));
    let claim = next(&mut consumer);
    assert_eq!(rig.reader().inline_of(&claim).unwrap().unwrap().1, Some(fields[0]));
    assert_eq!(word(&rig.ring, rig.plan.position_word + 2 * ENTRY_WORDS), 0, "nothing is written beside it");
    assert_eq!(producer.acquire(0, true), Acquired::Slot(1));
    let others = [TensorMeta::new(DType::U8, &[5], 128).unwrap()];
    producer.publish(1, &Draft { inline: b"first", ..draft(&others, &[]) });
    let other = next(&mut consumer);
    assert_eq!(rig.reader().inline_of(&other), Ok(None));
    let at = rig.plan.position_word + 2 * ENTRY_WORDS + ENTRY_TAIL;
    assert_eq!(word(&rig.ring, at), 0, "bytes of a tensor that it does not describe");
    let few = [TensorMeta::new(DType::U8, &[6], 0).unwrap()];
    queue::finish(&rig.pool(), &other);
    assert_eq!(producer.acquire(0, true), Acquired::Slot(1));
    producer.publish(1, &Draft { inline: b"five!", ..draft(&few, &[]) });
    let third = next(&mut consumer);
    let words = rig.reader().entry_of(&third).unwrap();
    let tensor = rig.reader().decode_entry_tensor(&third, &words);
    assert_eq!(tensor, Ok(Some(EntryTensor { meta: few[0], inline: false })), "bytes that are not the tensor's");
    // And each slot has a descriptor of its own.
    assert_eq!([claim, third].map(|claim| rig.reader().field_of(&claim, 0).unwrap().0), [fields[0], few[0]]);
}

#[test]
fn an_entry_carries_the_bytes_of_a_small_tensor() {
    let rig = Rig::queue(2);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    assert_eq!(producer.acquire(0, true), Acquired::Slot(0));
    let fields = [TensorMeta::new(DType::U8, &[3, 4], 0).unwrap()];
    producer.publish(0, &Draft { inline: b"twelve bytes", ..draft(&fields, &[]) });
    let claim = next(&mut consumer);
    let words = rig.reader().entry_of(&claim).unwrap();
    let tensor = rig.reader().decode_entry_tensor(&claim, &words).unwrap().unwrap();
    assert_eq!(tensor, EntryTensor { meta: fields[0], inline: true });
    assert_eq!(words[ENTRY_TAIL..ENTRY_TAIL + 3], [pack(b"twelve b"), pack(b"ytes"), 0]);
    // Neither too many bytes nor other ones than those of the tensor are believed.
    for bytes in [1, 13, 65, 255] {
        let mut lie = words;
        lie[5] = lie[5] & !(0xff << 48) | bytes << 48;
        assert_eq!(rig.reader().decode_entry_tensor(&claim, &lie).unwrap_err().field, "position.tensor_bytes");
    }
}

/// A slot is told what its fields are only if it does not know.
#[test]
fn a_layout_that_a_slot_knows_is_not_written_again() {
    let rig = Rig::queue(1);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    let fields = [TensorMeta::new(DType::U8, &[3], 0).unwrap()];
    let others = [TensorMeta::new(DType::U8, &[5], 0).unwrap()];
    let at = rig.plan.descriptor_word + HEAD_WORDS + 3;
    for (layout, fields, written) in [(1, fields, true), (1, fields, false), (2, others, true), (0, others, true)] {
        assert_eq!(producer.acquire(0, true), Acquired::Slot(0));
        rig.ring.word(at).store(99, Relaxed);
        producer.publish(0, &Draft { layout, ..draft(&fields, &[]) });
        assert_eq!(word(&rig.ring, at), if written { fields[0].shape()[0] } else { 99 }, "layout {layout}");
        queue::finish(&rig.pool(), &next(&mut consumer));
    }
}

/// A member that joined at the second message, in the ninth life of its index, is owed that one by the successor.
#[test]
fn a_member_that_is_let_in_again_is_owed_what_it_was() {
    let rig = Rig::of(Kind::Broadcast, 4);
    let part = Member::in_object(Heap::bytes(rig.plan.member_bytes), &rig.plan);
    let send = |producer: &mut BroadcastProducer<Heap>| {
        let slot = producer.acquire(0).unwrap();
        producer.publish(slot, &draft(&field(), &[]));
        slot
    };
    let first = Publisher::new(rig.ring.clone(), rig.ring.clone(), rig.plan.clone(), 1);
    let mut producer = BroadcastProducer::new(first, rig.ring.clone());
    send(&mut producer);
    producer.admit(1, 9, part.clone());
    let owed = send(&mut producer);
    let taken = Publisher::take_over(rig.ring.clone(), rig.ring.clone(), rig.plan.clone(), 2).unwrap();
    assert_eq!(taken.1.last_sequence, 2);
    let mut producer = BroadcastProducer::new(taken.0, rig.ring.clone());
    producer.readmit(1, 9, part);
    assert_eq!((producer.owed_by(0), producer.owed_by(owed), producer.outstanding()), (0, 1 << 1, 1));
    producer.count(Counter::FullWaits, 3);
    assert_eq!(producer.publisher().counted(Counter::FullWaits), 3);
}
