//! The Open Inference Protocol over gRPC, on a port of its own; with the cargo feature `grpc`.
//!
//! The same admission, limits, counting and errors as over HTTP; a status code becomes the gRPC code nearest to it.

mod bounds;
mod convert;
mod incoming;
mod messages;

use std::{
    convert::Infallible,
    future::Future,
    io,
    marker::PhantomData,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context as Waker, Poll},
    time::{Duration, Instant},
};

use axum::http::{Request, Response, StatusCode};
use bytes::{Buf as _, Bytes};
use tokio::net::TcpListener;
use tonic::{
    Code, Status,
    body::Body,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
    metadata::MetadataValue,
    server::UnaryService,
};
use tonic_prost::ProstEncoder;
use tower_service::Service;

use self::{
    incoming::Incoming,
    messages::{Empty, Flag, InferRequest, InferResponse, ModelMetadata, Named, ServerMetadata},
};
use super::{
    App,
    accept::Accepting,
    admission, body,
    context::{Context, REQUEST_ID, parsed, responded},
    front::{self, Guard, Live},
    problem::Problem,
    v2,
};
use crate::{
    backend::{Health, Refusal},
    metrics::Route,
};

const PREFIX: &str = "/inference.GRPCInferenceService/";
/// Bytes of a message that asks for no work: it holds a name at most.
const SHORT_BYTES: u64 = 4 << 10;

/// Serves `listener` until `shutdown`, then finishes what is under way.
pub(super) async fn serve(
    app: Arc<App>,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let incoming = Incoming::new(Accepting::new(listener, app.body_timeout), app.header_timeout);
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .max_concurrent_streams(u32::try_from(app.limits.in_flight).unwrap_or(u32::MAX))
        .serve_with_incoming_shutdown(Inference(app), incoming, shutdown)
        .await
        .map_err(io::Error::other)
}

#[derive(Clone)]
struct Inference(Arc<App>);

impl Service<Request<Body>> for Inference {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _waker: &mut Waker<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let app = Arc::clone(&self.0);
        Box::pin(async move { Ok(answer(app, request).await) })
    }
}

/// Answers one call. Dropped when the client cancels it.
async fn answer(app: Arc<App>, request: Request<Body>) -> Response<Body> {
    let (mut context, headers) = Context::new(request.headers(), &app.tracer, app.request_timeout);
    context.hurry(request.headers().get("grpc-timeout").and_then(|value| patience(value.to_str().ok()?)));
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let name = uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let guard = match name {
        "ServerLive" | "ServerReady" => Guard::Open,
        "ModelInfer" => Guard::Work,
        _ => Guard::Key,
    };
    let live = Live::new(&app, &context, &method, uri.path(), Route::Grpc);
    // Held until the answer is there.
    let mut _place = None;
    let admitted = front::admit(&app, &context, guard, request.headers(), headers).map(|taken| _place = taken);
    let failed = Failed::default();
    // Only work has a place, so only its messages may be long.
    let limit = if guard == Guard::Work { app.limits.body_bytes } else { SHORT_BYTES.min(app.limits.body_bytes) };
    let mut response = match admitted {
        Ok(()) => dispatch(&app, &context, (name, limit), request, &failed).await,
        Err(problem) => refuse(&failed, problem, &context).into_http(),
    };
    let answered = failed.lock().unwrap_or_else(PoisonError::into_inner).is_none();
    if let Some(problem) = unread(&response, guard, limit).filter(|_| answered) {
        response = refuse(&failed, problem, &context).into_http();
    }
    let problem = failed.lock().unwrap_or_else(PoisonError::into_inner).take();
    live.end(problem.as_ref().map_or(StatusCode::OK, |problem| problem.status), problem.as_ref());
    response
}

/// Why a call failed, for the log and the metrics.
type Failed = Arc<Mutex<Option<Problem>>>;

/// What the transport itself answered, without asking anybody here: the message is too long, or no such message.
fn unread(response: &Response<Body>, guard: Guard, limit: u64) -> Option<Problem> {
    let status = Status::from_header_map(response.headers())?;
    match status.code() {
        Code::Ok => None,
        Code::OutOfRange | Code::ResourceExhausted if guard == Guard::Work => Some(admission::too_long(None, limit)),
        Code::OutOfRange | Code::ResourceExhausted => {
            let text = format!("the message has more than {limit} bytes; only ModelInfer takes longer ones");
            Some(Problem::too_large(text))
        }
        _ => Some(Problem::malformed(status.message())),
    }
}

