//! A consumer's right to read a slot, from the claim to the death of the last view.
//!
//! One [`LeaseCell`] per slot, reused without allocation: a consumer holds a slot at most once. Any thread may end a
//! lease, also after the consumer is closed. What runs at the end touches the fork token, words of the ring, a futex,
//! and unmaps; no Python, logging, thread-locals or panic.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence},
    },
};

use forebay_layout::{Kind, MAX_CLASSES, geometry::Geometry, member as at, schema::Schema};
use forebay_os::{ForkToken, Held, Probe, clock, futex};
use forebay_ring::{Claim, Member, MemberId, Pool, Reader, SlotState, SlotWord, broadcast, queue};

use crate::{
    error::HeldLease,
    segment::{Segment, Slots},
};

/// What a handshake gave this consumer: mappings, its place among the members, the lock that says it lives.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) ring: String,
    pub(crate) geometry: Geometry,
    pub(crate) schema: Option<Schema>,
    pub(crate) instance: [u64; 2],
    pub(crate) me: MemberId,
    pub(crate) reader: Reader<Segment>,
    /// Queue only.
    pub(crate) pool: Option<Pool<Segment>>,
    pub(crate) part: Member<Segment>,
    pub(crate) data: Slots,
    pub(crate) probe: Probe,
    pub(crate) producer_byte: u64,
    /// Last, so that it is released last: from then on others may take what our slot words still name.
    pub(crate) _liveness: Held,
}

/// Everything a lease needs until it ends. The consumer and all its leases share one.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) token: ForkToken,
    cells: Box<[LeaseCell]>,
    held: [AtomicU32; MAX_CLASSES],
    /// The consumer waits for one of its own leases to end.
    pub(crate) waits_for_quota: AtomicBool,
    membership: Membership,
}

impl Deref for Attachment {
    type Target = Membership;

    fn deref(&self) -> &Membership {
        &self.membership
    }
}

#[derive(Debug, Default)]
struct LeaseCell {
    refs: AtomicU32,
    outcome: AtomicU8,
    class: AtomicU8,
    word: AtomicU64,
    sequence: AtomicU64,
}

/// What happens to a message when its lease ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Outcome {
    /// Nobody said anything: it is acked.
    AckAtEnd = 0,
    /// Nobody said anything: it goes back.
    BackAtEnd = 1,
    /// It was acked.
    Acked = 2,
    /// It was nacked.
    Nacked = 3,
}

impl Attachment {
    pub(crate) fn new(membership: Membership) -> Self {
        let cells = (0..membership.reader.plan().slots).map(|_| LeaseCell::default()).collect();
        Self {
            token: ForkToken::current(),
            cells,
            held: Default::default(),
            waits_for_quota: AtomicBool::new(false),
            membership,
        }
    }

    /// True in a forked child of the process that attached: nothing of this may be touched there.
    pub(crate) fn is_foreign(&self) -> bool {
        self.token.is_stale()
    }

    /// Leases this consumer may hold in `class`.
    pub(crate) fn quota(&self, class: usize, own: u32) -> u32 {
        let slots = self.reader.plan().classes.get(class).map_or(1, |span| span.slots);
        if own == 0 { self.geometry.quota_of(slots) } else { own.clamp(1, slots) }
    }

    /// Leases this consumer holds in `class`.
    pub(crate) fn held_in(&self, class: usize) -> u32 {
        // ORDER none, Relaxed: only the consumer raises it, and that thread asks.
        self.held[class].load(Ordering::Relaxed)
    }

    /// Whether this consumer holds `slot`. No peer that keeps to the protocol hands it out again before that is over.
    pub(crate) fn holds(&self, slot: u32) -> bool {
        // ORDER none, Relaxed: the last handle lowers it before the slot word is stored that lets somebody claim it again.
        self.cells[slot as usize].refs.load(Ordering::Relaxed) > 0
    }

    /// Leases this consumer holds.
    pub(crate) fn held(&self) -> Vec<HeldLease> {
        let now = clock::monotonic_ns();
        let mut held: Vec<_> = self
            .cells
            .iter()
            .enumerate()
            .filter(|(_, cell)| cell.refs.load(Ordering::Relaxed) > 0)
            .map(|(slot, cell)| HeldLease {
                sequence: cell.sequence.load(Ordering::Relaxed),
                slot: slot as u32,
                slot_bytes: self.reader.plan().slot_span(slot as u32).map_or(0, |(_, span, _)| span.slot_bytes),
                age: std::time::Duration::from_nanos(now.saturating_sub(self.part.since(slot as u32))),
            })
            .collect();
        held.sort_by_key(|lease| lease.sequence);
        held
    }

