//! Traces: spans of requests and batches, joined across processes by the ids that ride in the rings, sent to an
//! OpenTelemetry collector.
//!
//! ```text
//!   request span (HTTP) ─┐ child of the client's traceparent
//!        ▲ link          ├── one trace
//!   batch span (engine) ─┤ its own trace's child, with links to the spans of its requests
//!        ▲ parent        │
//!   forward span (worker's timings) ┘
//! ```
//!
//! Nothing here waits: a span goes into a bounded queue, or is counted as dropped.

mod export;
mod ids;
mod otlp;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, oneshot},
    time,
};

use crate::{Config, backend::TraceContext, metrics::Metrics};

pub(crate) use ids::random;
pub use ids::{parse_traceparent, traceparent};

/// Spans that wait to be sent, at most; more are dropped and counted.
const QUEUED: usize = 4096;
/// How long [`Tracer::flush`] waits.
pub const FLUSH: Duration = Duration::from_secs(2);

/// What goes to the exporter.
#[derive(Debug)]
enum Message {
    Span(Box<Span>),
    /// Send what there is, then say so.
    Flush(oneshot::Sender<()>),
}

/// A finished piece of work.
#[derive(Debug, Clone)]
pub struct Span {
    /// Its trace, and its own id as `span_id`.
    pub context: TraceContext,
    /// The id of the span that it is part of; `None` for the first of a trace.
    pub parent: Option<[u8; 8]>,
    /// What was done: `POST /predict`, `batch`, `forward`.
    pub name: &'static str,
    /// Which side of a hand-over it is.
    pub kind: SpanKind,
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// What there is to know about it.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// Spans of other traces, or of other branches of this one, that belong to it: a batch's requests.
    pub links: Vec<TraceContext>,
    /// What went wrong, if something did.
    pub error: Option<String>,
}

/// Which side of a hand-over a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// Work inside a process.
    Internal,
    /// A request that came from outside.
    Server,
    /// What another process does with what it was handed.
    Consumer,
}

/// A value of an attribute.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Attribute {
    Text(String),
    Int(i64),
    Float(f64),
    Bool(bool),
}

/// Makes ids, decides what is recorded, and takes finished spans. Cheap to clone; none of its calls waits.
#[derive(Debug, Clone)]
pub struct Tracer {
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    sample: f64,
    spans: mpsc::Sender<Message>,
    metrics: Arc<Metrics>,
}

impl Tracer {
    /// A tracer that sends to `trace.otlp`, or one that records nothing. Within a tokio runtime: the exporter is a task of
    /// it, which ends when the last clone is gone.
    #[must_use]
    pub fn new(config: &Config, metrics: &Arc<Metrics>) -> Self {
        let Some(endpoint) = config.trace.otlp.as_deref() else {
            return Self::off();
        };
        let (spans, queue) = mpsc::channel(QUEUED);
        let exporter = export::Exporter::new(endpoint, &config.model.name, Arc::clone(metrics));
        tokio::spawn(exporter.run(queue));
        Self { inner: Some(Arc::new(Inner { sample: config.trace.sample, spans, metrics: Arc::clone(metrics) })) }
    }

    /// A tracer that records nothing.
    #[must_use]
    pub fn off() -> Self {
        Self { inner: None }
    }

    /// Whether spans are sent anywhere.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.inner.is_some()
    }

    /// The place of a new span below `parent`: its trace and a new span id. Without a parent a trace begins with the
    /// probability of `trace.sample`; with one, its flag counts. `None` if nothing is recorded.
    #[must_use]
    pub fn start(&self, parent: Option<TraceContext>) -> Option<TraceContext> {
        let inner = self.inner.as_ref()?;
        let sampled = parent.map_or_else(|| inner.sample > 0.0 && ids::share() < inner.sample, |one| one.sampled);
        let trace_id = parent.map_or_else(ids::trace_id, |one| one.trace_id);
        sampled.then(|| TraceContext { trace_id, span_id: ids::span_id(), sampled })
    }

    /// Takes a finished span. Never waits: with the queue full it is dropped and counted.
    pub fn span(&self, span: Span) {
        if let Some(inner) = self.inner.as_ref().filter(|_| span.context.sampled)
            && inner.spans.try_send(Message::Span(Box::new(span))).is_err()
        {
            // ORDER none, Relaxed: statistics.
            inner.metrics.spans_dropped.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Waits until the spans so far were sent, or dropped because they cannot be; at most [`FLUSH`].
    pub async fn flush(&self) {
        let Some(inner) = &self.inner else { return };
        let (done, told) = oneshot::channel();
        let flushed = async {
            if inner.spans.send(Message::Flush(done)).await.is_ok() {
                let _ = told.await;
            }
        };
        let _ = time::timeout(FLUSH, flushed).await;
    }
}
