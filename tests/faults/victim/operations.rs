//! The operations: each prepares a ring, does one thing under faults, and then shows that nothing is lost, that the
//! other side goes on, and that the same thing works once the fault is over.

use std::{
    sync::mpsc::{Sender, channel},
    thread,
    time::{Duration, Instant},
};

use forebay::{
    Backing, Consumer, ConsumerOptions, ConsumerSet, Kind, Message, Producer, ProducerOptions, RecvError, inspect,
};
use forebay_testkit::{WATCHDOG, ledger};

use crate::stage::Stage;

type Operation = fn(&mut Stage);

/// A thread that does `work` a little after it is told to, by the first value.
fn meanwhile<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> (Sender<()>, thread::JoinHandle<T>) {
    let (go, wait) = channel();
    let peer = thread::spawn(move || {
        // Without a word it was not to be.
        let _ = wait.recv();
        thread::sleep(MEANWHILE);
        work()
    });
    (go, peer)
}

const QUEUE: Kind = Kind::Queue;
const BROADCAST: Kind = Kind::Broadcast;
const POSIX: Backing = Backing::Posix;
const MEMFD: Backing = Backing::Memfd;

/// All of them. The tester has this list too, with deadlines.
const ALL: &[(&str, Operation)] = &[
    ("create", |s| create(s, QUEUE, POSIX)),
    ("create-memfd", |s| create(s, QUEUE, MEMFD)),
    ("create-broadcast", |s| create(s, BROADCAST, POSIX)),
    ("create-memfd-broadcast", |s| create(s, BROADCAST, MEMFD)),
    ("create-fresh", create_fresh),
    ("attach", |s| attach(s, QUEUE, POSIX)),
    ("attach-memfd", |s| attach(s, QUEUE, MEMFD)),
    ("attach-broadcast", |s| attach(s, BROADCAST, POSIX)),
    ("attach-memfd-broadcast", |s| attach(s, BROADCAST, MEMFD)),
    ("publish", |s| publish(s, QUEUE)),
    ("publish-broadcast", |s| publish(s, BROADCAST)),
    ("recv", |s| recv(s, QUEUE)),
    ("recv-broadcast", |s| recv(s, BROADCAST)),
    ("recv-timeout", recv_timeout),
    ("loan-full", |s| loan_full(s, QUEUE)),
    ("loan-full-broadcast", |s| loan_full(s, BROADCAST)),
    ("drain", drain),
    ("wait-for-consumers", wait_for_consumers),
    ("takeover", |s| takeover(s, QUEUE)),
    ("takeover-broadcast", |s| takeover(s, BROADCAST)),
    ("reconnect", reconnect),
    ("leave", |s| leave(s, QUEUE)),
    ("leave-broadcast", |s| leave(s, BROADCAST)),
    ("close", |s| close(s, POSIX)),
    ("close-memfd", |s| close(s, MEMFD)),
    ("event-loop", event_loop),
    ("set", set),
    ("list", list),
    ("clean", clean),
    ("doctor", doctor),
];

pub(crate) fn find(name: &str) -> Option<Operation> {
    ALL.iter().find(|(found, _)| *found == name).map(|(_, operation)| *operation)
}

/// Long enough that what is to happen meanwhile happens; a schedule, not a wait.
const MEANWHILE: Duration = Duration::from_millis(4);
/// What the waits of the operations under test are given.
const PATIENCE: Duration = Duration::from_millis(1500);

fn ring(kind: Kind, backing: Backing) -> ProducerOptions {
    let options = Producer::options("ring").kind(kind).backing(backing).schema(ledger::schema());
    options.slots(4).slot_bytes(4096).max_consumers(3).full_timeout(Some(PATIENCE)).max_attempts(0)
}

