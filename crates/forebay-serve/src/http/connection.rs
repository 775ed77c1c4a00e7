//! Connections of HTTP: one task each, time limits on slow clients, and the way down.
//!
//! ```text
//!   accept ──▶ connection task ──▶ hyper (HTTP/1.1) ──▶ front::answer ──▶ router
//!     │            ends: the client left, was too slow, or we drain
//!     └─ the drain begins: still accepts (probes ask /livez), work is answered 503
//!        nothing under way, or drain_s over: no more accepting, idle connections closed, the rest given a moment,
//!        and what is left of drain_s to clients that are reading their answers
//! ```

use std::{
    convert::Infallible,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::{self, Instant},
};

use super::{App, accept::Accepting, front, socket::Socket};

/// How long connections have to write what is answered, after the drain; those whose client reads slowly, until drain_s is
/// over.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How often the drain looks whether anything is under way.
const LOOK: Duration = Duration::from_millis(5);

/// Serves what comes until `shutdown` and the drain after it. Returns until when others may write their answers.
pub(super) async fn run(
    app: Arc<App>,
    router: Router,
    mut accepting: Accepting,
    shutdown: impl Future<Output = ()> + Send,
) -> Instant {
    let (closing, closed) = watch::channel(false);
    let mut connections = JoinSet::new();
    let unsent = Arc::new(AtomicUsize::new(0));
    let mut until = Instant::now();
    tokio::pin!(shutdown);
    let mut drained: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(std::future::pending());
    loop {
        tokio::select! {
            stream = accepting.next() => {
                let (app, router, closed) = (Arc::clone(&app), router.clone(), closed.clone());
                connections.spawn(connection(app, router, stream, Arc::clone(&unsent), closed));
            }
            Some(_) = connections.join_next() => {}
            () = &mut shutdown, if !app.draining() => {
                // ORDER none, Relaxed: the flag is the whole message.
                app.draining.store(true, Ordering::Relaxed);
                until = Instant::now() + app.drain;
                drained = Box::pin(nothing_under_way(Arc::clone(&app), until));
            }
            () = &mut drained => break,
        }
    }
    drop(accepting);
    closing.send_replace(true);
    let mut look = Instant::now() + LAST_WORDS;
    loop {
        tokio::select! {
            ended = connections.join_next() => {
                if ended.is_none() {
                    break;
                }
            }
            () = time::sleep_until(look) => {
                // ORDER none, Relaxed: looked at again.
                let left = unsent.load(Ordering::Relaxed);
                if left == 0 {
                    break;
                }
                let now = Instant::now();
                if now >= until {
                    tracing::warn!(left, "answers are still being read after server.drain_s; they are cut");
                    break;
                }
                look = until.min(now + LAST_WORDS);
            }
        }
    }
    connections.shutdown().await;
    until.max(Instant::now() + LAST_WORDS)
}

/// Ends when no request is under way, or when they have had their time.
async fn nothing_under_way(app: Arc<App>, until: Instant) {
    // ORDER none, Relaxed: looked at again.
    while app.metrics.in_flight.load(Ordering::Relaxed) > 0 {
        if Instant::now() >= until {
            let left = app.metrics.in_flight.load(Ordering::Relaxed);
            tracing::warn!(left, "requests are still under way after server.drain_s; they are dropped");
            return;
        }
        time::sleep(LOOK).await;
    }
}

/// Counts an open connection.
struct Open(Arc<App>);

impl Open {
    fn new(app: &Arc<App>) -> Self {
        // ORDER none, Relaxed: statistics.
        app.metrics.connections.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(app))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // ORDER none, Relaxed: statistics.
        self.0.metrics.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connection(
    app: Arc<App>,
    router: Router,
    stream: TcpStream,
    unsent: Arc<AtomicUsize>,
    mut closed: watch::Receiver<bool>,
) {
    let _open = Open::new(&app);
    let service = service_fn({
        let app = Arc::clone(&app);
        move |request: hyper::Request<hyper::body::Incoming>| {
            let (app, router) = (Arc::clone(&app), router.clone());
            let request: Request = request.map(Body::new);
            async move { Ok::<_, Infallible>(front::answer(app, router, request).await) }
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(app.header_timeout);
    let serving = http.serve_connection(TokioIo::new(Socket::new(stream, unsent)), service);
    tokio::pin!(serving);
    tokio::select! {
        // How it ended is the client's affair: it left, was too slow, or sent what is no HTTP.
        _ = serving.as_mut() => return,
        _ = closed.wait_for(|closed| *closed) => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}
