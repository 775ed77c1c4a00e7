//! A ring that does not fit says so when it is created, and never kills anybody.

use std::process::Command;

use forebay_testkit::{Actor, Place, child::number};

const BINARY: &str = env!("CARGO_BIN_EXE_forebay-actor");

/// Starts a producer whose /dev/shm has `kib` KiB; `None`, with a reason on stderr, where namespaces are not allowed.
fn confined(place: &Place, kib: u32, options: &str) -> Option<Actor> {
    let tmpfs = |then: &str| format!("mount -t tmpfs -o size={kib}k tmpfs /dev/shm && {then}");
    let probe = Command::new("unshare").args(["-m", "sh", "-c", &tmpfs("true")]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this needs the right to make a mount namespace (run it as root)");
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &tmpfs("exec \"$0\" \"$@\""), BINARY, "producer", "small"]);
    command.args(options.split_whitespace());
    Some(Actor::spawn(command, place, "producer in a small /dev/shm"))
}

#[test]
fn a_ring_larger_than_dev_shm_says_how_many_bytes_it_needs_and_how_many_there_are() {
    let place = Place::new();
    let options = "slots=4 slot_bytes=1048576";
    for kind in ["queue", "broadcast"] {
        let Some(mut actor) = confined(&place, 2048, &format!("{options} kind={kind}")) else { return };
        let error = actor.expect("error Memory");
        assert!(error.contains("/dev/shm") && error.contains("memfd") && error.contains("--shm-size"), "{error}");
        let needed: Vec<u64> = error.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
        assert!(needed.iter().any(|&n| n > 4 << 20) && needed.iter().any(|&n| n <= 2 << 20), "{error}");
    }
}

#[test]
fn a_ring_that_just_does_not_fit_leaves_the_rest_to_one_that_does() {
    let place = Place::new();
    let script = "
        mount -t tmpfs -o size=2048k tmpfs /dev/shm || exit 9
        \"$0\" producer big slots=4 slot_bytes=524288 </dev/null
        ls /dev/shm | wc -l
        \"$0\" producer fits slots=2 slot_bytes=524288 </dev/null
        \"$0\" producer hidden slots=4 slot_bytes=1048576 backing=memfd </dev/null";
    if confined(&place, 64, "slots=1 slot_bytes=64").is_none() {
        return;
    }
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, BINARY]);
    let mut actor = Actor::spawn(command, &place, "three producers");
    actor.expect("error Memory");
    assert_eq!(actor.line().trim(), "0", "nothing is left of what did not fit");
    actor.expect("ready");
    actor.expect("ready");
}

#[test]
fn a_dev_shm_that_is_too_small_by_any_number_of_pages_says_so_or_holds_the_ring() {
    let place = Place::new();
    // Page by page: each of the objects is the one that does not fit, at each of its pages.
    let mut fits = 0;
    for kib in (4..).step_by(4) {
        let Some(mut actor) = confined(&place, kib, "slots=2 slot_bytes=4096") else { return };
        let line = actor.line();
        if line.starts_with("ready") {
            fits += 1;
            if fits == 2 {
                println!("faults: a ring that needs {} KiB was refused {} smaller tmpfs", kib - 4, (kib - 8) / 4);
                return;
            }
            continue;
        }
        assert_eq!(fits, 0, "{kib} KiB: {line}");
        let numbers: Vec<u64> = line.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
        let free = u64::from(kib) << 10;
        assert!(line.starts_with("error Memory") && line.contains("/dev/shm"), "{kib} KiB: {line}");
        assert!(numbers.iter().any(|&n| n > free) && numbers.iter().any(|&n| n <= free), "{kib} KiB: {line}");
        assert!(kib < 1024, "it never fits: {line}");
    }
}

#[test]
fn a_full_dev_shm_never_faults_a_ring_that_was_created_before() {
    let place = Place::new();
    let Some(mut actor) = confined(&place, 2048, "slots=8 slot_bytes=65536 max_attempts=0") else { return };
    actor.expect("ready");
    // Everything was allocated up front: filling the rest of the file system changes nothing.
    let fill = format!("/proc/{}/root/dev/shm/fill", actor.pid());
    let _ = std::fs::write(&fill, vec![1; 4 << 20]);
    actor.ask("publish 8 512", "published 8");
    assert_eq!(number(&actor.ask("stats", "stats"), "outstanding"), 8);
}
