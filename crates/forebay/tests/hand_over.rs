//! Both ends in one process: every kind and backing hands over what was written, in place.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use std::time::Duration;

use forebay::{Backing, Consumer, CreateError, DType, FieldSpec, Kind, Producer, RecvError, Schema, WhenFull};

const SOON: Duration = Duration::from_secs(20);

fn schema() -> Schema {
    Schema::builder("pair", 1, 0).field("ids", DType::I64, &[8]).field("score", DType::F32, &[]).build().unwrap()
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn publish(producer: &mut Producer, value: i64) -> u64 {
    let specs = [FieldSpec::new("ids", DType::I64, &[3]), FieldSpec::new("score", DType::F32, &[])];
    let mut loan = producer.loan(&specs).unwrap();
    loan.tensor_mut::<i64>("ids").unwrap().copy_from_slice(&[value, value + 1, value + 2]);
    loan.tensor_mut::<f32>("score").unwrap()[0] = value as f32;
    loan.set_correlation_id(value as u64);
    loan.set_user(b"blob").unwrap();
    loan.publish().unwrap()
}

fn check(message: &forebay::Message, value: i64) {
    let ids = message.tensor("ids").unwrap();
    assert_eq!(ids.as_slice::<i64>().unwrap(), [value, value + 1, value + 2]);
    assert_eq!(message.tensor("score").unwrap().as_slice::<f32>().unwrap(), [value as f32]);
    assert_eq!((message.correlation_id(), message.user()), (value as u64, &b"blob"[..]));
}

#[test]
fn a_message_lends_its_tensors_without_a_handle() {
    let dir = dir();
    let mut producer = Producer::options("pair").dir(dir.path()).schema(schema()).create().unwrap();
    let mut consumer = Consumer::options("pair").dir(dir.path()).attach().unwrap();
    producer.wait_for_consumers(1, Some(SOON)).unwrap();
    publish(&mut producer, 40);
    let message = consumer.recv_timeout(SOON).unwrap();
    assert_eq!(message.as_slice::<i64>("ids").unwrap(), [40, 41, 42]);
    assert_eq!(message.bytes(1), Some(&40f32.to_le_bytes()[..]));
    assert_eq!(message.bytes(2), None);
    assert!(message.as_slice::<i32>("ids").unwrap_err().to_string().contains("int64"));
    assert!(message.as_slice::<i64>("idx").unwrap_err().to_string().contains("ids, score"));
}

#[test]
fn many_are_taken_at_once_and_in_order() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        let dir = dir();
        let mut producer = Producer::options("pair").dir(dir.path()).kind(kind).slots(64).create().unwrap();
        let mut consumer = Consumer::options("pair").dir(dir.path()).quota(64).attach().unwrap();
        producer.wait_for_consumers(1, Some(SOON)).unwrap();
        let mut messages = Vec::new();
        assert_eq!(consumer.try_recv_many(9, &mut messages).unwrap(), 0);
        for value in 0..40 {
            publish(&mut producer, value);
        }
        assert_eq!(consumer.recv_many(0, &mut messages).unwrap(), 0);
        assert_eq!(consumer.recv_many(30, &mut messages).unwrap(), 30);
        assert_eq!(consumer.try_recv_many(30, &mut messages).unwrap(), 10);
        for (message, value) in messages.iter().zip(0..) {
            check(message, value);
        }
        messages.clear();
        publish(&mut producer, 40);
        producer.close();
        assert_eq!(consumer.recv_many(30, &mut messages).unwrap(), 1, "what ends it is said by the next call");
        messages.clear();
        assert!(matches!(consumer.recv_many(30, &mut messages), Err(RecvError::Closed { .. })));
    }
}

#[test]
fn every_kind_and_backing_hands_over_what_was_written_in_place() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        for backing in [Backing::Posix, Backing::Memfd] {
            for with_schema in [true, false] {
                let dir = dir();
                let mut options = Producer::options("pair").dir(dir.path()).kind(kind).backing(backing).slots(4);
                if with_schema {
                    options = options.schema(schema());
                }
                let mut producer = options.slot_bytes(4096).create().unwrap();
                let mut consumer = Consumer::options("pair").dir(dir.path()).attach().unwrap();
                producer.wait_for_consumers(1, Some(SOON)).unwrap();
                for value in 0..100 {
                    publish(&mut producer, value);
                    let message = consumer.recv_timeout(SOON).unwrap();
                    check(&message, value);
                    let ids = message.tensor("ids").unwrap();
                    let at = ids.as_ptr().as_ptr() as usize;
                    assert!(consumer.data_range().contains(&at));
                }
                producer.drain(Some(SOON)).unwrap();
                producer.close();
                assert!(matches!(consumer.recv_timeout(SOON), Err(RecvError::Closed { .. })));
            }
        }
    }
}

