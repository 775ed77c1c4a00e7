//! A call under way: what was prepared, what has come back, and who waits for it.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};

use super::rows::{Given, Kept};
use crate::{
    backend::{Answer, ItemError, Priority, Refusal, Row, Timings, TraceContext},
    intake::Prepared,
    schedule::Ticket,
};

/// What a streaming call is told.
#[derive(Debug)]
pub(super) enum Event {
    /// New tokens of an item, and whether they are its last.
    Tokens { item: usize, tokens: Vec<u32>, last: bool },
    /// An item ended in an error.
    Failed { item: usize, error: ItemError },
    /// The whole call did.
    Refused(Refusal),
}

/// Who waits.
#[derive(Debug)]
pub(super) enum Sink {
    Whole(oneshot::Sender<Result<Answer, Refusal>>),
    Stream(mpsc::UnboundedSender<Event>),
}

/// Where items of a call were sent.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) worker: u64,
    pub(super) request: u64,
    pub(super) ids: Vec<u64>,
}

#[derive(Debug)]
struct Progress {
    results: Vec<Option<Result<Row, ItemError>>>,
    left: usize,
    /// `None` once the call is over.
    sink: Option<Sink>,
    sent: Vec<Sent>,
    timings: Timings,
}

/// One call.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) prepared: Prepared,
    pub(super) priority: Priority,
    pub(super) deadline: Instant,
    /// The same by the clock that workers share.
    pub(super) deadline_ns: u64,
    pub(super) trace: Option<TraceContext>,
    pub(super) request_id: Arc<str>,
    pub(super) ticket: OnceLock<Ticket>,
    progress: Mutex<Progress>,
}

impl Call {
    pub(super) fn new(prepared: Prepared, from: &crate::backend::Call, sink: Sink, ingest: Duration) -> Arc<Self> {
        let mut left = 0;
        let results = prepared.items.iter().map(|item| match item {
            Ok(_) => {
                left += 1;
                None
            }
            Err(error) => Some(Err(error.clone())),
        });
        let results: Vec<_> = results.collect();
        if let Sink::Stream(waiting) = &sink {
            for (item, result) in results.iter().enumerate() {
                if let Some(Err(error)) = result {
                    // Who reads them cannot have left yet.
                    let _ = waiting.send(Event::Failed { item, error: ItemError::clone(error) });
                }
            }
        }
        let tokens = prepared.items.iter().flatten().map(|size| size.tokens as u64).sum();
        let timings = Timings { ingest_s: ingest.as_secs_f64(), tokens, ..Timings::default() };
        let patience = from.deadline.saturating_duration_since(Instant::now());
        let deadline_ns =
            forebay::service::now_ns().saturating_add(u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX));
        Arc::new(Self {
            prepared,
            priority: from.priority,
            deadline: from.deadline,
            deadline_ns,
            trace: from.trace,
            request_id: Arc::clone(&from.request_id),
            ticket: OnceLock::new(),
            progress: Mutex::new(Progress { results, left, sink: Some(sink), sent: Vec::new(), timings }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        // Nothing is left half done by a panic.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody waits any more.
    pub(super) fn is_over(&self) -> bool {
        self.lock().sink.is_none()
    }

    /// Remembers where items went; false if nobody wants them any more.
    pub(super) fn sent(&self, sent: Sent) -> bool {
        let mut progress = self.lock();
        progress.sent.push(sent);
        progress.sink.is_some()
    }

    /// Ends it without an answer: its caller left. Where its items are; empty if it was over.
    pub(super) fn abandon(&self) -> Vec<Sent> {
        let mut progress = self.lock();
        match progress.sink.take() {
            Some(_) => std::mem::take(&mut progress.sent),
            None => Vec::new(),
        }
    }

    /// Ends it with a refusal. Where its items are; empty if it was over.
    pub(super) fn refuse(&self, refusal: Refusal) -> Vec<Sent> {
        let mut progress = self.lock();
        let Some(sink) = progress.sink.take() else { return Vec::new() };
        let sent = std::mem::take(&mut progress.sent);
        drop(progress);
        // Nobody may wait any more.
        match sink {
            Sink::Whole(waiting) => drop(waiting.send(Err(refusal))),
            Sink::Stream(waiting) => drop(waiting.send(Event::Refused(refusal))),
        }
        sent
    }

    /// Takes the time that an item spent.
    pub(super) fn time(&self, change: impl FnOnce(&mut Timings)) {
        change(&mut self.lock().timings);
    }

    /// Sends it off if all of its items failed before they were tensors.
    pub(super) fn finish_if_done(&self) -> bool {
        let progress = self.lock();
        if progress.left > 0 {
            return false;
        }
        finish(progress);
        true
    }

    /// Some of its items were answered by one message. Rows stay in the message's slot if that completes the call; else
    /// they are copied, since who waits for other slots must not hold this one.
    pub(super) fn answer(&self, items: Vec<(usize, Result<usize, ItemError>)>, given: &Arc<Given>) {
        let mut progress = self.lock();
        if progress.sink.is_none() {
            return;
        }
        let complete = progress.left <= items.len();
        let rows = items.iter().filter_map(|(_, result)| result.as_ref().ok().copied());
        let kept = (!complete).then(|| Arc::new(Kept::copy(given, rows)));
        let mut copied = 0;
        for (item, result) in items {
            let row = result.map(|row| match &kept {
                Some(kept) => {
                    copied += 1;
                    Row { rows: Arc::clone(kept) as Arc<_>, row: copied - 1 }
                }
                None => Row { rows: Arc::clone(given) as Arc<_>, row },
            });
            if let Some(place @ None) = progress.results.get_mut(item) {
                *place = Some(row);
                progress.left -= 1;
            }
        }
        if progress.left == 0 {
            finish(progress);
        }
    }

    /// An item of a streaming call has new tokens, or ended.
    pub(super) fn event(&self, event: Event) {
        let mut progress = self.lock();
        let last = match &event {
            Event::Tokens { last, .. } => *last,
            Event::Failed { .. } => true,
            Event::Refused(_) => return,
        };
        let Some(Sink::Stream(waiting)) = &progress.sink else { return };
        // Whoever reads them may have left; then it is abandoned soon.
        let _ = waiting.send(event);
        if last {
            progress.left = progress.left.saturating_sub(1);
            if progress.left == 0 {
                progress.sink = None;
            }
        }
    }
}

/// Hands the answer to who waits.
fn finish(mut progress: MutexGuard<'_, Progress>) {
    match progress.sink.take() {
        Some(Sink::Whole(waiting)) => {
            let items = std::mem::take(&mut progress.results).into_iter().flatten().collect();
            let timings = progress.timings;
            drop(progress);
            // Nobody may wait any more.
            let _ = waiting.send(Ok(Answer { items, timings }));
        }
        // A stream was told item by item.
        Some(Sink::Stream(_)) | None => {}
    }
}
