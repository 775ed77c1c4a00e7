//! What is known of a request from its headers: id, deadline, priority, place in a trace.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use axum::http::HeaderMap;
use serde_json::{Map, Value};
use tokio::time;

use super::{App, problem::Problem};
use crate::{
    backend::{Answer, Call, Input, Priority, TraceContext},
    metrics::Stage,
    trace::{self, Tracer},
};

/// The header with the request's id, taken or made, and given back.
pub(super) const REQUEST_ID: &str = "x-request-id";
/// The header with the milliseconds that the client waits.
pub(super) const TIMEOUT: &str = "x-request-timeout-ms";
/// The header with `high`, `normal` or `low`.
pub(super) const PRIORITY: &str = "x-priority";
/// The header with the place in a trace.
const TRACEPARENT: &str = "traceparent";
/// Characters of an id that is taken.
const ID_CHARS: usize = 128;

/// What is known of a request from its headers.
#[derive(Debug, Clone)]
pub(super) struct Context {
    pub(super) request_id: Arc<str>,
    pub(super) started: Instant,
    /// The same moment for spans, where the request is traced.
    pub(super) started_at: Option<SystemTime>,
    pub(super) deadline: Instant,
    /// Whether the client waits for less than the server's own limit, so that the deadline is its own.
    pub(super) hurried: bool,
    pub(super) priority: Priority,
    /// The request's own span, where it is recorded; else what the client sent.
    pub(super) trace: Option<TraceContext>,
    /// The span that the client sent.
    pub(super) parent: Option<TraceContext>,
}

impl Context {
    /// Reads `headers`; what is wrong with them is said with a context that can be answered with.
    pub(super) fn new(headers: &HeaderMap, tracer: &Tracer, request_timeout: Duration) -> (Self, Result<(), Problem>) {
        let started = Instant::now();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let given = text(REQUEST_ID).filter(|id| !id.is_empty() && id.len() <= ID_CHARS);
        let request_id = match given.filter(|id| id.bytes().all(|byte| byte.is_ascii_graphic())) {
            Some(id) => Arc::from(id),
            None => Arc::from(hex(trace::random())),
        };
        let parent = text(TRACEPARENT).and_then(trace::parse_traceparent);
        let own = tracer.start(parent);
        let mut problem = Ok(());
        let mut patience = None;
        if headers.contains_key(TIMEOUT) {
            match text(TIMEOUT).and_then(|text| text.parse::<u64>().ok()).filter(|ms| *ms > 0) {
                Some(ms) => patience = Some(Duration::from_millis(ms.min(86_400_000))),
                None => problem = Err(header_problem(TIMEOUT, "expected milliseconds, a whole number from 1")),
            }
        }
        let mut priority = Priority::Normal;
        if headers.contains_key(PRIORITY) {
            match text(PRIORITY) {
                Some("high") => priority = Priority::High,
                Some("normal") => {}
                Some("low") => priority = Priority::Low,
                _ => problem = Err(header_problem(PRIORITY, "expected high, normal or low")),
            }
        }
        let started_at = own.is_some().then(SystemTime::now);
        let (deadline, trace) = (started + request_timeout, own.or(parent));
        let mut context = Self { request_id, started, started_at, deadline, hurried: false, priority, trace, parent };
        context.hurry(patience);
        (context, problem)
    }

    /// The client waits this long, if it says so.
    pub(super) fn hurry(&mut self, patience: Option<Duration>) {
        if let Some(until) = patience.map(|patience| self.started + patience).filter(|until| *until < self.deadline) {
            self.deadline = until;
            self.hurried = true;
        }
    }

    pub(super) fn call(&self, input: Input, parameters: Map<String, Value>) -> Call {
        Call {
            input,
            parameters,
            priority: self.priority,
            deadline: self.deadline,
            request_id: Arc::clone(&self.request_id),
            trace: self.trace,
        }
    }

    /// Has the backend answer, in time.
    pub(super) async fn infer(
        &self,
        app: &App,
        input: Input,
        parameters: Map<String, Value>,
    ) -> Result<Answer, Problem> {
        let answer = app.backend.infer(self.call(input, parameters));
        match time::timeout_at(self.deadline.into(), answer).await {
            Ok(answer) => answer.map_err(Problem::from),
            Err(_) => Err(Problem::deadline()),
        }
    }
}

fn header_problem(name: &'static str, text: &str) -> Problem {
    Problem::malformed(text).at(name)
}

/// 16 digits, on the stack of the caller.
fn hex(number: u64) -> String {
    let digits = b"0123456789abcdef";
    (0..16).rev().map(|i| char::from(digits[(number >> (4 * i)) as usize & 15])).collect()
}

/// Runs `parse` and counts its time.
pub(super) fn parsed<T>(app: &App, parse: impl FnOnce() -> Result<T, Problem>) -> Result<T, Problem> {
    let start = Instant::now();
    let done = parse();
    app.metrics.stage(Stage::Parse, start.elapsed().as_secs_f64());
    done
}

/// Runs `respond` and counts its time.
pub(super) fn responded<T>(app: &App, respond: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = respond();
    app.metrics.stage(Stage::Respond, start.elapsed().as_secs_f64());
    done
}
