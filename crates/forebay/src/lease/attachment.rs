//! What a consumer and all its leases share: its membership, a cell per slot, counters; and what the end of a lease does.

use std::{
    ops::Deref,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use arrayvec::ArrayVec;
use forebay_layout::{Defect, MAX_CLASSES, geometry::Geometry, member as at, schema::Schema};
use forebay_os::{ForkToken, Held, Probe, clock, futex};
use forebay_ring::{Claim, Member, MemberId, Pool, Reader, SlotState, SlotWord, broadcast, queue};

use super::{Outcome, cell::LeaseCell};
use crate::{
    error::HeldLease,
    segment::{Segment, Slots},
};

/// What a handshake gave this consumer: mappings, its place among the members, the lock that says it lives.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) ring: String,
    pub(crate) geometry: Geometry,
    /// Leases that this consumer may hold at most in each class; 0 as the ring says.
    pub(crate) quota: u32,
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
    /// Leases that this consumer may hold, by class.
    quotas: ArrayVec<u32, MAX_CLASSES>,
    tally: Tally,
    /// The consumer waits for one of its own leases to end.
    pub(crate) waits_for_quota: AtomicBool,
    /// The consumer is closed: nobody else tells of acks any more.
    pub(super) closed: AtomicBool,
    /// What devices do with the slots. Before the mappings: it outlives them where it must.
    #[cfg(feature = "cuda")]
    pub(crate) device: std::sync::OnceLock<crate::cuda::Side>,
    membership: Membership,
}

/// Leases and acks, counted so that a message costs one exchange at its end and none at its beginning.
#[derive(Debug, Default)]
struct Tally {
    /// Leases begun, by class. Only the consumer counts here.
    begun: [AtomicU64; MAX_CLASSES],
    /// Leases ended, by class.
    ended: [AtomicU64; MAX_CLASSES],
    /// Of these the ones that were not acked by their end: acked before, or given back.
    otherwise: AtomicU64,
    /// Messages acked before their lease ended.
    early: AtomicU64,
}

impl Deref for Attachment {
    type Target = Membership;

    fn deref(&self) -> &Membership {
        &self.membership
    }
}

impl Attachment {
    pub(crate) fn new(membership: Membership) -> Self {
        let plan = membership.reader.plan();
        let class = |slot| plan.slot_span(slot).map_or(0, |(class, ..)| class as u8);
        let cells = (0..plan.slots).map(|slot| LeaseCell::new(class(slot))).collect();
        let quota = |slots| match membership.quota {
            0 => membership.geometry.quota_of(slots),
            own => own.clamp(1, slots),
        };
        let quotas = plan.classes.iter().map(|span| quota(span.slots)).collect();
        Self {
            token: ForkToken::current(),
            cells,
            quotas,
            tally: Tally::default(),
            waits_for_quota: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            #[cfg(feature = "cuda")]
            device: std::sync::OnceLock::new(),
            membership,
        }
    }

    /// The cell of a slot that a peer named.
    pub(super) fn cell(&self, slot: u32) -> Result<&LeaseCell, Defect> {
        let slots = self.cells.len() as u64;
        self.cells.get(slot as usize).ok_or(Defect::bounded("slot", slot.into(), "below", slots))
    }

    /// The cell of a slot that is leased.
    pub(super) fn held_cell(&self, slot: u32) -> &LeaseCell {
        &self.cells[slot as usize]
    }

    /// What a lease keeps of its claim, to end it by: on a queue the slot word, else the generation, in the upper half.
    pub(super) fn lease_word(&self, claim: &Claim) -> u64 {
        if self.pool.is_some() { claim.word.raw() } else { u64::from(claim.generation) << 32 }
    }

    /// True in a forked child of the process that attached: nothing of this may be touched there.
    pub(crate) fn is_foreign(&self) -> bool {
        self.token.is_stale()
    }

    /// Leases this consumer may hold in `class`.
    pub(crate) fn quota(&self, class: usize) -> u32 {
        self.quotas[class]
    }

    /// Whether this consumer may hold one more slot of `class`.
    pub(crate) fn may_hold(&self, class: usize) -> bool {
        self.held_in(class) < self.quotas[class]
    }

