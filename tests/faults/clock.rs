//! Clocks that differ: peers in time namespaces whose monotonic clocks are hours apart, ahead and behind.
//!
//! A clock that jumps under a process cannot be made without setting the host's. What can be shown is that nobody uses
//! another one's time to decide anything, and a source test (`ci/tests/test_clocks.py`) that no clock decides that can be
//! set.

use std::time::{Duration, Instant};

use forebay::{Consumer, Producer, RecvError, inspect};
use forebay_testkit::{Place, WATCHDOG, ledger, watchdog::until};

use crate::actors::{RINGS, actor_ahead, can_shift_time};

/// Longer than this machine runs cannot be taken away from its clock.
fn offsets() -> [i64; 2] {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    [-((seconds as i64 - 60).clamp(1, 7200)), 1_000_000]
}

/// How far beyond its deadline a wait may end: a second is promised, the rest is for a machine that runs other tests.
const LATE: Duration = Duration::from_secs(1 + 3);

#[test]
fn peers_whose_clocks_are_hours_apart_wait_and_hold_as_long_as_they_mean_to() {
    if !can_shift_time() {
        return;
    }
    for (ring, ahead_s) in RINGS.iter().flat_map(|ring| offsets().map(|ahead_s| (ring, ahead_s))) {
        let place = Place::new();
        let options = format!("{ring} slots=2 max_attempts=0 full_ms=300");
        let mut producer = actor_ahead(&place, "producer", &options, ahead_s);
        let mut consumer = Consumer::options("ring").dir(place.path()).timeout(Some(WATCHDOG)).attach().unwrap();
        let mut far = actor_ahead(&place, "consumer", "reconnect_ms=0", -ahead_s.min(0) / 2 + 500);
        producer.ask("wait 2", "ok");
        let case = format!("{ring}, {ahead_s} s");
        // Timeouts of all three.
        let timed = |what: &str, span: u64, wait: &mut dyn FnMut()| {
            let (start, span) = (Instant::now(), Duration::from_millis(span));
            wait();
            assert!((span..span + LATE).contains(&start.elapsed()), "{case}: {what} took {:?}", start.elapsed());
        };
        timed("receiving here", 100, &mut || {
            let found = consumer.recv_timeout(Duration::from_millis(100));
            assert!(matches!(found, Err(RecvError::Timeout { .. })), "{case}: {found:?}");
        });
        timed("receiving far away", 100, &mut || drop(far.ask("await 100", "error Timeout")));
        // Ages are one's own.
        producer.ask("publish 1", "published 1");
        far.ask("take", "got seq=1");
        far.ask("await 50", "error Timeout");
        let held = far.ask("held", "held 1:");
        let age: u64 = held.parse().unwrap();
        assert!((30..10_000).contains(&age), "{case}: held for {age} ms");
        let queue = ring.contains("queue");
        if !queue {
            assert_eq!(consumer.recv_timeout(WATCHDOG).unwrap().sequence(), 1, "{case}");
        }
        producer.ask("publish 1", "published 2");
        let mine = consumer.recv_timeout(WATCHDOG).unwrap();
        assert_eq!(mine.sequence(), 2, "{case}");
        timed("a loan from a full ring", 300, &mut || drop(producer.ask("publish 1", "error Full")));
        // Who looks on from outside sees a ring, with whatever ages.
        let looked = inspect::list(Some(place.path())).unwrap();
        assert!(looked.len() == 1 && looked[0].producer.alive && looked[0].view.is_ok(), "{case}: {looked:?}");
        drop(mine);
        // What the dead held comes back; the living were never taken for dead.
        far.kill();
        if queue {
            let again = consumer.recv_timeout(WATCHDOG).unwrap();
            assert_eq!((again.sequence(), again.attempts()), (1, 1), "{case}");
        } else {
            producer.ask("publish 2", "published 4");
            for id in 3..=4 {
                assert_eq!(consumer.recv_timeout(WATCHDOG).unwrap().sequence(), id, "{case}");
            }
        }
        producer.ask("close", "closed");
        assert!(matches!(consumer.recv_timeout(WATCHDOG), Err(RecvError::Closed { .. })), "{case}");
    }
}

#[test]
fn a_successor_whose_clock_is_behind_takes_over_what_its_predecessor_left() {
    if !can_shift_time() {
        return;
    }
    let place = Place::new();
    let [behind, ahead] = offsets();
    let mut first = actor_ahead(&place, "producer", "slots=4 max_attempts=0", ahead);
    let mut consumer = Consumer::options("ring").dir(place.path()).timeout(Some(WATCHDOG)).attach().unwrap();
    first.ask("publish 2", "published 2");
    first.kill();
    // The tool that made the namespace is gone; its child follows.
    until("the death of the first producer", || {
        inspect::list(Some(place.path())).unwrap().iter().all(|ring| !ring.producer.alive)
    });
    let mut second = actor_ahead(&place, "producer", "slots=4 max_attempts=0", behind);
    second.ask("publish 1", "published 3");
    for id in 1..=3 {
        let message = consumer.recv_timeout(WATCHDOG).unwrap();
        ledger::check_message(&message);
        assert_eq!(message.sequence(), id);
    }
    second.ask("drain", "ok");
    second.ask("close", "closed");
    assert!(Producer::options("ring").dir(place.path()).slots(1).slot_bytes(64).create().is_ok());
}
