//! Lines in, tokenized batches out, in order, on all cores.
//!
//! ```text
//!   reader thread          workers (N threads)          the caller
//!   lines → text batches ─▶ jobs ─▶ tokenize ─▶ answer ─┐
//!        └─ tickets, in order ───────────────────────────┴▶ next(): first ticket, wait for its answer
//! ```
//!
//! Each job carries its own answer channel; the other end travels to the caller as a ticket, in the order of reading.
//! Both queues are bounded, so a caller who does not ask stops the workers, and those the reader. This file owns the
//! threads; what they do with a batch is in `batch.rs`.
//!
//! # How it ends
//! - The reader ends at the end of the inputs, at an error, when a queue is gone, or when `cancel` is true.
//! - A worker ends when the jobs are closed or the pipeline is dropped; it looks at `cancel` between rows.
//! - Dropping the pipeline, at any time, joins the workers: it takes as long as tokenizing one row. The reader is
//!   joined when all inputs are files. A reader that waits for a pipe cannot be interrupted, so it is left alone and
//!   ends when its read does.
//!
//! # Costs
//! At most `2 × workers + 1` batches of text wait to be tokenized or delivered, each of at most
//! `batch_rows × max_line_bytes`, besides the one being read and one a worker.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};

use super::batch::{Batcher, LineId, Made, OnError, TextBatch, TokenBatch};
use super::format::Format;
use super::report::Report;
use super::source::Source;
use crate::error::{IngestError, ItemError};
use crate::text::Tokenizer;

/// How often a waiting caller looks at the cancel flag.
const SLICE: Duration = Duration::from_millis(50);
/// Most threads that a pipeline starts.
const MAX_WORKERS: usize = 1024;
/// Most rows that a batch may have.
const MAX_BATCH_ROWS: usize = 1 << 20;

/// How a pipeline works.
#[derive(Debug, Clone)]
pub struct PipelineOptions {
    /// Rows of a batch; the last one of a pass may have fewer. Default 32.
    pub batch_rows: usize,
    /// Threads that tokenize; default (0) is one a core that this process may use.
    pub workers: usize,
    /// What a line is; default plain text.
    pub format: Format,
    /// Whether lines with nothing but white space are items; by default they are passed over and counted.
    pub keep_blank: bool,
    /// What happens to a line that is no item; default fail.
    pub on_error: OnError,
    /// Ends the run when it becomes true, within 50 ms and one row; for signal handlers.
    pub cancel: Arc<AtomicBool>,
}

impl Default for PipelineOptions {
    fn default() -> Self {
        Self {
            batch_rows: 32,
            workers: 0,
            format: Format::default(),
            keep_blank: false,
            on_error: OnError::default(),
            cancel: Arc::default(),
        }
    }
}

/// What a worker makes of a job.
type Answer = Result<TokenBatch, (LineId, ItemError)>;

struct Job {
    batch: TextBatch,
    answer: Sender<Answer>,
}

/// What the reader tells the caller, in order.
enum Ticket {
    Batch(Receiver<Answer>),
    Failed(IngestError),
    End,
}

/// Tokenizes the lines of a source on all cores; an iterator over batches in the order of the lines.
///
/// The iterator ends after the last batch, after an error, and when cancelled; [`Report::complete`] tells the first from
/// the others. Every batch has at least one row.
///
/// Dropping it ends its threads, which takes as long as tokenizing one row; only a reader that waits for a pipe stays
/// behind until its read returns.
///
/// # Costs
/// At most `2 × workers + 1` batches wait to be tokenized or delivered, each of at most `batch_rows × max_line_bytes`;
/// besides, one is being read, and each worker tokenizes one row (60 to 150 times its bytes).
///
/// ```
/// use std::sync::Arc;
/// use forebay_ingest::{Input, Pipeline, PipelineOptions, Source, SourceOptions, Tokenizer, TokenizerOptions};
/// # let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data");
/// let tokenizer = Tokenizer::from_file(format!("{data}/tokenizer.json"), &TokenizerOptions::default())?;
/// let source = Source::open(&[Input::from(format!("{data}/kjv.txt"))], SourceOptions::default())?;
/// let mut pipeline = Pipeline::start(source, Arc::new(tokenizer), PipelineOptions::default())?;
/// let batch = pipeline.next().expect("the corpus is not empty")?;
/// assert_eq!((batch.rows(), batch.first_item, batch.next.line), (32, 0, 32));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Pipeline {
    tickets: Option<Receiver<Ticket>>,
    /// Dropped to end the workers, whatever the reader does.
    stop: Option<Sender<()>>,
    workers: Vec<JoinHandle<()>>,
    reader: Option<JoinHandle<()>>,
    join_reader: bool,
    shared: Arc<Shared>,
    names: Vec<String>,
    remaining_bytes: Option<u64>,
    items: u64,
    report: Report,
}

