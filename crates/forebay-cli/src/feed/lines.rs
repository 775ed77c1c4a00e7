//! Which lines are in which slot, so that a dead letter can be told by its lines.

use forebay::DeadLetter;
use forebay_ingest::{LineId, Unit};

use super::place::Place;

/// The lines of one message.
#[derive(Debug, Clone, Copy)]
struct Span {
    sequence: u64,
    first: LineId,
    last: LineId,
}

/// The lines of what lies in each slot now, and of the newest message beside: until the dead letters that its publishing
/// brought up are told, they may be of what lay in its slot before, or (if it was given up at once) of itself.
#[derive(Debug, Default)]
pub(super) struct Lines {
    slots: Vec<Option<Span>>,
    newest: Option<(usize, Span)>,
}

impl Lines {
    /// A batch of these was published as `sequence` in `slot`. Dead letters are to be told after this, before the next one.
    pub(super) fn note(&mut self, slot: u32, sequence: u64, lines: &[LineId]) {
        if let Some((slot, span)) = self.newest.take() {
            if self.slots.len() <= slot {
                self.slots.resize(slot + 1, None);
            }
            self.slots[slot] = Some(span);
        }
        if let (Some(&first), Some(&last)) = (lines.first(), lines.last()) {
            self.newest = Some((slot as usize, Span { sequence, first, last }));
        }
    }

    fn spans(&self) -> impl Iterator<Item = &Span> {
        self.slots.iter().flatten().chain(self.newest.as_ref().map(|(_, span)| span))
    }

    /// What was in a dead letter, for people; `name` names an input.
    pub(super) fn describe(&self, letter: &DeadLetter, unit: Unit, name: impl Fn(u32) -> String) -> String {
        let rows = letter.tensors.first().and_then(|tensor| tensor.meta.shape().first().copied()).unwrap_or(0);
        let place = match self.spans().find(|span| span.sequence == letter.sequence) {
            Some(Span { first, last, .. }) if first.file == last.file => {
                format!("{unit}s {} to {} of {}", first.line, last.line, name(first.file))
            }
            Some(Span { first, last, .. }) => {
                let (from, to) = (name(first.file), name(last.file));
                format!("{unit} {} of {from} to {unit} {} of {to}", first.line, last.line)
            }
            // Published by the feed that this one took over from: its message says where it ended.
            None => match Place::decode(&letter.user).map(|place| (place.checkpoint.position, place.part)) {
                Ok((next, None)) => format!("{unit}s up to {} of {}", next.line, name(next.file)),
                Ok((before, Some(_))) => format!("{unit}s after {} of {}", before.line, name(before.file)),
                Err(_) => format!("{unit}s that it does not tell"),
            },
        };
        format!(
            "dead letter: message {} ({rows} rows, {place}) was delivered {} times without an ack, and is given up",
            letter.sequence, letter.attempts
        )
    }
}
