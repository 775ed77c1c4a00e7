//! Full rings, quotas, drops: who waits, how long at least, and that everything dropped is counted.

use std::{
    thread,
    time::{Duration, Instant},
};

use forebay::{Kind, LoanError, RecvError, WhenFull};
use forebay_testkit::{
    Place, WATCHDOG,
    ledger::{FIELD, check_message, publish},
};

use crate::stage::{attach, here, next};

#[test]
fn a_receive_at_its_quota_waits_for_a_release_on_another_thread() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        let place = Place::new();
        let mut producer = here(&place, "release").kind(kind).create().unwrap();
        let mut consumer = attach(&place, "release").quota(1).attach().unwrap();
        producer.wait_for_consumers(1, Some(WATCHDOG)).unwrap();
        let (give, take) = std::sync::mpsc::channel::<forebay::Message>();
        let releaser = thread::spawn(move || {
            for message in take {
                thread::yield_now();
                check_message(&message);
            }
        });
        let feeder = thread::spawn(move || {
            for _ in 0..300 {
                publish(&mut producer, 8).unwrap();
            }
            producer.drain(Some(WATCHDOG)).unwrap();
        });
        for id in 1..=300 {
            let message = next(&mut consumer);
            assert_eq!(message.sequence(), id);
            give.send(message).unwrap();
        }
        drop(give);
        releaser.join().unwrap();
        feeder.join().unwrap();
    }
}

#[test]
fn a_receive_without_a_deadline_gives_up_at_its_quota_after_a_second_and_lists_what_is_held() {
    let place = Place::new();
    let mut producer = here(&place, "patience").create().unwrap();
    let mut consumer = attach(&place, "patience").quota(1).attach().unwrap();
    publish(&mut producer, 8).unwrap();
    publish(&mut producer, 8).unwrap();
    let kept = next(&mut consumer);
    let start = Instant::now();
    let error = consumer.recv().unwrap_err();
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    let RecvError::Quota { quota: 1, held, .. } = &error else { panic!("{error}") };
    assert!(held.len() == 1 && held[0].sequence == 1 && held[0].age >= Duration::from_secs(1), "{held:?}");
    assert!(error.to_string().contains("copy"), "{error}");
    drop(kept);
    assert_eq!(next(&mut consumer).sequence(), 2);
}

#[test]
fn a_loan_waits_for_its_timeout_when_full_but_not_for_its_own_loans() {
    let place = Place::new();
    let mut producer = here(&place, "wait").slots(2).full_timeout(Some(Duration::from_millis(80))).create().unwrap();
    let spec = [forebay::FieldSpec::new(FIELD, forebay::DType::U64, &[1])];
    let mine = (producer.loan(&spec).unwrap().detach(), producer.loan(&spec).unwrap().detach());
    assert!(matches!(producer.loan(&spec), Err(LoanError::OwnLoans { loaned: 2, .. })));
    drop(mine);
    publish(&mut producer, 8).unwrap();
    publish(&mut producer, 8).unwrap();
    let start = Instant::now();
    let error = producer.loan(&spec).map(drop).unwrap_err();
    assert!(start.elapsed() >= Duration::from_millis(80));
    assert!(matches!(error, LoanError::Full { slots: 2, full: 2, loaned: 0, dead: 0, .. }), "{error}");
    assert!(error.to_string().contains("no consumer holds any"), "{error}");
    let mut stop = false;
    let interrupted = producer.loan_within(&spec, None, &mut || std::mem::replace(&mut stop, true)).map(drop);
    assert!(matches!(interrupted, Err(LoanError::Interrupted { .. })));
    producer.discard();
}

#[test]
fn drop_oldest_never_takes_what_somebody_reads_and_waits_when_all_is_read() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        let place = Place::new();
        let options = here(&place, "held").kind(kind).slots(2).when_full(WhenFull::DropOldest);
        let mut producer = options.full_timeout(Some(Duration::from_millis(50))).create().unwrap();
        let mut consumer = attach(&place, "held").quota(2).attach().unwrap();
        producer.wait_for_consumers(1, Some(WATCHDOG)).unwrap();
        publish(&mut producer, 512).unwrap();
        publish(&mut producer, 512).unwrap();
        let mut kept = vec![next(&mut consumer), next(&mut consumer)];
        let error = publish(&mut producer, 512).unwrap_err();
        assert!(matches!(error, LoanError::Full { .. }), "{error}");
        kept.iter().for_each(check_message);
        kept.remove(0);
        publish(&mut producer, 512).unwrap();
        publish(&mut producer, 512).unwrap();
        assert_eq!((next(&mut consumer).sequence(), producer.stats().dropped), (4, 1));
        kept.iter().for_each(check_message);
    }
}

