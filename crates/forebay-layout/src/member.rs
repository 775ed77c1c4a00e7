//! One consumer's part: in the pool object of a queue, in an object of its own on a broadcast ring.
//!
//! Word offsets count from the start of the part. n = number of slots.
//!
//! ```text
//!   0x000  identity   word 0 IDENTITY, 1 PID, 2 ATTACHED_UNIX_NS, 3 FLAGS, 4.. label      producer, before Admitted
//!   0x080  line W     word 16 WAKE (futex), 17 PARKED (broadcast)                         waker adds / sleeper sets
//!   0x100  line C     word 32 CURSOR, 33.. counters, 40 LEFT                              the member
//!   0x180  line P     word 48 PRODUCER_WAKE (broadcast: the producer sleeps on it)        the member adds
//!   0x200  since      n words: CLOCK_MONOTONIC ns when the lease of slot i began, 0 none   the member
//!   …      grants     n words, broadcast only: see `forebay-ring`
//! ```

/// Incarnation << 8 | state (see [`state`]).
pub const IDENTITY: usize = 0;
/// The member's pid as the producer saw it; for people to read, never decides anything.
pub const PID: usize = 1;
/// When it attached, nanoseconds since the Unix epoch.
pub const ATTACHED_UNIX_NS: usize = 2;
/// See [`flags`].
pub const FLAGS: usize = 3;
/// First word of the label, zero-padded UTF-8.
pub const LABEL: usize = 4;
/// Words of the label.
pub const LABEL_WORDS: usize = 8;
/// The member's wake word.
pub const WAKE: usize = 16;
/// Broadcast: 1 while the member sleeps.
pub const PARKED: usize = 17;
/// Next sequence the member looks at.
pub const CURSOR: usize = 32;
/// Messages received.
pub const RECEIVED: usize = 33;
/// Messages acked.
pub const ACKED: usize = 34;
/// Messages given back.
pub const NACKED: usize = 35;
/// Messages of dead members that this member put back.
pub const RECOVERED: usize = 36;
/// Broadcast with drop-oldest: messages revoked before this member took them.
pub const MISSED: usize = 37;
/// Broadcast: 1 + final cursor once the member has left, 0 before.
pub const LEFT: usize = 40;
/// Broadcast: the member adds 1 when it released a slot while the producer sleeps.
pub const PRODUCER_WAKE: usize = 48;
/// First of the lease times.
pub const SINCE: usize = 64;

/// Values of the low byte of [`IDENTITY`].
pub mod state {
    /// Nobody.
    pub const EMPTY: u64 = 0;
    /// Index handed out, not yet Ready.
    pub const JOINING: u64 = 1;
    /// Attached.
    pub const ACTIVE: u64 = 2;
    /// Said goodbye; may still hold leases.
    pub const LEAVING: u64 = 3;
}

/// Bits of [`FLAGS`].
pub mod flags {
    /// The member sleeps in an epoll on its eventfd rather than on its wake word.
    pub const EVENTFD: u64 = 1;
}

/// Words of one member's part.
#[must_use]
pub const fn words(slots: u64, grants: bool) -> Option<u64> {
    let per_slot = if grants { 2 } else { 1 };
    match slots.checked_mul(per_slot) {
        Some(words) => words.checked_add(SINCE as u64),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_a_word_a_slot_and_two_with_grants() {
        assert_eq!((words(3, false), words(3, true), words(0, true)), (Some(67), Some(70), Some(64)));
        assert_eq!((words(u64::MAX, false), words(1 << 63, true)), (None, None));
    }
}
