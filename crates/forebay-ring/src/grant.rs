//! A broadcast member's word per slot. The old value is the offer: a member owes a generation until its word says DONE
//! or REVOKED of that generation.
//!
//! ```text
//!   bits 0…1  state: 0 never, 1 DONE, 2 HELD, 3 REVOKED          bits 32…63  generation
//!
//!   lossless:  (anything older) ──member stores──▶ DONE
//!   lossy:     (anything older) ──member CASes──▶ HELD ──member stores──▶ DONE
//!                               └─producer CASes─▶ REVOKED
//! ```

use forebay_layout::Defect;

/// What a grant word says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum GrantState {
    /// Nothing yet.
    Never = 0,
    /// The member is through with this generation.
    Done = 1,
    /// The member reads it (lossy rings).
    Held = 2,
    /// The producer took it away before the member held it (lossy rings).
    Revoked = 3,
}

/// A grant word's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// What it says.
    pub state: GrantState,
    /// Of which generation.
    pub generation: u32,
}

impl Grant {
    /// The word for this value.
    #[must_use]
    pub fn raw(self) -> u64 {
        self.state as u64 | u64::from(self.generation) << 32
    }

    /// A value read from shared memory.
    ///
    /// # Errors
    /// Reserved bits are set.
    pub fn checked(raw: u64) -> Result<Self, Defect> {
        if raw & 0xffff_fffc != 0 {
            return Err(Defect::new("grant", raw, "reserved bits 0"));
        }
        let state = match raw & 3 {
            0 => GrantState::Never,
            1 => GrantState::Done,
            2 => GrantState::Held,
            _ => GrantState::Revoked,
        };
        Ok(Self { state, generation: (raw >> 32) as u32 })
    }

    /// True if nothing of `generation` is owed or held any more.
    #[must_use]
    pub fn settles(self, generation: u32) -> bool {
        self.generation == generation && matches!(self.state, GrantState::Done | GrantState::Revoked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_reads_back_and_only_an_end_settles() {
        for (code, state) in
            [GrantState::Never, GrantState::Done, GrantState::Held, GrantState::Revoked].into_iter().enumerate()
        {
            let grant = Grant { state, generation: 7 };
            assert_eq!((grant.raw(), Grant::checked(grant.raw())), (code as u64 | 7 << 32, Ok(grant)));
            assert_eq!(grant.settles(7), matches!(state, GrantState::Done | GrantState::Revoked));
            assert!(!grant.settles(6) && !grant.settles(8));
        }
        assert_eq!(Grant::checked(4).unwrap_err().field, "grant");
        assert!(Grant::checked(1 << 31).is_err());
    }
}
