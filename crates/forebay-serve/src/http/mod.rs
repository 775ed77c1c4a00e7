//! HTTP: what clients speak, in front of a [`Backend`].
//!
//! ```text
//!   accept.rs       connections that come                    connection.rs slow clients, draining
//!   socket.rs       an end that can be heard
//!   front.rs        context → admission → route → id, count, log line, span
//!   admission.rs    key, rate, places, length: before a byte of the body is read
//!   body.rs         the body, in time and not too long
//!   predict.rs      /predict: JSON, images, forms            v2/        the Open Inference Protocol
//!   openai.rs       /v1/embeddings, /v1/models               generate.rs /generate, /generate_stream
//!   info.rs         /info, /tokenize, /status, /metrics      health.rs  /livez, /readyz, /v2/health/…
//!   openapi.rs      /openapi.json, made of the model         problem.rs what went wrong, in one shape
//!   grpc/           the Open Inference Protocol over gRPC, with the feature `grpc`
//!   json.rs, numbers.rs, input.rs, tensors.rs                requests' values, and the way back
//! ```
//!
//! A request is one future on its connection's task: nothing is spawned for it, except to write the tokens of long texts,
//! to end a stream at its deadline, and to reload workers.
//! A client that leaves drops the future, and with it the backend's, the place it held and the items it asked for.

mod accept;
mod admission;
mod body;
mod connection;
mod context;
mod front;
mod generate;
#[cfg(feature = "grpc")]
mod grpc;
mod health;
mod info;
mod input;
mod json;
mod numbers;
mod openai;
mod openapi;
mod predict;
mod problem;
mod socket;
mod tensors;
mod v2;

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    http::{StatusCode, header},
    response::{Html, IntoResponse as _},
    routing::{MethodRouter, get, post},
};
use tokio::net::TcpListener;

use self::{
    accept::Accepting,
    admission::{Keys, Rates},
    problem::Problem,
};
use crate::{
    Config,
    backend::{Backend, Health},
    config::LimitsConfig,
    metrics::Metrics,
    page,
    trace::Tracer,
};

/// Everything that requests share.
struct App {
    backend: Arc<dyn Backend>,
    metrics: Arc<Metrics>,
    tracer: Tracer,
    keys: Keys,
    rates: Option<Rates>,
    limits: LimitsConfig,
    request_timeout: Duration,
    body_timeout: Duration,
    header_timeout: Duration,
    drain: Duration,
    log_requests: bool,
    draining: AtomicBool,
    /// Says that the drain is over: calls of gRPC that are still under way end.
    #[cfg(feature = "grpc")]
    over: tokio::sync::watch::Sender<bool>,
}

impl App {
    fn draining(&self) -> bool {
        // ORDER none, Relaxed: the flag is the whole message.
        self.draining.load(Ordering::Relaxed)
    }

    fn health(&self) -> Health {
        if self.draining() { Health::Draining } else { self.backend.health() }
    }
}

/// Listens where `config` says and serves until `shutdown`, then drains: new work is answered 503, what is there is
/// finished, within `server.drain_s`. Returns when the last connection is closed.
///
/// # Errors
/// An address cannot be listened on, or the keys cannot be read.
pub async fn serve(
    config: &Config,
    backend: Arc<dyn Backend>,
    metrics: Arc<Metrics>,
    tracer: Tracer,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let listeners = bind(config).await?;
    serve_on(listeners, config, backend, metrics, tracer, shutdown).await
}

/// The ports that are listened on.
#[derive(Debug)]
pub struct Listeners {
    http: TcpListener,
    #[cfg(feature = "grpc")]
    grpc: Option<TcpListener>,
}

impl Listeners {
    /// The address of HTTP, which says which port a 0 became.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.http.local_addr()
    }
}

/// Listens on `server.listen`, and for gRPC on `server.grpc_listen`; [`serve_on`] takes what comes back.
///
/// # Errors
/// An address cannot be listened on; the text says which one.
pub async fn bind(config: &Config) -> io::Result<Listeners> {
    let server = &config.server;
    Ok(Listeners {
        http: listen(&server.listen, "server.listen").await?,
        #[cfg(feature = "grpc")]
        grpc: match &server.grpc_listen {
            Some(address) => Some(listen(address, "server.grpc_listen").await?),
            None => None,
        },
    })
}

async fn listen(address: &str, key: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let text = format!("cannot listen on {address}: {error}; set {key} to another address or port");
        io::Error::new(error.kind(), text)
    })
}

