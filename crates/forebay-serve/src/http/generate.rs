//! `POST /generate` and `POST /generate_stream`: texts in, tokens out, whole or as they come.

use std::{
    convert::Infallible,
    future::Future as _,
    pin::Pin,
    sync::Arc,
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
use tokio::time::{self, Instant, Sleep};

use super::{
    App, body,
    context::{Context, parsed},
    front::Streaming,
    input, json as text,
    predict::{self, Asked},
    problem::{self, Problem},
};
use crate::backend::{Finish, Input, ItemError, Part, Parts};

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
    if let [Whole { finish: Some(Finish::Error(why)), .. }] = &items[..] {
        return Err(problem::of_item(why, 0, true));
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
    json!({ "type": problem::kind_of(why), "message": why.message })
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
    let events = Events {
        parts: Some(parts),
        open: count,
        request_id: Arc::clone(&context.request_id),
        deadline: Box::pin(time::sleep_until(context.deadline.into())),
        alive: Box::pin(time::sleep(ALIVE)),
    };
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that collect responses are told not to.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.extensions_mut().insert(Streaming);
    Ok(response)
}

/// Parts as server-sent events. Asked for the next one only when the last one went into the socket, so that a slow
/// client slows nobody but its own stream.
struct Events {
    /// None once it ended.
    parts: Option<Parts>,
    /// Items that are not finished.
    open: usize,
    request_id: Arc<str>,
    deadline: Pin<Box<Sleep>>,
    alive: Pin<Box<Sleep>>,
}

impl Events {
    fn fail(&mut self, problem: &Problem) -> Bytes {
        self.parts = None;
        Bytes::from(format!("event: error\ndata: {}\n\n", problem.json(&self.request_id)))
    }
}

impl Stream for Events {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, waker: &mut Waker<'_>) -> Poll<Option<Self::Item>> {
        let Some(parts) = &mut self.parts else { return Poll::Ready(None) };
        match parts.as_mut().poll_next(waker) {
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
                self.parts = None;
                Poll::Ready(None)
            }
            Poll::Pending if self.deadline.as_mut().poll(waker).is_ready() => {
                Poll::Ready(Some(Ok(self.fail(&Problem::deadline()))))
            }
            Poll::Pending if self.alive.as_mut().poll(waker).is_ready() => {
                self.alive.as_mut().reset(Instant::now() + ALIVE);
                Poll::Ready(Some(Ok(Bytes::from_static(b": alive\n\n"))))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}
