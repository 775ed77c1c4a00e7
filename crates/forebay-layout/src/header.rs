//! Page 0 of the ring object: what the ring is, then the lines that the producer keeps writing.
//!
//! ```text
//!   word  0   magic "FOREBAY1", stored last: no magic, no ring
//!   word  1   object kind | index << 8               these four words start every object of a ring,
//!   word 2,3  instance id, random                    so that objects of two rings are never mixed up
//!   word  4   layout version: major | minor << 16
//!   word  5,6 compatible, incompatible features
//!   word  7   created, ns since the Unix epoch
//!   word  8   kind | backing << 8 | when_full << 16 | writable << 24
//!   word  9   max_consumers | max_attempts << 32
//!   word 10   quota | max_fields << 32
//!   word 11   classes | schema bytes << 32
//!   word 12…15 bytes of ring, data, pool, member object (checked against what follows from the geometry)
//!   word 16…31 reserved: 0, unless the minor version is higher
//!   word 32…39 the ring's name, zero-padded
//!   ── the producer's lines, changing ──
//!   0x400     EPOCH, PID, STARTED, STATE, label, FENCES
//!   0x480     PARKED: 1 while the producer of a broadcast ring sleeps
//!   0x500     HEAD and counters
//!   0x600     LAST: two records of sequence, user bytes, user data; the one of sequence s is number s & 1, so that
//!             a producer that dies while it writes one leaves the other whole
//! ```

use arrayvec::ArrayVec;

use crate::{
    Backing, Defect, Kind, MAX_CLASSES, RingName, WhenFull, check_ring_name,
    geometry::{Geometry, Plan, SlotClass},
};

/// Words of the header page.
pub const WORDS: usize = 512;
/// First word of every object: "FOREBAY1" read as a little-endian word.
pub const MAGIC: u64 = u64::from_le_bytes(*b"FOREBAY1");
/// Layout major version: attaching needs the same.
pub const MAJOR: u16 = 1;
/// Layout minor version: higher ones only add what older readers may ignore.
pub const MINOR: u16 = 0;
/// Compatible features this build knows (none yet).
pub const COMPATIBLE: u64 = 0;
/// Incompatible features this build knows (none yet): an unknown bit refuses the attach.
pub const INCOMPATIBLE: u64 = 0;

/// Word 0 of every object.
pub const W_MAGIC: usize = 0;
/// Word 1 of every object.
pub const W_OBJECT: usize = 1;
/// Words 2 and 3 of every object.
pub const W_INSTANCE: usize = 2;
/// First word that only the ring object has.
pub const W_VERSION: usize = 4;
/// First of the reserved words before the name.
pub const W_RESERVED: usize = 16;
/// Word of the name.
pub const W_NAME: usize = 32;
/// Words that never change after creation.
pub const FIXED_WORDS: usize = 40;

/// The producer's life number.
pub const W_EPOCH: usize = 128;
/// Its pid as it saw itself; for people to read.
pub const W_PID: usize = 129;
/// When it started, ns since the Unix epoch.
pub const W_STARTED: usize = 130;
/// See [`state`].
pub const W_STATE: usize = 131;
/// First of eight words: who the producer says it is.
pub const W_LABEL: usize = 132;
/// Words of the label.
pub const LABEL_WORDS: usize = 8;
/// 1 if some peer cannot use membarrier, so that every waker must execute a fence.
pub const W_FENCES: usize = 140;
/// 1 + the NUMA node that the slots were wished on and lie on; 0 if none was wished. For people to read.
pub const W_NUMA: usize = 141;
/// 1 while the producer of a broadcast ring sleeps.
pub const W_PARKED: usize = 144;
/// The next sequence that will be published.
pub const W_HEAD: usize = 160;
/// Messages dropped by `drop-oldest`, or because a broadcast ring had no member.
pub const W_DROPPED: usize = 161;
/// Messages that became dead letters.
pub const W_DEAD: usize = 162;
/// Payload bytes published.
pub const W_BYTES: usize = 163;
/// Times the producer had to wait for a slot.
pub const W_FULL_WAITS: usize = 164;
/// First of two records of the last published user data, used in turn.
pub const W_LAST: usize = 192;
/// Words from one record to the other: sequence, user bytes, then [`USER_WORDS`](crate::descriptor::USER_WORDS) words.
pub const LAST_STRIDE: usize = 48;

/// Values of [`W_STATE`].
pub mod state {
    /// Publishing.
    pub const OPEN: u64 = 1;
    /// Closed: nothing more will come from this instance.
    pub const CLOSED: u64 = 2;
    /// Discarded by a successor that made new objects of the same name.
    pub const REPLACED: u64 = 3;
}

