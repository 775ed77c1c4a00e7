//! Accepting connections, those of HTTP and those of gRPC.

use std::{
    future::{Future as _, poll_fn},
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    time::{Sleep, sleep},
};

/// A pause when the system has no descriptors or memory for one more connection.
const NO_ROOM: Duration = Duration::from_millis(50);

/// Accepts what comes at a port, and sets what all of its sockets have.
pub(super) struct Accepting {
    listener: TcpListener,
    /// Since there was no room for one more.
    pause: Option<Pin<Box<Sleep>>>,
    /// How long a client may take nothing of what it is sent.
    patience: Duration,
}

impl Accepting {
    pub(super) fn new(listener: TcpListener, patience: Duration) -> Self {
        Self { listener, pause: None, patience }
    }

    /// The next connection. Nothing is lost when this is dropped.
    pub(super) async fn next(&mut self) -> TcpStream {
        poll_fn(|waker| self.poll_next(waker)).await
    }

    pub(super) fn poll_next(&mut self, waker: &mut Context<'_>) -> Poll<TcpStream> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(waker));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(waker)) {
                Ok((stream, _)) => {
                    // A small response must not wait for the acknowledgement of the one before.
                    let _ = stream.set_nodelay(true);
                    give_up_on_the_stuck(&stream, self.patience);
                    return Poll::Ready(stream);
                }
                Err(error) if is_of_the_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    self.pause = Some(Box::pin(sleep(NO_ROOM)));
                }
            }
        }
    }
}

/// Whether only this one connection failed.
fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// A client that takes nothing of what it is sent for `timeout` loses its connection.
fn give_up_on_the_stuck(stream: &TcpStream, timeout: Duration) {
    let ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    // Where the system has no such thing, TCP's own patience counts.
    let _ = rustix::net::sockopt::set_tcp_user_timeout(stream, ms);
}
