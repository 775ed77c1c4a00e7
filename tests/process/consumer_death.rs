//! A consumer dies, or only stops.

use forebay::{Backing, Kind};
use forebay_testkit::{
    Place, WATCHDOG, audit,
    child::{NO_SLICES, number, signal_pid},
    ledger::publish,
    watchdog::until,
};

use crate::stage::{actor, attach, consumer, here, next, nothing};

#[test]
fn what_a_killed_consumer_had_claimed_comes_to_a_sleeping_one_without_waiting_for_a_slice() {
    for backing in [Backing::Posix, Backing::Memfd] {
        let place = Place::new();
        let mut producer = here(&place, "claims").backing(backing).create().unwrap();
        let mut victim = consumer(&place, "claims", "");
        for _ in 0..3 {
            publish(&mut producer, 512).unwrap();
        }
        for id in 1..=3 {
            victim.ask("take", &format!("got seq={id} attempts=0"));
        }
        let mut other = actor(&place, "consumer", "claims", "", &[NO_SLICES]);
        producer.wait_for_consumers(2, Some(WATCHDOG)).unwrap();
        other.tell("work 3");
        victim.kill();
        let mut got: Vec<String> = (0..3).map(|_| other.expect("msg")).collect();
        got.sort();
        assert_eq!(got, ["1 1", "2 1", "3 1"]);
        other.expect("done");
        producer.drain(Some(WATCHDOG)).unwrap();
        let slots = match backing {
            Backing::Posix => audit::posix_slots(&place, "claims"),
            Backing::Memfd => audit::memfd_slots(std::process::id(), "claims"),
        };
        audit::assert_all_free(&slots);
    }
}

#[test]
fn what_a_killed_consumer_had_acked_does_not_come_back_and_frees_its_slot() {
    let place = Place::new();
    let mut producer = here(&place, "acked").slots(2).create().unwrap();
    let mut victim = consumer(&place, "acked", "quota=2");
    let mut other = attach(&place, "acked").quota(2).attach().unwrap();
    publish(&mut producer, 8).unwrap();
    publish(&mut producer, 8).unwrap();
    for id in 1..=2 {
        victim.ask("take", &format!("got seq={id}"));
        victim.ask(&format!("ack {id}"), "ok");
    }
    victim.kill();
    // Both slots were its: these two publishes are only possible once they were taken from it.
    publish(&mut producer, 8).unwrap();
    publish(&mut producer, 8).unwrap();
    assert_eq!([next(&mut other).sequence(), next(&mut other).sequence()], [3, 4]);
    nothing(&mut other);
}

#[test]
fn consumers_mend_what_another_left_when_the_producer_is_dead_too() {
    let place = Place::new();
    let mut producer = crate::stage::producer(&place, "both", "");
    let mut victim = consumer(&place, "both", "");
    let mut survivor = attach(&place, "both").reconnect(std::time::Duration::ZERO).attach().unwrap();
    producer.ask("publish 2", "published 2");
    victim.ask("take", "got seq=1");
    producer.kill();
    victim.kill();
    let mut got = vec![next(&mut survivor), next(&mut survivor)];
    got.sort_by_key(forebay::Message::sequence);
    assert_eq!(got.iter().map(|m| (m.sequence(), m.attempts())).collect::<Vec<_>>(), [(1, 1), (2, 0)]);
    assert_eq!(survivor.stats().recovered, 1);
    assert!(matches!(survivor.recv_timeout(WATCHDOG), Err(forebay::RecvError::PeerDied { .. })));
    drop((got, survivor));
    place.sweep();
}

