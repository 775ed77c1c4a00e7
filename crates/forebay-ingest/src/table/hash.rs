//! Feature hashing: a name's column and sign from its 32-bit MurmurHash3, as scikit-learn's `FeatureHasher` does it.

use serde::{Deserialize, Serialize};

/// MurmurHash3_x86_32 with seed 0, as a signed number.
#[must_use]
pub(crate) fn murmur3_32(bytes: &[u8]) -> i32 {
    const C1: u32 = 0xcc9e_2d51;
    const C2: u32 = 0x1b87_3593;
    let mix = |k: u32| k.wrapping_mul(C1).rotate_left(15).wrapping_mul(C2);
    let (words, tail) = bytes.as_chunks::<4>();
    let mut hash = 0u32;
    for &word in words {
        hash = (hash ^ mix(u32::from_le_bytes(word))).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
    }
    if !tail.is_empty() {
        let word = tail.iter().rev().fold(0u32, |word, &byte| word << 8 | u32::from(byte));
        hash ^= mix(word);
    }
    // The reference takes the length as an int of 32 bits.
    hash ^= bytes.len() as u32;
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    (hash ^ hash >> 16) as i32
}

/// What the names and values of hashed features come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HashInput {
    /// Names and values of an object.
    #[default]
    Dict,
    /// Pairs of name and value.
    Pair,
    /// Names, each worth 1.
    String,
}

/// Where features of any name go in a row of a fixed width.
///
/// ```
/// use forebay_ingest::table::FeatureHasher;
///
/// let hasher = FeatureHasher::new(1 << 10, true).ok_or("no columns")?;
/// assert_eq!(hasher.place(b"dog"), (hasher.place(b"dog").0, -1.0));
/// # Ok::<(), &str>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeatureHasher {
    features: u32,
    alternate_sign: bool,
}

/// Most columns that names can be hashed into: as many as the hash has values.
pub(super) const MAX_FEATURES: u32 = i32::MAX as u32;

impl FeatureHasher {
    /// A hasher into `features` columns, 1 to 2³¹ − 1, or `None` for another number.
    ///
    /// With `alternate_sign` half of the names count negative, so that names that meet in a column cancel out on average.
    #[must_use]
    pub fn new(features: u32, alternate_sign: bool) -> Option<Self> {
        (1..=MAX_FEATURES).contains(&features).then_some(Self { features, alternate_sign })
    }

    /// Number of columns.
    #[must_use]
    pub fn features(self) -> u32 {
        self.features
    }

    /// Column of a name, and what its value is multiplied by: 1 or −1.
    #[must_use]
    pub fn place(self, name: &[u8]) -> (u32, f64) {
        self.place_of(murmur3_32(name))
    }

    pub(crate) fn place_of(self, hash: i32) -> (u32, f64) {
        let sign = if self.alternate_sign && hash < 0 { -1.0 } else { 1.0 };
        (hash.unsigned_abs() % self.features, sign)
    }
}

/// Sorts the entries of a row by column and adds up those of equal columns, in their order; zeros that arise stay.
pub(crate) fn sum_duplicates(entries: &mut Vec<(u32, f64)>, add: impl Fn(f64, f64) -> f64) {
    let left = sum_duplicates_in(entries, add);
    entries.truncate(left);
}

/// The same in a slice; gives how many are left, at its front.
pub(crate) fn sum_duplicates_in(entries: &mut [(u32, f64)], add: impl Fn(f64, f64) -> f64) -> usize {
    sort(entries);
    let mut left = 0;
    for at in 0..entries.len() {
        let (column, value) = entries[at];
        if left > 0 && entries[left - 1].0 == column {
            entries[left - 1].1 = add(entries[left - 1].1, value);
        } else {
            entries[left] = (column, value);
            left += 1;
        }
    }
    left
}

/// Most entries that are sorted by counting.
const COUNTED: usize = 64;

/// Sorts by column. Equal ones stay in their order, so that sums do not depend on how it was sorted.
fn sort(entries: &mut [(u32, f64)]) {
    let count = entries.len();
    if count > COUNTED {
        entries.sort_by_key(|&(column, _)| column);
    } else if count > 1 {
        let mut old = [(0, 0.0); COUNTED];
        let mut columns = [0i32; COUNTED];
        old[..count].copy_from_slice(entries);
        for (column, entry) in columns.iter_mut().zip(&*entries) {
            // Columns are below MAX_FEATURES.
            *column = entry.0 as i32;
        }
        let mut places = [0; COUNTED];
        ranks(&columns[..count], &mut places);
        for (entry, &place) in old.iter().zip(&places[..count]) {
            entries[place as usize] = *entry;
        }
    }
}

/// Where each column goes: as many are before it as are smaller, or equal and earlier. No branch depends on them, which
/// for rows of usual lengths is several times as fast as sorting.
#[multiversion::multiversion(targets("x86_64+avx2+fma"))]
fn ranks(columns: &[i32], places: &mut [u32]) {
    for (at, &column) in columns.iter().enumerate() {
        let (before, after) = columns.split_at(at);
        let smaller_or_equal: i32 = before.iter().map(|&other| i32::from(other <= column)).sum();
        let smaller: i32 = after.iter().map(|&other| i32::from(other < column)).sum();
        places[at] = (smaller_or_equal + smaller) as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_reference() {
        // Values of MurmurHash3_x86_32 with seed 0, from its published verification and from scikit-learn.
        let known: [(&[u8], i32); 6] = [
            (b"", 0),
            (b"foo", -156_908_512),
            (b"hello", 0x248b_fa47),
            (b"hello, world", 0x149b_bb7f),
            (b"The quick brown fox jumps over the lazy dog", 0x2e4f_f723),
            ("é".as_bytes(), murmur3_32(&[0xc3, 0xa9])),
        ];
        for (bytes, hash) in known {
            assert_eq!(murmur3_32(bytes), hash, "{bytes:?}");
        }
    }

    #[test]
    fn the_smallest_hash_has_a_column() {
        let hasher = FeatureHasher::new(10, true).unwrap();
        assert_eq!(hasher.place_of(i32::MIN), (2_147_483_648u32 % 10, -1.0));
        assert_eq!(hasher.place_of(-13), (3, -1.0));
        assert_eq!(hasher.place_of(0), (0, 1.0));
        assert_eq!(FeatureHasher::new(10, false).unwrap().place_of(-13), (3, 1.0));
        assert_eq!((FeatureHasher::new(0, true), FeatureHasher::new(u32::MAX, true)), (None, None));
    }

    #[test]
    fn duplicates_are_added_in_their_order() {
        let mut entries = vec![(3, 1e16), (1, 2.0), (3, 1.0), (3, -1e16), (1, -2.0)];
        sum_duplicates(&mut entries, |a, b| a + b);
        assert_eq!(entries, [(1, 0.0), (3, (1e16 + 1.0) - 1e16)]);
    }

    #[test]
    fn short_and_long_rows_are_sorted_alike() {
        for count in 0..200u32 {
            for step in [0, 1, 7, 1_000_003] {
                let column = |at: u32| (at.wrapping_mul(step) + 11) % (i32::MAX as u32);
                let mut entries: Vec<(u32, f64)> = (0..count).map(|at| (column(at) / 3, f64::from(at))).collect();
                let mut expected = entries.clone();
                expected.sort_by_key(|&(column, _)| column);
                sort(&mut entries);
                assert_eq!(entries, expected);
            }
        }
    }
}
