//! What every request goes through: its context, admission, the router, then the response's headers, the count, the
//! log line and the span.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use tower_service::Service as _;

use super::{
    App,
    admission::{self, Place},
    context::{Context, REQUEST_ID},
    problem::{self, Problem},
};
use crate::{
    metrics::Route,
    trace::{Attribute, Span, SpanKind},
};

/// In a response's extensions: its body comes bit by bit, and the request is under way until that ends. Holds the
/// request's place until then.
#[derive(Debug, Clone, Default)]
pub(super) struct Streaming(Arc<Mutex<Option<Place>>>);

impl Streaming {
    fn hold(&self, place: Option<Place>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }

    /// Gives the place back.
    pub(super) fn end(&self) {
        self.hold(None);
    }
}

/// What is asked of a request before it goes to its route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guard {
    /// Nothing.
    Open,
    /// A key, where there are keys.
    Key,
    /// A key, its rate, and a place among the requests under way.
    Work,
}

/// Which route, for counting, and what is asked.
fn classify(path: &str) -> (Route, Guard) {
    match path {
        "/predict" => (Route::Predict, Guard::Work),
        "/v1/embeddings" => (Route::Embeddings, Guard::Work),
        "/generate" => (Route::Generate, Guard::Work),
        "/generate_stream" => (Route::GenerateStream, Guard::Work),
        "/tokenize" => (Route::Tokenize, Guard::Work),
        "/livez" | "/readyz" | "/v2/health/live" | "/v2/health/ready" => (Route::Health, Guard::Open),
        "/" => (Route::Page, Guard::Open),
        "/info" => (Route::Info, Guard::Key),
        "/openapi.json" => (Route::OpenApi, Guard::Key),
        "/metrics" => (Route::Metrics, Guard::Key),
        "/status" => (Route::Status, Guard::Key),
        "/admin/reload" => (Route::Admin, Guard::Key),
        "/v1/models" | "/v2" => (Route::Models, Guard::Key),
        _ => match path.strip_prefix("/v2/models/") {
            Some(rest) if rest.ends_with("/infer") => (Route::Infer, Guard::Work),
            Some(_) => (Route::Models, Guard::Key),
            None => (Route::Other, Guard::Key),
        },
    }
}

/// A request that has not been answered yet; counted as 499 when dropped before.
pub(super) struct Live<'a> {
    app: &'a App,
    context: &'a Context,
    /// Both as long as the client likes, and in the log: cut.
    method: Cow<'a, str>,
    path: Cow<'a, str>,
    route: Route,
    done: bool,
}

impl<'a> Live<'a> {
    pub(super) fn new(app: &'a App, context: &'a Context, method: &'a Method, path: &'a str, route: Route) -> Self {
        let (method, path) = (problem::cut(method.as_str()), problem::cut(path));
        Self { app, context, method, path, route, done: false }
    }

    pub(super) fn end(mut self, status: StatusCode, problem: Option<&Problem>) {
        self.done = true;
        self.count(status.as_u16(), problem);
    }

    fn count(&self, status: u16, problem: Option<&Problem>) {
        let (app, context) = (self.app, self.context);
        let seconds = context.started.elapsed().as_secs_f64();
        app.metrics.request(self.route, status, seconds);
        if let Some(problem) = problem {
            app.metrics.rejected(problem.kind);
        }
        if app.log_requests {
            let id = &*context.request_id;
            let ms = (seconds * 1e6).round() / 1e3;
            let (method, path) = (&*self.method, &*self.path);
            match problem {
                // Asked for every few seconds by machines.
                _ if matches!(self.route, Route::Health | Route::Metrics | Route::Status) => {
                    tracing::debug!(id, %method, path, status, ms, "request");
                }
                Some(problem) => {
                    let (why, text) = (problem.kind, problem.message());
                    tracing::info!(id, %method, path, status, ms, why, text, "request");
                }
                None => tracing::info!(id, %method, path, status, ms, "request"),
            }
        }
        self.span(status, problem);
    }

    fn span(&self, status: u16, problem: Option<&Problem>) {
        let (Some(trace), Some(start)) = (self.context.trace, self.context.started_at) else { return };
        let text = |text: &str| Attribute::Text(text.to_owned());
        self.app.tracer.span(Span {
            context: trace,
            parent: self.context.parent.map(|parent| parent.span_id),
            name: self.route.name(),
            kind: SpanKind::Server,
            start,
            end: start + self.context.started.elapsed(),
            attributes: vec![
                ("http.request.method", text(&self.method)),
                ("url.path", text(&self.path)),
                ("http.response.status_code", Attribute::Int(i64::from(status))),
                ("forebay.request_id", text(&self.context.request_id)),
            ],
            links: Vec::new(),
            error: problem.filter(|_| status >= 500).map(|problem| problem.message().to_owned()),
        });
    }
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.count(499, None);
        }
    }
}

/// Answers one request. Dropped when the client leaves, and all that it asked for with it.
pub(super) async fn answer(app: Arc<App>, mut router: Router, request: Request) -> Response {
    let (context, headers) = Context::new(request.headers(), &app.tracer, app.request_timeout);
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let (route, guard) = classify(uri.path());
    let live = Live::new(&app, &context, &method, uri.path(), route);
    let mut place = None;
    let admitted = admit(&app, &context, guard, request.headers(), headers).map(|taken| place = taken);
    let mut response = match admitted {
        Ok(()) => {
            let mut request = request;
            request.extensions_mut().insert(context.clone());
            match router.call(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
        Err(problem) => problem.into_response(),
    };
    // The problem came without a body, because its route did not know the id.
    let problem = match response.extensions_mut().remove::<Problem>() {
        Some(problem) => {
            response = problem.response(uri.path(), &context.request_id);
            Some(problem)
        }
        None => None,
    };
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&context.request_id) {
        headers.insert(REQUEST_ID, id);
    }
    if app.draining() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    live.end(response.status(), problem.as_ref());
    if let Some(streaming) = response.extensions_mut().remove::<Streaming>() {
        streaming.hold(place);
    }
    response
}

/// Takes a place where the request needs one. `read`: whether what headers say of deadline and priority could be read; who
/// is not let in does not hear of it, and where nothing is asked for it does not matter.
pub(super) fn admit(
    app: &App,
    context: &Context,
    guard: Guard,
    headers: &HeaderMap,
    read: Result<(), Problem>,
) -> Result<Option<Place>, Problem> {
    if guard == Guard::Open {
        return Ok(None);
    }
    let key = app.keys.check(headers)?;
    if guard == Guard::Key {
        read?;
        admission::check_body(headers, app.limits.body_bytes)?;
        return Ok(None);
    }
    if app.draining() {
        return Err(Problem::from(crate::backend::Refusal::Draining).closing());
    }
    if let Some(rates) = &app.rates {
        rates.check(key, context.started)?;
    }
    let place = Place::take(&app.metrics, app.limits.in_flight)?;
    read?;
    admission::check_body(headers, app.limits.body_bytes)?;
    Ok(Some(place))
}
