//! The queue's slot word: one 64-bit word that alone decides what a slot is. Nobody else sees a bit mask.
//!
//! ```text
//!   bits  0…2  state        3…7  member        8…23  incarnation (WRITING: epoch)
//!        24…31 attempts    32…63 generation
//!
//!            ┌────────── producer ──────────┐
//!            ▼                              │
//!   FREE → WRITING ──commit──▶ FULL ──claim──▶ CLAIMED ──ack──▶ ACKED
//!            ▲                  ▲ │              │  │ │            │
//!            │      (drop-oldest)─┘  give back ──┘  │ └─ attempts   │
//!            │                                      │    spent: DEAD │
//!            └──────────────── DONE ◀───────────────┴───────────────┘
//! ```
//!
//! Attempts count deliveries that ended without an ack. A generation names one use of a slot; it starts at 1 and grows
//! with each WRITING. A claim that wraps around it claims a real message all the same, because the descriptor is copied
//! after the claim.

use forebay_layout::Defect;

use crate::MemberId;

/// What a slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SlotState {
    /// Nothing in it, the producer's to take.
    Free = 0,
    /// The producer writes it.
    Writing = 1,
    /// Published, nobody's.
    Full = 2,
    /// A member has it and has not acked.
    Claimed = 3,
    /// A member acked it and still reads it.
    Acked = 4,
    /// Read to the end, the producer's to take.
    Done = 5,
    /// Given up after too many attempts; the producer takes the message out before it uses the slot again.
    Dead = 6,
}

/// A slot word's value.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlotWord(u64);

impl SlotWord {
    /// The word of a slot that was never used.
    pub const FREE: Self = Self(0);

    fn new(state: SlotState, member: u8, life: u16, attempts: u8, generation: u32) -> Self {
        Self(
            state as u64
                | u64::from(member & 31) << 3
                | u64::from(life) << 8
                | u64::from(attempts) << 24
                | u64::from(generation) << 32,
        )
    }

    /// A value read from shared memory.
    ///
    /// # Errors
    /// State 7, which no verb makes.
    pub fn checked(raw: u64) -> Result<Self, Defect> {
        if raw & 7 == 7 { Err(Defect::new("slot_word.state", 7, "a state from 0 to 6")) } else { Ok(Self(raw)) }
    }

    /// The bits, for the CAS that expects exactly them.
    #[must_use]
    pub fn raw(self) -> u64 {
        self.0
    }

    /// What the slot is.
    #[must_use]
    pub fn state(self) -> SlotState {
        match self.0 & 7 {
            0 => SlotState::Free,
            1 => SlotState::Writing,
            2 => SlotState::Full,
            3 => SlotState::Claimed,
            4 => SlotState::Acked,
            6 => SlotState::Dead,
            // 7 cannot be: `checked` refuses it and no verb makes it.
            _ => SlotState::Done,
        }
    }

    /// Who claimed it, if somebody did.
    #[must_use]
    pub fn owner(self) -> Option<MemberId> {
        matches!(self.state(), SlotState::Claimed | SlotState::Acked)
            .then_some(MemberId { index: (self.0 >> 3 & 31) as u8, incarnation: (self.0 >> 8) as u16 })
    }

    /// Which use of the slot this is.
    #[must_use]
    pub fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Deliveries that ended without an ack.
    #[must_use]
    pub fn attempts(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// The producer of life `epoch` takes the slot for its next use.
    #[must_use]
    pub fn writing(epoch: u64, generation: u32) -> Self {
        Self::new(SlotState::Writing, 0, epoch as u16, 0, generation)
    }

    /// Committed, or (with attempts) given back.
    #[must_use]
    pub fn full(generation: u32, attempts: u8) -> Self {
        Self::new(SlotState::Full, 0, 0, attempts, generation)
    }

    /// Nothing in it, but used before.
    #[must_use]
    pub fn free(generation: u32) -> Self {
        Self::new(SlotState::Free, 0, 0, 0, generation)
    }

    /// Read to the end.
    #[must_use]
    pub fn done(generation: u32) -> Self {
        Self::new(SlotState::Done, 0, 0, 0, generation)
    }

    /// FULL, taken by `member`.
    #[must_use]
    pub fn claimed_by(self, member: MemberId) -> Self {
        Self::new(SlotState::Claimed, member.index, member.incarnation, self.attempts(), self.generation())
    }

    /// CLAIMED, acked while it is still read.
    #[must_use]
    pub fn acked(self) -> Self {
        Self(self.0 & !7 | SlotState::Acked as u64)
    }

    /// CLAIMED, delivered in vain once more: FULL again, or DEAD when `max_attempts` (0: no limit) are spent.
    #[must_use]
    pub fn given_back(self, max_attempts: u32) -> Self {
        let attempts = self.attempts().saturating_add(1);
        let spent = max_attempts != 0 && u32::from(attempts) >= max_attempts;
        let state = if spent { SlotState::Dead } else { SlotState::Full };
        Self::new(state, 0, 0, attempts, self.generation())
    }
}

impl std::fmt::Debug for SlotWord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}(generation {}, attempts {}", self.state(), self.generation(), self.attempts())?;
        if let Some(owner) = self.owner() {
            write!(f, ", member {}.{}", owner.index, owner.incarnation)?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_walks_through_its_states() {
        let me = MemberId { index: 31, incarnation: u16::MAX };
        let full = SlotWord::full(u32::MAX, 0);
        let claimed = full.claimed_by(me);
        assert_eq!((claimed.state(), claimed.owner()), (SlotState::Claimed, Some(me)));
        assert_eq!(claimed.acked().owner(), Some(me));
        assert_eq!(claimed.acked().state(), SlotState::Acked);
        let back = claimed.given_back(2);
        assert_eq!((back.state(), back.attempts(), back.generation()), (SlotState::Full, 1, u32::MAX));
        assert_eq!(back.claimed_by(me).given_back(2).state(), SlotState::Dead);
        let mut word = full;
        for _ in 0..300 {
            word = word.claimed_by(me).given_back(0);
        }
        assert_eq!((word.state(), word.attempts()), (SlotState::Full, 255));
        assert!(SlotWord::checked(7).is_err());
    }

    #[test]
    fn a_word_is_shown_as_what_it_says() {
        let full = SlotWord::full(7, 2);
        assert_eq!(format!("{full:?}"), "Full(generation 7, attempts 2)");
        let claimed = full.claimed_by(MemberId { index: 3, incarnation: 9 });
        assert_eq!(format!("{claimed:?}"), "Claimed(generation 7, attempts 2, member 3.9)");
    }
}
