//! A forked child inherits every handle and must act on none.

use forebay_testkit::{
    Place, WATCHDOG, audit,
    child::{number, signal_pid},
    ledger::publish,
};

use crate::stage::{attach, consumer, here, next, nothing, producer};

#[test]
fn in_a_forked_child_of_a_consumer_every_entry_point_says_so_and_nothing_is_released_or_pinned() {
    for (backing, kind) in [("posix", "queue"), ("memfd", "queue"), ("posix", "broadcast"), ("memfd", "broadcast")] {
        let place = Place::new();
        let (backing, kind) = (backing.parse().unwrap(), kind.parse().unwrap());
        let mut feeder = here(&place, "fork").backing(backing).kind(kind).create().unwrap();
        let mut parent = consumer(&place, "fork", "");
        feeder.wait_for_consumers(1, Some(WATCHDOG)).unwrap();
        publish(&mut feeder, 512).unwrap();
        publish(&mut feeder, 512).unwrap();
        parent.ask("take", "got seq=1");
        let before = parent.ask("stats", "stats");
        parent.tell("fork");
        let mut child = None;
        let mut said = Vec::new();
        while said.len() < 3 || child.is_none() {
            let line = parent.line();
            match line.strip_prefix("forked ") {
                Some(rest) => child = Some(number(rest, "pid") as u32),
                None => said.push(line),
            }
        }
        assert_eq!(
            said,
            [
                r#"child recv=Err("Forked") try_recv=Err("Forked") recv_timeout=Err("Forked") fileno=Err("Forked")"#,
                "child held=0 received=0",
                "child closed fault=true",
            ]
        );
        // The child nacked, dropped and closed; the parent's are as they were.
        assert_eq!(parent.ask("stats", "stats"), before);
        parent.ask("check", "ok");
        assert_eq!(feeder.stats().outstanding, 2);
        parent.ask("take", "got seq=2");
        parent.ask("drop 2", "ok");
        // The child lives and pins nothing: the parent's death is noticed all the same.
        parent.kill();
        if kind == forebay::Kind::Queue {
            let mut other = attach(&place, "fork").attach().unwrap();
            assert_eq!((next(&mut other).sequence(), other.stats().received), (1, 1));
            nothing(&mut other);
        }
        feeder.drain(Some(WATCHDOG)).unwrap();
        signal_pid(child.unwrap(), libc::SIGKILL);
    }
}

#[test]
fn in_a_forked_child_of_a_producer_every_entry_point_says_so_and_the_ring_goes_on() {
    for backing in ["posix", "memfd"] {
        let place = Place::new();
        let mut feeder = producer(&place, "parent", &format!("backing={backing}"));
        let mut reader = attach(&place, "parent").reconnect(std::time::Duration::ZERO).attach().unwrap();
        feeder.ask("publish 2", "published 2");
        feeder.ask("loan", "loan");
        feeder.tell("fork");
        let mut child = None;
        let mut said = Vec::new();
        while said.len() < 3 || child.is_none() {
            let line = feeder.line();
            match line.strip_prefix("forked ") {
                Some(rest) => child = Some(number(rest, "pid") as u32),
                None => said.push(line),
            }
        }
        assert_eq!(
            said,
            [
                r#"child loan=Err("Forked") try_loan=Err("Forked") wait=Err("Forked") drain=Err("Forked")"#,
                "child letters=0 outstanding=0 consumers=0",
                "child closed fault=true",
            ]
        );
        let stats = feeder.ask("stats", "stats");
        assert_eq!((number(&stats, "loaned"), number(&stats, "outstanding")), (1, 2), "{stats}");
        feeder.ask("publish 1", "published 3");
        let mut late = attach(&place, "parent").reconnect(std::time::Duration::ZERO).attach().unwrap();
        assert_eq!([next(&mut reader).sequence(), next(&mut reader).sequence()], [1, 2]);
        assert_eq!(next(&mut late).sequence(), 3);
        // The child has neither the name's lock nor the socket: death is noticed, and a successor comes in (posix).
        feeder.kill();
        let end = reader.recv_timeout(WATCHDOG);
        assert!(matches!(end, Err(forebay::RecvError::PeerDied { .. })), "{end:?}");
        let successor = here(&place, "parent").backing(backing.parse().unwrap()).create().unwrap();
        assert_eq!(successor.takeover().is_some(), backing == "posix");
        if backing == "posix" {
            audit::assert_all_free(&audit::posix_slots(&place, "parent"));
        }
        signal_pid(child.unwrap(), libc::SIGKILL);
    }
}

#[test]
fn the_place_of_the_dead_is_free_at_once_though_a_child_keeps_its_socket_open() {
    for (backing, kind) in [("posix", "queue"), ("memfd", "broadcast")] {
        let place = Place::new();
        let (backing, kind) = (backing.parse().unwrap(), kind.parse().unwrap());
        let feeder = here(&place, "seat").backing(backing).kind(kind).max_consumers(1).create().unwrap();
        let mut first = consumer(&place, "seat", "");
        let child = number(&first.ask("clone", "cloned"), "pid") as u32;
        first.kill();
        // The only place; nothing has hung up.
        let second = attach(&place, "seat").attach();
        assert!(second.is_ok(), "{:?}", second.err());
        signal_pid(child, libc::SIGKILL);
        drop(second);
        drop(feeder);
    }
}