fn consumer() -> ConsumerOptions {
    Consumer::options("ring").timeout(Some(Duration::from_millis(300)))
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

fn next(consumer: &mut Consumer) -> Message {
    let message = consumer.recv_timeout(WATCHDOG).unwrap();
    ledger::check_message(&message);
    message
}

/// Some messages from here to there, each checked, in order, none too many. On a broadcast ring everybody gets them.
fn transfer(producer: &mut Producer, consumers: &mut [&mut Consumer]) {
    producer.wait_for_consumers(consumers.len(), Some(WATCHDOG)).unwrap();
    let broadcast = producer.geometry().kind == BROADCAST;
    for _ in 0..6 {
        let id = ledger::publish(producer, 8).unwrap();
        let readers = if broadcast { consumers.len() } else { 1 };
        for consumer in consumers.iter_mut().take(readers) {
            assert_eq!(next(consumer).sequence(), id);
        }
    }
    for consumer in consumers {
        assert!(consumer.try_recv().unwrap().is_none(), "a message too many");
    }
    producer.drain(Some(WATCHDOG)).unwrap();
}

/// A ring works from its creation to its end.
fn works(options: ProducerOptions) {
    let mut producer = options.create().unwrap();
    let mut consumer = consumer().timeout(Some(WATCHDOG)).attach().unwrap();
    transfer(&mut producer, &mut [&mut consumer]);
}

fn create(stage: &mut Stage, kind: Kind, backing: Backing) {
    if let Some(mut producer) = stage.faulty(|| ring(kind, backing).create().map_err(text)) {
        let mut consumer = consumer().timeout(Some(WATCHDOG)).attach().unwrap();
        transfer(&mut producer, &mut [&mut consumer]);
    }
    works(ring(kind, backing));
}

/// A ring in place of one that was left.
fn create_fresh(stage: &mut Stage) {
    let mut old = ring(QUEUE, POSIX).create().unwrap();
    ledger::publish(&mut old, 8).unwrap();
    old.suspend();
    let fresh = || ring(QUEUE, POSIX).fresh(true);
    if let Some(mut producer) = stage.changing(|| fresh().create().map_err(text)) {
        let mut consumer = consumer().timeout(Some(WATCHDOG)).attach().unwrap();
        transfer(&mut producer, &mut [&mut consumer]);
    }
    works(fresh());
}

fn attach(stage: &mut Stage, kind: Kind, backing: Backing) {
    let mut producer = ring(kind, backing).create().unwrap();
    let mut first = consumer().attach().unwrap();
    match stage.faulty(|| consumer().attach().map_err(text)) {
        Some(mut second) => {
            transfer(&mut producer, &mut [&mut first, &mut second]);
            drop(second);
        }
        None => transfer(&mut producer, &mut [&mut first]),
    }
    producer.wait_for_consumers(1, Some(WATCHDOG)).unwrap();
    let mut second = consumer().timeout(Some(WATCHDOG)).attach().unwrap();
    transfer(&mut producer, &mut [&mut first, &mut second]);
}

/// Receives until `last` came. An error of the system ends nothing: the next call goes on where it was.
fn receive_to(consumer: &mut Consumer, last: u64) -> Vec<String> {
    let (mut errors, mut before) = (Vec::new(), 0);
    while before < last {
        match consumer.recv_timeout(WATCHDOG) {
            Ok(message) => {
                ledger::check_message(&message);
                assert_eq!(message.sequence(), before + 1, "nothing is lost, nothing comes twice");
                before += 1;
            }
            Err(RecvError::Os(e)) => errors.push(e.to_string()),
            Err(e) => panic!("{e}"),
        }
    }
    errors
}

const LAST: u64 = 5;

fn publish(stage: &mut Stage, kind: Kind) {
    let mut producer = ring(kind, POSIX).create().unwrap();
    let mut consumer = consumer().attach().unwrap();
    producer.wait_for_consumers(1, Some(WATCHDOG)).unwrap();
    let peer = thread::spawn(move || {
        let errors = receive_to(&mut consumer, LAST);
        (consumer, errors)
    });
    stage.faulty(|| {
        for _ in 0..LAST {
            // So that the peer sleeps, sometimes.
            thread::sleep(MEANWHILE);
            ledger::publish(&mut producer, 8).map_err(text)?;
        }
        Ok(())
    });
    for _ in producer.stats().published..LAST {
        ledger::publish(&mut producer, 8).unwrap();
    }
    let (mut consumer, _) = peer.join().unwrap();
    transfer(&mut producer, &mut [&mut consumer]);
}

fn recv(stage: &mut Stage, kind: Kind) {
    let mut producer = ring(kind, POSIX).create().unwrap();
    let mut consumer = consumer().attach().unwrap();
    producer.wait_for_consumers(1, Some(WATCHDOG)).unwrap();
    let (go, peer) = meanwhile(move || {
        for _ in 0..LAST {
            ledger::publish(&mut producer, 8).unwrap();
            thread::sleep(MEANWHILE);
        }
        producer
    });
    let mut got = 0;
    stage.faulty(|| {
        let _ = go.send(());
        while got < LAST {
            let message = consumer.recv_timeout(PATIENCE).map_err(text)?;
            ledger::check_message(&message);
            got += 1;
            assert_eq!(message.sequence(), got);
        }
        Ok(())
    });
    while got < LAST {
        got += 1;
        assert_eq!(next(&mut consumer).sequence(), got);
    }
    let mut producer = peer.join().unwrap();
    transfer(&mut producer, &mut [&mut consumer]);
}

/// Expects a wait to end by its own deadline, and not before it.
fn expires<T>(found: Result<T, RecvError>, span: Duration, start: Instant) -> Result<(), String> {
    match found {
        Err(RecvError::Timeout { .. }) => {
            assert!(start.elapsed() >= span, "a wait of {span:?} ended after {:?}", start.elapsed());
            Ok(())
        }
        Err(e) => Err(e.to_string()),
        Ok(_) => panic!("nothing was published"),
    }
}

fn recv_timeout(stage: &mut Stage) {
    let mut producer = ring(QUEUE, POSIX).create().unwrap();
    let mut consumer = consumer().attach().unwrap();
    stage.faulty(|| {
        let (start, span) = (Instant::now(), Duration::from_millis(120));
        expires(consumer.recv_timeout(span), span, start)
    });
    transfer(&mut producer, &mut [&mut consumer]);
}

fn loan_full(stage: &mut Stage, kind: Kind) {
    let mut producer = ring(kind, POSIX).create().unwrap();
    let mut consumer = consumer().attach().unwrap();
    producer.wait_for_consumers(1, Some(WATCHDOG)).unwrap();
    for _ in 0..4 {
        ledger::publish(&mut producer, 8).unwrap();
    }
    let (go, peer) = meanwhile(move || {
        receive_to(&mut consumer, 4);
        consumer
    });
    let published = stage.faulty(|| {
        let _ = go.send(());
        ledger::publish(&mut producer, 8).map_err(text)
    });
    let mut consumer = peer.join().unwrap();
    if published.is_some() {
        assert_eq!(next(&mut consumer).sequence(), 5);
    }
    transfer(&mut producer, &mut [&mut consumer]);
}

fn drain(stage: &mut Stage) {
    let mut producer = ring(QUEUE, POSIX).create().unwrap();
    let mut consumer = consumer().attach().unwrap();
    ledger::publish(&mut producer, 8).unwrap();
    ledger::publish(&mut producer, 8).unwrap();
    let (go, peer) = meanwhile(move || {
        receive_to(&mut consumer, 2);
        consumer
    });
    stage.faulty(|| {
        let _ = go.send(());
        producer.drain(Some(PATIENCE)).map_err(text)
    });
    let mut consumer = peer.join().unwrap();
    transfer(&mut producer, &mut [&mut consumer]);
}

fn wait_for_consumers(stage: &mut Stage) {
    let mut producer = ring(QUEUE, POSIX).create().unwrap();
    let (go, peer) = meanwhile(move || {
        // A fault may be the producer's answer to it; then it asks again.
        let start = Instant::now();
        loop {
            match consumer().attach() {
                Ok(consumer) => return consumer,
                Err(e) => assert!(start.elapsed() < WATCHDOG, "{e}"),
            }
        }
    });
    // Whatever becomes of the wait, the consumer comes.
    stage.changing(|| {
        let _ = go.send(());
        producer.wait_for_consumers(1, Some(PATIENCE)).map_err(text)
    });
    let mut consumer = peer.join().unwrap();
    transfer(&mut producer, &mut [&mut consumer]);
}

/// A producer that leaves `n` messages to its successor, and the consumer that waits for them.
fn left(kind: Kind, n: u64) -> Consumer {
    let mut old = ring(kind, POSIX).create().unwrap();
    let consumer = consumer().reconnect(WATCHDOG).attach().unwrap();
    old.wait_for_consumers(1, Some(WATCHDOG)).unwrap();
    for _ in 0..n {
        ledger::publish(&mut old, 8).unwrap();
    }
    old.suspend();
    consumer
}

fn takeover(stage: &mut Stage, kind: Kind) {
    let mut consumer = left(kind, 2);
    let successor = stage.faulty(|| ring(kind, POSIX).create().map_err(text));
    let mut producer = successor.unwrap_or_else(|| ring(kind, POSIX).create().unwrap());
    receive_to(&mut consumer, 2);
    transfer(&mut producer, &mut [&mut consumer]);
}

fn reconnect(stage: &mut Stage) {
    let mut consumer = left(QUEUE, 0);
    // In an event loop, so that its descriptors are exchanged too.
    consumer.fileno().unwrap();
    let mut producer = ring(QUEUE, POSIX).create().unwrap();
    stage.faulty(|| {
        let (start, span) = (Instant::now(), Duration::from_millis(120));
        expires(consumer.recv_timeout(span), span, start)
    });
    // A greeting that failed is repeated after a second, by whoever receives.
    let start = Instant::now();
    while producer.consumers() == 0 {
        assert!(start.elapsed() < WATCHDOG, "the consumer never found its producer's successor");
        assert!(consumer.recv_timeout(MEANWHILE).is_err());
    }
    transfer(&mut producer, &mut [&mut consumer]);
    let fd = consumer.fileno().unwrap();
    ledger::publish(&mut producer, 8).unwrap();
    readable(fd);
    next(&mut consumer);
}

fn leave(stage: &mut Stage, kind: Kind) {
    let mut producer = ring(kind, POSIX).create().unwrap();
    let mut stays = consumer().attach().unwrap();
    let mut leaves = consumer().attach().unwrap();
    producer.wait_for_consumers(2, Some(WATCHDOG)).unwrap();
    let id = ledger::publish(&mut producer, 8).unwrap();
    let held = next(&mut leaves);
    stage.faulty(|| {
        leaves.close();
        drop(held);
        drop(leaves);
        Ok(())
    });
    // What it had not acked comes to the other; on a broadcast ring that one gets its own.
    assert_eq!(next(&mut stays).sequence(), id);
    // The one that left is gone for the producer too, once it knows.
    let start = Instant::now();
    while producer.consumers() > 1 {
        assert!(start.elapsed() < WATCHDOG, "a consumer that left is still counted");
        thread::sleep(Duration::from_millis(1));
    }
    transfer(&mut producer, &mut [&mut stays]);
}

fn close(stage: &mut Stage, backing: Backing) {
    let mut producer = ring(QUEUE, backing).create().unwrap();
    let mut consumer = consumer().attach().unwrap();
    producer.wait_for_consumers(1, Some(WATCHDOG)).unwrap();
    ledger::publish(&mut producer, 8).unwrap();
    stage.faulty(|| {
        drop(producer);
        Ok(())
    });
    receive_to(&mut consumer, 1);
    let end = consumer.recv_timeout(WATCHDOG);
    assert!(matches!(end, Err(RecvError::Closed { .. })), "{end:?}");
    drop(consumer);
    let _ = inspect::clean(None).unwrap();
    works(ring(QUEUE, backing));
}

/// Waits until an event loop would look.
fn readable(fd: std::os::fd::RawFd) {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let start = Instant::now();
    loop {
        // SAFETY: one entry, which is ours.
        let found = unsafe { libc::poll(&raw mut poll, 1, 1000) };
        if found > 0 {
            return;
        }
        assert!(start.elapsed() < WATCHDOG, "the consumer's descriptor never becomes readable");
    }
}

fn event_loop(stage: &mut Stage) {
    let mut producer = ring(QUEUE, POSIX).create().unwrap();
    let mut consumer = consumer().attach().unwrap();
    producer.wait_for_consumers(1, Some(WATCHDOG)).unwrap();
    let armed = stage.faulty(|| {
        let fd = consumer.fileno().map_err(text)?;
        if consumer.try_recv().map_err(text)?.is_some() {
            panic!("nothing was published");
        }
        Ok(fd)
    });
    let fd = armed.unwrap_or_else(|| consumer.fileno().unwrap());
    let id = ledger::publish(&mut producer, 8).unwrap();
    let message = loop {
        readable(fd);
        if let Some(message) = consumer.try_recv().unwrap() {
            break message;
        }
    };
    assert_eq!(message.sequence(), id);
    drop(message);
    transfer(&mut producer, &mut [&mut consumer]);
}

fn set(stage: &mut Stage) {
    let mut producer = ring(QUEUE, POSIX).create().unwrap();
    let other = Producer::options("other").schema(ledger::schema()).slots(2).slot_bytes(4096).create().unwrap();
    let second = Consumer::options("other").timeout(Some(WATCHDOG)).attach().unwrap();
    let mut both = ConsumerSet::new(vec![consumer().attach().unwrap(), second]);
    producer.wait_for_consumers(1, Some(WATCHDOG)).unwrap();
    let (go, peer) = meanwhile(move || {
        ledger::publish(&mut producer, 8).unwrap();
        producer
    });
    // What one of them has made for its event loop stays when the other one fails.
    let got = stage.changing(|| {
        let _ = go.send(());
        both.recv_timeout(PATIENCE).map_err(text)
    });
    let mut producer = peer.join().unwrap();
    let mut consumers = both.into_consumers();
    match got {
        Some((place, message)) => assert_eq!((place, message.sequence()), (0, 1)),
        None => assert_eq!(next(&mut consumers[0]).sequence(), 1),
    }
    transfer(&mut producer, &mut [&mut consumers[0]]);
    drop(other);
}

/// A living ring, and one whose producer is gone.
fn two() -> (Producer, Consumer) {
    let mut dead = Producer::options("dead").schema(ledger::schema()).slots(2).slot_bytes(4096).create().unwrap();
    ledger::publish(&mut dead, 8).unwrap();
    dead.suspend();
    (ring(QUEUE, POSIX).create().unwrap(), consumer().attach().unwrap())
}

fn list(stage: &mut Stage) {
    let (mut producer, mut consumer) = two();
    let look = || {
        let found = inspect::list(None).map_err(text)?;
        assert_eq!(found.iter().map(|ring| ring.name.as_str()).collect::<Vec<_>>(), ["dead", "ring"]);
        assert!(found[1].producer.alive, "a living producer is never called dead");
        match found.into_iter().find_map(|ring| ring.view.err()) {
            Some(why) => Err(why),
            None => Ok(()),
        }
    };
    stage.faulty(look);
    look().unwrap();
    transfer(&mut producer, &mut [&mut consumer]);
    inspect::clean(None).unwrap();
}

fn clean(stage: &mut Stage) {
    let (mut producer, mut consumer) = two();
    stage.changing(|| {
        let mut kept = inspect::clean(None).map_err(text)?.kept.into_iter();
        let dead = kept.find(|kept| kept.ring == "dead");
        dead.map_or(Ok(()), |kept| Err(kept.why))
    });
    transfer(&mut producer, &mut [&mut consumer]);
    let again = inspect::clean(None).unwrap();
    assert_eq!(again.kept.len(), 1, "{again:?}");
}

fn doctor(stage: &mut Stage) {
    let (mut producer, mut consumer) = two();
    stage.faulty(|| {
        assert!(!inspect::doctor(None).is_empty());
        Ok(())
    });
    transfer(&mut producer, &mut [&mut consumer]);
    inspect::clean(None).unwrap();
}
