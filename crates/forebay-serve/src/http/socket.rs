//! A client's socket that is closed so that the client can still read the answer.
//!
//! Closing a socket with bytes unread in it resets the connection, and the reset overtakes what was written: a client that
//! sends too much would hear "connection reset" in place of 413. So the end goes in two steps: nothing more is written,
//! which the client sees; then what it still sends is read and thrown away, for a moment.
//!
//! It tells as well whether a part of an answer waits for the client to read: the request itself is over by then.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

/// How long what comes after the end is thrown away.
const LINGER: Duration = Duration::from_millis(500);
/// Bytes of it that are thrown away.
const LINGER_BYTES: usize = 64 << 20;

pub(super) struct Socket {
    stream: TcpStream,
    end: Option<End>,
    unsent: Unsent,
}

/// Counts its socket among those with bytes that the system does not take yet.
struct Unsent {
    sockets: Arc<AtomicUsize>,
    counted: bool,
}

impl Unsent {
    fn set(&mut self, some: bool) {
        if self.counted == some {
            return;
        }
        self.counted = some;
        // ORDER none, Relaxed: a count.
        if some {
            self.sockets.fetch_add(1, Ordering::Relaxed);
        } else {
            self.sockets.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// `written` of `given` bytes.
    fn after(&mut self, written: &Poll<io::Result<usize>>, given: usize) {
        if !matches!(written, Poll::Ready(Ok(bytes)) if *bytes == given) {
            self.set(true);
        }
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// Nothing more is written.
struct End {
    until: Pin<Box<Sleep>>,
    left: usize,
}

impl Socket {
    /// Counted in `unsent` while it has bytes that the system does not take, because the client does not read.
    pub(super) fn new(stream: TcpStream, unsent: Arc<AtomicUsize>) -> Self {
        Self { stream, end: None, unsent: Unsent { sockets: unsent, counted: false } }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.unsent.after(&written, buf.len());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.unsent.after(&written, bufs.iter().map(|buf| buf.len()).sum());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Asked for when all is written.
        self.unsent.set(false);
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, end, .. } = &mut *self;
        if end.is_none() {
            ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
        }
        let end = end.get_or_insert_with(|| End { until: Box::pin(sleep(LINGER)), left: LINGER_BYTES });
        let mut scratch = [0; 8192];
        // The clock is asked each time: bytes without end must not keep this from the others.
        while end.until.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut scratch);
            // What fails here has ended anyway.
            if ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer)).is_err() {
                break;
            }
            let read = buffer.filled().len();
            if read == 0 || read > end.left {
                break;
            }
            end.left -= read;
        }
        Poll::Ready(Ok(()))
    }
}