#[test]
fn a_kept_tensor_is_not_overwritten_and_outlives_everybody() {
    let dir = dir();
    let mut producer = Producer::options("kept").dir(dir.path()).schema(schema()).slots(4).create().unwrap();
    let mut consumer = Consumer::options("kept").dir(dir.path()).attach().unwrap();
    publish(&mut producer, 7);
    let kept = consumer.recv_timeout(SOON).unwrap().tensor("ids").unwrap();
    for value in 100..1100 {
        publish(&mut producer, value);
        check(&consumer.recv_timeout(SOON).unwrap(), value);
    }
    drop(consumer);
    producer.discard();
    assert_eq!(kept.as_slice::<i64>().unwrap(), [7, 8, 9]);
}

#[test]
fn a_sleeping_consumer_is_woken_from_another_thread() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        let dir = dir();
        let mut producer = Producer::options("wake").dir(dir.path()).kind(kind).schema(schema()).create().unwrap();
        let mut consumer = Consumer::options("wake").dir(dir.path()).attach().unwrap();
        producer.wait_for_consumers(1, Some(SOON)).unwrap();
        let taker = std::thread::spawn(move || {
            for value in 0..2000 {
                check(&consumer.recv_timeout(SOON).unwrap(), value);
            }
        });
        for value in 0..2000 {
            publish(&mut producer, value);
        }
        taker.join().unwrap();
        producer.drain(Some(SOON)).unwrap();
        assert_eq!(producer.stats().outstanding, 0);
    }
}

#[test]
fn a_nacked_message_comes_back_and_then_is_a_dead_letter() {
    let dir = dir();
    let mut producer =
        Producer::options("nack").dir(dir.path()).schema(schema()).max_attempts(2).slots(2).create().unwrap();
    let mut consumer = Consumer::options("nack").dir(dir.path()).attach().unwrap();
    publish(&mut producer, 5);
    for attempts in 0..2 {
        let message = consumer.recv_timeout(SOON).unwrap();
        assert_eq!(message.attempts(), attempts);
        assert!(message.nack());
        assert!(!message.ack());
    }
    assert!(consumer.try_recv().unwrap().is_none());
    let letters = producer.take_dead_letters();
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].sequence, letters[0].attempts, letters[0].correlation_id), (1, 2, 5));
    assert_eq!(letters[0].tensors[0].name, "ids");
    assert_eq!(letters[0].tensors[0].bytes[..8], 5i64.to_le_bytes());
}

#[test]
fn a_dead_letter_that_was_handed_out_is_not_the_successors_of_a_producer_that_suspended() {
    let dir = dir();
    let options = || Producer::options("a").dir(dir.path()).schema(schema()).slots(4).max_attempts(1);
    let mut producer = options().create().unwrap();
    let mut consumer = Consumer::options("a").dir(dir.path()).attach().unwrap();
    let handed = publish(&mut producer, 1);
    consumer.recv_timeout(SOON).unwrap().nack();
    assert_eq!(producer.take_dead_letters().iter().map(|letter| letter.sequence).collect::<Vec<_>>(), [handed]);
    let kept = publish(&mut producer, 2);
    consumer.recv_timeout(SOON).unwrap().nack();
    producer.suspend();
    let mut successor = options().create().unwrap();
    assert_eq!(successor.take_dead_letters().iter().map(|letter| letter.sequence).collect::<Vec<_>>(), [kept]);
}

/// Went wrong: the successor took over at once, published in the very slot, and the loan wrote over what was read there.
#[test]
fn a_ring_whose_detached_loans_can_still_be_written_has_no_successor() {
    for by_close in [false, true] {
        let dir = dir();
        let options = || Producer::options("late").dir(dir.path()).schema(schema()).slots(4);
        let mut producer = options().create().unwrap();
        publish(&mut producer, 1);
        let specs = [FieldSpec::new("ids", DType::I64, &[3]), FieldSpec::new("score", DType::F32, &[])];
        let [early, mut first, last] = std::array::from_fn(|_| producer.loan(&specs).unwrap().detach());
        drop(early);
        if by_close {
            drop(producer)
        } else {
            producer.suspend()
        }
        let refused = options().create().unwrap_err();
        assert!(matches!(refused, CreateError::Taken { .. }), "{refused}");
        assert!(refused.to_string().contains("closed, a detached loan lives"), "{refused}");
        first.bytes_mut(0).unwrap().fill(9);
        drop(first);
        assert!(matches!(options().create(), Err(CreateError::Taken { .. })), "another loan is there yet");
        std::thread::spawn(move || drop(last)).join().unwrap();
        let mut successor = options().create().unwrap();
        assert_eq!(successor.takeover().map(|found| found.outstanding), Some(1));
        publish(&mut successor, 2);
        let mut consumer = Consumer::options("late").dir(dir.path()).attach().unwrap();
        check(&consumer.recv_timeout(SOON).unwrap(), 1);
        check(&consumer.recv_timeout(SOON).unwrap(), 2);
    }
}

