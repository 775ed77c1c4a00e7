//! THE AUDIT: one picture of a ring whose process died right there. Recovery runs on a copy, and what it gives must be
//! exactly what was there: no published message missing, no unpublished one visible, no slot lost, no sequence used
//! twice. There is no tolerance: a message that was being published is wholly there or wholly absent, and which of the
//! two is said by its slot word in the picture.

use std::collections::{BTreeMap, BTreeSet};

use forebay_layout::{Kind, header::Header, member, pool::SLOT_WORD_STRIDE};
use forebay_ring::{
    Claim, Draft, Grant, GrantState, Member, MemberId, Pool, Publisher, ReadOnly, Reader, SlotState, SlotWord, Words,
    broadcast::{self, BroadcastConsumer, BroadcastProducer},
    queue::{self, Acquired, Next, QueueConsumer, QueueProducer},
};
use std::sync::atomic::Ordering::SeqCst;

use crate::{
    memory::{Copy, Heap, Memory},
    setup::{Setup, name},
};

/// Where a message stands. On a queue there is one answer a message, on a broadcast ring one a member and message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Queue: published, nobody's; deliveries in vain so far.
    Waiting(u8),
    /// Queue: a member's, not acked; deliveries in vain before.
    Held(MemberId, u8),
    /// Queue: a member's, acked and still read.
    Acked(MemberId),
    /// Queue: given up after so many attempts; the producer has not taken it out yet.
    Dead(u8),
    /// Broadcast: the member has not received it.
    Owed,
    /// Broadcast: the member reads it.
    Taken,
}

/// Whose message: the member's on a broadcast ring, [`ALL`] on a queue; and its sequence.
pub(crate) type Key = (u8, u64);
pub(crate) type Fates = BTreeMap<Key, Fate>;
pub(crate) const ALL: u8 = u8::MAX;

/// A member that lives on, and (broadcast) the sequence it goes on with, 0 if it has received nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) id: MemberId,
    pub(crate) cursor: u64,
}

/// What is known of the moment. `stages`: each message stands as in one of these (before, after, or in between).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scene<'a> {
    pub(crate) setup: &'a Setup,
    pub(crate) header: &'a Header,
    pub(crate) memory: &'a Memory,
    pub(crate) stages: &'a [Fates],
    /// What is published next, unless that is committed already.
    pub(crate) next: u64,
    pub(crate) living: &'a [Seat],
    /// Whether a successor comes before the members look, or after.
    pub(crate) successor_first: bool,
}

type Audit<T = ()> = Result<T, String>;

macro_rules! ensure {
    ($holds:expr, $($text:tt)*) => { if !$holds { return Err(format!($($text)*)); } };
}

struct Ring<'a> {
    scene: &'a Scene<'a>,
    ring: Heap,
    slot_words: Heap,
    parts: Vec<Member<Heap>>,
    reader: Reader<Heap>,
}

/// Audits a copy of a picture. The words of the copy are spent afterwards.
pub(crate) fn audit(scene: &Scene<'_>, copy: &Copy) -> Audit {
    let ring = Ring::new(scene, copy);
    if ring.parts.is_empty() { ring.audit_queue() } else { ring.audit_broadcast() }
}

/// Where each message stands by the words of a picture.
pub(crate) fn found(scene: &Scene<'_>, copy: &Copy) -> Audit<Fates> {
    let found = Ring::new(scene, copy).found()?;
    Ok(found.into_iter().map(|(key, found)| (key, found.0)).collect())
}

/// What is published next, by the words of a picture.
pub(crate) fn next(scene: &Scene<'_>, copy: &Copy) -> Audit<u64> {
    Ring::new(scene, copy).next()
}

impl<'a> Ring<'a> {
    fn new(scene: &'a Scene<'a>, copy: &Copy) -> Self {
        let (plan, geometry) = (&scene.header.plan, &scene.header.geometry);
        let queue = geometry.kind == Kind::Queue;
        let parts = (0..geometry.max_consumers as usize).filter(|_| !queue);
        Self {
            scene,
            ring: copy.object(0),
            slot_words: copy.object(usize::from(queue)),
            parts: parts.map(|index| Member::in_object(copy.object(1 + index), plan)).collect(),
            reader: Reader::new(ReadOnly::new(copy.object(0)), plan.clone(), geometry.max_fields),
        }
    }

    /// One more than the last sequence that was published, whoever died since.
    fn next(&self) -> Audit<u64> {
        let mut next = self.scene.next;
        for slot in self.slots() {
            let (word, sequence) = self.slot(slot)?;
            let published = !matches!(word.state(), SlotState::Free | SlotState::Writing);
            next = next.max(if published { sequence + 1 } else { 0 });
        }
        Ok(next)
    }