/// What all threads of a pipeline look at.
struct Shared {
    tokenizer: Arc<Tokenizer>,
    on_error: OnError,
    cancel: Arc<AtomicBool>,
    /// Set when the pipeline has ended; the source's own flag, so that a reader inside an endless line sees it.
    dropped: Arc<AtomicBool>,
}

impl Shared {
    fn stopped(&self) -> bool {
        // ORDER none, Relaxed: the flags are the whole message.
        self.cancel.load(Ordering::Relaxed) || self.dropped.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipeline")
            .field("workers", &self.workers.len())
            .field("report", &self.report)
            .finish_non_exhaustive()
    }
}

impl Pipeline {
    /// Starts the threads. Reading begins at once, and goes ahead of the caller by a bounded number of batches.
    ///
    /// # Errors
    /// [`IngestError::BadOption`], or [`Spawn`](IngestError::Spawn) if threads are used up; no thread is left then.
    pub fn start(source: Source, tokenizer: Arc<Tokenizer>, options: PipelineOptions) -> Result<Self, IngestError> {
        let threads = check(&options)?;
        let (job_sender, jobs) = bounded(2 * threads);
        let (ticket_sender, tickets) = bounded(2 * threads);
        let (stop, stopped) = bounded(0);
        let shared = Arc::new(Shared {
            tokenizer,
            on_error: options.on_error,
            cancel: Arc::clone(&options.cancel),
            dropped: source.cancel_flag(),
        });
        let at = source.position();
        let mut pipeline = Self {
            tickets: Some(tickets),
            stop: Some(stop),
            workers: Vec::with_capacity(threads),
            reader: None,
            join_reader: !source.has_stream(),
            shared: Arc::clone(&shared),
            names: (0..source.inputs() as u32).map(|file| source.name(file)).collect(),
            remaining_bytes: source.remaining_bytes(),
            items: at.items,
            report: Report::default(),
        };
        for index in 1..=threads {
            let (shared, jobs, stopped) = (Arc::clone(&shared), jobs.clone(), stopped.clone());
            let worker = thread::Builder::new()
                .name(format!("forebay-tok-{index}"))
                .spawn(move || work(&shared, &jobs, &stopped));
            let worker = worker.map_err(|source| IngestError::Spawn { index, threads, source })?;
            pipeline.workers.push(worker);
        }
        let batcher = Batcher::new(source, options.format, options.keep_blank, options.on_error, options.batch_rows);
        let reader = thread::Builder::new()
            .name("forebay-read".into())
            .spawn(move || read(batcher, &shared, &job_sender, &ticket_sender))
            .map_err(|source| IngestError::Spawn { index: threads + 1, threads: threads + 1, source })?;
        pipeline.reader = Some(reader);
        Ok(pipeline)
    }

    /// What was delivered and left out so far. Lines left out after the last batch are in it once the iterator ended.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Bytes of input from the start (or resume) to the end of the last pass: what [`Report::input_bytes`] will come
    /// to. `None` if that is unknown: a pipe is among the inputs, or they are repeated forever.
    #[must_use]
    pub fn input_bytes(&self) -> Option<u64> {
        self.remaining_bytes
    }

    /// Name of input `file`, for people.
    #[must_use]
    pub fn name(&self, file: u32) -> &str {
        self.names.get(file as usize).map_or("unknown input", String::as_str)
    }

    /// Threads that tokenize.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// The next ticket's batch. `Ok(None)` at the end and when cancelled.
    fn take(&mut self) -> Result<Option<Answer>, IngestError> {
        let lost = IngestError::WorkerLost { items: self.items };
        let Some(tickets) = &self.tickets else {
            return Ok(None);
        };
        match wait(tickets, &self.shared) {
            Waited::Got(Ticket::Batch(answer)) => match wait(&answer, &self.shared) {
                Waited::Got(answer) => Ok(Some(answer)),
                Waited::Cancelled => Ok(None),
                Waited::Gone => Err(lost),
            },
            Waited::Got(Ticket::Failed(error)) => Err(error),
            Waited::Got(Ticket::End) => {
                self.report.complete = true;
                Ok(None)
            }
            Waited::Cancelled => Ok(None),
            Waited::Gone => Err(lost),
        }
    }

