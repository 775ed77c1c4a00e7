//! A member of a broadcast ring: follows positions from its join on, settles what it read.

use forebay_layout::{Defect, entry::ENTRY_WORDS, header::W_PARKED, member as at, pool::SLOT_WORD_STRIDE};

use crate::{
    Claim, Grant, GrantState, Member, MemberId, Reader, SlotState, SlotWord,
    queue::Next,
    reader::{Position, SEQUENCES},
    sync::{Ordering, waker_fence},
    words::Words,
};

/// A hold is tried this often: a revoke makes it fail once.
const HOLD_TRIES: u32 = 4;

/// A member of a broadcast ring.
#[derive(Debug)]
pub struct BroadcastConsumer<W> {
    reader: Reader<W>,
    part: Member<W>,
    me: MemberId,
    lossy: bool,
    /// Next sequence to look at; 0 until the producer said from where on we are owed messages.
    cursor: u64,
    missed: u64,
}

impl<W: Words> BroadcastConsumer<W> {
    /// A member that has been, or is about to be, admitted.
    pub fn new(reader: Reader<W>, part: Member<W>, me: MemberId, lossy: bool) -> Self {
        Self { reader, part, me, lossy, cursor: 0, missed: 0 }
    }

    /// The ring.
    pub fn reader(&self) -> &Reader<W> {
        &self.reader
    }

    /// This member's part.
    pub fn part(&self) -> &Member<W> {
        &self.part
    }

    /// This member.
    pub fn me(&self) -> MemberId {
        self.me
    }

    /// The next sequence this member will look at, 0 before it joined.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Messages that were revoked before this member took them.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// True once the producer owes us messages.
    pub fn joined(&mut self) -> bool {
        if self.cursor == 0 {
            let word = self.reader.plan().join_word + 2 * usize::from(self.me.index);
            // ORDER E6 join, Acquire: with our incarnation arrives that the last holder's sequence is gone, so the one
            // read next is 0 or ours. Read the other way round, it could be the last holder's.
            if self.reader.load(word + 1, Ordering::Acquire) == u64::from(self.me.incarnation) {
                self.cursor = self.reader.peek(word).min(SEQUENCES);
            }
        }
        self.cursor != 0
    }

    /// Whether it is worth while to call [`next`](Self::next), as on a queue.
    #[must_use]
    pub fn may_have_next(&self) -> bool {
        self.cursor == 0 || self.reader.may_have(self.cursor)
    }

