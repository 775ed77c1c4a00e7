//! How many slots, of which sizes, and every offset that follows from that.
//!
//! Offsets are never taken from a peer: each side computes them from the few base numbers here, and a header whose
//! stored offsets differ is refused.

use arrayvec::ArrayVec;

use crate::{
    ALIGN, ANY, Backing, Defect, Kind, MAX_CLASSES, MAX_CONSUMERS, MAX_FIELDS, MAX_SLOTS, PART, WORD, WhenFull,
    descriptor, entry, header, member, pool, round_up,
};

/// Words of the class table: slots, slot bytes, stride, data offset of each class.
const CLASS_WORDS: u64 = 4 * MAX_CLASSES as u64;
/// Words of the join table: two a member.
const JOIN_WORDS: u64 = 2 * MAX_CONSUMERS as u64;

/// Slots of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotClass {
    /// How many.
    pub slots: u32,
    /// Bytes a message may take in one of them.
    pub slot_bytes: u64,
}

/// What a ring is made from. Two rings with equal geometry have equal offsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// Who gets a message.
    pub kind: Kind,
    /// Where the memory comes from.
    pub backing: Backing,
    /// What happens when no slot is free.
    pub when_full: WhenFull,
    /// Consumers map the data read-write (queue only: the lease is exclusive there).
    pub writable: bool,
    /// Members at a time, 1 to 32.
    pub max_consumers: u32,
    /// Deliveries before a message becomes a dead letter; 0 means never.
    pub max_attempts: u32,
    /// Leases one consumer may hold in one class; 0 means slots − 1.
    pub quota: u32,
    /// Tensors in a message at most.
    pub max_fields: u32,
    /// Bytes of the encoded schema; 0 means schemaless.
    pub schema_bytes: u32,
    /// Size classes by growing `slot_bytes`.
    pub classes: ArrayVec<SlotClass, MAX_CLASSES>,
}

/// Where a class lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassSpan {
    /// Index of its first slot.
    pub first_slot: u32,
    /// Number of slots.
    pub slots: u32,
    /// Bytes a message may take.
    pub slot_bytes: u64,
    /// Bytes from one slot to the next.
    pub stride: u64,
    /// Byte offset of the first slot in the data object.
    pub data_offset: u64,
}

/// Every offset that follows from a [`Geometry`]. Words count 8 bytes from the start of their object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Slots of all classes.
    pub slots: u32,
    /// Position entries, a power of two.
    pub positions: u64,
    /// Ring object: word of the schema.
    pub schema_word: usize,
    /// Ring object: word of the class table.
    pub class_word: usize,
    /// Ring object: word of the join table (two words a member).
    pub join_word: usize,
    /// Ring object: word of the first position entry.
    pub position_word: usize,
    /// Ring object: word of the first slot descriptor.
    pub descriptor_word: usize,
    /// Words of one slot descriptor.
    pub descriptor_words: usize,
    /// Word of the first slot word: in the pool of a queue, in the ring object of a broadcast ring.
    pub slot_word: usize,
    /// Word of the first member part in its object.
    pub member_word: usize,
    /// Words from one member part to the next (queue) or of the one part there is (broadcast).
    pub member_words: usize,
    /// Bytes of the ring object.
    pub ring_bytes: u64,
    /// Bytes of the data object.
    pub data_bytes: u64,
    /// Bytes of the pool (queue; 0 on a broadcast ring).
    pub pool_bytes: u64,
    /// Bytes of each member's object (broadcast; 0 on a queue).
    pub member_bytes: u64,
    /// The classes.
    pub classes: ArrayVec<ClassSpan, MAX_CLASSES>,
}

impl Geometry {
    /// True if the claim may be a plain store: one consumer ever, and the producer never takes a message back.
    #[must_use]
    pub fn claims_by_store(&self) -> bool {
        self.max_consumers == 1 && self.when_full != WhenFull::DropOldest
    }

    /// True if the producer may take a message away before a consumer took it.
    #[must_use]
    pub fn is_lossy(&self) -> bool {
        self.when_full == WhenFull::DropOldest
    }

    /// Leases that one consumer may hold in a class of `slots` slots.
    #[must_use]
    pub fn quota_of(&self, slots: u32) -> u32 {
        let limit = if self.quota == 0 { slots.saturating_sub(1) } else { self.quota };
        limit.clamp(1, slots.max(1))
    }

    /// Checks the numbers and computes every offset.
    ///
    /// # Errors
    /// The first number that is out of its range, or whose sum does not fit 63 bits.
    pub fn plan(&self) -> Result<Plan, Defect> {
        self.check()?;
        self.offsets().ok_or(Defect::new("geometry", ANY, "a ring whose size fits 63 bits"))
    }

