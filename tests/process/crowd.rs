//! Many of them: consumers, rings, connections.

use std::{
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use forebay::{Backing, ConsumerSet, Kind, Producer, RecvError};
use forebay_testkit::{Actor, Place, WATCHDOG, child::number, ledger::publish, watchdog::until};

use crate::stage::{BINARY, actor, attach, consumer, here, next};

#[test]
fn thirty_two_consumers_share_a_queue_and_all_see_a_broadcast() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        let place = Place::new();
        let mut producer = here(&place, "many").kind(kind).max_consumers(32).create().unwrap();
        let mut crowd: Vec<Actor> =
            (0..32).map(|_| Actor::start(BINARY, &place, "consumer", "many", "wait=block", &[])).collect();
        let mut seats: Vec<u64> = crowd.iter_mut().map(|member| number(&member.expect("ready"), "index")).collect();
        seats.sort_unstable();
        assert_eq!(seats, (0..32).collect::<Vec<_>>());
        let refused = attach(&place, "many").attach().unwrap_err().to_string();
        assert!(refused.contains("all 32 places are taken"), "{refused}");
        producer.wait_for_consumers(32, Some(WATCHDOG)).unwrap();
        for member in &mut crowd {
            member.tell("work");
        }
        for _ in 0..200 {
            publish(&mut producer, 64).unwrap();
        }
        producer.drain(Some(WATCHDOG)).unwrap();
        producer.close();
        let mut got = vec![0; 201];
        for member in &mut crowd {
            loop {
                let line = member.line();
                let Some(rest) = line.strip_prefix("msg ") else {
                    assert_eq!(line, "end Closed");
                    break;
                };
                got[rest.split(' ').next().unwrap().parse::<usize>().unwrap()] += 1;
            }
        }
        assert!(got[1..].iter().all(|&n| n == if kind == Kind::Queue { 1 } else { 32 }), "{got:?}");
    }
}

#[test]
fn a_late_member_of_a_broadcast_starts_at_the_next_publish() {
    for backing in [Backing::Posix, Backing::Memfd] {
        let place = Place::new();
        let mut producer = here(&place, "late").kind(Kind::Broadcast).backing(backing).create().unwrap();
        publish(&mut producer, 8).unwrap();
        assert_eq!(producer.stats().dropped, 1, "there was nobody");
        let mut first = attach(&place, "late").attach().unwrap();
        publish(&mut producer, 8).unwrap();
        let mut second = attach(&place, "late").attach().unwrap();
        for _ in 0..5 {
            publish(&mut producer, 8).unwrap();
        }
        assert_eq!((2..=7).map(|_| next(&mut first).sequence()).collect::<Vec<_>>(), [2, 3, 4, 5, 6, 7]);
        assert_eq!((3..=7).map(|_| next(&mut second).sequence()).collect::<Vec<_>>(), [3, 4, 5, 6, 7]);
        drop(first);
        for id in 8..=30 {
            publish(&mut producer, 8).unwrap();
            assert_eq!(next(&mut second).sequence(), id);
        }
        producer.drain(Some(WATCHDOG)).unwrap();
    }
}

#[test]
fn members_that_come_and_go_lose_nothing_they_are_owed_and_leak_nothing() {
    let place = Place::new();
    let mut producer = here(&place, "churn").kind(Kind::Broadcast).slots(4).create().unwrap();
    let (path, rounds) = (place.path().to_owned(), 60);
    let visitors: Vec<_> = (0..3)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || {
                for round in 0..rounds {
                    let options = forebay::Consumer::options("churn").dir(&path).timeout(Some(WATCHDOG));
                    let mut member = options.attach().unwrap();
                    let mut before = 0;
                    for _ in 0..round % 4 {
                        let message = next(&mut member);
                        assert!(before == 0 || message.sequence() == before + 1, "a gap after {before}");
                        before = message.sequence();
                    }
                }
            })
        })
        .collect();
    while !visitors.iter().all(std::thread::JoinHandle::is_finished) {
        publish(&mut producer, 64).unwrap();
    }
    for visitor in visitors {
        visitor.join().unwrap();
    }
    producer.drain(Some(WATCHDOG)).unwrap();
    until("all places to be free", || producer.consumers() == 0);
}

