//! Which of the waiting items go into one batch.
//!
//! The oldest of the highest class is in it. Around its length the batch grows, always by the item that adds the least
//! padding, first within its bucket and class, then beyond. Padding may be half of the batch, or [`FREE_PADDING`] where
//! that is more: a single long text is not joined by thirty short ones, which go next, in a batch of their own.

use std::{cmp::Reverse, collections::BTreeMap, time::Instant};

use super::{CLASSES, Limits, Size, Waiting};

/// Padded tokens that any batch may waste.
const FREE_PADDING: usize = 1024;
/// Of each class so many batches' worth of items are looked at, the oldest.
const LOOK_AHEAD: usize = 4;

/// What goes into a batch.
#[derive(Debug)]
pub(super) struct Picked {
    /// Class and number of each, by age within their class.
    pub(super) items: Vec<(usize, u64)>,
    /// Tokens of the longest, rounded up.
    pub(super) width: usize,
    /// Since when the oldest waits.
    pub(super) oldest: Instant,
    /// Whether a limit, and not the lack of items, ended it.
    pub(super) full: bool,
}

#[derive(Clone, Copy)]
struct Candidate {
    class: usize,
    number: u64,
    size: Size,
}

/// A batch in the making.
struct Growing<'l> {
    limits: &'l Limits,
    room: usize,
    items: Vec<Candidate>,
    width: usize,
    real: usize,
    bytes: u64,
    full: bool,
}

impl Growing<'_> {
    fn width_of(&self, tokens: usize) -> usize {
        tokens.next_multiple_of(self.limits.pad_to_multiple_of.max(1))
    }

    /// Padded tokens, bytes and padding that it would have with `size` too.
    fn with(&self, size: Size) -> (usize, u64, usize) {
        let padded = self.width.max(self.width_of(size.tokens)).saturating_mul(self.items.len() + 1);
        let bytes = (padded as u64).saturating_mul(self.limits.token_bytes).saturating_add(self.bytes + size.bytes);
        (padded, bytes, padded - (self.real + size.tokens))
    }

    fn fits(&self, size: Size) -> bool {
        let (padded, bytes, padding) = self.with(size);
        self.items.is_empty()
            || (padded <= self.limits.max_tokens
                && bytes <= self.limits.max_bytes
                && padding <= FREE_PADDING.max(padded / 2))
    }

    fn push(&mut self, item: Candidate) {
        self.width = self.width.max(self.width_of(item.size.tokens));
        self.real += item.size.tokens;
        self.bytes += item.size.bytes;
        self.items.push(item);
        self.full |= self.items.len() >= self.room;
    }

    /// Grows by items of one tier, by the least padding.
    fn grow(&mut self, tier: Vec<Candidate>) {
        let (mut shorter, mut longer): (Vec<_>, Vec<_>) =
            tier.into_iter().partition(|item| item.size.tokens <= self.width);
        // What is taken stands last.
        shorter.sort_unstable_by_key(|item| (item.size.tokens, Reverse(item.number)));
        longer.sort_unstable_by_key(|item| (Reverse(item.size.tokens), Reverse(item.number)));
        while self.items.len() < self.room {
            let padding = |item: Option<&Candidate>| item.map(|item| self.with(item.size).2);
            let from = match (padding(shorter.last()), padding(longer.last())) {
                (None, None) => return,
                (Some(less), Some(more)) if less <= more => &mut shorter,
                (Some(_), None) => &mut shorter,
                _ => &mut longer,
            };
            let Some(item) = from.pop() else { return };
            if self.fits(item.size) {
                self.push(item);
            } else {
                // Another one may still fit: it may have fewer bytes, or be shorter.
                self.full = true;
            }
        }
    }
}

/// The next batch of at most `room` items; `None` if nothing waits.
pub(super) fn pick<T>(limits: &Limits, classes: &[BTreeMap<u64, Waiting<T>>; CLASSES], room: usize) -> Option<Picked> {
    let (first, oldest) = classes.iter().find_map(|class| class.values().next()).map(|item| (candidate(item), item))?;
    let room = room.max(1);
    let mut batch =
        Growing { limits, room, items: Vec::with_capacity(room.min(64)), width: 0, real: 0, bytes: 0, full: false };
    batch.push(first);
    let bucket = |tokens: usize| limits.buckets.iter().position(|&end| tokens <= end);
    let home = bucket(first.size.tokens);
    for (class, waiting) in classes.iter().enumerate().skip(first.class) {
        if batch.items.len() >= room {
            break;
        }
        let mates =
            waiting.values().take(LOOK_AHEAD * limits.max_items.max(1)).map(candidate).filter(|item| {
                item.size.group == first.size.group && (class, item.number) != (first.class, first.number)
            });
        let (near, far): (Vec<_>, Vec<_>) = mates.partition(|item| bucket(item.size.tokens) == home);
        batch.grow(near);
        batch.grow(far);
    }
    let mut items: Vec<_> = batch.items.iter().map(|item| (item.class, item.number)).collect();
    items.sort_unstable();
    Some(Picked { items, width: batch.width, oldest: oldest.since, full: batch.full })
}

fn candidate<T>(item: &Waiting<T>) -> Candidate {
    Candidate { class: item.class, number: item.number, size: item.size }
}
