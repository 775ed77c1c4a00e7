//! `/info`, `/tokenize`, `/status`, `/metrics`, `/admin/reload`: about the model and the daemon.

use std::sync::{Arc, atomic::Ordering};

use axum::{
    Extension, Json,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

use super::{
    App, body,
    context::{Context, parsed, responded},
    input, json as text, predict,
    problem::Problem,
};
use crate::{
    backend::{Health, Input, ModelInfo, Takes, TensorInfo, TokenizedText},
    metrics::{self, Process, Route, Snapshot, Stage},
};

/// Bytes of text that one request may have tokenized: each may be a token, and what is told of one is many times as long.
const TEXT_BYTES: usize = 1 << 20;
/// Tokens that are told without another thread.
const QUICK_TOKENS: usize = 1 << 10;

/// `GET /info`: what the model is called, takes and gives, and what may be asked of the server.
pub(super) async fn info(State(app): State<Arc<App>>) -> Json<Value> {
    let model = app.backend.model();
    let limits = &app.limits;
    Json(json!({
        "server": { "name": "forebay", "version": env!("CARGO_PKG_VERSION") },
        "model": model_info(model),
        "limits": {
            "in_flight": limits.in_flight,
            "body_bytes": limits.body_bytes,
            "items": model.max_items,
            "queue_timeout_s": limits.queue_timeout_s,
            "request_timeout_s": limits.request_timeout_s,
        },
    }))
}

pub(super) fn takes(model: &ModelInfo) -> &'static str {
    match model.takes {
        Takes::Texts => "texts",
        Takes::Images => "images",
        Takes::Tensors => "tensors",
        Takes::Rows => "rows",
    }
}

