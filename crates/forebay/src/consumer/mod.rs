//! The consumer: attaches to a ring, receives messages, holds leases in any order.
//!
//! ```text
//!   options.rs   what it can be told            core.rs   the ring protocol of either kind
//!   wait.rs      spin, park, slices, quota      tend.rs   probing peers, mending, the producer's successor
//!   ready.rs     the epoll fd: asyncio, tokio   set.rs    one wait on many rings
//! ```

mod core;
mod options;
mod ready;
mod set;
mod tend;
mod wait;

pub use options::ConsumerOptions;
pub use set::ConsumerSet;

use std::{sync::Arc, time::Duration};

use forebay_layout::{Defect, Kind, geometry::Geometry, member as at, schema::Schema};
use forebay_os::{Barrier, EventFd, socket::Conn};
use forebay_ring::queue::Next;

pub(crate) use self::core::{Core, InOrder};
use self::{ready::Ready, tend::Peer};
use crate::{
    Message,
    error::{HeldLease, RecvError},
    lease::{Attachment, Lease, Leases},
    options::AckMode,
};

/// Receives the messages of one ring. May be moved between threads; messages and tensors may be used and dropped on
/// any thread, and outlive it.
///
/// Dropping or closing it gives back whatever is not acked once its lease ends.
#[derive(Debug)]
pub struct Consumer {
    attachment: Arc<Attachment>,
    leases: Leases,
    core: Core,
    options: ConsumerOptions,
    barrier: Barrier,
    conn: Option<Conn>,
    bell: EventFd,
    peer: Peer,
    ready: Option<Ready>,
    poisoned: Option<Defect>,
    received: u64,
    /// How many that were when it last said how many it acked, having found no other.
    told: u64,
    closed: bool,
    /// The ring was closed when this consumer last looked whether it is at its end.
    saw_close: bool,
}

/// How often a consumer that always finds a message says how many it acked. Others say so when they find none.
const TELL_EVERY: u64 = 16;

/// What a consumer counted since it attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConsumerStats {
    /// Messages received.
    pub received: u64,
    /// Messages acked.
    pub acked: u64,
    /// Messages given back.
    pub nacked: u64,
    /// Messages of dead consumers that this one put back.
    pub recovered: u64,
    /// Messages revoked before this consumer took them (broadcast, drop-oldest).
    pub missed: u64,
}

/// What a look at the ring gave.
enum Look {
    Message(Message),
    Empty,
    AtQuota(usize),
}

impl Consumer {
    pub(crate) fn assemble(
        leases: Leases,
        core: Core,
        options: ConsumerOptions,
        barrier: Barrier,
        conn: Conn,
        bell: EventFd,
        epoch: u64,
    ) -> Self {
        let peer = Peer::new(epoch);
        Self {
            attachment: Arc::clone(leases.attachment()),
            leases,
            core,
            options,
            barrier,
            conn: Some(conn),
            bell,
            peer,
            ready: None,
            poisoned: None,
            received: 0,
            told: 0,
            closed: false,
            saw_close: false,
        }
    }

    /// Starts attaching to the ring of this name.
    pub fn options(ring: &str) -> ConsumerOptions {
        ConsumerOptions::new(ring)
    }

    /// Attaches with the default options: waits up to 10 s for the ring to appear.
    ///
    /// # Errors
    /// See [`AttachError`](crate::AttachError).
    pub fn attach(ring: &str) -> Result<Self, crate::AttachError> {
        Self::options(ring).attach()
    }

    /// The next message, if there is one now. Does not block.
    ///
    /// # Errors
    /// [`RecvError::Closed`], [`RecvError::PeerDied`], [`RecvError::Replaced`]: nothing more will come.
    /// [`RecvError::Quota`]: there is one, but this consumer holds all it may. Others: see [`RecvError`].
    pub fn try_recv(&mut self) -> Result<Option<Message>, RecvError> {
        #[cfg(feature = "cuda")]
        self.attachment.poll_device();
        match self.take() {
            Some(message) => Ok(Some(message)),
            None => self.try_again(),
        }
    }

    /// The rest of [`try_recv`](Self::try_recv), when it was not simple.
    fn try_again(&mut self) -> Result<Option<Message>, RecvError> {
        let found = match self.look(false)? {
            Look::Empty if self.tend_if_due()? => self.look(true)?,
            found => found,
        };
        match found {
            Look::Message(message) => Ok(Some(message)),
            Look::AtQuota(class) => {
                self.disarm();
                // A wake may have been spent on us for a message that only another consumer may take.
                self.pass_on_wake();
                Err(self.quota_error(class))
            }
            Look::Empty => {
                if let Some(message) = self.check_end()? {
                    return Ok(Some(message));
                }
                self.arm()
            }
        }
    }

