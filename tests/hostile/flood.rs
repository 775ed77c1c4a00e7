//! Connections by the thousand, and clients that stop in the middle: an honest one gets in, and nothing grows.

use std::{
    fs,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use forebay::{AttachError, Kind};
use forebay_layout::control::{Control, Intent};
use forebay_os::{Conn, Dir};
use forebay_testkit::{Place, WATCHDOG, ledger::publish, watchdog::until};

use crate::{
    control::{answer, bytes, hello},
    rig::{LIMIT, figures, thorough},
    stage::{attach, here, next, producer},
};

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// What a flooding client does with each of its connections.
#[derive(Debug, Clone, Copy)]
enum Flood {
    /// Says nothing.
    Silent,
    /// Asks to attach and reads no answer.
    Deaf,
    /// Asks to look, over and over.
    Looking,
}

#[test]
fn an_honest_client_gets_in_through_a_flood_and_the_producer_s_descriptors_are_bounded() {
    for flood in [Flood::Silent, Flood::Looking, Flood::Deaf] {
        let place = Place::new();
        let mut feeder = producer(&place, "flood", "max_consumers=32");
        let idle = descriptors(feeder.pid());
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let flooders: Vec<_> = (0..2)
            .map(|_| {
                let (stop, made, path) = (Arc::clone(&stop), Arc::clone(&made), place.path().to_owned());
                thread::spawn(move || {
                    let dir = Dir::open(Some(&path)).unwrap();
                    let mut open = std::collections::VecDeque::new();
                    while !stop.load(Relaxed) {
                        let Ok(conn) = Conn::connect(&dir, "flood.sock") else {
                            thread::yield_now();
                            continue;
                        };
                        made.fetch_add(1, Relaxed);
                        let intent = match flood {
                            Flood::Silent => None,
                            Flood::Deaf => Some(Intent::Attach),
                            Flood::Looking => Some(Intent::Observe),
                        };
                        if let Some(intent) = intent {
                            let _ = conn.send(&bytes(&hello("flood", intent).encode()), &[]);
                        }
                        open.push_back(conn);
                        if open.len() > 200 {
                            open.pop_front();
                        }
                    }
                })
            })
            .collect();
        let wanted = if thorough() { 20_000 } else { 3_000 };
        let (mut most, mut longest, mut got_in) = (0, Duration::ZERO, 0_u32);
        let start = Instant::now();
        // Those who take every place, as honest clients may, keep others out for as long as they like.
        let enough = |got_in| got_in > 0 || matches!(flood, Flood::Deaf);
        while (made.load(Relaxed) < wanted || !enough(got_in)) && start.elapsed() < WATCHDOG {
            let begun = Instant::now();
            let attached = attach(&place, "flood").timeout(Some(Duration::ZERO)).attach();
            longest = longest.max(begun.elapsed());
            match attached {
                Ok(_) => got_in += 1,
                // The listener's queue is full, or all places are taken: said at once, and worth another try.
                Err(AttachError::NotThere { .. } | AttachError::Refused { .. }) => {}
                Err(e) => panic!("{flood:?}: {e}"),
            }
            most = most.max(descriptors(feeder.pid()));
        }
        stop.store(true, Relaxed);
        for flooder in flooders {
            flooder.join().unwrap();
        }
        // After it, at the latest.
        let mut consumer = attach(&place, "flood").attach().unwrap();
        feeder.ask("publish 1", "published 1");
        next(&mut consumer);
        drop(consumer);
        until("the flood's end", || descriptors(feeder.pid()) <= idle + 2);
        figures(&format!(
            "flood, {:<38} {} connections: an honest client got in {got_in} times meanwhile, longest {longest:.0?}; \
             the producer had {idle} descriptors, {most} at most",
            format!("{flood:?} clients"),
            made.load(Relaxed),
        ));
        assert!(longest < LIMIT, "{flood:?}: an answer took {longest:?}");
        // 96 guests, one eventfd for each of 32 members, and what it opens while it answers one.
        assert!(most <= idle + 96 + 32 + 16, "{flood:?}: {idle} descriptors, then {most}");
        assert!(enough(got_in), "{flood:?}: nobody got in");
        feeder.ask("close", "closed");
    }
}

#[test]
fn a_client_that_says_nothing_is_dropped_and_the_others_are_served_meanwhile() {
    let place = Place::new();
    let mut producer = here(&place, "mute").create().unwrap();
    let dir = Dir::open(Some(place.path())).unwrap();
    let mute = Conn::connect(&dir, "mute.sock").unwrap();
    let start = Instant::now();
    let mut consumer = attach(&place, "mute").attach().unwrap();
    publish(&mut producer, 8).unwrap();
    next(&mut consumer);
    until("the end of its patience", || mute.is_hung_up());
    // From its accepting on, which is after our connecting.
    assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
    producer.discard();
}

/// Everything of a welcome, and what keeps the member's byte locked: the descriptors themselves.
fn welcomed(place: &Place, ring: &str) -> Option<(Conn, Vec<OwnedFd>)> {
    let dir = Dir::open(Some(place.path())).unwrap();
    let conn = Conn::connect(&dir, &format!("{ring}.sock")).unwrap();
    conn.send(&bytes(&hello(ring, Intent::Attach).encode()), &[]).unwrap();
    match answer(&conn).unwrap() {
        (Control::Welcome(_), fds) => Some((conn, fds)),
        _ => None,
    }
}

/// A place that nobody came to take in a second is not a member's: nothing is offered there, and nobody counts it. It is
/// free again when the descriptors are closed; until then their holder has what attaching would have given it.
#[test]
fn a_client_that_is_never_ready_is_no_member_and_its_place_is_free_when_it_goes() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        let place = Place::new();
        let mut producer = here(&place, "idle").kind(kind).max_consumers(2).create().unwrap();
        let (conn, fds) = welcomed(&place, "idle").unwrap();
        let mut consumer = attach(&place, "idle").attach().unwrap();
        producer.wait_for_consumers(1, Some(WATCHDOG)).unwrap();
        until("the end of its patience", || conn.is_hung_up());
        assert_eq!(producer.consumers(), 1);
        // Nobody waits for it: more messages than there are slots go through.
        for _ in 0..20 {
            publish(&mut producer, 8).unwrap();
            next(&mut consumer);
        }
        producer.drain(Some(WATCHDOG)).unwrap();
        let full = attach(&place, "idle").timeout(Some(Duration::ZERO)).attach().unwrap_err();
        assert!(full.to_string().contains("all 2 places are taken"), "{full}");
        drop((conn, fds));
        let mut second = attach(&place, "idle").attach().unwrap();
        producer.wait_for_consumers(2, Some(WATCHDOG)).unwrap();
        publish(&mut producer, 8).unwrap();
        if kind == Kind::Broadcast {
            next(&mut consumer);
        } else {
            drop(consumer);
        }
        next(&mut second);
        producer.discard();
    }
}
