//! What the tests share: the bundled data, a tokenizer small enough to check by eye, and a watchdog.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test helper fails by panicking")]

use std::fs;
use std::io::{PipeReader, PipeWriter};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use forebay_ingest::{
    IngestError, Input, Pipeline, PipelineOptions, Source, SourceOptions, TokenBatch, Tokenizer, TokenizerOptions,
};

pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/data").join(name)
}

/// Words `0` to `999` are their own ids, `boom` makes the tokenizer fail: it has no unknown token.
pub(crate) fn number_tokenizer(options: &TokenizerOptions) -> Arc<Tokenizer> {
    let vocab: Vec<String> = (0..1000).map(|id| format!("\"{id}\":{id}")).collect();
    let json = format!(
        r#"{{"version":"1.0","added_tokens":[],"pre_tokenizer":{{"type":"WhitespaceSplit"}},
            "model":{{"type":"WordLevel","vocab":{{{}}},"unk_token":"missing"}}}}"#,
        vocab.join(",")
    );
    Arc::new(Tokenizer::from_bytes(json.as_bytes(), "numbers", options).unwrap())
}

/// Ends the process if it is not dropped within two minutes.
pub(crate) struct Watchdog(#[allow(dead_code, reason = "its drop is the signal")] Sender<()>);

pub(crate) fn watchdog() -> Watchdog {
    let (alive, ended) = channel();
    let test = thread::current().name().unwrap_or("?").to_owned();
    thread::spawn(move || {
        if ended.recv_timeout(Duration::from_secs(120)) == Err(RecvTimeoutError::Timeout) {
            eprintln!("{test} hangs");
            std::process::abort();
        }
    });
    Watchdog(alive)
}

pub(crate) fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> Input {
    let path = folder.join(name);
    fs::write(&path, content).unwrap();
    Input::from(path)
}

/// A pipe: the input that reads it, its two ends.
pub(crate) fn pipe() -> (Input, PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    let input = Input::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
    (input, reader, writer)
}

pub(crate) fn start(inputs: &[Input], options: PipelineOptions) -> Pipeline {
    start_source(Source::open(inputs, SourceOptions::default()).unwrap(), options)
}

pub(crate) fn start_source(source: Source, options: PipelineOptions) -> Pipeline {
    Pipeline::start(source, number_tokenizer(&TokenizerOptions::default()), options).unwrap()
}

/// First id of every row.
pub(crate) fn firsts(batch: &TokenBatch) -> Vec<u32> {
    batch.data.iter().map(|row| row[0]).collect()
}

/// First ids of all rows, and the error at the end if there is one.
pub(crate) fn all(pipeline: &mut Pipeline) -> (Vec<u32>, Option<IngestError>) {
    let mut found = Vec::new();
    for batch in pipeline {
        match batch {
            Ok(batch) => found.extend(firsts(&batch)),
            Err(error) => return (found, Some(error)),
        }
    }
    (found, None)
}
