//! Small rings of both kinds, and what their users do with them.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use forebay_layout::{Defect, Kind, geometry::Plan};
use loom::thread::{self, JoinHandle};

use super::{
    figures,
    memory::{Fate, Memory, Payload},
    small::{self, MEMBERS, part, pool_words, ring},
};
use crate::{
    Claim, Draft, Member, MemberId, Pool, Publisher, ReadOnly, Reader,
    broadcast::{BroadcastConsumer, BroadcastProducer},
    queue::{Acquired, Next, QueueConsumer, QueueProducer},
    sync::{self, Ordering},
};

/// Position entries, so that the third message meets the entry of the first.
const POSITIONS: u64 = 2;

thread_local! {
    /// Whether a spawned thread runs before the one that spawned it goes on, unless loom tries another order.
    static SPAWNED_FIRST: Cell<bool> = const { Cell::new(false) };
}

/// Runs `model` in every order that at most `preemptions` forced switches between threads give;
/// `LOOM_MAX_PREEMPTIONS` overrides that.
///
/// Loom finds the orders to try from the last access to a word alone, so that a thread that loads a word before it
/// stores to it hides that the store would matter to another thread's earlier load. It does not when it runs first;
/// hence every model runs twice, beginning with either side.
pub(super) fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let model = Arc::new(model);
    let (start, runs) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let mut bound = Some(preemptions);
    for spawned_first in [false, true] {
        SPAWNED_FIRST.set(spawned_first);
        let mut builder = loom::model::Builder::new();
        bound = builder.preemption_bound.or(bound);
        builder.preemption_bound = bound;
        builder.max_branches = 10_000;
        let (model, runs) = (Arc::clone(&model), Arc::clone(&runs));
        builder.check(move || {
            runs.fetch_add(1, Relaxed);
            model();
        });
    }
    figures::report(&format!("{} switches", bound.unwrap_or(preemptions)), runs.load(Relaxed), start);
}

/// Runs `model` once for each access before which a life may end, in every order as [`check`] does. The model says
/// whether the life came to its own end; once it always does, there are no more accesses.
pub(super) fn every_step(preemptions: usize, model: impl Fn(usize) -> bool + Send + Sync + Clone + 'static) {
    for step in 0.. {
        let died = Arc::new(AtomicBool::new(false));
        let (model, seen) = (model.clone(), Arc::clone(&died));
        check(preemptions, move || {
            if !model(step) {
                seen.store(true, Relaxed);
            }
        });
        if !died.load(Relaxed) {
            assert!(step > 1, "a life without accesses");
            break;
        }
    }
}

/// Starts a thread of a model; its caller is the other one.
pub(super) fn spawn<T: 'static>(side: impl FnOnce() -> T + 'static) -> JoinHandle<T> {
    let handle = thread::spawn(side);
    if SPAWNED_FIRST.get() {
        thread::yield_now();
    }
    handle
}

/// Runs two sides against each other, each in a thread of its own. Use it where a stale value must be seen: a thread that
/// has yielded, as the caller of [`spawn`] does, no longer reads what it saw before.
pub(super) fn race<A: 'static, B: 'static>(a: impl FnOnce() -> A + 'static, b: impl FnOnce() -> B + 'static) -> (A, B) {
    let (a, b) = if SPAWNED_FIRST.get() {
        let a = thread::spawn(a);
        (a, thread::spawn(b))
    } else {
        let b = thread::spawn(b);
        (thread::spawn(a), b)
    };
    (a.join().expect("it panicked"), b.join().expect("it panicked"))
}

/// The lock byte of a member: freed by its death, which orders all it did before whoever sees the byte free.
#[derive(Clone)]
pub(super) struct LockByte(loom::sync::Arc<sync::AtomicU64>);

impl LockByte {
    pub(super) fn held() -> Self {
        Self(loom::sync::Arc::new(sync::AtomicU64::new(1)))
    }

    /// The next life of the same index.
    pub(super) fn take(&self) {
        // ORDER none, Relaxed: a lock orders nothing that comes after it.
        self.0.store(1, Ordering::Relaxed);
    }

    pub(super) fn die(&self) {
        self.0.store(0, Ordering::Release);
    }

    pub(super) fn lives(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }
}

