//! The producer: creates a ring, loans slots to write, publishes.
//!
//! ```text
//!   options.rs  what it can be told           loan.rs         a slot to write, with its tensors
//!   create.rs   creating and taking over      wait.rs         waiting for slots, consumers, the end
//!   outline.rs  the layout of a message       dead_letter.rs  messages that were given up
//!   site.rs     what its two threads share
//! ```

mod create;
mod dead_letter;
mod loan;
mod options;
mod outline;
pub(crate) mod site;
mod wait;

pub use dead_letter::{DeadLetter, DeadTensor};
pub use loan::{DetachedLoan, FieldSpec, Loan, Mapped};
pub use options::ProducerOptions;

use std::{
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use forebay_layout::{
    DType, Kind,
    geometry::Geometry,
    header::{W_STATE, state},
    schema::Schema,
};
use forebay_os::clock;
use forebay_ring::{
    Claim, Counter, Draft, Outstanding, Publisher, ReadOnly, Reader, SlotWord, Words, broadcast::BroadcastProducer,
    queue::QueueProducer,
};

use self::{
    loan::Ticket,
    outline::Outline,
    site::{Change, Site},
};
use crate::{
    error::{CreateError, LoanError, PublishError},
    options::DeadLetters,
    segment::Segment,
};

/// Publishes the messages of one ring. May be moved between threads.
///
/// Dropping it closes the ring: consumers drain what is there and then see that it is closed.
#[derive(Debug)]
pub struct Producer {
    site: Arc<Site>,
    core: Core,
    options: ProducerOptions,
    schema: Option<Arc<Schema>>,
    /// The layout that was asked for last, and how many there were.
    outline: Arc<Outline>,
    outlines: u64,
    reader: Reader<Segment>,
    thread: Option<JoinHandle<()>>,
    /// Slots of dead letters that were handed out and are not used again yet.
    handed: Vec<u32>,
    takeover: Option<Takeover>,
    turn: u8,
    closed: bool,
    /// A wait for a slot was interrupted, and the next one is its rest.
    wait_goes_on: bool,
}

/// The producer's side of the protocol.
#[derive(Debug)]
pub(crate) enum Core {
    Queue(QueueProducer<Segment>),
    Broadcast(BroadcastProducer<Segment>),
}

impl Core {
    fn publisher(&self) -> &Publisher<Segment> {
        match self {
            Self::Queue(core) => core.publisher(),
            Self::Broadcast(core) => core.publisher(),
        }
    }

    fn publish(&mut self, slot: u32, draft: &Draft<'_>) -> u64 {
        match self {
            Self::Queue(core) => core.publish(slot, draft),
            Self::Broadcast(core) => core.publish(slot, draft),
        }
    }

    fn abandon(&mut self, slot: u32) {
        match self {
            Self::Queue(core) => core.abandon(slot),
            Self::Broadcast(core) => core.abandon(slot),
        }
    }

    fn drop_oldest(&mut self, class: usize) -> Option<u32> {
        match self {
            Self::Queue(core) => core.drop_oldest(class),
            Self::Broadcast(core) => core.drop_oldest(class),
        }
    }

    fn loaned(&self) -> u32 {
        match self {
            Self::Queue(core) => core.loaned(),
            Self::Broadcast(core) => core.loaned(),
        }
    }
}

/// What was found when a ring was taken over from a dead producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Takeover {
    /// The new producer's life number.
    pub epoch: u64,
    /// The last sequence that was published, 0 if none ever was.
    pub last_sequence: u64,
    /// The user data that was published with it: the place to go on from.
    pub last_user: Vec<u8>,
    /// Messages that consumers had not finished with.
    pub outstanding: u64,
}

