//! The position entry of a message: found from its sequence alone, a hint with the hot part.
//!
//! ```text
//!   position entry, 16 words
//!    0 stamp: the sequence, 0 while written     5 counts | tensor << 32
//!    1…4 as in the descriptor                   6,7 the tensor's first two dims
//!                                               8…15 its bytes, or 8…13 its other dims
//!   tensor: dtype | rank << 8 | bytes that lie here << 16, or 0: not described here
//! ```
//!
//! An entry describes the tensor of a message that has only one, at the start of its slot, and carries a copy of its bytes
//! if they are few: then everything a consumer needs lies in two neighbouring lines, which are found without knowing the
//! slot.
//!
//! A reader copies the words once, with atomic loads, and hands the copy to this file; nothing here is read twice.

use crate::{Defect, MAX_RANK, descriptor::TensorMeta};

/// Words of a position entry: two 64-byte lines.
pub const ENTRY_WORDS: usize = 16;
/// Word of a position entry from which on the tensor's bytes, or its dims from the third on, stand.
pub const ENTRY_TAIL: usize = 8;
/// Bytes of a tensor that a position entry has room for.
pub const INLINE_BYTES: usize = (ENTRY_WORDS - ENTRY_TAIL) * 8;
/// Dims of a tensor that lies in a position entry, at most: the others' place is taken by its bytes.
pub const INLINE_RANK: usize = 2;
/// Slot number in a position entry whose sequence was never published (its producer died first).
pub const NO_SLOT: u32 = u32::MAX;

/// What a position entry says of a message's only tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryTensor {
    /// The tensor; it lies at the start of the slot.
    pub meta: TensorMeta,
    /// Whether its bytes lie in the entry as well.
    pub inline: bool,
}

impl EntryTensor {
    /// Whether an entry can describe this tensor of a message with `fields` of them.
    #[must_use]
    pub fn describes(meta: &TensorMeta, fields: u16) -> bool {
        fields == 1 && meta.offset == 0
    }

    /// Whether an entry has room for the bytes of this tensor.
    #[must_use]
    pub fn has_room(meta: &TensorMeta) -> bool {
        meta.offset == 0 && meta.nbytes > 0 && meta.nbytes <= INLINE_BYTES as u64 && meta.rank() <= INLINE_RANK
    }

    /// What an entry says of this tensor: a part of word 5, and words 6 and 7. From [`ENTRY_TAIL`] on follow its bytes if
    /// `inline`, else [`more_dims`](Self::more_dims).
    #[must_use]
    #[inline]
    pub fn encode(meta: &TensorMeta, inline: bool) -> [u64; 3] {
        let bytes = if inline { meta.nbytes } else { 0 };
        let [one, two, ..] = *meta.dims();
        [(meta.type_word() | bytes << 16) << 32, one, two]
    }

    /// The words for the dims of a tensor that words 6 and 7 have no room for.
    #[must_use]
    #[inline]
    pub fn more_dims(meta: &TensorMeta) -> &[u64] {
        let [_, _, more @ ..] = meta.dims();
        if meta.rank() > INLINE_RANK { more } else { &[] }
    }

