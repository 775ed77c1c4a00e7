//! The producer's waits: for a slot, for consumers, for everything to be received.

use std::time::{Duration, Instant};

use forebay_layout::WhenFull;
use forebay_os::{barrier, futex};
use forebay_ring::{Counter, queue::Acquired};
use std::sync::atomic::Ordering;

use super::{Core, Producer};
use crate::{
    error::{LoanError, WaitError},
    options::{DeadLetters, WaitPolicy},
    slice,
};

/// About what a wake costs.
const SPIN: Duration = Duration::from_micros(30);

impl Producer {
    /// A slot of `class` or larger, WRITING.
    pub(super) fn acquire(
        &mut self,
        class: usize,
        timeout: Option<Duration>,
        interrupt: &mut dyn FnMut() -> bool,
    ) -> Result<u32, LoanError> {
        if let Some(slot) = self.try_acquire(class) {
            if self.wait_goes_on && timeout != Some(Duration::ZERO) {
                self.wait_goes_on = false;
            }
            return Ok(slot);
        }
        let start = Instant::now();
        if self.options.when_full == WhenFull::Fail || timeout == Some(Duration::ZERO) {
            return Err(self.full_error(class, Duration::ZERO));
        }
        let (slots, loaned) = (self.slots_from(class), self.loaned_from(class));
        if loaned == slots {
            return Err(LoanError::OwnLoans { ring: self.site.ring.clone(), loaned: slots });
        }
        // Only this producer can take letters and end loans: waiting could not help.
        if loaned + self.letters_from(class) == slots {
            return Err(self.full_error(class, Duration::ZERO));
        }
        // Who was interrupted, perhaps only to let others have the producer, comes back for the rest.
        if !std::mem::take(&mut self.wait_goes_on) {
            self.core.count(Counter::FullWaits);
        }
        let found = self.wait_for_slot(class, start, timeout, interrupt);
        self.wait_goes_on = matches!(found, Err(LoanError::Interrupted { .. }));
        found
    }

    fn wait_for_slot(
        &mut self,
        class: usize,
        start: Instant,
        timeout: Option<Duration>,
        interrupt: &mut dyn FnMut() -> bool,
    ) -> Result<u32, LoanError> {
        loop {
            let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
            if left == Some(Duration::ZERO) {
                // Room that came meanwhile counts, however long this process slept or was stopped.
                return self.try_acquire(class).ok_or_else(|| self.full_error(class, start.elapsed()));
            }
            if interrupt() {
                return Err(LoanError::Interrupted { ring: self.site.ring.clone() });
            }
            if let Some(slot) = self.wait_round(left, |this| this.try_acquire(class)) {
                return Ok(slot);
            }
            self.tend();
            // What it was woken for comes before who interrupts.
            if let Some(slot) = self.try_acquire(class) {
                return Ok(slot);
            }
        }
    }

    fn try_acquire(&mut self, class: usize) -> Option<u32> {
        self.apply_news();
        loop {
            let found = match &mut self.core {
                Core::Queue(core) => match core.acquire(class, false) {
                    Acquired::Slot(slot) => Some(slot),
                    _ => None,
                },
                Core::Broadcast(core) => core.acquire(class),
            };
            if found.is_some() {
                return found;
            }
            if !self.bury_letters(self.options.dead_letters == DeadLetters::Discard) {
                break;
            }
        }
        if self.options.when_full == WhenFull::DropOldest { self.core.drop_oldest(class) } else { None }
    }

    fn slots_from(&self, class: usize) -> u32 {
        self.core.publisher().plan().classes.iter().skip(class).map(|class| class.slots).sum()
    }

    fn loaned_from(&self, class: usize) -> u32 {
        let publisher = self.core.publisher();
        let first = publisher.plan().classes.get(class).map_or(0, |class| class.first_slot);
        let loaned = |(slot, state, _): &(u32, forebay_ring::Outstanding, u32)| {
            *slot >= first && *state == forebay_ring::Outstanding::Loaned
        };
        publisher.shadows().filter(loaned).count() as u32
    }