async fn dispatch(
    app: &Arc<App>,
    context: &Context,
    (name, limit): (&str, u64),
    request: Request<Body>,
    failed: &Failed,
) -> Response<Body> {
    let calls = Calls { app, context, failed, limit };
    match name {
        "ServerLive" => calls.unary(request, server_live).await,
        "ServerReady" => calls.unary(request, server_ready).await,
        "ServerMetadata" => calls.unary(request, server_metadata).await,
        "ModelReady" => calls.unary(request, model_ready).await,
        "ModelMetadata" => calls.unary(request, model_metadata).await,
        "ModelInfer" => calls.unary(request, infer).await,
        _ => {
            let text = "there is no such call; there are those of inference.GRPCInferenceService";
            refuse(failed, Problem::new(StatusCode::NOT_FOUND, "not_found", text), context).into_http()
        }
    }
}

/// Encodes answers. Calls stay the bytes that they are: what they would become is looked at first, see [`bounds`].
struct Bare<Say>(PhantomData<Say>);

impl<Say: prost::Message + 'static> Codec for Bare<Say> {
    type Encode = Say;
    type Decode = Bytes;
    type Encoder = ProstEncoder<Say>;
    type Decoder = Whole;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(BufferSettings::default())
    }

    fn decoder(&mut self) -> Whole {
        Whole
    }
}

struct Whole;

impl Decoder for Whole {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}

fn decode<Ask: prost::Message + Default>(message: Bytes) -> Result<Ask, Problem> {
    Ask::decode(message).map_err(|error| Problem::malformed(error.to_string()))
}

/// What calls have in common.
struct Calls<'a> {
    app: &'a Arc<App>,
    context: &'a Context,
    failed: &'a Failed,
    /// Bytes of a message.
    limit: u64,
}

impl Calls<'_> {
    async fn unary<Say, Fut>(
        &self,
        request: Request<Body>,
        handler: fn(Arc<App>, Context, Bytes) -> Fut,
    ) -> Response<Body>
    where
        Say: prost::Message + 'static,
        Fut: Future<Output = Result<Say, Problem>> + Send + 'static,
    {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let mut grpc = tonic::server::Grpc::new(Bare(PhantomData)).max_decoding_message_size(limit);
        let (app, context, failed) = (Arc::clone(self.app), self.context.clone(), Arc::clone(self.failed));
        let read = Arc::new(AtomicBool::new(false));
        let handler = Handler { app, context, failed, read: Arc::clone(&read), handler };
        let answer = self.in_time(grpc.unary(handler, request), &read);
        let mut over = self.app.over.subscribe();
        tokio::select! {
            // An answer that is there is given.
            biased;
            response = answer => response,
            _ = over.wait_for(|over| *over) => {
                refuse(self.failed, Refusal::Draining.into(), self.context).into_http()
            }
        }
    }

    /// The answer, if message and answer come in their times. `read`: whether the message is here.
    async fn in_time(&self, answer: impl Future<Output = Response<Body>>, read: &AtomicBool) -> Response<Body> {
        tokio::pin!(answer);
        // A client that sends its message slowly has as long as one over HTTP.
        let (until, deadline) = (Instant::now() + self.app.body_timeout, self.context.deadline);
        if until < deadline {
            match tokio::time::timeout_at(until.into(), &mut answer).await {
                Ok(response) => return response,
                // ORDER none, Relaxed: both are this task.
                Err(_) if !read.load(Ordering::Relaxed) => {
                    return refuse(self.failed, body::too_slow(self.app), self.context).into_http();
                }
                Err(_) => {}
            }
        }
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(response) => response,
            // ORDER none, Relaxed: both are this task.
            Err(_) if !read.load(Ordering::Relaxed) && !self.context.hurried => {
                refuse(self.failed, body::too_slow(self.app), self.context).into_http()
            }
            Err(_) => refuse(self.failed, Problem::deadline(), self.context).into_http(),
        }
    }
}

