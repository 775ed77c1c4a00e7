//! The queue kind's shared object: lines that all members may write, then the slot words, then the members' parts.
//!
//! ```text
//!   word   0  magic, stored last        all objects of a ring start with these four words
//!   word   1  object kind and index
//!   word 2,3  instance id
//!   word  16  producer's wake word      incremented by who frees a slot the producer waits for
//!   word  32  parked                    bit m: member m sleeps; bit 63: the producer does
//!   word  48  returns                   counts messages that went back to FULL (nack, recovery): a hint to scan
//!   PART      slot words                one per slot, SLOT_WORD_STRIDE words apart
//!   …         member parts              see `member`
//! ```

/// The producer's wake word.
pub const PRODUCER_WAKE: usize = 16;
/// Who sleeps.
pub const PARKED: usize = 32;
/// Bit of [`PARKED`] that stands for the producer.
pub const PARKED_PRODUCER: u64 = 1 << 63;
/// Messages that were given back.
pub const RETURNS: usize = 48;
/// Words from one slot word to the next: each has a cache line of its own, because different consumers claim
/// neighbouring slots at the same time.
pub const SLOT_WORD_STRIDE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_producers_bit_is_none_of_a_members() {
        assert_eq!(PARKED_PRODUCER, 0x8000_0000_0000_0000);
    }
}
