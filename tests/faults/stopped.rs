//! SIGSTOP and SIGCONT around waits, of either side.
//!
//! A stopped process is alive: nobody takes what it holds. Its own waits end when they were to end, or at once when it
//! goes on later than that; being stopped a hundred times begins none of them anew. Nothing is lost meanwhile.

use std::{
    thread,
    time::{Duration, Instant},
};

use forebay::{Consumer, ConsumerOptions, Producer, RecvError};
use forebay_testkit::{Actor, Place, WATCHDOG, ledger};

use crate::actors::actor;

/// What the waits are given.
const SPAN: Duration = Duration::from_millis(600);
/// How long somebody is stopped where others look at him: several slices.
const LOOKS: Duration = Duration::from_millis(250);
/// How far beyond its deadline a wait may end: a second is promised, the rest is for a machine that runs other tests.
const LATE: Duration = Duration::from_secs(1 + 3);

fn here(place: &Place) -> Producer {
    let options = Producer::options("ring").dir(place.path()).schema(ledger::schema()).slots(4).slot_bytes(4096);
    options.max_attempts(0).full_timeout(Some(WATCHDOG)).create().unwrap()
}

fn options(place: &Place) -> ConsumerOptions {
    Consumer::options("ring").dir(place.path()).timeout(Some(WATCHDOG)).reconnect(Duration::ZERO)
}

/// Gives `order`, then stops and continues the actor until it answers: the answer, and how long it took.
fn stuttering(actor: &mut Actor, order: &str) -> (String, Duration) {
    let start = Instant::now();
    actor.tell(order);
    let mut stops = 0;
    loop {
        // A wait that begins anew whenever it is interrupted never ends.
        actor.stop();
        actor.signal(libc::SIGCONT);
        stops += 1;
        thread::sleep(Duration::from_millis(5));
        if let Some(line) = actor.try_line() {
            assert!(stops > 3, "{order} ended after {stops} stops: {line}");
            return (line, start.elapsed());
        }
        assert!(start.elapsed() < WATCHDOG, "{order} never ends under stops");
    }
}

/// Gives `order`, stops the actor for longer than `order` waits, doing `meanwhile`: the answer.
fn overslept(actor: &mut Actor, order: &str, meanwhile: impl FnOnce()) -> String {
    let start = Instant::now();
    actor.tell(order);
    actor.stop();
    meanwhile();
    thread::sleep((SPAN + LOOKS).saturating_sub(start.elapsed()));
    let goes_on = Instant::now();
    actor.signal(libc::SIGCONT);
    let line = actor.line();
    assert!(goes_on.elapsed() < LATE, "{order} ended {:?} after it could go on: {line}", goes_on.elapsed());
    line
}

fn check(order: &str, (line, took): (String, Duration), expected: &str) {
    assert!(line.starts_with(expected), "{order}: {line}");
    assert!((SPAN..SPAN + LATE).contains(&took), "{order} of {SPAN:?} took {took:?}: {line}");
}

#[test]
fn a_consumer_that_is_stopped_while_it_waits_keeps_its_deadline_and_loses_nothing() {
    let place = Place::new();
    let mut producer = here(&place);
    let mut waits = actor(&place, "consumer", "reconnect_ms=0");
    producer.wait_for_consumers(1, Some(WATCHDOG)).unwrap();
    let order = format!("await {}", SPAN.as_millis());
    let answered = stuttering(&mut waits, &order);
    check(&order, answered, "error Timeout");
    let line = overslept(&mut waits, &order, || {});
    assert!(line.starts_with("error Timeout"), "{line}");
    // What comes while it is stopped is there when it goes on, before or after its deadline; the other half is not lost.
    let line = overslept(&mut waits, &order, || {
        ledger::publish(&mut producer, 8).unwrap();
        ledger::publish(&mut producer, 8).unwrap();
    });
    assert!(line.starts_with("got seq=1"), "what is there is received before a deadline counts: {line}");
    waits.ask("take", "got seq=2");
    waits.ask("drop 1", "ok");
    waits.ask("drop 2", "ok");
    producer.drain(Some(WATCHDOG)).unwrap();
}

