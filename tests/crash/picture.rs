//! What a picture of a ring's words says, read without the ring's own code: where each message stands, and what comes
//! next. Nothing here judges; see `audit.rs`.

use std::{collections::BTreeMap, sync::atomic::Ordering::SeqCst};

use forebay_layout::{Kind, header::Header, member, pool::SLOT_WORD_STRIDE};
use forebay_ring::{
    Grant, GrantState, Member, MemberId, ReadOnly, Reader, SlotState, SlotWord, Words, broadcast::BroadcastConsumer,
};

use crate::{
    memory::{Copy, Heap, Memory},
    setup::Setup,
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

/// What is wrong, if anything is.
pub(crate) type Audit<T = ()> = Result<T, String>;

/// Fails with a text unless something holds.
macro_rules! ensure {
    ($holds:expr, $($text:tt)*) => { if !$holds { return Err(format!($($text)*)); } };
}
pub(crate) use ensure;

/// A copy of a picture, with the handles that the ring's own code takes.
pub(crate) struct Ring<'a> {
    pub(crate) scene: &'a Scene<'a>,
    pub(crate) ring: Heap,
    pub(crate) slot_words: Heap,
    pub(crate) parts: Vec<Member<Heap>>,
    pub(crate) reader: Reader<Heap>,
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
    pub(crate) fn new(scene: &'a Scene<'a>, copy: &Copy) -> Self {
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
    pub(crate) fn next(&self) -> Audit<u64> {
        let mut next = self.scene.next;
        for slot in self.slots() {
            let (word, sequence) = self.slot(slot)?;
            let published = !matches!(word.state(), SlotState::Free | SlotState::Writing);
            next = next.max(if published { sequence + 1 } else { 0 });
        }
        Ok(next)
    }

    pub(crate) fn slot(&self, slot: u32) -> Audit<(SlotWord, u64)> {
        let plan = &self.scene.header.plan;
        let word = self.slot_words.word(plan.slot_word + slot as usize * SLOT_WORD_STRIDE).load(SeqCst);
        let sequence = self.ring.word(plan.descriptor_word + slot as usize * plan.descriptor_words).load(SeqCst);
        Ok((SlotWord::checked(word).map_err(|e| e.to_string())?, sequence))
    }

    pub(crate) fn slots(&self) -> std::ops::Range<u32> {
        0..self.scene.header.plan.slots
    }

    /// Where each message stands, by what the words say: nothing but the words is asked.
    pub(crate) fn found(&self) -> Audit<BTreeMap<Key, (Fate, u32, SlotWord)>> {
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
    pub(crate) fn owed(&self, seat: &Seat, slot: u32, generation: u32, sequence: u64) -> Audit<Option<Fate>> {
        let (plan, index) = (&self.scene.header.plan, usize::from(seat.id.index));
        let [from, incarnation] = [0, 1].map(|i| self.ring.word(plan.join_word + 2 * index + i).load(SeqCst));
        let raw = self.parts[index].peek(member::SINCE + plan.slots as usize + slot as usize);
        let grant = Grant::checked(raw).map_err(|e| e.to_string())?;
        let held = grant == Grant { state: GrantState::Held, generation };
        let taken = held || !self.scene.setup.is_lossy() && sequence < seat.cursor;
        let owed = from != 0 && incarnation == u64::from(seat.id.incarnation) && sequence >= from;
        Ok((owed && !grant.settles(generation)).then_some(if taken { Fate::Taken } else { Fate::Owed }))
    }

    /// The part of a place.
    pub(crate) fn part(&self, index: u8) -> Member<Heap> {
        let pool = || Member::in_pool(self.slot_words.clone(), &self.scene.header.plan, index);
        self.parts.get(usize::from(index)).cloned().unwrap_or_else(pool)
    }

    /// Whether a member lives on.
    pub(crate) fn is_alive(&self, member: MemberId) -> bool {
        self.scene.living.iter().any(|seat| seat.id == member)
    }

    pub(crate) fn lost(&self) -> String {
        let words: Vec<_> = self.slots().filter_map(|slot| self.slot(slot).ok()).collect();
        format!("a slot is lost: {words:?}")
    }

    /// A member that lives on with its own cursor, which is in no shared word: the join word lends it for a moment.
    pub(crate) fn go_on(&self, seat: &Seat) -> BroadcastConsumer<Heap> {
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
}