    fn slot(&self, slot: u32) -> Audit<(SlotWord, u64)> {
        let plan = &self.scene.header.plan;
        let word = self.slot_words.word(plan.slot_word + slot as usize * SLOT_WORD_STRIDE).load(SeqCst);
        let sequence = self.ring.word(plan.descriptor_word + slot as usize * plan.descriptor_words).load(SeqCst);
        Ok((SlotWord::checked(word).map_err(|e| e.to_string())?, sequence))
    }

    fn slots(&self) -> std::ops::Range<u32> {
        0..self.scene.header.plan.slots
    }

    /// Where each message stands, by what the words say: nothing but the words is asked.
    fn found(&self) -> Audit<BTreeMap<Key, (Fate, u32, SlotWord)>> {
        let mut found = BTreeMap::new();
        for slot in self.slots() {
            let (word, sequence) = self.slot(slot)?;
            let owner = || word.owner().ok_or("a claimed slot without an owner");
            let mut put = |member, fate| found.insert((member, sequence), (fate, slot, word));
            let twice = match word.state() {
                SlotState::Full if self.parts.is_empty() => put(ALL, Fate::Waiting(word.attempts())),
                SlotState::Claimed => put(ALL, Fate::Held(owner()?, word.attempts())),
                SlotState::Acked => put(ALL, Fate::Acked(owner()?)),
                SlotState::Dead => put(ALL, Fate::Dead(word.attempts())),
                SlotState::Full => {
                    for seat in self.scene.living {
                        if let Some(fate) = self.owed(seat, slot, word.generation(), sequence)? {
                            put(seat.id.index, fate);
                        }
                    }
                    None
                }
                SlotState::Free | SlotState::Writing | SlotState::Done => None,
            };
            ensure!(twice.is_none(), "two slots hold message {sequence}");
        }
        Ok(found)
    }

    /// Broadcast: whether a member is owed what lies in a slot.
    fn owed(&self, seat: &Seat, slot: u32, generation: u32, sequence: u64) -> Audit<Option<Fate>> {
        let (plan, index) = (&self.scene.header.plan, usize::from(seat.id.index));
        let [from, incarnation] = [0, 1].map(|i| self.ring.word(plan.join_word + 2 * index + i).load(SeqCst));
        let raw = self.parts[index].peek(member::SINCE + plan.slots as usize + slot as usize);
        let grant = Grant::checked(raw).map_err(|e| e.to_string())?;
        let held = grant == Grant { state: GrantState::Held, generation };
        let taken = held || !self.scene.setup.is_lossy() && sequence < seat.cursor;
        let owed = from != 0 && incarnation == u64::from(seat.id.incarnation) && sequence >= from;
        Ok((owed && !grant.settles(generation)).then_some(if taken { Fate::Taken } else { Fate::Owed }))
    }

    /// Nothing is missing, nothing is there that was not published: each message stands as in one of the stages.
    fn agree(&self, found: &Fates, stages: &[Fates]) -> Audit {
        let relevant = |key: &&Key| key.0 == ALL || self.scene.living.iter().any(|seat| seat.id.index == key.0);
        for key in stages.iter().flat_map(|stage| stage.keys()).chain(found.keys()).filter(relevant) {
            let may: Vec<_> = stages.iter().map(|stage| stage.get(key)).collect();
            ensure!(may.contains(&found.get(key)), "message {key:?} is {:?}, must be one of {may:?}", found.get(key));
        }
        Ok(())
    }

    fn is_alive(&self, member: MemberId) -> bool {
        self.scene.living.iter().any(|seat| seat.id == member)
    }

    /// A successor takes over: it goes on with the sequence after the last published one, and knows its user data.
    fn successor(&self) -> Audit<Publisher<Heap>> {
        let next = self.next()?;
        let plan = self.scene.header.plan.clone();
        let (publisher, recovered) = Publisher::take_over(self.ring.clone(), self.slot_words.clone(), plan, 77)
            .map_err(|e| format!("the ring cannot be taken over: {e}"))?;
        let found = publisher.next_sequence();
        ensure!(found == next, "the successor goes on with {found}, expected {next}");
        let user = if next == 1 { Vec::new() } else { self.scene.setup.user_data(next - 1) };
        ensure!(recovered.last_user == user, "the user data of message {} was lost", next - 1);
        Ok(publisher)
    }

