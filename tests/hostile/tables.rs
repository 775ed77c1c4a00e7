//! What each bit of the shared memory is, and what may come of a lie about it. Written from `docs/layout.md`; the tests
//! here hold the tables against the constants of the layout's source, so that a new field without a case fails.

use forebay_layout::{
    Kind,
    descriptor::{FIELD_WORDS, HEAD_WORDS, USER_WORDS},
    entry::ENTRY_WORDS,
    geometry::Plan,
    header::{self, *},
    member, pool,
};

use crate::rig::{
    Expect::{self, Either, Hint, Refused},
    Row, row, span, tile, word,
};

/// Who reads a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    Consumer,
    Observer,
    Successor,
}

/// The ring object's first page.
pub(crate) fn header_page(reader: Reader, kind: Kind) -> Vec<Row> {
    use Reader::{Observer, Successor};
    const CONSUMERS: &[&str] = &["max_consumers", "_bytes"];
    // Members of a broadcast ring have objects of their own, from whose size their number does not follow.
    let consumers = if kind == Kind::Queue { Refused(CONSUMERS) } else { Either(CONSUMERS) };
    // An observer has no welcome to compare with; it compares the objects with each other, as a successor does with
    // what its lock file says. What a successor cannot take for its own ring's it makes anew.
    let instance: Expect = match reader {
        Successor => Refused(&["made anew"]),
        _ => Refused(&["instance"]),
    };
    // A successor wants the ring that it was asked to make.
    let chosen = |names| if reader == Successor { Refused(names) } else { Either(names) };
    let mut rows = vec![
        word(W_MAGIC, "header.magic", Refused(&["magic", "made anew"])),
        word(W_OBJECT, "header.object", Refused(&["object"])),
        span(W_INSTANCE..W_INSTANCE + 2, "header.instance", instance),
        row(4..5, 0..16, "header.version.major", Refused(&["version"])),
        row(4..5, 16..32, "header.version.minor", Hint),
        row(4..5, 32..64, "header.version.rest", Refused(&["version"])),
        word(5, "header.compatible", Hint),
        word(6, "header.incompatible", Refused(&["incompatible"])),
        word(7, "header.created", Hint),
        row(8..9, 0..8, "header.kind", Refused(&["kind", "_bytes"])),
        row(8..9, 8..16, "header.backing", Refused(&["backing", "sealed"])),
        row(8..9, 16..24, "header.when_full", chosen(&["when_full"])),
        row(8..9, 24..25, "header.writable", chosen(&["writable"])),
        row(8..9, 25..64, "header.kinds.rest", Refused(&["kinds"])),
        row(9..10, 0..32, "header.max_consumers", consumers),
        row(9..10, 32..64, "header.max_attempts", chosen(&["max_attempts"])),
        row(10..11, 0..32, "header.quota", if reader == Successor { Refused(&["quota"]) } else { Hint }),
        row(10..11, 32..64, "header.max_fields", Refused(&["max_fields", "_bytes"])),
        row(11..12, 0..32, "header.classes", Refused(&["class", "slots"])),
        row(11..12, 32..64, "header.schema_bytes", Refused(&["schema", "class", "slots", "_bytes", "slot_bytes"])),
        span(12..16, "header.bytes", Refused(&["_bytes"])),
        span(16..W_NAME, "header.reserved", Refused(&["reserved"])),
        span(W_NAME..FIXED_WORDS, "header.name", Refused(&["name", "header of ring", "header is that of"])),
        span(FIXED_WORDS..W_EPOCH, "header.unread", Hint),
    ];
    if reader == Observer {
        // It says what it can: a schema that does not read is shown as such.
        for row in &mut rows {
            if row.name == "header.schema_bytes" || row.name == "header.max_fields" {
                row.expect = Either(&["schema", "class", "slots", "_bytes", "slot_bytes", "max_fields"]);
            }
        }
    }
    rows.extend(producer_lines(if reader == Successor { Either(&["head"]) } else { Hint }));
    tile(&rows, 0..header::WORDS);
    rows
}

