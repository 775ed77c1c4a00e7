//! The ids of pieces of text that came before, so that frequent words are looked up instead of tokenized.
//!
//! One thread uses a cache at a time, without locks. It is bounded: when full it starts anew, so that a text in another
//! language is not slow for ever.

use ahash::AHashMap;

/// Longer pieces are rarely seen twice.
const MAX_PIECE_BYTES: usize = 32;
/// Pieces held.
const MAX_PIECES: usize = 1 << 15;

/// Pieces and their ids. At most some 4 MB.
#[derive(Debug, Default)]
pub(super) struct Words {
    /// Where the ids of a piece lie in `ids`.
    places: AHashMap<Box<str>, (u32, u32)>,
    ids: Vec<u32>,
}

impl Words {
    /// The ids of `piece`, if it is known.
    pub(super) fn get(&self, piece: &str) -> Option<&[u32]> {
        if piece.len() > MAX_PIECE_BYTES {
            return None;
        }
        let &(start, end) = self.places.get(piece)?;
        Some(&self.ids[start as usize..end as usize])
    }

    /// Remembers `piece` unless it is long.
    pub(super) fn insert(&mut self, piece: &str, ids: &[u32]) {
        if piece.len() > MAX_PIECE_BYTES {
            return;
        }
        if self.places.len() >= MAX_PIECES {
            self.places.clear();
            self.ids.clear();
        }
        let start = self.ids.len() as u32;
        self.ids.extend_from_slice(ids);
        self.places.insert(piece.into(), (start, self.ids.len() as u32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_cache_starts_anew_and_never_lies() {
        let mut words = Words::default();
        for n in 0..3 * MAX_PIECES as u32 {
            let piece = n.to_string();
            assert!(words.get(&piece).is_none());
            words.insert(&piece, &[n, n + 1]);
            assert_eq!(words.get(&piece), Some(&[n, n + 1][..]));
        }
        assert!(words.places.len() <= MAX_PIECES && words.ids.len() <= 2 * MAX_PIECES);
    }
}