#[test]
fn a_message_that_kills_every_consumer_becomes_a_dead_letter() {
    let place = Place::new();
    let mut producer = here(&place, "poison").max_attempts(3).create().unwrap();
    publish(&mut producer, 8).unwrap();
    for attempts in 0..3 {
        let mut victim = consumer(&place, "poison", "");
        victim.ask("take", &format!("got seq=1 attempts={attempts}"));
        victim.tell("exit");
        victim.finish();
    }
    producer.drain(Some(WATCHDOG)).unwrap();
    let letters = producer.take_dead_letters();
    assert_eq!(letters.iter().map(|letter| (letter.sequence, letter.attempts)).collect::<Vec<_>>(), [(1, 3)]);
    // Asked again, it has dealt with them.
    assert!(producer.take_dead_letters().is_empty());
    audit::assert_all_free(&audit::posix_slots(&place, "poison"));
}

#[test]
fn a_stopped_consumer_is_never_robbed() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        let place = Place::new();
        let mut producer = here(&place, "stopped").kind(kind).create().unwrap();
        let mut sleeper = consumer(&place, "stopped", "");
        let mut other = attach(&place, "stopped").attach().unwrap();
        producer.wait_for_consumers(2, Some(WATCHDOG)).unwrap();
        publish(&mut producer, 512).unwrap();
        sleeper.ask("take", "got seq=1 attempts=0");
        sleeper.stop();
        if kind == Kind::Broadcast {
            assert_eq!(next(&mut other).sequence(), 1);
        }
        // Much longer than any slice, by the number of messages that pass; a broadcast ring is paced by its slowest.
        let rounds = if kind == Kind::Queue { 300 } else { 7 };
        for id in 2..2 + rounds {
            publish(&mut producer, 512).unwrap();
            assert_eq!(next(&mut other).sequence(), id);
        }
        for _ in 0..4 {
            nothing(&mut other);
            std::thread::sleep(std::time::Duration::from_millis(60));
        }
        sleeper.signal(libc::SIGCONT);
        sleeper.ask("check", "ok");
        sleeper.ask("drop 1", "ok");
        sleeper.tell(&format!("work {}", if kind == Kind::Queue { 0 } else { rounds }));
        while sleeper.line() != "done" {}
        producer.drain(Some(WATCHDOG)).unwrap();
    }
}

#[test]
fn the_place_of_a_dead_consumer_is_used_again_and_its_ghost_finds_nothing() {
    for (kind, backing) in [(Kind::Queue, Backing::Posix), (Kind::Broadcast, Backing::Memfd)] {
        let place = Place::new();
        let mut producer = here(&place, "seats").kind(kind).backing(backing).max_consumers(1).create().unwrap();
        for round in 1..=5 {
            let mut victim = actor(&place, "consumer", "seats", "lazy=true", &[]);
            // Its predecessor's place is refused until its death was noticed.
            until("a free place", || {
                victim.tell("attach");
                victim.line() == "attached index=0"
            });
            producer.wait_for_consumers(1, Some(WATCHDOG)).unwrap();
            publish(&mut producer, 8).unwrap();
            let line = victim.ask("take", "got");
            assert_eq!(number(&line, "seq"), round);
            if kind == Kind::Queue {
                victim.ask(&format!("ack {round}"), "ok");
            }
            victim.kill();
        }
        producer.drain(Some(WATCHDOG)).unwrap();
    }
}

#[test]
fn a_dead_member_of_a_broadcast_ring_frees_a_producer_that_waits_for_it() {
    for backing in [Backing::Posix, Backing::Memfd] {
        let place = Place::new();
        let options = format!("kind=broadcast backing={backing} slots=4");
        let mut producer = actor(&place, "producer", "paced", &options, &[NO_SLICES]);
        let mut victim = consumer(&place, "paced", "");
        let mut other = consumer(&place, "paced", "");
        producer.ask("wait 2", "ok");
        producer.ask("publish 1", "published 1");
        victim.ask("take", "got seq=1");
        other.tell("work 50");
        // The victim never takes the second one: the producer sleeps in the middle of this.
        producer.tell("publish 49");
        for id in 1..=4 {
            other.expect(&format!("msg {id}"));
        }
        victim.kill();
        producer.expect("published 50");
        for id in 5..=50 {
            other.expect(&format!("msg {id}"));
        }
        other.expect("done");
        producer.ask("drain", "ok");
    }
}