    /// Takes the messages that are there now, at most `limit`, and adds them to `messages`; returns how many. Does not
    /// block. An error that ends the receiving after some were taken is said by the next call.
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv), if there was no message.
    pub fn try_recv_many(&mut self, limit: usize, messages: &mut Vec<Message>) -> Result<usize, RecvError> {
        for taken in 0..limit {
            match self.take() {
                Some(message) => messages.push(message),
                None => match self.try_again() {
                    Ok(Some(message)) => messages.push(message),
                    Err(e) if taken == 0 => return Err(e),
                    Ok(None) | Err(_) => return Ok(taken),
                },
            }
        }
        Ok(limit)
    }

    /// Waits for a message as long as it takes, then takes what is there, at most `limit` in all, and adds them to
    /// `messages`; returns how many: at least one, unless `limit` is 0.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), if there was no message.
    pub fn recv_many(&mut self, limit: usize, messages: &mut Vec<Message>) -> Result<usize, RecvError> {
        if limit == 0 {
            return Ok(0);
        }
        messages.push(self.recv()?);
        // What ends the receiving is said by the next call.
        Ok(1 + self.try_recv_many(limit - 1, messages).unwrap_or(0))
    }

    /// The next message; waits as long as it takes.
    ///
    /// # Errors
    /// [`RecvError::Closed`], [`RecvError::PeerDied`], [`RecvError::Replaced`]: nothing more will come.
    /// [`RecvError::Quota`]: this consumer held all it may for a second.
    pub fn recv(&mut self) -> Result<Message, RecvError> {
        self.wait(None, &mut || false).map(|message| message.expect("nothing interrupts this wait"))
    }

    /// The next message; waits at most `timeout`.
    ///
    /// # Errors
    /// [`RecvError::Timeout`]: nothing came; calling again is fine. Others as [`recv`](Self::recv).
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Message, RecvError> {
        self.wait(Some(timeout), &mut || false).map(|message| message.expect("nothing interrupts this wait"))
    }

    /// As [`recv_timeout`](Self::recv_timeout), or [`recv`](Self::recv) with `None`; asks `interrupt` at least every
    /// 50 ms and returns `None` once it says true.
    ///
    /// # Errors
    /// As [`recv_timeout`](Self::recv_timeout).
    pub fn recv_interruptible(
        &mut self,
        timeout: Option<Duration>,
        interrupt: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Message>, RecvError> {
        self.wait(timeout, interrupt)
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// What this consumer holds, oldest sequence first. Nothing in a forked child.
    #[must_use]
    pub fn held(&self) -> Vec<HeldLease> {
        if self.attachment.is_foreign() { Vec::new() } else { self.attachment.held() }
    }

    /// The ring's name.
    #[must_use]
    pub fn ring(&self) -> &str {
        &self.attachment.ring
    }

    /// Who gets a message.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.attachment.geometry.kind
    }

    /// The ring's schema, if it has one.
    #[must_use]
    pub fn schema(&self) -> Option<&Schema> {
        self.attachment.schema.as_ref()
    }

    /// What the ring is made from.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.attachment.geometry
    }

    /// This consumer's member index, 0 to 31.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.attachment.me.index
    }

    /// Where the data object is mapped, and its size: every tensor's pointer lies in there.
    #[must_use]
    pub fn data_range(&self) -> std::ops::Range<usize> {
        let mapping = self.attachment.data.mapping();
        let start = mapping.base().as_ptr() as usize;
        start..start + mapping.len()
    }

    /// Maps every page of the slots now.
    pub(crate) fn populate(&self) -> forebay_os::Result<()> {
        self.attachment.data.mapping().populate()
    }

    /// What it counted. Nothing in a forked child.
    #[must_use]
    pub fn stats(&self) -> ConsumerStats {
        if self.attachment.is_foreign() {
            return ConsumerStats::default();
        }
        let part = &self.attachment.part;
        ConsumerStats {
            received: part.peek(at::RECEIVED),
            acked: self.attachment.acked(),
            nacked: part.peek(at::NACKED),
            recovered: part.peek(at::RECOVERED),
            missed: part.peek(at::MISSED),
        }
    }

    /// Stops receiving. What is held stays valid; whatever of it is not acked goes back when its lease ends.
    pub fn close(&mut self) {
        if self.closed || self.attachment.is_foreign() {
            return;
        }
        self.closed = true;
        self.attachment.close();
        self.core.leave();
        if let Some(pool) = &self.attachment.pool {
            // A wake that was meant for us goes to somebody else.
            if !pool.unpark(self.attachment.me.index) {
                self.attachment.wake_a_consumer(pool);
            }
        }
        self.ready = None;
        if let Some(conn) = self.conn.take() {
            tend::say_goodbye(&conn);
        }
    }

    fn usable(&self) -> Result<(), RecvError> {
        let ring = || self.attachment.ring.clone();
        if self.attachment.is_foreign() {
            return Err(RecvError::Forked { ring: ring() });
        }
        if self.closed {
            return Err(RecvError::Detached { ring: ring() });
        }
        match &self.poisoned {
            Some(source) => Err(RecvError::Poisoned { ring: ring(), source: source.clone() }),
            None => Ok(()),
        }
    }

    /// The next message, if taking it is simple. `None` says nothing; [`look`](Self::look) finds out.
    #[inline]
    pub(super) fn take(&mut self) -> Option<Message> {
        if self.closed || self.poisoned.is_some() || self.attachment.is_foreign() {
            return None;
        }
        let manual = self.options.ack == AckMode::Manual;
        let (lease, cursor) = match &mut self.core {
            Core::Queue(core) => (self.leases.take(core, manual)?, core.cursor()),
            Core::Broadcast(core) => (self.leases.take(core, manual)?, core.cursor()),
        };
        match lease {
            Ok(lease) => {
                self.note_received(cursor);
                Some(Message::new(lease))
            }
            Err(defect) => {
                self.poison(defect);
                None
            }
        }
    }

    /// One look at the ring; `scan` as in the ring crate.
    fn look(&mut self, scan: bool) -> Result<Look, RecvError> {
        self.usable()?;
        let attachment = &self.attachment;
        let next = self.core.next(scan, |class| attachment.may_hold(class));
        let claim = match next {
            Ok(Next::Claimed(claim)) => claim,
            Ok(Next::Empty) => {
                self.leases.restock();
                if self.told != self.received {
                    self.told = self.received;
                    self.attachment.tell();
                }
                return Ok(Look::Empty);
            }
            Ok(Next::AtQuota(class)) => return Ok(Look::AtQuota(class)),
            Err(defect) => return Err(self.poison(defect)),
        };
        let lease = match self.leases.begin(&claim, self.options.ack == AckMode::Manual) {
            Ok(lease) => lease,
            Err(defect) => return Err(self.poison(defect)),
        };
        self.note_received(self.core.cursor());
        Ok(Look::Message(Message::new(lease)))
    }

    /// Says in shared memory how far this consumer is; now and then also what it acked.
    #[inline]
    fn note_received(&mut self, cursor: u64) {
        self.received += 1;
        let part = &self.attachment.part;
        part.store(at::RECEIVED, self.received);
        part.store(at::CURSOR, cursor);
        if self.received.is_multiple_of(TELL_EVERY) {
            self.attachment.tell();
        }
    }

    fn poison(&mut self, source: Defect) -> RecvError {
        self.poisoned = Some(source.clone());
        RecvError::Poisoned { ring: self.attachment.ring.clone(), source }
    }

    fn quota_error(&self, class: usize) -> RecvError {
        let quota = self.attachment.quota(class);
        RecvError::Quota { ring: self.attachment.ring.clone(), quota, held: self.attachment.held() }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.close();
    }
}

/// Acks a message when the next one is asked for, unless it was nacked or the consumer acks by hand; its memory stays
/// as long as a view of it does. Ends when the ring is closed; every other error is an item, after which it ends.
#[derive(Debug)]
pub struct Messages<'a> {
    consumer: Option<&'a mut Consumer>,
    /// The message handed out last. Ends with the iterator, unacked unless its views end too.
    last: Option<Lease>,
}

impl Iterator for Messages<'_> {
    type Item = Result<Message, RecvError>;

    fn next(&mut self) -> Option<Self::Item> {
        let consumer = self.consumer.as_mut()?;
        if let Some(last) = self.last.take()
            && consumer.options.ack == AckMode::Auto
        {
            last.ack();
        }
        match consumer.recv() {
            Err(RecvError::Closed { .. }) => None,
            Ok(message) => {
                self.last = Some(message.lease().clone());
                Some(Ok(message))
            }
            Err(e) => {
                self.consumer = None;
                Some(Err(e))
            }
        }
    }
}

impl<'a> IntoIterator for &'a mut Consumer {
    type Item = Result<Message, RecvError>;
    type IntoIter = Messages<'a>;

    fn into_iter(self) -> Messages<'a> {
        Messages { consumer: Some(self), last: None }
    }
}