#[test]
fn a_set_takes_from_all_its_rings_in_turn_and_outlives_those_that_close() {
    let place = Place::new();
    let mut producers: Vec<Producer> = (0..3).map(|i| here(&place, &format!("in{i}")).create().unwrap()).collect();
    let consumers = (0..3).map(|i| attach(&place, &format!("in{i}")).attach().unwrap()).collect();
    let mut set = ConsumerSet::new(consumers);
    for _ in 0..6 {
        publish(&mut producers[0], 8).unwrap();
    }
    for _ in 0..3 {
        publish(&mut producers[1], 8).unwrap();
        publish(&mut producers[2], 8).unwrap();
    }
    let mut turns = Vec::new();
    for _ in 0..12 {
        turns.push(set.recv_timeout(WATCHDOG).unwrap().0);
    }
    assert_eq!(turns, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0]);
    assert!(matches!(set.recv_timeout(Duration::from_millis(5)), Err(RecvError::Timeout { .. })));
    producers.remove(1).close();
    // From a thread, while the set sleeps.
    let feeder = std::thread::spawn(move || {
        for _ in 0..100 {
            for producer in &mut producers {
                publish(producer, 8).unwrap();
                producer.drain(Some(WATCHDOG)).unwrap();
            }
        }
        producers
    });
    let mut counts = [0; 3];
    for _ in 0..200 {
        counts[set.recv_timeout(WATCHDOG).unwrap().0] += 1;
    }
    assert_eq!(counts, [100, 0, 100]);
    drop(feeder.join().unwrap());
    assert!(matches!(set.recv_timeout(WATCHDOG), Err(RecvError::Closed { .. })));
}

#[test]
fn a_ring_that_dies_in_a_set_is_said_once_and_the_others_go_on() {
    let place = Place::new();
    let mut victim = crate::stage::producer(&place, "dies", "backing=memfd");
    let mut lives = here(&place, "lives").create().unwrap();
    let mut set =
        ConsumerSet::new(vec![attach(&place, "dies").attach().unwrap(), attach(&place, "lives").attach().unwrap()]);
    victim.ask("publish 1", "published 1");
    victim.kill();
    assert_eq!(set.recv_timeout(WATCHDOG).unwrap().0, 0);
    assert!(matches!(set.recv_timeout(WATCHDOG), Err(RecvError::PeerDied { .. })));
    publish(&mut lives, 8).unwrap();
    assert_eq!(set.recv_timeout(WATCHDOG).unwrap().0, 1);
}

/// Went wrong: the set said that one ring was at its quota, again and again, and never came to the other.
#[test]
fn a_ring_at_its_quota_does_not_keep_a_set_from_the_others() {
    let place = Place::new();
    let mut producers: Vec<Producer> = (0..2).map(|i| here(&place, &format!("q{i}")).create().unwrap()).collect();
    let consumers = (0..2).map(|i| attach(&place, &format!("q{i}")).quota(1).attach().unwrap()).collect();
    let mut set = ConsumerSet::new(consumers);
    publish(&mut producers[0], 8).unwrap();
    publish(&mut producers[0], 8).unwrap();
    let (from, kept) = set.recv_timeout(WATCHDOG).unwrap();
    assert_eq!(from, 0);
    for _ in 0..5 {
        publish(&mut producers[1], 8).unwrap();
        assert_eq!(set.recv_timeout(WATCHDOG).unwrap().0, 1);
    }
    // Nothing but what may not be taken: until its deadline it waits for a release.
    let start = Instant::now();
    let error = set.recv_timeout(Duration::from_millis(40)).unwrap_err();
    assert!(start.elapsed() >= Duration::from_millis(40));
    assert!(matches!(error, RecvError::Quota { .. }), "{error}");
    let releaser = std::thread::spawn(move || drop(kept));
    assert_eq!(set.recv_timeout(WATCHDOG).unwrap().0, 0);
    releaser.join().unwrap();
}

#[test]
fn silent_clients_do_not_keep_others_from_attaching() {
    let place = Place::new();
    let mut producer = here(&place, "flood").create().unwrap();
    let socket = place.path().join("flood.sock");
    // Connections that say nothing, more than the producer serves at a time and than fit its backlog.
    let flood = std::thread::spawn({
        let socket = socket.clone();
        move || {
            let mut held = Vec::new();
            let start = Instant::now();
            while held.len() < 300 && start.elapsed() < Duration::from_secs(2) {
                held.extend(connect(&socket));
            }
            held
        }
    });
    let mut members: Vec<_> = (0..4).map(|_| attach(&place, "flood").attach().unwrap()).collect();
    let held = flood.join().unwrap();
    assert!(held.len() > 96, "{} connections", held.len());
    members.push(attach(&place, "flood").attach().unwrap());
    producer.wait_for_consumers(5, Some(WATCHDOG)).unwrap();
    publish(&mut producer, 8).unwrap();
    assert_eq!(next(&mut members[4]).sequence(), 1);
    drop(held);
}