struct Handler<H> {
    app: Arc<App>,
    context: Context,
    failed: Failed,
    /// Whether the message is here.
    read: Arc<AtomicBool>,
    handler: H,
}

impl<H, Say, Fut> UnaryService<Bytes> for Handler<H>
where
    H: Fn(Arc<App>, Context, Bytes) -> Fut,
    Fut: Future<Output = Result<Say, Problem>> + Send + 'static,
    Say: 'static,
{
    type Response = Say;
    type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<Say>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        self.read.store(true, Ordering::Relaxed);
        let (context, failed) = (self.context.clone(), Arc::clone(&self.failed));
        let done = (self.handler)(Arc::clone(&self.app), context.clone(), request.into_inner());
        Box::pin(
            async move { done.await.map(tonic::Response::new).map_err(|problem| refuse(&failed, problem, &context)) },
        )
    }
}

async fn server_live(_app: Arc<App>, _context: Context, message: Bytes) -> Result<Flag, Problem> {
    let Empty {} = decode(message)?;
    Ok(Flag { yes: true })
}

async fn server_ready(app: Arc<App>, _context: Context, message: Bytes) -> Result<Flag, Problem> {
    let Empty {} = decode(message)?;
    Ok(Flag { yes: app.health() == Health::Ready })
}

async fn server_metadata(_app: Arc<App>, _context: Context, message: Bytes) -> Result<ServerMetadata, Problem> {
    let Empty {} = decode(message)?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Ok(ServerMetadata { name: "forebay".to_owned(), version, extensions: Vec::new() })
}

/// Whether the message names this model; an empty version is any.
fn known(app: &App, name: &str, version: &str) -> Result<(), Problem> {
    v2::known(app.backend.model(), name, Some(version).filter(|version| !version.is_empty()))
}

async fn model_ready(app: Arc<App>, _context: Context, message: Bytes) -> Result<Flag, Problem> {
    let message: Named = decode(message)?;
    known(&app, &message.name, &message.version)?;
    Ok(Flag { yes: app.health() == Health::Ready })
}

async fn model_metadata(app: Arc<App>, _context: Context, message: Bytes) -> Result<ModelMetadata, Problem> {
    let message: Named = decode(message)?;
    known(&app, &message.name, &message.version)?;
    Ok(convert::metadata(app.backend.model()))
}

async fn infer(app: Arc<App>, context: Context, message: Bytes) -> Result<InferResponse, Problem> {
    let model = app.backend.model();
    let (message, input, parameters) = parsed(&app, || {
        bounds::check(&message, model)?;
        let mut message: InferRequest = decode(message)?;
        known(&app, &message.model_name, &message.model_version)?;
        let (input, parameters) = convert::call(model, &mut message)?;
        Ok((message, input, parameters))
    })?;
    let answer = context.infer(&app, input, parameters).await?;
    responded(&app, || convert::response(model, message, &answer))
}

/// Notes why, and makes a status of it. Field and item are in the text, the request's id beside it.
fn refuse(failed: &Failed, problem: Problem, context: &Context) -> Status {
    let code = match problem.status.as_u16() {
        400 | 422 => Code::InvalidArgument,
        401 => Code::Unauthenticated,
        404 => {
            if problem.kind == "unknown_model" {
                Code::NotFound
            } else {
                Code::Unimplemented
            }
        }
        413 | 429 => Code::ResourceExhausted,
        502 | 503 => Code::Unavailable,
        504 | 408 => Code::DeadlineExceeded,
        _ => Code::Internal,
    };
    let item = problem.item.map_or_else(String::new, |item| format!(" (item {item})"));
    let mut status = Status::new(code, format!("{}{item}", problem.text()));
    if let Ok(id) = MetadataValue::try_from(&*context.request_id) {
        status.metadata_mut().insert(REQUEST_ID, id);
    }
    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem);
    status
}

/// The header `grpc-timeout`: at most eight digits and a unit.
fn patience(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_has_digits_and_a_unit() {
        assert_eq!(patience("100m"), Some(Duration::from_millis(100)));
        assert_eq!(patience("2H"), Some(Duration::from_secs(7200)));
        for bad in ["", "m", "1", "1.5S", "-1S", "123456789S", "1x", "1é"] {
            assert_eq!(patience(bad), None, "{bad}");
        }
    }
}
