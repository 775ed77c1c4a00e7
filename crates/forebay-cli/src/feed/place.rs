//! Where a feed stands: what travels with its messages, and what `--position` keeps.
//!
//! Between two batches that is a [`Checkpoint`], as every feed of the library gives it. A batch that no slot has room for
//! is published in parts. While some of its rows are out and some are not, the place is that before the batch, and behind
//! it a second position: where the batch begins, with the number of its rows that are done as its `items`.

use forebay_ingest::{Checkpoint, Position, PositionError};

/// A batch that is published in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    first: Position,
}

impl Part {
    /// The first `rows` rows are done of the batch that begins at `first`.
    pub(super) fn new(first: Position, rows: usize) -> Self {
        Self { first: Position { items: rows as u64, ..first } }
    }

    /// Rows that are done.
    pub(super) fn rows(&self) -> u64 {
        self.first.items
    }

    /// Whether its batch begins there.
    pub(super) fn begins_at(&self, place: &Position) -> bool {
        let key = |at: &Position| (at.inputs, at.pass, at.file, at.offset, at.line, at.block_items);
        key(&self.first) == key(place)
    }
}

/// Where a feed stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Everything before it is done.
    pub(super) checkpoint: Checkpoint,
    /// What is done of one batch behind it.
    pub(super) part: Option<Part>,
}

impl Place {
    /// Whether nothing is done yet.
    pub(super) fn is_start(&self) -> bool {
        self.checkpoint.position.items == 0 && self.checkpoint.ahead.is_empty() && self.part.is_none()
    }

    /// As bytes, for a message. A part is left out if a feed of hundreds of threads is so far ahead of itself that there
    /// is no room: its rows would come twice after a kill.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = self.checkpoint.encode();
        if let Some(part) = &self.part
            && out.len() + Position::ENCODED_BYTES <= Checkpoint::MAX_ENCODED_BYTES
        {
            out.extend_from_slice(&part.first.encode());
        }
        out
    }

    /// What [`encode`](Self::encode) gave.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, PositionError> {
        let before = bytes.len().checked_sub(Position::ENCODED_BYTES).filter(|&before| before > 0);
        if let Some((checkpoint, part)) = before.map(|before| bytes.split_at(before))
            && let Ok(first) = Position::decode(part)
        {
            return Ok(Self { checkpoint: Checkpoint::decode(checkpoint)?, part: Some(Part { first }) });
        }
        Ok(Checkpoint::decode(bytes)?.into())
    }
}

impl From<Checkpoint> for Place {
    fn from(checkpoint: Checkpoint) -> Self {
        Self { checkpoint, part: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(line: u64) -> Position {
        Position { line, offset: 10 * line, items: line, ..Position::default() }
    }

    #[test]
    fn a_place_with_and_without_a_part_comes_back_as_it_was() {
        let whole = Place::from(Checkpoint::from(position(8)));
        assert_eq!(whole.encode(), position(8).encode(), "as the library writes it");
        let part = Place { part: Some(Part::new(position(9), 3)), ..whole.clone() };
        assert_eq!(part.encode().len(), 2 * Position::ENCODED_BYTES);
        for place in [whole, part] {
            assert_eq!(Place::decode(&place.encode()), Ok(place));
        }
    }

    #[test]
    fn a_part_is_of_the_batch_that_begins_where_it_does() {
        let part = Part::new(position(9), 3);
        assert_eq!(part.rows(), 3);
        assert!(part.begins_at(&position(9)) && part.begins_at(&Position { items: 70, ..position(9) }));
        assert!(!part.begins_at(&position(8)));
    }

    #[test]
    fn every_flipped_bit_of_a_part_is_noticed() {
        let good =
            Place { part: Some(Part::new(position(9), 3)), ..Place::from(Checkpoint::from(position(8))) }.encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Place::decode(&bad).is_err(), "bit {bit}");
        }
    }
}