    /// Leases this consumer holds in `class`.
    fn held_in(&self, class: usize) -> u32 {
        // ORDER none, Relaxed: only the consumer begins leases, and that thread asks; one that ends now may count or not.
        let (begun, ended) = (&self.tally.begun[class], &self.tally.ended[class]);
        begun.load(Ordering::Relaxed).wrapping_sub(ended.load(Ordering::Relaxed)) as u32
    }

    /// A lease begins; only the consumer says so.
    pub(super) fn count_begin(&self, class: u8) {
        let begun = &self.tally.begun[usize::from(class)];
        // ORDER none, Relaxed: one thread writes here.
        begun.store(begun.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// A message is acked before its lease ends.
    pub(super) fn count_ack(&self) {
        // ORDER none, Relaxed: a statistic.
        self.tally.early.fetch_add(1, Ordering::Relaxed);
    }

    /// Messages acked.
    pub(crate) fn acked(&self) -> u64 {
        // ORDER none, Relaxed: a statistic.
        let used = &self.tally.ended[..self.quotas.len()];
        let ended: u64 = used.iter().map(|ended| ended.load(Ordering::Relaxed)).sum();
        let otherwise = self.tally.otherwise.load(Ordering::Relaxed);
        (ended + self.tally.early.load(Ordering::Relaxed)).saturating_sub(otherwise)
    }

    /// Says in shared memory what was counted here: whenever the consumer is at work anyway.
    pub(crate) fn tell(&self) {
        self.part.store(at::ACKED, self.acked());
    }

    /// Leases this consumer holds.
    pub(crate) fn held(&self) -> Vec<HeldLease> {
        let now = clock::monotonic_ns();
        let mut held: Vec<_> = self
            .cells
            .iter()
            .enumerate()
            .filter(|(_, cell)| cell.is_held())
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

    /// The consumer is closed. Everything held and not acked goes back when its lease ends.
    pub(crate) fn close(&self) {
        // ORDER none, Relaxed: who ends a lease and does not see it leaves one ack untold, which is told here.
        self.closed.store(true, Ordering::Relaxed);
        self.tell();
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
    pub(super) fn wake_for_end(&self, pool: &Pool<Segment>) {
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

    /// The lease on a slot of `class` ends with this outcome. Counted before the slot is given up.
    fn count_end(&self, class: u8, outcome: u8) {
        // An ack of a broadcast message tells nobody anything before its lease ends.
        let acked = outcome == Outcome::AckAtEnd as u8 || outcome == Outcome::Acked as u8 && self.pool.is_none();
        if !acked {
            // ORDER none, Relaxed: a statistic; counted first, so that no ack is told of that there was not.
            self.tally.otherwise.fetch_add(1, Ordering::Relaxed);
        }
        // ORDER none, Relaxed: see `held_in`.
        self.tally.ended[usize::from(class)].fetch_add(1, Ordering::Relaxed);
        if self.closed.load(Ordering::Relaxed) {
            self.tell();
        }
    }

    /// The end of the lease on `slot`.
    pub(super) fn end(&self, slot: u32) {
        let cell = &self.cells[slot as usize];
        let outcome = cell.outcome.load(Ordering::Relaxed);
        let raw = cell.word.load(Ordering::Relaxed);
        self.part.set_since(slot, 0);
        self.count_end(cell.class, outcome);
        let keep = outcome == Outcome::AckAtEnd as u8 || outcome == Outcome::Acked as u8;
        match &self.pool {
            Some(pool) => {
                let Ok(word) = SlotWord::checked(raw) else { return };
                let generation = word.generation();
                let claim = Claim { sequence: 0, slot, generation, attempts: word.attempts(), word };
                if keep {
                    queue::finish(pool, &claim);
                    self.wake_producer(pool);
                    self.wake_for_end(pool);
                } else {
                    self.part.count_shared(at::NACKED, 1);
                    match queue::give_back(pool, &claim, self.geometry.max_attempts) {
                        SlotState::Dead => self.wake_producer(pool),
                        _ => self.wake_a_consumer(pool),
                    }
                }
            }
            None => {
                let generation = (raw >> 32) as u32;
                if !keep {
                    self.part.count_shared(at::NACKED, 1);
                }
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
