//! What cannot work says what happened, what was found and what to do; and nothing is lost.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;

use common::{Place, Running, assert_rows, finish, number_lines, receive, receive_all, watchdog};
use forebay::RecvError;

/// Runs a feed that must fail before it makes a ring.
fn refused(place: &Place, args: &[&str], says: &[&str]) {
    let mut command = place.command("feed");
    command.args(args);
    finish(command).assert_code(64).assert_says(says);
    assert!(!place.dir().exists() || fs::read_dir(place.dir()).unwrap().next().is_none());
}

#[test]
fn a_command_line_that_cannot_be_used_exits_with_64() {
    let place = Place::new();
    place.numbers("a.txt", 1);
    let tokenizer = ["--tokenizer", "tokenizer.json", "a.txt"];
    let with = |args: &[&'static str]| [args, &tokenizer[..]].concat();
    refused(&place, &with(&["--kind", "pipe"]), &["--kind", "queue, broadcast"]);
    refused(&place, &with(&["--slot-bytes", "1 furlong"]), &["--slot-bytes", "64KiB"]);
    refused(&place, &with(&["--repeat", "0"]), &["repeat", "forever"]);
    refused(&place, &with(&["--batch", "0"]), &["--batch", "1..=1048576"]);
    refused(&place, &with(&["--max-line-bytes", "0"]), &["max_line_bytes"]);
    refused(&place, &with(&["--max-length", "0"]), &["max_length"]);
    refused(&place, &with(&["--no-such-flag"]), &["--no-such-flag"]);
    refused(&place, &with(&["--ring", "Not A Ring"]), &["Not A Ring", "[a-z0-9]"]);
    refused(&place, &with(&["--max-consumers", "33"]), &["max_consumers", "33"]);
    refused(&place, &with(&["--wait-for", "9"]), &["--wait-for 9", "--max-consumers"]);
    refused(&place, &with(&["--max-length", "10", "--slot-bytes", "64"]), &["5120 bytes", "slot_bytes"]);
    refused(&place, &["a.txt"], &["--tokenizer"]);
    let help = finish(place.command("--help"));
    assert!(help.assert_code(0).out.contains("Exit codes"), "{}", help.out);
}

#[test]
fn a_tokenizer_that_is_missing_or_is_none_is_told_from_each_other() {
    let place = Place::new();
    place.numbers("a.txt", 1);
    place.write("garbage.json", [0x1f, 0x8b, 8, 0, 0xff]);
    place.write("other.json", "{\"model\": 7}");
    refused(&place, &["--tokenizer", "missing.json", "a.txt"], &["missing.json"]);
    refused(&place, &["--tokenizer", "garbage.json", "a.txt"], &["garbage.json", "not a tokenizer"]);
    refused(&place, &["--tokenizer", "other.json", "a.txt"], &["other.json", "not a tokenizer"]);
    refused(&place, &["--tokenizer", "tokenizer.json", "missing.txt"], &["missing.txt"]);
    refused(&place, &["--tokenizer", "tokenizer.json", "."], &["it is a folder"]);
}

#[test]
fn a_ring_of_a_living_producer_is_refused_by_name() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 40);
    let mut first = place.feed(["--batch", "4", "--label", "the first one", "a.txt"]);
    let mut consumer = place.consumer("tokens");
    let mut got = vec![receive(&mut consumer)];
    let second = place.feed(["a.txt"]).end();
    second.assert_code(1).assert_says(&["living producer", &first.pid().to_string(), "the first one"]);
    got.extend(receive_all(&mut consumer));
    assert_rows(&got, &place.path("tokenizer.json"), &number_lines(40));
    first.end().assert_code(0);
}

const MIXED: &[u8] = b"1\n2\n\xff\xfe\n3\n\n4\n";

#[test]
fn a_line_that_is_not_utf_8_ends_the_feed_after_what_was_before_it() {
    let (place, _dog) = (Place::new(), watchdog());
    place.write("a.txt", MIXED);
    let mut feed = place.feed(["--batch", "8", "a.txt"]);
    let mut consumer = place.consumer("tokens");
    let got = receive_all(&mut consumer);
    let ended = feed.end();
    ended.assert_code(1).assert_says(&["a.txt line 3", "not UTF-8", "--on-error skip"]);
    assert_rows(&got, &place.path("tokenizer.json"), &["1", "2"]);
    drop(consumer);

    // Repaired, it goes on there.
    place.write("a.txt", b"1\n2\n9\n3\n\n4\n");
    let mut feed = place.feed(["--batch", "8", "a.txt"]);
    let mut all = got;
    all.extend(receive_all(&mut place.consumer("tokens")));
    assert_rows(&all, &place.path("tokenizer.json"), &["1", "2", "9", "3", "4"]);
    feed.end().assert_code(0);
}

#[test]
fn lines_that_are_none_are_skipped_and_counted_if_asked() {
    let (place, _dog) = (Place::new(), watchdog());
    place.write("a.txt", MIXED);
    let mut feed = place.feed(["--on-error", "skip", "--json", "a.txt"]);
    let got = receive_all(&mut place.consumer("tokens"));
    assert_rows(&got, &place.path("tokenizer.json"), &["1", "2", "3", "4"]);
    let ended = feed.end();
    ended.assert_code(0).assert_says(&["skipped a.txt line 3", "not UTF-8"]);
    let summary = ended.json();
    assert_eq!(summary["skipped"]["not UTF-8"], 1);
    assert_eq!((&summary["skipped_lines"], &summary["blank_lines"]), (&1.into(), &1.into()));
}

