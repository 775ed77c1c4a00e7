//! The queue: each message to exactly one member, back when that one dies.

use std::collections::BTreeMap;

use forebay_layout::{
    Kind,
    geometry::{Geometry, Plan},
};
use forebay_ring::{
    Claim, Counter, MemberId, Pool, Publisher, ReadOnly, Reader, SlotState, SlotWord,
    queue::{self, Acquired, Next, QueueConsumer, QueueProducer},
};

use super::{Payload, STEPS, geometry, with_draft};
use crate::{
    bytes::Bytes,
    memory::{Life, Mortal, Object, object},
};

/// Where a message is, as far as it is told by what came back from the operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the ring, nobody's.
    Waiting,
    /// With a member that lives.
    Held,
    /// With one that lives and has acked it.
    Acked,
    /// A dead member's that had not acked: to be mended.
    Orphan,
    /// A dead letter that the producer has not taken out.
    Letter,
    /// Dealt with, dropped, or taken out as a letter.
    Over,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    slot: u32,
    generation: u32,
    attempts: u8,
    place: Place,
}

struct Held {
    claim: Claim,
    acked: bool,
}

struct Member {
    life: Life,
    consumer: QueueConsumer<Mortal>,
    held: Vec<Held>,
    last_first: u64,
}

struct Producer {
    life: Life,
    inner: QueueProducer<Mortal>,
    loan: Option<(u32, u64)>,
}

