//! One wait on many rings: fan-in of several producers.

use std::time::{Duration, Instant};

use forebay_os::poll::{Events, poll_fds};

use super::Consumer;
use crate::{Message, error::RecvError, options::QUOTA_PATIENCE, slice};

/// Between two looks while one of the rings is at its quota and no other has a message.
const QUOTA_LOOK: Duration = Duration::from_millis(1);

/// Several consumers behind one `recv`. Fair: after a message from one ring the others are asked first. A ring that is
/// closed drops out; when the last one has, `recv` says [`RecvError::Closed`].
#[derive(Debug)]
pub struct ConsumerSet {
    consumers: Vec<Consumer>,
    open: Vec<bool>,
    turn: usize,
}

impl ConsumerSet {
    /// A set of these consumers, which keep their place: `recv` says which one a message came from.
    #[must_use]
    pub fn new(consumers: Vec<Consumer>) -> Self {
        let open = vec![true; consumers.len()];
        Self { consumers, open, turn: 0 }
    }

    /// The consumers.
    #[must_use]
    pub fn consumers(&self) -> &[Consumer] {
        &self.consumers
    }

    /// The consumers, to use one on its own or to take them back.
    #[must_use]
    pub fn into_consumers(self) -> Vec<Consumer> {
        self.consumers
    }

    /// The next message of any ring, if there is one now, and the place of its consumer.
    ///
    /// # Errors
    /// [`RecvError::Closed`] when every ring is closed. [`RecvError::Quota`] when one holds all it may and no other has
    /// a message; it stays. Any other error of one consumer, which then drops out.
    pub fn try_recv(&mut self) -> Result<Option<(usize, Message)>, RecvError> {
        let n = self.consumers.len();
        let (mut last, mut at_quota) = (None, None);
        for i in (0..n).map(|i| (self.turn + i) % n) {
            if !self.open[i] {
                continue;
            }
            match self.consumers[i].try_recv() {
                Ok(Some(message)) => {
                    self.turn = i + 1;
                    return Ok(Some((i, message)));
                }
                Ok(None) => {}
                Err(e @ RecvError::Closed { .. }) => {
                    self.open[i] = false;
                    last = Some(e);
                }
                // What it holds is for its user to release; it stays, and the others are asked all the same.
                Err(e @ RecvError::Quota { .. }) => at_quota = Some(e),
                Err(e) => {
                    self.open[i] = false;
                    return Err(e);
                }
            }
        }
        if let Some(e) = at_quota {
            return Err(e);
        }
        if self.open.iter().any(|&open| open) {
            return Ok(None);
        }
        let ring = self.consumers.iter().map(Consumer::ring).collect::<Vec<_>>().join(", ");
        Err(last.unwrap_or(RecvError::Closed { ring }))
    }

    /// The next message of any ring; waits as long as it takes.
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv).
    pub fn recv(&mut self) -> Result<(usize, Message), RecvError> {
        self.recv_interruptible(None, &mut || false).map(|found| found.expect("nothing interrupts this wait"))
    }

    /// The next message of any ring; waits at most `timeout`.
    ///
    /// # Errors
    /// [`RecvError::Timeout`], or as [`try_recv`](Self::try_recv).
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<(usize, Message), RecvError> {
        self.recv_interruptible(Some(timeout), &mut || false).map(|found| found.expect("nothing interrupts this wait"))
    }

    /// As the above; asks `interrupt` at least every 50 ms and returns `None` once it says true.
    ///
    /// # Errors
    /// As [`recv_timeout`](Self::recv_timeout).
    pub fn recv_interruptible(
        &mut self,
        timeout: Option<Duration>,
        interrupt: &mut dyn FnMut() -> bool,
    ) -> Result<Option<(usize, Message)>, RecvError> {
        let start = Instant::now();
        let mut at_quota_since = None;
        loop {
            match self.try_recv() {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => at_quota_since = None,
                Err(e @ RecvError::Quota { .. }) => {
                    let since = *at_quota_since.get_or_insert_with(Instant::now);
                    let patience = match timeout {
                        Some(timeout) => timeout.saturating_sub(start.elapsed()),
                        None => QUOTA_PATIENCE.saturating_sub(since.elapsed()),
                    };
                    if patience.is_zero() {
                        return Err(e);
                    }
                    if interrupt() {
                        return Ok(None);
                    }
                    // Leases of several rings may end, and any of the others may have a message: looked at in turn.
                    std::thread::sleep(QUOTA_LOOK.min(patience));
                    continue;
                }
                Err(e) => return Err(e),
            }
            let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
            if left == Some(Duration::ZERO) {
                let ring = self.consumers.iter().map(Consumer::ring).collect::<Vec<_>>().join(", ");
                return Err(RecvError::Timeout { ring, waited: start.elapsed(), note: String::new() });
            }
            if interrupt() {
                return Ok(None);
            }
            for (consumer, open) in self.consumers.iter_mut().zip(&self.open) {
                if *open {
                    consumer.fileno()?;
                }
            }
            let open = self.consumers.iter().zip(&self.open).filter(|(_, open)| **open);
            let fds: Vec<_> = open.filter_map(|(consumer, _)| Some((consumer.ready_fd()?, Events::READ))).collect();
            poll_fds(&fds, slice::nap(left))?;
        }
    }
}
