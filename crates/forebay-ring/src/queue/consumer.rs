//! A consumer of a queue: follows positions, scans for what came back, claims.

use forebay_layout::{Defect, entry::ENTRY_WORDS};

use crate::{
    Claim, MemberId, Pool, Reader, SlotState, SlotWord,
    reader::{Position, SEQUENCES},
    sync::Ordering,
    words::Words,
};

/// A look at the slot words is forced after this many claims, so that on a ring that is never empty a message that was
/// given back is not passed by for ever, even if its giver died before it counted it.
const SCAN_EVERY: u32 = 64 * LOOK_EVERY;
/// A claim is tried this often while others claim the same message and give it back at the same time.
const CLAIM_TRIES: u32 = 64;
/// Messages of others that one call passes over.
const PASSED_AT_ONCE: u32 = 64;
/// The counter of returns is looked at after this many claims.
const LOOK_EVERY: u32 = 16;

/// What a look at the queue gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// This message is yours.
    Claimed(Claim),
    /// There is none.
    Empty,
    /// There is one, in a class of which this consumer holds all it may.
    AtQuota(usize),
}

/// A consumer of a queue.
#[derive(Debug)]
pub struct QueueConsumer<W> {
    reader: Reader<W>,
    pool: Pool<W>,
    me: MemberId,
    by_store: bool,
    cursor: u64,
    /// From this sequence on no message was ever claimed, by this or an earlier consumer; `u64::MAX` if there are others.
    fresh: u64,
    returns: u64,
    claims: u32,
    /// Others take messages of this queue: the last one that was tried, or passed over, was somebody's.
    crowded: bool,
}

impl<W: Words> QueueConsumer<W> {
    /// A consumer that starts at the oldest message there may be. `by_store` as the geometry says
    /// ([`claims_by_store`](forebay_layout::geometry::Geometry::claims_by_store)).
    pub fn new(reader: Reader<W>, pool: Pool<W>, me: MemberId, by_store: bool) -> Self {
        let head = reader.head().min(SEQUENCES);
        let oldest = head.saturating_sub(reader.positions()).max(1);
        // The message `head` may have been published, and claimed by who was here before us, though its producer has not
        // counted it yet.
        let fresh = if by_store { head + 1 } else { u64::MAX };
        // The first look scans: what was given back before we came has no position ahead of us.
        let returns = u64::MAX;
        Self { reader, pool, me, by_store, cursor: oldest, fresh, returns, claims: 0, crowded: false }
    }

    /// The ring.
    pub fn reader(&self) -> &Reader<W> {
        &self.reader
    }

    /// The pool.
    pub fn pool(&self) -> &Pool<W> {
        &self.pool
    }

    /// This member.
    pub fn me(&self) -> MemberId {
        self.me
    }

    /// The next sequence this consumer will look up.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Whether it is worth while to call [`next`](Self::next): for who asks over and over. Misses messages that have no
    /// position ahead of this consumer, so `next` must be called now and then all the same.
    #[must_use]
    pub fn may_have_next(&self) -> bool {
        self.reader.may_have(self.cursor)
    }

