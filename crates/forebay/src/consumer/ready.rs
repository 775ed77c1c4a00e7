//! Readiness for event loops: an epoll fd over the producer's eventfd, the control socket and a timer for slices.
//! Readable means: call `try_recv`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use forebay_os::{Epoll, EventFd, TimerFd, socket::Conn};

use super::{Consumer, Look};
use crate::{Message, error::RecvError, slice};

const BELL: u64 = 1;
const TIMER: u64 = 2;
const CONN: u64 = 3;

/// The epoll set of a consumer that is used from an event loop.
#[derive(Debug)]
pub(super) struct Ready {
    epoll: Epoll,
    timer: TimerFd,
}

impl Ready {
    fn new(bell: &EventFd, conn: Option<&Conn>) -> Result<Self, RecvError> {
        let (epoll, timer) = (Epoll::new()?, TimerFd::new()?);
        if let Some(slice) = slice::slice() {
            timer.arm(slice, true)?;
        }
        epoll.add(bell.as_fd(), BELL)?;
        epoll.add(timer.as_fd(), TIMER)?;
        if let Some(conn) = conn {
            epoll.add(conn.as_fd(), CONN)?;
        }
        Ok(Self { epoll, timer })
    }
}

impl Consumer {
    /// A descriptor that is readable when [`try_recv`](Self::try_recv) should be called: for `poll`, asyncio, tokio.
    /// It belongs to this consumer; do not close it.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn fileno(&mut self) -> Result<RawFd, RecvError> {
        self.usable()?;
        if self.ready.is_none() {
            self.ready = Some(Ready::new(&self.bell, self.conn.as_ref())?);
            // The first look arms it.
            self.bell.signal();
        }
        Ok(self.ready.as_ref().map_or(-1, |ready| ready.epoll.as_fd().as_raw_fd()))
    }

    /// For an event loop that keeps the descriptor of [`fileno`](Self::fileno) registered and saw it readable: it is
    /// readable again only when something new happens. Whoever calls this looks with [`try_recv`](Self::try_recv) before
    /// it waits for the descriptor again.
    pub fn silence(&mut self) {
        // In a forked child, and without an epoll set, there is nobody to be quiet to.
        if self.ready.is_some() && self.usable().is_ok() {
            self.bell.drain();
        }
    }

    /// The descriptor of [`fileno`](Self::fileno), if it was asked for.
    pub(super) fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        self.ready.as_ref().map(|ready| ready.epoll.as_fd())
    }

    /// There is no message: drain the eventfd, park, look once more. Without an epoll set there is nothing to do.
    pub(super) fn arm(&mut self) -> Result<Option<Message>, RecvError> {
        let Some(ready) = &self.ready else { return Ok(None) };
        ready.timer.drain();
        self.bell.drain();
        self.unpark();
        self.park(true);
        match self.look(false)? {
            Look::Message(message) => {
                // There may be more, and the bell was drained: stay readable.
                self.unpark();
                self.bell.signal();
                Ok(Some(message))
            }
            Look::AtQuota(_) => {
                // The next call says so, and hands on the wake.
                self.unpark();
                self.bell.signal();
                Ok(None)
            }
            Look::Empty => {
                // Closed since `check_end` looked; otherwise the timer, or who gives a message back, calls.
                if self.core.reader().is_closed() && !self.saw_close {
                    self.bell.signal();
                }
                Ok(None)
            }
        }
    }

    /// At its quota it sleeps for no message: a wake that is spent on its mark would be missing where the message may be
    /// taken. The descriptor stays readable.
    pub(super) fn disarm(&mut self) {
        if self.ready.is_some() && !self.unpark() {
            self.bell.signal();
        }
    }

    pub(super) fn drop_conn(&mut self) {
        if let (Some(conn), Some(ready)) = (&self.conn, &self.ready) {
            // A descriptor that is closed leaves its sets by itself; this only says so at once.
            let _ = ready.epoll.remove(conn.as_fd());
        }
        self.conn = None;
    }

    /// Takes the successor's connection and bell. An error leaves everything as it was: the successor sees a hang-up
    /// and greets anew.
    pub(super) fn replace_conn(&mut self, conn: Conn, bell: EventFd) -> forebay_os::Result<()> {
        if let Some(ready) = &self.ready {
            ready.epoll.add(bell.as_fd(), BELL)?;
            // If this fails, closing the bell takes it out of the set again.
            ready.epoll.add(conn.as_fd(), CONN)?;
            let _ = ready.epoll.remove(self.bell.as_fd());
        }
        self.drop_conn();
        self.bell = bell;
        self.conn = Some(conn);
        // Whatever was published in between rang the old bell, or none.
        self.bell.signal();
        Ok(())
    }

    /// As [`try_recv`](Self::try_recv); at its quota it waits for a release, at most a second, as `recv` does.
    #[cfg(feature = "tokio")]
    async fn try_async(
        &mut self,
        at_quota_since: &mut Option<std::time::Instant>,
    ) -> Result<Option<Message>, RecvError> {
        loop {
            match self.try_recv() {
                Err(e @ RecvError::Quota { .. }) => {
                    let since = at_quota_since.get_or_insert_with(std::time::Instant::now);
                    if since.elapsed() >= crate::QUOTA_PATIENCE {
                        return Err(e);
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
                found => {
                    *at_quota_since = None;
                    return found;
                }
            }
        }
    }

    /// Waits for the next message without blocking the thread. Cancel safe: a dropped future has taken nothing.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time enabled.
    #[cfg(feature = "tokio")]
    pub async fn recv_async(&mut self) -> Result<Message, RecvError> {
        let mut at_quota_since = None;
        if let Some(message) = self.try_async(&mut at_quota_since).await? {
            return Ok(message);
        }
        self.fileno()?;
        let failed =
            |call| move |source| RecvError::Os(forebay_os::OsError::new(call, "the consumer's descriptor", source));
        // A descriptor of its own, so that it is open for as long as the runtime polls it.
        let fd = self.ready_fd().map(|fd| fd.try_clone_to_owned()).transpose().map_err(failed("dup"))?;
        let fd = fd.ok_or_else(|| failed("epoll_create1")(std::io::ErrorKind::NotFound.into()))?;
        #[expect(deprecated, reason = "its successor is unsafe for types that may close early; an OwnedFd does not")]
        let ready =
            tokio::io::unix::AsyncFd::with_interest(fd, tokio::io::Interest::READABLE).map_err(failed("epoll_ctl"))?;
        loop {
            if let Some(message) = self.try_async(&mut at_quota_since).await? {
                return Ok(message);
            }
            match ready.readable().await {
                Ok(mut guard) => guard.clear_ready(),
                Err(source) => {
                    return Err(failed("epoll_wait")(source));
                }
            }
        }
    }
}
