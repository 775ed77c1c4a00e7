//! The producer of a broadcast ring: who is a member from which sequence on, and which slots nobody is owed.

use forebay_layout::{MAX_CONSUMERS, header::W_PARKED, member as at};

use crate::{
    Counter, Draft, Grant, GrantState, Member, Outstanding, Publisher, SlotWord, sync::Ordering, words::Words,
};

/// The producer of a broadcast ring. Only the publishing thread has it, so nobody else can change who is offered what.
#[derive(Debug)]
pub struct BroadcastProducer<W> {
    publisher: Publisher<W>,
    ring: W,
    members: Vec<Option<Joined<W>>>,
    /// The places in `members` that are taken, as bits.
    joined: u32,
}

#[derive(Debug)]
struct Joined<W> {
    part: Member<W>,
    from: u64,
}

impl<W: Words> Joined<W> {
    fn owes(&self, slot: u32, sequence: u64, generation: u32) -> bool {
        let left = self.part.peek(at::LEFT);
        if sequence < self.from || left != 0 && sequence >= left - 1 {
            return false;
        }
        // ORDER E2 release, Acquire: if it says DONE, the member's reads are over.
        let grant = Grant::checked(self.part.grant(slot).load(Ordering::Acquire));
        !grant.is_ok_and(|grant| grant.settles(generation))
    }
}

impl<W: Words> BroadcastProducer<W> {
    /// Wraps the shadow; its slot words are those in the ring object.
    pub fn new(publisher: Publisher<W>, ring: W) -> Self {
        Self { publisher, ring, members: (0..MAX_CONSUMERS).map(|_| None).collect(), joined: 0 }
    }

    /// The shadow.
    pub fn publisher(&self) -> &Publisher<W> {
        &self.publisher
    }

    /// Counts.
    pub fn count(&self, counter: Counter, add: u64) {
        self.publisher.count(counter, add);
    }

    fn join_word(&self, index: u8) -> usize {
        self.publisher.plan().join_word + 2 * usize::from(index)
    }

    /// From the next publish on, member `index` is owed every message. The member must hold its lock byte.
    pub fn admit(&mut self, index: u8, incarnation: u16, part: Member<W>) {
        let from = self.publisher.next_sequence();
        self.seat(index, part, from);
        // ORDER E6 join, Release: that the last holder's sequence is gone arrives with the incarnation. That one may have
        // been a dead producer's, whom nobody removed.
        self.ring.word(self.join_word(index)).store(0, Ordering::Relaxed);
        self.ring.word(self.join_word(index) + 1).store(incarnation.into(), Ordering::Release);
        // ORDER none, Relaxed: a member that sees it late looks again, at the latest when the publish wakes it (E5).
        self.ring.word(self.join_word(index)).store(from, Ordering::Relaxed);
    }

    /// A successor's: the member was let in by a dead producer and goes on. If that died before it said from where on,
    /// the member starts at the next publish, as any new one.
    pub fn readmit(&mut self, index: u8, incarnation: u16, part: Member<W>) {
        // ORDER none, Relaxed: written by a dead producer, whose lock we hold now.
        let read = |word: usize| self.ring.word(word).load(Ordering::Relaxed);
        let from = read(self.join_word(index));
        if from != 0 && read(self.join_word(index) + 1) == u64::from(incarnation) {
            self.seat(index, part, from);
        } else {
            self.remove(index);
            self.admit(index, incarnation, part);
        }
    }

    /// Member `index` is owed nothing any more. Only when its lock byte is free, or it left and holds nothing.
    pub fn remove(&mut self, index: u8) {
        self.members[usize::from(index)] = None;
        self.joined &= !(1 << index);
        // ORDER none, Relaxed: nobody has the index now; its next holder waits for its own incarnation.
        self.ring.word(self.join_word(index)).store(0, Ordering::Relaxed);
    }

