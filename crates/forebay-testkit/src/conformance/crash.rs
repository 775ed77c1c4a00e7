//! Behaviours in which a process dies.

use std::time::Duration;

use forebay::{Backing, Kind, RecvError};

use super::{Behaviour, Setup};
use crate::{WATCHDOG, ledger};

pub(super) fn all() -> [Behaviour; 2] {
    [
        Behaviour { name: "a_killed_consumer_costs_no_message_and_no_slot", queue_only: None, run: killed_consumer },
        Behaviour { name: "a_killed_producer_costs_nothing_it_published", queue_only: None, run: killed_producer },
    ]
}

fn killed_consumer(setup: &Setup) {
    let mut producer = setup.producer().create().unwrap();
    let mut victim = setup.start("consumer", "");
    victim.expect("ready");
    let mut survivor = setup.consumer().attach().unwrap();
    producer.wait_for_consumers(2, Some(WATCHDOG)).unwrap();
    ledger::publish(&mut producer, 64).unwrap();
    victim.ask("take", "got seq=1 attempts=0");
    victim.kill();
    let message = setup.next(&mut survivor);
    let attempts = u8::from(setup.kind == Kind::Queue);
    assert_eq!((message.sequence(), message.attempts()), (1, attempts));
    drop(message);
    producer.drain(Some(WATCHDOG)).unwrap();
}

fn killed_producer(setup: &Setup) {
    let mut producer = setup.start("producer", "slots=16");
    producer.expect("ready");
    let mut consumer = setup.consumer().reconnect(Duration::ZERO).attach().unwrap();
    producer.ask("wait 1", "ok");
    producer.ask("publish 10 512", "published 10");
    producer.kill();
    for id in 1..=10 {
        assert_eq!(setup.next(&mut consumer).sequence(), id);
    }
    let end = setup.try_next(&mut consumer);
    assert!(matches!(end, Err(RecvError::PeerDied { .. })), "{end:?}");
    if setup.backing == Backing::Posix {
        let successor = setup.producer().slots(16).slot_bytes(4096).create().unwrap();
        assert_eq!(successor.takeover().map(|found| (found.epoch, found.last_sequence)), Some((2, 10)));
        successor.discard();
    }
}
