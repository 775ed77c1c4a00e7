//! The two ends of a service in processes of their own, which die.

use std::{
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use forebay::service::{Answer, AnswerKind, Client, Error, Server};
use forebay_os::poll::{Events, poll_one};
use forebay_testkit::{
    Actor, Place, WATCHDOG,
    actor::service::{FIELDS, answer, ask},
    child::NO_SLICES,
};

use crate::stage::actor;

/// What a death may take to be heard of: two slices, and what the machine adds.
const SOON: Duration = Duration::from_millis(1500);

fn client(place: &Place, ranks: u32) -> Client {
    Client::options("s").dir(place.path()).slots(4).slot_bytes(4096).ranks(ranks).create().unwrap()
}

/// A client here, its servers in other processes.
fn served(place: &Place, ranks: u32, env: &[(&str, &str)]) -> (Client, Vec<Actor>) {
    let mut client = client(place, ranks);
    let servers = (0..ranks).map(|rank| actor(place, "server", "s", &format!("rank={rank}"), env)).collect();
    assert!(client.accept_within(&mut || false).unwrap());
    (client, servers)
}

fn check(answer: &Answer, ids: &[u64]) {
    assert_eq!(answer.items().iter().map(|item| item.id).collect::<Vec<_>>(), ids);
    let doubled: Vec<u64> = ids.iter().map(|id| 2 * id).collect();
    assert_eq!(answer.message().as_slice::<u64>(FIELDS.1).unwrap(), doubled);
}

fn nothing_left(place: &Place) {
    let left: Vec<_> = std::fs::read_dir(place.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn ends_that_sleep_wake_each_other_without_slices() {
    let place = Place::new();
    let (mut client, mut servers) = served(&place, 1, &[NO_SLICES]);
    servers[0].tell("work");
    for round in 0..300u64 {
        let ids = [2 * round, 2 * round + 1];
        let asked = ask(&mut client, &ids).unwrap();
        let answer = client.recv_timeout(WATCHDOG).unwrap();
        assert_eq!((answer.kind(), answer.request()), (AnswerKind::Result, asked));
        check(&answer, &ids);
    }
    client.drain();
    servers[0].expect("end Closed");
}

#[test]
fn an_event_loop_hears_of_answers_and_of_the_death() {
    let place = Place::new();
    let (mut client, mut servers) = served(&place, 1, &[]);
    let fd = client.fileno().unwrap();
    let wait = |client: &mut Client| loop {
        match client.try_answer() {
            Ok(None) => {}
            found => return found.map(|found| found.unwrap()),
        }
        // SAFETY: the client keeps its epoll descriptor open for as long as it lives, which is longer than this.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        assert!(!poll_one(fd, Events::READ, Some(WATCHDOG)).unwrap().is_empty(), "it never became readable");
    };
    for id in 0..100 {
        ask(&mut client, &[id]).unwrap();
        servers[0].ask("take", "got");
        servers[0].tell("answer");
        check(&wait(&mut client).unwrap(), &[id]);
        servers[0].expect("ok");
    }
    ask(&mut client, &[7]).unwrap();
    servers[0].ask("take", "got");
    servers[0].kill();
    let killed = Instant::now();
    assert!(matches!(wait(&mut client), Err(Error::PeerDied { outstanding: 1, .. })));
    assert!(killed.elapsed() < SOON, "{:?}", killed.elapsed());
}

#[test]
fn everything_that_a_killed_server_answered_comes_before_its_death() {
    let place = Place::new();
    let (mut client, mut servers) = served(&place, 1, &[]);
    for id in 0..4 {
        ask(&mut client, &[id]).unwrap();
        servers[0].ask("take", "got");
    }
    servers[0].ask("answer", "ok");
    servers[0].ask("answer", "ok");
    servers[0].ask("part", "ok");
    // An answer that was written and not published is none.
    servers[0].ask("begin", "ok");
    servers[0].kill();
    let killed = Instant::now();
    for id in 0..2 {
        check(&client.recv_timeout(WATCHDOG).unwrap(), &[id]);
    }
    let part = client.recv_timeout(WATCHDOG).unwrap();
    assert_eq!((part.kind(), part.items()[0].last), (AnswerKind::Part, false));
    for _ in 0..2 {
        let died = client.recv_timeout(WATCHDOG).unwrap_err();
        assert!(matches!(died, Error::PeerDied { outstanding: 2, .. }), "{died}");
    }
    assert!(killed.elapsed() < SOON, "{:?}", killed.elapsed());
    assert!(!client.is_alive());
    drop(part);
    drop(client);
    nothing_left(&place);
}

#[test]
fn a_server_hears_of_its_clients_death_while_it_waits_computes_or_answers() {
    let place = Place::new();
    let mut asker = actor(&place, "client", "s", "slots=4", &[]);
    let mut server = Server::options("s").dir(place.path()).answer_slots(1).answer_slot_bytes(4096).attach().unwrap();
    asker.ask("accept", "ok");
    for _ in 0..3 {
        asker.ask("ask 2", "asked");
    }
    let requests = [server.recv().unwrap(), server.recv().unwrap(), server.recv().unwrap()];
    answer(&mut server, &requests[0]).unwrap();
    asker.kill();
    let killed = Instant::now();
    // It waits for a slot that nobody frees any more.
    let found = answer(&mut server, &requests[1]);
    assert!(matches!(found, Err(Error::PeerDied { .. })), "{found:?}");
    assert!(requests[2].cancelled(0), "nobody waits for it");
    assert!(matches!(server.recv(), Err(Error::PeerDied { .. })));
    assert!(killed.elapsed() < SOON, "{:?}", killed.elapsed());
    drop((requests, server));
    nothing_left(&place);
}

#[test]
fn a_server_gets_what_a_killed_client_had_asked_before_it_hears_of_the_death() {
    let place = Place::new();
    let mut asker = actor(&place, "client", "s", "slots=4", &[]);
    let mut server = Server::options("s").dir(place.path()).attach().unwrap();
    asker.ask("accept", "ok");
    for request in 1..=3 {
        asker.ask("ask 1", &format!("asked {request}"));
    }
    asker.kill();
    for request in 1..=3 {
        assert_eq!(server.recv().unwrap().id(), request);
    }
    assert!(matches!(server.recv(), Err(Error::PeerDied { .. })));
}

#[test]
fn the_death_of_any_rank_ends_the_service_for_a_client_that_waits() {
    for victim in 0..3 {
        let place = Place::new();
        let (mut client, mut servers) = served(&place, 3, &[]);
        ask(&mut client, &[1, 2]).unwrap();
        for server in &mut servers {
            server.ask("take", "got 1 2");
        }
        servers[0].ask("answer", "ok");
        check(&client.recv_timeout(WATCHDOG).unwrap(), &[1, 2]);
        ask(&mut client, &[3]).unwrap();
        servers[victim].kill();
        let killed = Instant::now();
        let died = client.recv_timeout(WATCHDOG).unwrap_err();
        assert!(matches!(died, Error::PeerDied { outstanding: 1, .. }), "{died}");
        assert!(killed.elapsed() < SOON, "{:?}", killed.elapsed());
    }
}

#[test]
fn a_stopped_server_is_not_a_dead_one() {
    let place = Place::new();
    let (mut client, mut servers) = served(&place, 1, &[]);
    servers[0].tell("work");
    servers[0].stop();
    ask(&mut client, &[5]).unwrap();
    // Long enough for several slices.
    let found = client.recv_timeout(Duration::from_millis(200));
    assert!(matches!(found, Err(Error::Recv(forebay::RecvError::Timeout { .. }))), "{found:?}");
    assert!(client.is_alive());
    servers[0].signal(libc::SIGCONT);
    check(&client.recv_timeout(WATCHDOG).unwrap(), &[5]);
}

#[test]
fn a_server_that_ends_in_order_answers_what_it_was_asked() {
    let place = Place::new();
    let (mut client, mut servers) = served(&place, 1, &[]);
    servers[0].tell("work");
    for id in 0..4 {
        ask(&mut client, &[id]).unwrap();
    }
    client.drain();
    for id in 0..4 {
        check(&client.recv_timeout(WATCHDOG).unwrap(), &[id]);
    }
    servers[0].expect("end Closed");
    assert!(servers.remove(0).finish().success());
    assert!(matches!(client.recv_timeout(WATCHDOG), Err(Error::Closed { outstanding: 0, .. })));
    drop(client);
    nothing_left(&place);
}

#[test]
fn whenever_a_server_is_killed_each_request_is_answered_right_or_counted_as_unanswered() {
    for round in 0..40u32 {
        let place = Place::new();
        let (mut client, mut servers) = served(&place, 1, &[]);
        servers[0].tell("work");
        let (mut asked, mut answered) = (0u64, 0u64);
        let kill_at = 1 + u64::from(round) * 7;
        let outstanding = loop {
            while let Ok(request) = ask(&mut client, &[2 * asked, 2 * asked + 1]) {
                asked += 1;
                assert_eq!(request, asked);
                if asked == kill_at {
                    servers[0].kill();
                }
            }
            match client.recv_timeout(WATCHDOG) {
                Ok(found) => {
                    check(&found, &[2 * answered, 2 * answered + 1]);
                    answered += 1;
                    assert_eq!(found.request(), answered);
                }
                Err(Error::PeerDied { outstanding, .. }) => break outstanding,
                Err(e) => panic!("{e}"),
            }
        };
        assert_eq!(answered + outstanding as u64, asked, "round {round}");
    }
}
