//! Items in, prepared batches out, on all cores: in order, or as they are ready.
//!
//! ```text
//!   reader thread          workers (N threads)          the caller
//!   items → raw batches ─▶ jobs ─▶ prepare ─▶ answers ─▶ next(): the next one in order, or any
//!        └─ a permit a batch ◀──────────────────────────── given back once all before it are delivered
//! ```
//!
//! Batches are numbered as they are read. All answers come through one channel; the caller keeps those that are not due.
//! A batch needs a permit from when it was read until it and all before it are delivered, so a caller who does not ask
//! stops the workers, and those the reader, and no batch is far ahead of another. This file owns the threads; what they
//! do with a batch is in `batch.rs` and in the files of the kinds.
//!
//! # How it ends
//! - The reader ends at the end of the inputs, at an error, when a queue is gone, or when `cancel` is true.
//! - A worker ends when the jobs are closed or the pipeline is dropped; it looks at `cancel` between items.
//! - A job that is dropped without an answer says so, so that a worker's panic is told and not waited for.
//! - Dropping the pipeline, at any time, joins the workers: it takes as long as preparing one item. The reader is
//!   joined when all inputs are files. A reader that waits for a pipe cannot be interrupted, so it is left alone and
//!   ends when its read does.
//!
//! # Costs
//! At most `2 × workers + 1` batches wait to be prepared or delivered, each of at most `batch_rows × max_line_bytes` (or
//! 256 MiB of images), besides the one being read and one a worker.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::batch::{Batch, OnError};
use super::batcher::{Batcher, bad_item};
use super::checkpoint::Ahead;
use super::format::Format;
use super::position::Position;
use super::report::{Report, Watcher};
use super::stage::{BatchData, Prepares, Reads, Unit};
use super::threads::{Job, Outcome, Reader, Shared, Waited, wait, work};
use crate::error::IngestError;

/// Most threads that a pipeline starts.
const MAX_WORKERS: usize = 1024;
/// Most rows that a batch may have.
const MAX_BATCH_ROWS: usize = 1 << 20;

/// How a pipeline works.
#[derive(Debug, Clone)]
pub struct PipelineOptions {
    /// Rows of a batch; the last one of a pass may have fewer. Default 32.
    pub batch_rows: usize,
    /// Threads that prepare; default (0) is one a core that this process may use.
    pub workers: usize,
    /// What a line is, for texts; default plain text.
    pub format: Format,
    /// Whether texts of nothing but white space are items; by default they are passed over and counted.
    pub keep_blank: bool,
    /// What happens to a line or sample that is no item; default fail.
    pub on_error: OnError,
    /// Whether batches come in the order of reading; default true. Else each comes when it is ready, and the position
    /// to resume from is told with what was delivered beyond it ([`Batch::ahead`]).
    pub ordered: bool,
    /// What an earlier run delivered after the position that the source resumes at: [`Checkpoint::ahead`]. With anything
    /// in it, all options that batches depend on must be as they were then.
    ///
    /// [`Checkpoint::ahead`]: super::checkpoint::Checkpoint::ahead
    pub ahead: Ahead,
    /// Is told of every item that is left out; default nobody. The report keeps the first ones only.
    pub watcher: Watcher,
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
            ordered: true,
            ahead: Ahead::default(),
            watcher: Watcher::default(),
            cancel: Arc::default(),
        }
    }
}