#[test]
fn a_producer_that_is_stopped_while_it_waits_keeps_its_deadline_and_is_not_taken_for_dead() {
    let place = Place::new();
    let mut waits = actor(&place, "producer", &format!("slots=2 max_attempts=0 full_ms={}", SPAN.as_millis()));
    let mut consumer = options(&place).attach().unwrap();
    waits.ask("wait 1", "ok");
    waits.ask("publish 2", "published 2");
    let drain = format!("drain {}", SPAN.as_millis());
    for (order, expected) in [("publish 1", "error Full"), (drain.as_str(), "error ")] {
        let answered = stuttering(&mut waits, order);
        check(order, answered, expected);
        let line = overslept(&mut waits, order, || {});
        assert!(line.starts_with(expected), "{order}: {line}");
    }
    // Room comes while it is stopped; whoever receives goes on, and hears of no death.
    let line = overslept(&mut waits, "publish 1", || {
        for id in 1..=2 {
            let message = consumer.recv_timeout(WATCHDOG).unwrap();
            assert_eq!(message.sequence(), id);
        }
        let found = consumer.recv_timeout(LOOKS);
        assert!(matches!(found, Err(RecvError::Timeout { .. })), "{found:?}");
    });
    assert!(line.starts_with("published 3"), "room that is there is taken before a deadline counts: {line}");
    assert_eq!(consumer.recv_timeout(WATCHDOG).unwrap().sequence(), 3);
}

#[test]
fn attaching_is_stopped_on_either_side_and_ends_in_time_or_works() {
    let place = Place::new();
    // No producer: its own deadline, however often it is stopped.
    let mut waits = actor(&place, "consumer", &format!("lazy=true timeout_ms={}", SPAN.as_millis()));
    let answered = stuttering(&mut waits, "attach");
    check("attach", answered, "error ");
    let mut producer = actor(&place, "producer", "slots=2 max_attempts=0");
    // Stopped in the middle of its greeting, for longer than a producer is patient with a guest who says nothing.
    for _ in 0..3 {
        let mut late = actor(&place, "consumer", "lazy=true");
        late.tell("attach");
        late.stop();
        thread::sleep(Duration::from_millis(1200));
        late.signal(libc::SIGCONT);
        let line = late.line();
        if !line.starts_with("attached") {
            assert!(line.starts_with("error "), "{line}");
            late.ask("attach", "attached");
        }
    }
    // A producer that is stopped answers nobody, and everybody later.
    producer.stop();
    let start = Instant::now();
    let refused = options(&place).timeout(Some(SPAN)).attach();
    let took = start.elapsed();
    let why = refused.expect_err("a stopped producer admits nobody");
    assert!((SPAN..SPAN + LATE).contains(&took), "{took:?}: {why}");
    producer.signal(libc::SIGCONT);
    let mut consumer = options(&place).attach().unwrap();
    producer.ask("publish 1", "published 1");
    assert_eq!(consumer.recv_timeout(WATCHDOG).unwrap().sequence(), 1);
}

#[test]
fn who_is_stopped_keeps_what_he_holds() {
    let place = Place::new();
    let mut producer = here(&place);
    let mut stopped = actor(&place, "consumer", "");
    let mut other = options(&place).attach().unwrap();
    producer.wait_for_consumers(2, Some(WATCHDOG)).unwrap();
    ledger::publish(&mut producer, 8).unwrap();
    stopped.ask("take", "got seq=1");
    stopped.stop();
    for id in 2..6 {
        ledger::publish(&mut producer, 8).unwrap();
        assert_eq!(other.recv_timeout(WATCHDOG).unwrap().sequence(), id);
        let found = other.recv_timeout(LOOKS);
        assert!(matches!(found, Err(RecvError::Timeout { .. })), "{found:?}");
    }
    stopped.signal(libc::SIGCONT);
    stopped.ask("check", "ok");
    stopped.ask("ack 1", "ok");
    stopped.ask("drop 1", "ok");
    producer.drain(Some(WATCHDOG)).unwrap();
}
