//! Sources: what may be read, and going on where another run ended.

#![cfg(feature = "text")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::fs::OpenOptions;
use std::io::Write;
use std::thread;

use common::{all, data, firsts, pipe, start_source, watchdog, write};
use forebay_ingest::{IngestError, Input, OnError, PipelineOptions, Position, Repeat, Source, SourceOptions};
use proptest::prelude::*;
use tempfile::tempdir;

fn options() -> PipelineOptions {
    PipelineOptions { batch_rows: 3, workers: 2, on_error: OnError::Skip, ..PipelineOptions::default() }
}

fn resume(inputs: &[Input], position: &Position) -> Result<Source, IngestError> {
    Source::resume(inputs, SourceOptions::default(), position)
}

/// The position after `lines` raw lines.
fn position_after(inputs: &[Input], lines: usize) -> Position {
    let mut source = Source::open(inputs, SourceOptions::default()).unwrap();
    for _ in 0..lines {
        source.next_line().unwrap().unwrap();
    }
    source.position()
}

/// Raw lines to the end of a pass.
fn rest(source: &mut Source) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    while let Some(line) = source.next_line().unwrap() {
        lines.push(line.bytes.to_vec());
    }
    lines
}

#[test]
fn inputs_that_cannot_be_read_are_refused_at_the_start() {
    let folder = tempdir().unwrap();
    let good = write(folder.path(), "good", "0\n");
    let open = |inputs: &[Input]| Source::open(inputs, SourceOptions::default()).map(|_| ());
    assert!(matches!(open(&[]), Err(IngestError::NoInput)));
    let missing = open(&[good.clone(), Input::from(folder.path().join("missing"))]).unwrap_err();
    assert!(matches!(&missing, IngestError::Open { file, .. } if file.ends_with("missing")), "{missing}");
    let is_folder = open(&[good.clone(), Input::from(folder.path())]).unwrap_err();
    assert!(matches!(is_folder, IngestError::Folder { .. }), "{is_folder}");
    let twice = open(&[Input::Stdin, good.clone(), Input::Stdin]).unwrap_err();
    assert!(matches!(twice, IngestError::StdinTwice { count: 2 }), "{twice}");
    for repeat in [Repeat::Times(2), Repeat::Forever] {
        let repeated = SourceOptions { repeat, ..SourceOptions::default() };
        let refused = Source::open(&[good.clone(), Input::Stdin], repeated).unwrap_err();
        assert!(matches!(refused, IngestError::CannotRepeat { .. }), "{refused}");
    }
    for max_line_bytes in [0, (1 << 30) + 1] {
        let refused =
            Source::open(std::slice::from_ref(&good), SourceOptions { max_line_bytes, ..SourceOptions::default() });
        assert!(matches!(refused, Err(IngestError::BadOption { option: "max_line_bytes", .. })));
    }
    assert_eq!(Input::from_argument("-"), Input::Stdin);
    assert_eq!(Input::from_argument("-x").to_string(), "-x");
}

#[test]
fn options_are_read_as_they_are_written() {
    for repeat in [Repeat::Times(1), Repeat::Times(9), Repeat::Forever] {
        assert_eq!(repeat.to_string().parse(), Ok(repeat));
    }
    for on_error in [OnError::Fail, OnError::Skip] {
        assert_eq!(on_error.to_string().parse(), Ok(on_error));
    }
    assert!("0".parse::<Repeat>().is_err());
    assert!("ignore".parse::<OnError>().is_err());
}

#[test]
fn other_inputs_are_refused() {
    let folder = tempdir().unwrap();
    let (a, b) = (write(folder.path(), "a", "0\n1\n"), write(folder.path(), "b", "0\n1\n"));
    let position = position_after(&[a.clone(), b.clone()], 1);
    for others in [vec![b.clone(), a.clone()], vec![a.clone()], vec![a.clone(), b.clone(), b.clone()]] {
        let refused = resume(&others, &position).unwrap_err();
        assert!(matches!(refused, IngestError::OtherInputs { .. }), "{refused}");
        assert!(refused.to_string().contains("name the same files in the same order"));
    }
    // Another way to name the same file is the same file.
    let roundabout = folder.path().join(".").join("a");
    assert!(resume(&[Input::from(roundabout), b], &position).is_ok());
}

