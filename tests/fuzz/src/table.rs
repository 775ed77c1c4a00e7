//! What becomes of JSON lines as features: lines of any bytes, and schemas that anybody may have written.

use forebay_ingest::table::{RowError, TableBatch, TableEncoder, TableOptions, TableSchema, split_lines};
use forebay_ingest::{Pool, Work};
use serde_json::Value;

use crate::bytes::Bytes;

/// The same columns dense and sparse, and a tensor of whole numbers.
const SCHEMA: &str = r#"
    [[tensors]]
    name = "dense"
    columns = [
        { type = "numeric", path = "a", missing = { fill = 7 } },
        { type = "one_hot", path = "b.c", vocabulary = ["x", 1, true], unknown = "column", missing = "zeros" },
        { type = "hashed", path = "d", features = 5, missing = "zeros" },
        { type = "hashed", path = "e", input = "pair", features = 5, missing = "zeros" },
        { type = "hashed", path = "f", input = "string", features = 5, missing = "zeros" },
    ]
    [[tensors]]
    name = "sparse"
    layout = "sparse"
    columns = [
        { type = "numeric", path = "a", missing = { fill = 7 } },
        { type = "one_hot", path = "b.c", vocabulary = ["x", 1, true], unknown = "column", missing = "zeros" },
        { type = "hashed", path = "d", features = 5, missing = "zeros" },
        { type = "hashed", path = "e", input = "pair", features = 5, missing = "zeros" },
        { type = "hashed", path = "f", input = "string", features = 5, missing = "zeros" },
    ]
    [[tensors]]
    name = "whole"
    dtype = "i64"
    columns = [{ type = "numeric", path = "n", missing = { fill = 0 } }]
"#;

const WIDTH: usize = 20;
const MAX_LINE: usize = 512;

thread_local! {
    static ENCODER: (TableEncoder, Pool) = {
        let schema = TableSchema::from_toml(SCHEMA).unwrap();
        let options = TableOptions { max_line_bytes: MAX_LINE, ..TableOptions::default() };
        (TableEncoder::new(&schema, options).unwrap(), Pool::new(2).unwrap())
    };
}

/// The target `table`.
pub fn run(data: &[u8]) {
    let mut input = Bytes::new(data);
    match input.byte() % 4 {
        0 => schema(input),
        how => ENCODER.with(|(encoder, pool)| lines(encoder, pool, how, input.rest())),
    }
}

/// Any text as a schema: refused, or one that encodes a line or refuses it.
fn schema(mut input: Bytes<'_>) {
    let json = input.byte() & 1 == 0;
    let Ok(text) = std::str::from_utf8(input.rest()) else { return };
    let read = if json { TableSchema::from_json(text) } else { TableSchema::from_toml(text) };
    let options = TableOptions { max_batch_bytes: 1 << 20, ..TableOptions::default() };
    let encoder = match read.and_then(|schema| TableEncoder::new(&schema, options)) {
        Ok(encoder) => encoder,
        Err(why) => return assert!(!why.to_string().is_empty()),
    };
    match encoder.encode(&[b"{}", b"{\"a\": 1}"], &Work::here()) {
        Ok(batch) => assert_eq!(batch.rows() + batch.bad().len(), 2),
        Err(why) => assert!(!why.to_string().is_empty()),
    }
}

/// What was written of a batch, after checking that dense and sparse are one.
fn written(batch: &TableBatch) -> (Vec<f32>, Vec<i64>) {
    let mut dense = vec![f32::NAN; batch.rows() * WIDTH];
    batch.write_dense(0, &mut dense).unwrap();
    let shape = batch.sparse_shape(1).unwrap();
    assert_eq!((shape.rows, shape.columns), (batch.rows(), WIDTH));
    let (mut offsets, mut columns, mut values) =
        (vec![-1i64; shape.rows + 1], vec![-1i64; shape.entries], vec![f32::NAN; shape.entries]);
    batch.write_sparse(1, &mut offsets, &mut columns, &mut values).unwrap();
    let mut filled = vec![0.0; dense.len()];
    assert_eq!((offsets[0], offsets[shape.rows]), (0, shape.entries as i64));
    for row in 0..shape.rows {
        let entries = offsets[row] as usize..offsets[row + 1] as usize;
        assert!(columns[entries.clone()].is_sorted_by(|a, b| a < b), "columns of a row grow");
        for entry in entries {
            filled[row * WIDTH + columns[entry] as usize] = values[entry];
        }
    }
    assert_eq!(dense, filled);
    let mut whole = vec![-1; batch.rows()];
    batch.write_dense(2, &mut whole).unwrap();
    (dense, whole)
}

/// Any bytes as lines: each is a row or an error, whatever the threads, and the rows say what another reader finds.
fn lines(encoder: &TableEncoder, pool: &Pool, how: u8, text: &[u8]) {
    let lines = split_lines(text);
    let work = if how == 1 { Work::on(pool) } else { Work::here() };
    let batch = encoder.encode(&lines, &work).unwrap();
    let items: Vec<usize> = batch.items().collect();
    assert_eq!(items.len(), batch.rows());
    assert_eq!(batch.rows() + batch.bad().len(), lines.len());
    let (dense, whole) = written(&batch);
    for (row, &item) in items.iter().enumerate() {
        check(lines[item], dense[row * WIDTH], whole[row]);
    }
    for bad in batch.bad() {
        assert!(!bad.to_string().is_empty());
        let line = lines[bad.index];
        assert_eq!(line.len() > MAX_LINE, matches!(bad.reason, RowError::TooLong { .. }));
        if matches!(bad.reason, RowError::BadJson { .. }) {
            // A tree has a limit of depth, so what it refuses may be fine; what it takes is not bad JSON.
            assert!(serde_json::from_slice::<Value>(line).is_err(), "{:?}", String::from_utf8_lossy(line));
        }
    }
}

/// The numbers of a row that was taken are those of the tree.
fn check(line: &[u8], a: f32, n: i64) {
    // Parts that nobody asks for may be deeper than a tree goes.
    let Ok(tree) = serde_json::from_slice::<Value>(line) else { return };
    let number = |key: &str| match tree.get(key) {
        None | Some(Value::Null) => None,
        Some(Value::Bool(value)) => Some(Value::from(u8::from(*value))),
        Some(other) => Some(other.clone()),
    };
    assert!(tree.is_object());
    let expected = number("a").map_or(7.0, |value| value.as_f64().unwrap() as f32);
    assert_eq!(a.to_bits() & !(1 << 31), expected.to_bits() & !(1 << 31), "a is {a}, not {expected}");
    let expected = number("n").map_or(0, |value| value.as_i64().unwrap_or_else(|| value.as_f64().unwrap() as i64));
    assert_eq!(n, expected);
}
