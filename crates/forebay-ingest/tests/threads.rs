//! Alone in its process, so that threads can be counted.

#![cfg(feature = "text")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod common;

use common::{data, watchdog};
use std::sync::Arc;

use forebay_ingest::{Input, Pipeline, PipelineOptions, Source, SourceOptions, Tokenizer, TokenizerOptions};

fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.map(|name| name.trim().to_owned()).collect()
}

#[test]
fn nobody_but_the_pipeline_starts_threads_and_it_leaves_none() {
    let _watchdog = watchdog();
    let tokenizer = Tokenizer::from_file(data("tokenizer.json"), &TokenizerOptions::default()).unwrap();
    let before = threads().len();
    let source = Source::open(&[Input::from(data("kjv.txt"))], SourceOptions::default()).unwrap();
    let options = PipelineOptions { workers: 3, ..PipelineOptions::default() };
    let mut pipeline = Pipeline::start(source, Arc::new(tokenizer), options).unwrap();
    assert_eq!(pipeline.workers(), 3);
    // Far enough that every worker has tokenized; the crate's own thread pool would be running by now.
    assert_eq!(pipeline.by_ref().take(100).map(Result::unwrap).count(), 100);
    let during = threads();
    assert_eq!(during.len(), before + 4, "{during:?}");
    assert_eq!(during.iter().filter(|name| name.starts_with("forebay-")).count(), 4, "{during:?}");
    drop(pipeline);
    // The kernel lists a thread a moment longer than it can be joined; the watchdog ends this if one stays.
    while threads().len() > before {
        std::thread::yield_now();
    }
}