    /// Reads a copy of an entry; `None` if it describes no tensor.
    ///
    /// # Errors
    /// The first number that cannot be right.
    pub fn decode(words: &[u64; ENTRY_WORDS], slot_bytes: u64) -> Result<Option<Self>, Defect> {
        let word = words[5] >> 32;
        if word == 0 {
            return Ok(None);
        }
        if word >> 24 != 0 {
            return Err(Defect::new("position.tensor", word, "reserved bits 0"));
        }
        let bytes = word >> 16;
        let mut dims = [0; MAX_RANK];
        dims[..INLINE_RANK].copy_from_slice(&words[6..ENTRY_TAIL]);
        if bytes == 0 && word >> 8 & 0xff > INLINE_RANK as u64 {
            dims[INLINE_RANK..].copy_from_slice(&words[ENTRY_TAIL..ENTRY_TAIL + MAX_RANK - INLINE_RANK]);
        }
        let meta = TensorMeta::checked(word & 0xffff, 0, &dims, slot_bytes)?;
        if bytes != 0 && (bytes != meta.nbytes || !Self::has_room(&meta)) {
            return Err(Defect::bounded("position.tensor_bytes", bytes, "0 or those of a small tensor,", meta.nbytes));
        }
        Ok(Some(Self { meta, inline: bytes != 0 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, header::pack};

    /// The words of an entry whose message has one tensor and eight bytes of user data, and how many are used.
    fn encoded(meta: &TensorMeta, bytes: &[u8]) -> ([u64; ENTRY_WORDS], usize) {
        let [tensor, a, b] = EntryTensor::encode(meta, !bytes.is_empty());
        assert_eq!(tensor & 0xffff_ffff, 0, "the counts are the head's");
        let mut words = [9, 3 | 7 << 32, 5, 64, 0, 1 | 8 << 16 | tensor, a, b, 0, 0, 0, 0, 0, 0, 0, 0];
        let more = EntryTensor::more_dims(meta);
        let used = if bytes.is_empty() { more.len() } else { bytes.len().div_ceil(8) };
        if bytes.is_empty() {
            words[ENTRY_TAIL..ENTRY_TAIL + used].copy_from_slice(more);
        }
        for (to, chunk) in words[ENTRY_TAIL..].iter_mut().zip(bytes.chunks(8)) {
            *to = pack(chunk);
        }
        (words, ENTRY_TAIL + used)
    }

    #[test]
    fn tensors_read_back_as_they_were_written() {
        for rank in 0..=MAX_RANK {
            let meta = TensorMeta::new(DType::F32, &[2; MAX_RANK][..rank], 0).unwrap();
            let (words, used) = encoded(&meta, &[]);
            assert_eq!(used, if rank > 2 { 14 } else { 8 });
            assert_eq!(words[used..], [0; ENTRY_WORDS][used..]);
            // What an earlier message left beyond the words that were written says nothing.
            let mut stale = words;
            stale[used..].fill(77);
            for words in [words, stale] {
                assert_eq!(EntryTensor::decode(&words, 1024), Ok(Some(EntryTensor { meta, inline: false })));
            }
        }
        for len in 1..=INLINE_BYTES {
            let meta = TensorMeta::new(DType::U8, &[1, len as u64], 0).unwrap();
            let bytes: [u8; INLINE_BYTES] = core::array::from_fn(|i| i as u8 + 1);
            let (words, used) = encoded(&meta, &bytes[..len]);
            assert_eq!(used, ENTRY_TAIL + len.div_ceil(8));
            assert_eq!(EntryTensor::decode(&words, 64), Ok(Some(EntryTensor { meta, inline: true })));
            let mut found = [0; INLINE_BYTES];
            for (to, word) in found.chunks_exact_mut(8).zip(&words[ENTRY_TAIL..]) {
                to.copy_from_slice(&word.to_le_bytes());
            }
            assert_eq!(found[..len], bytes[..len]);
            assert_eq!(found[len..], [0; INLINE_BYTES][len..]);
        }
    }

    #[test]
    fn only_a_small_flat_tensor_at_the_start_has_its_bytes_here() {
        let tensor = |shape: &[u64], offset| TensorMeta::new(DType::U8, shape, offset).unwrap();
        assert!(EntryTensor::has_room(&tensor(&[64], 0)));
        assert!(EntryTensor::has_room(&tensor(&[1, 1], 0)));
        assert!(EntryTensor::has_room(&tensor(&[], 0)));
        for (shape, offset) in [(&[65][..], 0), (&[0], 0), (&[64], 64), (&[1, 1, 1], 0)] {
            assert!(!EntryTensor::has_room(&tensor(shape, offset)), "{shape:?} at {offset}");
        }
        assert!(EntryTensor::describes(&tensor(&[65], 0), 1));
        assert!(!EntryTensor::describes(&tensor(&[65], 64), 1));
        assert!(!EntryTensor::describes(&tensor(&[65], 0), 2));
    }

    #[test]
    fn every_number_that_lies_is_named() {
        let small = encoded(&TensorMeta::new(DType::U8, &[8], 0).unwrap(), b"eight by").0;
        let other = encoded(&TensorMeta::new(DType::U8, &[2, 2, 2], 0).unwrap(), &[]).0;
        assert_eq!(EntryTensor::decode(&small, 8), Ok(EntryTensor::decode(&small, 64).unwrap()));
        let cases = [
            (&small, 5, 99 << 32, "field.dtype"),
            (&small, 5, small[5] | 1 << 56, "position.tensor"),
            (&small, 5, small[5] + (1 << 48), "position.tensor_bytes"),
            (&small, 6, 9, "field.bytes"),
            (&small, 6, 7, "position.tensor_bytes"),
            (&small, 7, 1, "field.dims"),
            (&other, 5, other[5] + (8 << 48), "position.tensor_bytes"),
            (&other, 5, u64::from(DType::U8.code()) << 32 | 9 << 40, "field.rank"),
            (&other, 9, 1, "field.dims"),
            (&other, 8, 3, "field.bytes"),
        ];
        for (base, word, value, field) in cases {
            let mut words = *base;
            words[word] = value;
            assert_eq!(EntryTensor::decode(&words, 8).unwrap_err().field, field, "word {word} = {value:#x}");
        }
        let mut none = small;
        none[5] &= 0xffff_ffff;
        assert_eq!(EntryTensor::decode(&none, 8), Ok(None));
    }
}