struct Machine {
    geometry: Geometry,
    plan: Plan,
    ring: Object,
    pool: Object,
    payload: Payload,
    producer: Option<Producer>,
    members: Vec<Option<Member>>,
    incarnations: Vec<u16>,
    messages: BTreeMap<u64, Entry>,
    next: u64,
    ids: u64,
    epoch: u64,
    dropped: u64,
    uncounted: u64,
    /// The next operation ends with the death of who does it, after so many accesses.
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
        let geometry = geometry(Kind::Queue, bits);
        let plan = geometry.plan().unwrap();
        let members = geometry.max_consumers as usize;
        let mut this = Self {
            ring: object(plan.ring_bytes),
            pool: object(plan.pool_bytes),
            payload: Payload::new(plan.slots),
            producer: None,
            members: (0..members).map(|_| None).collect(),
            incarnations: vec![0; members],
            messages: BTreeMap::new(),
            next: 1,
            ids: 0,
            epoch: 1,
            dropped: 0,
            uncounted: 0,
            fuse: None,
            geometry,
            plan,
        };
        let life = Life::default();
        let publisher = Publisher::new(this.ring(&life), this.words(&life), this.plan.clone(), 1);
        this.producer = Some(Producer { life, inner: QueueProducer::new(publisher), loan: None });
        this.join(0);
        this
    }

    fn ring(&self, life: &Life) -> Mortal {
        Mortal::new(&self.ring, life)
    }

    fn words(&self, life: &Life) -> Mortal {
        Mortal::new(&self.pool, life)
    }

    fn pool(&self, life: &Life) -> Pool<Mortal> {
        Pool::new(self.words(life), &self.plan)
    }

    /// The word of a slot now, for who has to know what a death left.
    fn word(&self, slot: u32) -> SlotWord {
        SlotWord::checked(self.pool(&Life::default()).peek_slot(slot)).unwrap()
    }

    fn step(&mut self, input: &mut Bytes<'_>) {
        let (what, how) = (input.byte(), input.byte());
        let index = usize::from(how & 3) % self.members.len();
        match what % 16 {
            0..=3 => self.publish(how),
            4..=6 => self.receive(index, how >> 2),
            7 => self.finish(index, how >> 2),
            8 => self.give_back(index, how >> 2),
            9 => self.ack(index, how >> 2),
            10 => self.kill(index),
            11 => self.join(index),
            12 => self.mend(index),
            13 => self.letters(),
            14 => self.succeed(how),
            _ => self.fuse = Some(u32::from(how)),
        }
    }

    // === producer ===

    fn publish(&mut self, how: u8) {
        let Some(mut producer) = self.producer.take() else { return };
        let class = usize::from(how & 1) % self.plan.classes.len();
        self.light(&producer.life);
        if producer.loan.is_none() {
            let found = match producer.inner.acquire(class, false) {
                Acquired::Slot(slot) => Some(slot),
                _ if self.geometry.is_lossy() => producer.inner.drop_oldest(class),
                _ => None,
            };
            // Of the messages in the ring, one whose slot is no longer of its generation was dropped.
            let died = producer.life.is_over();
            self.note_dropped(died);
            if died {
                return;
            }
            self.ids += 1;
            producer.loan = found.map(|slot| (slot, self.ids));
            if let Some(slot) = found {
                self.payload.write(slot, self.ids);
            }
        }
        let Some((slot, id)) = producer.loan.filter(|_| how & 2 == 0) else {
            producer.life.go_on();
            self.producer = Some(producer);
            return;
        };
        producer.loan = None;
        if how & 4 != 0 {
            producer.inner.abandon(slot);
        } else {
            let generation = producer.inner.publisher().shadow(slot).1;
            let sequence = with_draft(id, |draft| producer.inner.publish(slot, draft));
            assert_eq!(sequence, self.next, "sequences are numbered without gaps");
            if self.word(slot) == SlotWord::full(generation, 0) {
                let entry = Entry { id, slot, generation, attempts: 0, place: Place::Waiting };
                self.messages.insert(sequence, entry);
                self.next += 1;
            } else {
                assert!(producer.life.is_over(), "published, and nobody can see it");
            }
        }
        self.keep(producer);
    }

    fn note_dropped(&mut self, died: bool) {
        let mut gone = 0;
        for slot in 0..self.plan.slots {
            let word = self.word(slot);
            let waiting =
                self.messages.values_mut().filter(|entry| entry.place == Place::Waiting && entry.slot == slot);
            for entry in waiting.filter(|entry| word.generation() != entry.generation) {
                entry.place = Place::Over;
                gone += 1;
            }
        }
        assert!(gone <= u64::from(self.geometry.is_lossy()), "{gone} messages vanished as a slot was taken");
        self.dropped += gone;
        self.uncounted += if died { gone } else { 0 };
    }

    /// The producer lives on, unless its fuse has burnt down.
    fn keep(&mut self, producer: Producer) {
        if !producer.life.is_over() {
            producer.life.go_on();
            self.producer = Some(producer);
        }
    }

    /// Takes all dead letters out and buries them.
    fn letters(&mut self) {
        let Some(mut producer) = self.producer.take() else { return };
        self.light(&producer.life);
        for _ in 0..=self.plan.slots {
            let Some(slot) = producer.inner.find_dead_letter().filter(|_| !producer.life.is_over()) else { break };
            let attempts = producer.inner.attempts(slot);
            let entry = self.messages.values_mut().find(|entry| entry.slot == slot && entry.place != Place::Over);
            let entry = entry.expect("a dead letter that was never published");
            assert_eq!(entry.place, Place::Letter, "{entry:?} is a dead letter");
            self.payload.check(slot, entry.id);
            producer.inner.bury(slot);
            let buried =
                SlotWord::checked(Pool::new(Mortal::new(&self.pool, &Life::default()), &self.plan).peek_slot(slot));
            if buried.unwrap().state() == SlotState::Free {
                assert_eq!(u32::from(attempts), self.geometry.max_attempts, "{entry:?} died too early or too late");
                entry.place = Place::Over;
            }
        }
        self.keep(producer);
    }

    /// The producer dies if it lives; then somebody takes the ring over.
    fn succeed(&mut self, how: u8) {
        if self.producer.take().is_some() && how & 1 == 0 {
            return;
        }
        let life = Life::default();
        self.light(&life);
        let taken = Publisher::take_over(self.ring(&life), self.words(&life), self.plan.clone(), self.epoch + 1);
        let (publisher, recovered) = taken.expect("nobody lies here");
        self.epoch += 1;
        assert_eq!(recovered.last_sequence + 1, self.next, "what was published, and nothing else");
        if let Some(last) = self.messages.get(&recovered.last_sequence) {
            assert_eq!(recovered.last_user, last.id.to_le_bytes(), "the user data of another message");
        }
        self.keep(Producer { life, inner: QueueProducer::new(publisher), loan: None });
    }

    // === members ===

    fn join(&mut self, index: usize) {
        if self.members[index].is_some() {
            return;
        }
        let life = Life::default();
        // A place is given away only when no slot names it.
        let max_attempts = self.geometry.max_attempts;
        let _ = queue::release_all_of(&self.pool(&life), max_attempts, index as u8).unwrap();
        assert_eq!(queue::held_by(&self.pool(&life), index as u8).count(), 0);
        self.note_mended();
        self.incarnations[index] += 1;
        let me = MemberId { index: index as u8, incarnation: self.incarnations[index] };
        let reader = Reader::new(ReadOnly::new(self.ring(&life)), self.plan.clone(), 1);
        let consumer = QueueConsumer::new(reader, self.pool(&life), me, self.geometry.claims_by_store());
        self.members[index] = Some(Member { life, consumer, held: Vec::new(), last_first: 0 });
    }

    fn receive(&mut self, index: usize, how: u8) {
        let Some(mut member) = self.members[index].take() else { return };
        self.light(&member.life);
        let next = member.consumer.next(how & 1 == 0, |_| how & 2 == 0).expect("nobody lies here");
        if let Next::Claimed(claim) = next
            && !member.life.is_over()
        {
            let head = member.consumer.reader().head_of(&claim).unwrap();
            let user = member.consumer.reader().user_of(&claim, &head);
            if !member.life.is_over() {
                let entry = self.messages.get_mut(&claim.sequence).expect("received, and never published");
                assert_eq!(entry.place, Place::Waiting, "{claim:?} is not to be had: {entry:?}");
                assert_eq!((head.correlation_id, user), (entry.id, entry.id.to_le_bytes().to_vec()));
                assert_eq!((claim.attempts, claim.generation), (entry.attempts, entry.generation));
                self.payload.check(claim.slot, entry.id);
                entry.place = Place::Held;
                if claim.attempts == 0 {
                    assert!(claim.sequence > member.last_first, "first deliveries come in order");
                    member.last_first = claim.sequence;
                }
                member.held.push(Held { claim, acked: false });
            }
        }
        self.survive(index, member);
    }

    /// One of the messages that a member holds.
    fn pick(member: &mut Member, how: u8) -> Option<Held> {
        (!member.held.is_empty()).then(|| member.held.remove(usize::from(how) % member.held.len()))
    }

    fn with_held(&mut self, index: usize, how: u8, act: impl FnOnce(&mut Self, &Member, &mut Held) -> bool) {
        let Some(mut member) = self.members[index].take() else { return };
        if let Some(mut held) = Self::pick(&mut member, how) {
            self.payload.check(held.claim.slot, self.messages[&held.claim.sequence].id);
            self.light(&member.life);
            let keeps = act(self, &member, &mut held);
            if keeps || member.life.is_over() {
                member.held.push(held);
            }
        }
        self.survive(index, member);
    }

    fn finish(&mut self, index: usize, how: u8) {
        self.with_held(index, how, |this, member, held| {
            queue::finish(member.consumer.pool(), &held.claim);
            if !member.life.is_over() {
                this.messages.get_mut(&held.claim.sequence).unwrap().place = Place::Over;
            }
            false
        });
    }

    fn give_back(&mut self, index: usize, how: u8) {
        self.with_held(index, how, |this, member, held| {
            if held.acked {
                return true;
            }
            let state = queue::give_back(member.consumer.pool(), &held.claim, this.geometry.max_attempts);
            if !member.life.is_over() {
                let entry = this.messages.get_mut(&held.claim.sequence).unwrap();
                entry.attempts = entry.attempts.saturating_add(1);
                entry.place = if state == SlotState::Dead { Place::Letter } else { Place::Waiting };
            }
            false
        });
    }

    fn ack(&mut self, index: usize, how: u8) {
        self.with_held(index, how, |this, member, held| {
            if !held.acked {
                queue::ack(member.consumer.pool(), &held.claim);
                if !member.life.is_over() {
                    held.acked = true;
                    this.messages.get_mut(&held.claim.sequence).unwrap().place = Place::Acked;
                }
            }
            true
        });
    }

    fn mend(&mut self, index: usize) {
        let Some(member) = self.members[index].take() else { return };
        self.light(&member.life);
        let me = member.consumer.me();
        let living: Vec<MemberId> = self.members.iter().flatten().map(|member| member.consumer.me()).collect();
        let alive = |owner: MemberId| owner == me || living.contains(&owner);
        let _ = queue::mend(member.consumer.pool(), self.geometry.max_attempts, alive).expect("nobody lies here");
        self.note_mended();
        self.survive(index, member);
    }

    fn kill(&mut self, index: usize) {
        if let Some(member) = self.members[index].take() {
            self.bury(&member);
        }
    }

    /// The member goes on, unless its fuse has burnt down.
    fn survive(&mut self, index: usize, member: Member) {
        if member.life.is_over() {
            self.bury(&member);
        } else {
            member.life.go_on();
            self.members[index] = Some(member);
        }
    }

    /// What a dead member had is what the slots' words say.
    fn bury(&mut self, member: &Member) {
        for held in &member.held {
            let (word, claimed) = (self.word(held.claim.slot), held.claim.word);
            let entry = self.messages.get_mut(&held.claim.sequence).unwrap();
            entry.place = if word == claimed {
                Place::Orphan
            } else if word == claimed.acked() || word == SlotWord::done(claimed.generation()) {
                Place::Over
            } else {
                assert_eq!(word, claimed.given_back(self.geometry.max_attempts), "a word that nobody stored");
                entry.attempts = word.attempts();
                if word.state() == SlotState::Dead { Place::Letter } else { Place::Waiting }
            };
        }
        // A claim whose owner never heard of it.
        let me = member.consumer.me();
        for entry in self.messages.values_mut().filter(|entry| entry.place == Place::Waiting) {
            let pool = Pool::new(Mortal::new(&self.pool, &Life::default()), &self.plan);
            let word = SlotWord::checked(pool.peek_slot(entry.slot)).unwrap();
            if word.generation() == entry.generation && word.owner() == Some(me) {
                entry.place = Place::Orphan;
            }
        }
    }

    /// Orphans that somebody has mended wait again, or are letters.
    fn note_mended(&mut self) {
        for slot in 0..self.plan.slots {
            let word = self.word(slot);
            let orphan = |entry: &&mut Entry| entry.place == Place::Orphan && entry.slot == slot;
            for entry in self.messages.values_mut().filter(orphan) {
                assert_eq!(word.generation(), entry.generation, "the slot of an unacked message was used again");
                match word.state() {
                    SlotState::Full => entry.place = Place::Waiting,
                    SlotState::Dead => entry.place = Place::Letter,
                    state => {
                        assert_eq!(state, SlotState::Claimed, "an unacked message was dealt with");
                        continue;
                    }
                }
                entry.attempts = entry.attempts.saturating_add(1);
                assert_eq!(word.attempts(), entry.attempts);
            }
        }
    }

    fn light(&mut self, life: &Life) {
        if let Some(accesses) = self.fuse.take() {
            life.ends_in(accesses);
        }
    }

    /// Everybody ends what it holds, a last member takes all there is, and the ring is empty: every message that was
    /// published is over, and every slot can be had again.
    fn end(mut self) {
        self.fuse = None;
        if self.producer.is_none() {
            self.succeed(1);
        }
        for index in 0..self.members.len() {
            while self.members[index].as_ref().is_some_and(|member| !member.held.is_empty()) {
                self.finish(index, 0);
            }
        }
        self.join(0);
        self.mend(0);
        // Each message comes back at most as often as it may.
        for _ in 0..2 * self.plan.slots {
            self.receive(0, 0);
            self.finish(0, 0);
        }
        self.letters();
        for (sequence, entry) in &self.messages {
            assert_eq!(entry.place, Place::Over, "message {sequence} is lost: {entry:?}");
        }
        let mut producer = self.producer.take().expect("it lives");
        let counted = producer.inner.publisher().counted(Counter::Dropped);
        let counts = self.dropped - self.uncounted..=self.dropped;
        assert!(counts.contains(&counted), "{counted} counted as dropped, expected {counts:?}");
        if let Some((slot, _)) = producer.loan {
            producer.inner.abandon(slot);
        }
        for slot in 0..self.plan.slots {
            let found = producer.inner.acquire(0, true);
            assert!(matches!(found, Acquired::Slot(_)), "{slot} of {} slots are left: {found:?}", self.plan.slots);
        }
    }
}
