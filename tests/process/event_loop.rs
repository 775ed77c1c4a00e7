//! Consumers in event loops: poll(2) and tokio.

use std::time::Duration;

use forebay::{Backing, Kind, RecvError};
use forebay_testkit::{
    Place, WATCHDOG,
    ledger::{check_message, publish},
};

use crate::stage::{attach, here};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_cancelled_receive_has_taken_nothing_and_holds_nothing() {
    for (kind, backing) in [(Kind::Queue, Backing::Posix), (Kind::Broadcast, Backing::Memfd)] {
        let place = Place::new();
        let mut producer = here(&place, "cancel").kind(kind).backing(backing).create().unwrap();
        let mut consumer = attach(&place, "cancel").attach().unwrap();
        producer.wait_for_consumers(1, Some(WATCHDOG)).unwrap();
        let count = 2000;
        // Nothing is published before a few receives were cancelled, so that some always are.
        let (begin, wait_to_begin) = std::sync::mpsc::channel();
        let feeder = std::thread::spawn(move || {
            wait_to_begin.recv().unwrap();
            for _ in 0..count {
                publish(&mut producer, 16).unwrap();
            }
            producer.drain(Some(WATCHDOG)).unwrap();
            producer
        });
        let cancelled = runtime().block_on(async {
            let (mut cancelled, mut expected) = (0, 1);
            while expected <= count {
                // Polled once or a few times, then dropped in whatever state it is in.
                let span = Duration::from_micros(cancelled % 7 * 20);
                match tokio::time::timeout(span, consumer.recv_async()).await {
                    Ok(received) => {
                        let message = received.unwrap();
                        check_message(&message);
                        assert_eq!(message.sequence(), expected);
                        expected += 1;
                    }
                    Err(_) => {
                        cancelled += 1;
                        assert!(consumer.held().is_empty());
                        if cancelled == 10 {
                            begin.send(()).unwrap();
                        }
                    }
                }
            }
            cancelled
        });
        let producer = feeder.join().unwrap();
        assert!(cancelled >= 10, "{cancelled} receives were cancelled");
        assert_eq!((consumer.stats().received, producer.stats().outstanding), (count, 0));
    }
}

#[test]
fn an_async_receive_sleeps_until_there_is_a_message_and_ends_with_the_ring() {
    let place = Place::new();
    let mut producer = here(&place, "sleep").create().unwrap();
    let mut consumer = attach(&place, "sleep").attach().unwrap();
    let feeder = std::thread::spawn(move || {
        for _ in 0..200 {
            publish(&mut producer, 8).unwrap();
            producer.drain(Some(WATCHDOG)).unwrap();
        }
    });
    runtime().block_on(async {
        let all = async {
            for id in 1..=200 {
                assert_eq!(consumer.recv_async().await.unwrap().sequence(), id);
            }
            consumer.recv_async().await
        };
        let end = tokio::time::timeout(WATCHDOG, all).await.expect("all messages come");
        assert!(matches!(end, Err(RecvError::Closed { .. })), "{end:?}");
    });
    feeder.join().unwrap();
}

#[test]
fn an_async_receive_at_its_quota_waits_for_a_release_and_gives_up_after_a_second() {
    let place = Place::new();
    let mut producer = here(&place, "quota").create().unwrap();
    let mut consumer = attach(&place, "quota").quota(1).attach().unwrap();
    for _ in 0..3 {
        publish(&mut producer, 8).unwrap();
    }
    runtime().block_on(async {
        let first = consumer.recv_async().await.unwrap();
        let task = tokio::spawn(async move {
            tokio::task::yield_now().await;
            drop(first);
        });
        let second = tokio::time::timeout(WATCHDOG, consumer.recv_async()).await.expect("a release is noticed");
        let second = second.unwrap();
        task.await.unwrap();
        let start = std::time::Instant::now();
        let error = tokio::time::timeout(WATCHDOG, consumer.recv_async()).await.expect("it gives up").unwrap_err();
        assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
        assert!(matches!(error, RecvError::Quota { .. }), "{error}");
        drop(second);
        assert_eq!(consumer.recv_async().await.unwrap().sequence(), 3);
    });
}

#[test]
fn an_async_receive_notices_that_the_producer_died() {
    let place = Place::new();
    let mut feeder = crate::stage::producer(&place, "dies", "backing=memfd");
    let mut consumer = attach(&place, "dies").attach().unwrap();
    feeder.ask("publish 1", "published 1");
    runtime().block_on(async {
        assert_eq!(consumer.recv_async().await.unwrap().sequence(), 1);
        feeder.kill();
        let end = tokio::time::timeout(WATCHDOG, consumer.recv_async()).await.expect("death is noticed");
        assert!(matches!(end, Err(RecvError::PeerDied { .. })), "{end:?}");
    });
}

#[test]
fn many_consumers_in_one_runtime_share_a_queue() {
    let place = Place::new();
    let mut producer = here(&place, "share").create().unwrap();
    let consumers: Vec<_> = (0..4).map(|_| attach(&place, "share").attach().unwrap()).collect();
    let feeder = std::thread::spawn(move || {
        for _ in 0..400 {
            publish(&mut producer, 8).unwrap();
        }
        producer.drain(Some(WATCHDOG)).unwrap();
    });
    let total = runtime().block_on(async {
        let tasks: Vec<_> = consumers
            .into_iter()
            .map(|mut consumer| {
                tokio::spawn(async move {
                    let mut count = 0;
                    loop {
                        match consumer.recv_async().await {
                            Ok(message) => {
                                check_message(&message);
                                count += 1;
                            }
                            Err(RecvError::Closed { .. }) => return count,
                            Err(e) => panic!("{e}"),
                        }
                    }
                })
            })
            .collect();
        let mut total = 0;
        for task in tasks {
            total += tokio::time::timeout(WATCHDOG, task).await.expect("the queue ends").unwrap();
        }
        total
    });
    assert_eq!(total, 400);
    feeder.join().unwrap();
}
