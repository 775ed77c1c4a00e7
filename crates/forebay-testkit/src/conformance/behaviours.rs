//! Behaviours of living processes.

use std::time::Duration;

use forebay::{AckMode, DType, FieldSpec, Kind, LoanError, Message, Producer, RecvError, Schema, SlotClass, WhenFull};

use super::{Behaviour, Setup, receive};
use crate::{
    WATCHDOG,
    ledger::{self, FIELD, check_message, publish},
};

const NO_REDELIVERY: &str = "a broadcast message is everybody's: there is nobody to give it back to";

pub(super) fn all() -> Vec<Behaviour> {
    let both = |name, run| Behaviour { name, queue_only: None, run };
    let queue = |name, run| Behaviour { name, queue_only: Some(NO_REDELIVERY), run };
    vec![
        both("hands_over_every_word_in_place", in_place),
        both("delivers_first_deliveries_in_the_order_of_publishing", in_order),
        both("wakes_a_consumer_that_sleeps", wakes_consumer),
        both("wakes_a_producer_that_waits_for_a_slot", wakes_producer),
        both("keeps_a_held_message_while_the_ring_goes_on", held),
        both("takes_slots_back_in_any_order", any_order),
        both("gives_each_message_to_whom_the_kind_says", whom),
        both("carries_every_dtype_rank_and_empty_tensors", shapes),
        both("carries_user_data_and_several_tensors", user_data),
        both("takes_the_smallest_slot_that_fits_then_the_next_one_up", classes),
        both("refuses_a_message_larger_than_the_largest_slot", too_large),
        both("refuses_another_schema_with_a_difference", other_schema),
        both("fails_at_once_when_full_and_says_who_holds_what", fails),
        both("drops_the_oldest_and_counts_it", drops),
        both("stops_at_the_quota_and_lists_what_is_held", quota),
        both("says_closed_once_everything_was_received", closed),
        both("serves_a_ring_of_one_consumer", single),
        queue("brings_back_what_was_nacked", nacked),
        queue("brings_back_what_was_not_acked", not_acked),
        queue("hands_dead_letters_to_the_producer", letters),
        queue("keeps_messages_while_nobody_is_attached", nobody),
    ]
}

fn in_place(setup: &Setup) {
    let (mut producer, mut consumer) = setup.pair();
    for words in [0, 1, 7, 8, 9, 511, 512] {
        publish(&mut producer, words).unwrap();
        let message = setup.next(&mut consumer);
        let tensor = message.tensor(FIELD).unwrap();
        assert_eq!(tensor.shape(), [words]);
        let at = tensor.as_ptr().as_ptr() as usize;
        assert!(consumer.data_range().contains(&at), "{at:#x} is outside the ring's memory");
    }
    producer.drain(Some(WATCHDOG)).unwrap();
}

fn in_order(setup: &Setup) {
    let (mut producer, mut consumer) = setup.pair();
    for round in 0..50 {
        for _ in 0..5 {
            publish(&mut producer, 16).unwrap();
        }
        for i in 1..=5 {
            let message = setup.next(&mut consumer);
            assert_eq!((message.sequence(), message.attempts()), (round * 5 + i, 0));
        }
    }
}

fn wakes_consumer(setup: &Setup) {
    let (mut producer, mut consumer) = setup.pair();
    let (wake, count) = (setup.wake, 200);
    let taker = std::thread::spawn(move || {
        for id in 1..=count {
            let message = receive(wake, &mut consumer).unwrap();
            check_message(&message);
            assert_eq!(message.sequence(), id);
        }
    });
    for _ in 0..count {
        publish(&mut producer, 8).unwrap();
        // Each one finds the consumer asleep, or on its way there.
        producer.drain(Some(WATCHDOG)).unwrap();
    }
    taker.join().unwrap();
}

fn wakes_producer(setup: &Setup) {
    let (mut producer, mut consumer) =
        setup.pair_of(setup.producer().slots(1).slot_bytes(4096), setup.consumer().quota(1));
    let wake = setup.wake;
    let taker = std::thread::spawn(move || {
        for id in 1..=200 {
            let message = receive(wake, &mut consumer).unwrap();
            std::thread::yield_now();
            check_message(&message);
            assert_eq!(message.sequence(), id);
        }
    });
    for _ in 0..200 {
        publish(&mut producer, 512).unwrap();
    }
    taker.join().unwrap();
}

fn held(setup: &Setup) {
    let (mut producer, mut consumer) = setup.pair();
    publish(&mut producer, 512).unwrap();
    let kept = setup.next(&mut consumer);
    for _ in 0..100 {
        publish(&mut producer, 512).unwrap();
        drop(setup.next(&mut consumer));
        check_message(&kept);
    }
    // Acked, so that nothing waits for another consumer and the ring is gone with its producer.
    assert!(kept.ack());
    drop(consumer);
    producer.close();
    drop(producer);
    check_message(&kept);
}

