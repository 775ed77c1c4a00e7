//! What a consumer does once a slice: probe the producer and its peers, mend what the dead left, find the successor.

use std::time::{Duration, Instant};

use forebay_layout::{Backing, control::Control, member as at};
use forebay_os::{clock, socket::Conn};
use forebay_ring::{MemberId, queue};

use super::{Consumer, Look, core::Core};
use crate::{
    Message,
    error::RecvError,
    lease::Attachment,
    rendezvous::{client, locks},
    slice,
};

/// What is known of the producer.
#[derive(Debug)]
pub(super) struct Peer {
    /// Coarse time of the last probe.
    tended_ns: u64,
    /// Its life number when we last spoke to it.
    epoch: u64,
    /// Just before its lock byte was looked at last.
    probed: Instant,
    /// Its lock byte is free.
    gone: Option<Gone>,
    /// A successor was greeted in vain; greet again after this time.
    greet_after: Option<Instant>,
}

/// A producer's death, as this consumer saw it.
#[derive(Debug, Clone, Copy)]
struct Gone {
    since: Instant,
    /// The life number that died.
    epoch: u64,
}

impl Peer {
    pub(super) fn new(epoch: u64) -> Self {
        let (tended_ns, probed) = (clock::monotonic_coarse_ns(), Instant::now());
        Self { tended_ns, epoch, probed, gone: None, greet_after: None }
    }
}

/// Tells the producer that we leave on purpose. It may be dead or stopped; nobody waits for an answer.
pub(super) fn say_goodbye(conn: &Conn) {
    let _ = client::send(conn, &Control::Leave, &[]);
}

impl Attachment {
    /// Whether `member`'s lock byte is held. An error counts as alive: only certain death frees a lease.
    fn lives(&self, member: MemberId) -> bool {
        member == self.me || self.probe.is_locked(locks::member_byte(member.index)).unwrap_or(true)
    }
}

impl Consumer {
    /// Tends if a slice has passed since the last time, or the producer hung up. True if it did.
    pub(super) fn tend_if_due(&mut self) -> Result<bool, RecvError> {
        let now = clock::monotonic_coarse_ns();
        let due = slice::slice().unwrap_or(Duration::from_millis(50)).as_nanos() as u64;
        if now.saturating_sub(self.peer.tended_ns) < due && self.peer.gone.is_none() {
            return Ok(false);
        }
        self.peer.tended_ns = now;
        self.tend()?;
        Ok(true)
    }

    fn tend(&mut self) -> Result<(), RecvError> {
        self.usable()?;
        self.attachment.tell();
        // Nothing comes on it after the handshake but its end. Only looked at, not read: should a daemonizer have closed
        // it, its number may be somebody else's by now.
        let said = |conn: &Conn| conn.wait_readable(Some(Instant::now())).is_ok_and(|said| said);
        if self.conn.as_ref().is_some_and(said) {
            // In an epoll set a hung-up socket, or one of a peer that talks, would be readable for ever.
            self.drop_conn();
        }
        self.peer.probed = Instant::now();
        let alive = self.attachment.probe.is_locked(self.attachment.producer_byte)?;
        if alive {
            self.peer.gone = None;
            self.greet_successor();
        } else {
            let epoch = self.core.reader().epoch();
            // A successor may have come and gone while this process was stopped, or asked for nothing.
            if self.peer.gone.is_none_or(|gone| gone.epoch != epoch) {
                self.peer.gone = Some(Gone { since: self.peer.probed, epoch });
            }
        }
        self.mend()
    }

    /// Gives back what dead consumers of this queue held.
    fn mend(&mut self) -> Result<(), RecvError> {
        let Core::Queue(core) = &self.core else { return Ok(()) };
        let (attachment, pool) = (&self.attachment, core.pool());
        let mended = queue::mend(pool, attachment.geometry.max_attempts, |owner| attachment.lives(owner));
        match mended {
            Ok(mended) if mended.is_nothing() => Ok(()),
            Ok(mended) => {
                attachment.part.count(at::RECOVERED, mended.returned.into());
                for _ in 0..mended.returned {
                    attachment.wake_a_consumer(pool);
                }
                attachment.wake_producer(pool);
                Ok(())
            }
            Err(defect) => Err(self.poison(defect)),
        }
    }

    /// A producer with another life number has taken over: say hello, so that it can reach our eventfd. Messages come
    /// without that too, so a failure only means another try later.
    fn greet_successor(&mut self) {
        let epoch = self.core.reader().epoch();
        // A producer that hung up on us knows us no more.
        if epoch == self.peer.epoch || self.peer.greet_after.is_some_and(|after| Instant::now() < after) {
            return;
        }
        let greeted =
            client::rejoin(&self.attachment, &self.options).and_then(|(conn, bell)| Ok(self.replace_conn(conn, bell)?));
        match greeted {
            Ok(()) => {
                self.peer.epoch = epoch;
                self.peer.greet_after = None;
            }
            Err(_) => self.peer.greet_after = Some(Instant::now() + Duration::from_secs(1)),
        }
    }

    /// Whether the producer is gone, as of at most a slice ago; it may have closed the ring before.
    pub(crate) fn has_lost_producer(&mut self) -> bool {
        // What went wrong with looking is said by the next receive.
        let _ = self.tend_if_due();
        self.peer.gone.is_some()
    }

    /// Nothing was found. If nothing can come any more, says why; if a last look finds something after all, that.
    pub(super) fn check_end(&mut self) -> Result<Option<Message>, RecvError> {
        let reader = self.core.reader();
        let (closed, replaced) = (reader.is_closed(), reader.is_replaced());
        self.saw_close = closed;
        if !closed && !replaced && self.peer.gone.is_none() {
            return Ok(None);
        }
        // What was published before the producer closed or died is visible now, entry or not.
        match self.look(true)? {
            Look::Message(message) => return Ok(Some(message)),
            Look::AtQuota(_) => return Ok(None),
            Look::Empty => {}
        }
        if let Core::Queue(core) = &self.core
            && !queue::is_drained(core.pool(), self.attachment.me)
        {
            return Ok(None);
        }
        let ring = self.attachment.ring.clone();
        if replaced {
            return Err(RecvError::Replaced { ring });
        }
        if closed {
            return Err(RecvError::Closed { ring });
        }
        let patience =
            if self.attachment.geometry.backing == Backing::Posix { self.options.reconnect } else { Duration::ZERO };
        if self.peer.gone.is_none_or(|gone| gone.since.elapsed() < patience) {
            return Ok(None);
        }
        // However long ago the last look was, because this process was stopped: what counts is how things stand now.
        self.tend()?;
        match self.peer.gone {
            Some(gone) if self.peer.probed.duration_since(gone.since) >= patience => {
                let note = match self.attachment.geometry.backing {
                    Backing::Memfd => "; a memfd ring does not survive its producer, attach again then".to_owned(),
                    Backing::Posix => format!("; no successor took over within {patience:.0?}"),
                };
                Err(RecvError::PeerDied { ring, note })
            }
            _ => Ok(None),
        }
    }

    pub(super) fn timeout_error(&self, waited: Duration) -> RecvError {
        let note = match self.peer.gone {
            Some(gone) => format!("; its producer died {:.1?} ago, waiting for a successor", gone.since.elapsed()),
            None => String::new(),
        };
        RecvError::Timeout { ring: self.attachment.ring.clone(), waited, note }
    }
}
