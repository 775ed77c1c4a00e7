//! The ring protocol on memory in which a peer changes words at any moment: before an operation, and between any two
//! looks of one. Every operation must end, with a result or a `Defect`, and everything it then says about a message
//! must lie inside that message's slot.

use forebay_layout::{
    Backing, Kind, MAX_USER_BYTES, WhenFull,
    descriptor::TensorMeta,
    geometry::{Geometry, Plan, SlotClass},
    header::{W_EPOCH, W_LAST},
    pool::{PARKED, RETURNS, SLOT_WORD_STRIDE},
};
use forebay_ring::{
    Claim, Draft, Member, MemberId, Pool, Publisher, ReadOnly, Reader,
    broadcast::{BroadcastConsumer, BroadcastProducer, settle},
    queue::{self, Acquired, Next, QueueConsumer, QueueProducer},
};

use crate::{
    bytes::Bytes,
    memory::{Object, Peer, Shaky, object},
};

const MEMBERS: u8 = 3;
const STEPS: u32 = 300;

/// The target `image`.
pub fn run(data: &[u8]) {
    let mut input = Bytes::new(data);
    let mut ring = Ring::new(&mut input);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        ring.step(&mut input);
    }
    ring.end();
}

/// The geometry that the first bytes of an input ask for.
fn geometry(input: &mut Bytes<'_>) -> Geometry {
    let bits = input.byte();
    let kind = if bits & 1 == 0 { Kind::Queue } else { Kind::Broadcast };
    let when_full = if bits & 2 == 0 { WhenFull::Block } else { WhenFull::DropOldest };
    let small = SlotClass { slots: 1 + u32::from(bits >> 2 & 3), slot_bytes: 256 };
    let large = SlotClass { slots: 1 + u32::from(bits >> 4 & 1), slot_bytes: 1000 };
    Geometry {
        kind,
        backing: Backing::Posix,
        when_full,
        writable: false,
        max_consumers: if bits & 0x80 == 0 { MEMBERS.into() } else { 1 },
        max_attempts: 2,
        quota: 0,
        max_fields: 3,
        schema_bytes: 0,
        classes: if bits & 0x20 == 0 { [small].into_iter().collect() } else { [small, large].into_iter().collect() },
    }
}

enum Producer {
    Queue(QueueProducer<Shaky>),
    Broadcast(BroadcastProducer<Shaky>),
}

enum Consumer {
    Queue(QueueConsumer<Shaky>),
    Broadcast(BroadcastConsumer<Shaky>),
}

struct Ring {
    geometry: Geometry,
    plan: Plan,
    peer: Peer,
    ring: Object,
    /// The pool, or the members' objects.
    others: Vec<Object>,
    data: Vec<u8>,
    producer: Producer,
    loan: Option<u32>,
    consumers: Vec<(Consumer, Vec<Claim>)>,
    epoch: u64,
}

impl Ring {
    fn new(input: &mut Bytes<'_>) -> Self {
        let geometry = geometry(input);
        let plan = geometry.plan().unwrap();
        let peer = Peer::default();
        let ring = object(plan.ring_bytes);
        let others = match geometry.kind {
            Kind::Queue => vec![object(plan.pool_bytes)],
            Kind::Broadcast => (0..geometry.max_consumers).map(|_| object(plan.member_bytes)).collect(),
        };
        let shaky = |object: &Object| Shaky { object: object.clone(), peer: peer.clone() };
        let words = match geometry.kind {
            Kind::Queue => &others[0],
            Kind::Broadcast => &ring,
        };
        let publisher = Publisher::new(shaky(&ring), shaky(words), plan.clone(), 1);
        let producer = match geometry.kind {
            Kind::Queue => Producer::Queue(QueueProducer::new(publisher)),
            Kind::Broadcast => Producer::Broadcast(BroadcastProducer::new(publisher, shaky(&ring))),
        };
        let data = vec![0; plan.data_bytes as usize];
        let mut this =
            Self { geometry, plan, peer, ring, others, data, producer, loan: None, consumers: Vec::new(), epoch: 1 };
        for index in 0..this.geometry.max_consumers as u8 {
            let consumer = this.consumer(index, 1);
            this.consumers.push((consumer, Vec::new()));
        }
        this
    }

