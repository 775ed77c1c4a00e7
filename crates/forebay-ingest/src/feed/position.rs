//! Where in its inputs a run stands, in a form that travels with every message.
//!
//! A position is a place between two items: everything before it was delivered, skipped or blank, nothing after it
//! was (but see `block_items`). [`Position::encode`] fits into a message's user blob, so a restarted feeder reads the last published one back
//! and goes on without a replay or a gap. This file knows bytes, not files: whether a position still fits its inputs is
//! checked by [`Source::resume`](crate::Source::resume).
//!
//! # Bytes (little-endian)
//!
//! ```text
//!   0  4  magic "FBps"         4  2  version (1)          6  2  zero
//!   8  8  inputs, fingerprint  16 8  pass                24  8  offset in the file
//!  32  8  lines before it      40 8  items before it     48  8  check: hash of up to 64 bytes before the offset
//!  56  4  file index           60 4  items of a block      64  8  FNV-1a of bytes 0..64
//! ```

use crate::error::PositionError;

const MAGIC: [u8; 4] = *b"FBps";
const VERSION: u16 = 1;

/// A place between two items, lines or samples, of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// Fingerprint of the list of inputs; a position is of use with this list only.
    pub inputs: u64,
    /// Passes over the list that are complete.
    pub pass: u64,
    /// Index of the input in the list, from 0.
    pub file: u32,
    /// Bytes of that input before this place.
    pub offset: u64,
    /// Lines or samples of that input before this place.
    pub line: u64,
    /// Items delivered before this place, over all inputs and passes: the ordinal of the next item.
    pub items: u64,
    /// Hash of up to 64 bytes before the place, by which a changed file is noticed.
    pub check: u64,
    /// In a shuffled run: the place is where a block of items begins, and so many of them were delivered.
    pub block_items: u32,
}

impl Position {
    /// Length of an encoded position in bytes.
    pub const ENCODED_BYTES: usize = 72;

    /// The position as bytes, for a message's user blob.
    ///
    /// ```
    /// use forebay_ingest::Position;
    /// let position = Position { line: 7, offset: 301, ..Position::default() };
    /// let blob = position.encode();
    /// assert!(blob.len() <= 200);
    /// assert_eq!(Position::decode(&blob)?, position);
    /// # Ok::<(), forebay_ingest::PositionError>(())
    /// ```
    #[must_use]
    pub fn encode(&self) -> [u8; Self::ENCODED_BYTES] {
        let mut out = [0; Self::ENCODED_BYTES];
        out[0..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        let words = [self.inputs, self.pass, self.offset, self.line, self.items, self.check];
        for (at, word) in (8..56).step_by(8).zip(words) {
            out[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        out[56..60].copy_from_slice(&self.file.to_le_bytes());
        out[60..64].copy_from_slice(&self.block_items.to_le_bytes());
        let sum = fnv1a(&out[..64]);
        out[64..72].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// The position in `bytes`, which must be exactly what [`encode`](Self::encode) gave.
    ///
    /// # Errors
    /// - [`PositionError::Version`]: another release wrote it.
    /// - [`PositionError::Garbage`]: anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, PositionError> {
        let garbage = |what: String| PositionError::Garbage { what, expected_bytes: Self::ENCODED_BYTES };
        if bytes.len() < 6 || bytes[..4] != MAGIC {
            return Err(garbage(format!("{} bytes without its magic number", bytes.len())));
        }
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        if version != VERSION {
            return Err(PositionError::Version { found: version, expected: VERSION });
        }
        let bytes: &[u8; Self::ENCODED_BYTES] =
            bytes.try_into().map_err(|_| garbage(format!("{} bytes", bytes.len())))?;
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        if word(64) != fnv1a(&bytes[..64]) {
            return Err(garbage("the checksum does not match".into()));
        }
        if bytes[6..8] != [0; 2] {
            return Err(garbage("a reserved byte is not zero".into()));
        }
        Ok(Self {
            inputs: word(8),
            pass: word(16),
            offset: word(24),
            line: word(32),
            items: word(40),
            check: word(48),
            file: u32::from_le_bytes([bytes[56], bytes[57], bytes[58], bytes[59]]),
            block_items: u32::from_le_bytes([bytes[60], bytes[61], bytes[62], bytes[63]]),
        })
    }
}

/// FNV-1a, 64 bits: stable over releases, which the standard library's hasher is not. Not for hostile input.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    fnv1a_on(0xcbf2_9ce4_8422_2325, bytes)
}

/// The hash `state` continued over `bytes`.
pub(crate) fn fnv1a_on(state: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(state, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Position {
        Position { inputs: 1, pass: 2, file: 3, offset: 4, line: 5, items: 6, check: 7, block_items: 8 }
    }

    #[test]
    fn fnv_gives_the_published_values() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn another_version_is_told_from_garbage() {
        let mut blob = sample().encode();
        blob[4] = 9;
        assert!(matches!(Position::decode(&blob), Err(PositionError::Version { found: 9, expected: 1 })));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = sample().encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Position::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_cut_is_noticed() {
        let good = sample().encode();
        for length in 0..good.len() {
            assert!(Position::decode(&good[..length]).is_err(), "{length} bytes");
        }
        assert!(Position::decode(&[&good[..], &[0]].concat()).is_err());
    }

    proptest! {
        #[test]
        fn encode_and_decode_are_inverse(
            inputs: u64, pass: u64, file: u32, offset: u64, line: u64, items: u64, check: u64,
            block_items: u32,
        ) {
            let position = Position { inputs, pass, file, offset, line, items, check, block_items };
            prop_assert_eq!(Position::decode(&position.encode()), Ok(position));
        }

        #[test]
        fn no_bytes_make_decode_panic(bytes: Vec<u8>) {
            let _ = Position::decode(&bytes);
        }
    }
}
