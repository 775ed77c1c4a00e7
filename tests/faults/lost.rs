//! Descriptors that are closed behind the library's back, and their numbers given to others.
//!
//! A process with a producer, then one with a consumer, closes all it has and opens files and sockets of its own. Those
//! stay untouched, whoever is attached goes on, and nobody takes the living for dead: their lock is held by a mapping.
//! What such a process cannot do any more is to notice deaths: it says so, or waits until its deadline.

use std::time::Duration;

use forebay::{Consumer, ConsumerOptions, CreateError, Kind, Producer, RecvError};
use forebay_testkit::{Actor, Place, WATCHDOG, ledger};

use crate::actors::{RINGS, actor};

/// Several slices: whoever looks at liveness has looked, more than once.
const LOOKS: Duration = Duration::from_millis(250);

/// A consumer in this process, who would say at once that its producer died.
fn watcher(place: &Place) -> Consumer {
    options(place).reconnect(Duration::ZERO).attach().unwrap()
}

fn options(place: &Place) -> ConsumerOptions {
    Consumer::options("ring").dir(place.path()).timeout(Some(WATCHDOG))
}

fn next(consumer: &mut Consumer) -> u64 {
    let message = consumer.recv_timeout(WATCHDOG).unwrap();
    ledger::check_message(&message);
    message.sequence()
}

/// Nothing comes, and nobody is said to be dead, for as long as it takes to look.
fn nothing(consumer: &mut Consumer) {
    let found = consumer.recv_timeout(LOOKS);
    assert!(matches!(found, Err(RecvError::Timeout { .. })), "{found:?}");
}

/// Ends by itself, with what it opened as it was.
fn ends_whole(mut actor: Actor) {
    actor.ask("own", "ok");
    assert!(actor.finish().success(), "the end of a process touches only its own");
}

#[test]
fn a_consumer_without_its_descriptors_goes_on_and_is_not_robbed() {
    for ring in RINGS {
        let place = Place::new();
        let kind = if ring.contains("queue") { Kind::Queue } else { Kind::Broadcast };
        let backing = if ring.contains("memfd") { forebay::Backing::Memfd } else { forebay::Backing::Posix };
        let options = Producer::options("ring").dir(place.path()).schema(ledger::schema()).kind(kind).backing(backing);
        let mut producer =
            options.slots(4).slot_bytes(4096).max_attempts(0).full_timeout(Some(WATCHDOG)).create().unwrap();
        let mut lost = actor(&place, "consumer", "reconnect_ms=0");
        let mut other = watcher(&place);
        producer.wait_for_consumers(2, Some(WATCHDOG)).unwrap();
        ledger::publish(&mut producer, 8).unwrap();
        lost.ask("take", "got seq=1");
        lost.ask("usurp", "usurped");
        if kind == Kind::Broadcast {
            assert_eq!(next(&mut other), 1, "{ring}");
        }
        // It holds 1. Neither does the other one get it, nor the producer its slot.
        nothing(&mut other);
        for id in 2..40 {
            ledger::publish(&mut producer, 8).unwrap();
            if kind == Kind::Broadcast {
                assert_eq!(next(&mut other), id, "{ring}");
                lost.ask("take", &format!("got seq={id}"));
                lost.ask(&format!("drop {id}"), "ok");
            } else if id % 2 == 0 {
                assert_eq!(next(&mut other), id, "{ring}");
            } else {
                lost.ask("take", &format!("got seq={id}"));
                lost.ask(&format!("drop {id}"), "ok");
            }
        }
        lost.ask("check", "ok");
        // It can no longer look whether its producer lives, and says why; that is no death.
        let why = lost.ask("await 250", "error Os");
        assert!(why.contains("closed by somebody else in this process"), "{ring}: {why}");
        lost.ask("drop 1", "ok");
        producer.drain(Some(WATCHDOG)).unwrap();
        // What it holds when it really dies comes back.
        ledger::publish(&mut producer, 8).unwrap();
        lost.ask("take", "got seq=40");
        if kind == Kind::Queue {
            let mut dies = actor(&place, "consumer", "");
            ledger::publish(&mut producer, 8).unwrap();
            dies.ask("take", "got seq=41");
            dies.ask("usurp", "usurped");
            dies.kill();
            assert_eq!(next(&mut other), 41, "{ring}");
        }
        lost.ask("close", "closed");
        ends_whole(lost);
        // Message 40 may have nobody left to receive it.
        producer.discard();
    }
}

#[test]
fn a_producer_without_its_descriptors_goes_on_for_whoever_is_attached() {
    for ring in RINGS {
        let place = Place::new();
        let mut lost = actor(&place, "producer", &format!("{ring} slots=4 max_attempts=0 full_ms=400"));
        let queue = ring.contains("queue");
        let mut one = watcher(&place);
        let mut other = watcher(&place);
        let mut dies = actor(&place, "consumer", "");
        lost.ask("wait 3", "ok");
        lost.ask("publish 1", "published 1");
        dies.ask("take", "got seq=1");
        lost.ask("usurp", "usurped");
        if !queue {
            assert_eq!((next(&mut one), next(&mut other)), (1, 1), "{ring}");
        }
        nothing(&mut one);
        nothing(&mut other);
        for id in 2..40 {
            lost.ask("publish 1", &format!("published {id}"));
            if queue {
                assert_eq!(next(if id % 2 == 0 { &mut one } else { &mut other }), id, "{ring}");
            } else {
                dies.ask("take", &format!("got seq={id}"));
                dies.ask(&format!("drop {id}"), "ok");
                assert_eq!((next(&mut one), next(&mut other)), (id, id), "{ring}");
            }
        }
        dies.ask("check", "ok");
        dies.kill();
        // The dead of a queue are found by whoever lives.
        if queue {
            assert_eq!(next(&mut one), 1, "{ring}");
            lost.ask("drain", "ok");
        } else {
            // It cannot see the death: with 1 and three more all slots are owed to the dead, and stay so.
            lost.tell("publish 5");
            for id in 40..43 {
                assert_eq!((next(&mut one), next(&mut other)), (id, id), "{ring}");
            }
            let full = lost.expect("error Full");
            assert!(full.contains("no free slot"), "{ring}: {full}");
        }
        // Nobody new comes in, and is told so in time; nobody takes its place while it lives.
        let refused = options(&place).timeout(Some(LOOKS)).attach();
        assert!(refused.is_err(), "{ring}");
        let successor = Producer::options("ring").dir(place.path()).slots(4).slot_bytes(4096).create();
        assert!(matches!(successor, Err(CreateError::Taken { .. })), "{ring}: {:?}", successor.err());
        lost.ask("own", "ok");
        lost.ask("close", "closed");
        for consumer in [&mut one, &mut other] {
            let end = consumer.recv_timeout(WATCHDOG);
            assert!(matches!(end, Err(RecvError::Closed { .. })), "{ring}: {end:?}");
        }
        ends_whole(lost);
        // The names went with the descriptor of their folder; whoever cleans finds them.
        drop((one, other));
        forebay::inspect::clean(Some(place.path())).unwrap();
        assert_eq!(place.objects(), Vec::<std::path::PathBuf>::new(), "{ring}");
    }
}
