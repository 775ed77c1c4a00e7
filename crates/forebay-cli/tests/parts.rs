//! A batch that no slot has room for: halved with `--on-error skip`, in order, and resumable in its middle.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{fs, thread, time::Instant};

use common::{Got, PATIENCE, Place, receive, receive_all, watchdog};
use forebay::inspect;
use forebay_ingest::{Input, Position, Source, SourceOptions};

/// Room for 32 tokens of a batch of eight, and for 256 of a single row.
const ARGS: [&str; 8] = ["--batch", "8", "--slots", "2", "--slot-bytes", "4KiB", "--on-error", "skip"];

/// Tokens of a line: some batches have one that makes them too wide, and some one that fits no slot at all.
fn tokens(line: usize) -> usize {
    match line {
        5 | 20 | 23 => 100,
        12 | 31 => 300,
        _ => 1 + line % 4,
    }
}

fn write(place: &Place, lines: usize) {
    let line = |n: usize| vec![(n % 1000).to_string(); tokens(n)].join(" ") + "\n";
    place.write("a.txt", (0..lines).map(line).collect::<String>());
}

/// The messages hold these lines but those that fit no slot, each once and in order.
#[track_caller]
fn assert_lines(got: &[Got], lines: usize) {
    let mut expected = (0..lines).filter(|&line| tokens(line) <= 256);
    for message in got {
        let rows = message.rows.iter().zip(message.first_item..);
        for (row, item) in rows {
            let line = expected.next().unwrap();
            assert_eq!(item, line as u64, "a row is called by its number, whatever was left out before it");
            assert_eq!(*row, vec![line as u32 % 1000; tokens(line)]);
        }
    }
    assert_eq!(expected.next(), None, "lines are missing");
}

#[test]
fn a_batch_with_a_long_line_becomes_messages_that_fit_and_a_line_that_never_fits_is_told() {
    let (place, _dog) = (Place::new(), watchdog());
    write(&place, 40);
    let mut feed = place.feed([&ARGS[..], &["--json", "--report", "left-out", "a.txt"]].concat());
    let got = receive_all(&mut place.consumer("tokens"));
    assert_lines(&got, 40);
    assert_eq!(got[0].rows.len(), 4, "half of the first batch, whose other half has the long line");
    let ended = feed.end();
    ended.assert_code(0).assert_says(&["a.txt line 13: a message of", "a.txt line 32: a message of", "--slot-bytes"]);
    let summary = ended.json();
    assert_eq!(summary["skipped"]["too large for a slot"], 2);
    assert_eq!((&summary["skipped_lines"], &summary["rows"]), (&2.into(), &38.into()));
    let report = fs::read_to_string(place.path("left-out")).unwrap();
    let report: Vec<serde_json::Value> = report.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let items: Vec<_> = report
        .iter()
        .map(|line| (line["input"].as_str().unwrap(), line["item"].as_u64().unwrap(), line["kind"].as_str().unwrap()))
        .collect();
    assert_eq!(items, [("a.txt", 13, "too large for a slot"), ("a.txt", 32, "too large for a slot")]);
    assert_eq!(summary["tokens"], got.iter().flat_map(|got| &got.rows).map(Vec::len).sum::<usize>());
    place.assert_clean();
}

#[test]
fn a_batch_too_large_for_a_slot_still_ends_a_feed_that_is_to_fail() {
    let (place, _dog) = (Place::new(), watchdog());
    write(&place, 40);
    let mut feed = place.feed(["--batch", "8", "--slot-bytes", "4KiB", "a.txt"]);
    feed.end().assert_code(1).assert_says(&["100 tokens", "a.txt line 6", "--max-length"]);
    place.assert_clean();
}

#[test]
fn a_feed_killed_between_the_parts_of_a_batch_repeats_and_loses_nothing() {
    for more in [&[][..], &["--shuffle", "3", "--shuffle-block", "12"], &["--ordered", "false", "--workers", "3"]] {
        let (place, _dog) = (Place::new(), watchdog());
        write(&place, 64);
        let args = [&ARGS[..], more, &["a.txt"]].concat();
        let mut feed = place.feed(&args);
        let mut consumer = place.consumer("tokens");
        let mut got = Vec::new();
        // At most two messages are out beyond what was received: every place of the first batches is one of a kill.
        for _ in 0..10 {
            got.push(receive(&mut consumer));
            feed.kill();
            feed = place.feed(&args);
        }
        got.extend(receive_all(&mut consumer));
        feed.end().assert_code(0);
        if more.is_empty() {
            assert_lines(&got, 64);
        }
        let mut lines: Vec<u32> = got.iter().flat_map(|got| &got.rows).map(|row| row[0]).collect();
        lines.sort_unstable();
        if more.contains(&"--ordered") {
            // Of two batches that are cut at a time only one is remembered.
            lines.dedup();
        }
        let expected: Vec<u32> = (0..64u32).filter(|&line| tokens(line as usize) <= 256).collect();
        assert_eq!(lines, expected, "{more:?}");
        place.assert_clean();
    }
}

