//! What a run did: items and tokens, and what it left out and why.
//!
//! Only counts and the first few skipped lines are kept, however many there are. Nothing here decides what is skipped.

use std::fmt;
use std::sync::Arc;

use crate::error::ItemError;
#[cfg(feature = "images")]
use crate::image::ImageError;
#[cfg(feature = "tables")]
use crate::table::RowError;

/// A line or sample that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SkippedItem {
    /// Index of the input in the list.
    pub file: u32,
    /// Its number in that input, from 1.
    pub line: u64,
    /// Why it is no item.
    pub reason: ItemError,
}

impl SkippedItem {
    /// The kind of its reason, as [`Skipped::by_kind`] counts it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        KINDS[kind(&self.reason)]
    }
}

/// Is told of every item that is left out, with the name of its input: at once, on the thread that finds it, before a
/// batch that it would have been in is given out. What is read ahead is told as well: after a resume it is told again.
/// Blank lines are not.
#[derive(Clone, Default)]
pub struct Watcher(Option<Arc<Told>>);

type Told = dyn Fn(&str, &SkippedItem) + Send + Sync;

impl Watcher {
    /// Calls `told`, which may be called by several threads at a time and holds them up.
    pub fn new(told: impl Fn(&str, &SkippedItem) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(told)))
    }

    pub(crate) fn tell(&self, name: impl FnOnce(u32) -> String, item: &SkippedItem) {
        if let Some(told) = &self.0 {
            told(&name(item.file), item);
        }
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watcher").field(&self.0.is_some()).finish()
    }
}

/// Kinds of [`ItemError`], in the order in which they are told.
const KINDS: [&str; 15] = [
    "not UTF-8",
    "too long",
    "not JSON",
    "without the field",
    "with a field that is no string",
    "refused by the tokenizer",
    "with a value of another kind",
    "with a key twice",
    "with a missing value",
    "with a number out of range",
    "with an unknown label",
    "unreadable",
    "without a label",
    "not an image that is taken",
    "damaged",
];

fn kind(reason: &ItemError) -> usize {
    match reason {
        ItemError::NotUtf8 { .. } => 0,
        ItemError::TooLong { .. } => 1,
        ItemError::BadJson { .. } => 2,
        ItemError::NoField { .. } => 3,
        ItemError::NotText { .. } => 4,
        ItemError::Refused { .. } => 5,
        #[cfg(feature = "tables")]
        ItemError::Row { reason } => match reason {
            RowError::NotUtf8 { .. } => 0,
            RowError::TooLong { .. } => 1,
            RowError::BadJson { .. } => 2,
            RowError::Kind { .. } => 6,
            RowError::Duplicate { .. } => 7,
            RowError::Missing { .. } => 8,
            RowError::Range { .. } => 9,
            RowError::Unknown { .. } => 10,
        },
        #[cfg(feature = "images")]
        ItemError::Sample { .. } => 11,
        #[cfg(feature = "images")]
        ItemError::Label { .. } => 12,
        #[cfg(feature = "images")]
        ItemError::Image { error: ImageError::Damaged { .. } | ImageError::DecoderFailed { .. }, .. } => 14,
        #[cfg(feature = "images")]
        ItemError::Image { .. } => 13,
    }
}

/// Lines and samples that became no item.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Skipped {
    blank: u64,
    counts: [u64; KINDS.len()],
    first: Vec<SkippedItem>,
}

impl Skipped {
    /// How many skipped lines are kept in full.
    pub const KEPT: usize = 20;

    /// Blank lines passed over; they are no errors.
    #[must_use]
    pub fn blank(&self) -> u64 {
        self.blank
    }

    /// Lines left out because of an error.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The lines left out by kind of error, without kinds that did not occur: (kind, lines).
    pub fn by_kind(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counted = KINDS.into_iter().zip(self.counts);
        counted.filter(|&(_, count)| count > 0)
    }

    /// The first [`KEPT`](Self::KEPT) lines left out.
    #[must_use]
    pub fn first(&self) -> &[SkippedItem] {
        &self.first
    }

    pub(crate) fn add_blank(&mut self) {
        self.blank += 1;
    }

    pub(crate) fn add(&mut self, line: SkippedItem) {
        self.counts[kind(&line.reason)] += 1;
        if self.first.len() < Self::KEPT {
            self.first.push(line);
        }
    }

    pub(crate) fn merge(&mut self, later: Self) {
        self.blank += later.blank;
        for (count, more) in self.counts.iter_mut().zip(later.counts) {
            *count += more;
        }
        let room = Self::KEPT - self.first.len();
        self.first.extend(later.first.into_iter().take(room));
    }
}

impl fmt::Display for Skipped {
    /// `5 skipped (3 not UTF-8, 2 too long), 7 blank`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} skipped", self.total())?;
        for (index, (kind, count)) in self.by_kind().enumerate() {
            let before = if index == 0 { " (" } else { ", " };
            write!(f, "{before}{count} {kind}")?;
        }
        let end = if self.total() > 0 { ")" } else { "" };
        write!(f, "{end}, {} blank", self.blank)
    }
}

/// What a pipeline has delivered so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Batches delivered.
    pub batches: u64,
    /// Items delivered, without those before a resumed position.
    pub items: u64,
    /// Tokens in them, special tokens included, padding not.
    pub tokens: u64,
    /// Tokens written for them, padding included.
    pub padded_tokens: u64,
    /// Bytes of input that were consumed, skipped and blank lines included.
    pub input_bytes: u64,
    /// What was left out.
    pub skipped: Skipped,
    /// Whether all passes over all inputs were delivered: not so after an error or when cancelled.
    pub complete: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn too_long(line: u64) -> SkippedItem {
        let reason = ItemError::TooLong { found_bytes: 9, limit_bytes: 3 };
        SkippedItem { file: 0, line, reason }
    }

    #[test]
    fn merging_counts_all_and_keeps_the_first() {
        let (mut all, mut later) = (Skipped::default(), Skipped::default());
        for line in 1..=15 {
            all.add(too_long(line));
            later.add(too_long(line + 15));
        }
        later.add_blank();
        all.merge(later);
        let lines: Vec<u64> = all.first().iter().map(|line| line.line).collect();
        assert_eq!(lines, (1..=20).collect::<Vec<_>>());
        assert_eq!((all.total(), all.blank()), (30, 1));
        assert_eq!(all.to_string(), "30 skipped (30 too long), 1 blank");
        assert_eq!(Skipped::default().to_string(), "0 skipped, 0 blank");
    }
}
