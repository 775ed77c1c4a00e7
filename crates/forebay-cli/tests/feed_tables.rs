//! `forebay feed --jsonl`: the tensors are those of the table encoder, each line comes once, bad ones are told.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{PATIENCE, Place, watchdog};
use forebay::{Consumer, RecvError};
use forebay_ingest::{
    Work,
    table::{TableEncoder, TableOptions, TableSchema},
};

const SCHEMA: &str = r#"
    [[tensors]]
    name = "x"
    dtype = "i32"
    columns = [{ type = "numeric", path = "n" }, { type = "one_hot", path = "c", vocabulary = ["a", "b"] }]
    [[tensors]]
    name = "s"
    layout = "sparse"
    columns = [{ type = "hashed", path = "h", input = "string", features = 64, missing = "zeros" }]
"#;
const ARGS: [&str; 8] = ["--jsonl", "--schema", "s.toml", "--batch", "8", "--slots", "3", "a.jsonl"];

fn line(n: usize) -> String {
    let names: Vec<String> = (0..n % 3).map(|k| format!("\"w{}\"", n + k)).collect();
    format!("{{\"n\":{n},\"c\":\"{}\",\"h\":[{}]}}", ["a", "b"][n % 2], names.join(","))
}

fn place(lines: usize) -> Place {
    let place = Place::new();
    place.write("s.toml", SCHEMA);
    place.write("a.jsonl", (0..lines).map(|n| line(n) + "\n").collect::<String>());
    place
}

/// Rows of x, and of s as pairs of column and value.
#[derive(Debug, Default, PartialEq)]
struct Rows {
    x: Vec<[i32; 3]>,
    s: Vec<Vec<(i64, u32)>>,
}

impl Rows {
    fn add(&mut self, x: &[i32], values: &[f32], indices: &[i64], indptr: &[i64]) {
        self.x.extend(x.chunks_exact(3).map(|row| [row[0], row[1], row[2]]));
        self.s.extend(indptr.windows(2).map(|ends| {
            let row = ends[0] as usize..ends[1] as usize;
            indices[row.clone()].iter().copied().zip(values[row].iter().map(|value| value.to_bits())).collect()
        }));
    }

    fn receive(&mut self, consumer: &mut Consumer, most: usize) {
        for _ in 0..most {
            match consumer.recv_timeout(PATIENCE) {
                Ok(message) => self.add(
                    message.as_slice("x").unwrap(),
                    message.as_slice("s.values").unwrap(),
                    message.as_slice("s.indices").unwrap(),
                    message.as_slice("s.indptr").unwrap(),
                ),
                Err(RecvError::Closed { .. }) => break,
                Err(e) => panic!("{e}"),
            }
        }
    }

    fn expected(lines: usize) -> Self {
        Self::of(&(0..lines).map(line).collect::<Vec<_>>())
    }

    fn of(lines: &[String]) -> Self {
        let encoder = TableEncoder::new(&TableSchema::from_toml(SCHEMA).unwrap(), TableOptions::default()).unwrap();
        let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
        let batch = encoder.encode(&lines, &Work::here()).unwrap();
        let entries = batch.sparse_shape(1).unwrap().entries;
        let mut x = vec![0i32; 3 * lines.len()];
        let (mut values, mut indices, mut indptr) =
            (vec![0f32; entries], vec![0i64; entries], vec![0; lines.len() + 1]);
        batch.write_dense(0, &mut x).unwrap();
        batch.write_sparse(1, &mut indptr, &mut indices, &mut values).unwrap();
        let mut rows = Self::default();
        rows.add(&x, &values, &indices, &indptr);
        rows
    }
}

#[test]
fn rows_arrive_as_the_encoder_makes_them() {
    let (place, _dog) = (place(100), watchdog());
    let mut feed = place.feed_other(ARGS);
    let mut consumer = place.consumer("rows");
    let schema = consumer.schema().unwrap().to_string();
    assert!(schema.starts_with("rows 1.0 { x: int32[8, 3], s.indptr: int64[9], s.indices: int64["), "{schema}");
    let mut rows = Rows::default();
    rows.receive(&mut consumer, usize::MAX);
    assert_eq!(rows, Rows::expected(100));
    feed.end().assert_code(0);
    place.assert_clean();
}