    /// A message is the one that was published under its sequence: descriptor and every word of its tensors.
    fn whole(&self, claim: &Claim) -> Audit {
        let (setup, sequence) = (self.scene.setup, claim.sequence);
        let defect = |e: forebay_layout::Defect| format!("message {sequence}: {e}");
        let head = self.reader.head_of(claim).map_err(defect)?;
        ensure!(head.correlation_id == setup.correlation(sequence), "message {sequence} has another correlation id");
        ensure!(u64::from(head.fields) == setup.fields, "message {sequence} has {} tensors", head.fields);
        ensure!(
            self.reader.user_of(claim, &head) == setup.user_data(sequence),
            "message {sequence} has other user data"
        );
        if let Some((inline, first)) = self.reader.inline_of(claim).map_err(defect)? {
            let same = inline == head && first == self.reader.field_of(claim, 0).ok().map(|(meta, _)| meta);
            ensure!(same, "the position entry of message {sequence} says something else than its descriptor");
        }
        for field in 0..setup.fields {
            let (meta, found) = self.reader.field_of(claim, field as u16).map_err(defect)?;
            let dim = setup.dim(Some(sequence), field);
            ensure!(meta.shape() == [dim], "tensor {field} of message {sequence} has shape {:?}", meta.shape());
            ensure!(!setup.schemaless || *found == *name(field), "tensor {field} of message {sequence} is {found:?}");
            let (_, _, offset) = self.scene.header.plan.slot_span(claim.slot).ok_or("no such slot")?;
            let words = self.scene.memory.payload(offset + meta.offset, meta.nbytes);
            let same = words.iter().zip(0..).all(|(&word, i)| word == setup.word(sequence, field, i));
            ensure!(same, "tensor {field} of message {sequence} is torn");
        }
        Ok(())
    }

    fn audit_queue(&self) -> Audit {
        let geometry = &self.scene.header.geometry;
        let found = self.found()?;
        self.agree(&found.iter().map(|(&key, found)| (key, found.0)).collect(), self.scene.stages)?;
        // What the dead held comes back, or is a dead letter; what they had acked is gone.
        let mut left = Fates::new();
        for (&key, &(fate, _, word)) in &found {
            left.insert(
                key,
                match fate {
                    Fate::Acked(owner) if !self.is_alive(owner) => continue,
                    Fate::Held(owner, _) if !self.is_alive(owner) => match word.given_back(geometry.max_attempts) {
                        back if back.state() == SlotState::Dead => Fate::Dead(back.attempts()),
                        back => Fate::Waiting(back.attempts()),
                    },
                    other => other,
                },
            );
        }
        let early = if self.scene.successor_first { Some(self.successor()?) } else { None };
        let pool = Pool::new(self.slot_words.clone(), &self.scene.header.plan);
        let mend =
            || queue::mend(&pool, geometry.max_attempts, |owner| self.is_alive(owner)).map_err(|e| e.to_string());
        mend()?;
        ensure!(mend()?.is_nothing(), "mending a second time finds something");
        let found = self.found()?;
        self.agree(&found.iter().map(|(&key, found)| (key, found.0)).collect(), std::slice::from_ref(&left))?;
        // The living finish what they have, and a new member takes the rest: first deliveries in order.
        for (&(_, sequence), &(fate, slot, word)) in &found {
            let claim = Claim { sequence, slot, generation: word.generation(), attempts: word.attempts(), word };
            self.whole(&claim)?;
            if matches!(fate, Fate::Held(..) | Fate::Acked(_)) {
                queue::finish(&pool, &claim);
            }
        }
        let taken: BTreeSet<u8> = self.scene.living.iter().map(|seat| seat.id.index).collect();
        let index = (0..31).find(|index| !taken.contains(index)).unwrap_or(31);
        let (me, by_store) = (MemberId { index, incarnation: 7777 }, geometry.claims_by_store());
        let mut consumer = QueueConsumer::new(self.reader.clone(), pool.clone(), me, by_store);
        let mut newest = 0;
        while let Next::Claimed(claim) = consumer.next(true, |_| true).map_err(|e| e.to_string())? {
            let expected = left.remove(&(ALL, claim.sequence));
            ensure!(expected == Some(Fate::Waiting(claim.attempts)), "{claim:?} is delivered, expected {expected:?}");
            self.whole(&claim)?;
            ensure!(claim.attempts > 0 || claim.sequence > newest, "message {} comes late", claim.sequence);
            newest = if claim.attempts > 0 { newest } else { claim.sequence };
            queue::finish(&pool, &claim);
        }
        left.retain(|_, fate| !matches!(fate, Fate::Held(..) | Fate::Acked(_)));
        let publisher = if let Some(early) = early { early } else { self.successor()? };
        let mut producer = QueueProducer::new(publisher);
        while let Some(slot) = producer.find_dead_letter() {
            let (word, sequence) = self.slot(slot)?;
            let expected = left.remove(&(ALL, sequence));
            ensure!(expected == Some(Fate::Dead(word.attempts())), "dead letter {sequence}, expected {expected:?}");
            producer.bury(slot);
        }
        ensure!(left.is_empty(), "never delivered: {left:?}");
        // Every slot goes round once more, and the members follow the positions alone.
        let first = producer.publisher().next_sequence();
        for sequence in (first..).take(self.slots().len()) {
            let Acquired::Slot(slot) = producer.acquire(0, true) else { return Err(self.lost()) };
            ensure!(producer.publish(slot, &DRAFT) == sequence, "sequence {sequence} is not the next");
        }
        ensure!(producer.acquire(0, true) == Acquired::Full, "a slot was handed out twice");
        for sequence in (first..).take(self.slots().len()) {
            let Next::Claimed(claim) = consumer.next(false, |_| true).map_err(|e| e.to_string())? else {
                return Err(format!("message {sequence} of the next round is not found"));
            };
            ensure!((claim.sequence, claim.attempts) == (sequence, 0), "{claim:?} instead of {sequence}");
            queue::finish(&pool, &claim);
        }
        Ok(())
    }