/// As [`serve`], on ports that are listened on.
///
/// # Errors
/// The keys cannot be read.
pub async fn serve_on(
    listeners: Listeners,
    config: &Config,
    backend: Arc<dyn Backend>,
    metrics: Arc<Metrics>,
    tracer: Tracer,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let keys = config.bearer_keys().map_err(io::Error::other)?;
    let seconds = Duration::from_secs_f64;
    let app = Arc::new(App {
        rates: Rates::new(&config.limits, keys.len()),
        keys: Keys::new(keys),
        limits: config.limits.clone(),
        request_timeout: seconds(config.limits.request_timeout_s),
        body_timeout: seconds(config.server.body_timeout_s),
        header_timeout: seconds(config.server.header_timeout_s),
        drain: seconds(config.server.drain_s),
        log_requests: config.log.requests,
        draining: AtomicBool::new(false),
        #[cfg(feature = "grpc")]
        over: tokio::sync::watch::Sender::new(false),
        backend,
        metrics,
        tracer,
    });
    let router = router(&app);
    let tracer = app.tracer.clone();
    let accepting = Accepting::new(listeners.http, app.body_timeout);
    #[cfg(feature = "grpc")]
    if let Some(grpc) = listeners.grpc {
        let done = both(app, router, accepting, grpc, shutdown).await;
        tracer.flush().await;
        return done;
    }
    connection::run(app, router, accepting, shutdown).await;
    tracer.flush().await;
    Ok(())
}

/// Serves HTTP, and gRPC on a port of its own, until `shutdown` and the drain after it.
#[cfg(feature = "grpc")]
async fn both(
    app: Arc<App>,
    router: Router,
    accepting: Accepting,
    other: TcpListener,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    tracing::info!(address = %other.local_addr()?, "gRPC");
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    let grpc = grpc::serve(Arc::clone(&app), other, async { drop(end.await) });
    // Calls hold places as requests do: the drain waits for both, then gRPC is told, and finishes what it is writing.
    let http = async {
        let until = connection::run(Arc::clone(&app), router, accepting, shutdown).await;
        // Each connection is a task of tonic's, which nobody here can end: calls that outlast the drain do it themselves.
        app.over.send_replace(true);
        drop(ended);
        until
    };
    tokio::pin!(grpc);
    tokio::select! {
        until = http => {
            let _ = tokio::time::timeout_at(until, grpc).await;
            Ok(())
        }
        failed = &mut grpc => failed,
    }
}

fn router(app: &Arc<App>) -> Router {
    // 405 says which methods there are.
    let get = |handler: MethodRouter<Arc<App>>| handler.fallback(|| refused_method("GET, HEAD"));
    let post = |handler: MethodRouter<Arc<App>>| handler.fallback(|| refused_method("POST"));
    Router::new()
        .route("/", get(self::get(status_page)))
        .route("/livez", get(self::get(health::live)))
        .route("/readyz", get(self::get(health::ready)))
        .route("/info", get(self::get(info::info)))
        .route("/openapi.json", get(self::get(openapi::document)))
        .route("/metrics", get(self::get(info::scrape)))
        .route("/status", get(self::get(info::status)))
        .route("/admin/reload", post(self::post(info::reload)))
        .route("/predict", post(self::post(predict::predict)))
        .route("/generate", post(self::post(generate::whole)))
        .route("/generate_stream", post(self::post(generate::stream)))
        .route("/tokenize", post(self::post(info::tokenize)))
        .route("/v1/embeddings", post(self::post(openai::embeddings)))
        .route("/v1/models", get(self::get(openai::models)))
        .route("/v2", get(self::get(v2::server)))
        .route("/v2/health/live", get(self::get(health::live)))
        .route("/v2/health/ready", get(self::get(health::ready)))
        .route("/v2/models/{model}", get(self::get(v2::metadata)))
        .route("/v2/models/{model}/ready", get(self::get(v2::model_ready)))
        .route("/v2/models/{model}/infer", post(self::post(v2::infer)))
        .route("/v2/models/{model}/versions/{version}", get(self::get(v2::metadata)))
        .route("/v2/models/{model}/versions/{version}/ready", get(self::get(v2::model_ready)))
        .route("/v2/models/{model}/versions/{version}/infer", post(self::post(v2::infer)))
        .fallback(no_such_path)
        .with_state(Arc::clone(app))
}

async fn refused_method(allowed: &'static str) -> Problem {
    let text = format!("the path takes {allowed}");
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method", text).allowing(allowed)
}

async fn no_such_path(uri: axum::http::Uri) -> Problem {
    let text = format!("there is no {}; GET /openapi.json tells what there is", uri.path());
    Problem::new(StatusCode::NOT_FOUND, "not_found", text)
}

/// `GET /`: the page for browsers. Its data come from `/status`, for which a key may be needed.
async fn status_page() -> axum::response::Response {
    let security = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                    img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers = [
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, security),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, Html(page::HTML)).into_response()
}
