//! `POST /generate` and `POST /generate_stream`: texts in, tokens out, whole or as they come.

use std::{
    convert::Infallible,
    future::Future as _,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context as Waker, Poll},
    time::Duration,
};

use axum::{
    Extension,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use futures_core::Stream;
use serde_json::{Value, json};
use tokio::{
    task::JoinHandle,
    time::{self, Instant, Sleep},
};

use super::{
    App, body,
    context::{Context, parsed},
    front::Streaming,
    input, json as text,
    predict::{self, Asked},
    problem::{self, Problem},
};
use crate::{
    backend::{Finish, Input, ItemError, Part, Parts},
    metrics::Route,
};

/// A stream without news says that it is alive this often.
const ALIVE: Duration = Duration::from_secs(15);

/// The parts of the answer, the number of items, and whether it was one alone.
async fn start(app: &App, context: &Context, request: Request) -> Result<(Parts, usize, bool), Problem> {
    let model = app.backend.model();
    if !model.generates {
        let text = "the model does not generate; ask /predict";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "unsupported", text));
    }
    let (parts, body) = request.into_parts();
    predict::json_only(&parts.headers)?;
    let body = body::read(app, context, &parts.headers, body).await?;
    let (items, parameters) = parsed(app, || {
        let request: Asked<'_> = text::parse(&body)?;
        let parameters = text::parameters(request.parameters)?;
        Ok((input::read(model, request.inputs, &body)?, parameters))
    })?;
    let count = match &items.input {
        Input::Texts(all) => all.len(),
        Input::Images(all) => all.len(),
        Input::Rows(all) => all.len(),
        Input::Tensors(all) => all.first().map_or(0, |one| usize::try_from(one.shape[0]).unwrap_or(0)),
    };
    let parts = app.backend.generate(context.call(items.input, parameters));
    match time::timeout_at(context.deadline.into(), parts).await {
        Ok(parts) => Ok((parts?, count, items.single)),
        Err(_) => Err(Problem::deadline()),
    }
}

async fn next(parts: &mut Parts) -> Option<Result<Part, crate::backend::Refusal>> {
    std::future::poll_fn(|waker| parts.as_mut().poll_next(waker)).await
}

/// What an item's parts made so far.
#[derive(Debug, Default, Clone)]
struct Whole {
    text: String,
    tokens: Vec<u32>,
    finish: Option<Finish>,
}

impl Whole {
    fn error(&self) -> Option<&ItemError> {
        match &self.finish {
            Some(Finish::Error(why)) => Some(why),
            _ => None,
        }
    }
}

pub(super) async fn whole(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Context>,
    request: Request,
) -> Result<Response, Problem> {
    let (mut parts, count, single) = start(&app, &context, request).await?;
    let mut items = vec![Whole::default(); count];
    let all = async {
        while let Some(part) = next(&mut parts).await {
            let part = part?;
            if let Some(item) = items.get_mut(part.item) {
                item.text.push_str(&part.text);
                item.tokens.extend(part.tokens);
                item.finish = part.finished.or_else(|| item.finish.take());
            }
        }
        Ok::<_, Problem>(())
    };
    match time::timeout_at(context.deadline.into(), all).await {
        Ok(done) => done?,
        Err(_) => return Err(Problem::deadline()),
    }
    if items.iter().all(|item| item.error().is_some()) {
        let errors = items.iter().enumerate().filter_map(|(i, item)| Some((i, item.error()?)));
        problem::of_items(errors, single).map_or(Ok(()), Err)?;
    }
    let mut outputs: Vec<Value> = items.into_iter().map(shown).collect();
    let outputs = if single && outputs.len() == 1 { outputs.remove(0) } else { Value::Array(outputs) };
    Ok(text::response(json!({ "outputs": outputs }).to_string().into_bytes()))
}

fn shown(item: Whole) -> Value {
    let mut out = json!({ "text": item.text, "tokens": item.tokens });
    match item.finish {
        Some(Finish::Error(why)) => out["error"] = failed(&why),
        finish => out["finish_reason"] = json!(finish.as_ref().map(reason)),
    }
    out
}

/// Why one of several items failed.
fn failed(why: &ItemError) -> Value {
    json!({ "type": problem::kind_of(why), "message": problem::cut(&why.message) })
}

fn reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Error(_) => "error",
    }
}