/// Which object of a ring this is (low byte of word 1; the member index of a member object is above it).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// Header, schema, positions, descriptors.
    Ring,
    /// The slots.
    Data,
    /// Queue: slot words and members.
    Pool,
    /// Broadcast: one member.
    Member(u8),
}

impl Object {
    /// The value of word 1.
    #[must_use]
    pub fn word(self) -> u64 {
        match self {
            Self::Ring => 1,
            Self::Data => 2,
            Self::Pool => 3,
            Self::Member(index) => 4 | u64::from(index) << 8,
        }
    }
}

/// Checks the first four words of an object (the data object has none: it is all slots).
///
/// # Errors
/// The first word that is not what it must be.
pub fn check_prefix(words: &[u64; 4], object: Object, instance: Option<[u64; 2]>) -> Result<(), Defect> {
    let [magic, kind, a, b] = *words;
    if magic != MAGIC {
        return Err(Defect::bounded("magic", magic, "a finished forebay object, which starts with", MAGIC));
    }
    if kind != object.word() {
        return Err(Defect::bounded("object", kind, "object number", object.word()));
    }
    match instance {
        Some(own) if own != [a, b] => Err(Defect::bounded("instance", a, "the instance of the ring object,", own[0])),
        _ => Ok(()),
    }
}

/// What the fixed words of a header say, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Random, the same in all objects of a ring.
    pub instance: [u64; 2],
    /// Minor version of its writer.
    pub minor: u16,
    /// ns since the Unix epoch.
    pub created_unix_ns: u64,
    /// The ring's name.
    pub name: RingName,
    /// What it is made from.
    pub geometry: Geometry,
    /// Where everything lies.
    pub plan: Plan,
}

impl Header {
    /// The fixed words, all but the magic, which is stored last and by itself.
    #[must_use]
    pub fn encode(&self) -> [u64; FIXED_WORDS] {
        let g = &self.geometry;
        let mut name = [0u64; 8];
        let bytes = self.name.as_bytes();
        for (word, chunk) in name.iter_mut().zip(bytes.chunks(8)) {
            *word = pack(chunk);
        }
        let classes = g.classes.len() as u64;
        let head = [
            0,
            Object::Ring.word(),
            self.instance[0],
            self.instance[1],
            u64::from(MAJOR) | u64::from(MINOR) << 16,
            COMPATIBLE,
            INCOMPATIBLE,
            self.created_unix_ns,
            u64::from(g.kind.code())
                | u64::from(g.backing.code()) << 8
                | u64::from(g.when_full.code()) << 16
                | u64::from(g.writable) << 24,
            u64::from(g.max_consumers) | u64::from(g.max_attempts) << 32,
            u64::from(g.quota) | u64::from(g.max_fields) << 32,
            classes | u64::from(g.schema_bytes) << 32,
            self.plan.ring_bytes,
            self.plan.data_bytes,
            self.plan.pool_bytes,
            self.plan.member_bytes,
        ];
        let mut words = [0u64; FIXED_WORDS];
        for (word, value) in words.iter_mut().zip(head) {
            *word = value;
        }
        for (word, value) in words.iter_mut().skip(W_NAME).zip(name) {
            *word = value;
        }
        words
    }

    /// The class table, four words a class.
    #[must_use]
    pub fn encode_classes(&self) -> [u64; 4 * MAX_CLASSES] {
        let mut words = [0u64; 4 * MAX_CLASSES];
        for (row, class) in words.chunks_exact_mut(4).zip(&self.plan.classes) {
            row.copy_from_slice(&[class.slots.into(), class.slot_bytes, class.stride, class.data_offset]);
        }
        words
    }