    fn check(&self) -> Result<(), Defect> {
        let within = |field, found: u32, most: usize| {
            if found >= 1 && usize::try_from(found).is_ok_and(|n| n <= most) {
                Ok(())
            } else {
                Err(Defect::bounded(field, found.into(), "1 to", most as u64))
            }
        };
        within("max_consumers", self.max_consumers, MAX_CONSUMERS)?;
        within("max_fields", self.max_fields, MAX_FIELDS)?;
        if self.max_attempts > 255 {
            return Err(Defect::bounded("max_attempts", self.max_attempts.into(), "0 (no limit) to", 255));
        }
        if self.writable && self.kind == Kind::Broadcast {
            return Err(Defect::new("writable", 1, "0 on a broadcast ring, whose slots several consumers read"));
        }
        if self.schema_bytes > 1 << 16 {
            return Err(Defect::bounded("schema_bytes", self.schema_bytes.into(), "at most", 1 << 16));
        }
        if self.classes.is_empty() {
            return Err(Defect::new("classes", 0, "at least one size class"));
        }
        let mut slots = 0u32;
        let mut last = 0u64;
        for class in &self.classes {
            slots = slots.saturating_add(class.slots);
            if class.slots == 0 {
                return Err(Defect::new("slots", 0, "at least one slot in each class"));
            }
            if class.slot_bytes <= last || class.slot_bytes > 1 << 46 {
                return Err(Defect::bounded("slot_bytes", class.slot_bytes, "sizes that grow, each above", last));
            }
            last = class.slot_bytes;
        }
        if slots > MAX_SLOTS {
            return Err(Defect::bounded("slots", slots.into(), "at most", MAX_SLOTS.into()));
        }
        Ok(())
    }

    fn offsets(&self) -> Option<Plan> {
        let mut classes = ArrayVec::new();
        let (mut slots, mut data) = (0u32, 0u64);
        for class in &self.classes {
            let mut stride = round_up(class.slot_bytes, ALIGN)?;
            if stride.checked_rem(PART) == Some(0) {
                // A stride of whole pages defeats the hardware prefetcher and maps every slot to the same cache sets.
                stride = stride.checked_add(ALIGN)?;
            }
            classes.push(ClassSpan {
                first_slot: slots,
                slots: class.slots,
                slot_bytes: class.slot_bytes,
                stride,
                data_offset: data,
            });
            slots = slots.checked_add(class.slots)?;
            data = data.checked_add(stride.checked_mul(class.slots.into())?)?;
        }
        let n = u64::from(slots);
        let broadcast = self.kind == Kind::Broadcast;
        let positions = n.checked_mul(2)?.checked_next_power_of_two()?.max(64);

        let mut ring = Cursor(header::WORDS as u64);
        let schema_word = ring.take(u64::from(self.schema_bytes).div_ceil(WORD), 16)?;
        let class_word = ring.take(CLASS_WORDS, 16)?;
        let join_word = ring.take(JOIN_WORDS, 16)?;
        let position_word = ring.take(positions.checked_mul(entry::ENTRY_WORDS as u64)?, PART / WORD)?;
        let descriptor_words = descriptor::words(self.max_fields as usize)?;
        let descriptor_word = ring.take(n.checked_mul(descriptor_words as u64)?, 16)?;
        let slot_words = n.checked_mul(pool::SLOT_WORD_STRIDE as u64)?;
        let member_words = round_up(member::words(n, broadcast)?, PART / WORD)?;
        let (slot_word, member_word, pool_bytes, member_bytes);
        if broadcast {
            slot_word = ring.take(slot_words, 16)?;
            let mut own = Cursor(PART / WORD);
            member_word = own.take(member_words, PART / WORD)?;
            (pool_bytes, member_bytes) = (0, own.bytes()?);
        } else {
            let mut pool = Cursor(PART / WORD);
            slot_word = pool.take(slot_words, PART / WORD)?;
            member_word = pool.take(member_words.checked_mul(self.max_consumers.into())?, PART / WORD)?;
            (pool_bytes, member_bytes) = (pool.bytes()?, 0);
        }
        Some(Plan {
            slots,
            positions,
            schema_word,
            class_word,
            join_word,
            position_word,
            descriptor_word,
            descriptor_words,
            slot_word,
            member_word,
            member_words: usize::try_from(member_words).ok()?,
            ring_bytes: ring.bytes()?,
            data_bytes: round_up(data, PART)?,
            pool_bytes,
            member_bytes,
            classes,
        })
    }
}

/// Hands out words of an object from front to back.
struct Cursor(u64);