pub(super) async fn stream(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Context>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, count, _) = start(&app, &context, request).await?;
    let place = Streaming::default();
    let running = Arc::new(Running {
        app,
        place: place.clone(),
        request_id: Arc::clone(&context.request_id),
        started: context.started,
        parts: Mutex::new(Some(parts)),
    });
    let events = Events {
        expiry: tokio::spawn(expire(Arc::clone(&running), context.deadline.into())),
        running,
        ended: false,
        open: count,
        alive: Box::pin(time::sleep(ALIVE)),
    };
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that collect responses are told not to.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.extensions_mut().insert(place);
    Ok(response)
}

/// A stream under way: what its body and its deadline share.
struct Running {
    app: Arc<App>,
    place: Streaming,
    request_id: Arc<str>,
    started: std::time::Instant,
    /// None once it ended.
    parts: Mutex<Option<Parts>>,
}

impl Running {
    fn parts(&self) -> MutexGuard<'_, Option<Parts>> {
        // Nothing is left half done by a panic.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it: its place is another's, and what is dropped with the parts is not done any more. None if it had ended.
    fn end(&self) -> Option<Parts> {
        self.place.end();
        self.parts().take()
    }

    /// Ends it unless it had ended, counts and logs why: what was counted and logged with its headers said 200.
    fn fail(&self, problem: &Problem) {
        let Some(_parts) = self.end() else { return };
        self.app.metrics.rejected(problem.kind);
        if self.app.log_requests {
            let (id, path) = (&*self.request_id, Route::GenerateStream.name());
            let ms = (self.started.elapsed().as_secs_f64() * 1e6).round() / 1e3;
            let (why, text) = (problem.kind, problem.message());
            tracing::info!(id, path, ms, why, text, "stream failed");
        }
    }
}

/// Ends a stream at its deadline. That is no part of its body: nobody asks for the next part while a client does not read.
async fn expire(running: Arc<Running>, deadline: Instant) {
    time::sleep_until(deadline).await;
    running.fail(&Problem::deadline());
}

/// Parts as server-sent events. Asked for the next one only when the last one went into the socket, so that a slow
/// client slows nobody but its own stream.
struct Events {
    running: Arc<Running>,
    /// Ends with the deadline.
    expiry: JoinHandle<()>,
    /// Its last event was given.
    ended: bool,
    /// Items that are not finished.
    open: usize,
    alive: Pin<Box<Sleep>>,
}

impl Events {
    fn fail(&mut self, problem: &Problem) -> Bytes {
        self.ended = true;
        self.running.fail(problem);
        Bytes::from(format!("event: error\ndata: {}\n\n", problem.json(&self.running.request_id)))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.expiry.abort();
        drop(self.running.end());
    }
}

impl Stream for Events {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, waker: &mut Waker<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        // First: parts that are ready do not outlast it.
        if Pin::new(&mut self.expiry).poll(waker).is_ready() {
            return Poll::Ready(Some(Ok(self.fail(&Problem::deadline()))));
        }
        let polled = match &mut *self.running.parts() {
            Some(parts) => parts.as_mut().poll_next(waker),
            // It is over, and the task that said so wakes this one at its end.
            None => return Poll::Pending,
        };
        match polled {
            Poll::Ready(Some(Ok(part))) => {
                self.alive.as_mut().reset(Instant::now() + ALIVE);
                let mut event = json!({ "item": part.item, "tokens": part.tokens, "text": part.text });
                if let Some(finish) = &part.finished {
                    self.open = self.open.saturating_sub(1);
                    event["finish_reason"] = json!(reason(finish));
                    if let Finish::Error(why) = finish {
                        event["error"] = failed(why);
                    }
                }
                Poll::Ready(Some(Ok(Bytes::from(format!("data: {event}\n\n")))))
            }
            Poll::Ready(Some(Err(refusal))) => Poll::Ready(Some(Ok(self.fail(&Problem::from(refusal))))),
            Poll::Ready(None) if self.open > 0 => {
                let text = "the model's answer ended before it was finished";
                let problem = Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "model_failed", text);
                Poll::Ready(Some(Ok(self.fail(&problem))))
            }
            Poll::Ready(None) => {
                self.ended = true;
                drop(self.running.end());
                Poll::Ready(None)
            }
            Poll::Pending if self.alive.as_mut().poll(waker).is_ready() => {
                self.alive.as_mut().reset(Instant::now() + ALIVE);
                Poll::Ready(Some(Ok(Bytes::from_static(b": alive\n\n"))))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}
