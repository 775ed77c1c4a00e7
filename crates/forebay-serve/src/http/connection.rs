//! Sockets: accepting, one task a connection, time limits on slow clients, and the way down.
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
    io,
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
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{self, Instant},
};

use super::{App, front, socket::Socket};

/// How long connections have to write what is answered, after the drain; those whose client reads slowly, until drain_s is
/// over.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How often the drain looks whether anything is under way.
const LOOK: Duration = Duration::from_millis(5);
/// A pause when the system has no descriptors or memory for one more connection.
const NO_ROOM: Duration = Duration::from_millis(50);

/// Serves `listener` until `shutdown` and the drain after it. Returns until when others may write their answers.
pub(super) async fn run(
    app: Arc<App>,
    router: Router,
    listener: TcpListener,
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
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (app, router, closed) = (Arc::clone(&app), router.clone(), closed.clone());
                    connections.spawn(connection(app, router, stream, Arc::clone(&unsent), closed));
                }
                Err(error) if is_of_the_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    time::sleep(NO_ROOM).await;
                }
            },
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
    drop(listener);
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

/// Whether only this one connection failed.
fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
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
    // A small response must not wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    give_up_on_the_stuck(&stream, app.body_timeout);
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

/// A client that takes nothing of what it is sent for `timeout` loses its connection.
fn give_up_on_the_stuck(stream: &TcpStream, timeout: Duration) {
    let ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    // Where the system has no such thing, TCP's own patience counts.
    let _ = rustix::net::sockopt::set_tcp_user_timeout(stream, ms);
}