    fn seat(&mut self, index: u8, part: Member<W>, from: u64) {
        self.members[usize::from(index)] = Some(Joined { part, from });
        self.joined |= 1 << index;
    }

    /// Who is a member. Asked with each message, so that it takes as long as there are members.
    #[inline]
    fn all(&self) -> impl Iterator<Item = (u8, &Joined<W>)> {
        let mut left = self.joined;
        std::iter::from_fn(move || {
            let index = left.trailing_zeros();
            left &= left.wrapping_sub(1);
            Some((index as u8, self.members.get(index as usize)?.as_ref()?))
        })
    }

    /// The members there are, left ones that may still hold leases included.
    pub fn members(&self) -> impl Iterator<Item = (u8, &Member<W>)> {
        self.all().map(|(index, joined)| (index, &joined.part))
    }

    /// Members that have not left.
    pub fn receivers(&self) -> usize {
        self.members().filter(|(_, part)| part.peek(at::LEFT) == 0).count()
    }

    fn is_owed(&self, slot: u32, sequence: u64, generation: u32) -> bool {
        self.all().any(|(_, joined)| joined.owes(slot, sequence, generation))
    }

    /// Which members are owed `slot`'s message, as bits.
    pub fn owed_by(&self, slot: u32) -> u32 {
        let (Outstanding::Published(sequence), generation) = self.publisher.shadow(slot) else { return 0 };
        self.all().map(|(i, joined)| u32::from(joined.owes(slot, sequence, generation)) << i).sum()
    }

    /// Looks for a slot that nobody is owed, in `class` and then in the larger ones; it is WRITING afterwards.
    #[inline]
    pub fn acquire(&mut self, class: usize) -> Option<u32> {
        // With releases in order the first one is free.
        let first = self.publisher.in_turn(class);
        if self.is_free(first) {
            self.publisher.begin(first);
            return Some(first);
        }
        let found = (class..self.publisher.plan().classes.len())
            .find_map(|class| self.publisher.turn(class).find(|&slot| self.is_free(slot)))?;
        self.publisher.begin(found);
        Some(found)
    }

    #[inline]
    fn is_free(&self, slot: u32) -> bool {
        match self.publisher.shadow(slot) {
            (Outstanding::Loaned, _) => false,
            (Outstanding::Free, _) => true,
            (Outstanding::Published(sequence), generation) => !self.is_owed(slot, sequence, generation),
        }
    }

    /// Takes the oldest message that no member holds away from all that are owed it, of `class` or a larger one, and its
    /// slot with it. Counted once as dropped, and by each member as missed.
    pub fn drop_oldest(&mut self, class: usize) -> Option<u32> {
        let first = self.publisher.plan().classes.get(class)?.first_slot;
        let mut published: Vec<(u64, u32, u32)> = self
            .publisher
            .shadows()
            .filter_map(|(slot, state, generation)| match state {
                Outstanding::Published(sequence) if slot >= first => Some((sequence, slot, generation)),
                _ => None,
            })
            .collect();
        published.sort_unstable();
        for (sequence, slot, generation) in published {
            if self.revoke(slot, sequence, generation) {
                self.publisher.count(Counter::Dropped, 1);
                self.publisher.begin(slot);
                return Some(slot);
            }
        }
        None
    }

    /// Revokes a message from everybody, unless somebody holds it. Looks for holders first, so that a message is not
    /// taken from some members while another keeps its slot.
    fn revoke(&self, slot: u32, sequence: u64, generation: u32) -> bool {
        let owing = || self.all().map(|(_, joined)| joined).filter(|joined| joined.owes(slot, sequence, generation));
        let held = Grant { state: GrantState::Held, generation }.raw();
        // ORDER none, Relaxed: decided by the CAS below.
        if owing().any(|joined| joined.part.grant(slot).load(Ordering::Relaxed) == held) {
            return false;
        }
        let revoked = Grant { state: GrantState::Revoked, generation }.raw();
        owing().all(|joined| {
            let cell = joined.part.grant(slot);
            // ORDER none, Relaxed: decided by the CAS below.
            let old = cell.load(Ordering::Relaxed);
            old != held
                // ORDER E7 revoke / E2 release, Acquire: the word may be DONE, then the member's reads are over; before the
                // CAS, or in its stead.
                && match cell.compare_exchange(old, revoked, Ordering::Acquire, Ordering::Acquire) {
                    Ok(_) => true,
                    Err(found) => Grant::checked(found).is_ok_and(|grant| grant.settles(generation)),
                }
        })
    }

