//! A consumer's right to read a slot, from the claim to the death of the last view.
//!
//! ```text
//!   attachment.rs  what a consumer and all its leases share, and the end of a lease
//!   cell.rs        the state of one slot     description.rs  what the message in it says
//! ```
//!
//! Any thread may end a lease, also after the consumer is closed. What runs at the end touches the fork token, words of
//! the ring, a futex, and unmaps; no Python, logging, thread-locals or panic.

mod attachment;
mod cell;
mod description;

use std::sync::{Arc, atomic::Ordering};

use forebay_layout::Defect;
use forebay_os::clock;
use forebay_ring::{Claim, SlotWord, queue};

use self::cell::LeaseCell;
pub(crate) use self::{
    attachment::{Attachment, Membership},
    cell::Handles,
    description::Description,
};
use crate::consumer::InOrder;

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

/// The right to begin leases. There is one for an attachment, and its consumer has it.
#[derive(Debug)]
pub(crate) struct Leases {
    attachment: Arc<Attachment>,
    /// Handles for leases to come. To make one is a locked instruction, which waits for every store before it: also for
    /// the claim, whose line is the producer's.
    stock: Vec<Arc<Attachment>>,
}

/// Handles that are made at a time.
const STOCK: usize = 16;

impl Leases {
    /// A consumer's, and what it shares with its leases.
    pub(crate) fn new(membership: Membership) -> Self {
        Self { attachment: Arc::new(Attachment::new(membership)), stock: Vec::with_capacity(STOCK) }
    }

    /// What the consumer and its leases share.
    pub(crate) fn attachment(&self) -> &Arc<Attachment> {
        &self.attachment
    }

    /// Makes a handle for a lease to come, if there is room for more. For when there is nothing else to do.
    #[inline]
    pub(crate) fn restock(&mut self) {
        if self.stock.len() < STOCK {
            self.stock.push(Arc::clone(&self.attachment));
        }
    }

    #[inline]
    fn handle(&mut self) -> Arc<Attachment> {
        if self.stock.is_empty() {
            self.stock.resize_with(STOCK, || Arc::clone(&self.attachment));
        }
        self.stock.pop().unwrap_or_else(|| Arc::clone(&self.attachment))
    }

    /// The lease on the next message, if taking it is simple ([`InOrder::next_in_order`] says when). `None` says nothing.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    #[inline]
    pub(crate) fn take(&mut self, core: &mut impl InOrder, manual: bool) -> Option<Result<Lease, Defect>> {
        let attachment = &self.attachment;
        let room = |slot| {
            let cell = attachment.cell(slot).ok()?;
            let free = !cell.is_held() && attachment.may_hold(cell.class.into());
            #[allow(unsafe_code, reason = "what the cell asks for is shown here")]
            // SAFETY: only `Leases::take` and `begin` call it and `begin` of the cell, with the only `Leases` of this
            // attachment borrowed mutably, so no other thread is in there, and the room is gone before either is called
            // again; that there is no handle was just checked.
            free.then(|| unsafe { cell.room() })
        };
        let claim = core.next_in_order(room)?;
        let word = attachment.lease_word(&claim);
        Some(self.hand_out(&claim, word, manual, |description, attachment| description.follow(attachment, &claim)))
    }

    /// The lease on a message that was just claimed, and what the message says of itself. On a defect the message goes
    /// back.
    pub(crate) fn begin(&mut self, claim: &Claim, manual: bool) -> Result<Lease, Defect> {
        let attachment = &self.attachment;
        let cell = attachment.cell(claim.slot)?;
        if cell.is_held() {
            // Two leases on one slot could write it at the same time.
            return Err(Defect::new("slot", claim.slot.into(), "one that this consumer does not hold already"));
        }
        let word = attachment.lease_word(claim);
        self.hand_out(claim, word, manual, |description, attachment| description.read(attachment, claim))
    }

