//! Long histories under shuttle: three consumers, four slots, dozens of messages; lives that end anywhere, members that
//! come again under the same index, messages given back, mended, dropped and given up, and producers that take over.
//!
//! Loom looks at every order of a few steps; this looks at some orders of thousands. Shuttle's memory is sequentially
//! consistent: what it shows is that the protocol has no race between its steps, not that its orderings suffice.

use forebay_layout::header::{W_STATE, state};
use shuttle::thread;

use super::{
    long_rig::{Queue, SLOTS, draft, explore, once_in, span_of_life},
    memory::{Memory, until_death},
    small::MEMBERS,
};
use crate::{
    Claim, MemberId, Outstanding, Pool, Publisher, Reader, SlotState, SlotWord,
    queue::{self, Acquired, Next, QueueConsumer, QueueProducer, is_drained, mend, release_all_of},
    sync::Ordering,
    waker_fence,
    words::Words as _,
};

/// Messages of a history.
const MESSAGES: u64 = 50;
/// Lives of a member that may end early, and of the producer; the last ones live on.
const LIVES: u16 = 4;

/// A consumer in one of its lives.
struct Life<'a> {
    ring: &'a Queue,
    me: MemberId,
    pool: Pool<Memory>,
    consumer: QueueConsumer<Memory>,
    last_first: u64,
}

impl Life<'_> {
    /// What somebody mended is somebody's again.
    fn mend(&self) {
        let site = &self.ring.site;
        let mended = mend(&self.pool, self.ring.max_attempts, |owner| site.is_alive(owner.index)).expect("nobody lies");
        if !mended.is_nothing() {
            waker_fence(true);
            for _ in 0..mended.returned {
                self.ring.wake_one(&self.pool, 31);
            }
            self.call_producer();
        }
    }

    fn call_producer(&self) {
        if self.pool.call_producer() {
            self.ring.site.wake_producer();
        }
    }

    fn finish(&self, claim: &Claim) {
        self.ring.site.read(claim);
        queue::finish(&self.pool, claim);
        waker_fence(true);
        self.call_producer();
    }

    fn give_back(&self, claim: &Claim) {
        self.ring.site.ledger().gives_back(claim.sequence, self.me);
        let state = queue::give_back(&self.pool, claim, self.ring.max_attempts);
        waker_fence(true);
        if state == SlotState::Dead { self.call_producer() } else { self.ring.wake_one(&self.pool, self.me.index) }
    }

    /// Deals with a message; what is kept is acked, and read to the end later.
    fn deal_with(&mut self, claim: Claim, kept: &mut Option<Claim>) {
        self.ring.site.ledger().received(&claim, self.me);
        if claim.attempts == 0 {
            assert!(claim.sequence > self.last_first, "first deliveries out of order");
            self.last_first = claim.sequence;
        }
        self.ring.site.receive(&claim);
        if once_in(6) {
            self.give_back(&claim);
        } else if once_in(2) && kept.is_none() {
            queue::ack(&self.pool, &claim);
            self.ring.site.ledger().acked(claim.sequence, self.me);
            *kept = Some(claim);
        } else {
            self.ring.site.read(&claim);
            // The word may name nobody before the ledger knows; nobody can receive it again, so that is no matter.
            queue::finish(&self.pool, &claim);
            self.ring.site.ledger().acked(claim.sequence, self.me);
            waker_fence(true);
            self.call_producer();
        }
    }

    /// Receives until the ring is closed and drained.
    fn live(&mut self) {
        let mut kept: Option<Claim> = None;
        loop {
            if let Some(claim) = self.look(false).or_else(|| self.look(true)) {
                self.deal_with(claim, &mut kept);
                continue;
            }
            if let Some(claim) = kept.take() {
                self.finish(&claim);
                continue;
            }
            if self.is_over() {
                return;
            }
            let slice = self.ring.site.slice();
            self.mend();
            let part = self.pool.member(&self.ring.site.plan, self.me.index);
            let seen = part.wake_word().load(Ordering::Acquire);
            self.pool.park(self.me.index);
            let found = self.look(false);
            if found.is_none() && !self.is_over() {
                self.ring.sleep(self.me.index, slice, seen);
            }
            let woken = !self.pool.unpark(self.me.index);
            if let Some(claim) = found {
                if woken {
                    self.ring.wake_one(&self.pool, self.me.index);
                }
                self.deal_with(claim, &mut kept);
            }
        }
    }

    fn look(&mut self, scan: bool) -> Option<Claim> {
        match self.consumer.next(scan, |_| true).expect("nobody lies here") {
            Next::Claimed(claim) => Some(claim),
            _ => None,
        }
    }

    fn is_over(&self) -> bool {
        self.consumer.reader().is_closed() && is_drained(&self.pool, self.me)
    }
}

