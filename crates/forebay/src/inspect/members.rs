//! Who is attached, what each of them holds, and what the slots are.

use std::time::Duration;

use forebay_layout::{
    member::{self as at, state},
    pool::SLOT_WORD_STRIDE,
};
use forebay_os::clock;
use forebay_ring::{Grant, GrantState, Member, SlotState, SlotWord};

use super::{
    look::{Opened, plain},
    report::{ConsumerReport, HeldSlot, SlotCounts},
};
use crate::{producer::site, segment::Segment};

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) slots: SlotCounts,
    pub(super) depth: u64,
    pub(super) consumers: Vec<ConsumerReport>,
}

/// One slot, copied once.
struct Slot {
    index: u32,
    word: Option<SlotWord>,
    sequence: u64,
}

pub(super) fn look(opened: &Opened) -> Found {
    let slots: Vec<Slot> = (0..opened.header.plan.slots).map(|index| copy(opened, index)).collect();
    let mut found = Found::default();
    match &opened.pool {
        Some(_) => count_queue(&slots, &mut found.slots),
        None => count_broadcast(opened, &slots, &mut found.slots),
    }
    found.depth = found.slots.full.into();
    for (index, part) in opened.parts.iter().enumerate() {
        let held = held(opened, part, index as u8, &slots);
        if let Some(consumer) = consumer(opened, part, index as u8, held) {
            found.depth = found.depth.max(consumer.behind);
            found.consumers.push(consumer);
        }
    }
    found
}

fn copy(opened: &Opened, index: u32) -> Slot {
    let raw = match &opened.pool {
        Some(pool) => pool.peek_slot(index),
        None => opened.reader.peek(opened.header.plan.slot_word + index as usize * SLOT_WORD_STRIDE),
    };
    let plan = &opened.header.plan;
    let sequence = opened.reader.peek(plan.descriptor_word + index as usize * plan.descriptor_words);
    Slot { index, word: SlotWord::checked(raw).ok(), sequence }
}

fn count_queue(slots: &[Slot], counts: &mut SlotCounts) {
    for slot in slots {
        let counter = match slot.word.map(SlotWord::state) {
            Some(SlotState::Free) => &mut counts.free,
            Some(SlotState::Writing) => &mut counts.writing,
            Some(SlotState::Full) => &mut counts.full,
            Some(SlotState::Claimed) => &mut counts.claimed,
            Some(SlotState::Acked) => &mut counts.acked,
            Some(SlotState::Done) => &mut counts.done,
            Some(SlotState::Dead) => &mut counts.dead,
            None => &mut counts.unreadable,
        };
        *counter += 1;
    }
}

/// A broadcast slot stays FULL in its word; whether it is used is in the members' words.
fn count_broadcast(opened: &Opened, slots: &[Slot], counts: &mut SlotCounts) {
    for slot in slots {
        let counter = match slot.word {
            None => &mut counts.unreadable,
            Some(word) if word.state() == SlotState::Writing => &mut counts.writing,
            Some(word) if word.state() == SlotState::Full => {
                let members = || opened.parts.iter().enumerate().filter(|(index, _)| opened.is_held(*index as u8));
                if members().any(|(_, part)| holds(opened, part, slot, word)) {
                    &mut counts.claimed
                } else if members().any(|(index, part)| owes(opened, part, index, slot, word)) {
                    &mut counts.full
                } else {
                    &mut counts.done
                }
            }
            Some(_) => &mut counts.free,
        };
        *counter += 1;
    }
}

fn grant(opened: &Opened, part: &Member<Segment>, slot: u32) -> Option<Grant> {
    Grant::checked(part.peek(at::SINCE + opened.header.plan.slots as usize + slot as usize)).ok()
}

/// Broadcast: whether the member has still to finish with what is in the slot.
fn owes(opened: &Opened, part: &Member<Segment>, index: usize, slot: &Slot, word: SlotWord) -> bool {
    let from = opened.reader.peek(opened.header.plan.join_word + 2 * index);
    let left = part.peek(at::LEFT);
    from != 0
        && slot.sequence >= from
        && (left == 0 || slot.sequence < left - 1)
        && !grant(opened, part, slot.index).is_some_and(|grant| grant.settles(word.generation()))
}

/// Broadcast: whether the member reads the slot now.
fn holds(opened: &Opened, part: &Member<Segment>, slot: &Slot, word: SlotWord) -> bool {
    let settled = || grant(opened, part, slot.index).is_some_and(|grant| grant.settles(word.generation()));
    part.since(slot.index) != 0 && !settled()
}

fn held(opened: &Opened, part: &Member<Segment>, index: u8, slots: &[Slot]) -> Vec<HeldSlot> {
    let now = clock::monotonic_ns();
    let mut held = Vec::new();
    for slot in slots {
        let Some(word) = slot.word else { continue };
        let holds = match &opened.pool {
            Some(_) => word.owner().is_some_and(|owner| owner.index == index),
            None => word.state() == SlotState::Full && holds(opened, part, slot, word),
        };
        if holds {
            let since = part.since(slot.index);
            // 0: it was claimed this very moment, and the time is not noted yet.
            let since = Duration::from_nanos(if since == 0 { 0 } else { now.saturating_sub(since) });
            let acked = word.state() == SlotState::Acked;
            held.push(HeldSlot { slot: slot.index, sequence: slot.sequence, acked, since });
        }
    }
    held
}

/// A place that somebody has, or that slots still name.
fn consumer(opened: &Opened, part: &Member<Segment>, index: u8, held: Vec<HeldSlot>) -> Option<ConsumerReport> {
    let (incarnation, found) = part.identity();
    if found == state::EMPTY && held.is_empty() {
        return None;
    }
    Some(ConsumerReport {
        index,
        incarnation,
        alive: opened.is_held(index),
        state: match found {
            state::JOINING => "joining",
            state::ACTIVE => "active",
            state::LEAVING => "leaving",
            _ => "empty",
        },
        pid: part.peek(at::PID) as u32,
        label: plain(&site::label(part)),
        attached_unix_ns: part.peek(at::ATTACHED_UNIX_NS),
        received: part.peek(at::RECEIVED),
        acked: part.peek(at::ACKED),
        nacked: part.peek(at::NACKED),
        missed: part.peek(at::MISSED),
        behind: if opened.pool.is_none() { behind(opened, part, index) } else { 0 },
        held,
    })
}

/// Broadcast: messages that the member has still to take. No more than there are slots, whatever its cursor says.
fn behind(opened: &Opened, part: &Member<Segment>, index: u8) -> u64 {
    let plan = &opened.header.plan;
    let from = opened.reader.peek(plan.join_word + 2 * usize::from(index));
    if from == 0 || part.peek(at::LEFT) != 0 {
        return 0;
    }
    // Before its first message the member has no cursor.
    let cursor = part.peek(at::CURSOR).max(from);
    opened.reader.head().saturating_sub(cursor).min(plan.slots.into())
}

// Named here so that the meaning of the words above is checked when they change.
const _: () = assert!(GrantState::Done as u64 == 1 && GrantState::Revoked as u64 == 3);
