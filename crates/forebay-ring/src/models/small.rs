//! Small rings for models: their plans, and the words that a message without tensors touches.

use std::iter;

use forebay_layout::{
    Backing, Kind, WhenFull,
    descriptor::{FIELD_WORDS, HEAD_WORDS, USER_WORDS},
    entry::ENTRY_WORDS,
    geometry::{Geometry, Plan, SlotClass},
    header::{LAST_STRIDE, W_BYTES, W_DEAD, W_DROPPED, W_HEAD, W_LAST, W_PARKED, W_STATE},
    member as at, pool,
};

/// Members that a model has at most.
pub(super) const MEMBERS: usize = 3;

/// A ring of this kind, with so many slots and position entries, for up to [`MEMBERS`].
pub(super) fn plan(kind: Kind, slots: u32, positions: u64) -> Plan {
    let geometry = Geometry {
        kind,
        backing: Backing::Posix,
        when_full: WhenFull::Block,
        writable: false,
        max_consumers: MEMBERS as u32,
        max_attempts: 0,
        quota: 0,
        max_fields: 1,
        schema_bytes: 0,
        classes: iter::once(SlotClass { slots, slot_bytes: 64 }).collect(),
    };
    let mut plan = geometry.plan().expect("the geometry is whole");
    // Every offset stays; only the mask changes.
    plan.positions = positions;
    plan
}

/// The words of the ring object that a message without tensors touches.
pub(super) fn ring(plan: &Plan, kind: Kind) -> Vec<usize> {
    let entries = (0..plan.positions as usize).flat_map(|i| (0..ENTRY_WORDS).map(move |w| i * ENTRY_WORDS + w));
    // The head, the first field, which a successor copies, and the first word of the user data.
    let words = || (0..6).chain(HEAD_WORDS..HEAD_WORDS + FIELD_WORDS).chain([plan.descriptor_words - USER_WORDS]);
    let descriptors = (0..plan.slots as usize).flat_map(|i| words().map(move |w| i * plan.descriptor_words + w));
    let joins = (0..2 * MEMBERS).map(|i| plan.join_word + i);
    let slot_words = (0..if kind == Kind::Broadcast { plan.slots as usize } else { 0 })
        .map(|i| plan.slot_word + i * pool::SLOT_WORD_STRIDE);
    let lasts = (0..2).flat_map(|i| (0..3).map(move |w| W_LAST + i * LAST_STRIDE + w));
    [W_STATE, W_PARKED, W_HEAD, W_DROPPED, W_DEAD, W_BYTES]
        .into_iter()
        .chain(lasts)
        .chain(joins)
        .chain(entries.map(|w| plan.position_word + w))
        .chain(descriptors.map(|w| plan.descriptor_word + w))
        .chain(slot_words)
        .collect()
}

/// The words of a member's part that models touch, from `base` on.
pub(super) fn part(base: usize, plan: &Plan) -> impl Iterator<Item = usize> {
    let grants = (0..plan.slots as usize * 2).map(move |i| base + at::SINCE + i);
    [at::FLAGS, at::WAKE, at::PARKED, at::MISSED, at::LEFT, at::PRODUCER_WAKE]
        .map(|w| base + w)
        .into_iter()
        .chain(grants)
}

/// The words of a queue's pool.
pub(super) fn pool_words(plan: &Plan) -> Vec<usize> {
    let slot_words = (0..plan.slots as usize).map(|i| plan.slot_word + i * pool::SLOT_WORD_STRIDE);
    let parts = (0..MEMBERS).flat_map(|m| part(plan.member_word + m * plan.member_words, plan));
    [pool::PRODUCER_WAKE, pool::PARKED, pool::RETURNS].into_iter().chain(slot_words).chain(parts).collect()
}