/// The producer's words of that page, which change.
pub(crate) fn producer_lines(head: Expect) -> Vec<Row> {
    let last = |n: usize| W_LAST + n * LAST_STRIDE;
    let user = |n: usize| last(n) + 2..last(n) + 2 + USER_WORDS;
    vec![
        word(W_EPOCH, "producer.epoch", Hint),
        word(W_PID, "producer.pid", Hint),
        word(W_STARTED, "producer.started", Hint),
        word(W_STATE, "producer.state", Hint),
        span(W_LABEL..W_LABEL + LABEL_WORDS, "producer.label", Hint),
        word(W_FENCES, "producer.fences", Hint),
        word(W_NUMA, "producer.numa", Hint),
        span(142..144, "producer.unread", Hint),
        word(W_PARKED, "producer.parked", Hint),
        span(145..160, "producer.unread", Hint),
        word(W_HEAD, "producer.head", head),
        word(W_DROPPED, "producer.dropped", Hint),
        word(W_DEAD, "producer.dead", Hint),
        word(W_BYTES, "producer.bytes", Hint),
        word(W_FULL_WAITS, "producer.full_waits", Hint),
        span(165..W_LAST, "producer.unread", Hint),
        word(last(0), "producer.last.sequence", Hint),
        word(last(0) + 1, "producer.last.user_bytes", Hint),
        span(user(0), "producer.last.user", Hint),
        span(user(0).end..last(1), "producer.unread", Hint),
        word(last(1), "producer.last.sequence", Hint),
        word(last(1) + 1, "producer.last.user_bytes", Hint),
        span(user(1), "producer.last.user", Hint),
        span(user(1).end..header::WORDS, "producer.unread", Hint),
    ]
}

/// The class table of a ring with one class, from its first word on.
pub(crate) fn class_table(at: usize) -> Vec<Row> {
    let rows = vec![
        word(at, "class.slots", Refused(&["class.slots", "slots", "_bytes"])),
        word(at + 1, "class.slot_bytes", Either(&["slot_bytes", "_bytes", "class.stride", "geometry"])),
        word(at + 2, "class.stride", Refused(&["class.stride"])),
        word(at + 3, "class.offset", Refused(&["class.offset"])),
        span(at + 4..at + 32, "class.rest", Refused(&["class.rest"])),
    ];
    tile(&rows[..], at..at + 32);
    rows
}

/// A message of one tensor and no user data on a ring with a schema: its position entry says it all.
pub(crate) fn whole_entry(at: usize) -> Vec<Row> {
    let mut rows = entry_place(at);
    rows.extend([
        word(at + 3, "entry.payload_bytes", Either(&["payload_bytes"])),
        row(at + 5..at + 6, 0..16, "entry.fields", Either(&["descriptor.fields"])),
        row(at + 5..at + 6, 16..32, "entry.user_bytes", Either(&["user_bytes"])),
        row(at + 5..at + 6, 32..40, "entry.dtype", Refused(&["field.dtype", "field.bytes", "position.tensor_bytes"])),
        row(at + 5..at + 6, 40..48, "entry.rank", Refused(&["field.rank", "field.dims", "position.tensor_bytes"])),
        row(at + 5..at + 6, 48..56, "entry.tensor_bytes", Either(&["position.tensor_bytes"])),
        row(at + 5..at + 6, 56..64, "entry.tensor.rest", Refused(&["position.tensor"])),
        word(at + 6, "entry.dim", Either(&["field.dims", "field.bytes", "position.tensor_bytes"])),
        word(at + 7, "entry.dim.rest", Refused(&["field.dims"])),
        span(at + 8..at + 16, "entry.bytes", Hint),
    ]);
    tile(&rows, at..at + ENTRY_WORDS);
    rows
}

/// The entry of a message that only its descriptor says whole.
pub(crate) fn hint_entry(at: usize) -> Vec<Row> {
    let mut rows = entry_place(at);
    rows.extend([
        word(at + 3, "entry.payload_bytes", Either(&["payload_bytes"])),
        row(at + 5..at + 6, 0..16, "entry.fields", Either(&["descriptor.fields", "field."])),
        row(at + 5..at + 6, 16..32, "entry.user_bytes", Either(&["user_bytes"])),
        row(at + 5..at + 6, 32..64, "entry.tensor", Refused(&["position.tensor", "field."])),
        span(at + 6..at + 16, "entry.rest", Hint),
    ]);
    tile(&rows, at..at + ENTRY_WORDS);
    rows
}