#[test]
fn a_place_in_a_file_may_be_within_a_batch() {
    let (place, _dog) = (Place::new(), watchdog());
    write(&place, 40);
    let args = [&ARGS[..], &["--backing", "memfd", "--position", "place", "a.txt"]].concat();
    let mut feed = place.feed(&args);
    let mut consumer = place.consumer("tokens");
    // Half of the first batch is held, the next quarter fills the other slot, and the rest waits for one.
    let held = consumer.recv_timeout(PATIENCE).unwrap();
    let mut got = vec![Got::of(&held)];
    let kept = || serde_json::from_slice::<serde_json::Value>(&fs::read(place.path("place")).unwrap()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while kept()["rows_of_next_batch"] != 6 {
        assert!(Instant::now() < deadline, "{}", kept());
        thread::yield_now();
    }
    feed.signal("TERM");
    feed.wait_for("stopping");
    drop(held);
    got.extend(receive_all(&mut consumer));
    feed.end().assert_code(0);
    assert_eq!(got.len(), 2, "what waited was not published");
    drop(consumer);
    let mut again = place.feed(&args);
    again.wait_for("and 6 rows of a batch behind it");
    got.extend(receive_all(&mut place.consumer("tokens")));
    again.end().assert_code(0);
    assert_lines(&got, 40);
}

/// What a feed keeps that has published only batches 1 and 2, as [`Checkpoint::encode`](forebay_ingest::Checkpoint::encode)
/// writes it.
fn ahead_of(start: &Position) -> Vec<u8> {
    let mut bytes = start.encode().to_vec();
    bytes.push(0b110);
    let fnv = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.extend(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fnv).to_le_bytes());
    bytes
}

#[test]
fn batches_that_were_published_ahead_stay_so_over_many_kills_and_parts() {
    let (in_order, one_worker) = (&["--ordered", "true"][..], &["--ordered", "false", "--workers", "1"][..]);
    for ways in [[in_order, one_worker], [one_worker, in_order]] {
        let (place, _dog) = (Place::new(), watchdog());
        write(&place, 64);
        let args = [&ARGS[..], &["--position", "place", "a.txt"]].concat();
        // A place of the same feed, for its other entries.
        let feed = place.feed(&args);
        place.wait_until_published(1);
        feed.kill();
        inspect::clean(Some(&place.dir())).unwrap();
        let mut kept: serde_json::Value = serde_json::from_slice(&fs::read(place.path("place")).unwrap()).unwrap();
        let source = Source::open(&[Input::from(place.path("a.txt"))], SourceOptions::default()).unwrap();
        kept["place"] = ahead_of(&source.position()).into();
        place.write("place", kept.to_string());

        let mut ways = ways.into_iter().cycle();
        let mut feed = || place.feed([&args[..], ways.next().unwrap()].concat());
        let mut running = feed();
        running.wait_for("as place says");
        let mut consumer = place.consumer("tokens");
        let mut got = Vec::new();
        for received in 1..=8 {
            got.push(receive(&mut consumer));
            // Both slots are full again, with parts of batch 0, of batch 3, and whole ones.
            place.wait_until_published(received + 2);
            running.kill();
            running = feed();
        }
        got.extend(receive_all(&mut consumer));
        running.end().assert_code(0);
        let mut lines: Vec<u32> = got.iter().flat_map(|got| &got.rows).map(|row| row[0]).collect();
        lines.sort_unstable();
        let expected = (0..64).filter(|line| !(8..24).contains(line) && tokens(*line as usize) <= 256);
        assert_eq!(lines, expected.collect::<Vec<u32>>());
        place.assert_clean();
    }
}

#[test]
fn a_part_behind_a_batch_without_rows_is_found_again_whichever_way_the_runs_are_ordered() {
    let (in_order, as_ready) = (&["--ordered", "true"][..], &["--ordered", "false", "--workers", "1"][..]);
    for ways in [[in_order, as_ready, in_order], [as_ready, in_order, as_ready]] {
        let (place, _dog) = (Place::new(), watchdog());
        write(&place, 64);
        let lines = fs::read_to_string(place.path("a.txt")).unwrap();
        // After so much without a line of text a batch is made that has none.
        place.write("a.txt", (" ".repeat(64 << 10) + "\n").repeat(80) + &lines);
        let mut ways = ways.into_iter().cycle();
        let mut feed = || place.feed([&ARGS[..], ways.next().unwrap(), &["a.txt"]].concat());
        let mut running = feed();
        let mut consumer = place.consumer("tokens");
        let mut got = Vec::new();
        for received in 0..6 {
            // Both slots are full: the first time with six rows of the first batch that has any.
            place.wait_until_published(received + 2);
            running.kill();
            running = feed();
            got.push(receive(&mut consumer));
        }
        got.extend(receive_all(&mut consumer));
        running.end().assert_code(0);
        let mut lines: Vec<u32> = got.iter().flat_map(|got| &got.rows).map(|row| row[0]).collect();
        lines.sort_unstable();
        let mut once = lines.clone();
        once.dedup();
        let expected: Vec<u32> = (0..64).filter(|line| tokens(*line as usize) <= 256).collect();
        assert_eq!(once, expected, "none is missing");
        assert_eq!(lines, once, "none came twice");
        place.assert_clean();
    }
}
