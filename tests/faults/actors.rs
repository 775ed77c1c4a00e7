//! Starting actors, as the process tests do.

use std::process::Command;

use forebay_testkit::{Actor, Place};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_forebay-actor");

/// What both kinds and both backings have to stand.
pub(crate) const RINGS: &[&str] =
    &["kind=queue", "kind=queue backing=memfd", "kind=broadcast", "kind=broadcast backing=memfd"];

/// Starts an actor on the ring "ring" and waits until it is ready.
pub(crate) fn actor(place: &Place, role: &str, options: &str) -> Actor {
    let mut actor = Actor::start(BINARY, place, role, "ring", options, &[]);
    actor.expect("ready");
    actor
}

/// The same in a time namespace of its own, whose clocks are `ahead_s` seconds ahead of this one's.
pub(crate) fn actor_ahead(place: &Place, role: &str, options: &str, ahead_s: i64) -> Actor {
    let (monotonic, boottime) = (format!("--monotonic={ahead_s}"), format!("--boottime={ahead_s}"));
    let mut command = Command::new("unshare");
    command.args(["--time", &monotonic, &boottime, "--fork", "--kill-child", BINARY, role, "ring"]);
    command.args(options.split_whitespace());
    let mut actor = Actor::spawn(command, place, &format!("{role} {ahead_s} s ahead, {options}"));
    actor.expect("ready");
    actor
}

/// Whether time namespaces can be made here; if not, says so.
pub(crate) fn can_shift_time() -> bool {
    let probe = ["--time", "--monotonic=5", "--fork", "true"];
    let can = Command::new("unshare").args(probe).output().is_ok_and(|output| output.status.success());
    if !can {
        eprintln!("skipped: this needs the right to make a time namespace (run it as root, on Linux 5.6)");
    }
    can
}