    /// Counts a batch and gives it its place in the run.
    fn deliver(&mut self, batch: &mut TokenBatch) {
        batch.first_item = self.items;
        batch.first.items = self.items;
        self.items += batch.rows() as u64;
        batch.next.items = self.items;
        let report = &mut self.report;
        report.items += batch.rows() as u64;
        report.tokens += batch.tokens.token_count() as u64;
        report.padded_tokens += (batch.rows() * batch.cols()) as u64;
        report.input_bytes += batch.input_bytes;
        report.skipped.merge(batch.skipped.clone());
        report.batches += u64::from(batch.rows() > 0);
    }

    /// Ends all threads that can be ended, and waits for those.
    fn stop(&mut self) {
        // ORDER none, Relaxed: the flag is the whole message; joining orders everything else.
        self.shared.dropped.store(true, Ordering::Relaxed);
        drop(self.tickets.take());
        drop(self.stop.take());
        for worker in self.workers.drain(..) {
            // A panic of a worker was already told as `WorkerLost`.
            let _ = worker.join();
        }
        match self.reader.take() {
            Some(reader) if self.join_reader => drop(reader.join()),
            _ => {}
        }
    }
}

impl Iterator for Pipeline {
    type Item = Result<TokenBatch, IngestError>;

    fn next(&mut self) -> Option<Self::Item> {
        let taken = loop {
            match self.take() {
                Ok(Some(Ok(mut batch))) => {
                    self.deliver(&mut batch);
                    // One without rows only tells what was left out.
                    if batch.rows() > 0 {
                        return Some(Ok(batch));
                    }
                }
                Ok(Some(Err((id, reason)))) => {
                    let file = self.name(id.file).to_owned();
                    break Some(Err(IngestError::BadLine { file, line: id.line, reason }));
                }
                Ok(None) => break None,
                Err(error) => break Some(Err(error)),
            }
        };
        self.stop();
        taken
    }
}

impl std::iter::FusedIterator for Pipeline {}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.stop();
    }
}

enum Waited<T> {
    Got(T),
    Cancelled,
    Gone,
}

/// Waits for a message, looking at the cancel flag all the while.
fn wait<T>(channel: &Receiver<T>, shared: &Shared) -> Waited<T> {
    loop {
        if shared.stopped() {
            return Waited::Cancelled;
        }
        match channel.recv_timeout(SLICE) {
            Ok(message) => return Waited::Got(message),
            Err(RecvTimeoutError::Timeout) => {}
            // Threads also end because of the flag, which may have been set since it was looked at.
            Err(RecvTimeoutError::Disconnected) if shared.stopped() => return Waited::Cancelled,
            Err(RecvTimeoutError::Disconnected) => return Waited::Gone,
        }
    }
}

/// The reader thread.
fn read(mut batcher: Batcher, shared: &Shared, jobs: &Sender<Job>, tickets: &Sender<Ticket>) {
    while !shared.stopped() {
        let last = match batcher.next() {
            Made::Batch(batch) => {
                let (answer, ticket) = bounded(1);
                // Either queue is gone once the pipeline has ended.
                if tickets.send(Ticket::Batch(ticket)).is_err() || jobs.send(Job { batch, answer }).is_err() {
                    return;
                }
                continue;
            }
            Made::Failed(error) => Ticket::Failed(error),
            Made::End => Ticket::End,
        };
        // Nobody listens any more if this fails.
        let _ = tickets.send(last);
        return;
    }
}

/// A worker thread.
fn work(shared: &Shared, jobs: &Receiver<Job>, stopped: &Receiver<()>) {
    loop {
        let job = select! {
            recv(jobs) -> job => job,
            recv(stopped) -> _ => return,
        };
        let Ok(Job { batch, answer }) = job else { return };
        let Some(tokenized) = batch.tokenize(&shared.tokenizer, shared.on_error, || shared.stopped()) else {
            return;
        };
        // The caller may be gone.
        let _ = answer.send(tokenized);
    }
}

/// Checks the options; the number of workers.
fn check(options: &PipelineOptions) -> Result<usize, IngestError> {
    let bad = |option, found: usize, expected| IngestError::BadOption { option, found: found.to_string(), expected };
    if options.batch_rows == 0 || options.batch_rows > MAX_BATCH_ROWS {
        return Err(bad("batch_rows", options.batch_rows, "1 to 1048576 rows"));
    }
    match options.workers {
        0 => Ok(thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MAX_WORKERS)),
        workers if workers <= MAX_WORKERS => Ok(workers),
        workers => Err(bad("workers", workers, "1 to 1024 threads, or 0 for one a core")),
    }
}
