//! Shuffling that can be resumed: an order of the inputs, and of the items within blocks.
//!
//! In each pass the inputs come in an order of their own, by the seed and the pass. Items are read in that order into
//! blocks of so many items, and each block is given out in an order of its own, by the seed and the place where the block
//! begins. Both depend on nothing else, so a resumed run reads the block it was in again and goes on in the middle.
//!
//! It is not a uniform shuffle of everything: an item leaves in the block that it is read into. Few large inputs want a
//! large block; many small ones (images as files) are mixed by their order alone.

use std::str::FromStr;

/// Bytes after which a block is closed although it could hold more items.
pub(crate) const BLOCK_BYTES: usize = 256 << 20;

/// How items are shuffled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shuffle {
    /// The same seed gives the same order.
    pub seed: u64,
    /// Items of a block, all of them held in memory as they were read, up to 256 MiB; at least 1.
    pub block_items: usize,
}

impl Shuffle {
    /// Items of a block, if nothing else is said.
    pub const DEFAULT_BLOCK_ITEMS: usize = 8192;

    /// A shuffle of this seed, with blocks of [`DEFAULT_BLOCK_ITEMS`](Self::DEFAULT_BLOCK_ITEMS).
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, block_items: Self::DEFAULT_BLOCK_ITEMS }
    }

    /// The order of `count` inputs in a pass.
    pub(crate) fn inputs(&self, pass: u64, count: usize) -> Vec<usize> {
        permutation(count, &[self.seed, 1, pass])
    }

    /// The order of `count` items in the block that begins at this place.
    pub(crate) fn block(&self, (pass, file, offset): (u64, u32, u64), count: usize) -> Vec<usize> {
        permutation(count, &[self.seed, 2, pass, file.into(), offset])
    }
}

impl FromStr for Shuffle {
    type Err = std::num::ParseIntError;

    /// The seed.
    fn from_str(seed: &str) -> Result<Self, Self::Err> {
        seed.parse().map(Self::new)
    }
}

/// The numbers below `count` in an order that these words decide: Fisher and Yates, on SplitMix64.
fn permutation(count: usize, words: &[u64]) -> Vec<usize> {
    let mut state = words.iter().fold(0, |state, &word| mix(state ^ mix(word.wrapping_add(GOLDEN))));
    let mut order: Vec<usize> = (0..count).collect();
    for at in (1..count).rev() {
        state = u64::wrapping_add(state, GOLDEN);
        // The high half of a product is below `at + 1`, and as good as uniform.
        let other = (u128::from(mix(state)) * (at as u128 + 1)) >> 64;
        order.swap(at, other as usize);
    }
    order
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_has_every_number_once_and_is_that_of_its_words() {
        for count in [0, 1, 2, 100] {
            let mut order = permutation(count, &[7]);
            assert_eq!(order, permutation(count, &[7]));
            order.sort_unstable();
            assert!(order.into_iter().eq(0..count));
        }
        assert_ne!(permutation(100, &[7]), permutation(100, &[8]));
        assert_ne!(permutation(100, &[7, 0]), permutation(100, &[7, 1]));
        // Stored positions rely on it: it may not change between releases.
        assert_eq!(Shuffle::new(1).block((0, 0, 0), 8), [6, 3, 4, 2, 7, 1, 5, 0]);
    }

    #[test]
    fn every_order_of_three_is_as_likely() {
        let mut seen = std::collections::HashMap::new();
        for seed in 0..6000 {
            *seen.entry(permutation(3, &[seed])).or_insert(0) += 1;
        }
        assert!(seen.len() == 6 && seen.values().all(|&times| (850..1150).contains(&times)), "{seen:?}");
    }
}
