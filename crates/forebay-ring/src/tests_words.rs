//! What the sides write where, and what they say of each other: counters, descriptors word by word, the state of slots.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use forebay_layout::{
    DType, FieldName, Kind,
    descriptor::{FIELD_WORDS, HEAD_WORDS, TensorMeta, USER_WORDS},
    entry::{ENTRY_WORDS, NO_SLOT},
    header::{
        LAST_STRIDE, W_BYTES, W_DEAD, W_DROPPED, W_EPOCH, W_FENCES, W_FULL_WAITS, W_HEAD, W_LAST, W_PARKED, W_STATE,
        pack, state,
    },
    member as at,
};

use crate::{
    Claim, Counter, Draft, Member, MemberId, Outstanding, Publisher, SlotState, SlotWord,
    broadcast::{BroadcastConsumer, BroadcastProducer, settle},
    queue::{self, Acquired, Next},
    reader::Position,
    sync::Ordering::Relaxed,
    tests::{Rig, draft, field, publish, take},
    words::{ReadOnly, Words, heap::Heap},
};

fn word(words: &Heap, index: usize) -> u64 {
    words.word(index).load(Relaxed)
}

#[test]
fn a_publish_writes_each_word_where_the_layout_says() {
    let rig = Rig::queue(4);
    let mut producer = rig.producer();
    assert_eq!(word(&rig.ring, W_HEAD), 1);
    publish(&mut producer);
    let Acquired::Slot(slot) = producer.acquire(0, true) else { panic!("it is free") };
    assert_eq!(slot, 1, "the slots take turns");
    let fields = [TensorMeta::new(DType::I64, &[2, 4], 0).unwrap(), TensorMeta::new(DType::U8, &[3], 64).unwrap()];
    let names = ["ids", "mask"].map(|name| FieldName::from(name).unwrap());
    let user = b"twelve bytes";
    let sent = Draft {
        correlation_id: 7,
        timestamp_ns: 8,
        payload_bytes: 67,
        fields: &fields,
        names: &names,
        user,
        ..Draft::default()
    };
    assert_eq!(producer.publish(slot, &sent), 2);
    let descriptor = rig.plan.descriptor_word + rig.plan.descriptor_words;
    let at = |base: usize, n: usize| (base..base + n).map(|i| word(&rig.ring, i)).collect::<Vec<_>>();
    let head = [2, 1 | 1 << 32, 7, 67, 8, 2 | 12 << 16];
    assert_eq!(at(descriptor, 6), head);
    assert_eq!(at(descriptor + HEAD_WORDS, FIELD_WORDS), fields[0].encode("ids"));
    assert_eq!(at(descriptor + HEAD_WORDS + FIELD_WORDS, FIELD_WORDS), fields[1].encode("mask"));
    let user_words = [pack(b"twelve b"), pack(b"ytes")];
    assert_eq!(at(descriptor + rig.plan.descriptor_words - USER_WORDS, 2), user_words);
    let entry = rig.plan.position_word + 2 * ENTRY_WORDS;
    assert_eq!(at(entry, 6), head);
    assert_eq!(at(entry + 6, 10), [0; 10], "an entry describes the tensor of a message that has one");
    assert_eq!(at(W_LAST, 4), [2, 12, user_words[0], user_words[1]]);
    assert_eq!(at(W_LAST + LAST_STRIDE, 3), [1, 4, pack(b"user")]);
    assert_eq!((word(&rig.ring, W_HEAD), word(&rig.ring, W_BYTES)), (3, 64 + 67));
    assert_eq!(SlotWord::checked(rig.pool().peek_slot(1)), Ok(SlotWord::full(1, 0)));
}

