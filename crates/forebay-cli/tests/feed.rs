//! `forebay feed`, received by a Rust consumer: every line exactly once, with the ids that forebay-ingest gives.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;

use common::{Place, assert_rows, data, number_lines, numbers_json, receive, receive_all, watchdog};

#[test]
fn a_queue_delivers_every_line_once_and_in_order_and_leaves_nothing() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 1000);
    let mut feed = place.feed(["--batch", "7", "--slots", "4", "--json", "a.txt"]);
    let got = receive_all(&mut place.consumer("tokens"));
    assert_rows(&got, &place.path("tokenizer.json"), &number_lines(1000));
    assert_eq!(got.len(), 143);
    let ended = feed.end();
    let summary = ended.assert_code(0).json();
    assert_eq!(summary["messages"], 143);
    assert_eq!(summary["rows"], 1000);
    assert_eq!(summary["tokens"], got.iter().flat_map(|got| &got.rows).map(Vec::len).sum::<usize>());
    assert_eq!((&summary["dropped"], &summary["dead_letters"]), (&0.into(), &0.into()));
    assert_eq!((&summary["complete"], &summary["outstanding"]), (&true.into(), &0.into()));
    place.assert_clean();
}

#[test]
fn the_bundled_corpus_and_tokenizer_give_the_ids_of_forebay_ingest() {
    let (place, _dog) = (Place::new(), watchdog());
    let text = fs::read_to_string(data("kjv.txt")).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).take(200).collect();
    place.write("a.txt", lines.join("\n"));
    let tokenizer = data("tokenizer.json");
    let mut command = place.command("feed");
    command.arg("--tokenizer").arg(&tokenizer).args(["--ring", "kjv", "a.txt"]);
    let mut feed = common::Running::start(command);
    let got = receive_all(&mut place.consumer("kjv"));
    assert_rows(&got, &tokenizer, &lines);
    feed.end().assert_code(0);
}

#[test]
fn several_files_and_json_lines_are_one_run() {
    let (place, _dog) = (Place::new(), watchdog());
    place.write("a.jsonl", "{\"meta\": {\"text\": \"1 2 3\"}}\n\n{\"meta\": {\"text\": \"4\"}}\n");
    place.write("b.jsonl", "{\"meta\": {\"text\": \"5 6\"}, \"x\": 1}");
    let mut feed = place.feed(["--field", "meta.text", "--batch", "2", "a.jsonl", "b.jsonl"]);
    let got = receive_all(&mut place.consumer("tokens"));
    assert_rows(&got, &place.path("tokenizer.json"), &["1 2 3", "4", "5 6"]);
    let ended = feed.end();
    assert!(ended.assert_code(0).out.contains("1 blank"), "{}", ended.out);
}

#[test]
fn standard_input_is_read_as_it_comes() {
    let (place, _dog) = (Place::new(), watchdog());
    let mut feed = place.feed(["--batch", "2", "-"]);
    let mut stdin = feed.stdin();
    let mut consumer = place.consumer("tokens");
    std::io::Write::write_all(&mut stdin, b"1 2\n3\n").unwrap();
    assert_eq!(receive(&mut consumer).rows, [vec![1, 2], vec![3]]);
    std::io::Write::write_all(&mut stdin, b"4").unwrap();
    drop(stdin);
    assert_eq!(receive(&mut consumer).rows, [vec![4]]);
    assert!(receive_all(&mut consumer).is_empty());
    feed.end().assert_code(0);
}

#[test]
fn repeat_reads_the_files_again() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 10);
    let mut feed = place.feed(["--repeat", "3", "--batch", "4", "a.txt"]);
    let got = receive_all(&mut place.consumer("tokens"));
    let lines: Vec<String> = number_lines(10).into_iter().cycle().take(30).collect();
    assert_rows(&got, &place.path("tokenizer.json"), &lines);
    feed.end().assert_code(0);
}

#[test]
fn a_sealed_ring_delivers_the_same() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 100);
    let mut feed = place.feed(["--backing", "memfd", "--batch", "8", "--slots", "3", "a.txt"]);
    let got = receive_all(&mut place.consumer("tokens"));
    assert_rows(&got, &place.path("tokenizer.json"), &number_lines(100));
    feed.end().assert_code(0);
    place.assert_clean();
}