fn entry_place(at: usize) -> Vec<Row> {
    // A wrong place leads to a look at all slots, or on a broadcast ring to the descriptor of another one.
    const PLACE: Expect =
        Either(&["position.slot", "descriptor.slot", "descriptor.generation", "descriptor.sequence", "field.dtype"]);
    vec![
        row(at..at + 1, 0..62, "entry.stamp", Either(&["position.stamp"])),
        row(at..at + 1, 62..64, "entry.stamp", Refused(&["position.stamp"])),
        row(at + 1..at + 2, 0..32, "entry.slot", PLACE),
        row(at + 1..at + 2, 32..64, "entry.generation", PLACE),
        word(at + 2, "entry.correlation_id", Hint),
        word(at + 4, "entry.timestamp", Hint),
    ]
}

/// The descriptor of a message of `fields` tensors of one dim on a schemaless ring, of `max_fields`.
pub(crate) fn descriptor(at: usize, fields: usize, max_fields: usize) -> Vec<Row> {
    let field = |index: usize| at + HEAD_WORDS + index * FIELD_WORDS;
    let mut rows = vec![
        // Where a scan finds the message, nothing else says its sequence.
        word(at, "descriptor.sequence", Either(&["descriptor.sequence"])),
        row(at + 1..at + 2, 0..32, "descriptor.slot", Refused(&["descriptor.slot"])),
        row(at + 1..at + 2, 32..64, "descriptor.generation", Refused(&["descriptor.generation"])),
        word(at + 2, "descriptor.correlation_id", Hint),
        word(at + 3, "descriptor.payload_bytes", Either(&["payload_bytes"])),
        word(at + 4, "descriptor.timestamp", Hint),
        row(at + 5..at + 6, 0..16, "descriptor.fields", Either(&["descriptor.fields", "field.dtype"])),
        row(at + 5..at + 6, 16..32, "descriptor.user_bytes", Either(&["user_bytes"])),
        row(at + 5..at + 6, 32..64, "descriptor.counts.rest", Refused(&["descriptor.counts"])),
        span(at + 6..at + HEAD_WORDS, "descriptor.unread", Hint),
    ];
    for index in 0..fields {
        let at = field(index);
        // The second one may lie over the first: that is its producer's affair.
        let offset: &[&str] = &["field.offset", "field.bytes"];
        rows.extend([
            row(at..at + 1, 0..8, "field.dtype", Refused(&["field.dtype", "field.nbytes", "field.bytes"])),
            row(at..at + 1, 8..16, "field.rank", Refused(&["field.rank", "field.dims", "field.nbytes"])),
            row(at..at + 1, 16..24, "field.name_bytes", Either(&["field.name_bytes", "field.name"])),
            row(at..at + 1, 24..64, "field.type.rest", Refused(&["field.type"])),
            word(at + 1, "field.offset", if index == 0 { Refused(offset) } else { Either(offset) }),
            word(at + 2, "field.nbytes", Refused(&["field.nbytes"])),
            word(at + 3, "field.dim", Refused(&["field.dims", "field.bytes", "field.nbytes"])),
            span(at + 4..at + 11, "field.dims.rest", Refused(&["field.dims"])),
            span(at + 11..at + 16, "field.name", Either(&["field.name"])),
        ]);
    }
    rows.push(span(field(fields)..field(max_fields), "descriptor.other_fields", Hint));
    rows.push(span(field(max_fields)..field(max_fields) + USER_WORDS, "descriptor.user", Hint));
    tile(&rows, at..field(max_fields) + USER_WORDS);
    rows
}

/// A slot word. Members of a queue trust each other for content and progress, so most lies are another truth; what a
/// lie can lead to is a descriptor that does not fit it.
pub(crate) fn slot_word(at: usize) -> Vec<Row> {
    const OTHER: Expect =
        Either(&["slot_word", "slot is", "descriptor.generation", "descriptor.sequence", "descriptor.slot"]);
    let rows = vec![
        row(at..at + 1, 0..3, "slot_word.state", OTHER),
        row(at..at + 1, 3..8, "slot_word.member", OTHER),
        row(at..at + 1, 8..24, "slot_word.incarnation", OTHER),
        row(at..at + 1, 24..32, "slot_word.attempts", OTHER),
        row(at..at + 1, 32..64, "slot_word.generation", OTHER),
    ];
    tile(&rows, at..at + 1);
    rows
}

