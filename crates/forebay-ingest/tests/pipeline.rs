//! The pipeline as a whole: order, policies, ends.

#![cfg(feature = "text")]
mod common;

use std::io::Write;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;

use common::{all, data, firsts, number_tokenizer, pipe, start, start_source, watchdog, write};
use forebay_ingest::{
    Format, IngestError, Input, ItemError, LineId, OnError, Pipeline, PipelineOptions, Repeat, Source, SourceOptions,
    Tokenizer, TokenizerOptions, Watcher,
};
use tempfile::tempdir;

fn options() -> PipelineOptions {
    PipelineOptions { batch_rows: 4, workers: 3, ..PipelineOptions::default() }
}

fn numbers(range: std::ops::Range<u32>) -> String {
    range.map(|n| format!("{n} 7\n")).collect()
}

/// FNV-1a over the length and the ids of every row, as little-endian u32.
fn hash(rows: impl Iterator<Item = Vec<u32>>) -> u64 {
    let words = rows.flat_map(|row| [vec![row.len() as u32], row].concat());
    words
        .flat_map(u32::to_le_bytes)
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn ids_of_the_corpus_are_those_of_the_python_package() {
    let _watchdog = watchdog();
    let tokenizing = TokenizerOptions { max_length: Some(64), ..TokenizerOptions::default() };
    let tokenizer = Arc::new(Tokenizer::from_file(data("tokenizer.json"), &tokenizing).unwrap());
    for workers in [1, 4] {
        let source = Source::open(&[Input::from(data("kjv.txt"))], SourceOptions::default()).unwrap();
        let total = source.remaining_bytes();
        let options = PipelineOptions { workers, ..PipelineOptions::default() };
        let mut pipeline = Pipeline::start(source, Arc::clone(&tokenizer), options).unwrap();
        let mut rows = Vec::new();
        for batch in &mut pipeline {
            let batch = batch.unwrap();
            assert_eq!(batch.first_item, rows.len() as u64);
            assert_eq!(batch.first.items, rows.len() as u64);
            rows.extend(batch.data.iter().map(<[u32]>::to_vec));
            assert_eq!(batch.next.items, rows.len() as u64);
            assert_eq!(batch.next.line, rows.len() as u64);
        }
        let report = pipeline.report();
        assert_eq!((report.items, report.batches, report.tokens), (12_866, 403, 375_617));
        assert_eq!(Some(report.input_bytes), total);
        assert!(report.complete);
        // From tokenizers 0.23.3: no_padding(), enable_truncation(64), encode_batch(lines).
        assert_eq!(hash(rows.into_iter()), 0x8d51_86d2_5679_fd20);
    }
}

#[test]
fn rows_come_in_the_order_of_the_lines_over_all_files() {
    let _watchdog = watchdog();
    let folder = tempdir().unwrap();
    let inputs = [
        write(folder.path(), "a", numbers(0..10)),
        write(folder.path(), "empty", ""),
        write(folder.path(), "b", numbers(10..15).trim_end()),
    ];
    let mut pipeline = start(&inputs, options());
    let batches: Vec<_> = pipeline.by_ref().map(Result::unwrap).collect();
    let rows: Vec<usize> = batches.iter().map(|batch| batch.rows()).collect();
    assert_eq!(rows, [4, 4, 4, 3]);
    assert_eq!(batches.iter().flat_map(firsts).collect::<Vec<_>>(), (0..15).collect::<Vec<_>>());
    assert_eq!(batches[2].lines[1..3], [LineId { file: 0, line: 10 }, LineId { file: 2, line: 1 }]);
    assert!(pipeline.report().complete);
    assert!(pipeline.next().is_none(), "it stays ended");
}

#[test]
fn empty_inputs_give_no_batch() {
    let _watchdog = watchdog();
    let folder = tempdir().unwrap();
    let inputs = [write(folder.path(), "empty", ""), Input::from("/dev/null")];
    let mut pipeline = start(&inputs, options());
    assert!(pipeline.next().is_none());
    assert!(pipeline.report().complete);
}

#[test]
fn a_million_empty_lines_are_counted() {
    let _watchdog = watchdog();
    let folder = tempdir().unwrap();
    let input = write(folder.path(), "blank", "\n".repeat(1_000_000) + "5\n");
    let mut pipeline = start(std::slice::from_ref(&input), options());
    assert_eq!(all(&mut pipeline).0, [5]);
    assert_eq!(pipeline.report().skipped.blank(), 1_000_000);

    let keep = PipelineOptions { keep_blank: true, batch_rows: 1000, ..options() };
    let mut pipeline = start(&[input], keep);
    let batch = pipeline.next().unwrap().unwrap();
    assert_eq!((batch.rows(), batch.cols()), (1000, 0));
    assert_eq!(pipeline.by_ref().map(|batch| batch.unwrap().rows()).sum::<usize>(), 999_001);
    assert_eq!(pipeline.report().skipped.blank(), 0);
}

#[test]
fn bad_lines_are_skipped_counted_and_placed() {
    let _watchdog = watchdog();
    let folder = tempdir().unwrap();
    let mut content = b"0\n\xff\n1\n \nboom\n2\n".to_vec();
    content.extend(b"\xc3\n".repeat(100));
    content.extend(b"3\n");
    let input = write(folder.path(), "mixed", content);
    let mut pipeline = start(&[input], PipelineOptions { on_error: OnError::Skip, ..options() });
    assert_eq!(all(&mut pipeline).0, (0..4).collect::<Vec<_>>());
    let skipped = &pipeline.report().skipped;
    let by_kind: Vec<_> = skipped.by_kind().collect();
    assert_eq!(by_kind, [("not UTF-8", 101), ("refused by the tokenizer", 1)]);
    assert_eq!((skipped.total(), skipped.blank(), skipped.first().len()), (102, 1, 20));
    assert_eq!(skipped.first()[0].reason, ItemError::NotUtf8 { at: 1, byte: 0xff });
    assert!(pipeline.report().complete);
}

#[test]
fn a_watcher_is_told_of_every_item_that_is_left_out() {
    let _watchdog = watchdog();
    let folder = tempdir().unwrap();
    let input = write(folder.path(), "mixed", [&b"0\n"[..], &b"\xff\n".repeat(100), b"\nboom\n1\n"].concat());
    let told = Arc::new(Mutex::new(Vec::new()));
    let to = Arc::clone(&told);
    let watcher = Watcher::new(move |name, item| {
        assert!(name.ends_with("mixed"), "{name}");
        to.lock().unwrap().push((item.line, item.kind()));
    });
    let mut pipeline = start(&[input], PipelineOptions { on_error: OnError::Skip, watcher, ..options() });
    assert_eq!(all(&mut pipeline).0, [0, 1]);
    let mut told = told.lock().unwrap().clone();
    told.sort_unstable();
    let mut expected: Vec<_> = (2..102).map(|line| (line, "not UTF-8")).collect();
    expected.push((103, "refused by the tokenizer"));
    assert_eq!(told, expected);
}

#[test]
fn a_bad_line_fails_after_everything_before_it_and_can_be_resumed_once_repaired() {
    let _watchdog = watchdog();
    let folder = tempdir().unwrap();
    let input = write(folder.path(), "mixed", b"0\n1\n2\n3\n4\n5\n\xff\n7\n");
    let mut pipeline = start(std::slice::from_ref(&input), options());
    let mut next = None;
    let mut found = Vec::new();
    let error = loop {
        match pipeline.next().unwrap() {
            Ok(batch) => {
                found.extend(firsts(&batch));
                next = Some(batch.next);
            }
            Err(error) => break error,
        }
    };
    assert_eq!(found, (0..6).collect::<Vec<_>>());
    assert!(matches!(&error, IngestError::BadLine { line: 7, reason: ItemError::NotUtf8 { .. }, .. }), "{error}");
    assert!(error.to_string().contains("mixed line 7: not UTF-8: byte 1"), "{error}");
    assert!(pipeline.next().is_none(), "it ends at an error");
    assert!(!pipeline.report().complete);

    write(folder.path(), "mixed", b"0\n1\n2\n3\n4\n5\n6\n7\n");
    let source = Source::resume(&[input], SourceOptions::default(), &next.unwrap()).unwrap();
    assert_eq!(all(&mut start_source(source, options())).0, [6, 7]);
}

#[test]
fn a_refused_text_fails_with_its_line() {
    let _watchdog = watchdog();
    let folder = tempdir().unwrap();
    let input = write(folder.path(), "boom", "0\n1\n2\n3\n4\nboom\n5\n");
    let (found, error) = all(&mut start(&[input], options()));
    assert_eq!(found, [0, 1, 2, 3], "its batch is not delivered");
    let error = error.unwrap();
    assert!(matches!(error, IngestError::BadLine { line: 6, reason: ItemError::Refused { .. }, .. }), "{error}");
}

#[test]
fn json_lines_give_their_field() {
    let _watchdog = watchdog();
    let folder = tempdir().unwrap();
    let content = "{\"a\":{\"b\":\"1\"}}\n\n{\"a\":{\"b\":\" \"}}\r\n{\"a\":3}\n{\"a\":{\"b\":\"2\"}}";
    let input = write(folder.path(), "json", content);
    let json = PipelineOptions { format: Format::json_lines("a.b"), on_error: OnError::Skip, ..options() };
    let mut pipeline = start(&[input], json);
    assert_eq!(all(&mut pipeline).0, [1, 2]);
    assert_eq!(pipeline.report().skipped.to_string(), "1 skipped (1 without the field), 2 blank");
}

#[test]
fn passes_repeat_with_the_same_batches() {
    let _watchdog = watchdog();
    let folder = tempdir().unwrap();
    let input = write(folder.path(), "six", numbers(0..6));
    let twice = SourceOptions { repeat: Repeat::Times(3), ..SourceOptions::default() };
    let source = Source::open(std::slice::from_ref(&input), twice).unwrap();
    assert_eq!(source.remaining_bytes(), Some(3 * 24));
    let mut pipeline = start_source(source, options());
    let rows: Vec<usize> = pipeline.by_ref().map(|batch| batch.unwrap().rows()).collect();
    assert_eq!(rows, [4, 2, 4, 2, 4, 2]);
    assert_eq!((pipeline.report().items, pipeline.report().input_bytes), (18, 72));

    let forever = SourceOptions { repeat: Repeat::Forever, ..SourceOptions::default() };
    let mut pipeline = start_source(Source::open(&[input], forever).unwrap(), options());
    let passes: Vec<u64> = pipeline.by_ref().take(1001).map(|batch| batch.unwrap().first.pass).collect();
    assert_eq!(passes, (0..1001).map(|batch| batch / 2).collect::<Vec<_>>());
}

#[test]
fn repeating_nothing_is_an_error() {
    let _watchdog = watchdog();
    let folder = tempdir().unwrap();
    let input = write(folder.path(), "blank", "\n \n\n");
    let forever = SourceOptions { repeat: Repeat::Forever, ..SourceOptions::default() };
    let mut pipeline = start_source(Source::open(&[input], forever).unwrap(), options());
    let error = pipeline.next().unwrap().unwrap_err();
    assert!(matches!(error, IngestError::NothingToRepeat { lines: 3 }), "{error}");
    assert_eq!(pipeline.report().skipped.blank(), 3);
}

#[test]
fn cancelling_ends_the_iterator_that_waits_for_a_pipe() {
    let _watchdog = watchdog();
    let (input, _reader, mut writer) = pipe();
    writer.write_all(numbers(0..5).as_bytes()).unwrap();
    let options = options();
    let cancel = Arc::clone(&options.cancel);
    let mut pipeline = start(&[input], options);
    assert_eq!(firsts(&pipeline.next().unwrap().unwrap()), [0, 1, 2, 3]);
    let canceller = thread::spawn(move || cancel.store(true, Ordering::Relaxed));
    assert!(pipeline.next().is_none(), "the fifth line waits for its batch to fill");
    assert!(!pipeline.report().complete);
    canceller.join().unwrap();
}

#[test]
fn dropping_ends_the_threads_wherever_they_are() {
    let _watchdog = watchdog();
    let folder = tempdir().unwrap();
    let input = write(folder.path(), "long", numbers(0..1000));
    let forever = SourceOptions { repeat: Repeat::Forever, ..SourceOptions::default() };
    for taken in [0, 1, 50] {
        let source = Source::open(std::slice::from_ref(&input), forever.clone()).unwrap();
        let mut pipeline = start_source(source, options());
        assert_eq!(pipeline.by_ref().take(taken).map(Result::unwrap).count(), taken);
        // Joins the workers and the reader: this returns, or the watchdog barks.
        drop(pipeline);
    }
    // An endless line and endless blank lines end as well.
    for content in [&b"x"[..], b"\n"] {
        let (input, reader, mut writer) = pipe();
        let feeder = thread::spawn(move || while writer.write_all(&content.repeat(1 << 16)).is_ok() {});
        let pipeline = start(&[input], options());
        drop(pipeline);
        drop(reader);
        feeder.join().unwrap();
    }
}

#[test]
fn a_pipe_that_is_slow_gives_the_same_batches() {
    let _watchdog = watchdog();
    let (input, _reader, mut writer) = pipe();
    let feeder = thread::spawn(move || {
        for byte in numbers(0..9).bytes() {
            writer.write_all(&[byte]).unwrap();
            thread::yield_now();
        }
    });
    let mut pipeline = start(&[input], options());
    assert_eq!(pipeline.input_bytes(), None);
    let rows: Vec<usize> = pipeline.by_ref().map(|batch| batch.unwrap().rows()).collect();
    assert_eq!(rows, [4, 4, 1]);
    feeder.join().unwrap();
}

#[test]
fn options_out_of_range_are_refused() {
    let folder = tempdir().unwrap();
    let input = write(folder.path(), "a", "0\n");
    for bad in [
        PipelineOptions { batch_rows: 0, ..options() },
        PipelineOptions { batch_rows: (1 << 20) + 1, ..options() },
        PipelineOptions { workers: 1025, ..options() },
    ] {
        let source = Source::open(std::slice::from_ref(&input), SourceOptions::default()).unwrap();
        let refused = Pipeline::start(source, number_tokenizer(&TokenizerOptions::default()), bad);
        assert!(matches!(refused, Err(IngestError::BadOption { .. })), "{refused:?}");
    }
}