    /// Reads a copy of the fixed words and of the class table. `ring_bytes` is the size of the object they came from.
    ///
    /// `class_words` is asked for the class table once the schema's length, which decides where it lies, is known.
    ///
    /// # Errors
    /// The first field that is not as it must be; a ring of another major version is a defect of field `version`.
    pub fn decode(
        words: &[u64; FIXED_WORDS],
        ring_bytes: u64,
        class_words: impl FnOnce(usize) -> Option<[u64; 4 * MAX_CLASSES]>,
    ) -> Result<Self, Defect> {
        let [magic, object, a, b, version, _compatible, incompatible, created, kinds, consumers, quota, classes, ..] =
            *words;
        check_prefix(&[magic, object, a, b], Object::Ring, None)?;
        let (major, minor) = (version & 0xffff, version >> 16 & 0xffff);
        if major != u64::from(MAJOR) {
            return Err(Defect::bounded("version", major, "layout major version", MAJOR.into()));
        }
        if version >> 32 != 0 {
            return Err(Defect::new("version", version, "reserved bits 0"));
        }
        if incompatible & !INCOMPATIBLE != 0 {
            return Err(Defect::bounded("incompatible", incompatible, "only features of", INCOMPATIBLE));
        }
        if minor <= u64::from(MINOR) {
            // A higher minor may have put there what we may ignore.
            let reserved = words.get(W_RESERVED..W_NAME).unwrap_or_default();
            if let Some(&word) = reserved.iter().find(|&&word| word != 0) {
                return Err(Defect::bounded("reserved", word, "0 up to layout minor version", MINOR.into()));
            }
        }
        if kinds >> 25 != 0 {
            return Err(Defect::new("kinds", kinds, "reserved bits 0"));
        }
        let kind = Kind::from_code(kinds & 0xff).ok_or(Defect::new("kind", kinds & 0xff, "1 (queue) or 2"))?;
        let backing =
            Backing::from_code(kinds >> 8 & 0xff).ok_or(Defect::new("backing", kinds >> 8 & 0xff, "1 (posix) or 2"))?;
        let when_full = WhenFull::from_code(kinds >> 16 & 0xff).ok_or(Defect::new(
            "when_full",
            kinds >> 16 & 0xff,
            "1 (block), 2 or 3",
        ))?;
        let (count, schema_bytes) = (low(classes), high(classes));
        if count == 0 || count as usize > MAX_CLASSES {
            return Err(Defect::bounded("classes", count.into(), "1 to", MAX_CLASSES as u64));
        }
        let class_word = class_word(schema_bytes)?;
        let table = class_words(class_word).ok_or(Defect::bounded(
            "ring_bytes",
            ring_bytes,
            "room for a class table at word",
            class_word as u64,
        ))?;
        let mut list = ArrayVec::new();
        for row in table.chunks_exact(4).take(count as usize) {
            if let [slots, slot_bytes, ..] = *row {
                let slots = u32::try_from(slots).map_err(|_| Defect::new("class.slots", slots, "a 32-bit count"))?;
                list.push(SlotClass { slots, slot_bytes });
            }
        }
        let geometry = Geometry {
            kind,
            backing,
            when_full,
            writable: kinds >> 24 & 1 == 1,
            max_consumers: low(consumers),
            max_attempts: high(consumers),
            quota: low(quota),
            max_fields: high(quota),
            schema_bytes,
            classes: list,
        };
        let plan = geometry.plan()?;
        check_classes(&table, &plan)?;
        let stored = words.get(12..16).unwrap_or_default();
        let computed = [plan.ring_bytes, plan.data_bytes, plan.pool_bytes, plan.member_bytes];
        for ((found, own), field) in
            stored.iter().zip(computed).zip(["ring_bytes", "data_bytes", "pool_bytes", "member_bytes"])
        {
            if *found != own {
                return Err(Defect::bounded(field, *found, "what follows from the geometry,", own));
            }
        }
        if ring_bytes < plan.ring_bytes {
            return Err(Defect::bounded(
                "ring object",
                ring_bytes,
                "at least the bytes its header says,",
                plan.ring_bytes,
            ));
        }
        let name = decode_name(words)?;
        Ok(Self { instance: [a, b], minor: minor as u16, created_unix_ns: created, name, geometry, plan })
    }
}

/// The class table says of each class what follows from the geometry, and nothing of classes that there are not.
fn check_classes(table: &[u64; 4 * MAX_CLASSES], plan: &Plan) -> Result<(), Defect> {
    let mut rows = table.chunks_exact(4);
    for (class, row) in plan.classes.iter().zip(rows.by_ref()) {
        let [_, _, stride, offset] = *row else { continue };
        for (found, own, field) in [(stride, class.stride, "class.stride"), (offset, class.data_offset, "class.offset")]
        {
            if found != own {
                return Err(Defect::bounded(field, found, "what follows from the geometry,", own));
            }
        }
    }
    match rows.flatten().find(|&&word| word != 0) {
        Some(&word) => Err(Defect::new("class.rest", word, "0 after the last class")),
        None => Ok(()),
    }
}

/// Where the class table lies, which the length of the schema alone decides.
fn class_word(schema_bytes: u32) -> Result<usize, Defect> {
    if schema_bytes > 1 << 16 {
        return Err(Defect::bounded("schema_bytes", schema_bytes.into(), "at most", 1 << 16));
    }
    let end = (WORDS as u64).saturating_add(u64::from(schema_bytes).div_ceil(8));
    Ok(end.next_multiple_of(16) as usize)
}