/// A member: one life after the other at the same index.
fn member(ring: &Queue, index: u8) {
    let mut me = MemberId { index, incarnation: 1 };
    loop {
        ring.site.is_born(index);
        let last = me.incarnation > LIVES;
        let (memory, words) = ring.mortal(if last { usize::MAX } else { span_of_life() });
        let mut lived = false;
        until_death(|| {
            let pool = ring.pool(words);
            let reader: Reader<Memory> = ring.site.reader(memory);
            let consumer = QueueConsumer::new(reader, pool.clone(), me, false);
            Life { ring, me, pool, consumer, last_first: 0 }.live();
            lived = true;
        });
        ring.post_mortem(me);
        ring.site.is_dead(index);
        vacate(ring, index);
        if lived {
            return;
        }
        me = me.successor();
    }
}

/// The producer's control thread frees the place of a member that is gone.
fn vacate(ring: &Queue, index: u8) {
    let _one_at_a_time = ring.site.places.lock().expect("nobody panics here");
    let pool = ring.pool(ring.words.clone());
    if !pool.unpark(index) {
        ring.wake_one(&pool, 31);
    }
    let mended = release_all_of(&pool, ring.max_attempts, index).expect("nobody lies here");
    waker_fence(true);
    for _ in 0..mended.returned {
        ring.wake_one(&pool, 31);
    }
    if pool.call_producer() {
        ring.site.wake_producer();
    }
    assert_eq!(queue::held_by(&pool, index).count(), 0, "the index is not free");
    ring.site.end_slices();
}

/// The producer in one of its lives.
struct Source<'a> {
    ring: &'a Queue,
    pool: Pool<Memory>,
    producer: &'a mut QueueProducer<Memory>,
    drop_oldest: bool,
    /// What the slots had before the oldest is dropped; there while it is.
    before: &'a mut Option<Vec<Outstanding>>,
}

impl Source<'_> {
    /// A slot to write, if there is one, as the rules have it.
    fn look(&mut self) -> Option<u32> {
        loop {
            match self.producer.acquire(0, true) {
                Acquired::Slot(slot) => return Some(slot),
                Acquired::DeadLetter(slot) => self.bury(slot),
                Acquired::Full if self.drop_oldest => {
                    *self.before = Some((0..SLOTS).map(|slot| self.producer.publisher().shadow(slot).0).collect());
                    let slot = self.producer.drop_oldest(0);
                    let before = self.before.take();
                    if let (Some(slot), Some(before)) = (slot, before) {
                        self.ring.dropped(&before, slot);
                    }
                    return slot;
                }
                Acquired::Full => return None,
            }
        }
    }

    /// Copies a dead letter, then buries it.
    fn bury(&mut self, slot: u32) {
        let (Outstanding::Published(sequence), generation) = self.producer.publisher().shadow(slot) else {
            panic!("a dead letter that was not published")
        };
        let word = SlotWord::full(generation, 0);
        self.ring.site.receive(&Claim { sequence, slot, generation, attempts: 0, word });
        self.ring.site.ledger().letter(sequence, self.ring.max_attempts);
        self.producer.bury(slot);
    }

    /// Sleeps until `ready` gives something.
    fn wait<T>(&mut self, ready: impl Fn(&mut Self) -> Option<T>) -> T {
        loop {
            let slice = self.ring.site.slice();
            let site = &self.ring.site;
            let mended = mend(&self.pool, self.ring.max_attempts, |owner| site.is_alive(owner.index));
            for _ in 0..mended.expect("nobody lies here").returned {
                self.ring.wake_one(&self.pool, 31);
            }
            let seen = self.pool.producer_wake_word().load(Ordering::Acquire);
            self.pool.park_producer();
            let found = ready(self);
            if found.is_none() {
                self.ring.producer_sleeps(slice, seen);
            }
            self.pool.unpark_producer();
            if let Some(found) = found {
                return found;
            }
        }
    }

    /// Publishes all there is left, then waits until it is all dealt with.
    fn live(&mut self) {
        while self.producer.publisher().next_sequence() <= MESSAGES {
            let slot = self.look().unwrap_or_else(|| self.wait(Self::look));
            let sequence = self.producer.publisher().next_sequence();
            self.ring.site.write(slot, sequence);
            if once_in(16) {
                self.producer.abandon(slot);
                continue;
            }
            self.ring.site.ledger().begins(sequence);
            assert_eq!(self.producer.publish(slot, &draft(sequence)), sequence);
            self.ring.site.ledger().committed(sequence);
            waker_fence(true);
            self.ring.wake_one(&self.pool, 31);
        }
        self.wait(|this| {
            while let Some(slot) = this.producer.find_dead_letter() {
                this.bury(slot);
            }
            (this.producer.outstanding() == (0, 0, 0)).then_some(())
        });
    }
}

