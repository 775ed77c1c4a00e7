//! JSON lines as features. Equality with scikit-learn's FeatureHasher is tested from Python.
#![cfg(feature = "tables")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use forebay_ingest::table::{
    FeatureHasher, RowError, SchemaError, TableEncoder, TableError, TableOptions, TableSchema, split_lines,
};
use forebay_ingest::{Pool, Work};
use proptest::prelude::*;

fn encoder(columns: &str) -> TableEncoder {
    encoder_of(&format!(r#"{{"tensors": [{{"name": "x", "columns": [{columns}]}}]}}"#))
}

fn encoder_of(schema: &str) -> TableEncoder {
    TableEncoder::new(&TableSchema::from_json(schema).unwrap(), TableOptions::default()).unwrap()
}

fn dense(encoder: &TableEncoder, lines: &str) -> Vec<f32> {
    let batch = encoder.encode(&split_lines(lines.as_bytes()), &Work::here()).unwrap().all().unwrap();
    let [rows, columns] = batch.dense_shape(0).unwrap();
    let mut out = vec![-1.0; rows * columns];
    batch.write_dense(0, &mut out).unwrap();
    out
}

/// What is wrong with one line.
fn wrong(encoder: &TableEncoder, line: &[u8]) -> RowError {
    let batch = encoder.encode(&[b"{\"a\": 1}", line, b"{\"a\": 2}"], &Work::here()).unwrap();
    let [bad] = batch.bad() else { panic!("{:?} of {:?}", batch.bad(), String::from_utf8_lossy(line)) };
    assert_eq!(bad.index, 1);
    assert_eq!(batch.items().collect::<Vec<_>>(), [0, 2]);
    bad.reason.clone()
}

const NUMBER: &str = r#"{"type": "numeric", "path": "a"}"#;

#[test]
fn numbers_stand_where_their_paths_lead() {
    let nested = encoder(
        r#"{"type": "numeric", "path": "a.b.c"}, {"type": "numeric", "path": ["x.y", "z"]},
           {"type": "numeric", "path": "a.d", "missing": {"fill": 9}}"#,
    );
    assert_eq!(
        dense(&nested, "{\"q\": [[{}]], \"x.y\": {\"z\": true}, \"a\": {\"b\": {\"c\": -2.5e0}, \"d\": null}}"),
        [-2.5, 1.0, 9.0]
    );
    assert_eq!(dense(&nested, "{\"a\":{\"d\":3,\"b\":{\"c\":0}},\"x.y\":{\"z\":4}}\r\n"), [0.0, 4.0, 3.0]);
}

#[test]
fn each_rule_for_missing_numbers() {
    let rules = encoder(
        r#"{"type": "numeric", "path": "a", "missing": "nan"}, {"type": "numeric", "path": "b", "missing": {"mean": 1.5}},
           {"type": "numeric", "path": "c", "missing": {"fill": -1}}"#,
    );
    for line in ["{}", "{\"a\": null, \"b\": null}"] {
        let row = dense(&rules, line);
        assert!(row[0].is_nan());
        assert_eq!(row[1..], [1.5, -1.0]);
    }
    assert_eq!(wrong(&encoder(NUMBER), b"{}"), RowError::Missing { path: "a".into() });
    assert_eq!(wrong(&encoder(NUMBER), b"{\"a\": null}"), RowError::Missing { path: "a".into() });
}

#[test]
fn labels_are_strings_whole_numbers_or_booleans() {
    let labels = encoder(
        r#"{"type": "one_hot", "path": "a", "vocabulary": ["x", 3, true, "3"], "unknown": "column", "missing": "zeros"}"#,
    );
    for (value, column) in [("\"x\"", 0), ("3", 1), ("3.0", 1), ("true", 2), ("\"3\"", 3), ("false", 4), ("0.5", 4)] {
        let mut expected = [0.0; 5];
        expected[column] = 1.0;
        assert_eq!(dense(&labels, &format!("{{\"a\": {value}}}")), expected, "{value}");
    }
    assert_eq!(dense(&labels, "{}"), [0.0; 5]);
    let strict = encoder(r#"{"type": "one_hot", "path": "a", "vocabulary": [1, 2]}"#);
    let long = format!("{{\"a\": \"{}\"}}", "é".repeat(1000));
    let RowError::Unknown { path, value } = wrong(&strict, long.as_bytes()) else { panic!() };
    assert_eq!((path.as_str(), value.chars().count()), ("a", 41));
    let unknown =
        encoder(r#"{"type": "one_hot", "path": "a", "vocabulary": [1], "unknown": "column", "missing": "unknown"}"#);
    assert_eq!(dense(&unknown, "{}"), [0.0, 1.0]);
}

#[test]
fn whole_numbers_are_exact_or_refused() {
    let schema = r#"{"tensors": [{"name": "x", "dtype": "i64", "columns": [{"type": "numeric", "path": "a"}]}]}"#;
    let encoder = encoder_of(schema);
    let batch = encoder
        .encode(&[b"{\"a\": -9223372036854775808}", b"{\"a\": 9223372036854775807}", b"{\"a\": 1e3}"], &Work::here())
        .unwrap();
    let mut out = [0i64; 3];
    batch.write_dense(0, &mut out).unwrap();
    assert_eq!(out, [i64::MIN, i64::MAX, 1000]);
    for value in ["9223372036854775808", "1.5", "1e300"] {
        let RowError::Range { value: found, .. } = wrong(&encoder, format!("{{\"a\": {value}}}").as_bytes()) else {
            panic!("{value}")
        };
        assert!(found.starts_with(&value[..1]), "{found}");
    }
}

#[test]
fn what_is_no_json_is_an_error_of_its_line() {
    let encoder = encoder(NUMBER);
    for line in [
        &b""[..],
        b" ",
        b"{",
        b"{\"a\": 1} x",
        b"{\"a\": 1}}",
        b"{\"a\": NaN}",
        b"{\"a\": Infinity}",
        b"{\"a\": 1e999}",
        b"{\"a\": -1e999}",
        b"{\"a\": 01}",
        b"{\"a\": \"\\ud800\"}",
        b"{\"b\": \"\\x\", \"a\": 1}",
        b"{'a': 1}",
        b"{\"a\": 1,}",
        b"{\"a\": \"\x01\"}",
    ] {
        assert!(matches!(wrong(&encoder, line), RowError::BadJson { .. }), "{:?}", String::from_utf8_lossy(line));
    }
    assert_eq!(wrong(&encoder, b"{\"b\": \"\xff\", \"a\": 1}"), RowError::NotUtf8 { at: 8, byte: 0xff });
}

#[test]
fn what_is_json_of_another_kind_is_an_error_of_its_line() {
    let encoder = encoder(r#"{"type": "numeric", "path": "a"}, {"type": "numeric", "path": "b.c", "missing": "nan"}"#);
    for (line, expected) in [
        ("[1]", "the line is an array, expected an object"),
        ("7", "the line is a number, expected an object"),
        ("null", "the line is null, expected an object"),
        ("{\"a\": [1]}", "a is an array, expected a number, a string, true or false"),
        ("{\"a\": \"1\"}", "a is a string, expected a number, true or false"),
        ("{\"a\": {}}", "a is an object, expected a number, a string, true or false"),
        ("{\"a\": 1, \"b\": 2}", "b is a number, expected an object"),
        ("{\"a\": 1e39}", "a is 1e39, which does not fit f32"),
        ("{\"a\": 1, \"a\": 2}", "a stands there twice, expected once"),
        ("{\"a\": 1, \"b\": {\"c\": 1, \"c\": 1}}", "b.c stands there twice, expected once"),
        ("{\"b\": null, \"b\": {}, \"a\": 1}", "b stands there twice, expected once"),
        ("{\"a\": 1, \"\\u0061\": 2}", "a stands there twice, expected once"),
    ] {
        assert_eq!(wrong(&encoder, line.as_bytes()).to_string(), expected);
    }
    // Not asked for: neither counted nor looked at.
    assert!(dense(&encoder, "{\"a\": 1, \"z\": 1, \"z\": [2]}")[1].is_nan());
}

#[test]
fn deep_nesting_costs_no_stack_and_long_lines_no_memory() {
    let small =
        TableSchema::from_json(r#"{"tensors": [{"name": "x", "columns": [{"type": "numeric", "path": "a"}]}]}"#);
    let options = TableOptions { max_line_bytes: 10_000_000, ..TableOptions::default() };
    let encoder = TableEncoder::new(&small.unwrap(), options).unwrap();
    let depth = 2_000_000;
    let deep = format!("{{\"z\": {}{}, \"a\": 1}}", "[".repeat(depth), "]".repeat(depth));
    let open = format!("{{\"z\": {}", "[{\"a\":".repeat(depth / 2));
    let huge = vec![b'7'; 10_000_001];
    let lines = [deep.as_bytes(), open.as_bytes(), &huge, b"{\"a\": 2}"];
    let batch = encoder.encode(&lines, &Work::shared()).unwrap();
    assert_eq!(batch.items().collect::<Vec<_>>(), [0, 3]);
    assert!(matches!(batch.bad()[0].reason, RowError::BadJson { .. }));
    assert_eq!(batch.bad()[1].reason, RowError::TooLong { length: 10_000_001, max: 10_000_000 });
}

const CLICKS: &str = r#"{"tensors": [
    {"name": "s", "layout": "sparse", "indices": "i32", "columns": [
        {"type": "numeric", "path": "n", "missing": {"fill": 0}},
        {"type": "hashed", "path": "dict", "features": 8, "missing": "zeros"},
        {"type": "hashed", "path": "pair", "input": "pair", "features": 8, "missing": "zeros"},
        {"type": "hashed", "path": "string", "input": "string", "features": 8, "missing": "zeros"}]},
    {"name": "d", "columns": [
        {"type": "numeric", "path": "n", "missing": {"fill": 0}},
        {"type": "hashed", "path": "dict", "features": 8, "missing": "zeros"},
        {"type": "hashed", "path": "pair", "input": "pair", "features": 8, "missing": "zeros"},
        {"type": "hashed", "path": "string", "input": "string", "features": 8, "missing": "zeros"}]}]}"#;

/// The dense tensor, after checking that the sparse one says the same.
fn both(lines: &str) -> Vec<f32> {
    let encoder = encoder_of(CLICKS);
    let batch = encoder.encode(&split_lines(lines.as_bytes()), &Work::here()).unwrap().all().unwrap();
    let shape = batch.sparse_shape(0).unwrap();
    let (mut offsets, mut columns, mut values) =
        (vec![0i32; shape.rows + 1], vec![0i32; shape.entries], vec![0f32; shape.entries]);
    batch.write_sparse(0, &mut offsets, &mut columns, &mut values).unwrap();
    let mut filled = vec![0.0; shape.rows * shape.columns];
    for row in 0..shape.rows {
        let entries = offsets[row] as usize..offsets[row + 1] as usize;
        assert!(columns[entries.clone()].windows(2).all(|pair| pair[0] < pair[1]), "columns grow");
        for entry in entries {
            filled[row * shape.columns + columns[entry] as usize] = values[entry];
        }
    }
    let mut out = vec![0.0; filled.len()];
    batch.write_dense(1, &mut out).unwrap();
    assert_eq!(out, filled);
    out
}

#[test]
fn names_go_to_their_columns_in_every_form() {
    let hasher = FeatureHasher::new(8, true).unwrap();
    let mut expected = [0f64; 25];
    let mut put = |first: usize, name: &str, value: f64| {
        let (column, sign) = hasher.place(name.as_bytes());
        expected[first + column as usize] += sign * value;
    };
    for first in [1, 9] {
        put(first, "a", 2.5);
        put(first, "b=x", 1.0);
        put(first, "é\n", 1.0);
    }
    for name in ["p", "q", "p", ""] {
        put(17, name, 1.0);
    }
    let line = r#"{"dict": {"a": 2.5, "b": "x", "zero": 0, "é\n": true, "off": false},
        "pair": [["a", 2.5], ["b", "x"], ["zero", 0.0], ["\u00e9\n", true]], "string": ["p", "q", "p", ""]}"#
        .replace('\n', " ");
    let found = both(&line);
    assert_eq!(found, expected.map(|x| x as f32));
    assert_eq!(both("{\"string\": \"p\"}"), both("{\"string\": [\"p\"], \"dict\": {}, \"pair\": [], \"n\": 0}"));
    assert_eq!(both("{}\n{\"n\": -3}")[25], -3.0);
}

#[test]
fn names_of_other_kinds_are_errors_of_their_line() {
    let encoder = encoder_of(CLICKS);
    for (line, part) in [
        ("{\"dict\": [1]}", "dict is an array, expected an object"),
        ("{\"dict\": \"a\"}", "dict is a string, expected an object"),
        ("{\"dict\": {\"a\": null}}", "something in dict is null"),
        ("{\"dict\": {\"a\": [1]}}", "something in dict is an array"),
        ("{\"dict\": {\"a\": {}}}", "something in dict is an object"),
        ("{\"dict\": {\"a\": 1, \"b\": 1, \"a\": 1}}", "dict.a stands there twice"),
        ("{\"dict\": {\"a\": 0, \"a\": 0}}", "dict.a stands there twice"),
        ("{\"pair\": {\"a\": 1}}", "pair is an object, expected an array of pairs"),
        ("{\"pair\": [[\"a\"]]}", "an array of another length, expected a pair"),
        ("{\"pair\": [[\"a\", 1, 2]]}", "an array of another length"),
        ("{\"pair\": [[]]}", "an array of another length"),
        ("{\"pair\": [[1, 2]]}", "is a number, expected a string"),
        ("{\"pair\": [7]}", "is a number, expected a pair"),
        ("{\"string\": [1]}", "is a number, expected a string"),
        ("{\"string\": [[\"a\"]]}", "is an array, expected a string"),
        ("{\"string\": 5}", "string is a number, expected a string or an array of strings"),
        ("{\"dict\": {\"a\": 1e300}}", "dict is "),
    ] {
        let batch = encoder.encode(&[line.as_bytes()], &Work::here()).unwrap();
        assert_eq!(batch.rows(), 0, "{line}");
        let why = batch.bad()[0].to_string();
        assert!(why.starts_with("item 0: ") && why.contains(part), "{line}: {why}");
    }
}

#[test]
fn a_row_is_in_all_tensors_or_in_none() {
    let encoder = encoder_of(
        r#"{"tensors": [{"name": "a", "columns": [{"type": "numeric", "path": "a"}]},
            {"name": "s", "layout": "sparse", "columns": [{"type": "numeric", "path": "a"}]},
            {"name": "b", "dtype": "u8", "columns": [{"type": "numeric", "path": "b"}]}]}"#,
    );
    let lines = split_lines(b"{\"a\":1,\"b\":1}\n{\"a\":2,\"b\":256}\n{\"a\":3,\"b\":3}");
    let batch = encoder.encode(&lines, &Work::here()).unwrap();
    assert_eq!(batch.bad()[0].to_string(), "item 1: b is 256, which does not fit u8");
    let (mut a, mut b) = ([0f32; 2], [0u8; 2]);
    batch.write_dense(0, &mut a).unwrap();
    batch.write_dense(2, &mut b).unwrap();
    let (mut offsets, mut columns, mut values) = ([0i64; 3], [7i64; 2], [0f32; 2]);
    batch.write_sparse(1, &mut offsets, &mut columns, &mut values).unwrap();
    assert_eq!((a, b, offsets, columns, values), ([1.0, 3.0], [1, 3], [0, 1, 2], [0, 0], [1.0, 3.0]));
}

#[test]
fn outputs_that_do_not_fit_are_refused_whole() {
    let encoder = encoder_of(CLICKS);
    let batch = encoder.encode(&[b"{\"n\": 1}"], &Work::here()).unwrap();
    let mut right = [0f32; 25];
    assert!(batch.write_dense(0, &mut right).unwrap_err().to_string().contains("is sparse"));
    assert!(batch.write_dense(2, &mut right).unwrap_err().to_string().contains("there are 2"));
    assert!(batch.write_dense(1, &mut [0f64; 25]).unwrap_err().to_string().contains("is of f32, not f64"));
    assert!(batch.write_dense(1, &mut right[1..]).unwrap_err().to_string().contains("takes 25 elements"));
    let (mut offsets, mut columns, mut values) = ([0i32; 2], [0i32; 1], [0f32; 1]);
    assert!(batch.write_sparse(0, &mut [0i64; 2], &mut [0i64; 1], &mut values).is_err());
    assert!(batch.write_sparse(0, &mut offsets[1..], &mut columns, &mut values).is_err());
    assert!(batch.write_sparse(0, &mut offsets, &mut columns, &mut []).is_err());
    assert!(batch.write_sparse(1, &mut offsets, &mut columns, &mut values).is_err());
    assert!(batch.sparse_shape(1).is_err() && batch.dense_shape(0).is_err());
}

#[test]
fn a_batch_that_would_not_fit_memory_is_refused() {
    let schema =
        r#"{"tensors": [{"name": "x", "columns": [{"type": "hashed", "path": "a", "features": 2147483647}]}]}"#;
    let encoder = encoder_of(schema);
    let why = encoder.encode(&[b"{}"], &Work::here()).unwrap_err();
    assert!(matches!(why, TableError::TooLarge { lines: 1, bytes: 8_589_934_588, .. }), "{why}");
}

#[test]
fn schemas_that_contradict_themselves_are_refused() {
    for (columns, part) in [
        (r#"{"type": "numeric", "path": ""}, {"type": "numeric", "path": "a..b"}"#, "a key of the path is empty"),
        (r#"{"type": "numeric", "path": []}"#, "the path has 0 keys"),
        (r#"{"type": "numeric", "path": "a"}, {"type": "numeric", "path": "a.b"}"#, "takes the whole object"),
        (
            r#"{"type": "numeric", "path": "a.b"}, {"type": "hashed", "path": "a", "features": 4}"#,
            "takes the whole object",
        ),
        (
            r#"{"type": "hashed", "path": "a", "features": 4}, {"type": "hashed", "path": "a", "input": "pair", "features": 4}"#,
            "with another input",
        ),
        (r#"{"type": "hashed", "path": "a", "features": 0}"#, "features is 0"),
        (r#"{"type": "hashed", "path": "a", "features": 9, "missing": "unknown"}"#, "know no unknown names"),
        (r#"{"type": "one_hot", "path": "a", "vocabulary": []}"#, "the vocabulary is empty"),
        (r#"{"type": "one_hot", "path": "a", "vocabulary": ["x", "x"]}"#, "twice"),
        (r#"{"type": "numeric", "path": "a", "missing": {"fill": 1e39}}"#, "not a finite f32"),
    ] {
        let schema = format!(r#"{{"tensors": [{{"name": "x", "columns": [{columns}]}}]}}"#);
        let why = TableEncoder::new(&TableSchema::from_json(&schema).unwrap(), TableOptions::default()).unwrap_err();
        assert!(
            matches!(&why, SchemaError::Invalid { tensor, .. } if tensor == "x") && why.to_string().contains(part),
            "{why}"
        );
    }
    for (tensors, part) in [
        (String::new(), "no tensors"),
        (r#"{"name": "x", "columns": []}"#.to_owned(), "no columns"),
        (format!(r#"{{"name": "", "columns": [{NUMBER}]}}"#), "its name is empty"),
        (
            format!(r#"{{"name": "x", "columns": [{NUMBER}]}}, {{"name": "x", "columns": [{NUMBER}]}}"#),
            "two of this name",
        ),
        (format!(r#"{{"name": "x", "layout": "sparse", "dtype": "f64", "columns": [{NUMBER}]}}"#), "are of f32"),
        (
            r#"{"name": "x", "dtype": "u8", "columns": [{"type": "numeric", "path": "a", "missing": "nan"}]}"#
                .to_owned(),
            "which u8 does not have",
        ),
        (
            r#"{"name": "x", "dtype": "u8", "columns": [{"type": "hashed", "path": "a", "features": 3}]}"#.to_owned(),
            "which u8 cannot hold",
        ),
    ] {
        let schema = TableSchema::from_json(&format!(r#"{{"tensors": [{tensors}]}}"#)).unwrap();
        let why = TableEncoder::new(&schema, TableOptions::default()).unwrap_err().to_string();
        assert!(why.contains(part), "{why}");
    }
    let later = TableSchema::from_json(r#"{"version": 2, "tensors": []}"#).unwrap();
    assert!(matches!(TableEncoder::new(&later, TableOptions::default()), Err(SchemaError::Version { found: 2 })));
    for text in [
        "",
        "[",
        r#"{"tensors": [], "more": 1}"#,
        r#"{"tensors": [{"name": "x", "columns": [{"type": "numeric", "path": "a", "fill": 0}]}]}"#,
    ] {
        assert!(matches!(TableSchema::from_json(text), Err(SchemaError::Syntax { .. })), "{text}");
    }
}

#[test]
fn files_are_told_by_their_ends() {
    let folder = tempfile::tempdir().unwrap();
    let toml = folder.path().join("x.toml");
    std::fs::write(
        &toml,
        "tensors = [{ name = 'x', columns = [{ type = 'numeric', path = 'a', missing = { fill = 0 } }] }]",
    )
    .unwrap();
    let json = folder.path().join("x.json");
    let schema = TableSchema::from_file(&toml).unwrap();
    std::fs::write(&json, serde_json::to_string(&schema).unwrap()).unwrap();
    assert_eq!(TableSchema::from_file(&json).unwrap(), schema);
    std::fs::write(&toml, "tensors = 7").unwrap();
    let why = TableSchema::from_file(&toml).unwrap_err().to_string();
    assert!(why.contains("x.toml") && why.contains("line 1"), "{why}");
    assert!(matches!(TableSchema::from_file(folder.path().join("x.yaml")), Err(SchemaError::Extension { .. })));
    assert!(matches!(TableSchema::from_file(folder.path().join("no.json")), Err(SchemaError::Unreadable { .. })));
}

#[test]
fn rows_come_in_the_order_of_their_lines_on_any_number_of_threads() {
    let encoder = encoder(NUMBER);
    let lines: Vec<String> = (0..30_000)
        .map(|i| if i % 1000 == 999 { "{}".to_owned() } else { format!("{{\"a\": {i}, \"z\": \"some more text\"}}") })
        .collect();
    let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
    for threads in [1, 2, 4] {
        let pool = Pool::new(threads).unwrap();
        let batch = encoder.encode(&lines, &Work::on(&pool)).unwrap();
        let mut out = vec![0f32; batch.rows()];
        batch.write_dense(0, &mut out).unwrap();
        assert!(batch.items().map(|item| item as f32).eq(out));
        assert!(batch.bad().iter().map(|bad| bad.index).eq((999..30_000).step_by(1000)));
    }
}

#[test]
fn lines_end_where_they_do() {
    let cases: [(&[u8], &[&[u8]]); 6] = [
        (b"", &[]),
        (b"\n", &[b""]),
        (b"a", &[b"a"]),
        (b"a\r\nb\n", &[b"a", b"b"]),
        (b"a\n\nb", &[b"a", b"", b"b"]),
        (b"a\rb\r", &[b"a\rb"]),
    ];
    for (text, expected) in cases {
        assert_eq!(split_lines(text), expected, "{text:?}");
    }
}

proptest! {
    /// Whatever the line, it is a row or an error; a number that was written is the one that is read.
    #[test]
    fn any_line_is_a_row_or_an_error(line in "\\PC*|[\\[\\]{}\",:abn0-9eE.+\\-\\\\ ]{0,60}") {
        let encoder = encoder_of(CLICKS);
        let batch = encoder.encode(&[line.as_bytes()], &Work::here()).unwrap();
        prop_assert_eq!(batch.rows() + batch.bad().len(), 1);
    }

    #[test]
    fn numbers_are_read_to_the_last_bit(value in proptest::num::f64::NORMAL | proptest::num::f64::SUBNORMAL) {
        let schema = r#"{"tensors": [{"name": "x", "dtype": "f64", "columns": [{"type": "numeric", "path": "a"}]}]}"#;
        let line = format!("{{\"a\": {value:?}}}");
        let batch = encoder_of(schema).encode(&[line.as_bytes()], &Work::here()).unwrap();
        let mut out = [0f64];
        batch.write_dense(0, &mut out).unwrap();
        prop_assert_eq!(out[0].to_bits(), value.to_bits());
    }
}

#[test]
fn a_name_twice_is_found_among_many_and_after_an_object_that_was_cut_off() {
    let encoder = encoder_of(CLICKS);
    let many: Vec<String> = (0..5000).map(|i| format!("\"n{i}\": 1")).collect();
    let object = |last: &str| format!("{{\"dict\": {{{}, {last}}}}}", many.join(", "));
    let lines = [
        object("\"other\": 2"),
        object("\"n4321\": 2"),
        "{\"dict\": {\"a\": 1, \"b\": [".to_owned(),
        "{\"dict\": {\"a\": 1, \"b\": 2}}".to_owned(),
    ];
    let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
    let batch = encoder.encode(&lines, &Work::here()).unwrap();
    assert_eq!(batch.items().collect::<Vec<_>>(), [0, 3]);
    assert_eq!(batch.bad()[0].reason, RowError::Duplicate { path: "dict.n4321".into() });
}