#[test]
fn a_closed_producer_changes_nothing_of_its_successors() {
    let dir = dir();
    let options = || Producer::options("over").dir(dir.path()).schema(schema()).slots(4).max_attempts(1);
    let mut producer = options().create().unwrap();
    let mut consumer = Consumer::options("over").dir(dir.path()).attach().unwrap();
    publish(&mut producer, 1);
    publish(&mut producer, 2);
    consumer.recv_timeout(SOON).unwrap().nack();
    drop(consumer);
    producer.close();
    let mut successor = options().create().unwrap();
    assert_eq!(successor.takeover().map(|found| found.outstanding), Some(2));
    assert!(producer.take_dead_letters().is_empty());
    let waited = std::time::Instant::now();
    let error = producer.drain(None).unwrap_err().to_string();
    assert!(error.contains("1 messages"), "{error}");
    producer.wait_for_consumers(1, None).unwrap_err();
    assert!(waited.elapsed() < SOON);
    assert!(producer.take_dead_letters().is_empty());
    assert_eq!(successor.take_dead_letters().iter().map(|letter| letter.sequence).collect::<Vec<_>>(), [1]);
    let mut consumer = Consumer::options("over").dir(dir.path()).attach().unwrap();
    check(&consumer.recv_timeout(SOON).unwrap(), 2);
}

#[test]
fn who_holds_too_much_is_told_what_it_holds() {
    let dir = dir();
    let mut producer = Producer::options("quota").dir(dir.path()).schema(schema()).slots(3).create().unwrap();
    let mut consumer = Consumer::options("quota").dir(dir.path()).attach().unwrap();
    for value in 0..3 {
        publish(&mut producer, value);
    }
    let held = [consumer.recv().unwrap(), consumer.recv().unwrap()];
    match consumer.recv_timeout(Duration::from_millis(1)) {
        Err(RecvError::Quota { held, quota: 2, .. }) => {
            assert_eq!(held.iter().map(|lease| lease.sequence).collect::<Vec<_>>(), [1, 2]);
        }
        other => panic!("{other:?}"),
    }
    drop(held);
    check(&consumer.recv().unwrap(), 2);
}

#[test]
fn a_full_ring_says_who_holds_it() {
    let dir = dir();
    let options = |name| Producer::options(name).dir(dir.path()).schema(schema()).slots(2);
    let mut producer = options("full").when_full(WhenFull::Fail).create().unwrap();
    let mut consumer = Consumer::options("full").dir(dir.path()).label("hoarder").quota(2).attach().unwrap();
    publish(&mut producer, 0);
    publish(&mut producer, 1);
    let _held = [consumer.recv().unwrap(), consumer.recv().unwrap()];
    let text = producer.loan(&[FieldSpec::new("ids", DType::I64, &[1]), FieldSpec::new("score", DType::F32, &[])]);
    let text = text.unwrap_err().to_string();
    assert!(text.contains("hoarder") && text.contains("holds 2"), "{text}");

    let mut producer = options("drop").when_full(WhenFull::DropOldest).create().unwrap();
    let mut consumer = Consumer::options("drop").dir(dir.path()).attach().unwrap();
    for value in 0..10 {
        publish(&mut producer, value);
    }
    check(&consumer.recv().unwrap(), 8);
    check(&consumer.recv().unwrap(), 9);
    assert_eq!(producer.stats().dropped, 8);
}

#[test]
fn closing_gives_back_what_is_not_acked() {
    let dir = dir();
    let mut producer = Producer::options("close").dir(dir.path()).schema(schema()).create().unwrap();
    let mut first = Consumer::options("close").dir(dir.path()).attach().unwrap();
    let mut second = Consumer::options("close").dir(dir.path()).attach().unwrap();
    publish(&mut producer, 0);
    publish(&mut producer, 1);
    let (acked, unacked) = (first.recv().unwrap(), first.recv().unwrap());
    assert!(acked.ack());
    first.close();
    drop((acked, unacked));
    let again = second.recv_timeout(SOON).unwrap();
    assert_eq!((again.sequence(), again.attempts()), (2, 1));
    assert!(second.try_recv().unwrap().is_none());
}