impl Cursor {
    fn take(&mut self, words: u64, align_words: u64) -> Option<usize> {
        let at = round_up(self.0, align_words)?;
        self.0 = at.checked_add(words)?;
        usize::try_from(at).ok()
    }

    fn bytes(&self) -> Option<u64> {
        let bytes = round_up(self.0.checked_mul(WORD)?, PART)?;
        (bytes < 1 << 62).then_some(bytes)
    }
}

impl Plan {
    /// The class that slot `slot` belongs to, and where its payload starts in the data object.
    #[must_use]
    pub fn slot_span(&self, slot: u32) -> Option<(usize, ClassSpan, u64)> {
        self.classes.iter().enumerate().find_map(|(i, class)| {
            let within = slot.checked_sub(class.first_slot)?;
            if within >= class.slots {
                return None;
            }
            let offset = class.data_offset.checked_add(class.stride.checked_mul(within.into())?)?;
            Some((i, *class, offset))
        })
    }

    /// The class that slot `slot` belongs to.
    #[must_use]
    #[inline]
    pub fn class_of(&self, slot: u32) -> Option<(usize, &ClassSpan)> {
        // Classes lie one after the other.
        self.classes.iter().enumerate().find(|(_, class)| slot.wrapping_sub(class.first_slot) < class.slots)
    }

    /// Bytes of all objects of a ring with room for `consumers` members.
    #[must_use]
    pub fn total_bytes(&self, consumers: u32) -> u64 {
        let members = self.member_bytes.saturating_mul(consumers.into());
        self.ring_bytes.saturating_add(self.data_bytes).saturating_add(self.pool_bytes).saturating_add(members)
    }