#[test]
fn what_was_published_is_read_word_by_word_and_checked() {
    let rig = Rig::queue(4);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    let Acquired::Slot(slot) = producer.acquire(0, true) else { panic!("it is free") };
    let fields = [TensorMeta::new(DType::I64, &[2, 4], 0).unwrap(), TensorMeta::new(DType::U8, &[3], 64).unwrap()];
    let names = ["ids", "mask"].map(|name| FieldName::from(name).unwrap());
    producer.publish(slot, &Draft { names: &names, ..draft(&fields, &[]) });
    let claim = take(&mut consumer).unwrap();
    let reader = rig.reader();
    assert_eq!(reader.field_of(&claim, 1), Ok((fields[1], names[1])));
    assert_eq!(reader.field_of(&claim, 2).unwrap_err().field, "field");
    let mut known = [0, 1].map(|index| reader.field_words(&claim, index).unwrap());
    assert_eq!(reader.fields_are(&claim, &known), Ok(true));
    for field in 0..2 {
        for word in 0..known[field].len() {
            known[field][word] ^= 1 << (word + 7);
            assert_eq!(reader.fields_are(&claim, &known), Ok(false), "word {word} of field {field}");
            known[field][word] ^= 1 << (word + 7);
        }
    }
    assert_eq!(reader.fields_are(&claim, &[known[0]; 3]).unwrap_err().field, "field");
    assert_eq!(reader.inline_of(&claim), Ok(None), "two tensors");
    assert_eq!(reader.user_of(&claim, &reader.head_of(&claim).unwrap()), []);
    for other in [Claim { sequence: 2, ..claim }, Claim { generation: 2, ..claim }] {
        assert!(reader.head_of(&other).is_err());
        assert_eq!(reader.inline_of(&other), Ok(None));
    }
    assert!(reader.head_of(&Claim { slot: 4, ..claim }).is_err(), "no such slot");
    let descriptor = rig.plan.descriptor_word;
    rig.ring.word(descriptor + 1).store(3 | 1 << 32, Relaxed);
    assert_eq!(reader.head_of(&claim).unwrap_err().field, "descriptor.slot");
}

#[test]
fn the_entry_alone_gives_a_small_message() {
    let rig = Rig::queue(4);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    for fields in [&field()[..], &[]] {
        let Acquired::Slot(slot) = producer.acquire(0, true) else { panic!("it is free") };
        producer.publish(slot, &draft(fields, &[]));
        let claim = take(&mut consumer).unwrap();
        let (head, meta) = rig.reader().inline_of(&claim).unwrap().unwrap();
        assert_eq!((head.sequence, head.correlation_id, meta), (claim.sequence, 7, fields.first().copied()));
        for other in [Claim { slot: claim.slot ^ 1, ..claim }, Claim { generation: claim.generation + 1, ..claim }] {
            assert_eq!(rig.reader().inline_of(&other), Ok(None), "the entry is of another place");
        }
    }
    publish(&mut producer);
    let claim = take(&mut consumer).unwrap();
    assert_eq!(rig.reader().inline_of(&claim), Ok(None), "it has user data");
}

#[test]
fn positions_say_where_a_sequence_is() {
    let rig = Rig::queue(4);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    for _ in 0..65 {
        publish(&mut producer);
        queue::finish(&rig.pool(), &take(&mut consumer).unwrap());
    }
    let reader = rig.reader();
    assert_eq!(reader.position(65), Ok(Position::At { slot: 0, generation: 17 }));
    assert_eq!(reader.position(66), Ok(Position::NotYet));
    assert_eq!(reader.position(1), Ok(Position::Overtaken(65)));
    assert_eq!(reader.position(2), Ok(Position::At { slot: 1, generation: 1 }));
    let entry = rig.plan.position_word + 3 * ENTRY_WORDS;
    rig.ring.word(entry + 1).store(NO_SLOT.into(), Relaxed);
    assert_eq!(reader.position(3), Ok(Position::Void));
    rig.ring.word(entry + 1).store(4, Relaxed);
    assert!(reader.position(3).is_err(), "there are four slots");
}

#[test]
fn the_readers_words_are_those_of_the_header() {
    let rig = Rig::queue(1);
    let reader = rig.reader();
    assert!(!reader.is_closed() && !reader.is_replaced() && !reader.fences());
    for (index, value) in [(W_STATE, state::CLOSED), (W_EPOCH, 5), (W_FENCES, 1), (W_HEAD, 9)] {
        rig.ring.word(index).store(value, Relaxed);
    }
    assert!(reader.is_closed() && !reader.is_replaced() && reader.fences());
    assert_eq!((reader.epoch(), reader.head(), reader.peek(W_FENCES)), (5, 9, 1));
    rig.ring.word(W_STATE).store(state::REPLACED, Relaxed);
    assert!(reader.is_replaced() && !reader.is_closed());
}