#[test]
fn a_broadcast_waits_for_its_consumers_and_each_gets_every_line() {
    for backing in ["posix", "memfd"] {
        let (place, _dog) = (Place::new(), watchdog());
        place.numbers("a.txt", 100);
        let args =
            ["--kind", "broadcast", "--wait-for", "2", "--backing", backing, "--batch", "8", "--slots", "3", "a.txt"];
        let mut feed = place.feed(args);
        feed.wait_for("waiting for 2 consumers");
        let received: Vec<_> = std::thread::scope(|scope| {
            let receive = || receive_all(&mut place.consumer("tokens"));
            let threads = [scope.spawn(receive), scope.spawn(receive)];
            threads.map(|thread| thread.join().unwrap()).into()
        });
        for got in received {
            assert_rows(&got, &place.path("tokenizer.json"), &number_lines(100));
        }
        feed.end().assert_code(0);
        place.assert_clean();
    }
}

#[test]
fn slots_are_as_large_as_the_longest_row_needs() {
    let (place, _dog) = (Place::new(), watchdog());
    place.write("tokenizer.json", numbers_json(Some(20)));
    place.numbers("a.txt", 5);
    let mut feed = place.feed(["--batch", "3", "a.txt"]);
    let mut consumer = place.consumer("tokens");
    // Two tensors of 3 × 20 int64, each rounded up to 64 bytes.
    assert_eq!(consumer.geometry().classes[0].slot_bytes, 2 * 512);
    let schema = consumer.schema().unwrap().to_string();
    assert_eq!(schema, "tokens 1.0 { input_ids: int64[3, 20], attention_mask: int64[3, 20] }");
    assert_eq!(receive_all(&mut consumer).len(), 2);
    feed.end().assert_code(0);
}

#[test]
fn progress_without_a_terminal_is_shown_only_if_asked_for() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 10);
    let mut feed = place.feed(["a.txt"]);
    receive_all(&mut place.consumer("tokens"));
    assert!(!feed.end().assert_code(0).err.contains("tokens/s"));

    let mut feed = place.feed(["--progress", "--repeat", "forever", "a.txt"]);
    let mut consumer = place.consumer("tokens");
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive_all(&mut consumer));
        feed.wait_for("tokens/s");
        feed.signal("TERM");
        assert!(!receiver.join().unwrap().is_empty());
    });
    feed.end().assert_code(0);
}

#[test]
fn a_message_that_is_received_and_still_read_does_not_keep_the_feed() {
    for kind in ["queue", "broadcast"] {
        let (place, _dog) = (Place::new(), watchdog());
        place.numbers("a.txt", 8);
        let mut feed = place.feed(["--kind", kind, "--batch", "4", "a.txt"]);
        let mut consumer = place.manual_consumer("tokens");
        let held: Vec<_> = (0..2).map(|_| consumer.recv_timeout(common::PATIENCE).unwrap()).collect();
        for message in &held {
            message.ack();
        }
        feed.end().assert_code(0);
        place.assert_clean();
        assert_eq!(common::Got::of(&held[1]).rows.len(), 4);
    }
}

#[test]
fn widths_are_rounded_up_and_slots_have_room_for_that() {
    let (place, _dog) = (Place::new(), watchdog());
    place.numbers("a.txt", 10);
    let mut feed = place.feed(["--batch", "4", "--max-length", "5", "--pad-to-multiple", "8", "a.txt"]);
    let mut consumer = place.consumer("tokens");
    let schema = consumer.schema().unwrap().to_string();
    assert!(schema.contains("input_ids: int64[4, 8]"), "{schema}");
    for rows in [4, 4, 2] {
        let message = consumer.recv_timeout(common::PATIENCE).unwrap();
        assert_eq!(message.tensor("input_ids").unwrap().shape(), [rows, 8]);
    }
    assert!(receive_all(&mut consumer).is_empty());
    feed.end().assert_code(0);

    place.feed(["--pad-to-multiple", "0", "a.txt"]).end().assert_code(64).assert_says(&["multiple"]);
}
