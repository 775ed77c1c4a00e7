//! One test, alone in its process: descriptors, mappings and threads go back to where they started.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use std::time::Duration;

use forebay::{Backing, Consumer, ConsumerSet, Kind, Producer};
use forebay_testkit::{
    Place, WATCHDOG, audit,
    ledger::{publish, schema},
    watchdog::until,
};

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// A ring's whole life: messages, leases that outlive both ends, an event loop, a set, errors.
fn life(kind: Kind, backing: Backing) {
    let place = Place::new();
    let options = |ring: &str| {
        Producer::options(ring).dir(place.path()).kind(kind).backing(backing).schema(schema()).slots(4).slot_bytes(4096)
    };
    let attach = |ring: &str| Consumer::options(ring).dir(place.path()).timeout(Some(WATCHDOG));
    let mut producer = options("one").create().unwrap();
    let mut other = options("two").create().unwrap();
    assert!(options("one").create().is_err());
    assert!(attach("none").timeout(Some(Duration::ZERO)).attach().is_err());
    let mut first = attach("one").attach().unwrap();
    let mut second = attach("one").attach().unwrap();
    producer.wait_for_consumers(2, Some(WATCHDOG)).unwrap();
    publish(&mut producer, 64).unwrap();
    let kept = first.recv_timeout(WATCHDOG).unwrap().tensor_at(0).unwrap();
    if kind == Kind::Broadcast {
        drop(second.recv_timeout(WATCHDOG).unwrap());
    }
    let loan = producer.loan(&[forebay::FieldSpec::new("words", forebay::DType::U64, &[1])]).unwrap().detach();
    let mapped = loan.keep_mapped();
    drop(loan);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let cancelled = tokio::time::timeout(Duration::from_millis(1), second.recv_async()).await;
        assert!(cancelled.is_err());
    });
    drop(runtime);
    let mut set = ConsumerSet::new(vec![second, attach("two").attach().unwrap()]);
    other.wait_for_consumers(1, Some(WATCHDOG)).unwrap();
    publish(&mut other, 8).unwrap();
    assert_eq!(set.recv_timeout(WATCHDOG).unwrap().0, 1);
    drop(set);
    if kind == Kind::Queue {
        // Until here nothing said that it was dealt with; now the last view of it goes.
        drop(kept);
        drop(first);
    } else {
        drop(first);
        drop(kept);
    }
    producer.discard();
    drop((mapped, other));
}

#[test]
fn everything_a_ring_took_is_given_back() {
    let round = || {
        for kind in [Kind::Queue, Kind::Broadcast] {
            for backing in [Backing::Posix, Backing::Memfd] {
                life(kind, backing);
            }
        }
    };
    // What is taken once per process is taken by now.
    round();
    let before = (audit::descriptors(), audit::mappings(), threads());
    assert_eq!(before.1, Vec::<String>::new());
    for _ in 0..5 {
        round();
    }
    until("the threads' end", || threads() <= before.2);
    assert_eq!(audit::descriptors(), before.0);
    assert_eq!(audit::mappings(), before.1);
}
