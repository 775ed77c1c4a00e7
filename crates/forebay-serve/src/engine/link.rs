//! The daemon's end of one life of a worker: its service, and which items it has.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Instant,
};

use forebay::service::{Client, ServiceError};

use super::{call::Call, rows::Given};
use crate::{backend::TraceContext, schedule::Waiting};

/// Answers whose age is remembered before those that are let go of are forgotten.
const MOST_HELD: usize = 256;

/// An item in the schedule.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(super) call: Arc<Call>,
    pub(super) item: usize,
    /// Workers that died of it, for all that is known.
    pub(super) deaths: u32,
}

/// An item that the worker has.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) waiting: Waiting<Entry>,
    pub(super) batch: Arc<Handed>,
    /// The worker's number of the batch.
    pub(super) request: u64,
    /// Whether part of its answer went to its caller: it cannot begin anew.
    pub(super) begun: bool,
}

/// A batch that was handed over.
#[derive(Debug)]
pub(super) struct Handed {
    /// Its number in the schedule.
    pub(super) id: u64,
    pub(super) items: usize,
    /// When it was published, by the clock that workers share.
    pub(super) published_ns: u64,
    /// Its span, and that of the request which it is part of.
    pub(super) trace: Option<(TraceContext, [u8; 8], Vec<TraceContext>)>,
}

/// What changes while a worker lives.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) client: Client,
    pub(super) flights: HashMap<u64, Flight>,
    /// It takes nothing any more, and nothing will come from it.
    pub(super) dead: bool,
    /// When it last got or gave something while it had work.
    pub(super) progress: Instant,
    /// Since when it has no slot for a batch though it has nothing to do.
    pub(super) leaking: Option<Instant>,
}

impl Line {
    /// Slots of its ring of requests: used, all.
    fn slots(&self) -> (u32, u32) {
        let requests = self.client.requests();
        let stats = requests.stats();
        let all = requests.geometry().classes.iter().map(|class| class.slots).sum();
        (stats.outstanding + stats.loaned, all)
    }
}

/// One life of a worker. Locked for moments only, never across an await.
#[derive(Debug)]
pub(crate) struct Link {
    /// Its number, never used again.
    pub(crate) key: u64,
    /// Which worker it is a life of.
    pub(crate) worker: usize,
    line: Mutex<Line>,
    /// Locked by whoever reads answers, until they are delivered: parts of a stream keep their order. Before `line`.
    reading: Mutex<()>,
    /// Answers that somebody may still read, oldest first.
    held: Mutex<VecDeque<(Weak<Given>, Instant)>>,
}

impl Link {
    pub(crate) fn new(key: u64, worker: usize, client: Client) -> Arc<Self> {
        let line = Line { client, flights: HashMap::new(), dead: false, progress: Instant::now(), leaking: None };
        Arc::new(Self { key, worker, line: Mutex::new(line), reading: Mutex::default(), held: Mutex::default() })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Line> {
        // Nothing is left half done by a panic.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to read its answers.
    pub(super) fn reading(&self) -> MutexGuard<'_, ()> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it has items that somebody waits for.
    pub(crate) fn is_wanted(&self, now: Instant) -> bool {
        let wanted = |call: &Call| call.deadline > now && !call.is_over();
        self.lock().flights.values().any(|flight| wanted(&flight.waiting.load.call))
    }

    /// How long it has been at the same work, if it has any.
    pub(crate) fn stuck_for(&self, now: Instant) -> Option<std::time::Duration> {
        let line = self.lock();
        (!line.flights.is_empty()).then(|| now.saturating_duration_since(line.progress))
    }

    /// How long it has kept all slots without having work.
    pub(crate) fn leaking_for(&self, now: Instant) -> Option<std::time::Duration> {
        let mut line = self.lock();
        let since = line.leaking?;
        let (used, all) = line.slots();
        if used < all {
            // It let go of one, and nobody has needed it since.
            line.leaking = None;
            return None;
        }
        Some(now.saturating_duration_since(since))
    }

    /// It is given nothing any more: what is on its way goes back to the queue.
    pub(crate) fn close(&self) {
        self.lock().dead = true;
    }

    /// Asks it to finish what it has and leave.
    pub(crate) fn drain(&self) {
        self.lock().client.drain();
    }

    /// The descriptor that is readable when there may be answers.
    pub(crate) fn bell(&self) -> Result<std::os::fd::RawFd, ServiceError> {
        self.lock().client.fileno()
    }

    /// What the worker says of itself, once it is ready.
    pub(crate) fn readiness(&self) -> Result<Option<String>, ServiceError> {
        let mut line = self.lock();
        while let Some(answer) = line.client.try_answer()? {
            if let Some(ready) = answer.readiness() {
                return Ok(Some(ready.text.to_owned()));
            }
        }
        Ok(None)
    }

    /// Since when the oldest answer is held that is not let go of, in seconds.
    pub(crate) fn oldest_answer_s(&self) -> f64 {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|(answer, _)| answer.strong_count() > 0);
        held.front().map_or(0.0, |(_, since)| since.elapsed().as_secs_f64())
    }

    /// Remembers since when an answer is held.
    pub(super) fn hold(&self, answer: &Arc<Given>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        while held.front().is_some_and(|(answer, _)| answer.strong_count() == 0) {
            held.pop_front();
        }
        // One that is held for long must not keep those behind it remembered; the ring has few slots.
        if held.len() >= MOST_HELD {
            held.retain(|(answer, _)| answer.strong_count() > 0);
        }
        held.push_back((Arc::downgrade(answer), Instant::now()));
    }

    /// Slots of its ring of requests: used, all.
    pub(crate) fn slots(&self) -> (u32, u32) {
        self.lock().slots()
    }
}

/// How a life ended, as far as its rings tell.
pub(crate) fn ending(error: &ServiceError) -> String {
    match error {
        ServiceError::PeerDied { .. } => "died".to_owned(),
        ServiceError::Closed { .. } => "left".to_owned(),
        other => other.to_string(),
    }
}