    /// Takes the next message if that is simple: it is the one at the cursor, published there and delivered for the first
    /// time, which most are. Its position entry is copied into the room that the caller has for a message in its slot,
    /// and has none for a slot that does not exist, is leased, or may not be held now. `None` says nothing;
    /// [`next`](Self::next) finds out.
    #[inline]
    pub fn next_in_order<'a>(&mut self, room: impl FnOnce(u32) -> Option<&'a mut [u64; ENTRY_WORDS]>) -> Option<Claim> {
        let claims = self.claims.wrapping_add(1);
        if claims.is_multiple_of(LOOK_EVERY) && self.is_look_due(claims) || self.by_store && self.cursor < self.fresh {
            return None;
        }
        if self.crowded {
            self.pass_over()?;
        }
        let (slot, generation) = self.reader.copy_position(self.cursor, room)?;
        let full = SlotWord::full(generation, 0);
        let word = full.claimed_by(self.me);
        let cell = self.pool.slot(slot);
        if self.by_store {
            // It was published and never claimed, so it is FULL: nobody but us could have changed that, and not looking
            // saves waiting for the line.
            // ORDER E3 position, by `copy_position`: the commit comes with the stamp, so this store replaces FULL. E8 life,
            // Release: who reads our name here finds us alive.
            cell.store(word.raw(), Ordering::Release);
        } else {
            // The generation says that the entry copied before is the message's that is claimed here.
            // ORDER E1 commit, by the stamp. E8 life, Release: as in `claim`.
            let swapped = cell.compare_exchange(full.raw(), word.raw(), Ordering::Release, Ordering::Relaxed);
            if swapped.is_err() {
                self.crowded = true;
                return None;
            }
        }
        self.claims = claims;
        let sequence = self.cursor;
        self.cursor += 1;
        self.reader.prefetch(self.cursor);
        Some(Claim { sequence, slot, generation, attempts: 0, word })
    }

    /// Takes the next message. First deliveries come in the order of publishing; what came back comes when a scan finds
    /// it: `scan` forces one if the positions give nothing. `may_hold` says whether this consumer may hold one more
    /// slot of a class.
    ///
    /// # Errors
    /// A word that no peer writes that keeps to the protocol.
    pub fn next(&mut self, scan: bool, may_hold: impl Fn(usize) -> bool) -> Result<Next, Defect> {
        self.claims = self.claims.wrapping_add(1);
        if self.claims.is_multiple_of(LOOK_EVERY)
            && self.is_look_due(self.claims)
            && let found @ (Next::Claimed(_) | Next::AtQuota(_)) = self.scan(&may_hold)?
        {
            return Ok(found);
        }
        match self.follow(&may_hold)? {
            Next::Empty if scan || self.pool.returns() != self.returns => self.scan(&may_hold),
            next => Ok(next),
        }
    }

    /// Goes on to the next message that nobody had yet. For who has lost one: a look at a word leaves it to its owner, which
    /// a CAS in vain does not.
    fn pass_over(&mut self) -> Option<()> {
        let first = self.cursor;
        for _ in 0..PASSED_AT_ONCE {
            let (slot, generation) = self.reader.place_of(self.cursor)?;
            // ORDER none, Relaxed: the commit came with the position, so this is FULL or what became of it; the claim is by
            // CAS.
            let word = SlotWord::checked(self.pool.slot(slot).load(Ordering::Relaxed)).ok()?;
            if word == SlotWord::full(generation, 0) {
                self.crowded = self.cursor != first;
                return Some(());
            }
            if word.generation() == generation && word.state() == SlotState::Full {
                return None;
            }
            self.cursor += 1;
        }
        None
    }

    /// Whether to look at all slot words before claim number `claims`, a multiple of [`LOOK_EVERY`].
    fn is_look_due(&self, claims: u32) -> bool {
        self.pool.returns() != self.returns || claims.is_multiple_of(SCAN_EVERY)
    }

    fn follow(&mut self, may_hold: &impl Fn(usize) -> bool) -> Result<Next, Defect> {
        let mut passes = self.reader.passes();
        for _ in 0..self.reader.patience() {
            match self.reader.position(self.cursor)? {
                Position::NotYet => return Ok(Next::Empty),
                Position::Void => self.cursor += 1,
                Position::Overtaken(_) if passes == 0 => return Ok(Next::Empty),
                Position::Overtaken(later) => {
                    passes -= 1;
                    if let found @ (Next::Claimed(_) | Next::AtQuota(_)) = self.scan(may_hold)? {
                        return Ok(found);
                    }
                    // Nothing FULL is left of what was skipped; go on with the oldest entry there is.
                    let oldest = later.saturating_sub(self.reader.positions() - 1);
                    self.cursor = oldest.max(self.cursor + 1);
                }
                Position::At { slot, generation } => match self.claim(slot, Some(generation), may_hold)? {
                    Some(Next::Claimed(claim)) => {
                        let claim = Claim { sequence: self.cursor, ..claim };
                        self.cursor += 1;
                        return Ok(Next::Claimed(claim));
                    }
                    Some(other) => return Ok(other),
                    None => self.cursor += 1,
                },
            }
        }
        self.scan(may_hold)
    }

    /// Looks at every slot word; claims the FULL one of the lowest sequence.
    fn scan(&mut self, may_hold: &impl Fn(usize) -> bool) -> Result<Next, Defect> {
        let returns = self.pool.returns();
        let mut seen = None;
        // Each round that does not end here lost a message to another consumer, or to the producer's next use.
        for _ in 0..self.reader.passes() {
            let Some((sequence, slot, generation)) = self.lowest()? else {
                self.returns = returns;
                return Ok(Next::Empty);
            };
            // Ahead of the cursor, a second look has to agree: an earlier message may have been published in a slot
            // that the first had passed already. It was published before this one, so by now it is visible.
            if sequence > self.cursor && seen.is_none_or(|seen| sequence > seen) {
                seen = Some(sequence);
                continue;
            }
            match self.claim(slot, Some(generation), may_hold)? {
                Some(Next::Claimed(claim)) => {
                    // Its position may still be ahead of us.
                    if self.by_store {
                        self.fresh = self.fresh.max(sequence + 1);
                    }
                    return Ok(Next::Claimed(Claim { sequence, ..claim }));
                }
                Some(other) => return Ok(other),
                None => {}
            }
        }
        Ok(Next::Empty)
    }

    /// The FULL slot of the lowest sequence: (sequence, slot, generation). The slots are looked at one after the other.
    fn lowest(&self) -> Result<Option<(u64, u32, u32)>, Defect> {
        let mut best: Option<(u64, u32, u32)> = None;
        for slot in 0..self.pool.slots() {
            let word = self.word(slot)?;
            if word.state() == SlotState::Full {
                let sequence = self.reader.sequence_of(slot)?;
                if best.is_none_or(|(lowest, ..)| sequence < lowest) {
                    best = Some((sequence, slot, word.generation()));
                }
            }
        }
        Ok(best)
    }

    fn word(&self, slot: u32) -> Result<SlotWord, Defect> {
        // ORDER E1 commit / E4 return, Acquire: a FULL seen here comes with its descriptor, which the scan reads.
        SlotWord::checked(self.pool.slot(slot).load(Ordering::Acquire))
    }

    /// Claims `slot` if it is FULL in `generation`; `None` if it is not, or not any more.
    fn claim(
        &self,
        slot: u32,
        generation: Option<u32>,
        may_hold: &impl Fn(usize) -> bool,
    ) -> Result<Option<Next>, Defect> {
        let mut word = self.word(slot)?;
        for _ in 0..CLAIM_TRIES {
            if word.state() != SlotState::Full || generation.is_some_and(|own| own != word.generation()) {
                return Ok(None);
            }
            let class = self.reader.plan().class_of(slot).map_or(0, |(class, _)| class);
            if !may_hold(class) {
                return Ok(Some(Next::AtQuota(class)));
            }
            let claimed = word.claimed_by(self.me);
            let cell = self.pool.slot(slot);
            if self.by_store {
                // ORDER E8 life, Release: who reads our name here finds us alive. There is no second consumer to race with.
                cell.store(claimed.raw(), Ordering::Release);
            } else {
                // ORDER E1 commit / E4 return, Acquire: the message arrives with the claim, also if it was claimed and
                // given back since we looked. E8 life, Release: who reads our name here finds us alive. On failure, Relaxed:
                // the next round's claim acquires.
                let swapped = cell.compare_exchange(word.raw(), claimed.raw(), Ordering::AcqRel, Ordering::Relaxed);
                if let Err(found) = swapped {
                    word = SlotWord::checked(found)?;
                    continue;
                }
            }
            return Ok(Some(Next::Claimed(Claim {
                sequence: 0,
                slot,
                generation: word.generation(),
                attempts: word.attempts(),
                word: claimed,
            })));
        }
        Ok(None)
    }
}