    /// Publishes a loan. With no member it is counted as dropped, and its slot is free at once.
    pub fn publish(&mut self, slot: u32, draft: &Draft<'_>) -> u64 {
        if self.receivers() == 0 {
            self.publisher.count(Counter::Dropped, 1);
        }
        let sequence = self.publisher.publish(slot, draft);
        // The next loan looks there first, and the members have the lines.
        if let Some(next) = self.publisher.upcoming(slot) {
            for (_, joined) in self.all() {
                joined.part.prefetch_grant(next);
            }
        }
        sequence
    }

    /// Gives a loan back.
    pub fn abandon(&mut self, slot: u32) {
        self.publisher.abandon(slot);
    }

    /// Takes the parked marks of all sleeping members and rings their bells; the caller wakes the members whose bits
    /// are returned.
    #[must_use = "members whose marks were taken sleep on until they are woken"]
    pub fn ring_bells(&self) -> u32 {
        let mut woken = 0;
        for (index, part) in self.members() {
            if part.take_parked() {
                part.ring_bell();
                woken |= 1 << index;
            }
        }
        woken
    }

    /// Says whether the producer sleeps. The caller then executes its barrier and looks again before it sleeps.
    pub fn set_parked(&self, parked: bool) {
        // ORDER E5 park, Relaxed: the barrier that follows orders it before the second look.
        self.ring.word(W_PARKED).store(parked.into(), Ordering::Relaxed);
    }

    /// Loans that were neither published nor abandoned.
    pub fn loaned(&self) -> u32 {
        self.publisher.shadows().filter(|(_, state, _)| *state == Outstanding::Loaned).count() as u32
    }

    /// Messages that somebody is owed or holds.
    pub fn outstanding(&self) -> u32 {
        self.outstanding_to(u32::MAX)
    }

    /// As [`outstanding`](Self::outstanding), of the members whose bits are set: others may be gone, and not removed yet.
    pub fn outstanding_to(&self, members: u32) -> u32 {
        self.publisher.shadows().filter(|&(slot, ..)| self.owed_by(slot) & members != 0).count() as u32
    }

    /// Messages that a member which is owed them has not received yet. What is received and only still read is not
    /// counted.
    pub fn undelivered(&self) -> u32 {
        self.undelivered_to(u32::MAX)
    }

    /// As [`undelivered`](Self::undelivered), of the members whose bits are set: others may be gone, and not removed yet.
    pub fn undelivered_to(&self, members: u32) -> u32 {
        let awaits = |slot: u32, sequence: u64, generation: u32| {
            self.all().filter(|(index, _)| members >> index & 1 == 1).any(|(_, joined)| {
                // A member's cursor is past what it received; before its first message it is 0.
                joined.part.peek(at::CURSOR) <= sequence && joined.owes(slot, sequence, generation)
            })
        };
        self.publisher
            .shadows()
            .filter(|&(slot, state, generation)| match state {
                Outstanding::Published(sequence) => awaits(slot, sequence, generation),
                _ => false,
            })
            .count() as u32
    }

    /// The word that says a slot is committed, for audits.
    pub fn peek_slot(&self, slot: u32) -> u64 {
        // ORDER none, Relaxed: for audits.
        SlotWord::checked(self.publisher.slot_word(slot).load(Ordering::Relaxed)).map_or(u64::MAX, SlotWord::raw)
    }
}