/// What a ring's producer counted, its predecessors included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProducerStats {
    /// Messages published.
    pub published: u64,
    /// Messages dropped: by drop-oldest, or because a broadcast ring had no consumer.
    pub dropped: u64,
    /// Messages that became dead letters.
    pub dead_letters: u64,
    /// Payload bytes published.
    pub bytes: u64,
    /// Times a loan had to wait for a slot, also one that waits now. A wait that was interrupted counts together with the next.
    pub full_waits: u64,
    /// Messages that some consumer has still to receive or (queue) to ack: what [`Producer::drain`] waits for.
    pub undelivered: u32,
    /// Messages that some consumer has not finished with, acked and still read ones included.
    pub outstanding: u32,
    /// Slots on loan.
    pub loaned: u32,
}

impl Producer {
    /// Starts the creation of a ring of this name.
    pub fn options(ring: &str) -> ProducerOptions {
        ProducerOptions::new(ring)
    }

    /// Creates a ring with the default options: a schemaless posix queue of 16 slots of 1 MiB.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn create(ring: &str) -> Result<Self, CreateError> {
        Self::options(ring).create()
    }

    fn assemble(
        site: Arc<Site>,
        core: Core,
        options: ProducerOptions,
        thread: JoinHandle<()>,
        takeover: Option<Takeover>,
    ) -> Self {
        let header = &site.objects.header;
        let reader =
            Reader::new(ReadOnly::new(site.objects.ring.clone()), header.plan.clone(), header.geometry.max_fields);
        let schema = options.schema.clone().map(Arc::new);
        Self {
            site,
            core,
            options,
            schema,
            outline: Arc::default(),
            outlines: 0,
            reader,
            thread: Some(thread),
            handed: Vec::new(),
            takeover,
            turn: 31,
            closed: false,
            wait_goes_on: false,
        }
    }

    /// A slot to write a message of these tensors into. When none is free it does what `when_full` says; `block` waits
    /// up to the `full_timeout`.
    ///
    /// # Errors
    /// [`LoanError::Full`] names who holds the slots; others: see [`LoanError`].
    pub fn loan(&mut self, fields: &[FieldSpec<'_>]) -> Result<Loan<'_>, LoanError> {
        let timeout = self.options.full_timeout;
        self.loan_within(fields, timeout, &mut || false)
    }

    /// As [`loan`](Self::loan), but never waits.
    ///
    /// # Errors
    /// As [`loan`](Self::loan).
    pub fn try_loan(&mut self, fields: &[FieldSpec<'_>]) -> Result<Loan<'_>, LoanError> {
        self.loan_within(fields, Some(Duration::ZERO), &mut || false)
    }

    /// As [`loan`](Self::loan), waiting at most `timeout`.
    ///
    /// # Errors
    /// As [`loan`](Self::loan).
    pub fn loan_timeout(&mut self, fields: &[FieldSpec<'_>], timeout: Duration) -> Result<Loan<'_>, LoanError> {
        self.loan_within(fields, Some(timeout), &mut || false)
    }

    /// As [`loan`](Self::loan); `None` waits without end; `interrupt` is asked at least every 50 ms, and true ends the
    /// wait with [`LoanError::Interrupted`].
    ///
    /// # Errors
    /// As [`loan`](Self::loan).
    pub fn loan_within(
        &mut self,
        fields: &[FieldSpec<'_>],
        timeout: Option<Duration>,
        interrupt: &mut dyn FnMut() -> bool,
    ) -> Result<Loan<'_>, LoanError> {
        let ring = &self.site.ring;
        if self.site.token.is_stale() {
            return Err(LoanError::Forked { ring: ring.clone() });
        }
        if self.closed {
            return Err(LoanError::Closed { ring: ring.clone() });
        }
        if !self.outline.answers(fields) {
            self.lay_out(fields)?;
        }
        let slot = self.acquire(self.outline.class, timeout, interrupt)?;
        Ok(Loan::new(self, Ticket::new(slot)))
    }

    /// Makes the layout for these tensors the one that loans have. A detached loan keeps the one it has.
    fn lay_out(&mut self, fields: &[FieldSpec<'_>]) -> Result<(), LoanError> {
        self.outlines += 1;
        let (schema, header) = (self.options.schema.as_ref(), &self.site.objects.header);
        let ring = (&header.geometry, &header.plan);
        Arc::make_mut(&mut self.outline).lay_out(&self.site.ring, schema, ring, fields, self.outlines)
    }

    /// Publishes a loan that was detached; returns its sequence.
    ///
    /// # Errors
    /// [`PublishError::NotOurs`] if another producer made it.
    pub fn publish(&mut self, loan: DetachedLoan) -> Result<u64, PublishError> {
        let ticket = loan.into_ticket(&self.site)?;
        self.publish_ticket(&ticket)
    }

    /// Copies tensors into a slot and publishes it: name, dtype, shape and bytes of each.
    ///
    /// # Errors
    /// [`LoanError::Fields`] also if the bytes are not as many as the shape says; others as [`loan`](Self::loan).
    pub fn send(&mut self, tensors: &[(&str, DType, &[u64], &[u8])]) -> Result<u64, LoanError> {
        let specs: Vec<_> = tensors.iter().map(|&(name, dtype, shape, _)| FieldSpec { name, dtype, shape }).collect();
        let schema = self.schema.clone();
        let ring = self.site.ring.clone();
        let mut loan = self.loan(&specs)?;
        for (i, (name, .., bytes)) in tensors.iter().enumerate() {
            let index = schema.as_ref().map_or(Some(i), |schema| schema.index_of(name)).unwrap_or(i);
            match loan.bytes_mut(index) {
                Some(to) if to.len() == bytes.len() => to.copy_from_slice(bytes),
                to => {
                    let expected = to.map_or(0, |to| to.len());
                    let what = format!("field {name:?} has {} bytes, its shape says {expected}", bytes.len());
                    return Err(LoanError::Fields { ring, what });
                }
            }
        }
        loan.publish().map_err(|_| LoanError::Closed { ring })
    }

    fn publish_ticket(&mut self, ticket: &Ticket) -> Result<u64, PublishError> {
        if self.site.token.is_stale() {
            return Err(PublishError::Forked);
        }
        if self.closed {
            return Err(PublishError::Closed);
        }
        // Joins and leaves since the last publish take effect before this one.
        self.apply_news();
        let timestamp_ns = if self.options.timestamps { clock::monotonic_ns() } else { 0 };
        let outline = ticket.outline.as_deref().unwrap_or(&self.outline);
        let draft = Draft {
            layout: outline.number,
            correlation_id: ticket.correlation_id,
            timestamp_ns,
            payload_bytes: outline.payload_bytes,
            fields: &outline.fields,
            names: &outline.names,
            user: &ticket.user,
            inline: match outline.fields.first() {
                Some(meta) if outline.inline => self.site.objects.data.leased(ticket.slot, 0, meta.nbytes),
                _ => &[],
            },
        };
        let sequence = self.core.publish(ticket.slot, &draft);
        self.wake_consumers();
        Ok(sequence)
    }

    fn wake_consumers(&mut self) {
        self.site.waker_fence();
        match &self.core {
            Core::Queue(_) => {
                if self.site.pool().is_some_and(|pool| pool.parked() != 0) {
                    self.turn = self.site.wake_one(self.turn);
                }
            }
            Core::Broadcast(core) => {
                let mut woken = core.ring_bells();
                while woken != 0 {
                    let index = woken.trailing_zeros();
                    woken &= woken - 1;
                    self.site.wake(index as u8);
                }
            }
        }
    }

    /// Applies joins, leaves and dropped loans, if there are any. Only this thread changes who is offered what.
    #[inline]
    fn apply_news(&mut self) {
        if self.site.has_news() {
            self.apply_changes();
        }
    }

    #[cold]
    fn apply_changes(&mut self) {
        // Once closed, the slots may be a successor's.
        if self.closed {
            return;
        }
        let (changes, dropped) = self.site.take_news();
        for slot in dropped {
            if self.core.publisher().shadow(slot).0 == Outstanding::Loaned {
                self.core.abandon(slot);
            }
        }
        if let Core::Broadcast(core) = &mut self.core {
            for change in changes {
                match change {
                    Change::Join(index, incarnation) => {
                        core.admit(index, incarnation, self.site.part(index).clone());
                    }
                    Change::Remove(index) => core.remove(index),
                }
            }
        }
    }

    /// The messages that were given up and not handed out yet, oldest first.
    ///
    /// Their slots are used again only after this call has returned: when it is made the next time, when a loan finds no
    /// other slot, or when the ring is closed. So none is lost if this process dies meanwhile; a successor hands those out
    /// once more. None once the producer is closed.
    pub fn take_dead_letters(&mut self) -> Vec<DeadLetter> {
        // Once closed, the slots may be a successor's.
        if self.closed || self.site.token.is_stale() {
            return Vec::new();
        }
        self.bury_letters(false);
        let Core::Queue(core) = &self.core else { return Vec::new() };
        let mut letters: Vec<_> = core.dead_letters().map(|(slot, sequence)| (sequence, slot)).collect();
        letters.sort_unstable();
        self.handed = letters.iter().map(|&(_, slot)| slot).collect();
        letters.into_iter().map(|(sequence, slot)| self.read_letter(core, sequence, slot)).collect()
    }

    /// Frees the slots of letters that were handed out; with `all` those of the others too. True if there were any.
    fn bury_letters(&mut self, all: bool) -> bool {
        let Core::Queue(core) = &mut self.core else { return false };
        if all {
            self.handed = core.dead_letters().map(|(slot, _)| slot).collect();
        }
        let found = !self.handed.is_empty();
        for slot in self.handed.drain(..) {
            core.bury(slot);
        }
        found
    }

    /// Copies a dead letter. What cannot be read of it, because it was written over before a takeover, is left out.
    fn read_letter(&self, core: &QueueProducer<Segment>, sequence: u64, slot: u32) -> DeadLetter {
        let (_, generation) = core.publisher().shadow(slot);
        let attempts = core.attempts(slot);
        let mut letter = DeadLetter { sequence, correlation_id: 0, attempts, user: Vec::new(), tensors: Vec::new() };
        let claim = Claim { sequence, slot, generation, attempts, word: SlotWord::full(generation, attempts) };
        // The descriptor is this producer's own writing, or its predecessor's: consumers map it read-only.
        let Ok(head) = self.reader.head_of(&claim) else { return letter };
        let data = &self.site.objects.data;
        letter.correlation_id = head.correlation_id;
        letter.user = self.reader.user_of(&claim, &head);
        letter.tensors = (0..head.fields)
            .filter_map(|index| self.reader.field_of(&claim, index).ok().map(|found| (index, found)))
            .map(|(index, (meta, name))| DeadTensor {
                name: match &self.schema {
                    Some(schema) => schema.fields()[usize::from(index)].name.to_string(),
                    None => name.to_string(),
                },
                meta,
                bytes: data.leased(slot, meta.offset, meta.nbytes).to_vec(),
            })
            .collect();
        letter
    }

    /// The ring's name.
    #[must_use]
    pub fn ring(&self) -> &str {
        &self.site.ring
    }

    /// What the ring is made from.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.site.objects.header.geometry
    }

    /// The ring's schema, if it has one.
    #[must_use]
    pub fn schema(&self) -> Option<&Schema> {
        self.options.schema.as_ref()
    }

    /// What was taken over, if a dead producer left this ring.
    #[must_use]
    pub fn takeover(&self) -> Option<&Takeover> {
        self.takeover.as_ref()
    }

    /// Wishes that could not be granted (huge pages, mlock), and why.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.site.objects.notes
    }

    /// Consumers attached now. None in a forked child, where nobody could tell.
    #[must_use]
    pub fn consumers(&self) -> usize {
        if self.site.token.is_stale() { 0 } else { self.site.consumers() }
    }

    /// Where the data object is mapped, and its size.
    #[must_use]
    pub fn data_range(&self) -> std::ops::Range<usize> {
        let mapping = self.site.objects.data.mapping();
        let start = mapping.base().as_ptr() as usize;
        start..start + mapping.len()
    }

    /// What it counted. Nothing in a forked child.
    #[must_use]
    pub fn stats(&self) -> ProducerStats {
        if self.site.token.is_stale() {
            return ProducerStats::default();
        }
        let publisher = self.core.publisher();
        let in_slots = self.letters() + self.handed.len();
        ProducerStats {
            published: publisher.next_sequence() - 1,
            dropped: publisher.counted(Counter::Dropped),
            dead_letters: publisher.counted(Counter::DeadLetters) + in_slots as u64,
            bytes: publisher.counted(Counter::Bytes),
            full_waits: publisher.counted(Counter::FullWaits),
            undelivered: self.undelivered(),
            outstanding: self.outstanding(),
            loaned: self.core.loaned(),
        }
    }

    /// Dead letters that were not handed out.
    fn letters(&self) -> usize {
        match &self.core {
            Core::Queue(core) => core.dead_letters().count().saturating_sub(self.handed.len()),
            Core::Broadcast(_) => 0,
        }
    }

    /// Messages that some consumer has still to receive, or (queue) to ack. What is only still read is not counted.
    fn undelivered(&self) -> u32 {
        match &self.core {
            Core::Queue(core) => core.undelivered(),
            // Who is gone is removed by the next publish; nothing is owed to it already.
            Core::Broadcast(core) => core.undelivered_to(self.site.seated()),
        }
    }

    fn outstanding(&self) -> u32 {
        match &self.core {
            Core::Queue(core) => {
                let (full, claimed, _) = core.outstanding();
                full + claimed
            }
            Core::Broadcast(core) => core.outstanding_to(self.site.seated()),
        }
    }

    /// Closes the ring: nothing more is published; consumers drain what is there. What no consumer is attached to
    /// receive stays (posix), for a successor to take over; so do dead letters that were never handed out.
    pub fn close(&mut self) {
        if self.closed || self.site.token.is_stale() {
            return;
        }
        self.announce_end();
        if self.undelivered() > 0 {
            // Who is dead already does not count as attached, noticed by the control thread or not.
            self.site.probe_members(true);
        }
        self.bury_letters(self.options.dead_letters == DeadLetters::Discard);
        let waits = self.site.kind() == Kind::Queue && self.undelivered() > 0;
        self.shut(waits && self.site.consumers() == 0 || self.letters() > 0);
    }

    /// Closes the ring and removes it, with whatever nobody has received.
    pub fn discard(mut self) {
        if !self.closed && !self.site.token.is_stale() {
            self.announce_end();
            self.shut(false);
        }
    }

    /// Closes the ring and keeps it for a successor even if everything was received, so that one finds the user data of
    /// the last message in [`Takeover::last_user`] and goes on from there. A memfd ring cannot be kept. The successor
    /// waits for loans that were detached: it can take over once all of them are dropped.
    pub fn suspend(mut self) {
        if !self.closed && !self.site.token.is_stale() {
            self.announce_end();
            self.bury_letters(self.options.dead_letters == DeadLetters::Discard);
            self.shut(true);
        }
    }

    fn announce_end(&mut self) {
        self.apply_news();
        self.closed = true;
        // ORDER E1 commit, Release: everything published is visible to who sees the ring closed.
        self.site.objects.ring.word(W_STATE).store(state::CLOSED, Ordering::Release);
        self.site.wake_all();
    }

    /// Ends the control thread; `keep` leaves the objects for a successor.
    fn shut(&mut self, keep: bool) {
        self.site.end();
        if let Some(thread) = self.thread.take() {
            // It panicked only if one of its own invariants broke, which it has reported.
            let _ = thread.join();
        }
        create::remove(&self.site, keep);
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        if self.site.token.is_stale() {
            // The thread is the parent's: there is nothing to join here.
            std::mem::forget(self.thread.take());
            return;
        }
        self.close();
    }
}
