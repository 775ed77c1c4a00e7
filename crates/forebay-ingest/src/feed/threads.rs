//! What the threads of a pipeline do, and how they are waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, select};

use super::batch::{Batch, LineId, OnError, RawBatch};
use super::batcher::{Batcher, Made};
use super::checkpoint::Ahead;
use super::position::Position;
use super::report::{SkippedItem, Watcher};
use super::stage::{Prepares, Reads};
use crate::error::{IngestError, ItemError};

/// How often a waiting caller looks at the cancel flag.
const SLICE: Duration = Duration::from_millis(50);
/// What all threads of a pipeline look at.
pub(super) struct Shared {
    pub(super) on_error: OnError,
    pub(super) watcher: Watcher,
    pub(super) names: Arc<[String]>,
    pub(super) cancel: Arc<AtomicBool>,
    /// Set when the pipeline has ended; the source's own flag, so that a reader inside an endless line sees it.
    pub(super) dropped: Arc<AtomicBool>,
}

impl Shared {
    /// Name of input `file`, for people.
    pub(super) fn name(&self, file: u32) -> &str {
        self.names.get(file as usize).map_or("unknown input", String::as_str)
    }

    pub(super) fn stopped(&self) -> bool {
        // ORDER none, Relaxed: the flags are the whole message.
        self.cancel.load(Ordering::Relaxed) || self.dropped.load(Ordering::Relaxed)
    }
}

/// What became of a batch, or of the run.
pub(super) enum Outcome<D> {
    Batch(Box<Batch<D>>),
    /// Delivered by an earlier run, up to here.
    Done(Position),
    Bad(LineId, ItemError),
    Failed(IngestError),
    End,
    Lost,
}

pub(super) type Answers<D> = Sender<(u64, Outcome<D>)>;

pub(super) struct Job<R, D> {
    pub(super) batch: RawBatch<R>,
    pub(super) answer: Answer<D>,
}

/// Answers for one batch, exactly once.
pub(super) struct Answer<D> {
    pub(super) number: u64,
    pub(super) answers: Option<Answers<D>>,
}

impl<D> Answer<D> {
    pub(super) fn send(mut self, outcome: Outcome<D>) {
        if let Some(answers) = self.answers.take() {
            // The caller may be gone.
            let _ = answers.send((self.number, outcome));
        }
    }
}

impl<D> Drop for Answer<D> {
    fn drop(&mut self) {
        if let Some(answers) = self.answers.take() {
            let _ = answers.send((self.number, Outcome::Lost));
        }
    }
}

pub(super) enum Waited<T> {
    Got(T),
    Cancelled,
    Gone,
}

/// Waits for a message, looking at the cancel flag all the while.
pub(super) fn wait<T>(channel: &Receiver<T>, shared: &Shared) -> Waited<T> {
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
pub(super) struct Reader<R, D> {
    pub(super) shared: Arc<Shared>,
    pub(super) ahead: Ahead,
    pub(super) permit: Sender<()>,
    pub(super) jobs: Sender<Job<R, D>>,
    pub(super) answers: Answers<D>,
}

impl<R, D> Reader<R, D> {
    pub(super) fn read<S: Reads<Raw = R>>(self, mut batcher: Batcher<S>) {
        for number in 0.. {
            if self.shared.stopped() {
                return;
            }
            let answer = Answer { number, answers: Some(self.answers.clone()) };
            let batch = match batcher.next() {
                Made::Batch(batch) => batch,
                Made::Failed(error) => return answer.send(Outcome::Failed(error)),
                Made::End => return answer.send(Outcome::End),
            };
            if self.permit.send(()).is_err() {
                return;
            }
            if self.ahead.contains(number) {
                answer.send(Outcome::Done(batch.next));
            } else if self.jobs.send(Job { batch, answer }).is_err() {
                // Either queue is gone once the pipeline has ended.
                return;
            }
        }
    }
}

/// A worker thread.
pub(super) fn work<P: Prepares>(
    shared: &Shared,
    prepares: &P,
    jobs: &Receiver<Job<P::Raw, P::Data>>,
    stopped: &Receiver<()>,
) {
    loop {
        let job = select! {
            recv(jobs) -> job => job,
            recv(stopped) -> _ => return,
        };
        let Ok(Job { batch, answer }) = job else { return };
        let left_out = |item: &SkippedItem| shared.watcher.tell(|file| shared.name(file).to_owned(), item);
        match batch.prepare(prepares, shared.on_error, &|| shared.stopped(), &left_out) {
            None => return,
            Some(Ok(batch)) => answer.send(Outcome::Batch(Box::new(batch))),
            Some(Err((id, reason))) => answer.send(Outcome::Bad(id, reason)),
        }
    }
}