fn any_order(setup: &Setup) {
    let (mut producer, mut consumer) = setup.pair();
    for round in 0..20 {
        let mut kept: Vec<Message> = Vec::new();
        for _ in 0..7 {
            publish(&mut producer, 64).unwrap();
            kept.push(setup.next(&mut consumer));
        }
        while !kept.is_empty() {
            check_message(&kept.swap_remove((round * 5 + 3) % kept.len()));
        }
    }
    producer.drain(Some(WATCHDOG)).unwrap();
    assert_eq!(producer.stats().outstanding, 0);
}

fn whom(setup: &Setup) {
    let mut producer = setup.producer().create().unwrap();
    let mut consumers = [setup.consumer().attach().unwrap(), setup.consumer().attach().unwrap()];
    producer.wait_for_consumers(2, Some(WATCHDOG)).unwrap();
    publish(&mut producer, 8).unwrap();
    publish(&mut producer, 8).unwrap();
    let mut got: Vec<Vec<u64>> = Vec::new();
    for consumer in &mut consumers {
        let each = if setup.kind == Kind::Queue { 1 } else { 2 };
        got.push((0..each).map(|_| setup.next(consumer).sequence()).collect());
    }
    let expected: [&[u64]; 2] = if setup.kind == Kind::Queue { [&[1], &[2]] } else { [&[1, 2], &[1, 2]] };
    assert_eq!(got, expected);
    producer.drain(Some(WATCHDOG)).unwrap();
}

fn shapes(setup: &Setup) {
    let options = Producer::options("conformance").dir(setup.place.path()).kind(setup.kind).backing(setup.backing);
    let (mut producer, mut consumer) = setup.pair_of(options.slots(4).slot_bytes(1 << 16), setup.consumer());
    let shapes: [&[u64]; 5] = [&[], &[3], &[0, 4], &[2, 1, 2], &[1, 2, 1, 2, 1, 2, 1, 2]];
    for dtype in DType::ALL {
        for shape in shapes {
            let mut loan = producer.loan(&[FieldSpec::new("x", dtype, shape)]).unwrap();
            let bytes = loan.bytes_mut(0).unwrap();
            for (i, byte) in bytes.iter_mut().enumerate() {
                *byte = i as u8;
            }
            loan.publish().unwrap();
            let tensor = setup.try_next(&mut consumer).unwrap().tensor("x").unwrap();
            assert_eq!((tensor.dtype(), tensor.shape()), (dtype, shape));
            let count: u64 = shape.iter().product();
            assert_eq!(tensor.nbytes(), count * dtype.size() as u64);
            assert!(tensor.as_bytes().iter().enumerate().all(|(i, &byte)| byte == i as u8));
        }
    }
}