#[test]
fn a_consumer_that_leaves_without_a_word_is_as_good_as_dead() {
    let place = Place::new();
    let mut producer = here(&place, "gone").create().unwrap();
    let mut leaver = consumer(&place, "gone", "ack=manual");
    let mut other = attach(&place, "gone").attach().unwrap();
    publish(&mut producer, 8).unwrap();
    leaver.ask("take", "got seq=1");
    leaver.tell("exit");
    assert!(leaver.finish().success());
    assert_eq!((next(&mut other).attempts(), producer.stats().published), (1, 1));
}

#[test]
fn a_consumer_that_closes_all_descriptors_keeps_what_it_holds() {
    for backing in [Backing::Posix, Backing::Memfd] {
        let place = Place::new();
        let mut producer = here(&place, "daemon").backing(backing).create().unwrap();
        let mut daemon = consumer(&place, "daemon", "");
        let mut other = attach(&place, "daemon").attach().unwrap();
        producer.wait_for_consumers(2, Some(WATCHDOG)).unwrap();
        publish(&mut producer, 512).unwrap();
        daemon.ask("take", "got seq=1");
        daemon.ask("daemonize", "daemonized");
        until("the producer to notice", || producer.consumers() == 1);
        for id in 2..100 {
            publish(&mut producer, 512).unwrap();
            assert_eq!(next(&mut other).sequence(), id);
        }
        daemon.ask("check", "ok");
        nothing(&mut other);
        daemon.kill();
        assert_eq!((next(&mut other).sequence(), producer.stats().published), (1, 99));
    }
}

/// Went wrong: the statistics of a broadcast ring that nobody published on any more counted what the dead had not received.
#[test]
fn what_was_owed_to_a_killed_member_is_neither_outstanding_nor_undelivered() {
    let place = Place::new();
    let mut producer = here(&place, "owed").kind(Kind::Broadcast).create().unwrap();
    let mut victim = consumer(&place, "owed", "");
    producer.wait_for_consumers(1, Some(WATCHDOG)).unwrap();
    publish(&mut producer, 8).unwrap();
    publish(&mut producer, 8).unwrap();
    assert_eq!((producer.stats().outstanding, producer.stats().undelivered), (2, 2));
    victim.kill();
    // Nothing is published meanwhile: the producer's own thread finds out.
    until("nothing is owed any more", || {
        let stats = producer.stats();
        producer.consumers() == 0 && (stats.outstanding, stats.undelivered) == (0, 0)
    });
}

/// Went wrong: who had died a moment ago counted as attached, and what it was to receive was deleted.
#[test]
fn what_the_dead_were_to_receive_stays_when_their_producer_closes_at_once() {
    let place = Place::new();
    let mut feeder = here(&place, "left").create().unwrap();
    let mut victim = consumer(&place, "left", "");
    publish(&mut feeder, 64).unwrap();
    publish(&mut feeder, 64).unwrap();
    victim.ask("take", "got seq=1 attempts=0");
    // Keeps the socket open, so that the control thread does not hear of the death before we close.
    let child = number(&victim.ask("clone", "cloned"), "pid") as u32;
    victim.kill();
    assert_eq!(feeder.consumers(), 1);
    feeder.close();
    let heir = here(&place, "left").create().unwrap();
    assert_eq!(heir.takeover().map(|found| found.outstanding), Some(2));
    let mut reader = attach(&place, "left").attach().unwrap();
    for (id, attempts) in [(1, 1), (2, 0)] {
        let message = next(&mut reader);
        assert_eq!((message.sequence(), message.attempts()), (id, attempts));
    }
    signal_pid(child, libc::SIGKILL);
    drop(reader);
    heir.discard();
}
