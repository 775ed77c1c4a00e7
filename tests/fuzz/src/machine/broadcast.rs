//! The broadcast ring: each message to every member, from its join to its leave.

use std::collections::{BTreeMap, BTreeSet};

use forebay_layout::{
    Kind,
    geometry::{Geometry, Plan},
};
use forebay_ring::{
    Claim, MemberId, Outstanding, Publisher, ReadOnly, Reader, SlotWord,
    broadcast::{BroadcastConsumer, BroadcastProducer, settle},
    queue::Next,
};

use super::{Payload, STEPS, geometry, with_draft};
use crate::{
    bytes::Bytes,
    memory::{Life, Mortal, Object, object},
};

struct Member {
    life: Life,
    consumer: BroadcastConsumer<Mortal>,
    held: Vec<Claim>,
    /// The sequence that it is to receive next.
    due: u64,
    left: bool,
}

struct Producer {
    life: Life,
    inner: BroadcastProducer<Mortal>,
    loan: Option<(u32, u64)>,
}

struct Machine {
    geometry: Geometry,
    plan: Plan,
    ring: Object,
    parts: Vec<Object>,
    payload: Payload,
    producer: Option<Producer>,
    members: Vec<Option<Member>>,
    incarnations: Vec<u16>,
    /// The loan that each sequence was published from.
    messages: BTreeMap<u64, u64>,
    /// Sequences that were taken away from those who had not received them, or may have been.
    revoked: BTreeSet<u64>,
    next: u64,
    ids: u64,
    epoch: u64,
    fuse: Option<u32>,
}

pub(super) fn run(bits: u8, mut input: Bytes<'_>) {
    let mut machine = Machine::new(bits);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        machine.step(&mut input);
    }
    machine.end();
}

impl Machine {
    fn new(bits: u8) -> Self {
        let geometry = geometry(Kind::Broadcast, bits);
        let plan = geometry.plan().unwrap();
        let members = geometry.max_consumers as usize;
        let mut this = Self {
            ring: object(plan.ring_bytes),
            parts: (0..members).map(|_| object(plan.member_bytes)).collect(),
            payload: Payload::new(plan.slots),
            producer: None,
            members: (0..members).map(|_| None).collect(),
            incarnations: vec![0; members],
            messages: BTreeMap::new(),
            revoked: BTreeSet::new(),
            next: 1,
            ids: 0,
            epoch: 1,
            fuse: None,
            geometry,
            plan,
        };
        let life = Life::default();
        let publisher = Publisher::new(this.ring(&life), this.ring(&life), this.plan.clone(), 1);
        let inner = BroadcastProducer::new(publisher, this.ring(&life));
        this.producer = Some(Producer { life, inner, loan: None });
        this.join(0);
        this
    }

    fn ring(&self, life: &Life) -> Mortal {
        Mortal::new(&self.ring, life)
    }

    fn part(&self, index: usize, life: &Life) -> forebay_ring::Member<Mortal> {
        forebay_ring::Member::in_object(Mortal::new(&self.parts[index], life), &self.plan)
    }

    fn step(&mut self, input: &mut Bytes<'_>) {
        let (what, how) = (input.byte(), input.byte());
        let index = usize::from(how & 3) % self.members.len();
        match what % 12 {
            0..=2 => self.publish(how),
            3..=5 => self.receive(index, how >> 2),
            6 => self.settle(index, how >> 2),
            7 => self.join(index),
            8 => self.leave(index),
            9 => self.kill(index),
            10 => self.succeed(how),
            _ => self.fuse = Some(u32::from(how)),
        }
    }

    fn light(&mut self, life: &Life) {
        if let Some(accesses) = self.fuse.take() {
            life.ends_in(accesses);
        }
    }

    // === producer ===