    /// Everything held and not acked goes back when its lease ends.
    pub(crate) fn give_back_unacked(&self) {
        for cell in &self.cells {
            for pending in [Outcome::AckAtEnd, Outcome::BackAtEnd] {
                // ORDER none, Relaxed: decides between this and `ack` for one lease; no memory travels. On a cell
                // whose lease ended meanwhile it changes nothing that is read again.
                let _ = cell.outcome.compare_exchange(
                    pending as u8,
                    Outcome::Nacked as u8,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
            }
        }
    }

    /// Wakes one sleeping member of the queue, if one sleeps on its wake word.
    pub(crate) fn wake_a_consumer(&self, pool: &Pool<Segment>) {
        forebay_ring::waker_fence(self.reader.fences());
        if let Some(index) = pool.pick_sleeper(self.me.index, self.futex_sleepers(pool)) {
            let member = pool.member(self.reader.plan(), index);
            member.ring_bell();
            futex::wake(futex::low_half(member.wake_word()), 1);
        }
    }

    /// Members that sleep on a word rather than in an epoll: only those can be woken by another consumer. The others
    /// look again after a slice.
    fn futex_sleepers(&self, pool: &Pool<Segment>) -> u32 {
        let mut sleepers = pool.parked() as u32;
        for index in 0..self.geometry.max_consumers {
            let bit = 1 << index;
            if sleepers & bit != 0
                && pool.member(self.reader.plan(), index as u8).peek(at::FLAGS) & at::flags::EVENTFD != 0
            {
                sleepers &= !bit;
            }
        }
        sleepers
    }

    /// A message is through. On a closed ring it may have been the last: everybody who sleeps looks whether it was.
    fn wake_for_end(&self, pool: &Pool<Segment>) {
        if self.reader.is_closed() {
            for _ in 0..self.geometry.max_consumers {
                self.wake_a_consumer(pool);
            }
        }
    }

    /// Wakes the producer of a queue, if it sleeps.
    pub(crate) fn wake_producer(&self, pool: &Pool<Segment>) {
        forebay_ring::waker_fence(self.reader.fences());
        if pool.call_producer() {
            futex::wake(futex::low_half(pool.producer_wake_word()), 1);
        }
    }

    /// The end of the lease on `slot`.
    fn end(&self, slot: u32) {
        let cell = &self.cells[slot as usize];
        let outcome = cell.outcome.load(Ordering::Relaxed);
        let class = usize::from(cell.class.load(Ordering::Relaxed));
        let raw = cell.word.load(Ordering::Relaxed);
        self.part.set_since(slot, 0);
        let keep = outcome == Outcome::AckAtEnd as u8 || outcome == Outcome::Acked as u8;
        match &self.pool {
            Some(pool) => {
                let Ok(word) = SlotWord::checked(raw) else { return };
                let generation = word.generation();
                let claim = Claim { sequence: 0, slot, generation, attempts: word.attempts(), word };
                if keep {
                    if outcome == Outcome::AckAtEnd as u8 {
                        self.part.count_shared(at::ACKED, 1);
                    }
                    self.held[class].fetch_sub(1, Ordering::Relaxed);
                    queue::finish(pool, &claim);
                    self.wake_producer(pool);
                    self.wake_for_end(pool);
                } else {
                    self.part.count_shared(at::NACKED, 1);
                    self.held[class].fetch_sub(1, Ordering::Relaxed);
                    match queue::give_back(pool, &claim, self.geometry.max_attempts) {
                        SlotState::Dead => self.wake_producer(pool),
                        _ => self.wake_a_consumer(pool),
                    }
                }
            }
            None => {
                let generation = (raw >> 32) as u32;
                self.part.count_shared(if keep { at::ACKED } else { at::NACKED }, 1);
                self.held[class].fetch_sub(1, Ordering::Relaxed);
                if broadcast::settle(&self.part, &self.reader, slot, generation, self.reader.fences()) {
                    futex::wake(futex::low_half(self.part.producer_wake_word()), 1);
                }
            }
        }
        // ORDER E5 park, as between releases and a sleeping producer: the consumer sets the flag, executes its barrier,
        // looks at `held` again, then sleeps.
        forebay_ring::waker_fence(self.reader.fences());
        if self.waits_for_quota.load(Ordering::Relaxed) {
            self.part.ring_bell();
            futex::wake(futex::low_half(self.part.wake_word()), 1);
        }
    }
}

/// A handle to a lease. The lease ends with the last one.
#[derive(Debug)]
pub(crate) struct Lease {
    attachment: Arc<Attachment>,
    slot: u32,
}

impl Lease {
    /// The lease on a message that was just claimed.
    pub(crate) fn begin(attachment: &Arc<Attachment>, claim: &Claim, manual: bool) -> Self {
        let cell = &attachment.cells[claim.slot as usize];
        let class = attachment.reader.plan().slot_span(claim.slot).map_or(0, |(class, ..)| class);
        let outcome = if manual { Outcome::BackAtEnd } else { Outcome::AckAtEnd };
        // ORDER none, Relaxed: the cell is nobody's between two leases on its slot; handles are passed on by means that
        // order these stores before their use.
        cell.outcome.store(outcome as u8, Ordering::Relaxed);
        cell.class.store(class as u8, Ordering::Relaxed);
        let word =
            if attachment.geometry.kind == Kind::Queue { claim.word.raw() } else { u64::from(claim.generation) << 32 };
        cell.word.store(word, Ordering::Relaxed);
        cell.sequence.store(claim.sequence, Ordering::Relaxed);
        cell.refs.store(1, Ordering::Relaxed);
        attachment.held[class].fetch_add(1, Ordering::Relaxed);
        attachment.part.set_since(claim.slot, clock::monotonic_coarse_ns());
        Self { attachment: Arc::clone(attachment), slot: claim.slot }
    }

