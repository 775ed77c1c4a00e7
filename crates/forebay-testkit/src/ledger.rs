//! Payloads whose every word is a function of (message, index): a torn, stale or foreign one is found by looking, at
//! receipt and again before release. And the book of what came, kept outside the transport.

use std::{collections::BTreeMap, fmt};

use forebay::{DType, FieldSpec, LoanError, Message, Producer, Schema};

/// The field that all test messages have.
pub const FIELD: &str = "words";
/// Words of the largest message under [`schema`].
pub const MAX_WORDS: u64 = 512;

/// The schema of test rings: one field of up to 512 words.
#[must_use]
pub fn schema() -> Schema {
    Schema::builder("ledger", 1, 0).field(FIELD, DType::U64, &[MAX_WORDS]).build().unwrap()
}

/// Word `index` of message `id`.
#[must_use]
pub fn word(id: u64, index: u64) -> u64 {
    // A multiplication and a shift mix well enough that no word of one message is a word of another.
    let mixed = (id << 20 ^ index).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ mixed >> 31
}

/// Writes message `id`.
pub fn fill(words: &mut [u64], id: u64) {
    for (index, to) in words.iter_mut().enumerate() {
        *to = word(id, index as u64);
    }
}

/// A payload that is not what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Torn {
    /// The message.
    pub id: u64,
    /// The first wrong word.
    pub index: usize,
    /// What it says.
    pub found: u64,
}

impl fmt::Display for Torn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expected = word(self.id, self.index as u64);
        write!(f, "word {} of message {} is {:#x}, expected {expected:#x}", self.index, self.id, self.found)
    }
}

/// Whether all words are those of message `id`.
///
/// # Errors
/// The first that is not.
pub fn check(words: &[u64], id: u64) -> Result<(), Torn> {
    for (index, &found) in words.iter().enumerate() {
        if found != word(id, index as u64) {
            return Err(Torn { id, index, found });
        }
    }
    Ok(())
}

/// Publishes the next message of `words` words; its id is its sequence, which it also carries as correlation id.
///
/// # Errors
/// There was no loan.
///
/// # Panics
/// The sequence is not the one after the last.
pub fn publish(producer: &mut Producer, words: u64) -> Result<u64, LoanError> {
    let id = producer.stats().published + 1;
    let mut loan = producer.loan(&[FieldSpec::new(FIELD, DType::U64, &[words])])?;
    fill(loan.tensor_mut(FIELD).unwrap(), id);
    loan.set_correlation_id(id);
    assert_eq!(loan.publish().unwrap(), id, "sequences have no gaps");
    Ok(id)
}

/// Checks every word of a received message, and that it says it is what it is.
///
/// # Panics
/// It is not.
pub fn check_message(message: &Message) {
    let id = message.correlation_id();
    assert_eq!(id, message.sequence(), "a message's id is its sequence");
    let tensor = message.tensor(FIELD).unwrap();
    assert_eq!(tensor.as_ptr().as_ptr() as usize % forebay::ALIGN as usize, 0);
    if let Err(torn) = check(tensor.as_slice().unwrap(), id) {
        panic!("{torn}");
    }
}

/// Who got what, how often.
#[derive(Debug, Default)]
pub struct Ledger {
    deliveries: BTreeMap<u64, u32>,
    finished: BTreeMap<u64, u32>,
}

impl Ledger {
    /// Message `id` was delivered.
    pub fn delivered(&mut self, id: u64) {
        *self.deliveries.entry(id).or_default() += 1;
    }

    /// Message `id` was dealt with: acked, or handed back as a dead letter.
    pub fn finished(&mut self, id: u64) {
        *self.finished.entry(id).or_default() += 1;
    }

    /// How often `id` was delivered.
    #[must_use]
    pub fn deliveries(&self, id: u64) -> u32 {
        self.deliveries.get(&id).copied().unwrap_or(0)
    }

    /// The ids from 1 to `last` that were never delivered.
    #[must_use]
    pub fn missing(&self, last: u64) -> Vec<u64> {
        (1..=last).filter(|id| !self.deliveries.contains_key(id)).collect()
    }

    /// The ids that were dealt with more than once.
    #[must_use]
    pub fn twice(&self) -> Vec<u64> {
        self.finished.iter().filter(|(_, n)| **n > 1).map(|(id, _)| *id).collect()
    }

    /// The highest id delivered.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.deliveries.last_key_value().map_or(0, |(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_of_another_message_is_found() {
        let mut words = [0; 100];
        fill(&mut words, 7);
        assert_eq!(check(&words, 7), Ok(()));
        words[99] = word(8, 99);
        assert_eq!(check(&words, 7).unwrap_err().index, 99);
    }
}
