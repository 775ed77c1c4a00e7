//! Where to resume a run whose batches are delivered as they are ready: a position, and what was delivered beyond it.
//!
//! # Bytes (little-endian)
//!
//! ```text
//!   0  72  the position, as by itself
//!  72   n  one bit a batch after it, lowest first: 1 if it was delivered; left out, with what follows, if none was
//!   …   8  FNV-1a of all bytes before
//! ```

use std::collections::VecDeque;

use super::position::{Position, fnv1a};
use crate::error::PositionError;

/// Which of the batches after a position were delivered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ahead {
    bits: Vec<u8>,
}

impl Ahead {
    /// Most batches that a run may be ahead of its position: what fits into a message's user blob.
    pub(crate) const MOST: usize = 8 * (256 - Position::ENCODED_BYTES - 8);

    /// Whether none was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bits.is_empty()
    }

    /// Whether the batch was that is so many after the position's.
    #[must_use]
    pub fn contains(&self, batch: u64) -> bool {
        let byte = usize::try_from(batch / 8).ok().and_then(|at| self.bits.get(at));
        byte.is_some_and(|byte| byte & (1 << (batch % 8)) != 0)
    }

    /// Those for which something stands there, and what of `known` comes after its first `passed` batches.
    pub(crate) fn of<T>(window: &VecDeque<Option<T>>, known: &Self, passed: u64) -> Self {
        let left = (8 * known.bits.len() as u64).saturating_sub(passed) as usize;
        let length = window.len().max(left);
        let mut bits = vec![0; length.div_ceil(8)];
        for at in 0..length {
            if window.get(at).is_some_and(Option::is_some) || known.contains(passed + at as u64) {
                bits[at / 8] |= 1 << (at % 8);
            }
        }
        while bits.last() == Some(&0) {
            bits.pop();
        }
        Self { bits }
    }
}

/// Where to resume a run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checkpoint {
    /// Everything before it was delivered.
    pub position: Position,
    /// What was delivered after it: in an ordered run nothing, unless it goes on from one that was not.
    pub ahead: Ahead,
}

impl Checkpoint {
    /// Bytes of the longest encoding.
    pub const MAX_ENCODED_BYTES: usize = 256;

    /// The checkpoint as bytes, for a message's user blob. Without anything ahead it is [`Position::encode`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.position.encode().to_vec();
        if !self.ahead.is_empty() {
            out.extend_from_slice(&self.ahead.bits);
            let sum = fnv1a(&out);
            out.extend_from_slice(&sum.to_le_bytes());
        }
        out
    }

    /// The checkpoint in `bytes`, which must be exactly what [`encode`](Self::encode) gave.
    ///
    /// # Errors
    /// As [`Position::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, PositionError> {
        let Some((position, rest)) =
            bytes.split_at_checked(Position::ENCODED_BYTES).filter(|(_, rest)| !rest.is_empty())
        else {
            return Ok(Self { position: Position::decode(bytes)?, ahead: Ahead::default() });
        };
        let position = Position::decode(position)?;
        let garbage = |what: String| PositionError::Garbage { what, expected_bytes: Position::ENCODED_BYTES };
        let Some((bits, sum)) = rest.split_last_chunk::<8>().filter(|(bits, _)| !bits.is_empty()) else {
            return Err(garbage(format!("{} bytes", bytes.len())));
        };
        if bytes.len() > Self::MAX_ENCODED_BYTES || bits.last() == Some(&0) {
            return Err(garbage(format!("{} bytes, or a last one that is zero", bytes.len())));
        }
        if u64::from_le_bytes(*sum) != fnv1a(&bytes[..bytes.len() - 8]) {
            return Err(garbage("the checksum does not match".into()));
        }
        Ok(Self { position, ahead: Ahead { bits: bits.to_vec() } })
    }
}

impl From<Position> for Checkpoint {
    fn from(position: Position) -> Self {
        Self { position, ahead: Ahead::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn encode_and_decode_are_inverse(window: Vec<bool>, line: u64) {
            let window: VecDeque<Option<()>> =
                window.into_iter().take(Ahead::MOST).map(|delivered| delivered.then_some(())).collect();
            let position = Position { line, ..Position::default() };
            let checkpoint = Checkpoint { position, ahead: Ahead::of(&window, &Ahead::default(), 0) };
            for (at, delivered) in window.iter().enumerate() {
                prop_assert_eq!(checkpoint.ahead.contains(at as u64), delivered.is_some());
            }
            prop_assert!(!checkpoint.ahead.contains(window.len() as u64));
            let bytes = checkpoint.encode();
            prop_assert!(bytes.len() <= Checkpoint::MAX_ENCODED_BYTES);
            prop_assert_eq!(Checkpoint::decode(&bytes), Ok(checkpoint));
        }

        #[test]
        fn what_was_known_stays_known(window: Vec<bool>, known: Vec<bool>, passed in 0u64..100) {
            let window: VecDeque<Option<()>> =
                window.into_iter().take(Ahead::MOST).map(|delivered| delivered.then_some(())).collect();
            let known: VecDeque<Option<()>> =
                known.into_iter().take(Ahead::MOST).map(|delivered| delivered.then_some(())).collect();
            let known = Ahead::of(&known, &Ahead::default(), 0);
            let ahead = Ahead::of(&window, &known, passed);
            for at in 0..Ahead::MOST + 1 {
                let delivered = window.get(at).is_some_and(Option::is_some) || known.contains(passed + at as u64);
                prop_assert_eq!(ahead.contains(at as u64), delivered, "{}", at);
            }
            let checkpoint = Checkpoint { position: Position::default(), ahead };
            let bytes = checkpoint.encode();
            prop_assert!(bytes.len() <= Checkpoint::MAX_ENCODED_BYTES);
            prop_assert_eq!(Checkpoint::decode(&bytes), Ok(checkpoint));
        }

        #[test]
        fn no_bytes_make_decode_panic(tail: Vec<u8>, at in 0usize..100, flip: u8) {
            let checkpoint = Checkpoint { position: Position::default(), ahead: Ahead { bits: vec![5, 1] } };
            let mut bytes = checkpoint.encode();
            prop_assert!(Checkpoint::decode(&[&bytes, &tail[..]].concat()).is_ok() == tail.is_empty());
            let at = at % bytes.len();
            bytes[at] ^= flip;
            prop_assert!(Checkpoint::decode(&bytes).is_ok() == (flip == 0));
            let _ = Checkpoint::decode(&tail);
        }
    }
}
