//! The producer of a queue: finds a slot to write, takes dead letters out, drops the oldest where that is the policy.

use crate::{
    Counter, Draft, Outstanding, Publisher, SlotState, SlotWord, reader::passes, sync::Ordering, words::Words,
};

/// What looking for a slot gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Acquired {
    /// This one is yours; it is WRITING now.
    Slot(u32),
    /// This one holds a dead letter: copy it, then [`bury`](QueueProducer::bury) it, then look again.
    DeadLetter(u32),
    /// None is free.
    Full,
}

/// What a look at one slot gave.
enum Looked {
    Free,
    Dead,
    Used,
}

/// The producer of a queue.
#[derive(Debug)]
pub struct QueueProducer<W> {
    publisher: Publisher<W>,
}

impl<W: Words> QueueProducer<W> {
    /// Wraps the shadow; its slot words are those of the pool.
    pub fn new(publisher: Publisher<W>) -> Self {
        Self { publisher }
    }

    /// The shadow.
    pub fn publisher(&self) -> &Publisher<W> {
        &self.publisher
    }

    /// Publishes a loan.
    #[inline]
    pub fn publish(&mut self, slot: u32, draft: &Draft<'_>) -> u64 {
        let sequence = self.publisher.publish(slot, draft);
        // The next loan looks there first, and who read it last has its line.
        if let Some(next) = self.publisher.upcoming(slot) {
            self.publisher.prefetch_slot(next);
        }
        sequence
    }

    /// Gives a loan back.
    pub fn abandon(&mut self, slot: u32) {
        self.publisher.abandon(slot);
    }

    /// Counts.
    pub fn count(&self, counter: Counter, add: u64) {
        self.publisher.count(counter, add);
    }

    /// The word of a published slot, if it still is of the generation that was published.
    #[inline]
    fn word(&self, slot: u32) -> Option<SlotWord> {
        let (_, generation) = self.publisher.shadow(slot);
        // ORDER E2 release, Acquire: if it says DONE, whatever the consumer read of the slot is read.
        let word = SlotWord::checked(self.publisher.slot_word(slot).load(Ordering::Acquire)).ok()?;
        (word.generation() == generation).then_some(word)
    }

    /// Looks for a slot in `class` and, if there is none, in the larger ones. With `letters` false slots that hold dead
    /// letters are passed over.
    #[inline]
    pub fn acquire(&mut self, class: usize, letters: bool) -> Acquired {
        // With releases in order the first one is free.
        let first = self.publisher.in_turn(class);
        if let Looked::Free = self.look(first) {
            self.publisher.begin(first);
            return Acquired::Slot(first);
        }
        self.search(class, letters)
    }

    fn search(&mut self, class: usize, letters: bool) -> Acquired {
        for class in class..self.publisher.plan().classes.len() {
            for slot in self.publisher.turn(class) {
                match self.look(slot) {
                    Looked::Free => {
                        self.publisher.begin(slot);
                        return Acquired::Slot(slot);
                    }
                    Looked::Dead if letters => return Acquired::DeadLetter(slot),
                    Looked::Dead | Looked::Used => {}
                }
            }
        }
        Acquired::Full
    }

    /// Whether `slot` can be written.
    #[inline]
    fn look(&self, slot: u32) -> Looked {
        match self.publisher.shadow(slot).0 {
            Outstanding::Loaned => Looked::Used,
            Outstanding::Free => Looked::Free,
            Outstanding::Published(_) => match self.word(slot).map(SlotWord::state) {
                Some(SlotState::Done) => Looked::Free,
                Some(SlotState::Dead) => Looked::Dead,
                _ => Looked::Used,
            },
        }
    }

    /// A slot that holds a dead letter, if one does.
    pub fn find_dead_letter(&self) -> Option<u32> {
        self.dead_letters().next().map(|(slot, _)| slot)
    }

    /// Slots that hold dead letters, and their sequences.
    pub fn dead_letters(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.publisher.shadows().filter_map(|(slot, state, _)| match state {
            Outstanding::Published(sequence) => {
                self.word(slot).is_some_and(|word| word.state() == SlotState::Dead).then_some((slot, sequence))
            }
            _ => None,
        })
    }

    /// The attempts that a slot's message has behind it.
    pub fn attempts(&self, slot: u32) -> u8 {
        self.word(slot).map_or(0, SlotWord::attempts)
    }

    /// Frees the slot of a dead letter that was dealt with.
    pub fn bury(&mut self, slot: u32) {
        let (_, generation) = self.publisher.shadow(slot);
        // ORDER Release: as in `begin`, for a successor; to others DEAD and FREE are the same.
        self.publisher.slot_word(slot).store(SlotWord::free(generation).raw(), Ordering::Release);
        self.publisher.forget(slot);
        self.publisher.count(Counter::DeadLetters, 1);
    }

    /// Takes back the oldest message that nobody has claimed, of `class` or a larger one, and its slot with it.
    pub fn drop_oldest(&mut self, class: usize) -> Option<u32> {
        // Each round that does not end here lost a message to a consumer.
        for _ in 0..passes(self.publisher.plan().slots) {
            let first = self.publisher.plan().classes.get(class)?.first_slot;
            let oldest = self
                .publisher
                .shadows()
                .filter(|&(slot, ..)| slot >= first)
                .filter_map(|(slot, state, _)| match state {
                    Outstanding::Published(sequence) => {
                        let word = self.word(slot).filter(|word| word.state() == SlotState::Full)?;
                        Some((sequence, slot, word))
                    }
                    _ => None,
                })
                .min_by_key(|&(sequence, ..)| sequence);
            let (_, slot, full) = oldest?;
            let writing = self.publisher.writing_word(slot);
            // ORDER E2 release, AcqRel: a claim of this message and this CAS exclude each other. Acquire, because a
            // consumer may have read the slot and given it back; Release as in `begin`.
            let taken = self.publisher.slot_word(slot).compare_exchange(
                full.raw(),
                writing.raw(),
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if taken.is_ok() {
                self.publisher.begun(slot);
                self.publisher.count(Counter::Dropped, 1);
                return Some(slot);
            }
        }
        None
    }

    /// Published messages that are not read to the end: (not claimed, claimed or held, dead letters).
    pub fn outstanding(&self) -> (u32, u32, u32) {
        let mut counts = (0, 0, 0);
        for (slot, state, _) in self.publisher.shadows() {
            if let Outstanding::Published(_) = state {
                match self.word(slot).map(SlotWord::state) {
                    Some(SlotState::Full) => counts.0 += 1,
                    Some(SlotState::Claimed | SlotState::Acked) => counts.1 += 1,
                    Some(SlotState::Dead) => counts.2 += 1,
                    _ => {}
                }
            }
        }
        counts
    }

    /// Messages that a consumer may still have to receive, because nobody has acked them. What is acked and only still
    /// read is not counted.
    pub fn undelivered(&self) -> u32 {
        let counts = |&(slot, state, _): &(u32, Outstanding, u32)| {
            matches!(state, Outstanding::Published(_))
                && self.word(slot).is_some_and(|word| matches!(word.state(), SlotState::Full | SlotState::Claimed))
        };
        self.publisher.shadows().filter(counts).count() as u32
    }

    /// Loans that were neither published nor abandoned.
    pub fn loaned(&self) -> u32 {
        self.publisher.shadows().filter(|(_, state, _)| *state == Outstanding::Loaned).count() as u32
    }
}