    fn shaky(&self, object: &Object) -> Shaky {
        Shaky { object: object.clone(), peer: self.peer.clone() }
    }

    fn reader(&self) -> Reader<Shaky> {
        Reader::new(ReadOnly::new(self.shaky(&self.ring)), self.plan.clone(), self.geometry.max_fields)
    }

    fn pool(&self) -> Pool<Shaky> {
        Pool::new(self.shaky(&self.others[0]), &self.plan)
    }

    fn part(&self, index: u8) -> Member<Shaky> {
        match self.geometry.kind {
            Kind::Queue => self.pool().member(&self.plan, index),
            Kind::Broadcast => Member::in_object(self.shaky(&self.others[usize::from(index)]), &self.plan),
        }
    }

    /// A consumer that comes new or again; a broadcast ring admits it.
    fn consumer(&mut self, index: u8, incarnation: u16) -> Consumer {
        let me = MemberId { index, incarnation };
        let part = self.part(index);
        match &mut self.producer {
            Producer::Queue(_) => {
                Consumer::Queue(QueueConsumer::new(self.reader(), self.pool(), me, self.geometry.claims_by_store()))
            }
            Producer::Broadcast(producer) => {
                producer.admit(index, incarnation, part.clone());
                Consumer::Broadcast(BroadcastConsumer::new(self.reader(), part, me, self.geometry.is_lossy()))
            }
        }
    }

    fn step(&mut self, input: &mut Bytes<'_>) {
        let index = usize::from(input.byte()) % self.consumers.len();
        match input.below(16) {
            0..=2 => self.publish(input.byte()),
            3..=5 => self.receive(index, input.byte()),
            6 => self.finish(index, input.byte()),
            7 => self.mend(input.byte()),
            8 => self.take_over(),
            9 => {
                // Another life of the same place: what the last one held stays as it is.
                let incarnation = u16::from(input.byte());
                self.consumers[index].0 = self.consumer(index as u8, incarnation.max(1));
            }
            10 => self.members(index as u8, input.byte()),
            11 => self.look(index as u8),
            _ => self.lie(input),
        }
    }

    /// A peer stores into a word that steers somebody.
    fn lie(&mut self, input: &mut Bytes<'_>) {
        let plan = &self.plan;
        let slots = plan.slots as usize;
        let pool = &self.others[usize::from(input.byte()) % self.others.len()];
        let (object, start, len) = match input.below(8) {
            0 => (&self.ring, W_EPOCH, 48),
            1 => (&self.ring, W_LAST, 96),
            2 => (&self.ring, plan.join_word, 64),
            3 => (&self.ring, plan.position_word, plan.positions as usize * 16),
            4 => (&self.ring, plan.descriptor_word, slots * plan.descriptor_words),
            5 => {
                let words = if self.geometry.kind == Kind::Queue { pool } else { &self.ring };
                let slot = input.below(slots);
                (words, plan.slot_word + slot * SLOT_WORD_STRIDE, 1)
            }
            6 if self.geometry.kind == Kind::Queue => (pool, [16, PARKED, RETURNS][input.below(3)], 1),
            _ => (pool, plan.member_word, pool.len() - plan.member_word),
        };
        let word = start + usize::from(input.half()) % len;
        let old = object[word].load(std::sync::atomic::Ordering::Relaxed);
        let value = input.value(old);
        self.peer.poke(input.byte().into(), object, word, value);
    }