    pub(crate) fn attachment(&self) -> &Arc<Attachment> {
        &self.attachment
    }

    pub(crate) fn slot(&self) -> u32 {
        self.slot
    }

    fn cell(&self) -> &LeaseCell {
        &self.attachment.cells[self.slot as usize]
    }

    /// How many handles there are.
    pub(crate) fn handles(&self) -> u32 {
        // ORDER Acquire: a handle dropped elsewhere has ended its reads if it is not counted here.
        self.cell().refs.load(Ordering::Acquire)
    }

    /// The message is dealt with; its memory stays until the lease ends. False if it was nacked before.
    pub(crate) fn ack(&self) -> bool {
        let decided = self.decide(Outcome::Acked);
        if decided && !self.attachment.is_foreign() {
            let word = SlotWord::checked(self.cell().word.load(Ordering::Relaxed));
            if let (Some(pool), Ok(word)) = (&self.attachment.pool, word) {
                let claim = Claim {
                    sequence: 0,
                    slot: self.slot,
                    generation: word.generation(),
                    attempts: word.attempts(),
                    word,
                };
                queue::ack(pool, &claim);
                self.attachment.part.count_shared(at::ACKED, 1);
                // A producer that drains waits for acks, not for the memory.
                self.attachment.wake_producer(pool);
                self.attachment.wake_for_end(pool);
            }
        }
        decided || self.cell().outcome.load(Ordering::Relaxed) == Outcome::Acked as u8
    }

    /// The message goes back when the lease ends. False if it was acked before.
    pub(crate) fn nack(&self) -> bool {
        self.decide(Outcome::Nacked) || self.cell().outcome.load(Ordering::Relaxed) == Outcome::Nacked as u8
    }

    fn decide(&self, outcome: Outcome) -> bool {
        // ORDER none, Relaxed: one of several deciders wins; no memory travels.
        let decide = |pending: Outcome| {
            self.cell()
                .outcome
                .compare_exchange(pending as u8, outcome as u8, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        };
        decide(Outcome::AckAtEnd) || decide(Outcome::BackAtEnd)
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        // ORDER none, Relaxed: as `Arc`: a new handle is made from an old one, which keeps the lease.
        self.cell().refs.fetch_add(1, Ordering::Relaxed);
        Self { attachment: Arc::clone(&self.attachment), slot: self.slot }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // ORDER as `Arc`, Release then Acquire: all handles' reads are over before the slot is given up.
        if self.cell().refs.fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::Acquire);
            if !self.attachment.is_foreign() {
                self.attachment.end(self.slot);
            }
        }
    }
}