fn decode_name(words: &[u64; FIXED_WORDS]) -> Result<RingName, Defect> {
    let mut bytes = [0u8; 64];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(words.iter().skip(W_NAME)) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    let first = words.get(W_NAME).copied().unwrap_or(0);
    let bad = Defect::new("name", first, "a ring name, zero-padded");
    let len = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    let (name, rest) = bytes.split_at_checked(len).ok_or_else(|| bad.clone())?;
    if rest.iter().any(|&b| b != 0) {
        return Err(bad);
    }
    core::str::from_utf8(name).ok().and_then(|name| check_ring_name(name).ok()).ok_or(bad)
}

fn low(word: u64) -> u32 {
    (word & 0xffff_ffff) as u32
}

fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

/// Up to eight bytes as a zero-padded word.
#[must_use]
pub fn pack(bytes: &[u8]) -> u64 {
    if let Ok(whole) = bytes.try_into() {
        return u64::from_le_bytes(whole);
    }
    let mut word = [0u8; 8];
    for (to, from) in word.iter_mut().zip(bytes) {
        *to = *from;
    }
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Geometry;

    fn header() -> Header {
        let geometry = Geometry {
            kind: Kind::Queue,
            backing: Backing::Posix,
            when_full: WhenFull::Block,
            writable: false,
            max_consumers: 4,
            max_attempts: 3,
            quota: 0,
            max_fields: 2,
            schema_bytes: 77,
            classes: [SlotClass { slots: 4, slot_bytes: 100 }, SlotClass { slots: 2, slot_bytes: 9000 }]
                .into_iter()
                .collect(),
        };
        let plan = geometry.plan().unwrap();
        let name = check_ring_name("tokens").unwrap();
        Header { instance: [7, 9], minor: 0, created_unix_ns: 5, name, geometry, plan }
    }

    fn encoded(header: &Header) -> [u64; FIXED_WORDS] {
        let mut words = header.encode();
        words[W_MAGIC] = MAGIC;
        words
    }

    fn decode(words: &[u64; FIXED_WORDS], from: &Header) -> Result<Header, Defect> {
        Header::decode(words, from.plan.ring_bytes, |at| {
            assert_eq!(at, from.plan.class_word);
            Some(from.encode_classes())
        })
    }

    #[test]
    fn a_header_reads_back_as_it_was_written() {
        let header = header();
        assert_eq!(decode(&encoded(&header), &header), Ok(header));
    }

    #[test]
    fn every_fixed_word_that_lies_is_named() {
        let header = header();
        let cases = [
            (0, 1, "magic"),
            (1, 2, "object"),
            (4, 2, "version"),
            (4, u64::from(MAJOR) | 1 << 32, "version"),
            (W_RESERVED, 1, "reserved"),
            (W_NAME - 1, u64::MAX, "reserved"),
            (6, 1, "incompatible"),
            (8, 0, "kind"),
            (8, 1 << 25, "kinds"),
            (9, 0, "max_consumers"),
            (10, 0, "max_fields"),
            (11, 9, "classes"),
            (12, 1, "ring_bytes"),
            (13, u64::MAX, "data_bytes"),
            (14, 0, "pool_bytes"),
            (15, 1, "member_bytes"),
            (W_NAME, u64::from_le_bytes(*b"a/b\0\0\0\0\0"), "name"),
        ];
        for (word, value, field) in cases {
            let mut words = encoded(&header);
            words[word] = value;
            assert_eq!(decode(&words, &header).unwrap_err().field, field, "word {word}");
        }
        // What a higher minor version keeps there is none of ours.
        let mut newer = encoded(&header);
        (newer[W_VERSION], newer[W_RESERVED]) = (u64::from(MAJOR) | (u64::from(MINOR) + 1) << 16, 7);
        assert_eq!(decode(&newer, &header).map(|found| found.geometry), Ok(header.geometry.clone()));
        let words = encoded(&header);
        let short = Header::decode(&words, 4096, |_| Some(header.encode_classes()));
        assert_eq!(short.unwrap_err().field, "ring object");
    }

    #[test]
    fn every_word_of_the_class_table_that_lies_is_named() {
        let header = header();
        for (word, field) in
            [(2, "class.stride"), (3, "class.offset"), (7, "class.offset"), (8, "class.rest"), (31, "class.rest")]
        {
            let mut table = header.encode_classes();
            table[word] ^= 64;
            let found = Header::decode(&encoded(&header), header.plan.ring_bytes, |_| Some(table));
            assert_eq!(found.unwrap_err().field, field, "word {word}");
        }
    }

    /// As unlike [`header`] as it can be.
    fn other() -> Header {
        let classes = (0..MAX_CLASSES as u64).map(|i| SlotClass { slots: 1, slot_bytes: 64 + i }).collect();
        let geometry = Geometry {
            kind: Kind::Broadcast,
            backing: Backing::Memfd,
            when_full: WhenFull::DropOldest,
            writable: false,
            max_consumers: 32,
            max_attempts: 255,
            quota: 9,
            max_fields: 32,
            schema_bytes: 1 << 16,
            classes,
        };
        let plan = geometry.plan().unwrap();
        let name = check_ring_name(core::str::from_utf8(&[b'x'; 64]).unwrap()).unwrap();
        Header { instance: [1, 2], minor: 0, created_unix_ns: 3, name, geometry, plan }
    }

    #[test]
    fn all_that_a_header_can_say_reads_back() {
        let header = other();
        assert_eq!(decode(&encoded(&header), &header), Ok(header));
        let mut header = self::header();
        header.geometry.writable = true;
        assert_eq!(decode(&encoded(&header), &header), Ok(header));
    }

    #[test]
    fn a_header_lies_as_the_module_draws_it() {
        let words = other().encode();
        assert_eq!(
            words[..12],
            [0, 1, 1, 2, 1, 0, 0, 3, 2 | 2 << 8 | 3 << 16, 32 | 255 << 32, 9 | 32 << 32, 8 | 1 << 48]
        );
        let mut writable = header();
        writable.geometry.writable = true;
        assert_eq!(writable.encode()[8], 1 | 1 << 8 | 1 << 16 | 1 << 24);
        assert_eq!(header().encode()[W_NAME..W_NAME + 2], [pack(b"tokens"), 0]);
        assert_eq!(
            [Object::Ring, Object::Data, Object::Pool, Object::Member(31)].map(Object::word),
            [1, 2, 3, 4 | 31 << 8]
        );
    }

    #[test]
    fn a_minor_version_is_read_and_unknown_features_are_weighed() {
        let header = header();
        let mut words = encoded(&header);
        words[W_VERSION] |= 5 << 16;
        words[5] = u64::MAX;
        assert_eq!(decode(&words, &header).map(|read| read.minor), Ok(5), "compatible features are anybody's");
    }

    #[test]
    fn objects_of_two_rings_are_never_mixed_up() {
        let prefix = [MAGIC, Object::Pool.word(), 7, 9];
        assert_eq!(check_prefix(&prefix, Object::Pool, None), Ok(()));
        assert_eq!(check_prefix(&prefix, Object::Pool, Some([7, 9])), Ok(()));
        for other in [[7, 8], [8, 9]] {
            assert_eq!(check_prefix(&prefix, Object::Pool, Some(other)).unwrap_err().field, "instance");
        }
        assert_eq!(check_prefix(&prefix, Object::Ring, None).unwrap_err().field, "object");
    }

    #[test]
    fn codes_and_counts_out_of_range_are_named_with_what_was_found() {
        let header = header();
        let cases = [
            (8, 1 | 9 << 8 | 1 << 16, "backing", 9, None),
            (8, 1 | 1 << 8 | 9 << 16, "when_full", 9, None),
            (8, 9 | 1 << 8 | 1 << 16, "kind", 9, None),
            (11, 9 | 77 << 32, "classes", 9, Some(8)),
            (11, 0, "classes", 0, Some(8)),
            (11, 2 | (1 << 16 | 1) << 32, "schema_bytes", 1 << 16 | 1, Some(1 << 16)),
        ];
        for (word, value, field, found, bound) in cases {
            let mut words = encoded(&header);
            words[word] = value;
            let defect = decode(&words, &header).unwrap_err();
            assert_eq!((defect.field, defect.found, defect.bound), (field, found, bound), "word {word}");
        }
        let words = encoded(&header);
        assert_eq!(Header::decode(&words, u64::MAX, |_| None).unwrap_err().field, "ring_bytes", "no class table");
        let mut wide = header.encode_classes();
        wide[0] = 1 << 32;
        assert_eq!(Header::decode(&words, u64::MAX, |_| Some(wide)).unwrap_err().field, "class.slots");
        assert_eq!(wide[4..8], [2, 9000, header.plan.classes[1].stride, header.plan.classes[1].data_offset]);
    }
}