#[test]
fn counters_are_those_of_the_header() {
    let rig = Rig::queue(1);
    let producer = rig.producer();
    let counters = [
        (Counter::Dropped, W_DROPPED),
        (Counter::DeadLetters, W_DEAD),
        (Counter::Bytes, W_BYTES),
        (Counter::FullWaits, W_FULL_WAITS),
    ];
    for (n, (counter, index)) in (1..).zip(counters) {
        producer.count(counter, n);
        producer.count(counter, 10 * n);
        assert_eq!((producer.publisher().counted(counter), word(&rig.ring, index)), (11 * n, 11 * n));
    }
}

#[test]
fn the_producer_says_what_becomes_of_its_messages() {
    let rig = Rig::queue(4);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    assert_eq!((producer.outstanding(), producer.undelivered(), producer.loaned()), ((0, 0, 0), 0, 0));
    for _ in 0..4 {
        publish(&mut producer);
    }
    assert_eq!((producer.outstanding(), producer.undelivered()), ((4, 0, 0), 4));
    let [one, two, three] = [(); 3].map(|()| take(&mut consumer).unwrap());
    assert_eq!((producer.outstanding(), producer.undelivered()), ((1, 3, 0), 4));
    queue::ack(consumer.pool(), &one);
    assert_eq!(queue::give_back(consumer.pool(), &two, 1), SlotState::Dead);
    queue::finish(consumer.pool(), &three);
    assert_eq!((producer.outstanding(), producer.undelivered()), ((1, 1, 1), 1));
    assert_eq!(producer.acquire(0, false), Acquired::Slot(three.slot), "letters are passed over");
    assert_eq!((producer.loaned(), producer.acquire(0, true)), (1, Acquired::DeadLetter(two.slot)));
    producer.abandon(three.slot);
    assert_eq!(SlotWord::checked(rig.pool().peek_slot(three.slot)), Ok(SlotWord::free(2)));
    assert_eq!((producer.loaned(), producer.attempts(two.slot), producer.attempts(one.slot)), (0, 1, 0));
    producer.bury(two.slot);
    assert_eq!(SlotWord::checked(rig.pool().peek_slot(two.slot)), Ok(SlotWord::free(1)));
    assert_eq!(producer.publisher().shadow(two.slot), (Outstanding::Free, 1));
    assert_eq!((producer.publisher().counted(Counter::DeadLetters), producer.outstanding()), (1, (1, 1, 0)));
    assert_eq!(producer.drop_oldest(0), Some(3));
    assert_eq!((producer.publisher().counted(Counter::Dropped), producer.loaned()), (1, 1));
    assert_eq!(producer.drop_oldest(1), None, "there is no such class");
}

#[test]
fn a_quota_and_a_scan_are_as_the_caller_says() {
    let rig = Rig::queue(4);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    publish(&mut producer);
    assert_eq!(consumer.next(false, |_| false), Ok(Next::AtQuota(0)));
    assert_eq!(consumer.cursor(), 1, "it is still to be had");
    let claim = take(&mut consumer).unwrap();
    assert_eq!((claim.sequence, consumer.cursor(), consumer.me().index), (1, 2, 0));
    queue::give_back(consumer.pool(), &claim, 0);
    assert!(matches!(consumer.next(false, |_| true), Ok(Next::Claimed(_))), "the count of returns leads to it");
    // A consumer that comes late begins with what there may still be.
    for _ in 0..200 {
        publish(&mut producer);
        queue::finish(&rig.pool(), &take(&mut consumer).unwrap());
    }
    assert_eq!(rig.consumer(1).cursor(), 202 - 64);
}

/// What is given back while there is always something new is found all the same.
#[test]
fn a_return_is_looked_for_while_the_ring_is_never_empty() {
    let rig = Rig::queue(4);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    publish(&mut producer);
    let first = take(&mut consumer).unwrap();
    queue::give_back(consumer.pool(), &first, 0);
    let found = (0..40).position(|_| {
        publish(&mut producer);
        let claim = match consumer.next(false, |_| true) {
            Ok(Next::Claimed(claim)) => claim,
            other => panic!("{other:?}"),
        };
        queue::finish(consumer.pool(), &claim);
        claim.sequence == 1
    });
    assert!(found.is_some_and(|looks| looks < 17), "{found:?}");
}