/// One producer after the other.
fn producer(ring: &Queue, drop_oldest: bool) {
    for epoch in 1.. {
        let last = epoch > u64::from(LIVES);
        let (memory, words) = ring.mortal(if last { usize::MAX } else { span_of_life() * 4 });
        let (mut producer, mut before, mut lived) = (None, None, false);
        until_death(|| {
            let publisher = if epoch == 1 {
                Publisher::new(memory, words.clone(), ring.site.plan.clone(), epoch)
            } else {
                let taken = Publisher::take_over(memory, words.clone(), ring.site.plan.clone(), epoch);
                let (publisher, recovered) = taken.expect("nobody lies here");
                ring.site.ledger().took_over(recovered.last_sequence);
                publisher
            };
            let pool = ring.pool(words);
            pool.unpark_producer();
            let producer = producer.insert(QueueProducer::new(publisher));
            Source { ring, pool, producer, drop_oldest, before: &mut before }.live();
            lived = true;
        });
        if let Some(before) = before {
            // It died as it dropped one: that slot is WRITING.
            let pool = ring.pool(ring.words.clone());
            let taken = (0..SLOTS).find(|&slot| {
                let word = SlotWord::checked(pool.peek_slot(slot)).expect("nobody lies here");
                word.state() == SlotState::Writing && matches!(before[slot as usize], Outstanding::Published(_))
            });
            taken.into_iter().for_each(|slot| ring.dropped(&before, slot));
        }
        if lived {
            break;
        }
        ring.site.ledger().kills += 1;
        ring.site.end_slices();
    }
    // ORDER E1 commit, Release: as the producer closes; it rings every bell, parked or not.
    ring.site.ring.word(W_STATE).store(state::CLOSED, Ordering::Release);
    waker_fence(true);
    let pool = ring.pool(ring.words.clone());
    for index in 0..MEMBERS as u8 {
        pool.member(&ring.site.plan, index).ring_bell();
        ring.site.wake(index);
    }
}

fn history(max_attempts: u32, drop_oldest: bool) {
    let ring = Queue::new(max_attempts);
    let members: Vec<_> = (0..MEMBERS as u8)
        .map(|index| {
            let ring = ring.clone();
            thread::spawn(move || member(&ring, index))
        })
        .collect();
    producer(&ring, drop_oldest);
    for member in members {
        member.join().expect("it panicked");
    }
    let pool = ring.pool(ring.words.clone());
    for slot in 0..SLOTS {
        let word = SlotWord::checked(pool.peek_slot(slot)).expect("nobody lies here");
        assert!(matches!(word.state(), SlotState::Done | SlotState::Free), "slot {slot} is lost: {word:?}");
    }
    assert_eq!(pool.parked(), 0, "somebody is said to sleep");
    ring.site.ledger().is_settled(MESSAGES);
}

#[test]
fn a_queue_without_end_of_attempts() {
    explore(|| history(0, false));
}

#[test]
fn a_queue_with_dead_letters() {
    explore(|| history(3, false));
}

#[test]
fn a_queue_that_drops_the_oldest() {
    explore(|| history(2, true));
}
