//! The producer dies; on posix a successor goes on.

use std::time::Duration;

use forebay::{CreateError, Kind, Producer, RecvError, Schema};
use forebay_testkit::{
    Actor, Place, WATCHDOG, audit,
    child::number,
    ledger::{self, Ledger, publish},
    watchdog::until,
};

use crate::stage::{BINARY, actor, attach, consumer, here, next, producer};

/// Reads what the actor streamed until it was killed: the last id it said.
fn last_said(actor: &mut Actor) -> u64 {
    let mut last = 0;
    while let Some(line) = actor.try_line() {
        last = line.strip_prefix("seq ").and_then(|id| id.parse().ok()).unwrap_or(last);
    }
    last
}

#[test]
fn a_killed_stream_goes_on_in_its_successor_without_loss_or_replay() {
    for kind in ["queue", "broadcast"] {
        let place = Place::new();
        let mut workers: Vec<Actor> =
            (0..2).map(|_| Actor::start(BINARY, &place, "consumer", "stream", "", &[])).collect();
        let mut books: Vec<Ledger> = workers.iter().map(|_| Ledger::default()).collect();
        let mut last = 0;
        for epoch in 1..=4 {
            let mut feeder = Actor::start(BINARY, &place, "producer", "stream", &format!("kind={kind}"), &[]);
            let found = feeder.expect("ready");
            assert_eq!(
                (number(&found, "epoch"), number(&found, "last") >= last),
                (epoch, true),
                "{found} after {last}"
            );
            if epoch == 1 {
                for worker in &mut workers {
                    worker.expect("ready");
                    worker.tell("work");
                }
                feeder.ask("wait 2", "ok");
            }
            feeder.tell("stream 512");
            for _ in 0..200 {
                feeder.expect("seq");
            }
            feeder.kill();
            last = last.max(last_said(&mut feeder));
        }
        let mut closer = producer(&place, "stream", &format!("kind={kind}"));
        let total = number(&closer.ask("stats", "stats"), "published");
        assert!(total >= last, "{total} taken over, {last} were said to be published");
        closer.ask("drain", "ok");
        closer.ask("close", "closed");
        for (worker, book) in workers.iter_mut().zip(&mut books) {
            let mut before = 0;
            loop {
                let line = worker.line();
                let Some(rest) = line.strip_prefix("msg ") else {
                    assert_eq!(line, "end Closed");
                    break;
                };
                let id = rest.split(' ').next().unwrap().parse().unwrap();
                assert!(id > before, "{id} after {before}: first deliveries are in order");
                before = id;
                book.delivered(id);
            }
        }
        for id in 1..=total {
            let deliveries: Vec<u32> = books.iter().map(|book| book.deliveries(id)).collect();
            let expected: &[&[u32]] = if kind == "queue" { &[&[1, 0], &[0, 1]] } else { &[&[1, 1]] };
            assert!(expected.contains(&&deliveries[..]), "message {id} of {total} was delivered {deliveries:?} times");
        }
    }
}

#[test]
fn consumers_drain_what_a_dead_producer_published_and_then_say_that_it_died() {
    for backing in ["posix", "memfd"] {
        for kind in ["queue", "broadcast"] {
            let place = Place::new();
            let mut feeder = producer(&place, "died", &format!("kind={kind} backing={backing}"));
            let mut reader = attach(&place, "died").reconnect(Duration::ZERO).attach().unwrap();
            feeder.ask("wait 1", "ok");
            feeder.ask("publish 7", "published 7");
            feeder.kill();
            for id in 1..=7 {
                assert_eq!(next(&mut reader).sequence(), id);
            }
            let end = reader.recv_timeout(WATCHDOG);
            assert!(matches!(end, Err(RecvError::PeerDied { .. })), "{end:?}");
            drop(reader);
            place.sweep();
        }
    }
}

#[test]
fn peer_died_waits_for_what_another_living_consumer_may_still_give_back() {
    let place = Place::new();
    let mut feeder = producer(&place, "pending", "");
    let mut holder = consumer(&place, "pending", "");
    feeder.ask("publish 1", "published 1");
    holder.ask("take", "got seq=1");
    let mut reader = attach(&place, "pending").reconnect(Duration::ZERO).attach().unwrap();
    feeder.kill();
    for _ in 0..3 {
        let early = reader.recv_timeout(Duration::from_millis(60));
        assert!(matches!(early, Err(RecvError::Timeout { .. })), "{early:?}");
    }
    holder.ask("nack 1", "ok");
    holder.ask("drop 1", "ok");
    assert_eq!(next(&mut reader).attempts(), 1);
    assert!(matches!(reader.recv_timeout(WATCHDOG), Err(RecvError::PeerDied { .. })));
    drop(reader);
    place.sweep();
}

