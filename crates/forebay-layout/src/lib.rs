//! The bytes of a forebay ring that both sides agree on: offsets, dtype codes, versions and checks.
//!
//! Everything shared is an array of little-endian 64-bit words; this crate says which word means what and checks
//! values that came from a peer. It works on *copies* of such words only.
//!
//! ```text
//!   header.rs      page 0 of the ring object: magic, versions, geometry, the producer's own lines
//!   geometry.rs    how many slots, of which sizes, and every offset that follows from that
//!   descriptor.rs  one message: its slot descriptor, which is complete
//!   entry.rs       its position entry: the hot part, and small tensors
//!   member.rs      one consumer's part: cursor, counters, wake word, lease times, grants
//!   pool.rs        the queue kind's shared lines
//!   schema.rs      names, dtypes, ranks and maximal dims of a ring's fields
//!   control.rs     the messages of the rendezvous socket
//! ```
//!
//! This crate never allocates, does no I/O, and trusts no field it has not checked. `docs/layout.md` draws the same
//! bytes for readers without Rust.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

pub mod control;
pub mod descriptor;
mod dtype;
pub mod entry;
pub mod geometry;
pub mod header;
mod kinds;
pub mod member;
pub mod pool;
pub mod schema;
mod text;

pub use dtype::{DType, UnknownDType};
pub use kinds::{Backing, Kind, UnknownName, WhenFull};
pub use text::{FieldName, NameError, RingName, check_field_name, check_ring_name};

/// Bytes in one shared word.
pub const WORD: u64 = 8;
/// Words in the 128-byte line that keeps two writers apart (x86-64 fetches 64-byte lines in pairs).
pub const LINE_WORDS: usize = 16;
/// The layout never depends on the page size of a machine; parts with different rights start at multiples of this.
pub const PART: u64 = 4096;
/// Tensors, slots and payloads are aligned to this many bytes.
pub const ALIGN: u64 = 64;
/// Largest number of dimensions of a tensor.
pub const MAX_RANK: usize = 8;
/// Largest number of tensors in a message.
pub const MAX_FIELDS: usize = 32;
/// Largest user blob of a message, in bytes.
pub const MAX_USER_BYTES: usize = 256;
/// Largest number of consumers attached to one ring at a time.
pub const MAX_CONSUMERS: usize = 32;
/// Largest number of size classes of a ring.
pub const MAX_CLASSES: usize = 8;
/// Largest number of slots of a ring, all classes together.
pub const MAX_SLOTS: u32 = 1 << 20;
/// Longest ring name, in bytes.
pub const MAX_RING_NAME: usize = 64;
/// Longest field name, in bytes.
pub const MAX_FIELD_NAME: usize = 40;
/// A dimension without an upper bound.
pub const ANY: u64 = u64::MAX;

/// A value that came from a peer and cannot be right: the field, what was found, what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defect {
    /// The field, as `docs/layout.md` names it.
    pub field: &'static str,
    /// The value found.
    pub found: u64,
    /// What would have been accepted.
    pub expected: &'static str,
    /// The bound or value that goes with `expected`, where there is one.
    pub bound: Option<u64>,
}

impl Defect {
    /// A defect without a number in its expectation.
    #[must_use]
    pub const fn new(field: &'static str, found: u64, expected: &'static str) -> Self {
        Self { field, found, expected, bound: None }
    }

    /// A defect whose expectation ends in a number.
    #[must_use]
    pub const fn bounded(field: &'static str, found: u64, expected: &'static str, bound: u64) -> Self {
        Self { field, found, expected, bound: Some(bound) }
    }
}

impl core::fmt::Display for Defect {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // Counts and sizes as people wrote them; whole words, such as a magic number, by their bytes.
        let show = |f: &mut core::fmt::Formatter<'_>, n: u64| {
            if n >> 48 == 0 { write!(f, "{n}") } else { write!(f, "{n:#x}") }
        };
        write!(f, "{} is ", self.field)?;
        show(f, self.found)?;
        write!(f, ", expected {}", self.expected)?;
        match self.bound {
            Some(bound) => {
                f.write_str(" ")?;
                show(f, bound)
            }
            None => Ok(()),
        }
    }
}

impl core::error::Error for Defect {}

/// `value` rounded up to a multiple of `to` (a power of two), or `None` on overflow.
#[must_use]
pub const fn round_up(value: u64, to: u64) -> Option<u64> {
    match value.checked_add(to.wrapping_sub(1)) {
        Some(sum) => Some(sum & !to.wrapping_sub(1)),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_defect_reads_as_a_sentence_with_its_numbers() {
        let plain = Defect::new("kind", 9, "1 (queue) or 2");
        assert_eq!(plain.to_string(), "kind is 9, expected 1 (queue) or 2");
        let bounded = Defect::bounded("magic", 1 << 48, "below", (1 << 48) - 1);
        assert_eq!(bounded.to_string(), "magic is 0x1000000000000, expected below 281474976710655");
    }

    #[test]
    fn rounding_up_ends_at_the_end_of_all_numbers() {
        assert_eq!([0, 1, 64, 65].map(|value| round_up(value, 64)), [Some(0), Some(64), Some(64), Some(128)]);
        assert_eq!((round_up(u64::MAX - 63, 64), round_up(u64::MAX, 64)), (Some(u64::MAX - 63), None));
    }
}