#[test]
fn a_detached_loan_that_is_dropped_gives_its_slot_back() {
    let dir = dir();
    let mut producer = Producer::options("loans").dir(dir.path()).slots(2).create().unwrap();
    let spec = [FieldSpec::new("x", DType::U8, &[4])];
    let (a, b) = (producer.loan(&spec).unwrap().detach(), producer.loan(&spec).unwrap().detach());
    assert!(matches!(producer.loan(&spec), Err(forebay::LoanError::OwnLoans { loaned: 2, .. })));
    drop(a);
    let mut c = producer.loan(&spec).unwrap().detach();
    c.bytes_mut(0).unwrap().copy_from_slice(b"late");
    assert_eq!(producer.publish(c).unwrap(), 1);
    drop(b);
    let mut consumer = Consumer::options("loans").dir(dir.path()).attach().unwrap();
    assert_eq!(consumer.recv().unwrap().tensor("x").unwrap().as_bytes(), b"late");
}

#[test]
fn draining_does_not_wait_for_tensors_that_are_still_read() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        let dir = dir();
        let name = format!("drain-{kind}");
        let mut producer = Producer::options(&name).dir(dir.path()).kind(kind).schema(schema()).create().unwrap();
        let mut consumer = Consumer::options(&name).dir(dir.path()).attach().unwrap();
        producer.wait_for_consumers(1, Some(SOON)).unwrap();
        publish(&mut producer, 3);
        assert!(producer.drain(Some(Duration::ZERO)).is_err());
        let held = consumer.recv_timeout(SOON).unwrap();
        held.ack();
        producer.drain(Some(SOON)).unwrap();
        producer.close();
        check(&held, 3);
    }
}

#[test]
fn iterating_acks_a_message_when_the_next_one_is_asked_for() {
    let dir = dir();
    let mut producer = Producer::options("iterate").dir(dir.path()).schema(schema()).create().unwrap();
    let mut consumer = Consumer::options("iterate").dir(dir.path()).attach().unwrap();
    for value in 0..3 {
        publish(&mut producer, value);
    }
    let mut kept = Vec::new();
    for message in (&mut consumer).into_iter().take(2) {
        kept.push(message.unwrap().tensor("ids").unwrap());
    }
    assert_eq!(consumer.stats().acked, 1, "the second was not followed by a third");
    drop(consumer);
    drop(kept);
    let mut other = Consumer::options("iterate").dir(dir.path()).attach().unwrap();
    let back: Vec<u64> = (0..2).map(|_| other.recv_timeout(SOON).unwrap().sequence()).collect();
    assert_eq!(back, [2, 3]);
    drop(other);
    producer.discard();
}

#[test]
fn a_closed_ring_whose_last_message_another_holds_costs_no_busy_waiting() {
    // It was a loop without a sleep: closed, so it did not park, and not drained, so it did not end.
    let dir = dir();
    let mut producer = Producer::options("last").dir(dir.path()).schema(schema()).create().unwrap();
    let mut holder = Consumer::options("last").dir(dir.path()).attach().unwrap();
    let mut waiter = Consumer::options("last").dir(dir.path()).attach().unwrap();
    publish(&mut producer, 0);
    let held = holder.recv_timeout(SOON).unwrap();
    producer.close();
    let mut rounds = 0;
    let left = waiter.recv_interruptible(Some(SOON), &mut || {
        rounds += 1;
        rounds == 5
    });
    assert!(matches!(left, Ok(None)), "{left:?}");
    let start = std::time::Instant::now();
    rounds = 0;
    let _ = waiter.recv_interruptible(Some(Duration::from_millis(200)), &mut || {
        rounds += 1;
        false
    });
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert!(rounds < 50, "{rounds} rounds in 200 ms");
    drop(held);
    assert!(matches!(waiter.recv_timeout(SOON), Err(RecvError::Closed { .. })));
}

#[test]
fn what_was_owed_to_a_consumer_that_is_gone_is_not_outstanding() {
    let dir = dir();
    let options = Producer::options("owed").dir(dir.path()).kind(Kind::Broadcast).schema(schema()).slots(4);
    let mut producer = options.create().unwrap();
    let consumer = Consumer::options("owed").dir(dir.path()).attach().unwrap();
    producer.wait_for_consumers(1, Some(SOON)).unwrap();
    publish(&mut producer, 1);
    publish(&mut producer, 2);
    assert_eq!(producer.stats().outstanding, 2);
    drop(consumer);
    // Nothing of this producer's is called meanwhile: its own thread finds out.
    let start = std::time::Instant::now();
    while producer.consumers() > 0 || producer.stats().outstanding > 0 {
        assert!(start.elapsed() < SOON, "{:?}", producer.stats());
        std::thread::yield_now();
    }
}