    fn publish(&mut self, how: u8) {
        let Some(mut producer) = self.producer.take() else { return };
        let class = usize::from(how & 1) % self.plan.classes.len();
        self.light(&producer.life);
        if producer.loan.is_none() {
            let before = published(&producer.inner);
            let mut found = producer.inner.acquire(class);
            if found.is_none() && self.geometry.is_lossy() {
                found = producer.inner.drop_oldest(class);
                // Which of them it was is known only if it went well; a try that failed may have revoked some offers.
                let after = published(&producer.inner);
                self.revoked
                    .extend(before.iter().filter(|message| !after.contains(message)).map(|(sequence, _)| *sequence));
                if producer.life.is_over() || found.is_none() {
                    self.revoked.extend(before.iter().map(|(sequence, _)| *sequence));
                }
            }
            if producer.life.is_over() {
                return;
            }
            self.ids += 1;
            producer.loan = found.map(|slot| (slot, self.ids));
            if let Some(slot) = found {
                self.payload.write(slot, self.ids);
            }
        }
        if let Some((slot, id)) = producer.loan.filter(|_| how & 2 == 0) {
            producer.loan = None;
            if how & 4 != 0 {
                producer.inner.abandon(slot);
            } else {
                self.commit(&mut producer, slot, id);
            }
        }
        self.keep(producer);
    }

    fn commit(&mut self, producer: &mut Producer, slot: u32, id: u64) {
        let (_, generation) = producer.inner.publisher().shadow(slot);
        let sequence = with_draft(id, |draft| producer.inner.publish(slot, draft));
        assert_eq!(sequence, self.next, "sequences are numbered without gaps");
        let reader = Reader::new(ReadOnly::new(self.ring(&Life::default())), self.plan.clone(), 1);
        let word = reader.peek(self.plan.slot_word + slot as usize * forebay_layout::pool::SLOT_WORD_STRIDE);
        if word == SlotWord::full(generation, 0).raw() {
            self.messages.insert(sequence, id);
            self.next += 1;
        } else {
            assert!(producer.life.is_over(), "published, and nobody can see it");
        }
    }

    fn keep(&mut self, producer: Producer) {
        if !producer.life.is_over() {
            producer.life.go_on();
            self.producer = Some(producer);
        }
    }

    /// The producer dies if it lives; then somebody takes the ring over, and the members with it.
    fn succeed(&mut self, how: u8) {
        if self.producer.take().is_some() && how & 1 == 0 {
            return;
        }
        let life = Life::default();
        self.light(&life);
        let taken = Publisher::take_over(self.ring(&life), self.ring(&life), self.plan.clone(), self.epoch + 1);
        let (publisher, recovered) = taken.expect("nobody lies here");
        self.epoch += 1;
        assert_eq!(recovered.last_sequence + 1, self.next, "what was published, and nothing else");
        if let Some(id) = self.messages.get(&recovered.last_sequence) {
            assert_eq!(recovered.last_user, id.to_le_bytes(), "the user data of another message");
        }
        let mut inner = BroadcastProducer::new(publisher, self.ring(&life));
        for (index, member) in self.members.iter().enumerate() {
            match member {
                Some(member) => {
                    let part = self.part(index, &life);
                    inner.readmit(index as u8, member.consumer.me().incarnation, part);
                }
                None => inner.remove(index as u8),
            }
        }
        self.keep(Producer { life, inner, loan: None });
    }

    // === members ===

    fn join(&mut self, index: usize) {
        if self.members[index].is_some() {
            return;
        }
        // Only a producer that lives lets anybody in.
        let Some(mut producer) = self.producer.take() else { return };
        self.incarnations[index] += 1;
        let me = MemberId { index: index as u8, incarnation: self.incarnations[index] };
        let life = Life::default();
        self.part(index, &life).clear(true);
        self.light(&producer.life);
        producer.inner.admit(me.index, me.incarnation, self.part(index, &producer.life));
        let reader = Reader::new(ReadOnly::new(self.ring(&life)), self.plan.clone(), 1);
        let consumer = BroadcastConsumer::new(reader, self.part(index, &life), me, self.geometry.is_lossy());
        // If the producer died of this, its successor admits the member anew, and nothing is published in between.
        self.members[index] = Some(Member { life, consumer, held: Vec::new(), due: self.next, left: false });
        self.keep(producer);
    }