    fn lost(&self) -> String {
        let words: Vec<_> = self.slots().filter_map(|slot| self.slot(slot).ok()).collect();
        format!("a slot is lost: {words:?}")
    }

    /// A member that lives on with its own cursor, which is in no shared word: the join word lends it for a moment.
    fn go_on(&self, seat: &Seat) -> BroadcastConsumer<Heap> {
        let part = self.parts[usize::from(seat.id.index)].clone();
        let mut consumer = BroadcastConsumer::new(self.reader.clone(), part, seat.id, self.scene.setup.is_lossy());
        if seat.cursor != 0 {
            let join = self.ring.word(self.scene.header.plan.join_word + 2 * usize::from(seat.id.index));
            let own = join.swap(seat.cursor, SeqCst);
            consumer.joined();
            join.store(own, SeqCst);
        }
        consumer
    }

    fn audit_broadcast(&self) -> Audit {
        let found = self.found()?;
        let mut left: Fates = found.iter().map(|(&key, found)| (key, found.0)).collect();
        self.agree(&left, self.scene.stages)?;
        let succeed = || -> Audit<BroadcastProducer<Heap>> {
            let mut producer = BroadcastProducer::new(self.successor()?, self.ring.clone());
            for seat in self.scene.living {
                producer.readmit(seat.id.index, seat.id.incarnation, self.parts[usize::from(seat.id.index)].clone());
            }
            Ok(producer)
        };
        let early = if self.scene.successor_first { Some(succeed()?) } else { None };
        let mut members: Vec<_> = self.scene.living.iter().map(|seat| (seat.id.index, self.go_on(seat))).collect();
        for (&(member, _), &(fate, slot, word)) in &found {
            if fate == Fate::Taken {
                let part = &self.parts[usize::from(member)];
                let _ = broadcast::settle(part, &self.reader, slot, word.generation(), false);
            }
        }
        left.retain(|_, fate| *fate != Fate::Taken);
        // Each member receives what it is owed, in order.
        for (index, member) in &mut members {
            while let Next::Claimed(claim) = member.next(true, |_| true).map_err(|e| e.to_string())? {
                let expected = left.range((*index, 0)..=(*index, u64::MAX)).next().map(|(&(_, sequence), _)| sequence);
                ensure!(expected == Some(claim.sequence), "member {index} gets {claim:?}, expected {expected:?}");
                left.remove(&(*index, claim.sequence));
                self.whole(&claim)?;
                let _ = broadcast::settle(member.part(), &self.reader, claim.slot, claim.generation, false);
            }
        }
        ensure!(left.is_empty(), "never received: {left:?}");
        let mut producer = if let Some(early) = early { early } else { succeed()? };
        let first = producer.publisher().next_sequence();
        for sequence in (first..).take(self.slots().len()) {
            let Some(slot) = producer.acquire(0) else { return Err(self.lost()) };
            ensure!(producer.publish(slot, &DRAFT) == sequence, "sequence {sequence} is not the next");
        }
        ensure!(members.is_empty() || producer.acquire(0).is_none(), "a slot that is owed was handed out");
        for (index, member) in &mut members {
            for sequence in (first..).take(self.slots().len()) {
                let next = member.next(false, |_| true).map_err(|e| e.to_string())?;
                let Next::Claimed(claim) = next else { return Err(format!("member {index} does not find {sequence}")) };
                ensure!(claim.sequence == sequence, "member {index} gets {claim:?} instead of {sequence}");
                let _ = broadcast::settle(member.part(), &self.reader, claim.slot, claim.generation, false);
            }
        }
        Ok(())
    }
}

/// A message without anything in it.
const DRAFT: Draft<'_> =
    Draft { correlation_id: 0, timestamp_ns: 0, payload_bytes: 0, fields: &[], names: &[], user: &[] };
