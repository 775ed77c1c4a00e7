//! Other orders than that of reading, shuffled and as batches are ready: every item once, also over a resume.

#![cfg(feature = "text")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

mod common;

use common::{firsts, pipe, start_source, watchdog, write};
use forebay_ingest::{
    Checkpoint, IngestError, Input, OnError, PipelineOptions, Repeat, Shuffle, Source, SourceOptions, TokenBatch,
};

const LINES: u32 = 500;

/// Two files that hold the numbers below [`LINES`]; some lines are long.
fn files(folder: &std::path::Path) -> [Input; 2] {
    let line = |n: u32| format!("{n}{}\n", " 7".repeat(if n.is_multiple_of(200) { 50_000 } else { 0 }));
    let text = |range: std::ops::Range<u32>| range.map(line).collect::<String>();
    [write(folder, "a", text(0..300)), write(folder, "b", text(300..LINES) + "\nboom\n")]
}

fn options(ordered: bool) -> PipelineOptions {
    let on_error = OnError::Skip;
    PipelineOptions { batch_rows: 8, workers: 4, ordered, on_error, ..PipelineOptions::default() }
}

fn shuffled(seed: u64, passes: u64) -> SourceOptions {
    let shuffle = Some(Shuffle { seed, block_items: 64 });
    SourceOptions { shuffle, repeat: Repeat::Times(passes), ..SourceOptions::default() }
}

/// All batches, going on after a `checkpoint` if there is one.
fn run(inputs: &[Input], reading: &SourceOptions, how: PipelineOptions, after: Option<&Checkpoint>) -> Vec<TokenBatch> {
    let pipeline = match after {
        None => start_source(Source::open(inputs, reading.clone()).unwrap(), how),
        Some(Checkpoint { position, ahead }) => {
            let source = Source::resume(inputs, reading.clone(), position).unwrap();
            start_source(source, PipelineOptions { ahead: ahead.clone(), ..how })
        }
    };
    pipeline.map(Result::unwrap).collect()
}

fn items(batches: &[TokenBatch]) -> Vec<u32> {
    batches.iter().flat_map(firsts).collect()
}

fn sorted(mut items: Vec<u32>) -> Vec<u32> {
    items.sort_unstable();
    items
}

#[test]
fn a_shuffle_is_another_order_of_the_same_items_in_every_pass() {
    let _watchdog = watchdog();
    let folder = tempfile::tempdir().unwrap();
    let inputs = files(folder.path());
    let once = items(&run(&inputs, &shuffled(1, 1), options(true), None));
    let straight: Vec<u32> = (0..LINES).collect();
    assert_ne!(once, straight);
    assert_eq!(sorted(once.clone()), straight);
    let twice = items(&run(&inputs, &shuffled(1, 2), options(true), None));
    let (first, second) = twice.split_at(once.len());
    assert_eq!(first, once, "the same seed, the same order");
    assert_ne!(second, once, "another pass, another order");
    assert_eq!(sorted(second.to_vec()), straight);
    assert_ne!(items(&run(&inputs, &shuffled(2, 1), options(true), None)), once);
}

#[test]
fn a_shuffled_run_goes_on_from_every_batch() {
    let _watchdog = watchdog();
    let folder = tempfile::tempdir().unwrap();
    let inputs = files(folder.path());
    let reading = shuffled(3, 2);
    let all = run(&inputs, &reading, options(true), None);
    for at in (0..all.len()).step_by(11).chain([all.len() - 1]) {
        let checkpoint = Checkpoint::decode(&all[at].checkpoint().encode()).unwrap();
        let rest = run(&inputs, &reading, options(true), Some(&checkpoint));
        assert_eq!(items(&rest), items(&all[at + 1..]), "after batch {at}");
        assert!(rest.first().is_none_or(|next| next.first_item == all[at + 1].first_item));
    }
    for other in [shuffled(4, 2), SourceOptions::default()] {
        let refused = Source::resume(&inputs, other, &all[5].next).unwrap_err();
        assert!(matches!(refused, IngestError::OtherInputs { .. }), "{refused}");
    }
}

#[test]
fn a_pipe_cannot_be_shuffled() {
    let (input, _reader, _writer) = pipe();
    let refused = Source::open(&[input], shuffled(1, 1)).unwrap_err();
    assert!(matches!(refused, IngestError::CannotShuffle { .. }), "{refused}");
}

#[test]
fn an_unordered_run_delivers_every_item_once_also_over_a_resume() {
    let _watchdog = watchdog();
    let folder = tempfile::tempdir().unwrap();
    let inputs = files(folder.path());
    let straight: Vec<u32> = (0..LINES).collect();
    for reading in [SourceOptions::default(), shuffled(5, 1)] {
        let all = run(&inputs, &reading, options(false), None);
        assert_eq!(sorted(items(&all)), straight);
        assert!(all.iter().any(|batch| !batch.ahead.is_empty()), "no batch came before another");
        let mut before = 0;
        for (at, batch) in all.iter().enumerate() {
            assert_eq!(batch.first_item, before);
            before += batch.rows() as u64;
            assert_eq!(batch.next.items, before);
            if at % 12 == 0 || !batch.ahead.is_empty() && at % 4 == 0 {
                let checkpoint = Checkpoint::decode(&batch.checkpoint().encode()).unwrap();
                for ordered in [false, true] {
                    let rest = run(&inputs, &reading, options(ordered), Some(&checkpoint));
                    let both = [items(&all[..=at]), items(&rest)].concat();
                    assert_eq!(sorted(both), straight, "after batch {at}");
                }
            }
        }
    }
}

/// Went wrong: the second run told only what it had heard of itself, and the third one delivered the rest again.
#[test]
fn what_was_delivered_ahead_is_known_after_a_second_kill_too() {
    let _watchdog = watchdog();
    let folder = tempfile::tempdir().unwrap();
    let inputs = files(folder.path());
    let straight: Vec<u32> = (0..LINES).collect();
    let one_worker = || PipelineOptions { workers: 1, ..options(false) };
    for reading in [SourceOptions::default(), shuffled(5, 1), shuffled(6, 2)] {
        let passes = if reading.repeat == Repeat::Times(2) { 2 } else { 1 };
        let expected = sorted(straight.repeat(passes));
        let first = run(&inputs, &reading, options(false), None);
        // As far ahead as it was.
        let most = |batch: &TokenBatch| (0..2000).filter(|&at| batch.ahead.contains(at)).count();
        let killed = (0..first.len()).max_by_key(|&at| most(&first[at])).unwrap();
        assert!(most(&first[killed]) > 0, "no batch came before another");
        let checkpoint = first[killed].checkpoint();
        for second_way in [options(true), one_worker(), options(false)] {
            for batches in [1, 2, 5] {
                let second = run(&inputs, &reading, second_way.clone(), Some(&checkpoint));
                let Some(second) = second.get(..batches) else { continue };
                let checkpoint = Checkpoint::decode(&second[batches - 1].checkpoint().encode()).unwrap();
                let third = run(&inputs, &reading, options(true), Some(&checkpoint));
                let all = [items(&first[..=killed]), items(second), items(&third)].concat();
                assert_eq!(sorted(all), expected, "killed after batch {killed}, then after {batches}");
            }
        }
    }
}