    fn receive(&mut self, index: usize, how: u8) {
        let Some(mut member) = self.members[index].take() else { return };
        if member.left {
            self.members[index] = Some(member);
            return;
        }
        self.light(&member.life);
        let before = member.consumer.missed();
        let next = member.consumer.next(how & 1 == 0, |_| how & 2 == 0).expect("nobody lies here");
        if member.life.is_over() {
            return self.bury(index);
        }
        let missed = member.consumer.missed() - before;
        for sequence in member.due..member.due + missed {
            assert!(self.revoked.contains(&sequence), "member {index} missed {sequence}, which nobody revoked");
        }
        member.due += missed;
        if let Next::Claimed(claim) = next {
            assert_eq!(claim.sequence, member.due, "member {index} was to receive another message");
            member.due += 1;
            let id = self.messages[&claim.sequence];
            let head = member.consumer.reader().head_of(&claim).unwrap();
            assert_eq!(head.correlation_id, id);
            assert_eq!(member.consumer.reader().user_of(&claim, &head), id.to_le_bytes());
            self.payload.check(claim.slot, id);
            member.held.push(claim);
        }
        member.life.go_on();
        self.members[index] = Some(member);
    }

    fn settle(&mut self, index: usize, how: u8) {
        let Some(mut member) = self.members[index].take() else { return };
        if !member.held.is_empty() {
            let claim = member.held.remove(usize::from(how) % member.held.len());
            self.payload.check(claim.slot, self.messages[&claim.sequence]);
            self.light(&member.life);
            let (part, reader) = (member.consumer.part(), member.consumer.reader());
            let _ = settle(part, reader, claim.slot, claim.generation, true);
        }
        if member.life.is_over() {
            return self.bury(index);
        }
        member.life.go_on();
        self.members[index] = Some(member);
        self.forget(index);
    }

    fn leave(&mut self, index: usize) {
        let Some(mut member) = self.members[index].take() else { return };
        self.light(&member.life);
        if !member.left {
            member.consumer.leave();
            member.left = true;
        }
        if member.life.is_over() {
            return self.bury(index);
        }
        member.life.go_on();
        self.members[index] = Some(member);
        self.forget(index);
    }

    /// A member that left and holds nothing goes, if there is a producer to see it.
    fn forget(&mut self, index: usize) {
        let gone = self.members[index].as_ref().is_some_and(|member| member.left && member.held.is_empty());
        if gone && self.producer.is_some() {
            self.kill(index);
        }
    }

    fn kill(&mut self, index: usize) {
        if self.members[index].take().is_some() {
            self.bury(index);
        }
    }

    /// The producer finds the lock byte free. If there is none, its successor will.
    fn bury(&mut self, index: usize) {
        if let Some(producer) = &mut self.producer {
            producer.inner.remove(index as u8);
        }
    }

    /// Every member receives all it is owed and ends what it holds; then nothing is outstanding, and every slot can be had
    /// again.
    fn end(mut self) {
        self.fuse = None;
        if self.producer.is_none() {
            self.succeed(1);
        }
        for index in 0..self.members.len() {
            for _ in 0..2 * self.plan.slots {
                self.receive(index, 0);
                self.settle(index, 0);
            }
            while self.members[index].as_ref().is_some_and(|member| !member.held.is_empty()) {
                self.settle(index, 0);
            }
            if let Some(member) = self.members[index].as_ref().filter(|member| !member.left) {
                assert_eq!(member.due, self.next, "member {index} did not receive everything");
            }
        }
        let mut producer = self.producer.take().expect("it lives");
        assert_eq!((producer.inner.outstanding(), producer.inner.undelivered()), (0, 0));
        if let Some((slot, _)) = producer.loan {
            producer.inner.abandon(slot);
        }
        for slot in 0..self.plan.slots {
            let found = producer.inner.acquire(0);
            assert!(found.is_some(), "{slot} of {} slots are left", self.plan.slots);
        }
    }
}

/// What the producer has published and not taken back: sequence and slot.
fn published(producer: &BroadcastProducer<Mortal>) -> Vec<(u64, u32)> {
    let messages = producer.publisher().shadows().filter_map(|(slot, state, _)| match state {
        Outstanding::Published(sequence) => Some((sequence, slot)),
        _ => None,
    });
    messages.collect()
}