#[test]
fn a_successor_refuses_what_no_producer_writes() {
    let take_over = |rig: &Rig| Publisher::take_over(rig.ring.clone(), rig.pool.clone(), rig.plan.clone(), 2);
    let rig = Rig::queue(2);
    assert_eq!(take_over(&rig).unwrap().1.last_sequence, 0, "a ring on which nothing was published");
    let mut producer = rig.producer();
    publish(&mut producer);
    rig.ring.word(rig.plan.descriptor_word).store(0, Relaxed);
    assert_eq!(take_over(&rig).unwrap_err().field, "descriptor.sequence");
    rig.ring.word(rig.plan.descriptor_word).store(1, Relaxed);
    // The record of the last user data: of another sequence, or too long.
    rig.ring.word(W_LAST + LAST_STRIDE).store(3, Relaxed);
    assert_eq!(take_over(&rig).unwrap().1.last_user, []);
    rig.ring.word(W_LAST + LAST_STRIDE).store(1, Relaxed);
    assert_eq!(take_over(&rig).unwrap().1.last_user, b"user");
    rig.ring.word(W_LAST + LAST_STRIDE + 1).store(257, Relaxed);
    assert_eq!(take_over(&rig).unwrap().1.last_user, []);
    rig.ring.word(W_HEAD).store(u64::MAX, Relaxed);
    assert_eq!(take_over(&rig).unwrap_err().field, "head");
}

/// Entries that are gone are written again with all that they had; those that lie nowhere become void.
#[test]
fn a_successor_completes_the_entries() {
    let rig = Rig::queue(4);
    let (mut producer, mut consumer) = (rig.producer(), rig.consumer(0));
    for _ in 0..3 {
        publish(&mut producer);
    }
    queue::finish(&rig.pool(), &take(&mut consumer).unwrap());
    let entry = |sequence: usize| rig.plan.position_word + sequence * ENTRY_WORDS;
    let before: Vec<_> = (entry(2)..entry(3)).map(|i| word(&rig.ring, i)).collect();
    for sequence in 1..=3 {
        (entry(sequence)..entry(sequence + 1)).for_each(|i| rig.ring.word(i).store(0, Relaxed));
    }
    let (publisher, recovered) = Publisher::take_over(rig.ring.clone(), rig.pool.clone(), rig.plan.clone(), 2).unwrap();
    assert_eq!((recovered.last_sequence, recovered.outstanding, publisher.next_sequence()), (3, 2, 4));
    assert_eq!((entry(2)..entry(3)).map(|i| word(&rig.ring, i)).collect::<Vec<_>>(), before);
    assert_eq!(rig.reader().position(1), Ok(Position::Void));
    assert_eq!(word(&rig.ring, W_HEAD), 4);
    assert_eq!(word(&rig.ring, entry(0)), 0, "nobody looks up sequence 0");
}

struct Members {
    rig: Rig,
    producer: BroadcastProducer<Heap>,
    parts: Vec<Heap>,
}

impl Members {
    fn new(slots: u32, members: u8) -> Self {
        let rig = Rig::of(Kind::Broadcast, slots);
        let publisher = Publisher::new(rig.ring.clone(), rig.ring.clone(), rig.plan.clone(), 1);
        let mut producer = BroadcastProducer::new(publisher, rig.ring.clone());
        let parts: Vec<_> = (0..members).map(|_| Heap::bytes(rig.plan.member_bytes)).collect();
        for (index, part) in (0..).zip(&parts) {
            producer.admit(index, 1, Member::in_object(part.clone(), &rig.plan));
        }
        Self { rig, producer, parts }
    }

    fn part(&self, index: usize) -> Member<Heap> {
        Member::in_object(self.parts[index].clone(), &self.rig.plan)
    }

    fn consumer(&self, index: u8, lossy: bool) -> BroadcastConsumer<Heap> {
        let me = MemberId { index, incarnation: 1 };
        BroadcastConsumer::new(self.rig.reader(), self.part(index.into()), me, lossy)
    }

    fn send(&mut self) -> Option<u64> {
        let slot = self.producer.acquire(0)?;
        Some(self.producer.publish(slot, &draft(&[], &[])))
    }
}