#[test]
fn a_feed_killed_again_and_again_delivers_every_line_once_in_any_order() {
    for (ordered, more) in [
        (true, &[][..]),
        (false, &["--ordered", "false", "--workers", "4"]),
        (false, &["--ordered", "false", "--workers", "3", "--shuffle", "4", "--shuffle-block", "32"]),
    ] {
        let (place, _dog) = (place(400), watchdog());
        let args = [&ARGS[..], more].concat();
        let mut feed = place.feed_other(&args);
        let mut consumer = place.consumer("rows");
        let mut rows = Rows::default();
        for round in 0..4 {
            rows.receive(&mut consumer, 3 + round);
            feed.kill();
            feed = place.feed_other(&args);
        }
        rows.receive(&mut consumer, usize::MAX);
        feed.end().assert_code(0);
        let mut expected = Rows::expected(400);
        if !ordered {
            rows.x.sort_unstable();
            expected.x.sort_unstable();
            rows.s.sort_unstable();
            expected.s.sort_unstable();
        }
        assert_eq!(rows, expected, "{more:?}");
        place.assert_clean();
    }
}

#[test]
fn bad_lines_are_told_and_skipped_or_end_the_feed() {
    let (place, _dog) = (place(0), watchdog());
    let good = line(0);
    let bad: [&[u8]; 5] = [b"{\"n\":\"one\"}", b"\xff\xfe", b"{\"n\":1}", b"", b"{"];
    place.write("a.jsonl", [&[good.as_bytes()], &bad[..], &[good.as_bytes()]].concat().join(&b'\n'));
    let mut feed = place.feed_other([&ARGS[..], &["--on-error", "skip", "--json"]].concat());
    let mut rows = Rows::default();
    rows.receive(&mut place.consumer("rows"), usize::MAX);
    assert_eq!(rows.x, [[0, 1, 0]; 2]);
    let ended = feed.end();
    ended.assert_code(0).assert_says(&["a.jsonl line 2: n is a string", "a.jsonl line 3: not UTF-8", "c is missing"]);
    assert_eq!((&ended.json()["skipped_lines"], &ended.json()["blank_lines"]), (&4.into(), &1.into()));

    // The bad line is in the first batch: nothing is published.
    place.feed_other(ARGS).end().assert_code(1).assert_says(&["a.jsonl line 2: n is a string", "--on-error skip"]);
    place.assert_clean();
}

#[test]
fn a_batch_beyond_its_slot_is_told_with_the_way_out() {
    let (place, _dog) = (place(0), watchdog());
    let names: Vec<String> = (0..1000).map(|n| format!("\"{n}\"")).collect();
    place.write("a.jsonl", format!("{{\"n\":1,\"c\":\"a\",\"h\":[{}]}}", names.join(",")));
    let mut feed = place.feed_other([&ARGS[..], &["--slot-bytes", "512"]].concat());
    feed.end().assert_code(1).assert_says(&["--slot-bytes", "depends on the lines"]);
}

#[test]
fn a_batch_beyond_its_slot_is_sent_in_parts_where_lines_may_be_skipped() {
    let (place, _dog) = (place(0), watchdog());
    let wide = |n: usize, names: usize| {
        let names: Vec<String> = (0..names).map(|k| format!("\"w{n}-{k}\"")).collect();
        format!("{{\"n\":{n},\"c\":\"a\",\"h\":[{}]}}", names.join(","))
    };
    let mut lines: Vec<String> = (0..20).map(line).collect();
    // A batch with two of these has no room in 512 bytes; a row of all 64 columns has none by itself.
    for n in [2, 6] {
        lines[n] = wide(n, 12);
    }
    lines[9] = wide(9, 1000);
    place.write("a.jsonl", lines.join("\n"));
    let mut feed = place.feed_other([&ARGS[..], &["--slot-bytes", "512", "--on-error", "skip", "--json"]].concat());
    let mut rows = Rows::default();
    rows.receive(&mut place.consumer("rows"), usize::MAX);
    lines.remove(9);
    assert_eq!(rows, Rows::of(&lines));
    let ended = feed.end();
    ended.assert_code(0).assert_says(&["skipped a.jsonl line 10: a message of"]);
    assert_eq!(ended.json()["skipped"]["too large for a slot"], 1);
    place.assert_clean();
}