    fn publish(&mut self, how: u8) {
        let class = usize::from(how & 1) % self.plan.classes.len();
        let drop_oldest = how & 2 != 0;
        if self.loan.is_none() {
            self.loan = match &mut self.producer {
                Producer::Queue(producer) => match producer.acquire(class, how & 4 != 0) {
                    Acquired::Slot(slot) => Some(slot),
                    Acquired::DeadLetter(slot) => {
                        let _ = producer.attempts(slot);
                        producer.bury(slot);
                        None
                    }
                    Acquired::Full if drop_oldest => producer.drop_oldest(class),
                    Acquired::Full => None,
                },
                Producer::Broadcast(producer) => {
                    producer.acquire(class).or_else(|| if drop_oldest { producer.drop_oldest(class) } else { None })
                }
            };
        }
        // Some loans stay open until the next call, some are given back.
        let Some(slot) = self.loan.filter(|_| how & 8 == 0) else { return };
        self.loan = None;
        let (_, span, _) = self.plan.slot_span(slot).unwrap();
        let fields = [(); 3].map(|()| TensorMeta::new(forebay_layout::DType::U8, &[span.slot_bytes], 0).unwrap());
        let user = [how; MAX_USER_BYTES];
        let draft = Draft {
            correlation_id: how.into(),
            timestamp_ns: 1,
            payload_bytes: span.slot_bytes,
            fields: &fields[..usize::from(how >> 4 & 3)],
            user: &user[..if how & 0x40 == 0 { 0 } else { usize::from(how) }],
            ..Draft::default()
        };
        match (&mut self.producer, how & 0x80 == 0) {
            (Producer::Queue(producer), true) => _ = producer.publish(slot, &draft),
            (Producer::Queue(producer), false) => producer.abandon(slot),
            (Producer::Broadcast(producer), true) => {
                producer.publish(slot, &draft);
                let _ = producer.ring_bells();
            }
            (Producer::Broadcast(producer), false) => producer.abandon(slot),
        }
    }

    fn receive(&mut self, index: usize, how: u8) {
        let (consumer, held) = &mut self.consumers[index];
        let (scan, quota) = (how & 1 == 0, how & 2 != 0);
        let may_hold = |_| !quota;
        let (next, reader) = match consumer {
            Consumer::Queue(consumer) => (consumer.next(scan, may_hold), consumer.reader()),
            Consumer::Broadcast(consumer) => (consumer.next(scan, may_hold), consumer.reader()),
        };
        if let Ok(Next::Claimed(claim)) = next {
            read(reader, &self.data, &claim);
            held.push(claim);
        }
    }

    fn finish(&mut self, index: usize, how: u8) {
        let (consumer, held) = &mut self.consumers[index];
        if held.is_empty() {
            return;
        }
        let claim = held.remove(usize::from(how >> 4) % held.len());
        match consumer {
            Consumer::Queue(consumer) => match how % 3 {
                0 => queue::finish(consumer.pool(), &claim),
                1 => _ = queue::give_back(consumer.pool(), &claim, self.geometry.max_attempts),
                _ => {
                    queue::ack(consumer.pool(), &claim);
                    held.push(claim);
                }
            },
            Consumer::Broadcast(consumer) => {
                let _ = settle(consumer.part(), consumer.reader(), claim.slot, claim.generation, how & 1 == 0);
            }
        }
    }

    fn mend(&mut self, alive: u8) {
        if self.geometry.kind == Kind::Queue {
            let pool = self.pool();
            let _ = queue::mend(&pool, self.geometry.max_attempts, |owner| alive >> (owner.index & 7) & 1 == 1);
            let _ = queue::release_all_of(&pool, self.geometry.max_attempts, alive);
            let _ = queue::is_drained(&pool, MemberId { index: alive & 31, incarnation: 1 });
            assert!(queue::held_by(&pool, alive & 31).count() <= self.plan.slots as usize);
        }
    }

    /// The producer dies; a successor takes the ring over, or says which word is wrong and changes nothing.
    fn take_over(&mut self) {
        let words = if self.geometry.kind == Kind::Queue { &self.others[0] } else { &self.ring };
        let taken = Publisher::take_over(self.shaky(&self.ring), self.shaky(words), self.plan.clone(), self.epoch + 1);
        let Ok((publisher, recovered)) = taken else { return };
        assert!(recovered.last_user.len() <= MAX_USER_BYTES);
        assert!(recovered.outstanding <= self.plan.slots.into());
        self.epoch += 1;
        self.loan = None;
        self.producer = match self.geometry.kind {
            Kind::Queue => Producer::Queue(QueueProducer::new(publisher)),
            Kind::Broadcast => {
                let mut producer = BroadcastProducer::new(publisher, self.shaky(&self.ring));
                for index in 0..self.geometry.max_consumers as u8 {
                    producer.readmit(index, 1, self.part(index));
                }
                Producer::Broadcast(producer)
            }
        };
    }

