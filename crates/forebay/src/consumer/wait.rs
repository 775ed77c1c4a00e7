//! Waiting for a message: look, spin for about as long as a wake costs, park, sleep in slices.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use forebay_layout::member as at;
use forebay_os::{barrier, futex};

use super::{Consumer, Look, core::Core};
use crate::{
    Message,
    error::RecvError,
    options::{QUOTA_PATIENCE, WaitPolicy},
    slice,
};

/// Between two looks at all that a message may come by, its position is peeked at this often.
const PEEKS: u32 = 64;
/// About what a wake costs: longer spinning would only burn the core.
const SPIN: Duration = Duration::from_micros(30);

impl Consumer {
    /// Waits for a message; `None` means interrupted.
    pub(super) fn wait(
        &mut self,
        timeout: Option<Duration>,
        interrupt: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Message>, RecvError> {
        #[cfg(feature = "cuda")]
        self.attachment.poll_device();
        if let Some(message) = self.take() {
            return Ok(Some(message));
        }
        self.wait_on(timeout, interrupt)
    }

    /// The rest of [`wait`](Self::wait), when it was not simple.
    fn wait_on(
        &mut self,
        timeout: Option<Duration>,
        interrupt: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Message>, RecvError> {
        if let Look::Message(message) = self.look(false)? {
            return Ok(Some(message));
        }
        let start = Instant::now();
        let left = |start: Instant| timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
        let mut at_quota_since = None;
        loop {
            let mut looked = self.spin(left(start))?;
            if let Look::Empty = looked {
                // Before parking and after every slice: tend peers when it is time, look at every slot word.
                self.tend_if_due()?;
                looked = self.look(true)?;
            }
            match looked {
                Look::Message(message) => return Ok(Some(message)),
                Look::AtQuota(class) => {
                    if at_quota_since.is_none() {
                        // A wake may have been spent on us for a message that only another consumer may take.
                        self.pass_on_wake();
                    }
                    let since = *at_quota_since.get_or_insert_with(Instant::now);
                    let patience = match left(start) {
                        Some(left) => left,
                        None => QUOTA_PATIENCE.saturating_sub(since.elapsed()),
                    };
                    if patience.is_zero() {
                        return Err(self.quota_error(class));
                    }
                    if interrupt() {
                        return Ok(None);
                    }
                    self.sleep_at_quota(class, patience)?;
                }
                Look::Empty => {
                    at_quota_since = None;
                    if let Some(message) = self.check_end()? {
                        return Ok(Some(message));
                    }
                    let left = left(start);
                    if left == Some(Duration::ZERO) {
                        return Err(self.timeout_error(start.elapsed()));
                    }
                    if interrupt() {
                        return Ok(None);
                    }
                    if self.options.wait != WaitPolicy::Spin
                        && let Some(message) = self.sleep(left)?
                    {
                        return Ok(Some(message));
                    }
                }
            }
        }
    }

    /// Looks again and again, as long as the policy allows.
    fn spin(&mut self, left: Option<Duration>) -> Result<Look, RecvError> {
        let budget = match self.options.wait {
            WaitPolicy::Block => return self.look(false),
            WaitPolicy::Adaptive => left.map_or(SPIN, |left| left.min(SPIN)),
            WaitPolicy::Spin => slice::nap(left).unwrap_or(Duration::from_millis(50)),
        };
        let start = Instant::now();
        loop {
            if let Some(message) = self.take() {
                return Ok(Look::Message(message));
            }
            match self.look(false)? {
                Look::Empty => {}
                found => return Ok(found),
            }
            if self.core.reader().is_closed() || start.elapsed() >= budget {
                return Ok(Look::Empty);
            }
            // One load of the line that the message comes in. Whoever waits longer between two looks sees it later.
            for _ in 0..PEEKS {
                if self.core.may_have_next() {
                    break;
                }
                std::hint::spin_loop();
            }
        }
    }

    /// Parks, looks once more, sleeps for at most a slice.
    fn sleep(&mut self, left: Option<Duration>) -> Result<Option<Message>, RecvError> {
        let part = self.attachment.part.clone();
        // ORDER E5 park, Acquire: read before the second look; if the bell rings after it, the futex does not sleep.
        let seen = part.wake_word().load(Ordering::Acquire);
        self.park(false);
        let found = self.look(false);
        // Closed since `check_end` looked: it looks again at once. Closed before, and not at its end because another
        // consumer may give a message back: that one wakes us.
        let news = self.core.reader().is_closed() && !self.saw_close;
        let stay = matches!(found, Ok(Look::Empty)) && !news;
        if stay {
            futex::wait(futex::low_half(part.wake_word()), seen as u32, slice::nap(left));
        }
        let woken = self.unpark();
        match found? {
            Look::Message(message) => {
                if woken {
                    self.pass_on_wake();
                }
                Ok(Some(message))
            }
            _ => Ok(None),
        }
    }

    /// Says that this consumer sleeps, so that who publishes wakes it; the caller then looks once more. `epoll` says in
    /// which way it sleeps.
    pub(super) fn park(&mut self, epoll: bool) {
        let part = &self.attachment.part;
        part.store(at::FLAGS, if epoll { at::flags::EVENTFD } else { 0 });
        match &self.core {
            Core::Queue(core) => core.pool().park(self.attachment.me.index),
            Core::Broadcast(_) => part.set_parked(true),
        }
        // ORDER E5 park: the bit is visible to every waker before our second look, or its message to us.
        barrier::heavy(self.barrier);
    }

    /// Takes the mark back. True if a waker took it first: a wake was spent on this consumer.
    pub(super) fn unpark(&mut self) -> bool {
        match &self.core {
            Core::Queue(core) => !core.pool().unpark(self.attachment.me.index),
            Core::Broadcast(_) => {
                self.attachment.part.set_parked(false);
                false
            }
        }
    }

    /// A wake was spent on us, and we found our message without it: somebody else may sleep beside a second one.
    pub(super) fn pass_on_wake(&self) {
        if let Core::Queue(core) = &self.core {
            self.attachment.wake_a_consumer(core.pool());
        }
    }

    /// Sleeps until one of our own leases ends, at most a slice.
    fn sleep_at_quota(&mut self, class: usize, patience: Duration) -> Result<(), RecvError> {
        let attachment = &self.attachment;
        let seen = attachment.part.wake_word().load(Ordering::Acquire);
        attachment.waits_for_quota.store(true, Ordering::Relaxed);
        // ORDER E5 park: flag, barrier, look at `held`; a lease that ends lowers `held`, then looks at the flag.
        barrier::heavy(self.barrier);
        if !attachment.may_hold(class) {
            futex::wait(futex::low_half(attachment.part.wake_word()), seen as u32, slice::nap(Some(patience)));
        }
        self.attachment.waits_for_quota.store(false, Ordering::Relaxed);
        self.tend_if_due().map(drop)
    }
}