    /// The lease on a claimed message, whose cell is not held. `describe` writes what the message says.
    #[inline]
    fn hand_out(
        &mut self,
        claim: &Claim,
        word: u64,
        manual: bool,
        describe: impl FnOnce(&mut Description, &Attachment) -> Result<(), Defect>,
    ) -> Result<Lease, Defect> {
        let lease = Lease { attachment: self.handle(), slot: claim.slot };
        let attachment = &*lease.attachment;
        let cell = attachment.held_cell(claim.slot);
        let outcome = if manual { Outcome::BackAtEnd } else { Outcome::AckAtEnd };
        #[allow(unsafe_code, reason = "what the cell asks for is shown here")]
        // SAFETY: only `Leases::take` and `Leases::begin` call it, with the only `Leases` of this attachment borrowed
        // mutably, so no other thread is in there; that there is no handle was checked by either, and only this call makes
        // the first one.
        let described = unsafe { cell.begin(claim, word, outcome, |description| describe(description, attachment)) };
        attachment.count_begin(cell.class);
        attachment.part.set_since(claim.slot, clock::monotonic_coarse_ns());
        match described {
            Ok(()) => Ok(lease),
            Err(defect) => {
                lease.nack();
                Err(defect)
            }
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
    pub(crate) fn attachment(&self) -> &Arc<Attachment> {
        &self.attachment
    }

    pub(crate) fn slot(&self) -> u32 {
        self.slot
    }

    fn cell(&self) -> &LeaseCell {
        self.attachment.held_cell(self.slot)
    }

    /// What the message says of itself.
    pub(crate) fn description(&self) -> &Description {
        #[allow(unsafe_code, reason = "what the cell asks for is shown here")]
        // SAFETY: this is a handle, and the answer borrows it.
        unsafe {
            self.cell().description()
        }
    }

    /// The name of tensor `index`.
    pub(crate) fn name(&self, index: usize) -> Option<&str> {
        match &self.attachment.schema {
            Some(schema) => schema.fields().get(index).map(|field| field.name.as_str()),
            None => self.description().names.get(index).map(|name| name.as_str()),
        }
    }

    /// The bytes of tensor `index`, from wherever they are read soonest.
    pub(crate) fn bytes(&self, index: usize) -> &[u8] {
        let description = self.description();
        match description.inline(index) {
            Some(bytes) => bytes,
            None => {
                let meta = &description.fields[index];
                self.attachment.data.leased(self.slot, meta.offset, meta.nbytes)
            }
        }
    }

    /// How many handles there are.
    pub(crate) fn handles(&self) -> Handles {
        self.cell().handles()
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
                self.attachment.count_ack();
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

    /// The program's last handle ends, and a device keeps the slot: what would be acked at the end is acked now. Memory is
    /// another matter.
    #[cfg(feature = "cuda")]
    fn settle_for_device(&self) {
        // With one handle the program cannot make another: it stays the last.
        if self.attachment.device.get().is_some()
            && !self.attachment.is_foreign()
            && self.handles().of_the_program() == 1
            && !self.handles().is_one()
            && self.cell().outcome.load(Ordering::Relaxed) == Outcome::AckAtEnd as u8
        {
            self.ack();
        }
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
        self.cell().share();
        Self { attachment: Arc::clone(&self.attachment), slot: self.slot }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        #[cfg(feature = "cuda")]
        self.settle_for_device();
        let left = self.cell().end();
        if self.attachment.is_foreign() {
            return;
        }
        if left.is_none() {
            self.attachment.end(self.slot);
        }
        #[cfg(feature = "cuda")]
        if left.of_the_program() == 0
            && !left.is_none()
            && let Some(device) = self.attachment.device.get()
        {
            device.shared().program_is_through(self.slot);
        }
    }
}

/// A handle that is kept for a device: the program need not have one. The lease ends with the last of either kind.
#[cfg(feature = "cuda")]
#[derive(Debug)]
pub(crate) struct Keep {
    attachment: Arc<Attachment>,
    slot: u32,
}

#[cfg(feature = "cuda")]
impl Keep {
    pub(crate) fn new(lease: &Lease) -> Self {
        lease.cell().share_for_device();
        Self { attachment: Arc::clone(&lease.attachment), slot: lease.slot }
    }

    pub(crate) fn slot(&self) -> u32 {
        self.slot
    }

    /// Whether the program has no handle any more. Then it cannot get one.
    pub(crate) fn is_alone(&self) -> bool {
        self.attachment.held_cell(self.slot).handles().of_the_program() == 0
    }
}

#[cfg(feature = "cuda")]
impl Drop for Keep {
    fn drop(&mut self) {
        let left = self.attachment.held_cell(self.slot).end_for_device();
        if left.is_none() && !self.attachment.is_foreign() {
            self.attachment.end(self.slot);
        }
    }
}
