//! Where two rare things meet.

use std::time::Duration;

use forebay::{Consumer, Kind, Producer, RecvError};
use forebay_testkit::{
    Actor, Place, WATCHDOG, audit,
    child::NO_SLICES,
    ledger::{self, publish},
    watchdog::until,
};

use crate::stage::{BINARY, actor, attach, consumer, here, next, producer};

#[test]
fn what_a_consumer_held_comes_back_even_after_the_producer_closed_and_ended() {
    for backing in ["posix", "memfd"] {
        let place = Place::new();
        let mut feeder = producer(&place, "closed", &format!("backing={backing}"));
        let mut victim = consumer(&place, "closed", "");
        let mut survivor = attach(&place, "closed").attach().unwrap();
        feeder.ask("wait 2", "ok");
        feeder.ask("publish 2", "published 2");
        victim.ask("take", "got seq=1");
        feeder.ask("close", "closed");
        assert!(feeder.finish().success());
        assert_eq!(next(&mut survivor).sequence(), 2);
        // Not the end: the victim may still give one back.
        assert!(matches!(survivor.recv_timeout(Duration::from_millis(60)), Err(RecvError::Timeout { .. })));
        victim.kill();
        let again = next(&mut survivor);
        assert_eq!((again.sequence(), again.attempts()), (1, 1));
        drop(again);
        assert!(matches!(survivor.recv_timeout(WATCHDOG), Err(RecvError::Closed { .. })));
    }
}

#[test]
fn consumers_mend_each_other_while_the_producer_is_stopped() {
    for backing in ["posix", "memfd"] {
        let place = Place::new();
        let mut feeder = producer(&place, "stopped", &format!("backing={backing}"));
        let mut victim = consumer(&place, "stopped", "");
        let mut survivor = attach(&place, "stopped").attach().unwrap();
        feeder.ask("publish 1", "published 1");
        victim.ask("take", "got seq=1");
        feeder.stop();
        victim.kill();
        assert_eq!((next(&mut survivor).attempts(), survivor.stats().recovered), (1, 1));
        feeder.signal(libc::SIGCONT);
        feeder.ask("publish 1", "published 2");
        assert_eq!(next(&mut survivor).sequence(), 2);
    }
}

#[test]
fn a_producer_killed_in_the_middle_of_creating_or_closing_leaves_nothing_that_stops_the_next() {
    for kind in ["queue", "broadcast"] {
        let place = Place::new();
        for delay_us in 0..40 {
            let mut victim = Actor::start(BINARY, &place, "producer", "unmade", &format!("kind={kind}"), &[]);
            if delay_us % 2 == 1 {
                victim.expect("ready");
                victim.tell("close");
                std::thread::sleep(Duration::from_micros(delay_us * 10));
            } else {
                // Not a wait for anything: it chooses the instruction at which it dies.
                std::thread::sleep(Duration::from_micros(600 + delay_us * 60));
            }
            victim.kill();
            if delay_us % 4 == 3 {
                let next = Actor::start(BINARY, &place, "producer", "unmade", &format!("kind={kind}"), &[]);
                let mut next = next;
                next.expect("ready");
                assert!(next.finish().success());
                assert_eq!(place.objects(), Vec::<std::path::PathBuf>::new());
            }
        }
    }
}

#[test]
fn a_producer_that_sleeps_for_a_slot_is_woken_by_the_death_of_who_held_it() {
    for wait in ["block", "adaptive"] {
        let place = Place::new();
        let options = format!("slots=2 max_attempts=1 wait={wait}");
        let mut feeder = actor(&place, "producer", "starved", &options, &[NO_SLICES]);
        let mut victim = consumer(&place, "starved", "quota=2");
        feeder.ask("publish 2", "published 2");
        victim.ask("take", "got seq=1");
        victim.ask("take", "got seq=2");
        victim.ask("ack 2", "ok");
        feeder.tell("publish 1");
        // One slot becomes free because it was acked, the other once its dead letter was handed out.
        victim.kill();
        feeder.expect("published 3");
        assert_eq!(feeder.ask("letters", "letters"), "1:1");
        feeder.ask("publish 1", "published 4");
        place.sweep();
    }
}

#[test]
fn a_message_given_back_on_a_ring_that_is_never_empty_is_not_passed_by() {
    let place = Place::new();
    let mut producer = here(&place, "busy").create().unwrap();
    let mut consumer = attach(&place, "busy").attach().unwrap();
    for _ in 0..4 {
        publish(&mut producer, 8).unwrap();
    }
    let first = next(&mut consumer);
    first.nack();
    drop(first);
    for _ in 0..2000 {
        publish(&mut producer, 8).unwrap();
        let message = next(&mut consumer);
        if message.attempts() == 1 {
            assert_eq!(message.sequence(), 1);
            return producer.discard();
        }
    }
    panic!("2000 messages came before it");
}

#[test]
fn consumers_killed_in_the_middle_of_attaching_leave_no_place_taken() {
    for (kind, backing) in [("queue", "posix"), ("broadcast", "memfd")] {
        let place = Place::new();
        let options = format!("kind={kind} backing={backing} max_consumers=3");
        let mut feeder = producer(&place, "seats", &options);
        for delay_us in 0..24 {
            let mut victim = Actor::start(BINARY, &place, "consumer", "seats", "", &[]);
            // Not a wait for anything: it chooses the instruction at which it dies.
            std::thread::sleep(Duration::from_micros(800 + delay_us * 200));
            victim.kill();
        }
        let mut members: Vec<Consumer> = Vec::new();
        until("three free places", || {
            members.extend(attach(&place, "seats").attach());
            members.len() == 3
        });
        feeder.ask("wait 3", "ok");
        feeder.ask("publish 3", "published 3");
        for (i, member) in members.iter_mut().enumerate() {
            let expected = if kind == "queue" { i as u64 + 1 } else { 1 };
            assert_eq!(next(member).sequence(), expected);
        }
        if kind == "broadcast" {
            for member in &mut members {
                assert_eq!([next(member).sequence(), next(member).sequence()], [2, 3]);
            }
        }
        feeder.ask("drain", "ok");
    }
}