    fn letters_from(&self, class: usize) -> u32 {
        let first = self.core.publisher().plan().classes.get(class).map_or(0, |class| class.first_slot);
        match &self.core {
            Core::Queue(core) => core.dead_letters().filter(|&(slot, _)| slot >= first).count() as u32,
            Core::Broadcast(_) => 0,
        }
    }

    fn full_error(&self, class: usize, waited: Duration) -> LoanError {
        let (full, dead) = match &self.core {
            Core::Queue(core) => {
                let (full, _, dead) = core.outstanding();
                (full, dead)
            }
            Core::Broadcast(_) => (0, 0),
        };
        let slots = self.slots_from(class);
        let owed = |index: u8| match &self.core {
            Core::Queue(_) => 0,
            Core::Broadcast(core) => (0..self.core.publisher().plan().slots)
                .filter(|&slot| core.owed_by(slot) >> index & 1 == 1)
                .count() as u32,
        };
        LoanError::Full {
            ring: self.site.ring.clone(),
            waited,
            slots,
            full,
            loaned: self.loaned_from(class),
            dead,
            holders: self.site.holders(owed),
        }
    }

    /// One round of waiting for `attempt` to give something: look, spin, park, look, sleep at most a slice.
    fn wait_round<R>(&mut self, left: Option<Duration>, mut attempt: impl FnMut(&mut Self) -> Option<R>) -> Option<R> {
        let spin = match self.options.wait {
            WaitPolicy::Block => Duration::ZERO,
            WaitPolicy::Adaptive => SPIN,
            WaitPolicy::Spin => slice::nap(left).unwrap_or(Duration::from_millis(50)),
        };
        let start = Instant::now();
        loop {
            if let Some(found) = attempt(self) {
                return Some(found);
            }
            if start.elapsed() >= spin {
                break;
            }
            std::hint::spin_loop();
        }
        if self.options.wait == WaitPolicy::Spin {
            return None;
        }
        let bells = self.bells();
        self.set_parked(true);
        // ORDER E5 park: the mark is visible to every consumer before our second look, or its release to us.
        barrier::heavy(self.site.barrier);
        let found = attempt(self);
        if found.is_none() {
            self.sleep(&bells, slice::nap(left));
        }
        self.set_parked(false);
        found
    }

    /// The words that may wake this thread (its own, or a member's) with their values, read before the second look. That
    /// one applies joins and leaves, so the words must be named here and not found again afterwards.
    fn bells(&self) -> Vec<(Option<u8>, u64)> {
        match &self.core {
            // ORDER E5 park, Acquire: if a bell rings after this, the futex does not sleep.
            Core::Queue(_) => {
                let word = self.site.pool().map(|pool| pool.producer_wake_word().load(Ordering::Acquire));
                word.map(|seen| (None, seen)).into_iter().collect()
            }
            Core::Broadcast(core) => std::iter::once((None, self.site.own_bell.load(Ordering::Acquire)))
                .chain(core.members().map(|(i, part)| (Some(i), part.producer_wake_word().load(Ordering::Acquire))))
                .collect(),
        }
    }

    fn set_parked(&self, parked: bool) {
        match &self.core {
            Core::Queue(_) => {
                if let Some(pool) = self.site.pool() {
                    if parked { pool.park_producer() } else { pool.unpark_producer() }
                }
            }
            Core::Broadcast(core) => core.set_parked(parked),
        }
    }

    fn sleep(&self, bells: &[(Option<u8>, u64)], nap: Option<Duration>) {
        match &self.core {
            Core::Queue(_) => {
                if let (Some(pool), Some(&(_, seen))) = (self.site.pool(), bells.first()) {
                    futex::wait(futex::low_half(pool.producer_wake_word()), seen as u32, nap);
                }
            }
            Core::Broadcast(_) => {
                // A member that joined since is owed nothing that we wait for, and rings our own bell when it goes.
                let word = |member: Option<u8>| match member {
                    Some(index) => self.site.part(index).producer_wake_word(),
                    None => &self.site.own_bell,
                };
                let words: Vec<_> =
                    bells.iter().map(|&(member, seen)| (futex::low_half(word(member)), seen as u32)).collect();
                futex::wait_any(&words, nap);
            }
        }
    }

