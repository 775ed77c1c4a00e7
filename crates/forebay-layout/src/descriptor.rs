//! One message: its slot descriptor, which is complete. What the position entry repeats of it is in `entry`.
//!
//! ```text
//!   slot descriptor, 16 words + 16 a field + 32 of user data
//!    0 sequence                            4 timestamp, CLOCK_MONOTONIC ns, 0 none
//!    1 slot | generation << 32             5 counts: fields | user bytes << 16
//!    2 correlation id                      6…15 zero
//!    3 payload bytes                      16 + 16 f: field f; after the fields: user data
//!   field, 16 words: 0 dtype | rank << 8 | name bytes << 16, 1 offset in the slot, 2 bytes, 3…10 dims, 11…15 name
//! ```
//!
//! A reader copies the words once, with atomic loads, and hands the copy to this file; nothing here is read twice.

use arrayvec::ArrayString;

use crate::{ALIGN, DType, Defect, FieldName, MAX_FIELDS, MAX_RANK, MAX_USER_BYTES, header::pack};

/// Words of a descriptor before its fields.
pub const HEAD_WORDS: usize = 16;
/// Words of one field.
pub const FIELD_WORDS: usize = 16;
/// Words of the user data.
pub const USER_WORDS: usize = MAX_USER_BYTES / 8;

/// Words of a slot descriptor with room for `max_fields` fields.
#[must_use]
pub const fn words(max_fields: usize) -> Option<usize> {
    match max_fields.checked_mul(FIELD_WORDS) {
        Some(fields) => fields.checked_add(HEAD_WORDS + USER_WORDS),
        None => None,
    }
}

/// The part of a descriptor that says which message it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// Sequence of the message, from 1.
    pub sequence: u64,
    /// The slot it lies in.
    pub slot: u32,
    /// Generation of that slot.
    pub generation: u32,
    /// Chosen by the sender.
    pub correlation_id: u64,
    /// Bytes of the slot in use.
    pub payload_bytes: u64,
    /// CLOCK_MONOTONIC at publish in ns, 0 if not taken.
    pub timestamp_ns: u64,
    /// Number of tensors.
    pub fields: u16,
    /// Bytes of user data.
    pub user_bytes: u16,
}

impl Head {
    /// The first six words of entry and descriptor.
    #[must_use]
    #[inline]
    pub fn encode(&self) -> [u64; 6] {
        [
            self.sequence,
            u64::from(self.slot) | u64::from(self.generation) << 32,
            self.correlation_id,
            self.payload_bytes,
            self.timestamp_ns,
            u64::from(self.fields) | u64::from(self.user_bytes) << 16,
        ]
    }

    /// Reads a copy of those six words; checks counts against the ring's `max_fields` and `slot_bytes`.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn decode(words: &[u64; 6], max_fields: u32, slot_bytes: u64) -> Result<Self, Defect> {
        let [sequence, _, _, payload_bytes, _, counts] = *words;
        let (fields, user_bytes) = (counts & 0xffff, counts >> 16 & 0xffff);
        if sequence == 0 {
            return Err(Defect::new("descriptor.sequence", 0, "at least 1"));
        }
        if fields > u64::from(max_fields) || fields > MAX_FIELDS as u64 {
            return Err(Defect::bounded("descriptor.fields", fields, "at most", max_fields.into()));
        }
        if user_bytes > MAX_USER_BYTES as u64 {
            return Err(Defect::bounded("descriptor.user_bytes", user_bytes, "at most", MAX_USER_BYTES as u64));
        }
        if counts >> 32 != 0 {
            return Err(Defect::new("descriptor.counts", counts, "reserved bits 0"));
        }
        if payload_bytes > slot_bytes {
            return Err(Defect::bounded("descriptor.payload_bytes", payload_bytes, "at most the slot's", slot_bytes));
        }
        Ok(Self::unpack(words))
    }

    /// Reads a copy of those six words without a check: for who knows that counts and bytes are right, because the same
    /// were checked before.
    #[must_use]
    #[inline]
    pub fn unpack(words: &[u64; 6]) -> Self {
        let [sequence, place, correlation_id, payload_bytes, timestamp_ns, counts] = *words;
        Self {
            sequence,
            slot: (place & 0xffff_ffff) as u32,
            generation: (place >> 32) as u32,
            correlation_id,
            payload_bytes,
            timestamp_ns,
            fields: (counts & 0xffff) as u16,
            user_bytes: (counts >> 16 & 0xffff) as u16,
        }
    }
}

/// One tensor of a message: what it is and where in the slot it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorMeta {
    /// Element type.
    pub dtype: DType,
    rank: u8,
    dims: [u64; MAX_RANK],
    /// Byte offset in the slot, a multiple of 64.
    pub offset: u64,
    /// Bytes: product of the dims × element size.
    pub nbytes: u64,
}