    /// Takes the next message if that is simple, as on a queue
    /// ([`QueueConsumer::next_in_order`](crate::queue::QueueConsumer::next_in_order)): it was published, this member has
    /// joined, and nobody takes messages away from it. `None` says nothing; [`next`](Self::next) finds out.
    #[inline]
    pub fn next_in_order<'a>(&mut self, room: impl FnOnce(u32) -> Option<&'a mut [u64; ENTRY_WORDS]>) -> Option<Claim> {
        if self.lossy || self.cursor == 0 {
            return None;
        }
        let (slot, generation) = self.reader.copy_position(self.cursor, room)?;
        let sequence = self.cursor;
        self.cursor += 1;
        self.reader.prefetch(self.cursor);
        Some(Claim { sequence, slot, generation, attempts: 0, word: SlotWord::full(generation, 0) })
    }

    /// Takes the next message. `scan` also looks at the slots themselves, for a message that was committed by a
    /// producer that died before it wrote the position entry.
    ///
    /// # Errors
    /// A word that no producer writes that keeps to the protocol.
    pub fn next(&mut self, scan: bool, may_hold: impl Fn(usize) -> bool) -> Result<Next, Defect> {
        if !self.joined() {
            return Ok(Next::Empty);
        }
        let mut passes = self.reader.passes();
        for _ in 0..self.reader.patience() {
            let (slot, generation) = match self.reader.position(self.cursor)? {
                Position::Void => {
                    self.cursor += 1;
                    continue;
                }
                Position::At { slot, generation } => (slot, generation),
                Position::NotYet if !scan => return Ok(Next::Empty),
                Position::Overtaken(later) if !self.lossy => {
                    return Err(Defect::bounded("position.stamp", later, "at most the cursor,", self.cursor));
                }
                Position::Overtaken(_) if passes == 0 => return Ok(Next::Empty),
                place @ (Position::NotYet | Position::Overtaken(_)) => match self.oldest(&mut passes)? {
                    Some((sequence, slot, generation)) => {
                        // Whatever lies between was revoked and its slot used again: there is nothing to settle.
                        self.miss(sequence - self.cursor);
                        self.cursor = sequence;
                        (slot, generation)
                    }
                    None => match place {
                        Position::Overtaken(later) => {
                            let oldest = later.saturating_sub(self.reader.positions() - 1).max(self.cursor + 1);
                            self.miss(oldest - self.cursor);
                            self.cursor = oldest;
                            continue;
                        }
                        _ => return Ok(Next::Empty),
                    },
                },
            };
            let class = self.reader.plan().class_of(slot).map_or(0, |(class, _)| class);
            if !may_hold(class) {
                return Ok(Next::AtQuota(class));
            }
            let sequence = self.cursor;
            self.cursor += 1;
            if self.lossy && !self.hold(slot, generation)? {
                self.miss(1);
                continue;
            }
            let word = SlotWord::full(generation, 0);
            return Ok(Next::Claimed(Claim { sequence, slot, generation, attempts: 0, word }));
        }
        Ok(Next::Empty)
    }

    fn miss(&mut self, messages: u64) {
        self.missed += messages;
        self.part.count(at::MISSED, messages);
    }

    /// Lossy: HELD, unless the producer was first.
    fn hold(&self, slot: u32, generation: u32) -> Result<bool, Defect> {
        let cell = self.part.grant(slot);
        // ORDER none, Relaxed: decided by the CAS below.
        let mut old = cell.load(Ordering::Relaxed);
        let held = Grant { state: GrantState::Held, generation }.raw();
        for _ in 0..HOLD_TRIES {
            let grant = Grant::checked(old)?;
            if grant.generation.wrapping_sub(generation) < 1 << 31 && grant.state != GrantState::Never {
                // Settled in this generation, or the slot is in a later one already.
                return Ok(false);
            }
            // ORDER E7 revoke, Relaxed: hold and revoke exclude each other, and nothing else travels: the message arrived
            // with its position (E3) or its slot word (E1).
            match cell.compare_exchange(old, held, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(true),
                Err(found) => old = found,
            }
        }
        Err(Defect::new("grant", old, "a word that only a revoke changes"))
    }

    /// The committed message of the lowest sequence from the cursor on that is not settled: a message that two looks
    /// agree on. While the first looked at the slots one after the other, an earlier message may have been published in
    /// one that it had passed already; that was before the one it found, so the second sees it.
    fn oldest(&self, passes: &mut u64) -> Result<Option<(u64, u32, u32)>, Defect> {
        let mut seen = None;
        while *passes > 0 {
            *passes -= 1;
            match (self.lowest()?, seen) {
                (Some(found), _) if found.0 == self.cursor => return Ok(Some(found)),
                (Some(found), Some(seen)) if found.0 <= seen => return Ok(Some(found)),
                (Some(found), _) => seen = Some(found.0),
                (None, _) => return Ok(None),
            }
        }
        Ok(None)
    }

    fn lowest(&self) -> Result<Option<(u64, u32, u32)>, Defect> {
        let mut best: Option<(u64, u32, u32)> = None;
        for slot in 0..self.reader.plan().slots {
            let index = self.reader.plan().slot_word + slot as usize * SLOT_WORD_STRIDE;
            // ORDER E1 commit, Acquire: the descriptor arrives with FULL.
            let word = SlotWord::checked(self.reader.load(index, Ordering::Acquire))?;
            if word.state() != SlotState::Full {
                continue;
            }
            let sequence = self.reader.sequence_of(slot)?;
            // ORDER none, Acquire: orders the second look at the word after the sequence.
            crate::sync::fence(Ordering::Acquire);
            let unchanged = self.reader.peek(index) == word.raw();
            // ORDER none, Relaxed: our own word, or revoked meanwhile, which `hold` finds out.
            let grant = Grant::checked(self.part.grant(slot).load(Ordering::Relaxed))?;
            let ours = unchanged && sequence >= self.cursor && !grant.settles(word.generation());
            if ours && best.is_none_or(|(lowest, ..)| sequence < lowest) {
                best = Some((sequence, slot, word.generation()));
            }
        }
        Ok(best)
    }

    /// Says that nothing from the cursor on is wanted any more.
    pub fn leave(&mut self) {
        // Before the producer said from where on we are owed messages, we leave at whatever that will be.
        let cursor = if self.joined() { self.cursor } else { 0 };
        self.part.store(at::LEFT, cursor + 1);
    }
}

/// Ends the lease on a slot: its generation is settled for this member. True means that the producer sleeps: it is to
/// be woken through the member's `producer_wake_word`, which was changed already. `fences` says whether wakers must
/// execute a fence ([`Reader::fences`]).
#[must_use = "a producer that sleeps sleeps on until it is woken"]
pub fn settle<W: Words>(part: &Member<W>, reader: &Reader<W>, slot: u32, generation: u32, fences: bool) -> bool {
    let done = Grant { state: GrantState::Done, generation };
    // ORDER E2 release, Release: all reads of the slot are over before the producer sees DONE.
    part.grant(slot).store(done.raw(), Ordering::Release);
    waker_fence(fences);
    if reader.peek(W_PARKED) == 0 {
        return false;
    }
    // ORDER none, Relaxed: only compared, by the futex; the producer's barrier makes it see the release (E5).
    part.producer_wake_word().fetch_add(1, Ordering::Relaxed);
    true
}
