//! SIGINT and SIGTERM end a feed at once, or after what is published was received.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Place, assert_rows, number_lines, receive, receive_all, watchdog};

const ARGS: [&str; 7] = ["--batch", "4", "--slots", "4", "--full-timeout", "none", "a.txt"];

#[test]
fn sigterm_stops_reading_and_drains() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 10_000);
    let mut feed = place.feed(ARGS);
    let mut consumer = place.consumer("tokens");
    let first = receive(&mut consumer);
    feed.signal("TERM");
    feed.wait_for("stopping");
    // It waits for us, and publishes nothing more.
    assert!(!feed.has_ended());
    let mut got = vec![first];
    got.extend(receive_all(&mut consumer));
    let lines = got.last().unwrap().next.line as usize;
    assert!(lines <= 4 * 6, "{lines} lines were published");
    assert_rows(&got, &place.path("tokenizer.json"), &number_lines(lines));
    feed.end().assert_code(0).assert_says(&["0 messages not received"]);
}

#[test]
fn sigint_ends_a_wait_for_a_slot_that_nobody_will_free() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 100);
    let mut feed = place.feed(ARGS);
    let consumer = place.consumer("tokens");
    drop(consumer);
    feed.signal("INT");
    let ended = feed.end();
    ended.assert_code(0).assert_says(&["stays"]);
}

#[test]
fn a_signal_ends_the_wait_for_consumers_and_leaves_nothing() {
    for signal in ["INT", "TERM"] {
        let (place, _dog) = (Place::new(), watchdog());
        place.numbers("a.txt", 100);
        let mut feed = place.feed(["--wait-for", "3", "a.txt"]);
        feed.wait_for("waiting for 3 consumers");
        feed.signal(signal);
        feed.end().assert_code(0);
        place.assert_clean();
    }
}

#[test]
fn a_signal_ends_the_wait_for_standard_input() {
    let (place, _dog) = (Place::new(), watchdog());
    let mut feed = place.feed(["-"]);
    // Held open: it waits for a line.
    let stdin = feed.stdin();
    feed.wait_for("feeding ring");
    feed.signal("TERM");
    feed.end().assert_code(0);
    drop(stdin);
    place.assert_clean();
}

#[test]
fn draining_has_a_limit_and_says_who_holds_what() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 100);
    let mut feed = place.feed([&["--drain-timeout", "100ms"], &ARGS[..]].concat());
    let mut consumer = place.consumer("tokens");
    let held = consumer.recv_timeout(common::PATIENCE).unwrap();
    feed.signal("TERM");
    let ended = feed.end();
    ended.assert_code(1).assert_says(&["--drain-timeout", "test consumer", "holds 1"]);
    drop(held);
}

#[test]
fn a_second_signal_ends_it_at_once_and_loses_nothing() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 100);
    let mut feed = place.feed(ARGS);
    let mut consumer = place.consumer("tokens");
    let held = consumer.recv_timeout(common::PATIENCE).unwrap();
    let mut got = vec![common::Got::of(&held)];
    feed.signal("TERM");
    feed.wait_for("stopping");
    feed.signal_until_it_ends("TERM");
    feed.end().assert_code(143);
    drop(held);
    let mut again = place.feed(ARGS);
    got.extend(receive_all(&mut consumer));
    assert_rows(&got, &place.path("tokenizer.json"), &number_lines(100));
    again.end().assert_code(0);
}

#[test]
fn a_signal_after_the_last_line_limits_the_wait_for_consumers() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 8);
    let mut feed = place.feed([&["--drain-timeout", "50ms"], &ARGS[..]].concat());
    let mut consumer = place.consumer("tokens");
    let held = consumer.recv_timeout(common::PATIENCE).unwrap();
    feed.wait_for("everything is published");
    feed.signal("INT");
    feed.end().assert_code(1).assert_says(&["stopping", "--drain-timeout"]);
    drop(held);
}

#[test]
fn a_signal_after_the_last_line_without_consumers_keeps_everything_for_the_next_feed() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 8);
    let mut feed = place.feed(ARGS);
    feed.wait_for("everything is published");
    feed.signal("TERM");
    feed.end().assert_code(0).assert_says(&["stays", "2 messages not received"]);
    let mut again = place.feed(ARGS);
    let got = receive_all(&mut place.consumer("tokens"));
    assert_rows(&got, &place.path("tokenizer.json"), &number_lines(8));
    again.end().assert_code(0);
    place.assert_clean();
}