/// Prepares the items of a source on all cores; an iterator over batches.
///
/// Made by [`Pipeline::start`](Batches::start) for texts, [`TablePipeline::tables`](Batches::tables) for tables and
/// [`ImagePipeline::images`](Batches::images) for images.
///
/// The iterator ends after the last batch, after an error, and when cancelled; [`Report::complete`] tells the first from
/// the others. Every batch has at least one row.
///
/// Dropping it ends its threads, which takes as long as preparing one item; only a reader that waits for a pipe stays
/// behind until its read returns.
///
/// # Costs
/// At most `2 × workers + 1` batches wait to be prepared or delivered, each of at most `batch_rows × max_line_bytes` (or
/// 256 MiB of images); besides, one is being read, and each worker prepares one (tokenizing a row takes 60 to 150 times
/// its bytes). A shuffled source holds a block more.
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
pub struct Batches<D> {
    answers: Option<Receiver<(u64, Outcome<D>)>>,
    /// One in it for every batch between its reading and its being delivered with all before it.
    permits: Option<Receiver<()>>,
    /// Dropped to end the workers, whatever the reader does.
    stop: Option<Sender<()>>,
    workers: Vec<JoinHandle<()>>,
    reader: Option<JoinHandle<()>>,
    join_reader: bool,
    shared: Arc<Shared>,
    unit: Unit,
    remaining_bytes: Option<u64>,
    ordered: bool,
    /// Came before it was due.
    held: BTreeMap<u64, Outcome<D>>,
    /// Number of the first batch that was not delivered, and where the source stood before it.
    due: u64,
    low: Position,
    /// From `due` on: where each batch that was delivered ended.
    window: VecDeque<Option<Position>>,
    /// Batches that an earlier run delivered, counted from where this one began. The reader may be far from them.
    known: Ahead,
    items: u64,
    report: Report,
}

impl<D> fmt::Debug for Batches<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batches")
            .field("workers", &self.workers.len())
            .field("report", &self.report)
            .finish_non_exhaustive()
    }
}

impl<D: BatchData> Batches<D> {
    /// Starts the threads. Reading begins at once, and goes ahead of the caller by a bounded number of batches.
    pub(crate) fn run<R, P>(source: R, prepares: P, options: PipelineOptions) -> Result<Self, IngestError>
    where
        R: Reads,
        P: Prepares<Raw = R::Raw, Data = D>,
    {
        let threads = check(&options)?;
        let (permit, permits) = bounded((2 * threads + 1).min(Ahead::MOST));
        let (job_sender, jobs) = bounded::<Job<R::Raw, D>>(2 * threads);
        let (answer_sender, answers) = unbounded();
        let (stop, stopped) = bounded(0);
        let shared = Arc::new(Shared {
            on_error: options.on_error,
            watcher: options.watcher.clone(),
            names: (0..source.inputs() as u32).map(|file| source.name(file)).collect(),
            cancel: Arc::clone(&options.cancel),
            dropped: source.cancel_flag(),
        });
        let at = source.position();
        let mut pipeline = Self {
            answers: Some(answers),
            permits: Some(permits),
            stop: Some(stop),
            workers: Vec::with_capacity(threads),
            reader: None,
            join_reader: !source.has_stream(),
            shared: Arc::clone(&shared),
            unit: R::UNIT,
            remaining_bytes: source.remaining_bytes(),
            ordered: options.ordered,
            held: BTreeMap::new(),
            due: 0,
            low: at,
            window: VecDeque::new(),
            known: options.ahead.clone(),
            items: at.items,
            report: Report::default(),
        };
        let prepares = Arc::new(prepares);
        for index in 1..=threads {
            let (shared, jobs, stopped) = (Arc::clone(&shared), jobs.clone(), stopped.clone());
            let prepares = Arc::clone(&prepares);
            let worker = thread::Builder::new()
                .name(format!("forebay-prep-{index}"))
                .spawn(move || work(&shared, &*prepares, &jobs, &stopped));
            let worker = worker.map_err(|source| IngestError::Spawn { index, threads, source })?;
            pipeline.workers.push(worker);
        }
        let batcher = Batcher::new(source, options.on_error, options.batch_rows, options.watcher);
        let reader = Reader { shared, ahead: options.ahead, permit, jobs: job_sender, answers: answer_sender };
        let reader = thread::Builder::new()
            .name("forebay-read".into())
            .spawn(move || reader.read(batcher))
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
        self.shared.name(file)
    }

