//! Connections of gRPC: accepted and closed as those of HTTP are, and given up on while they say nothing. Their clients say
//! what they have read, so that there is something to read nearly always when they are closed.
//!
//! HTTP/2 asks its clients for signs of life, but only those that have said hello; tonic has no time limit on that.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use tonic::transport::server::Connected;

use super::super::{accept::Accepting, socket::Socket};

/// Bytes that every connection begins with: `PRI * HTTP/2.0`, empty line, `SM`, empty line.
const HELLO: usize = 24;

/// The connections that come.
pub(super) struct Incoming {
    accepting: Accepting,
    /// How long one may take to say hello.
    patience: Duration,
}

impl Incoming {
    pub(super) fn new(accepting: Accepting, patience: Duration) -> Self {
        Self { accepting, patience }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, waker: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let patience = self.patience;
        self.accepting.poll_next(waker).map(|stream| {
            let hello = Hello { until: Box::pin(sleep(patience)), left: HELLO };
            // Who still reads need not be counted: tonic waits for its connections.
            Some(Ok(Connection { stream: Socket::new(stream, Arc::default()), hello: Some(hello) }))
        })
    }
}

/// A connection, which cannot be read any more if its client has not said hello in time.
pub(super) struct Connection {
    stream: Socket,
    /// None once it has.
    hello: Option<Hello>,
}

struct Hello {
    until: Pin<Box<Sleep>>,
    /// Bytes of it that are to come.
    left: usize,
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, waker: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(waker, buf);
        if let Some(hello) = &mut self.hello {
            hello.left = hello.left.saturating_sub(buf.filled().len() - before);
            if hello.left == 0 {
                self.hello = None;
            } else if hello.until.as_mut().poll(waker).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, waker: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(waker, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        waker: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(waker, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, waker: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(waker)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, waker: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(waker)
    }
}
