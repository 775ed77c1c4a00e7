//! Starting actors.

use std::time::Duration;

use forebay::{Consumer, ConsumerOptions, Message, Producer, ProducerOptions};
use forebay_testkit::{Actor, Place, WATCHDOG, ledger};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_forebay-actor");

/// Starts an actor and waits until it is ready.
pub(crate) fn actor(place: &Place, role: &str, ring: &str, options: &str, env: &[(&str, &str)]) -> Actor {
    let mut actor = Actor::start(BINARY, place, role, ring, options, env);
    actor.expect("ready");
    actor
}

pub(crate) fn producer(place: &Place, ring: &str, options: &str) -> Actor {
    actor(place, "producer", ring, options, &[])
}

pub(crate) fn consumer(place: &Place, ring: &str, options: &str) -> Actor {
    actor(place, "consumer", ring, options, &[])
}

/// A producer in this process, of the schema that actors use.
pub(crate) fn here(place: &Place, ring: &str) -> ProducerOptions {
    Producer::options(ring)
        .dir(place.path())
        .schema(ledger::schema())
        .slots(8)
        .slot_bytes(4096)
        .full_timeout(Some(WATCHDOG))
}

/// A consumer in this process.
pub(crate) fn attach(place: &Place, ring: &str) -> ConsumerOptions {
    Consumer::options(ring).dir(place.path()).timeout(Some(WATCHDOG))
}

/// The next message, every word checked.
pub(crate) fn next(consumer: &mut Consumer) -> Message {
    let message = consumer.recv_timeout(WATCHDOG).unwrap();
    ledger::check_message(&message);
    message
}

/// Asserts that there is no message now.
pub(crate) fn nothing(consumer: &mut Consumer) {
    let found = consumer.recv_timeout(Duration::from_millis(1));
    assert!(matches!(found, Err(forebay::RecvError::Timeout { .. })), "{found:?}");
}