impl TensorMeta {
    /// A tensor of this type and shape at `offset`; `None` if the rank or the byte count is too large.
    #[must_use]
    pub fn new(dtype: DType, shape: &[u64], offset: u64) -> Option<Self> {
        let mut dims = [0; MAX_RANK];
        let mut nbytes = dtype.size() as u64;
        // With a zero dim the product is 0 whatever the others are; without this a huge one beside it would overflow.
        let empty = shape.contains(&0);
        for (to, &dim) in dims.get_mut(..shape.len())?.iter_mut().zip(shape) {
            *to = dim;
            if !empty {
                nbytes = nbytes.checked_mul(dim)?;
            }
        }
        let rank = u8::try_from(shape.len()).ok()?;
        Some(Self { dtype, rank, dims, offset, nbytes: if empty { 0 } else { nbytes } })
    }

    /// The dims, outermost first; the layout is row-major without gaps.
    #[must_use]
    #[inline]
    pub fn shape(&self) -> &[u64] {
        self.dims.get(..usize::from(self.rank)).unwrap_or_default()
    }

    /// Number of dims.
    #[must_use]
    #[inline]
    pub fn rank(&self) -> usize {
        usize::from(self.rank)
    }

    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.nbytes.checked_div(self.dtype.size() as u64).unwrap_or(0)
    }

    /// The eight dims as they stand in entry and field, unused ones 0.
    #[must_use]
    #[inline]
    pub fn dims(&self) -> &[u64; MAX_RANK] {
        &self.dims
    }

    /// dtype and rank as they stand in the low 16 bits of a field's first word.
    #[must_use]
    #[inline]
    pub fn type_word(&self) -> u64 {
        u64::from(self.dtype.code()) | u64::from(self.rank) << 8
    }

    /// Checks a peer's numbers: known dtype, rank, unused dims 0, aligned offset, all bytes inside the slot.
    ///
    /// # Errors
    /// The first number that cannot be right.
    pub fn checked(type_word: u64, offset: u64, dims: &[u64; MAX_RANK], slot_bytes: u64) -> Result<Self, Defect> {
        let code = type_word & 0xff;
        let dtype = DType::from_code(code as u8).ok_or(Defect::new("field.dtype", code, "a dtype code, 1 to 17"))?;
        let rank = (type_word >> 8 & 0xff) as usize;
        if rank > MAX_RANK {
            return Err(Defect::bounded("field.rank", rank as u64, "at most", MAX_RANK as u64));
        }
        let (shape, unused) = dims.split_at_checked(rank).unwrap_or((dims, &[]));
        if let Some(&dim) = unused.iter().find(|&&dim| dim != 0) {
            return Err(Defect::new("field.dims", dim, "0 beyond the rank"));
        }
        if offset & ALIGN.wrapping_sub(1) != 0 {
            return Err(Defect::bounded("field.offset", offset, "a multiple of", ALIGN));
        }
        let meta = Self::new(dtype, shape, offset).ok_or(Defect::bounded(
            "field.dims",
            u64::MAX,
            "a product within the slot's",
            slot_bytes,
        ))?;
        match offset.checked_add(meta.nbytes) {
            Some(end) if end <= slot_bytes => Ok(meta),
            _ => Err(Defect::bounded("field.bytes", meta.nbytes, "an end within the slot's", slot_bytes)),
        }
    }

    /// The words of this field in a descriptor. `name` is empty on a ring with a schema.
    #[must_use]
    pub fn encode(&self, name: &str) -> [u64; FIELD_WORDS] {
        let mut words = [0; FIELD_WORDS];
        words[0] = self.type_word() | (name.len() as u64 & 0xff) << 16;
        words[1] = self.offset;
        words[2] = self.nbytes;
        for (to, &dim) in words.iter_mut().skip(3).zip(&self.dims) {
            *to = dim;
        }
        for (to, chunk) in words.iter_mut().skip(11).zip(name.as_bytes().chunks(8)) {
            *to = pack(chunk);
        }
        words
    }

    /// Reads a copy of a field's words.
    ///
    /// # Errors
    /// The first number or name that cannot be right.
    pub fn decode(words: &[u64; FIELD_WORDS], slot_bytes: u64) -> Result<(Self, FieldName), Defect> {
        let [first, offset, nbytes, a, b, c, d, e, f, g, h, name @ ..] = *words;
        if first >> 24 != 0 {
            return Err(Defect::new("field.type", first, "reserved bits 0"));
        }
        let meta = Self::checked(first, offset, &[a, b, c, d, e, f, g, h], slot_bytes)?;
        if meta.nbytes != nbytes {
            return Err(Defect::bounded("field.nbytes", nbytes, "the product of the dims,", meta.nbytes));
        }
        let len = (first >> 16 & 0xff) as usize;
        let mut bytes = [0u8; crate::MAX_FIELD_NAME];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(name) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        let text = bytes.get(..len).ok_or(Defect::bounded(
            "field.name_bytes",
            len as u64,
            "at most",
            crate::MAX_FIELD_NAME as u64,
        ))?;
        let text = core::str::from_utf8(text).map_err(|_| Defect::new("field.name", name[0], "UTF-8"))?;
        let name =
            ArrayString::from(text).map_err(|_| Defect::new("field.name_bytes", len as u64, "a name that fits"))?;
        Ok((meta, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_and_fields_read_back_as_they_were_written() {
        let head = Head {
            sequence: 9,
            slot: 3,
            generation: 7,
            correlation_id: 1,
            payload_bytes: 64,
            timestamp_ns: 5,
            fields: 1,
            user_bytes: 4,
        };
        assert_eq!(Head::decode(&head.encode(), 1, 64), Ok(head));
        for shape in [&[][..], &[0], &[2, 0, u64::MAX], &[1, 2, 3, 4, 1, 1, 1, 1]] {
            let meta = TensorMeta::new(DType::F32, shape, 64).unwrap();
            assert_eq!(meta.shape(), shape);
            let (back, name) = TensorMeta::decode(&meta.encode("input_ids"), 1 << 20).unwrap();
            assert_eq!((back, name.as_str()), (meta, "input_ids"));
        }
        assert_eq!(TensorMeta::new(DType::F32, &[1; 9], 0), None);
        assert_eq!(TensorMeta::new(DType::F32, &[u64::MAX, 2], 0), None);
    }

    #[test]
    fn every_number_of_a_field_that_lies_is_named() {
        let good = TensorMeta::new(DType::I64, &[2, 2], 64).unwrap().encode("x");
        let cases = [
            (0, 99, "field.dtype"),
            (0, u64::from(DType::I64.code()) | 9 << 8, "field.rank"),
            (0, good[0] | 1 << 24, "field.type"),
            (0, good[0] & 0xffff | 41 << 16, "field.name_bytes"),
            (1, 8, "field.offset"),
            (1, 128, "field.bytes"),
            (1, !63, "field.bytes"),
            (2, 31, "field.nbytes"),
            (3, 3, "field.bytes"),
            (3, u64::MAX, "field.dims"),
            (5, 1, "field.dims"),
            (11, 0xff, "field.name"),
        ];
        for (word, value, field) in cases {
            let mut words = good;
            words[word] = value;
            assert_eq!(TensorMeta::decode(&words, 96).unwrap_err().field, field, "word {word} = {value:#x}");
        }
    }

    #[test]
    fn sizes_are_those_of_the_page() {
        assert_eq!((HEAD_WORDS, FIELD_WORDS, USER_WORDS), (16, 16, 32));
        assert_eq!((words(0), words(2), words(usize::MAX)), (Some(48), Some(80), None));
        let head = Head { sequence: 9, slot: 3, generation: 7, fields: 1, user_bytes: 4, ..Head::default() };
        assert_eq!(head.encode(), [9, 3 | 7 << 32, 0, 0, 0, 1 | 4 << 16]);
        let meta = TensorMeta::new(DType::F32, &[2, 3], 64).unwrap();
        assert_eq!((meta.rank(), meta.elements(), meta.type_word()), (2, 6, 12 | 2 << 8));
        assert_eq!(meta.encode("ids")[..5], [12 | 2 << 8 | 3 << 16, 64, 24, 2, 3]);
        assert_eq!(meta.encode("ids")[11], pack(b"ids"));
    }

    #[test]
    fn every_number_of_a_head_that_lies_is_named() {
        let head = Head { sequence: 9, payload_bytes: 64, fields: 32, user_bytes: 256, ..Head::default() };
        assert_eq!(Head::decode(&head.encode(), 32, 64), Ok(head), "all at their limits");
        let cases = [
            (0, 0, 32, "descriptor.sequence"),
            (5, 2, 1, "descriptor.fields"),
            (5, 33, 40, "descriptor.fields"),
            (5, 257 << 16, 32, "descriptor.user_bytes"),
            (5, 1 << 32, 32, "descriptor.counts"),
            (3, 65, 32, "descriptor.payload_bytes"),
        ];
        for (word, value, max_fields, field) in cases {
            let mut words = head.encode();
            words[word] = value;
            assert_eq!(Head::decode(&words, max_fields, 64).unwrap_err().field, field, "word {word} = {value:#x}");
        }
    }
}