#[test]
fn a_consumer_that_waits_out_the_restart_notices_nothing_but_time() {
    for kind in ["queue", "broadcast"] {
        let place = Place::new();
        let mut feeder = producer(&place, "restart", &format!("kind={kind}"));
        let mut worker = consumer(&place, "restart", "");
        let mut lurker = consumer(&place, "restart", "");
        feeder.ask("wait 2", "ok");
        worker.tell("work");
        lurker.tell("lurk");
        feeder.kill();
        let mut feeder = producer(&place, "restart", &format!("kind={kind}"));
        // Alive and adopted, although they have not said a word to the successor yet.
        feeder.ask("wait 2", "ok");
        for id in 1..=20 {
            feeder.ask("publish 1", &format!("published {id}"));
            feeder.ask("drain", "ok");
        }
        feeder.ask("close", "closed");
        let mut got = Vec::new();
        for actor in [&mut worker, &mut lurker] {
            loop {
                let line = actor.line();
                if line == "end Closed" {
                    break;
                }
                got.push(line);
            }
        }
        assert_eq!(got.len(), if kind == "queue" { 20 } else { 40 }, "{got:?}");
    }
}

/// Went wrong: a consumer that was stopped for 30 s gave up a ring whose producer had crashed and come back all the while,
/// because it happened to be dead at the first look before the stop and at the first after it.
#[test]
fn successors_that_came_and_went_while_nobody_looked_start_the_wait_anew() {
    let place = Place::new();
    let patience = Duration::from_secs(1);
    let mut reader;
    {
        let mut feeder = producer(&place, "flapping", "");
        reader = attach(&place, "flapping").reconnect(patience).attach().unwrap();
        feeder.ask("wait 1", "ok");
        feeder.kill();
    }
    let early = reader.recv_timeout(Duration::from_millis(60));
    assert!(matches!(early, Err(RecvError::Timeout { .. })), "{early:?}");
    let mut feeder = producer(&place, "flapping", "");
    feeder.ask("wait 1", "ok");
    feeder.kill();
    // This is what the test is about: the deadline of the first death passes while nobody looks.
    std::thread::sleep(patience);
    let early = reader.recv_timeout(Duration::from_millis(10));
    assert!(matches!(early, Err(RecvError::Timeout { .. })), "{early:?}");
    let end = reader.recv_timeout(WATCHDOG);
    assert!(matches!(end, Err(RecvError::PeerDied { .. })), "{end:?}");
    drop(reader);
    place.sweep();
}

#[test]
fn a_member_that_was_let_in_before_the_first_publish_of_the_dead_producer_gets_the_first_of_its_successor() {
    let place = Place::new();
    let mut feeder = producer(&place, "unborn", "kind=broadcast slots=2");
    let mut reader = consumer(&place, "unborn", "");
    // Not `wait 1`, which would have the publishing thread apply the join.
    feeder.kill();
    let mut feeder = producer(&place, "unborn", "kind=broadcast slots=2");
    reader.tell("work 5");
    feeder.ask("publish 5", "published 5");
    for id in 1..=5 {
        reader.expect(&format!("msg {id}"));
    }
    reader.expect("done");
    feeder.ask("drain", "ok");
}

#[test]
fn what_was_on_loan_when_the_producer_died_is_free_for_its_successor() {
    let place = Place::new();
    let mut feeder = producer(&place, "loans", "slots=4");
    let mut reader = attach(&place, "loans").attach().unwrap();
    feeder.ask("publish 1", "published 1");
    feeder.ask("loan", "loan");
    feeder.ask("loan", "loan");
    feeder.kill();
    let mut feeder = here(&place, "loans").slots(4).create().unwrap();
    let found = feeder.takeover().unwrap();
    assert_eq!((found.last_sequence, found.outstanding), (1, 1));
    for id in 2..=4 {
        assert_eq!(publish(&mut feeder, 8).unwrap(), id);
    }
    for id in 1..=4 {
        assert_eq!(next(&mut reader).sequence(), id);
    }
    feeder.drain(Some(WATCHDOG)).unwrap();
    audit::assert_all_free(&audit::posix_slots(&place, "loans"));
}