    /// Comings and goings.
    fn members(&mut self, index: u8, how: u8) {
        match &mut self.producer {
            Producer::Broadcast(producer) => match how % 4 {
                0 => producer.remove(index),
                1 => producer.set_parked(how & 4 == 0),
                2 => _ = producer.ring_bells(),
                _ => {
                    if let Consumer::Broadcast(consumer) = &mut self.consumers[usize::from(index)].0 {
                        consumer.leave();
                    }
                }
            },
            Producer::Queue(_) => {
                let pool = self.pool();
                match how % 4 {
                    0 => pool.park(index),
                    1 => _ = pool.unpark(index),
                    2 => pool.park_producer(),
                    _ => _ = (pool.pick_sleeper(how, u32::MAX), pool.call_producer()),
                }
            }
        }
    }

    /// Everything that only looks.
    fn look(&self, index: u8) {
        let slots = self.plan.slots;
        match &self.producer {
            Producer::Queue(producer) => {
                let (full, claimed, dead) = producer.outstanding();
                assert!(u64::from(full) + u64::from(claimed) + u64::from(dead) <= slots.into());
                assert!(producer.undelivered() <= slots && producer.loaned() <= slots);
                let _ = (producer.find_dead_letter(), self.pool().parked());
            }
            Producer::Broadcast(producer) => {
                assert!(producer.outstanding() <= slots && producer.undelivered() <= slots);
                for slot in 0..slots {
                    let _ = (producer.owed_by(slot), producer.peek_slot(slot));
                }
                let _ = (producer.receivers(), producer.loaned());
            }
        }
        let reader = self.reader();
        let _ = (reader.head(), reader.is_closed(), reader.is_replaced(), reader.epoch(), reader.fences());
        let part = self.part(index);
        let _ = (part.identity(), (0..slots).map(|slot| part.since(slot)).max());
    }

    /// Everybody takes what there is, ends what is held, mends, and takes over once more.
    fn end(&mut self) {
        for index in 0..self.consumers.len() {
            for _ in 0..2 * self.plan.slots {
                self.receive(index, 0);
            }
            while !self.consumers[index].1.is_empty() {
                self.finish(index, 0);
            }
        }
        self.mend(0);
        self.take_over();
        self.look(0);
    }
}

/// Reads all that a claimed message says it is.
fn read(reader: &Reader<Shaky>, data: &[u8], claim: &Claim) {
    let Some((_, span, start)) = reader.plan().slot_span(claim.slot) else {
        panic!("claimed a slot that is not there")
    };
    let slot = &data[start as usize..][..span.slot_bytes as usize];
    let tensor = |meta: &TensorMeta| {
        assert_eq!(meta.offset % forebay_layout::ALIGN, 0);
        let bytes = &slot[meta.offset as usize..][..meta.nbytes as usize];
        std::hint::black_box(bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)));
    };
    if let Ok(Some((head, meta))) = reader.inline_of(claim) {
        assert!(head.payload_bytes <= span.slot_bytes);
        meta.iter().for_each(tensor);
    }
    let Ok(head) = reader.head_of(claim) else { return };
    assert_eq!((head.sequence, head.slot, head.generation), (claim.sequence, claim.slot, claim.generation));
    assert!(head.payload_bytes <= span.slot_bytes);
    assert!(reader.user_of(claim, &head).len() <= MAX_USER_BYTES);
    for field in 0..head.fields {
        if let Ok((meta, _)) = reader.field_of(claim, field) {
            tensor(&meta);
        }
    }
}