#[test]
fn files_that_changed_before_the_position_are_refused() {
    let folder = tempdir().unwrap();
    let input = [write(folder.path(), "a", "first\nsecond\nthird\n")];
    let position = position_after(&input, 2);
    write(folder.path(), "a", "first\nSECOND\nthird\n");
    let refused = resume(&input, &position).unwrap_err();
    assert!(matches!(refused, IngestError::Changed { offset: 13, line: 2, .. }), "{refused}");
    write(folder.path(), "a", "first\n");
    let refused = resume(&input, &position).unwrap_err();
    assert!(matches!(refused, IngestError::Shrunk { found_bytes: 6, offset: 13, .. }), "{refused}");
    write(folder.path(), "a", "first\nsecond\nTHIRD\n");
    assert_eq!(rest(&mut resume(&input, &position).unwrap()), [b"THIRD"]);
}

#[test]
fn a_file_that_grew_by_whole_lines_goes_on() {
    let folder = tempdir().unwrap();
    let append = |text: &str| {
        let mut file = OpenOptions::new().append(true).open(folder.path().join("log")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    let input = [write(folder.path(), "log", "one\n")];
    let position = position_after(&input, 1);
    append("two");
    let mut source = resume(&input, &position).unwrap();
    assert_eq!(rest(&mut source), [b"two"]);
    let position = source.position();
    assert!(rest(&mut resume(&input, &position).unwrap()).is_empty());
    append(" and a half\n");
    let refused = resume(&input, &position).unwrap_err();
    assert!(matches!(refused, IngestError::GrownLine { line: 2, .. }), "{refused}");
}

#[test]
fn a_pipe_is_read_past_and_compared() {
    let _watchdog = watchdog();
    let run = |content: &'static str, position: Option<Position>| {
        let (input, _reader, mut writer) = pipe();
        let feeder = thread::spawn(move || writer.write_all(content.as_bytes()));
        let source = match position {
            None => Source::open(&[input], SourceOptions::default()),
            Some(position) => resume(&[input], &position),
        };
        let mut pipeline = start_source(source.unwrap(), options());
        let next = pipeline.next().map(|batch| batch.map(|batch| (firsts(&batch), batch.next)));
        drop(pipeline);
        drop(_reader);
        // The writer of a pipe that nobody reads any more gets an error.
        let _ = feeder.join().unwrap();
        next
    };
    let content = "0\n1\n\n2\n3\n4\n5\n";
    let (found, next) = run(content, None).unwrap().unwrap();
    assert_eq!((found, next.line), (vec![0, 1, 2], 4));
    let (found, _) = run(content, Some(next)).unwrap().unwrap();
    assert_eq!(found, [3, 4, 5]);
    let changed = run("0\n1\n\n9\n3\n4\n5\n", Some(next)).unwrap().unwrap_err();
    assert!(matches!(changed, IngestError::Changed { line: 4, .. }), "{changed}");
    let short = run("0\n1\n", Some(next)).unwrap().unwrap_err();
    assert!(matches!(short, IngestError::Shrunk { found_bytes: 4, offset: 7, .. }), "{short}");
}

#[test]
fn a_run_that_was_complete_gives_nothing_more() {
    let _watchdog = watchdog();
    let input = [Input::from(data("kjv.jsonl"))];
    let mut pipeline = start_source(Source::open(&input, SourceOptions::default()).unwrap(), options());
    // Its words are not numbers: everything is skipped, nothing delivered.
    assert!(all(&mut pipeline).0.is_empty());
    assert_eq!(pipeline.report().skipped.total(), 355);

    let folder = tempdir().unwrap();
    let input = [write(folder.path(), "a", "0\n1\n2\n3\n\n")];
    let mut pipeline = start_source(Source::open(&input, SourceOptions::default()).unwrap(), options());
    let last = pipeline.by_ref().map(Result::unwrap).last().unwrap().next;
    let mut again = start_source(resume(&input, &last).unwrap(), options());
    assert!(again.next().is_none());
    assert!(again.report().complete);
}

/// Files of numbered items among blank, bad and overlong lines, with all line ends.
fn files() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let line = prop_oneof![
        4 => Just(b"#".to_vec()),
        1 => Just(b"".to_vec()),
        1 => Just(b"\xff".to_vec()),
        1 => Just(b"boom".to_vec()),
        1 => Just(vec![b'x'; 40]),
    ];
    let end = prop_oneof![Just(&b"\n"[..]), Just(&b"\r\n"[..])];
    let file = (proptest::collection::vec((line, end), 0..12), any::<bool>());
    proptest::collection::vec(file, 1..4).prop_map(|files| {
        let mut number = 0;
        let mut content = Vec::new();
        for (lines, ended) in files {
            let mut bytes = Vec::new();
            for (line, end) in lines {
                if line == b"#" {
                    bytes.extend(number.to_string().bytes());
                    number += 1;
                } else {
                    bytes.extend(line);
                }
                bytes.extend(end);
            }
            if !ended {
                while bytes.ends_with(b"\n") || bytes.ends_with(b"\r") {
                    bytes.pop();
                }
            }
            content.push(bytes);
        }
        content
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The promise of a restarted feeder: resumed after any batch, no replay and no gap.
    #[test]
    fn every_batch_is_a_place_to_go_on(files in files(), passes in 1u64..3, rows in 1usize..5, stop_after in 0usize..6) {
        let _watchdog = watchdog();
        let folder = tempdir().unwrap();
        let inputs: Vec<Input> = files
            .iter()
            .enumerate()
            .map(|(index, content)| write(folder.path(), &index.to_string(), content))
            .collect();
        let reading = SourceOptions { max_line_bytes: 32, repeat: Repeat::Times(passes), shuffle: None };
        let options = || PipelineOptions { batch_rows: rows, workers: 2, on_error: OnError::Skip, ..Default::default() };
        let fresh = || Source::open(&inputs, reading.clone()).unwrap();
        let (whole, error) = all(&mut start_source(fresh(), options()));
        prop_assert!(matches!(error, None | Some(IngestError::NothingToRepeat { .. })), "{:?}", error);

        let mut found = Vec::new();
        let mut position = fresh().position();
        let mut first = start_source(fresh(), options());
        for batch in first.by_ref().take(stop_after).filter_map(Result::ok) {
            found.extend(firsts(&batch));
            position = batch.next;
        }
        drop(first);
        prop_assert_eq!(position.items, found.len() as u64);
        let position = Position::decode(&position.encode()).unwrap();
        let resumed = Source::resume(&inputs, reading.clone(), &position).unwrap();
        let mut second = start_source(resumed, options());
        for batch in second.by_ref().filter_map(Result::ok) {
            prop_assert_eq!(batch.first_item, found.len() as u64);
            found.extend(firsts(&batch));
        }
        prop_assert_eq!(found, whole);
    }
}

/// Went wrong: a position that somebody had written with a pass of 2⁶⁴ − 1 overflowed at the end of that pass.
#[test]
fn a_position_that_no_run_reaches_is_refused() {
    let folder = tempdir().unwrap();
    let inputs = [write(folder.path(), "lines", "0\n1\n")];
    let honest = position_after(&inputs, 1);
    assert!(resume(&inputs, &honest).is_ok());
    for far in [1 << 62, u64::MAX] {
        for position in [
            Position { pass: far, ..honest },
            Position { line: far, ..honest },
            Position { items: far, ..honest },
            Position { offset: far, ..honest },
        ] {
            let refused = resume(&inputs, &position).unwrap_err();
            assert!(refused.to_string().contains(&far.to_string()), "{refused}");
        }
    }
}
