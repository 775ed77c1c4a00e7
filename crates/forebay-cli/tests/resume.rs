//! A feed that is killed or stopped, and started again: no line twice, none left out.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Got, Place, Running, assert_rows, number_lines, receive, receive_all, watchdog};
use forebay::Consumer;

const ARGS: [&str; 5] = ["--batch", "4", "--slots", "4", "a.txt"];

/// Receives this many messages; the feed then waits for a slot.
fn receive_some(consumer: &mut Consumer, messages: usize) -> Vec<Got> {
    (0..messages).map(|_| receive(consumer)).collect()
}

fn assert_everything(place: &Place, got: &[Got], lines: usize) {
    assert_rows(got, &place.path("tokenizer.json"), &number_lines(lines));
    let sequences: Vec<u64> = got.iter().map(|got| got.sequence).collect();
    assert_eq!(sequences, (1..=got.len() as u64).collect::<Vec<_>>());
}

#[test]
fn a_killed_feed_goes_on_after_the_last_published_line_with_its_consumer_attached() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 200);
    let feed = place.feed(ARGS);
    let mut consumer = place.consumer("tokens");
    let mut got = receive_some(&mut consumer, 10);
    assert_eq!(common::signal_of(&feed.kill()), Some(9));
    let mut again = place.feed(ARGS);
    let going_on = again.wait_for("going on after line");
    got.extend(receive_all(&mut consumer));
    assert_everything(&place, &got, 200);
    assert_eq!(got.len(), 50);
    again.end().assert_code(0);
    assert!(going_on.contains("a.txt"), "{going_on}");
    place.assert_clean();
}

#[test]
fn a_feed_that_is_killed_again_and_again_still_delivers_every_line_once() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 400);
    let mut feed = place.feed(ARGS);
    let mut consumer = place.consumer("tokens");
    let mut got = Vec::new();
    for round in 1..6 {
        got.extend(receive_some(&mut consumer, 3 + round));
        feed.kill();
        feed = place.feed(ARGS);
    }
    got.extend(receive_all(&mut consumer));
    assert_everything(&place, &got, 400);
    feed.end().assert_code(0);
}

#[test]
fn a_feed_killed_before_anybody_came_keeps_what_it_published() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 40);
    let feed = place.feed(ARGS);
    place.wait_until_published(4);
    feed.kill();
    let mut again = place.feed(ARGS);
    again.wait_for("4 messages of the earlier feed not received yet");
    let got = receive_all(&mut place.consumer("tokens"));
    assert_everything(&place, &got, 40);
    again.end().assert_code(0);
}

#[test]
fn a_stopped_feed_keeps_its_place_and_goes_on_there() {
    let (place, _dog) = (Place::new(), watchdog());
    // More than is read while the signal is on its way.
    place.numbers("a.txt", 20_000);
    let mut feed = place.feed(ARGS);
    let mut consumer = place.consumer("tokens");
    let mut got = receive_some(&mut consumer, 5);
    feed.signal("TERM");
    got.extend(receive_all(&mut consumer));
    feed.end().assert_code(0).assert_says(&["stays", "--fresh"]);
    assert!(got.len() < 5000, "it was to be stopped in the middle");
    drop(consumer);

    let mut again = place.feed(ARGS);
    got.extend(receive_all(&mut place.consumer("tokens")));
    assert_everything(&place, &got, 20_000);
    again.end().assert_code(0);
    place.assert_clean();
}

#[test]
fn fresh_starts_with_the_first_line() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 20);
    let feed = place.feed(ARGS);
    place.wait_until_published(4);
    feed.kill();
    let mut again = place.feed([&["--fresh"], &ARGS[..]].concat());
    let got = receive_all(&mut place.consumer("tokens"));
    assert_everything(&place, &got, 20);
    again.end().assert_code(0);
}

#[test]
fn a_feed_of_other_files_is_refused_and_spoils_nothing() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 100);
    place.numbers("b.txt", 100);
    let feed = place.feed(ARGS);
    let mut consumer = place.consumer("tokens");
    let mut got = receive_some(&mut consumer, 3);
    feed.kill();
    let refused = place.feed(["--batch", "4", "--slots", "4", "b.txt"]).end();
    refused.assert_code(64).assert_says(&["cannot go on from", "--fresh"]);
    let refused = place.feed(["--batch", "5", "--slots", "4", "a.txt"]).end();
    refused.assert_code(64).assert_says(&["expected", "--fresh"]);

    let mut again = place.feed(ARGS);
    got.extend(receive_all(&mut consumer));
    assert_everything(&place, &got, 100);
    again.end().assert_code(0);
}

#[test]
fn a_file_that_changed_meanwhile_is_refused() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 100);
    let feed = place.feed(ARGS);
    place.wait_until_published(4);
    feed.kill();
    place.write("a.txt", "5\n".repeat(100));
    place.feed(ARGS).end().assert_code(64).assert_says(&["cannot resume in", "--fresh"]);
}

#[test]
fn a_finished_feed_starts_again_with_the_first_line() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 20);
    for _ in 0..2 {
        let mut feed: Running = place.feed(ARGS);
        let got = receive_all(&mut place.consumer("tokens"));
        assert_everything(&place, &got, 20);
        feed.end().assert_code(0);
        place.assert_clean();
    }
}

#[test]
fn a_report_names_every_item_that_was_left_out_and_a_feed_that_goes_on_appends_to_it() {
    let (place, _dog) = (Place::new(), watchdog());
    let lines: String = (0..300).map(|i| if i % 2 == 0 { format!("{i}\n") } else { "missing\n".to_owned() }).collect();
    place.write("a.txt", lines);
    let args = [&["--on-error", "skip", "--report", "left-out", "--json"], &ARGS[..]].concat();
    let feed = place.feed(&args);
    let mut consumer = place.consumer("tokens");
    let mut rows: Vec<_> = receive_some(&mut consumer, 10).into_iter().flat_map(|got| got.rows).collect();
    feed.kill();
    let mut again = place.feed(&args);
    rows.extend(receive_all(&mut consumer).into_iter().flat_map(|got| got.rows));
    assert_eq!(rows, (0..300).step_by(2).map(|i| vec![i]).collect::<Vec<_>>());
    let ended = again.end();
    assert!(ended.assert_code(0).err.matches("skipped a.txt line").count() <= 20);

    let report = std::fs::read_to_string(place.path("left-out")).unwrap();
    let mut items = std::collections::BTreeSet::new();
    for line in report.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["input"].as_str(), Some("a.txt"));
        assert_eq!(line["kind"].as_str(), Some("refused by the tokenizer"));
        assert!(line["reason"].is_string());
        items.insert(line["item"].as_u64().unwrap());
    }
    let expected: std::collections::BTreeSet<u64> = (2..=300).step_by(2).collect();
    assert_eq!(items, expected, "every line that is none, though a kill may tell some twice");

    let path = "no/such/folder";
    place.feed(["--report", path, "--fresh", "a.txt"]).end().assert_code(64).assert_says(&["--report no/such/folder"]);
    place.assert_clean();
}