#[test]
fn what_was_received_and_what_was_dropped_are_together_all_that_was_published() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        for max_consumers in [1, 4] {
            let place = Place::new();
            let options = here(&place, "count").kind(kind).slots(4).when_full(WhenFull::DropOldest);
            let mut producer = options.max_consumers(max_consumers).create().unwrap();
            let consumers: Vec<_> = (0..max_consumers).map(|_| attach(&place, "count").attach().unwrap()).collect();
            producer.wait_for_consumers(max_consumers as usize, Some(WATCHDOG)).unwrap();
            let readers: Vec<_> = consumers
                .into_iter()
                .map(|mut consumer| {
                    thread::spawn(move || {
                        let (mut count, mut before) = (0, 0);
                        loop {
                            match consumer.recv_timeout(WATCHDOG) {
                                Ok(message) => {
                                    check_message(&message);
                                    assert!(message.sequence() > before);
                                    before = message.sequence();
                                    count += 1;
                                    if count % 16 == 0 {
                                        thread::yield_now();
                                    }
                                    check_message(&message);
                                }
                                Err(RecvError::Closed { .. }) => return (count, consumer.stats().missed),
                                Err(e) => panic!("{e}"),
                            }
                        }
                    })
                })
                .collect();
            let count = 20_000;
            for _ in 0..count {
                publish(&mut producer, 128).unwrap();
            }
            producer.drain(Some(WATCHDOG)).unwrap();
            let dropped = producer.stats().dropped;
            producer.close();
            let read: Vec<(u64, u64)> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
            if kind == Kind::Queue {
                assert_eq!(read.iter().map(|(got, _)| got).sum::<u64>() + dropped, count);
            } else {
                for (got, missed) in read {
                    assert_eq!(got + missed, count, "{dropped} dropped");
                }
            }
        }
    }
}

#[test]
fn a_writable_queue_is_changed_in_place_and_nobody_else_sees_half_of_it() {
    let place = Place::new();
    let mut producer = here(&place, "write").writable(true).create().unwrap();
    assert!(here(&place, "other").writable(true).kind(Kind::Broadcast).create().is_err());
    let mut reader = attach(&place, "write").attach().unwrap();
    publish(&mut producer, 8).unwrap();
    let message = next(&mut reader);
    let mut tensor = message.tensor(FIELD).unwrap();
    assert!(tensor.as_mut_slice::<u64>().is_err(), "mapped to read");
    drop((message, tensor, reader));
    let mut writer = attach(&place, "write").writable(true).attach().unwrap();
    publish(&mut producer, 8).unwrap();
    let message = next(&mut writer);
    let mut tensor = message.tensor(FIELD).unwrap();
    assert!(tensor.as_mut_slice::<u64>().is_err(), "the message is a second handle");
    drop(message);
    tensor.as_mut_slice::<u64>().unwrap()[0] += 1;
    assert_eq!(tensor.as_slice::<u64>().unwrap()[0], forebay_testkit::ledger::word(2, 0) + 1);
    let plain = here(&place, "plain").create().unwrap();
    assert!(matches!(attach(&place, "plain").writable(true).attach(), Err(forebay::AttachError::NotWritable { .. })));
    drop(plain);
}

#[test]
fn use_after_close_is_an_error_and_messages_outlive_it() {
    let place = Place::new();
    let mut producer = here(&place, "closed").create().unwrap();
    let mut consumer = attach(&place, "closed").attach().unwrap();
    publish(&mut producer, 64).unwrap();
    let message = next(&mut consumer);
    consumer.close();
    consumer.close();
    assert!(matches!(consumer.recv(), Err(RecvError::Detached { .. })));
    assert!(matches!(consumer.fileno(), Err(RecvError::Detached { .. })));
    let spec = [forebay::FieldSpec::new(FIELD, forebay::DType::U64, &[1])];
    let loan = producer.loan(&spec).unwrap().detach();
    producer.close();
    producer.close();
    assert!(matches!(producer.loan(&spec).map(drop), Err(LoanError::Closed { .. })));
    assert!(matches!(producer.publish(loan), Err(forebay::PublishError::Closed)));
    check_message(&message);
    drop((message, producer));
    // What the closed consumer gave back was kept for a successor.
    place.sweep();
}