    /// Bytes of the largest slot.
    #[must_use]
    pub fn largest_slot(&self) -> u64 {
        self.classes.last().map_or(0, |class| class.slot_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn geometry(kind: Kind, classes: &[(u32, u64)]) -> Geometry {
        Geometry {
            kind,
            backing: Backing::Posix,
            when_full: WhenFull::Block,
            writable: false,
            max_consumers: 4,
            max_attempts: 3,
            quota: 0,
            max_fields: 2,
            schema_bytes: 100,
            classes: classes.iter().map(|&(slots, slot_bytes)| SlotClass { slots, slot_bytes }).collect(),
        }
    }

    #[test]
    fn slots_of_all_classes_lie_apart_inside_the_data_object() {
        let plan = geometry(Kind::Queue, &[(3, 100), (2, 4096), (1, 1 << 20)]).plan().unwrap();
        let mut end = 0;
        for slot in 0..plan.slots {
            let (_, class, offset) = plan.slot_span(slot).unwrap();
            assert!(offset >= end, "slot {slot} overlaps its predecessor");
            assert_eq!(offset % ALIGN, 0);
            assert_ne!(class.stride % PART, 0);
            end = offset + class.slot_bytes;
        }
        assert!(end <= plan.data_bytes);
        assert_eq!(plan.slot_span(plan.slots), None);
    }

    #[test]
    fn each_slot_has_a_class() {
        let plan = geometry(Kind::Queue, &[(3, 64), (1, 128), (2, 4096)]).plan().unwrap();
        let classes: [_; 7] = core::array::from_fn(|slot| plan.class_of(slot as u32).map(|(class, _)| class));
        assert_eq!(classes, [Some(0), Some(0), Some(0), Some(1), Some(2), Some(2), None]);
        for slot in 0..6 {
            assert_eq!(
                plan.class_of(slot).map(|(class, span)| (class, *span)),
                plan.slot_span(slot).map(|(c, s, _)| (c, s))
            );
        }
        assert_eq!(plan.class_of(u32::MAX), None);
    }

    #[test]
    fn numbers_out_of_range_name_their_field() {
        let mut g = geometry(Kind::Queue, &[(2, 64)]);
        g.max_consumers = 33;
        assert_eq!(g.plan().unwrap_err().field, "max_consumers");
        let g = geometry(Kind::Queue, &[(2, 64), (2, 64)]);
        assert_eq!(g.plan().unwrap_err().field, "slot_bytes");
        let g = geometry(Kind::Queue, &[(MAX_SLOTS, 64), (1, 128)]);
        assert_eq!(g.plan().unwrap_err().field, "slots");
        let g = geometry(Kind::Queue, &[(MAX_SLOTS, 1 << 46)]);
        assert!(g.plan().is_err());
    }

    #[test]
    fn a_queue_lies_where_it_always_lay() {
        let plan = geometry(Kind::Queue, &[(4, 100), (2, 9000)]).plan().unwrap();
        assert_eq!((plan.slots, plan.positions), (6, 64));
        // 100 bytes of schema are 13 words; everything starts at a line of 16 words, the positions at a part of 512.
        assert_eq!((plan.schema_word, plan.class_word, plan.join_word), (512, 528, 560));
        assert_eq!((plan.position_word, plan.descriptor_word, plan.descriptor_words), (1024, 2048, 80));
        assert_eq!((plan.slot_word, plan.member_word, plan.member_words), (512, 1024, 512));
        assert_eq!((plan.ring_bytes, plan.data_bytes), (5 * 4096, 5 * 4096));
        assert_eq!((plan.pool_bytes, plan.member_bytes), (6 * 4096, 0));
        assert_eq!(plan.classes[1].data_offset, 4 * 128);
        assert_eq!((plan.total_bytes(9), plan.largest_slot()), (16 * 4096, 9000));
    }

    #[test]
    fn a_join_table_that_crosses_into_the_next_part_moves_the_positions() {
        let mut g = geometry(Kind::Queue, &[(4, 100)]);
        g.schema_bytes = 432 * 8;
        let plan = g.plan().unwrap();
        assert_eq!((plan.join_word, plan.position_word), (976, 1536));
    }

    #[test]
    fn a_broadcast_ring_lies_where_it_always_lay() {
        let plan = geometry(Kind::Broadcast, &[(300, 64)]).plan().unwrap();
        assert_eq!((plan.slots, plan.positions), (300, 1024));
        assert_eq!((plan.position_word, plan.descriptor_word), (1024, 1024 + 1024 * 16));
        assert_eq!(plan.slot_word, 1024 + 1024 * 16 + 300 * 80);
        assert_eq!((plan.member_word, plan.member_words), (512, 1024), "664 words, in whole parts");
        assert_eq!((plan.pool_bytes, plan.member_bytes), (0, 3 * 4096));
        assert_eq!(plan.total_bytes(2), plan.ring_bytes + plan.data_bytes + 6 * 4096);
    }

    #[test]
    fn what_follows_from_the_policy() {
        let mut g = geometry(Kind::Queue, &[(2, 64)]);
        assert!(!g.claims_by_store() && !g.is_lossy());
        g.max_consumers = 1;
        assert!(g.claims_by_store());
        g.when_full = WhenFull::DropOldest;
        assert!(!g.claims_by_store() && g.is_lossy());
        assert_eq!([0, 1, 2, 5].map(|slots| g.quota_of(slots)), [1, 1, 1, 4]);
        g.quota = 3;
        assert_eq!([1, 2, 5].map(|slots| g.quota_of(slots)), [1, 2, 3]);
    }

    #[test]
    fn every_number_may_reach_its_limit_and_not_pass_it() {
        type Change = fn(&mut Geometry);
        let reach: [Change; 8] = [
            |g| g.max_consumers = 32,
            |g| g.max_consumers = 1,
            |g| g.max_fields = 32,
            |g| g.max_attempts = 255,
            |g| g.schema_bytes = 1 << 16,
            |g| g.classes[0].slots = MAX_SLOTS,
            |g| g.classes[0].slot_bytes = 1 << 46,
            |g| g.writable = true,
        ];
        for (i, change) in reach.into_iter().enumerate() {
            let mut g = geometry(Kind::Queue, &[(2, 64)]);
            change(&mut g);
            assert!(g.plan().is_ok(), "case {i}");
        }
        let pass: [(Change, &str, Option<u64>); 10] = [
            (|g| g.max_consumers = 0, "max_consumers", Some(32)),
            (|g| g.max_fields = 0, "max_fields", Some(32)),
            (|g| g.max_fields = 33, "max_fields", Some(32)),
            (|g| g.max_attempts = 256, "max_attempts", Some(255)),
            (|g| g.schema_bytes = (1 << 16) + 1, "schema_bytes", Some(1 << 16)),
            (|g| g.classes.clear(), "classes", None),
            (|g| g.classes[0].slots = 0, "slots", None),
            (|g| g.classes[0].slots = MAX_SLOTS + 1, "slots", Some(MAX_SLOTS.into())),
            (|g| g.classes[0].slot_bytes = (1 << 46) + 1, "slot_bytes", Some(0)),
            (|g| g.classes[0].slot_bytes = 0, "slot_bytes", Some(0)),
        ];
        for (i, (change, field, bound)) in pass.into_iter().enumerate() {
            let mut g = geometry(Kind::Queue, &[(2, 64)]);
            change(&mut g);
            let defect = g.plan().unwrap_err();
            assert_eq!((defect.field, defect.bound), (field, bound), "case {i}");
        }
        let mut g = geometry(Kind::Broadcast, &[(2, 64)]);
        assert!(g.plan().is_ok());
        g.writable = true;
        assert_eq!(g.plan().unwrap_err().field, "writable");
    }
}