#[test]
fn a_takeover_with_another_schema_or_size_is_refused_with_both_named() {
    let place = Place::new();
    let mut feeder = producer(&place, "other", "");
    feeder.ask("publish 3", "published 3");
    feeder.kill();
    let schema = Schema::builder("ledger", 2, 0).field(ledger::FIELD, forebay::DType::F32, &[9]).build().unwrap();
    let error = here(&place, "other").schema(schema).create().unwrap_err();
    let CreateError::Different { difference, outstanding: 3, .. } = &error else { panic!("{error}") };
    assert!(difference.contains("float32") && difference.contains("uint64"), "{difference}");
    let error = here(&place, "other").slots(9).create().unwrap_err().to_string();
    assert!(error.contains("8×4096") && error.contains("9×4096") && error.contains("fresh"), "{error}");
    let error = here(&place, "other").kind(Kind::Broadcast).create().unwrap_err().to_string();
    assert!(error.contains("queue") && error.contains("broadcast"), "{error}");
    // Refused is not changed: the right one still finds everything.
    let mut successor = here(&place, "other").create().unwrap();
    assert_eq!(successor.takeover().map(|found| (found.epoch, found.outstanding)), Some((2, 3)));
    let mut reader = attach(&place, "other").attach().unwrap();
    for id in 1..=3 {
        assert_eq!(next(&mut reader).sequence(), id);
    }
    successor.drain(Some(WATCHDOG)).unwrap();
}

#[test]
fn the_consumers_of_a_discarded_ring_receive_what_is_left_and_then_hear_that_it_was_replaced() {
    let place = Place::new();
    let mut feeder = producer(&place, "fresh", "max_consumers=1");
    let mut reader = attach(&place, "fresh").attach().unwrap();
    feeder.ask("publish 2", "published 2");
    let kept = next(&mut reader);
    feeder.kill();
    let mut successor = here(&place, "fresh").max_consumers(1).fresh(true).create().unwrap();
    assert_eq!(successor.takeover(), None);
    assert_eq!(next(&mut reader).sequence(), 2);
    let end = reader.recv_timeout(WATCHDOG);
    assert!(matches!(end, Err(RecvError::Replaced { .. })), "{end:?}");
    publish(&mut successor, 8).unwrap();
    // The old ring's consumer holds on to its place in that one, not in the new one.
    let mut again = attach(&place, "fresh").attach().unwrap();
    assert_eq!(next(&mut again).sequence(), 1);
    ledger::check_message(&kept);
}

#[test]
fn a_name_that_a_living_producer_has_is_refused_and_says_by_whom() {
    let place = Place::new();
    let holder = actor(&place, "producer", "taken", "label=the-first", &[]);
    let error = here(&place, "taken").create().unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, CreateError::Taken { .. }), "{text}");
    assert!(text.contains(&format!("pid {}", holder.pid())) && text.contains("the-first"), "{text}");
    // Stopped is not dead.
    holder.stop();
    assert!(matches!(here(&place, "taken").fresh(true).create(), Err(CreateError::Taken { .. })));
    holder.signal(libc::SIGCONT);
}

#[test]
fn of_many_successors_one_takes_over() {
    let place = Place::new();
    let mut feeder = producer(&place, "race", "");
    feeder.ask("publish 3", "published 3");
    feeder.kill();
    let mut rivals: Vec<Actor> = (0..6).map(|_| Actor::start(BINARY, &place, "producer", "race", "", &[])).collect();
    let lines: Vec<String> = rivals.iter_mut().map(Actor::line).collect();
    let winners = lines.iter().filter(|line| *line == "ready epoch=2 last=3 outstanding=3").count();
    let losers = lines.iter().filter(|line| line.starts_with("error Taken")).count();
    assert_eq!((winners, losers), (1, 5), "{lines:?}");
    drop(rivals);
    place.sweep();
}

#[test]
fn a_producer_that_closes_while_nobody_is_attached_leaves_its_messages_to_the_next() {
    let place = Place::new();
    let mut first = here(&place, "later").create().unwrap();
    publish(&mut first, 8).unwrap();
    drop(first);
    assert_eq!(place.objects().len(), 3);
    let second = here(&place, "later").create().unwrap();
    assert_eq!(second.takeover().map(|found| found.outstanding), Some(1));
    let mut reader = attach(&place, "later").attach().unwrap();
    assert_eq!(next(&mut reader).sequence(), 1);
    until("the message to be finished", || second.stats().outstanding == 0);
}

#[test]
fn attaching_waits_for_the_ring_and_says_where_it_looked_when_there_is_none() {
    let place = Place::new();
    let mut waiter = Actor::start(BINARY, &place, "consumer", "soon", "", &[]);
    let mut feeder = Producer::options("soon").dir(place.path()).schema(ledger::schema()).create().unwrap();
    waiter.expect("ready");
    waiter.tell("work 1");
    publish(&mut feeder, 8).unwrap();
    waiter.expect("msg 1");
    let error = attach(&place, "never").timeout(Some(Duration::from_millis(30))).attach().unwrap_err().to_string();
    assert!(error.contains("never.sock") && error.contains(&place.path().display().to_string()), "{error}");
}