/// The message that models publish under `sequence`: its correlation id and its user data follow from that.
pub(super) fn draft(sequence: u64) -> Draft<'static> {
    Draft { correlation_id: 10 * sequence, payload_bytes: 8, ..Draft::default() }
}

/// A queue.
#[derive(Clone)]
pub(super) struct Queue {
    pub(super) plan: Plan,
    pub(super) ring: Memory,
    pub(super) words: Memory,
    payload: Arc<[Payload]>,
}

impl Queue {
    pub(super) fn new(slots: u32) -> Self {
        let plan = small::plan(Kind::Queue, slots, POSITIONS);
        Self {
            ring: Memory::of(ring(&plan, Kind::Queue)),
            words: Memory::of(pool_words(&plan)),
            payload: (0..slots).map(|_| Payload::default()).collect(),
            plan,
        }
    }

    /// The same ring, as somebody sees it who has this fate.
    pub(super) fn under(&self, fate: &Fate) -> Self {
        Self { ring: self.ring.under(fate), words: self.words.under(fate), ..self.clone() }
    }

    /// The same ring, as somebody sees it who will die.
    pub(super) fn mortal(&self) -> Self {
        self.under(&Fate::death())
    }

    /// Who uses this handle, which is mortal, has this many accesses left.
    pub(super) fn dies_in(&self, accesses: usize) {
        self.ring.dies_in(accesses);
    }

    pub(super) fn producer_from(&self, publisher: Publisher<Memory>) -> QueueProducer<Memory> {
        QueueProducer::new(publisher)
    }

    /// As [`send`](Self::send), with the sequence as user data.
    pub(super) fn send_noted(&self, producer: &mut QueueProducer<Memory>) -> Option<u64> {
        let Acquired::Slot(slot) = producer.acquire(0, true) else { return None };
        let sequence = producer.publisher().next_sequence();
        self.payload[slot as usize].write(sequence);
        Some(producer.publish(slot, &Draft { user: &sequence.to_le_bytes(), ..draft(sequence) }))
    }

    pub(super) fn producer(&self) -> QueueProducer<Memory> {
        QueueProducer::new(Publisher::new(self.ring.clone(), self.words.clone(), self.plan.clone(), 1))
    }

    /// The producer of life `epoch`, after the death of the one before.
    pub(super) fn successor(&self, epoch: u64) -> Result<QueueProducer<Memory>, Defect> {
        let taken = Publisher::take_over(self.ring.clone(), self.words.clone(), self.plan.clone(), epoch);
        taken.map(|(publisher, _)| QueueProducer::new(publisher))
    }

    pub(super) fn reader(&self) -> Reader<Memory> {
        Reader::new(ReadOnly::new(self.ring.clone()), self.plan.clone(), 1)
    }

    pub(super) fn pool(&self) -> Pool<Memory> {
        Pool::new(self.words.clone(), &self.plan)
    }

    pub(super) fn consumer(&self, index: u8) -> QueueConsumer<Memory> {
        self.consumer_of(index, false)
    }

    pub(super) fn consumer_of(&self, index: u8, by_store: bool) -> QueueConsumer<Memory> {
        QueueConsumer::new(self.reader(), self.pool(), MemberId { index, incarnation: 1 }, by_store)
    }

    /// Publishes the next message, if a slot is free.
    pub(super) fn send(&self, producer: &mut QueueProducer<Memory>) -> Option<u64> {
        match producer.acquire(0, true) {
            Acquired::Slot(slot) => Some(self.fill(producer, slot)),
            _ => None,
        }
    }

    /// Writes and publishes a slot that is on loan.
    pub(super) fn fill(&self, producer: &mut QueueProducer<Memory>, slot: u32) -> u64 {
        let sequence = producer.publisher().next_sequence();
        self.payload[slot as usize].write(sequence);
        producer.publish(slot, &draft(sequence))
    }

    /// Takes a message, if there is one, and reads all of it.
    pub(super) fn receive(&self, consumer: &mut QueueConsumer<Memory>, scan: bool) -> Option<Claim> {
        match consumer.next(scan, |_| true).expect("nobody lies here") {
            Next::Claimed(claim) => {
                self.read(&claim);
                Some(claim)
            }
            _ => None,
        }
    }

    /// Reads a claimed message and checks that it is the one that was published.
    pub(super) fn read(&self, claim: &Claim) {
        read(&self.reader(), &self.payload, claim);
    }