fn see(member: &mut BroadcastConsumer<Heap>) -> Claim {
    match member.next(false, |_| true) {
        Ok(Next::Claimed(claim)) => claim,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_producer_says_who_is_owed_what() {
    let mut ring = Members::new(2, 2);
    assert_eq!((ring.producer.receivers(), ring.producer.members().count()), (2, 2));
    assert_eq!((ring.send(), ring.send(), ring.send()), (Some(1), Some(2), None));
    assert_eq!((ring.producer.owed_by(0), ring.producer.owed_by(1)), (0b11, 0b11));
    assert_eq!((ring.producer.outstanding(), ring.producer.undelivered(), ring.producer.loaned()), (2, 2, 0));
    let (mut one, mut two) = (ring.consumer(0, false), ring.consumer(1, false));
    let claim = see(&mut one);
    assert_eq!((claim.sequence, one.cursor(), one.me().index), (1, 2, 0));
    one.part().store(at::CURSOR, one.cursor());
    assert_eq!(ring.producer.undelivered(), 2, "the other has not seen it");
    see(&mut two);
    two.part().store(at::CURSOR, two.cursor());
    assert_eq!((ring.producer.undelivered(), ring.producer.outstanding()), (1, 2));
    assert!(!settle(one.part(), one.reader(), claim.slot, claim.generation, true), "the producer is awake");
    assert_eq!(ring.producer.owed_by(0), 0b10);
    ring.producer.set_parked(true);
    assert_eq!(word(&ring.rig.ring, W_PARKED), 1);
    assert!(settle(two.part(), two.reader(), claim.slot, claim.generation, false));
    assert_eq!(two.part().producer_wake_word().load(Relaxed), 1);
    ring.producer.set_parked(false);
    assert_eq!((ring.producer.owed_by(0), ring.producer.outstanding()), (0, 1));
    two.leave();
    assert_eq!(two.part().peek(at::LEFT), 3, "one above its cursor");
    assert_eq!((ring.producer.receivers(), ring.producer.owed_by(1)), (1, 0b01));
    ring.producer.remove(0);
    ring.producer.remove(1);
    assert_eq!((ring.producer.receivers(), ring.producer.owed_by(1)), (0, 0));
    assert_eq!(word(&ring.rig.ring, ring.rig.plan.join_word), 0);
    assert_eq!((ring.send(), ring.producer.publisher().counted(Counter::Dropped)), (Some(3), 1), "nobody is there");
    let slot = ring.producer.acquire(0).unwrap();
    assert_eq!(ring.producer.loaned(), 1);
    ring.producer.abandon(slot);
    assert_eq!(ring.producer.loaned(), 0);
    assert_eq!(SlotWord::checked(ring.producer.peek_slot(slot)).map(SlotWord::state), Ok(SlotState::Free));
}

#[test]
fn bells_ring_for_who_sleeps() {
    let ring = Members::new(1, 3);
    assert_eq!(ring.producer.ring_bells(), 0);
    ring.part(0).set_parked(true);
    ring.part(2).set_parked(true);
    assert_eq!(ring.producer.ring_bells(), 0b101);
    assert_eq!([0, 1, 2].map(|i| ring.part(i).wake_word().load(Relaxed)), [1, 0, 1]);
    assert_eq!(ring.producer.ring_bells(), 0);
}

#[test]
fn the_join_table_says_from_where_on() {
    let mut ring = Members::new(2, 2);
    let join = ring.rig.plan.join_word;
    ring.send();
    let part = Heap::bytes(ring.rig.plan.member_bytes);
    ring.producer.admit(2, 9, Member::in_object(part.clone(), &ring.rig.plan));
    assert_eq!((0..6).map(|i| word(&ring.rig.ring, join + i)).collect::<Vec<_>>(), [1, 1, 1, 1, 2, 9]);
    let me = MemberId { index: 2, incarnation: 8 };
    let other = Member::in_object(part.clone(), &ring.rig.plan);
    let mut other = BroadcastConsumer::new(ring.rig.reader(), other, me, false);
    assert!(!other.joined(), "that is another life");
    assert_eq!(other.next(true, |_| true), Ok(Next::Empty));
    // A successor goes on with who was let in, and lets in again who was not.
    let taken = Publisher::take_over(ring.rig.ring.clone(), ring.rig.ring.clone(), ring.rig.plan.clone(), 2);
    let mut producer = BroadcastProducer::new(taken.unwrap().0, ring.rig.ring.clone());
    producer.readmit(0, 1, ring.part(0));
    producer.readmit(2, 8, Member::in_object(part, &ring.rig.plan));
    assert_eq!((word(&ring.rig.ring, join), word(&ring.rig.ring, join + 4), word(&ring.rig.ring, join + 5)), (1, 2, 8));
    assert_eq!((producer.owed_by(0), other.joined(), other.cursor()), (1, true, 2));
}

#[test]
fn a_member_at_its_quota_keeps_its_place() {
    let mut ring = Members::new(2, 1);
    let mut member = ring.consumer(0, false);
    ring.send();
    assert_eq!(member.next(false, |_| false), Ok(Next::AtQuota(0)));
    assert_eq!(see(&mut member).sequence, 1);
    assert_eq!((member.missed(), member.next(true, |_| true)), (0, Ok(Next::Empty)));
}

#[test]
fn a_read_only_view_reads() {
    let rig = Rig::queue(1);
    rig.ring.word(5).store(9, Relaxed);
    assert_eq!(ReadOnly::new(rig.ring.clone()).peek(5), 9);
}

/// The words of a member that died are mended; whose they are decides, not their number.
#[test]
fn held_words_are_found_by_the_index() {
    let rig = Rig::queue(3);
    let mut producer = rig.producer();
    let (mut a, mut b) = (rig.consumer(0), rig.consumer(1));
    for _ in 0..3 {
        publish(&mut producer);
    }
    let (one, two) = (take(&mut a).unwrap(), take(&mut b).unwrap());
    let held: Vec<_> = queue::held_by(&rig.pool(), 1).collect();
    assert_eq!(held, [(two.slot, two.word)]);
    assert_eq!(rig.pool().slots(), 3);
    let mended = queue::release_all_of(&rig.pool(), 1, 1).unwrap();
    assert_eq!((mended.returned, mended.dead, mended.released), (0, 1, 0));
    assert!(!mended.is_nothing());
    assert_eq!(SlotWord::checked(rig.pool().peek_slot(one.slot)), Ok(one.word));
    assert_eq!(rig.pool().returns(), 0, "nothing came back");
    assert!(!queue::is_drained(&rig.pool(), a.me()), "one is FULL");
    queue::finish(&rig.pool(), &take(&mut a).unwrap());
    assert!(queue::is_drained(&rig.pool(), a.me()) && !queue::is_drained(&rig.pool(), b.me()));
    rig.pool().slot(2).store(7, Relaxed);
    assert_eq!(queue::mend(&rig.pool(), 0, |_| true).unwrap_err().field, "slot_word.state");
    assert!(queue::is_drained(&rig.pool(), a.me()), "a word that is none is nobody's");
}

/// Only a peer that breaks the protocol changes a generation; the producer does not believe it.
#[test]
fn a_word_of_another_generation_frees_nothing() {
    let rig = Rig::queue(1);
    let mut producer = rig.producer();
    publish(&mut producer);
    for word in [SlotWord::done(2), SlotWord::done(0), SlotWord::full(2, 0)] {
        rig.pool().slot(0).store(word.raw(), Relaxed);
        assert_eq!(
            (producer.acquire(0, true), producer.drop_oldest(0), producer.attempts(0)),
            (Acquired::Full, None, 0)
        );
    }
    rig.pool().slot(0).store(SlotWord::done(1).raw(), Relaxed);
    assert_eq!(producer.acquire(0, true), Acquired::Slot(0));
}

/// Nobody forces a scan here: the count of returns alone leads to what was mended.
#[test]
fn what_was_mended_is_counted_as_a_return() {
    let rig = Rig::queue(2);
    let (mut producer, mut dead, mut alive) = (rig.producer(), rig.consumer(0), rig.consumer(1));
    publish(&mut producer);
    assert_eq!(take(&mut dead).map(|claim| claim.sequence), Some(1));
    assert_eq!(take(&mut alive), None, "it has dealt with all returns there were");
    assert_eq!(queue::mend(&rig.pool(), 0, |_| false).map(|mended| mended.returned), Ok(1));
    assert_eq!(rig.pool().returns(), 1);
    let Ok(Next::Claimed(claim)) = alive.next(false, |_| true) else { panic!("it came back") };
    assert_eq!((claim.sequence, claim.attempts), (1, 1));
}
