//! THE AUDIT: one picture of a ring whose process died right there. Recovery runs on a copy, and what it gives must be
//! exactly what was there: no published message missing, no unpublished one visible, no slot lost, no sequence used
//! twice. There is no tolerance: a message that was being published is wholly there or wholly absent, and which of the
//! two is said by its slot word in the picture.

use std::collections::BTreeSet;

use forebay_layout::{entry::ENTRY_TAIL, member::state};
use forebay_ring::{
    Claim, Draft, MemberId, Pool, Publisher, SlotState,
    broadcast::{self, BroadcastProducer},
    queue::{self, Acquired, Next, QueueConsumer, QueueProducer},
};

use crate::{
    memory::{Copy, Heap},
    picture::{ALL, Audit, Fate, Fates, Key, Ring, Scene, ensure},
    setup::name,
};

/// Audits a copy of a picture. The words of the copy are spent afterwards.
pub(crate) fn audit(scene: &Scene<'_>, copy: &Copy) -> Audit {
    let ring = Ring::new(scene, copy);
    ring.places()?;
    if ring.parts.is_empty() { ring.audit_queue() } else { ring.audit_broadcast() }
}

impl Ring<'_> {
    /// Nothing is missing, nothing is there that was not published: each message stands as in one of the stages.
    fn agree(&self, found: &Fates, stages: &[Fates]) -> Audit {
        let relevant = |key: &&Key| key.0 == ALL || self.scene.living.iter().any(|seat| seat.id.index == key.0);
        for key in stages.iter().flat_map(|stage| stage.keys()).chain(found.keys()).filter(relevant) {
            let may: Vec<_> = stages.iter().map(|stage| stage.get(key)).collect();
            ensure!(may.contains(&found.get(key)), "message {key:?} is {:?}, must be one of {may:?}", found.get(key));
        }
        Ok(())
    }

    /// Who lives has its place: a successor goes on with those that are active by their words.
    fn places(&self) -> Audit {
        for seat in self.scene.living {
            let (incarnation, found) = self.part(seat.id.index).identity();
            let same = (incarnation, found) == (seat.id.incarnation, state::ACTIVE);
            ensure!(same, "the place of {:?}, which lives, says {incarnation} and state {found}", seat.id);
        }
        Ok(())
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
        if let Some(words) = self.reader.entry_of(claim)
            && let Some(tensor) = self.reader.decode_entry_tensor(claim, &words).map_err(defect)?
            && tensor.inline
        {
            let bytes = words[ENTRY_TAIL..].iter().take(tensor.meta.nbytes as usize / 8);
            let same = bytes.zip(0..).all(|(&word, i)| word == setup.word(sequence, 0, i));
            ensure!(same, "the bytes in the position entry of message {sequence} are torn");
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
const DRAFT: Draft<'_> = Draft {
    layout: 0,
    correlation_id: 0,
    timestamp_ns: 0,
    payload_bytes: 0,
    fields: &[],
    names: &[],
    user: &[],
    inline: &[],
};