    /// What the items are: lines or samples.
    #[must_use]
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// Threads that prepare.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// What is to be told next. `None` when cancelled.
    fn take(&mut self) -> Option<(u64, Outcome<D>)> {
        loop {
            if let Some(outcome) = self.held.remove(&self.due) {
                return Some((self.due, outcome));
            }
            let (number, outcome) = match wait(self.answers.as_ref()?, &self.shared) {
                Waited::Got(answer) => answer,
                Waited::Cancelled => return None,
                Waited::Gone => (self.due, Outcome::Lost),
            };
            match outcome {
                // Threads end because of the flag, too, and leave their work undone.
                Outcome::Lost if self.shared.stopped() => return None,
                Outcome::Lost => return Some((number, outcome)),
                Outcome::Batch(_) | Outcome::Done(_) | Outcome::Bad(..) if !self.ordered => {
                    return Some((number, outcome));
                }
                _ => self.held.insert(number, outcome),
            };
        }
    }

    /// Takes note that a batch, which ended at `next`, is delivered.
    fn delivered(&mut self, number: u64, next: Position) {
        let at = (number - self.due) as usize;
        if self.window.len() <= at {
            self.window.resize(at + 1, None);
        }
        self.window[at] = Some(next);
        while let Some(&Some(next)) = self.window.front() {
            self.window.pop_front();
            self.due += 1;
            self.low = next;
            if let Some(permits) = &self.permits {
                let _ = permits.try_recv();
            }
        }
    }

    /// Counts a batch and gives it its place in the run.
    fn deliver(&mut self, number: u64, batch: &mut Batch<D>) {
        if number == self.due {
            batch.follows = self.low;
        }
        self.delivered(number, batch.next);
        batch.first_item = self.items;
        batch.first.items = self.items;
        self.items += batch.rows() as u64;
        batch.next = Position { items: self.items, ..self.low };
        batch.ahead = Ahead::of(&self.window, &self.known, self.due);
        let report = &mut self.report;
        report.items += batch.rows() as u64;
        report.tokens += batch.data.tokens();
        report.padded_tokens += batch.data.padded_tokens();
        report.input_bytes += batch.input_bytes;
        report.skipped.merge(batch.skipped.clone());
        report.batches += u64::from(batch.rows() > 0);
    }
}

impl<D> Batches<D> {
    /// Ends all threads that can be ended, and waits for those.
    fn stop(&mut self) {
        // ORDER none, Relaxed: the flag is the whole message; joining orders everything else.
        self.shared.dropped.store(true, Ordering::Relaxed);
        drop(self.answers.take());
        drop(self.permits.take());
        drop(self.stop.take());
        self.held.clear();
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

impl<D: BatchData> Iterator for Batches<D> {
    type Item = Result<Batch<D>, IngestError>;

    fn next(&mut self) -> Option<Self::Item> {
        let last = loop {
            match self.take() {
                Some((number, Outcome::Batch(mut batch))) => {
                    self.deliver(number, &mut batch);
                    // One without rows only tells what was left out.
                    if batch.rows() > 0 {
                        return Some(Ok(*batch));
                    }
                }
                Some((number, Outcome::Done(next))) => self.delivered(number, next),
                Some((_, Outcome::Bad(id, reason))) => {
                    let file = self.name(id.file).to_owned();
                    break Some(Err(bad_item(self.unit, file, id, reason)));
                }
                Some((_, Outcome::Failed(error))) => break Some(Err(error)),
                Some((_, Outcome::End)) => {
                    self.report.complete = true;
                    break None;
                }
                Some((_, Outcome::Lost)) => break Some(Err(IngestError::WorkerLost { items: self.items })),
                None => break None,
            }
        };
        self.stop();
        last
    }
}

impl<D: BatchData> std::iter::FusedIterator for Batches<D> {}

impl<D> Drop for Batches<D> {
    fn drop(&mut self) {
        self.stop();
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