    /// After a slice: mends what dead consumers left, whether or not their sockets said so.
    fn tend(&mut self) {
        self.site.probe_members(true);
        if let Some(pool) = self.site.pool() {
            self.site.mend_queue(pool);
        }
        self.apply_news();
    }

    /// Waits until at least `count` consumers are attached.
    ///
    /// # Errors
    /// [`WaitError::Timeout`], at once if the producer is closed; `None` waits without end.
    pub fn wait_for_consumers(&mut self, count: usize, timeout: Option<Duration>) -> Result<(), WaitError> {
        self.wait_for_consumers_within(count, timeout, &mut || false)
    }

    /// As [`wait_for_consumers`](Self::wait_for_consumers); `interrupt` is asked at least every 50 ms.
    ///
    /// # Errors
    /// As [`wait_for_consumers`](Self::wait_for_consumers), or [`WaitError::Interrupted`].
    pub fn wait_for_consumers_within(
        &mut self,
        count: usize,
        timeout: Option<Duration>,
        interrupt: &mut dyn FnMut() -> bool,
    ) -> Result<(), WaitError> {
        let start = Instant::now();
        loop {
            if self.site.token.is_stale() {
                return Err(WaitError::Forked);
            }
            self.apply_news();
            let found = self.site.consumers();
            if found >= count {
                return Ok(());
            }
            let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
            // Once closed, nobody comes any more, and the slots may be a successor's.
            if self.closed || left == Some(Duration::ZERO) {
                let what = format!("{found} of {count} consumers are attached to {:?}", self.site.ring);
                return Err(WaitError::Timeout { what, waited: start.elapsed() });
            }
            if interrupt() {
                return Err(WaitError::Interrupted);
            }
            let nap = Duration::from_millis(50);
            self.site.wait_for_change(|now| now >= count, left.map_or(nap, |left| left.min(nap)));
        }
    }

    /// Waits until consumers are through with everything published: acked, or (broadcast) received by all. Tensors of
    /// it may still be read: they outlive the producer. Dead letters count as through; take them with
    /// [`take_dead_letters`](Self::take_dead_letters).
    ///
    /// # Errors
    /// [`WaitError::Timeout`] says how much is left, at once if the producer is closed; `None` waits without end.
    pub fn drain(&mut self, timeout: Option<Duration>) -> Result<(), WaitError> {
        self.drain_within(timeout, &mut || false)
    }

    /// As [`drain`](Self::drain); `interrupt` is asked at least every 50 ms.
    ///
    /// # Errors
    /// As [`drain`](Self::drain), or [`WaitError::Interrupted`].
    pub fn drain_within(
        &mut self,
        timeout: Option<Duration>,
        interrupt: &mut dyn FnMut() -> bool,
    ) -> Result<(), WaitError> {
        let start = Instant::now();
        loop {
            if self.site.token.is_stale() {
                return Err(WaitError::Forked);
            }
            self.apply_news();
            if self.undelivered() == 0 {
                return Ok(());
            }
            let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
            // Once closed, the slots may be a successor's: they are not waited for, nor mended.
            if self.closed || left == Some(Duration::ZERO) {
                let held = self.site.holders(|_| 0);
                let mut what = format!("{} messages of {:?} are not finished", self.undelivered(), self.site.ring);
                for holder in held {
                    what.push_str(&format!("; {holder}"));
                }
                return Err(WaitError::Timeout { what, waited: start.elapsed() });
            }
            // Before it sleeps, as every wait: who is asked after a slice only hears of a signal a slice late.
            if interrupt() {
                return Err(WaitError::Interrupted);
            }
            let drained = self.wait_round(left, |this| {
                this.apply_news();
                (this.undelivered() == 0).then_some(())
            });
            if drained.is_some() {
                return Ok(());
            }
            self.tend();
        }
    }
}

impl Core {
    fn count(&self, counter: Counter) {
        match self {
            Self::Queue(core) => core.count(counter, 1),
            Self::Broadcast(core) => core.count(counter, 1),
        }
    }
}