#[test]
fn an_empty_file_and_one_of_blank_lines_feed_nothing() {
    let (place, _dog) = (Place::new(), watchdog());
    place.write("a.txt", "");
    place.feed(["a.txt"]).end().assert_code(0).assert_says(&["no line"]);
    place.assert_clean();
    place.write("a.txt", "\n".repeat(1_000_000));
    let ended = place.feed(["--json", "a.txt"]).end();
    ended.assert_code(0).assert_says(&["no line"]);
    assert_eq!(ended.json()["blank_lines"], 1_000_000);
    place.assert_clean();
}

#[test]
fn a_line_of_many_megabytes_is_an_error_of_that_line_alone() {
    let (place, _dog) = (Place::new(), watchdog());
    let long = "8 ".repeat(10 << 20);
    place.write("a.txt", format!("1\n{long}\n2\n"));
    let mut feed = place.feed(["--on-error", "skip", "a.txt"]);
    let got = receive_all(&mut place.consumer("tokens"));
    assert_rows(&got, &place.path("tokenizer.json"), &["1", "2"]);
    let ended = feed.end();
    ended.assert_code(0).assert_says(&["line 2", "20971520 bytes", "1048576"]);
    assert!(ended.out.contains("1 too long"), "{}", ended.out);
}

#[test]
fn a_row_that_no_slot_can_take_is_named() {
    let (place, _dog) = (Place::new(), watchdog());
    let long = "8 ".repeat(1000);
    place.write("a.txt", format!("1\n2\n{long}\n"));
    let mut feed = place.feed(["--batch", "2", "--slot-bytes", "4KiB", "a.txt"]);
    feed.wait_for("up to 128 tokens");
    let got = receive_all(&mut place.consumer("tokens"));
    assert_rows(&got, &place.path("tokenizer.json"), &["1", "2"]);
    feed.end().assert_code(1).assert_says(&["1000 tokens", "a.txt line 3", "--max-length", "4096"]);
}

#[test]
fn a_consumer_that_never_releases_is_named_when_the_wait_is_over() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 100);
    let mut feed =
        place.feed(["--batch", "4", "--slots", "2", "--full-timeout", "200ms", "--drain-timeout", "0", "a.txt"]);
    let mut consumer = place.consumer("tokens");
    let held = consumer.recv_timeout(common::PATIENCE).unwrap();
    let ended = feed.end();
    ended.assert_code(1).assert_says(&["no free slot", "test consumer", "holds 1", &std::process::id().to_string()]);
    drop(held);
}

#[test]
fn when_full_fail_ends_at_the_first_full_ring() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 100);
    let ended = place.feed(["--batch", "4", "--slots", "2", "--when-full", "fail", "a.txt"]).end();
    ended.assert_code(1).assert_says(&["no free slot", "of 2, 2 wait"]);
}

#[test]
fn drop_oldest_counts_what_it_drops() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 100);
    let mut feed = place.feed(["--batch", "4", "--slots", "2", "--when-full", "drop-oldest", "--json", "a.txt"]);
    feed.wait_for("everything is published");
    let got = receive_all(&mut place.consumer("tokens"));
    assert_eq!(got.iter().map(|got| got.sequence).collect::<Vec<_>>(), [24, 25]);
    assert_eq!(feed.end().assert_code(0).json()["dropped"], 23);
}

#[test]
fn a_message_that_nobody_acks_is_reported_with_its_lines() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 40);
    let mut feed = place.feed(["--batch", "4", "--slots", "2", "--max-attempts", "2", "a.txt"]);
    let mut consumer = place.manual_consumer("tokens");
    let mut acked = Vec::new();
    loop {
        match consumer.recv_timeout(common::PATIENCE) {
            // The message of lines 9 to 12, whenever it comes, is given back.
            Ok(message) if message.correlation_id() == 8 => drop(message),
            Ok(message) => {
                acked.push(message.correlation_id());
                assert!(message.ack());
            }
            Err(RecvError::Closed { .. }) => break,
            Err(e) => panic!("{e}"),
        }
    }
    acked.sort_unstable();
    assert_eq!(acked, [0, 4, 12, 16, 20, 24, 28, 32, 36]);
    let ended = feed.end();
    ended
        .assert_code(1)
        .assert_says(&["dead letter: message 3 (4 rows, lines 9 to 12 of a.txt) was delivered 2 times"]);
    assert_eq!(ended.err.matches("dead letter:").count(), 1, "{}", ended.err);
    place.assert_clean();
}

#[test]
fn a_ring_that_does_not_fit_says_what_there_is_and_the_ways_out() {
    let place = Place::new();
    place.numbers("a.txt", 1);
    let mut command = place.command("feed");
    command.args(["--tokenizer", "tokenizer.json", "--slot-bytes", "4096GiB", "a.txt"]);
    let ended = Running::start(command).end();
    ended.assert_code(1).assert_says(&["needs", "free", "backing memfd", "forebay doctor"]);
    place.assert_clean();
}