#[test]
fn rings_whose_names_begin_alike_and_long_directories_do_not_get_in_each_others_way() {
    let place = Place::new();
    let mut rings = Vec::new();
    for name in ["a", "a.b", "a.ring", "a.b.c", &"x".repeat(64)] {
        let mut ring = here(&place, name).create().unwrap();
        publish(&mut ring, 8).unwrap();
        rings.push(ring);
    }
    rings.remove(0).discard();
    for ring in &mut rings {
        let mut reader = attach(&place, ring.ring()).attach().unwrap();
        assert_eq!(next(&mut reader).sequence(), 1);
        ring.drain(Some(WATCHDOG)).unwrap();
    }
    drop(rings);

    let deep = place.path().join("d".repeat(100)).join("e".repeat(100));
    std::fs::create_dir_all(deep.parent().unwrap()).unwrap();
    let options = Producer::options("deep").dir(&deep).schema(ledger::schema()).slots(2);
    let mut producer = options.slot_bytes(4096).create().unwrap();
    let mut reader = Consumer::options("deep").dir(&deep).attach().unwrap();
    publish(&mut producer, 8).unwrap();
    assert_eq!(next(&mut reader).sequence(), 1);
}

#[test]
fn dead_letters_wait_in_their_slots_until_they_were_handed_out_and_none_is_lost_by_a_death() {
    let place = Place::new();
    let start = || here(&place, "letters").max_attempts(1).slots(4);
    let sequences =
        |letters: Vec<forebay::DeadLetter>| letters.iter().map(|letter| letter.sequence).collect::<Vec<_>>();
    let spec = [forebay::FieldSpec::new(ledger::FIELD, forebay::DType::U64, &[1])];
    {
        // Killed with letters in the ring that its owner was never handed, and with some that it was.
        let mut feeder = actor(&place, "producer", "letters", "slots=4 max_attempts=1 schema=ledger", &[]);
        let mut consumer = attach(&place, "letters").attach().unwrap();
        feeder.ask("publish 2", "published 2");
        next(&mut consumer).nack();
        next(&mut consumer).nack();
        assert_eq!(feeder.ask("letters", "letters"), "1:1 2:1");
        feeder.ask("publish 1", "published 3");
        next(&mut consumer).nack();
        feeder.kill();
    }
    let mut producer = start().create().unwrap();
    assert_eq!(producer.stats().dead_letters, 3);
    assert_eq!(sequences(producer.take_dead_letters()), [1, 2, 3]);
    let mut consumer = attach(&place, "letters").attach().unwrap();
    // What was handed out makes room when room is needed.
    for id in 4..=7 {
        publish(&mut producer, 1).unwrap();
        let message = next(&mut consumer);
        assert_eq!(message.sequence(), id);
        message.nack();
    }
    // Nobody but this producer can make room now, so it does not wait, and says what to do.
    let error = producer.loan(&spec).map(drop).unwrap_err();
    assert!(matches!(error, forebay::LoanError::Full { dead: 4, .. }), "{error}");
    assert!(error.to_string().contains("take_dead_letters"), "{error}");
    drop(producer);
    let mut producer = start().create().unwrap();
    assert_eq!(sequences(producer.take_dead_letters()), [4, 5, 6, 7]);
    assert!(producer.take_dead_letters().is_empty());
    audit::assert_all_free(&audit::posix_slots(&place, "letters"));
    assert_eq!(producer.stats().dead_letters, 7);
}

#[test]
fn a_producer_that_wants_no_dead_letters_never_runs_out_of_slots_by_them() {
    let place = Place::new();
    let mut producer =
        here(&place, "thrown").max_attempts(1).slots(2).dead_letters(forebay::DeadLetters::Discard).create().unwrap();
    let mut consumer = attach(&place, "thrown").attach().unwrap();
    for _ in 0..10 {
        publish(&mut producer, 1).unwrap();
        next(&mut consumer).nack();
    }
    assert_eq!(producer.stats().dead_letters, 10);
}

#[test]
fn a_member_of_a_broadcast_that_leaves_with_leases_holds_its_slots_and_nothing_else() {
    let place = Place::new();
    let mut producer = here(&place, "left").kind(Kind::Broadcast).slots(4).create().unwrap();
    let mut leaver = attach(&place, "left").attach().unwrap();
    let mut stays = attach(&place, "left").attach().unwrap();
    producer.wait_for_consumers(2, Some(WATCHDOG)).unwrap();
    publish(&mut producer, 512).unwrap();
    publish(&mut producer, 512).unwrap();
    let kept = next(&mut leaver);
    drop(leaver);
    for id in 1..=2 {
        assert_eq!(next(&mut stays).sequence(), id);
    }
    for id in 3..=200 {
        publish(&mut producer, 512).unwrap();
        let message = next(&mut stays);
        assert_eq!(message.sequence(), id);
        assert_ne!(message.slot(), kept.slot());
        ledger::check_message(&kept);
    }
    drop(kept);
    producer.drain(Some(WATCHDOG)).unwrap();
    until("its place to be free", || producer.consumers() == 1);
}
