//! `--position FILE`: a feed whose ring is gone goes on from the file, and a ring that is there knows better.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{fs, thread, time::Instant};

use common::{Got, PATIENCE, Place, number_line, receive, receive_all, watchdog};
use forebay::inspect;

const ARGS: [&str; 7] = ["--batch", "4", "--slots", "4", "--position", "place", "a.txt"];

/// Items before the place that the file says, 0 if there is none.
fn kept(place: &Place) -> u64 {
    let text = fs::read(place.path("place")).unwrap_or_default();
    serde_json::from_slice::<serde_json::Value>(&text).map_or(0, |kept| kept["items"].as_u64().unwrap())
}

/// Waits until the file has a place behind so many items.
fn wait_until_kept(place: &Place, items: u64) {
    let deadline = Instant::now() + PATIENCE;
    while kept(place) < items {
        assert!(Instant::now() < deadline, "{} items are kept", kept(place));
        thread::yield_now();
    }
}

/// The messages hold the lines of `a.txt` from `first` on, each once and in order; how many.
#[track_caller]
fn assert_lines(got: &[Got], first: u64) -> u64 {
    let mut at = first;
    for message in got {
        assert_eq!(message.first_item, at);
        for row in &message.rows {
            let expected: Vec<u32> = number_line(at as usize).split(' ').map(|word| word.parse().unwrap()).collect();
            assert_eq!(*row, expected, "row {at}");
            at += 1;
        }
    }
    at - first
}

#[test]
fn a_feed_that_lost_its_ring_goes_on_from_the_file() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 400);
    let feed = place.feed(ARGS);
    let mut consumer = place.consumer("tokens");
    let got: Vec<Got> = (0..20).map(|_| receive(&mut consumer)).collect();
    assert_eq!(assert_lines(&got, 0), 80);
    // It waits for a slot by now, or soon, and keeps its place all the same.
    wait_until_kept(&place, 80);
    assert_eq!(common::signal_of(&feed.kill()), Some(9));
    drop(consumer);
    assert!(!inspect::clean(Some(&place.dir())).unwrap().removed.is_empty());
    place.assert_clean();

    let first = kept(&place);
    assert!((80..=96).contains(&first), "{first} items: 20 messages received and at most 4 in the ring");
    let mut again = place.feed(ARGS);
    let going_on = again.wait_for(&format!("going on after line {first} of"));
    assert!(going_on.ends_with(&format!("({first} rows done before), as place says")), "{going_on}");
    let rest = receive_all(&mut place.consumer("tokens"));
    assert_eq!(assert_lines(&rest, first), 400 - first);
    again.end().assert_code(0);
    assert!(!place.path("place").exists(), "all is done: the next feed starts with the first item");
    assert!(!place.path("place.tmp").exists());
    place.assert_clean();
}

#[test]
fn a_sealed_ring_that_was_stopped_loses_and_repeats_nothing() {
    let (place, _dog) = (Place::new(), watchdog());
    // More than is read while the signal is on its way.
    place.numbers("a.txt", 20_000);
    let args = [&["--backing", "memfd"], &ARGS[..]].concat();
    let mut feed = place.feed(&args);
    let mut consumer = place.consumer("tokens");
    let mut got = vec![receive(&mut consumer)];
    feed.signal("TERM");
    got.extend(receive_all(&mut consumer));
    feed.end().assert_code(0).assert_says(&["the place in the input is in place"]);
    let first = assert_lines(&got, 0);
    assert!(first < 20_000, "it was to be stopped in the middle");
    assert_eq!(kept(&place), first);
    drop(consumer);

    let mut again = place.feed(&args);
    let rest = receive_all(&mut place.consumer("tokens"));
    assert_eq!(assert_lines(&rest, first), 20_000 - first);
    again.end().assert_code(0);
    place.assert_clean();
}

#[test]
fn a_ring_that_is_there_knows_better_than_the_file() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 400);
    let feed = place.feed(ARGS);
    let mut consumer = place.consumer("tokens");
    let mut got = vec![receive(&mut consumer)];
    wait_until_kept(&place, 4);
    let old = fs::read(place.path("place")).unwrap();
    got.extend((0..20).map(|_| receive(&mut consumer)));
    feed.kill();
    fs::write(place.path("place"), old).unwrap();
    let mut again = place.feed(ARGS);
    again.wait_for("of the earlier feed not received yet");
    got.extend(receive_all(&mut consumer));
    assert_eq!(assert_lines(&got, 0), 400);
    again.end().assert_code(0);
}

#[test]
fn a_file_of_another_feed_is_refused_and_fresh_starts_over() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 100);
    place.numbers("b.txt", 100);
    let feed = place.feed(ARGS);
    wait_until_kept(&place, 4);
    feed.kill();
    inspect::clean(Some(&place.dir())).unwrap();
    let before = fs::read(place.path("place")).unwrap();
    for (args, says) in [
        (["--batch", "4", "--position", "place", "b.txt"], "inputs"),
        (["--batch", "5", "--position", "place", "a.txt"], "int64[5, any]"),
    ] {
        place.feed(args).end().assert_code(64).assert_says(&["--position place", "--fresh", says]);
    }
    assert_eq!(fs::read(place.path("place")).unwrap(), before);
    place.assert_clean();

    let mut again = place.feed([&["--fresh"], &ARGS[..]].concat());
    let got = receive_all(&mut place.consumer("tokens"));
    assert_eq!(assert_lines(&got, 0), 100);
    again.end().assert_code(0);
}

#[test]
fn a_file_that_cannot_be_written_is_told_before_there_is_a_message() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 4);
    let mut feed = place.feed(["--position", "no/such/folder", "a.txt"]);
    feed.end().assert_code(1).assert_says(&["cannot write --position no/such/folder"]);
    place.assert_clean();
}