fn user_data(setup: &Setup) {
    let schema =
        Schema::builder("pair", 1, 0).field("a", DType::U64, &[8]).field("b", DType::F32, &[2, 2]).build().unwrap();
    let (mut producer, mut consumer) = setup.pair_of(setup.producer().schema(schema.clone()), setup.consumer());
    for len in [0, 1, 256] {
        let user = vec![len as u8; len];
        let dims = [len as u64 % 8];
        let specs = [FieldSpec::new("b", DType::F32, &[2, 1]), FieldSpec::new("a", DType::U64, &dims)];
        let mut loan = producer.loan(&specs).unwrap();
        loan.tensor_mut::<f32>("b").unwrap().copy_from_slice(&[1.5, len as f32]);
        ledger::fill(loan.tensor_mut("a").unwrap(), len as u64);
        loan.set_user(&user).unwrap();
        assert!(loan.set_user(&[0; 257]).is_err());
        loan.set_correlation_id(u64::MAX - len as u64);
        loan.publish().unwrap();
        let message = setup.try_next(&mut consumer).unwrap();
        assert_eq!((message.user(), message.correlation_id()), (&user[..], u64::MAX - len as u64));
        assert_eq!(message.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(message.tensor("b").unwrap().as_slice::<f32>().unwrap(), [1.5, len as f32]);
        ledger::check(message.tensor("a").unwrap().as_slice().unwrap(), len as u64).unwrap();
    }
}

fn classes(setup: &Setup) {
    let classes = [(2, 512), (2, 2048), (1, 4096)].map(|(slots, slot_bytes)| SlotClass { slots, slot_bytes });
    // The default number of slots is for rings of one size.
    let options = Producer::options("conformance")
        .dir(setup.place.path())
        .kind(setup.kind)
        .backing(setup.backing)
        .schema(ledger::schema())
        .classes(&classes)
        .when_full(WhenFull::Fail);
    let (mut producer, mut consumer) = setup.pair_of(options, setup.consumer().quota(2));
    let mut slots = Vec::new();
    // 64 words fill a slot of 512 bytes; the fourth and fifth of these go one and two sizes up.
    for words in [256, 64, 64, 64, 64] {
        publish(&mut producer, words).unwrap();
        slots.push(setup.next(&mut consumer));
    }
    let taken: Vec<u32> = slots.iter().map(Message::slot).collect();
    assert_eq!(taken, [2, 0, 1, 3, 4]);
    assert!(matches!(publish(&mut producer, 1), Err(LoanError::Full { .. })));
    for message in &slots {
        check_message(message);
    }
    slots.clear();
    publish(&mut producer, 512).unwrap();
    assert_eq!(setup.next(&mut consumer).slot(), 4);
}

fn too_large(setup: &Setup) {
    let (mut producer, _consumer) = setup.pair();
    let error = producer.loan(&[FieldSpec::new(FIELD, DType::U64, &[513])]).unwrap_err();
    assert!(matches!(error, LoanError::Fields { .. }), "{error}");
    let options = Producer::options("plain").dir(setup.place.path()).kind(setup.kind).backing(setup.backing);
    let mut plain = options.slots(2).slot_bytes(1000).create().unwrap();
    let error = plain.loan(&[FieldSpec::new("x", DType::U8, &[1001])]).unwrap_err();
    assert!(matches!(error, LoanError::TooLarge { needed: 1024, largest: 1000, .. }), "{error}");
    assert!(plain.loan(&[FieldSpec::new("x", DType::U8, &[u64::MAX, 2])]).is_err());
}

fn other_schema(setup: &Setup) {
    let producer = setup.producer().create().unwrap();
    for (dtype, dims) in [(DType::F32, &[512][..]), (DType::U64, &[512, 1])] {
        let other = Schema::builder("ledger", 1, 0).field(FIELD, dtype, dims).build().unwrap();
        let error = setup.consumer().schema(other).attach().unwrap_err().to_string();
        assert!(error.contains("words") && error.contains('+') && error.contains('-'), "{error}");
    }
    assert!(setup.consumer().schema(ledger::schema()).attach().is_ok());
    drop(producer);
}

fn fails(setup: &Setup) {
    let options = setup.producer().slots(2).slot_bytes(4096).when_full(WhenFull::Fail);
    let (mut producer, mut consumer) = setup.pair_of(options, setup.consumer().quota(2).label("hoarder"));
    publish(&mut producer, 8).unwrap();
    publish(&mut producer, 8).unwrap();
    let kept = [setup.next(&mut consumer), setup.next(&mut consumer)];
    let error = publish(&mut producer, 8).unwrap_err();
    let LoanError::Full { waited, slots, holders, .. } = &error else { panic!("{error}") };
    assert_eq!((*waited, *slots, holders.len()), (Duration::ZERO, 2, 1));
    assert_eq!((holders[0].label.as_str(), holders[0].slots), ("hoarder", 2));
    drop(kept);
    publish(&mut producer, 8).unwrap();
    assert_eq!(setup.next(&mut consumer).sequence(), 3);
}

fn drops(setup: &Setup) {
    let options = setup.producer().slots(4).slot_bytes(4096).when_full(WhenFull::DropOldest);
    let (mut producer, mut consumer) = setup.pair_of(options, setup.consumer());
    publish(&mut producer, 64).unwrap();
    let kept = setup.next(&mut consumer);
    for _ in 0..20 {
        publish(&mut producer, 64).unwrap();
    }
    let mut got = Vec::new();
    while let Some(message) = consumer.try_recv().unwrap() {
        check_message(&message);
        got.push(message.sequence());
    }
    // Three slots beside the held one: the last three messages.
    assert_eq!(got, [19, 20, 21]);
    assert_eq!(producer.stats().dropped, 17);
    if setup.kind == Kind::Broadcast {
        assert_eq!(consumer.stats().missed, 17);
    }
    check_message(&kept);
    drop(kept);
    producer.drain(Some(WATCHDOG)).unwrap();
}

fn quota(setup: &Setup) {
    let (mut producer, mut consumer) = setup.pair_of(setup.producer(), setup.consumer().quota(2));
    for _ in 0..3 {
        publish(&mut producer, 8).unwrap();
    }
    let mut kept = vec![setup.next(&mut consumer), setup.next(&mut consumer)];
    let error = consumer.recv_timeout(Duration::from_millis(1)).unwrap_err();
    let RecvError::Quota { quota: 2, held, .. } = &error else { panic!("{error}") };
    assert_eq!(held.iter().map(|lease| lease.sequence).collect::<Vec<_>>(), [1, 2]);
    assert!(matches!(consumer.try_recv(), Err(RecvError::Quota { .. })));
    kept.remove(0);
    assert_eq!(setup.next(&mut consumer).sequence(), 3);
}

fn closed(setup: &Setup) {
    let (mut producer, mut consumer) = setup.pair();
    for _ in 0..5 {
        publish(&mut producer, 8).unwrap();
    }
    producer.close();
    assert!(matches!(publish(&mut producer, 8), Err(LoanError::Closed { .. })));
    for id in 1..=5 {
        assert_eq!(setup.next(&mut consumer).sequence(), id);
    }
    for _ in 0..2 {
        let end = setup.try_next(&mut consumer);
        assert!(matches!(end, Err(RecvError::Closed { .. })), "{end:?}");
    }
    consumer.close();
    assert!(matches!(consumer.try_recv(), Err(RecvError::Detached { .. })));
}

fn single(setup: &Setup) {
    let (mut producer, mut consumer) = setup.pair_of(setup.producer().max_consumers(1), setup.consumer());
    let refused = setup.consumer().attach().unwrap_err().to_string();
    assert!(refused.contains("all 1 places are taken"), "{refused}");
    for id in 1..=100 {
        publish(&mut producer, 8).unwrap();
        assert_eq!(setup.next(&mut consumer).sequence(), id);
    }
    drop(consumer);
    // The place is free once the producer has seen it go.
    let mut second = crate::watchdog::within("a place for a second consumer", {
        let options = setup.consumer();
        move || {
            loop {
                if let Ok(consumer) = options.clone().attach() {
                    return consumer;
                }
            }
        }
    });
    producer.wait_for_consumers(1, Some(WATCHDOG)).unwrap();
    publish(&mut producer, 8).unwrap();
    assert_eq!(setup.next(&mut second).sequence(), 101);
}

fn nacked(setup: &Setup) {
    let (mut producer, mut consumer) = setup.pair();
    publish(&mut producer, 8).unwrap();
    let message = setup.next(&mut consumer);
    assert!(message.nack() && !message.ack());
    // Only at the end of the lease does it go back.
    setup.nothing(&mut consumer);
    drop(message);
    let again = setup.next(&mut consumer);
    assert_eq!((again.sequence(), again.attempts()), (1, 1));
    assert!(again.ack() && !again.nack());
    drop(again);
    setup.nothing(&mut consumer);
    let stats = consumer.stats();
    assert_eq!((stats.received, stats.acked, stats.nacked), (2, 1, 1));
}

fn not_acked(setup: &Setup) {
    let (mut producer, mut first) = setup.pair_of(setup.producer(), setup.consumer().ack(AckMode::Manual));
    publish(&mut producer, 8).unwrap();
    drop(setup.next(&mut first));
    let again = setup.next(&mut first);
    assert_eq!((again.sequence(), again.attempts()), (1, 1));
    let mut second = setup.consumer().attach().unwrap();
    first.close();
    // Held beyond the close, and only then given back.
    setup.nothing(&mut second);
    drop(again);
    let again = setup.next(&mut second);
    assert_eq!((again.sequence(), again.attempts()), (1, 2));
}

fn letters(setup: &Setup) {
    let (mut producer, mut consumer) = setup.pair_of(setup.producer().max_attempts(2), setup.consumer());
    for _ in 0..3 {
        publish(&mut producer, 8).unwrap();
    }
    for _ in 0..4 {
        let message = setup.next(&mut consumer);
        if message.sequence() == 2 {
            message.nack();
        }
    }
    setup.nothing(&mut consumer);
    producer.drain(Some(WATCHDOG)).unwrap();
    let letters = producer.take_dead_letters();
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].sequence, letters[0].attempts, letters[0].correlation_id), (2, 2, 2));
    let tensor = &letters[0].tensors[0];
    let words: Vec<u64> =
        tensor.bytes.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())).collect();
    assert_eq!((tensor.name.as_str(), words.len()), (FIELD, 8));
    ledger::check(&words, 2).unwrap();
    assert_eq!((producer.stats().dead_letters, producer.stats().outstanding), (1, 0));
}

fn nobody(setup: &Setup) {
    let mut producer = setup.producer().create().unwrap();
    for _ in 0..5 {
        publish(&mut producer, 8).unwrap();
    }
    let mut consumer = setup.consumer().attach().unwrap();
    for id in 1..=5 {
        assert_eq!(setup.next(&mut consumer).sequence(), id);
    }
}
