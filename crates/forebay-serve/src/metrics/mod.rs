//! What is counted and measured, for `/metrics` and the status page.
//!
//! Everything on the path of a request is an atomic addition: no lock, no look-up by name. Names, help texts and units
//! are in `scrape.rs`, which is where Prometheus' text format is made.

mod histogram;
mod process;
mod scrape;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

pub(crate) use histogram::{Histogram, Snapshot};
pub(crate) use process::Process;
pub use scrape::CONTENT_TYPE;

/// Upper bounds of times, in seconds: steps of 1, 2.5, 5 from 10 µs to 100 s.
const SECONDS: &[f64] = &[
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 100.0,
];
/// Upper bounds of counts of items.
const ITEMS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];
/// Upper bounds of shares.
const SHARES: &[f64] = &[0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// What a request's time is spent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reading the body's format, after it arrived.
    Parse,
    /// Making tensors of the input.
    Ingest,
    /// Waiting for a worker.
    Queue,
    /// From the first item of a batch to its leaving.
    BatchWait,
    /// From publishing a batch to the worker's start.
    HandOver,
    /// In the worker.
    Forward,
    /// Making the response.
    Respond,
}

impl Stage {
    /// All of them, in a request's order.
    pub const ALL: [Self; 7] =
        [Self::Parse, Self::Ingest, Self::Queue, Self::BatchWait, Self::HandOver, Self::Forward, Self::Respond];

    /// Its label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::Ingest => "ingest",
            Self::Queue => "queue",
            Self::BatchWait => "batch_wait",
            Self::HandOver => "hand_over",
            Self::Forward => "forward",
            Self::Respond => "respond",
        }
    }
}

/// Routes as they are counted, so that no client can make labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the paths")]
pub enum Route {
    Infer,
    Predict,
    Embeddings,
    Generate,
    GenerateStream,
    Tokenize,
    Models,
    Info,
    OpenApi,
    Health,
    Metrics,
    Status,
    Page,
    Admin,
    Grpc,
    Other,
}

impl Route {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Infer,
        Self::Predict,
        Self::Embeddings,
        Self::Generate,
        Self::GenerateStream,
        Self::Tokenize,
        Self::Models,
        Self::Info,
        Self::OpenApi,
        Self::Health,
        Self::Metrics,
        Self::Status,
        Self::Page,
        Self::Admin,
        Self::Grpc,
        Self::Other,
    ];

    /// Its label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Infer => "/v2/models/{model}/infer",
            Self::Predict => "/predict",
            Self::Embeddings => "/v1/embeddings",
            Self::Generate => "/generate",
            Self::GenerateStream => "/generate_stream",
            Self::Tokenize => "/tokenize",
            Self::Models => "models",
            Self::Info => "/info",
            Self::OpenApi => "/openapi.json",
            Self::Health => "health",
            Self::Metrics => "/metrics",
            Self::Status => "/status",
            Self::Page => "/",
            Self::Admin => "/admin/reload",
            Self::Grpc => "grpc",
            Self::Other => "other",
        }
    }
}

/// Status codes that are counted apart; all others count as the last one.
const CODES: [u16; 20] =
    [200, 400, 401, 403, 404, 405, 406, 408, 411, 413, 415, 422, 429, 431, 499, 500, 501, 502, 503, 504];

/// Counters and histograms of one daemon. Shared by reference; cheap to call from anywhere.
#[derive(Debug)]
pub struct Metrics {
    started: Instant,
    requests: Vec<[AtomicU64; CODES.len()]>,
    request_seconds: Vec<Histogram>,
    stages: [Histogram; Stage::ALL.len()],
    batch_items: Histogram,
    batch_tokens: AtomicU64,
    padded_tokens: AtomicU64,
    padding: Histogram,
    rejected: Mutex<BTreeMap<&'static str, u64>>,
    restarts: Mutex<BTreeMap<usize, u64>>,
    pub(crate) in_flight: AtomicI64,
    pub(crate) connections: AtomicI64,
    pub(crate) spans_dropped: AtomicU64,
    pub(crate) spans_sent: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            requests: Route::ALL.iter().map(|_| [const { AtomicU64::new(0) }; CODES.len()]).collect(),
            request_seconds: Route::ALL.iter().map(|_| Histogram::new(SECONDS)).collect(),
            stages: Stage::ALL.map(|_| Histogram::new(SECONDS)),
            batch_items: Histogram::new(ITEMS),
            batch_tokens: AtomicU64::new(0),
            padded_tokens: AtomicU64::new(0),
            padding: Histogram::new(SHARES),
            rejected: Mutex::default(),
            restarts: Mutex::default(),
            in_flight: AtomicI64::new(0),
            connections: AtomicI64::new(0),
            spans_dropped: AtomicU64::new(0),
            spans_sent: AtomicU64::new(0),
        }
    }
}

// ORDER none, Relaxed, for every atomic below: statistics; nothing is read on the strength of them.
impl Metrics {
    /// Nothing counted yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A request, or one of its items, spent `seconds` on `stage`.
    pub fn stage(&self, stage: Stage, seconds: f64) {
        self.stages[stage as usize].add(seconds);
    }

    /// A batch left: its items, the tokens in it and those of them that are padding (0 where there are none).
    pub fn batch(&self, items: usize, tokens: usize, padded: usize) {
        self.batch_items.add(items as f64);
        if tokens > 0 {
            self.batch_tokens.fetch_add(tokens as u64, Relaxed);
            self.padded_tokens.fetch_add(padded as u64, Relaxed);
            self.padding.add(padded as f64 / tokens as f64);
        }
    }

    /// A worker was started again.
    pub fn restart(&self, worker: usize) {
        *self.restarts.lock().unwrap_or_else(PoisonError::into_inner).entry(worker).or_default() += 1;
    }

    /// A request was refused. Reasons are a few fixed words such as `queue_full`.
    pub fn rejected(&self, reason: &'static str) {
        *self.rejected.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
    }

    /// A request was answered.
    pub fn request(&self, route: Route, code: u16, seconds: f64) {
        let code = CODES.iter().position(|known| *known == code).unwrap_or(CODES.len() - 1);
        self.requests[route as usize][code].fetch_add(1, Relaxed);
        self.request_seconds[route as usize].add(seconds);
    }

    /// Since when it counts, in seconds.
    #[must_use]
    pub fn uptime_s(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    pub(crate) fn stage_snapshot(&self, stage: Stage) -> Snapshot {
        self.stages[stage as usize].snapshot()
    }

    pub(crate) fn request_snapshot(&self, route: Route) -> Snapshot {
        self.request_seconds[route as usize].snapshot()
    }

    /// Requests by route and code, without those that never came.
    pub(crate) fn request_counts(&self) -> impl Iterator<Item = (Route, u16, u64)> {
        Route::ALL.into_iter().zip(&self.requests).flat_map(|(route, counts)| {
            CODES
                .into_iter()
                .zip(counts)
                .map(move |(code, count)| (route, code, count.load(Relaxed)))
                .filter(|(_, _, count)| *count > 0)
        })
    }

    pub(crate) fn rejections(&self) -> BTreeMap<&'static str, u64> {
        self.rejected.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn batches(&self) -> Snapshot {
        self.batch_items.snapshot()
    }

    /// Tokens in batches, and those of them that are padding.
    pub(crate) fn tokens(&self) -> (u64, u64) {
        (self.batch_tokens.load(Relaxed), self.padded_tokens.load(Relaxed))
    }
}