/// The pool's first page behind the prefix, which is read at attach only.
pub(crate) fn pool_page() -> Vec<Row> {
    let rows = vec![
        word(0, "pool.magic", Refused(&["magic"])),
        word(1, "pool.object", Refused(&["object"])),
        span(2..4, "pool.instance", Refused(&["instance"])),
        span(4..pool::PRODUCER_WAKE, "pool.unread", Hint),
        word(pool::PRODUCER_WAKE, "pool.producer_wake", Hint),
        span(pool::PRODUCER_WAKE + 1..pool::PARKED, "pool.unread", Hint),
        word(pool::PARKED, "pool.parked", Hint),
        span(pool::PARKED + 1..pool::RETURNS, "pool.unread", Hint),
        word(pool::RETURNS, "pool.returns", Hint),
        span(pool::RETURNS + 1..512, "pool.unread", Hint),
    ];
    tile(&rows, 0..512);
    rows
}

/// One member's part, with grant words if `grants`.
pub(crate) fn member_part(at: usize, plan: &Plan, grants: bool) -> Vec<Row> {
    let slots = plan.slots as usize;
    let line = |from: usize, to: usize| span(at + from..at + to, "member.unread", Hint);
    let one = |offset: usize, name: &'static str| word(at + offset, name, Hint);
    let mut rows = vec![
        row(at..at + 1, 0..8, "member.identity.state", Hint),
        row(at..at + 1, 8..24, "member.identity.incarnation", Hint),
        row(at..at + 1, 24..64, "member.identity.rest", Hint),
        one(member::PID, "member.pid"),
        one(member::ATTACHED_UNIX_NS, "member.attached_unix_ns"),
        one(member::FLAGS, "member.flags"),
        span(at + member::LABEL..at + member::LABEL + member::LABEL_WORDS, "member.label", Hint),
        line(12, member::WAKE),
        one(member::WAKE, "member.wake"),
        one(member::PARKED, "member.parked"),
        line(18, member::CURSOR),
        one(member::CURSOR, "member.cursor"),
        one(member::RECEIVED, "member.received"),
        one(member::ACKED, "member.acked"),
        one(member::NACKED, "member.nacked"),
        one(member::RECOVERED, "member.recovered"),
        one(member::MISSED, "member.missed"),
        line(38, member::LEFT),
        one(member::LEFT, "member.left"),
        line(41, member::PRODUCER_WAKE),
        one(member::PRODUCER_WAKE, "member.producer_wake"),
        line(49, member::SINCE),
        span(at + member::SINCE..at + member::SINCE + slots, "member.since", Hint),
    ];
    let mut end = at + member::SINCE + slots;
    if grants {
        // Who forgets that it holds a slot is offered it again.
        const OWN: Expect = Either(&["grant", "slot is"]);
        rows.push(row(end..end + slots, 0..2, "grant.state", OWN));
        rows.push(row(end..end + slots, 2..32, "grant.rest", OWN));
        rows.push(row(end..end + slots, 32..64, "grant.generation", OWN));
        end += slots;
    }
    tile(&rows, at..end);
    rows
}

mod completeness {
    use super::*;
    use crate::rig::names_constants;
    use forebay_layout::{
        Backing, WhenFull,
        geometry::{Geometry, SlotClass},
    };

    #[test]
    fn every_constant_of_the_layout_has_a_row() {
        let source = include_str!("../../crates/forebay-layout/src/header.rs");
        names_constants(source, "W_", &[], &header_page(Reader::Consumer, Kind::Queue));
        let source = include_str!("../../crates/forebay-layout/src/pool.rs");
        names_constants(source, "", &["SLOT_WORD_STRIDE"], &pool_page());
        let geometry = Geometry {
            kind: Kind::Broadcast,
            backing: Backing::Posix,
            when_full: WhenFull::Block,
            writable: false,
            max_consumers: 1,
            max_attempts: 0,
            quota: 0,
            max_fields: 1,
            schema_bytes: 0,
            classes: std::iter::once(SlotClass { slots: 4, slot_bytes: 64 }).collect(),
        };
        let source = include_str!("../../crates/forebay-layout/src/member.rs");
        names_constants(source, "", &["LABEL_WORDS"], &member_part(0, &geometry.plan().unwrap(), true));
    }

    #[test]
    #[should_panic(expected = "a new field needs a case")]
    fn a_constant_without_a_row_is_noticed() {
        names_constants("pub const W_NEW: usize = 50;", "W_", &[], &header_page(Reader::Consumer, Kind::Queue));
    }
}