/// A connection that says nothing; `None` if the socket takes no more now.
fn connect(socket: &std::path::Path) -> Option<std::os::fd::OwnedFd> {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::os::unix::ffi::OsStrExt;
    let flags = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket has no preconditions.
    let fd = unsafe { libc::socket(libc::AF_UNIX, flags, 0) };
    assert!(fd >= 0);
    // SAFETY: just made, owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut address = libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
    for (to, from) in address.sun_path.iter_mut().zip(socket.as_os_str().as_bytes()) {
        *to = from.cast_signed() as libc::c_char;
    }
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: `address` is a whole sockaddr_un for the length of the call.
    let rc = unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), len) };
    (rc == 0).then_some(fd)
}

#[test]
fn a_stream_socket_or_garbage_on_the_socket_is_turned_away() {
    let place = Place::new();
    let mut producer = here(&place, "garbage").create().unwrap();
    let socket = place.path().join("garbage.sock");
    assert!(UnixStream::connect(&socket).is_err(), "packets only");
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 512], &[0xff; 512], &[0; 4096], &[]] {
        let fd = connect(&socket).expect("the socket takes a connection");
        let file = std::os::unix::net::UnixDatagram::from(fd);
        // An error is as good: the producer has hung up.
        let _ = file.send(bytes);
    }
    let mut reader = attach(&place, "garbage").attach().unwrap();
    publish(&mut producer, 8).unwrap();
    assert_eq!(next(&mut reader).sequence(), 1);
}

#[test]
fn a_stopped_producer_is_said_to_be_silent() {
    let place = Place::new();
    let holder = crate::stage::producer(&place, "silent", "");
    holder.stop();
    let error = attach(&place, "silent").attach().unwrap_err();
    holder.signal(libc::SIGCONT);
    assert!(matches!(error, forebay::AttachError::Silent { .. }), "{error}");
    assert!(attach(&place, "silent").attach().is_ok());
}

#[test]
fn a_consumer_without_descriptors_is_told_so_and_costs_nobody_a_place() {
    for kind in ["queue", "broadcast"] {
        let place = Place::new();
        let mut feeder = crate::stage::producer(&place, "fds", &format!("kind={kind} backing=memfd max_consumers=1"));
        let mut poor = Actor::start(BINARY, &place, "consumer", "fds", "lazy=true", &[]);
        let open = number(&poor.expect("ready"), "fds");
        for spare in 0..12 {
            poor.ask(&format!("limit {}", open + spare), "limited");
            poor.tell("attach");
            let line = poor.line();
            if line.starts_with("attached") {
                assert!(spare >= 6, "six descriptors come with an attach, it had {spare}");
                break;
            }
            assert!(spare < 11 && line.starts_with("error"), "{line}");
            let told =
                ["descriptor", "EMFILE", "places are taken", "open files"].iter().any(|text| line.contains(text));
            assert!(told, "{line}");
        }
        let mut last = String::new();
        poor.ask("limit 100", "limited");
        until("an attach", || {
            poor.tell("attach");
            last = poor.line();
            last.starts_with("attached") || last.contains("places are taken")
        });
        feeder.ask("wait 1", "ok");
        feeder.ask("publish 1", "published 1");
        poor.ask("take", "got seq=1");
    }
}

#[test]
fn a_producer_without_descriptors_serves_those_it_has() {
    let place = Place::new();
    let mut feeder = crate::stage::producer(&place, "poor", "");
    let mut reader = consumer(&place, "poor", "");
    feeder.ask("limit 3", "limited");
    let late = Actor::start(BINARY, &place, "consumer", "poor", "timeout_ms=100", &[]);
    for id in 1..=20 {
        feeder.ask("publish 1", &format!("published {id}"));
        reader.ask("take", &format!("got seq={id}"));
        reader.ask(&format!("drop {id}"), "ok");
    }
    drop(late);
    feeder.ask("limit 200", "limited");
    let mut late = actor(&place, "consumer", "poor", "", &[]);
    feeder.ask("publish 1", "published 21");
    reader.kill();
    late.ask("take", "got seq=21");
    late.ask("drop 21", "ok");
}