fn model_info(model: &ModelInfo) -> Value {
    let tensors = |all: &[TensorInfo]| {
        all.iter()
            .map(|one| json!({ "name": one.name, "dtype": one.dtype.name(), "shape": one.shape }))
            .collect::<Vec<_>>()
    };
    let parameters = model.parameters.iter().map(|one| {
        json!({
            "name": one.name, "dtype": one.dtype.name(), "default": one.default, "min": one.min, "max": one.max,
        })
    });
    json!({
        "name": model.name,
        "version": model.version,
        "takes": takes(model),
        "generates": model.generates,
        "inputs": tensors(&model.inputs),
        "outputs": tensors(&model.outputs),
        "parameters": parameters.collect::<Vec<_>>(),
        "max_items": model.max_items,
        "max_tokens": model.max_tokens,
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tokenize<'a> {
    #[serde(borrow)]
    inputs: &'a RawValue,
    #[serde(default = "yes")]
    special_tokens: bool,
}

fn yes() -> bool {
    true
}

/// `POST /tokenize`.
pub(super) async fn tokenize(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Context>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    predict::json_only(&parts.headers)?;
    let body = body::read(&app, &context, &parts.headers, body).await?;
    let model = app.backend.model();
    let (texts, single, special) = parsed(&app, || {
        let asked: Tokenize<'_> = text::parse(&body)?;
        let items = input::texts(asked.inputs, model.max_items)?;
        let Input::Texts(all) = items.input else { return Err(Problem::field("inputs", "expected texts")) };
        if let Some(i) = all.iter().position(|item| item.pair.is_some()) {
            return Err(Problem::field(format!("inputs[{i}]"), "a pair; expected a text").item(i));
        }
        let texts: Vec<String> = all.into_iter().map(|item| item.text).collect();
        let bytes: usize = texts.iter().map(String::len).sum();
        if bytes > TEXT_BYTES {
            let text = format!("{bytes} bytes of text, {TEXT_BYTES} may be tokenized in one request");
            return Err(Problem::too_large(text));
        }
        Ok((texts, items.single, asked.special_tokens))
    })?;
    let done =
        app.backend.tokenize(texts, special, context.deadline).await.ok_or_else(|| {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "unsupported", "the model takes no text")
        })??;
    let tokens: usize = done.iter().map(|one| one.ids.len()).sum();
    let respond = move || responded(&app, || told(&done, single));
    if tokens <= QUICK_TOKENS {
        return Ok(text::response(respond()));
    }
    // Megabytes of numbers, perhaps: the other connections of this thread need not wait for them.
    match tokio::task::spawn_blocking(respond).await {
        Ok(json) => Ok(text::response(json)),
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}

#[derive(Debug, Serialize)]
struct Outputs<T> {
    outputs: T,
}

/// What is told of a text.
#[derive(Debug, Serialize)]
struct Told<'a> {
    ids: &'a [u32],
    offsets: &'a [[u64; 2]],
    tokens: &'a [String],
}

impl<'a> Told<'a> {
    fn of(text: &'a TokenizedText) -> Self {
        Self { ids: &text.ids, offsets: &text.offsets, tokens: &text.tokens }
    }
}

/// One object or a list of them, as the inputs were.
fn told(all: &[TokenizedText], single: bool) -> Vec<u8> {
    let json = match all {
        [one] if single => serde_json::to_vec(&Outputs { outputs: Told::of(one) }),
        all => serde_json::to_vec(&Outputs { outputs: all.iter().map(Told::of).collect::<Vec<_>>() }),
    };
    // Writing to a Vec does not fail.
    json.unwrap_or_default()
}

/// `GET /metrics`.
pub(super) async fn scrape(State(app): State<Arc<App>>) -> Response {
    let text = app.metrics.text(&app.backend.model().name, app.backend.status());
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

/// `GET /status`: what the page at `/` shows.
pub(super) async fn status(State(app): State<Arc<App>>) -> Json<Value> {
    let (status, health, process) = (app.backend.status(), app.health(), Process::now());
    let (health, why) = match health {
        Health::Ready => ("ready", None),
        Health::NotReady(why) => ("not ready", Some(why)),
        Health::Draining => ("draining", None),
    };
    let workers: Vec<Value> = status
        .workers
        .iter()
        .map(|worker| {
            json!({
                "index": worker.index, "state": worker.state, "pids": worker.pids, "restarts": worker.restarts,
                "batches": worker.batches, "items": worker.items, "slots_used": worker.slots.0,
                "slots": worker.slots.1, "oldest_lease_s": worker.oldest_lease_s, "last_exit": worker.last_exit,
                "rss_bytes": worker.rss_bytes,
            })
        })
        .collect();
    let stages: Vec<Value> = Stage::ALL
        .iter()
        .map(|stage| json!({ "stage": stage.name(), "seconds": buckets(&app.metrics.stage_snapshot(*stage)) }))
        .collect();
    let routes: Vec<Value> = Route::ALL
        .into_iter()
        .map(|route| (route, app.metrics.request_snapshot(route)))
        .filter(|(_, snapshot)| snapshot.count > 0)
        .map(|(route, snapshot)| json!({ "route": route.name(), "seconds": buckets(&snapshot) }))
        .collect();
    let codes: Vec<Value> = app
        .metrics
        .request_counts()
        .map(|(route, code, count)| json!({ "route": route.name(), "code": code, "count": count }))
        .collect();
    let (tokens, padding) = app.metrics.tokens();
    // ORDER none, Relaxed: statistics.
    let (in_flight, connections) =
        (app.metrics.in_flight.load(Ordering::Relaxed), app.metrics.connections.load(Ordering::Relaxed));
    Json(json!({
        "model": { "name": app.backend.model().name, "version": app.backend.model().version },
        "version": env!("CARGO_PKG_VERSION"),
        "health": health,
        "why": why,
        "uptime_s": app.metrics.uptime_s(),
        "in_flight": in_flight,
        "in_flight_limit": app.limits.in_flight,
        "connections": connections,
        "queued_items": status.queued_items,
        "running_items": status.running_items,
        "oldest_wait_s": status.oldest_wait_s,
        "workers": workers,
        "stages": stages,
        "routes": routes,
        "requests": codes,
        "rejections": app.metrics.rejections(),
        "batch_items": buckets(&app.metrics.batches()),
        "tokens": tokens,
        "padding_tokens": padding,
        "process": {
            "rss_bytes": process.resident_bytes, "cpu_seconds": process.cpu_seconds, "threads": process.threads,
        },
    }))
}

/// A histogram: upper bounds (the last one, which is infinite, is null) and counts in each bucket.
fn buckets(snapshot: &Snapshot) -> Value {
    let bounds: Vec<_> = snapshot.buckets.iter().map(|(bound, _)| bound.is_finite().then_some(*bound)).collect();
    let counts: Vec<_> = snapshot.buckets.iter().map(|(_, count)| *count).collect();
    json!({ "bounds": bounds, "counts": counts, "sum": snapshot.sum, "count": snapshot.count })
}

/// `POST /admin/reload`: new workers, one after the other; answered when all are new. Goes on if the client leaves.
pub(super) async fn reload(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Json<Value>, Problem> {
    from_here(&headers)?;
    let done = tokio::spawn(app.backend.reload()).await.unwrap_or_else(|error| Err(error.to_string()));
    done.map(|()| Json(json!({ "reloaded": true }))).map_err(|why| {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "reload_failed",
            format!("the workers were not replaced: {why}"),
        )
    })
}

/// A page of another site, open in a browser on this host, may send requests here; what changes something refuses them.
fn from_here(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    if origin.is_some() && origin == host {
        return Ok(());
    }
    Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", "not from a page of another site"))
}
