//! Nothing but wakes: slices are switched off, so that a lost one is a hang.

use forebay_testkit::{
    Actor, Place,
    child::{NO_MEMBARRIER, NO_SLICES},
};

use crate::stage::actor;

type Env<'a> = &'a [(&'a str, &'a str)];

/// One message at a time from a producer that sleeps to a consumer that sleeps.
fn ping(kind: &str, wait: &str, verb: &str, producer: Env<'_>, consumer: Env<'_>) {
    let place = Place::new();
    let mut feeder = actor(&place, "producer", "ping", &format!("kind={kind} wait={wait} slots=2"), producer);
    let mut reader = actor(&place, "consumer", "ping", &format!("wait={wait} quota=2"), consumer);
    feeder.ask("wait 1", "ok");
    reader.tell(&format!("{verb} 2000"));
    for round in 1..=500 {
        // The drain sleeps until the consumer released, the consumer until the next publish.
        feeder.tell("publish 1");
        feeder.tell("drain");
        feeder.expect(&format!("published {round}"));
        feeder.expect("ok");
    }
    // And both at full speed with two slots: everybody waits for everybody.
    feeder.ask("publish 1500", "published 2000");
    for id in 1..=2000 {
        reader.expect(&format!("msg {id} 0"));
    }
    reader.expect("done");
}

#[test]
fn no_wake_of_a_queue_is_lost() {
    ping("queue", "block", "work", &[NO_SLICES], &[NO_SLICES]);
}

#[test]
fn no_wake_of_a_broadcast_ring_is_lost() {
    ping("broadcast", "block", "work", &[NO_SLICES], &[NO_SLICES]);
}

#[test]
fn no_wake_of_an_adaptive_wait_is_lost() {
    ping("queue", "adaptive", "work", &[NO_SLICES], &[NO_SLICES]);
    ping("broadcast", "adaptive", "work", &[NO_SLICES], &[NO_SLICES]);
}

#[test]
fn no_wake_through_the_eventfd_is_lost() {
    ping("queue", "block", "lurk", &[NO_SLICES], &[NO_SLICES]);
    ping("broadcast", "block", "lurk", &[NO_SLICES], &[NO_SLICES]);
}

#[test]
fn no_wake_is_lost_where_one_side_or_both_have_no_membarrier() {
    let without = &[NO_SLICES, NO_MEMBARRIER];
    for kind in ["queue", "broadcast"] {
        ping(kind, "block", "work", without, without);
        ping(kind, "block", "work", without, &[NO_SLICES]);
        ping(kind, "block", "work", &[NO_SLICES], without);
    }
}

/// The first consumer waits at its quota, the second for a message. Went wrong: the producer woke the first, which may
/// not take it, and the second slept on until its slice.
#[test]
fn a_wake_that_reaches_a_consumer_at_its_quota_is_passed_on() {
    for verb in ["take", "poll"] {
        let place = Place::new();
        let mut feeder = actor(&place, "producer", "quota", "", &[NO_SLICES]);
        let mut full: Vec<Actor> = Vec::new();
        for id in 1..=3 {
            let mut reader = actor(&place, "consumer", "quota", "quota=1 wait=block", &[NO_SLICES]);
            feeder.ask("publish 1", &format!("published {id}"));
            reader.ask("take", &format!("got seq={id}"));
            full.push(reader);
        }
        let mut free = actor(&place, "consumer", "quota", "wait=block", &[NO_SLICES]);
        feeder.ask("wait 4", "ok");
        for reader in &mut full {
            reader.tell(verb);
        }
        free.tell("work 20");
        for id in 4..=23 {
            feeder.ask("publish 1", &format!("published {id}"));
            // Whoever at quota was asked first: only this one can take it.
            free.expect(&format!("msg {id}"));
        }
        free.expect("done");
        // What the others hold would be kept for a successor.
        place.sweep();
    }
}

#[test]
fn a_message_that_is_given_back_wakes_another_consumer() {
    let place = Place::new();
    let mut feeder = actor(&place, "producer", "back", "max_attempts=0", &[NO_SLICES]);
    let mut giver = actor(&place, "consumer", "back", "", &[NO_SLICES]);
    let mut other = actor(&place, "consumer", "back", "wait=block", &[NO_SLICES]);
    feeder.ask("wait 2", "ok");
    for id in 1..=50 {
        feeder.ask("publish 1", &format!("published {id}"));
        giver.ask("take", &format!("got seq={id} attempts=0"));
        other.tell("work 1");
        giver.ask(&format!("nack {id}"), "ok");
        giver.ask(&format!("drop {id}"), "ok");
        other.expect(&format!("msg {id} 1"));
        other.expect("done");
    }
}

#[test]
fn a_dead_letter_wakes_a_producer_that_drains() {
    let place = Place::new();
    let mut feeder = actor(&place, "producer", "letter", "max_attempts=1 wait=block", &[NO_SLICES]);
    let mut giver = actor(&place, "consumer", "letter", "", &[NO_SLICES]);
    feeder.ask("publish 1", "published 1");
    giver.ask("take", "got seq=1");
    feeder.tell("drain");
    giver.ask("nack 1", "ok");
    giver.ask("drop 1", "ok");
    feeder.expect("ok");
    assert_eq!(feeder.ask("letters", "letters"), "1:1");
}

#[test]
fn the_end_of_the_ring_wakes_everybody() {
    for kind in ["queue", "broadcast"] {
        let place = Place::new();
        let mut feeder = actor(&place, "producer", "end", &format!("kind={kind}"), &[NO_SLICES]);
        let mut readers: Vec<Actor> = ["work", "lurk", "work", "lurk"]
            .iter()
            .map(|verb| {
                let mut reader = actor(&place, "consumer", "end", "wait=block", &[NO_SLICES]);
                reader.tell(verb);
                reader
            })
            .collect();
        feeder.ask("wait 4", "ok");
        feeder.ask("close", "closed");
        for reader in &mut readers {
            reader.expect("end Closed");
        }
    }
}

#[test]
fn a_consumer_that_closes_hands_its_wake_to_the_next() {
    let place = Place::new();
    let mut feeder = actor(&place, "producer", "pass", "max_consumers=3", &[NO_SLICES]);
    let mut other = actor(&place, "consumer", "pass", "wait=block", &[NO_SLICES]);
    let mut reader = actor(&place, "consumer", "pass", "wait=block", &[NO_SLICES]);
    other.tell("work 40");
    for id in 1..=40 {
        reader.tell("close");
        feeder.ask("publish 1", &format!("published {id}"));
        reader.expect("closed");
        other.expect(&format!("msg {id}"));
        // Its old place is given up only when it lets go of the old consumer.
        reader.ask("attach", "attached");
    }
    other.expect("done");
}