    /// What the holder of a lease on a writable ring may do.
    pub(super) fn write(&self, claim: &Claim) {
        self.payload[claim.slot as usize].write(claim.sequence);
    }
}

fn read(reader: &Reader<Memory>, payload: &[Payload], claim: &Claim) {
    let head = reader.head_of(claim).expect("the descriptor came with the claim");
    assert_eq!(head.correlation_id, 10 * claim.sequence, "the descriptor is of another message");
    assert_eq!(payload[claim.slot as usize].read(), claim.sequence, "the payload is of another message");
}

/// A broadcast ring.
#[derive(Clone)]
pub(super) struct Broadcast {
    pub(super) plan: Plan,
    pub(super) ring: Memory,
    parts: [Memory; MEMBERS],
    lossy: bool,
    payload: Arc<[Payload]>,
}

impl Broadcast {
    pub(super) fn new(slots: u32, lossy: bool) -> Self {
        let plan = small::plan(Kind::Broadcast, slots, POSITIONS);
        let parts = [(); MEMBERS].map(|()| Memory::of(part(plan.member_word, &plan)));
        let payload = (0..slots).map(|_| Payload::default()).collect();
        Self { ring: Memory::of(ring(&plan, Kind::Broadcast)), parts, lossy, payload, plan }
    }

    /// As [`Queue::under`].
    pub(super) fn under(&self, fate: &Fate) -> Self {
        Self { ring: self.ring.under(fate), parts: self.parts.each_ref().map(|part| part.under(fate)), ..self.clone() }
    }

    /// As [`Queue::mortal`].
    pub(super) fn mortal(&self) -> Self {
        self.under(&Fate::death())
    }

    /// As [`Queue::dies_in`].
    pub(super) fn dies_in(&self, accesses: usize) {
        self.ring.dies_in(accesses);
    }

    /// As [`Queue::send_noted`].
    pub(super) fn send_noted(&self, producer: &mut BroadcastProducer<Memory>) -> Option<u64> {
        let slot = producer.acquire(0)?;
        let sequence = producer.publisher().next_sequence();
        self.payload[slot as usize].write(sequence);
        Some(producer.publish(slot, &Draft { user: &sequence.to_le_bytes(), ..draft(sequence) }))
    }

    pub(super) fn producer(&self) -> BroadcastProducer<Memory> {
        self.producer_from(Publisher::new(self.ring.clone(), self.ring.clone(), self.plan.clone(), 1))
    }

    pub(super) fn producer_from(&self, publisher: Publisher<Memory>) -> BroadcastProducer<Memory> {
        BroadcastProducer::new(publisher, self.ring.clone())
    }

    pub(super) fn part(&self, index: u8) -> Member<Memory> {
        Member::in_object(self.parts[usize::from(index)].clone(), &self.plan)
    }

    pub(super) fn reader(&self) -> Reader<Memory> {
        Reader::new(ReadOnly::new(self.ring.clone()), self.plan.clone(), 1)
    }

    pub(super) fn consumer(&self, index: u8, incarnation: u16) -> BroadcastConsumer<Memory> {
        BroadcastConsumer::new(self.reader(), self.part(index), MemberId { index, incarnation }, self.lossy)
    }

    /// Publishes the next message, if a slot is free.
    pub(super) fn send(&self, producer: &mut BroadcastProducer<Memory>) -> Option<u64> {
        let slot = producer.acquire(0)?;
        Some(self.fill(producer, slot))
    }

    /// Writes and publishes a slot that is on loan.
    pub(super) fn fill(&self, producer: &mut BroadcastProducer<Memory>, slot: u32) -> u64 {
        let sequence = producer.publisher().next_sequence();
        self.payload[slot as usize].write(sequence);
        producer.publish(slot, &draft(sequence))
    }

    /// Takes a message, if there is one, and reads all of it.
    pub(super) fn receive(&self, member: &mut BroadcastConsumer<Memory>, scan: bool) -> Option<Claim> {
        match member.next(scan, |_| true).expect("nobody lies here") {
            Next::Claimed(claim) => {
                self.read(&claim);
                Some(claim)
            }
            _ => None,
        }
    }

    /// As [`Queue::read`].
    pub(super) fn read(&self, claim: &Claim) {
        read(&self.reader(), &self.payload, claim);
    }
}
