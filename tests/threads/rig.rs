//! A ring of either kind for threads, and who lives.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use forebay_layout::{
    Backing, DType, Kind, WhenFull,
    descriptor::TensorMeta,
    geometry::{Geometry, Plan, SlotClass},
};
use forebay_ring::{
    Claim, Draft, Member, MemberId, Pool, Publisher, ReadOnly, Reader, Recovered,
    broadcast::{BroadcastConsumer, BroadcastProducer},
    queue::{QueueConsumer, QueueProducer},
};

use crate::memory::{Life, Memory, Payload};

/// Places for members.
pub(crate) const PLACES: usize = 4;

/// The incarnation that lives at each place, 0 for none: what a lock byte is in the product.
#[derive(Clone, Default)]
pub(crate) struct Living(Arc<[AtomicU64; PLACES]>);

impl Living {
    /// A member holds its place from now on.
    pub(crate) fn begin(&self, me: MemberId) {
        self.0[usize::from(me.index)].store(me.incarnation.into(), Ordering::Release);
    }

    /// It is dead, and all it did is done. As the kernel frees a lock after the last instruction: Release.
    pub(crate) fn end(&self, me: MemberId) {
        self.0[usize::from(me.index)].store(0, Ordering::Release);
    }

    /// As a probe of a lock byte: who finds it free sees all that its holder did.
    pub(crate) fn is_alive(&self, me: MemberId) -> bool {
        self.0[usize::from(me.index)].load(Ordering::Acquire) == u64::from(me.incarnation)
    }
}

/// A ring; clones are handles to the same memory.
#[derive(Clone)]
pub(crate) struct Ring {
    pub(crate) geometry: Geometry,
    pub(crate) plan: Plan,
    ring: Memory,
    /// The pool, or the members' objects.
    others: Vec<Memory>,
    pub(crate) payload: Payload,
    pub(crate) living: Living,
}

impl Ring {
    pub(crate) fn new(kind: Kind, slots: u32, members: u32, when_full: WhenFull) -> Self {
        let geometry = Geometry {
            kind,
            backing: Backing::Posix,
            when_full,
            writable: kind == Kind::Queue,
            max_consumers: members,
            max_attempts: 0,
            quota: 0,
            max_fields: 1,
            schema_bytes: 0,
            classes: [SlotClass { slots, slot_bytes: 128 }].into_iter().collect(),
        };
        let plan = geometry.plan().unwrap();
        let others = match kind {
            Kind::Queue => vec![Memory::bytes(plan.pool_bytes)],
            Kind::Broadcast => (0..members).map(|_| Memory::bytes(plan.member_bytes)).collect(),
        };
        let ring = Memory::bytes(plan.ring_bytes);
        Self { ring, others, payload: Payload::new(slots), living: Living::default(), geometry, plan }
    }

    /// The ring as a process with this life sees it.
    pub(crate) fn of(&self, life: &Life) -> Self {
        let others = self.others.iter().map(|object| object.of(life)).collect();
        Self { ring: self.ring.of(life), others, ..self.clone() }
    }

    fn slot_words(&self) -> Memory {
        if self.geometry.kind == Kind::Queue { self.others[0].clone() } else { self.ring.clone() }
    }

    fn publisher(&self) -> Publisher<Memory> {
        Publisher::new(self.ring.clone(), self.slot_words(), self.plan.clone(), 1)
    }

    /// The successor of a producer whose thread was joined.
    pub(crate) fn take_over(&self, epoch: u64) -> (Publisher<Memory>, Recovered) {
        Publisher::take_over(self.ring.clone(), self.slot_words(), self.plan.clone(), epoch).unwrap()
    }

    pub(crate) fn queue_producer(&self) -> QueueProducer<Memory> {
        QueueProducer::new(self.publisher())
    }

    pub(crate) fn broadcast_producer(&self) -> BroadcastProducer<Memory> {
        self.broadcast_from(self.publisher())
    }

    pub(crate) fn broadcast_from(&self, publisher: Publisher<Memory>) -> BroadcastProducer<Memory> {
        BroadcastProducer::new(publisher, self.ring.clone())
    }

    pub(crate) fn reader(&self) -> Reader<Memory> {
        Reader::new(ReadOnly::new(self.ring.clone()), self.plan.clone(), 1)
    }

    pub(crate) fn pool(&self) -> Pool<Memory> {
        Pool::new(self.others[0].clone(), &self.plan)
    }

    pub(crate) fn part(&self, index: u8) -> Member<Memory> {
        match self.geometry.kind {
            Kind::Queue => self.pool().member(&self.plan, index),
            Kind::Broadcast => Member::in_object(self.others[usize::from(index)].clone(), &self.plan),
        }
    }

    pub(crate) fn queue_consumer(&self, me: MemberId) -> QueueConsumer<Memory> {
        QueueConsumer::new(self.reader(), self.pool(), me, self.geometry.claims_by_store())
    }

    pub(crate) fn broadcast_consumer(&self, me: MemberId) -> BroadcastConsumer<Memory> {
        BroadcastConsumer::new(self.reader(), self.part(me.index), me, self.geometry.is_lossy())
    }

    /// Checks a message that is on lease, word by word, and returns the number it was sent with.
    pub(crate) fn check(&self, claim: &Claim) -> u64 {
        let head = self.reader().head_of(claim).unwrap();
        self.payload.check(claim.slot, head.correlation_id);
        head.correlation_id
    }
}

/// The first member of a place.
pub(crate) fn member(index: u8) -> MemberId {
    MemberId { index, incarnation: 1 }
}

/// Publishes message `id`; its payload lies in the slot.
pub(crate) fn with_draft<R>(id: u64, publish: impl FnOnce(&Draft<'_>) -> R) -> R {
    let field = [TensorMeta::new(DType::U64, &[16], 0).unwrap()];
    let user = id.to_le_bytes();
    publish(&Draft { correlation_id: id, payload_bytes: 128, fields: &field, user: &user, ..Draft::default() })
}
