//! An answer to write: tensors in place, how it went with each item, then published as a whole.

use std::{
    ops::{Deref, DerefMut},
    sync::Mutex,
};

use super::{
    ITEMS_FIELD, ItemStatus, TEXT_FIELD, Timings,
    control::{Book, lock},
    error::ServiceError as Error,
    header::Header,
};
use crate::{
    error::PublishError,
    producer::{DetachedLoan, Loan, Producer},
};

/// Bytes of one item's text at most.
const MOST_TEXT: usize = 1024;

/// One row of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartItem {
    /// The item.
    pub id: u64,
    /// Whether nothing more comes for it.
    pub last: bool,
}

impl PartItem {
    /// A row, after which there are more.
    #[must_use]
    pub const fn more(id: u64) -> Self {
        Self { id, last: false }
    }

    /// The last row of an item.
    #[must_use]
    pub const fn last(id: u64) -> Self {
        Self { id, last: true }
    }
}

/// What publishing an answer ends.
#[derive(Debug)]
pub(super) enum Ends {
    Nothing,
    Request(u64),
    Items(Vec<u64>),
}

impl Ends {
    fn enter(self, book: &Mutex<Book>) {
        let mut book = lock(book);
        match self {
            Self::Nothing => {}
            Self::Request(request) => book.close(request),
            Self::Items(ids) => ids.into_iter().for_each(|id| book.end_item(id)),
        }
    }
}

/// An answer's slot, to write as any [`Loan`]. Its last two fields are the service's own. Publish it, or drop it and
/// nothing was answered.
#[derive(Debug)]
#[must_use = "an answer that is dropped is never sent"]
pub struct AnswerLoan<'s> {
    pub(super) loan: Loan<'s>,
    pub(super) book: &'s Mutex<Book>,
    pub(super) header: Header,
    pub(super) ends: Ends,
    /// Bytes of texts so far.
    pub(super) texts: usize,
}

impl AnswerLoan<'_> {
    /// Says how it went with item `index`; without this it went well. A text beyond 1 KiB is cut, as are texts beyond 4
    /// KiB in all. False if there is no such item.
    pub fn set_status(&mut self, index: usize, status: ItemStatus, text: &str) -> bool {
        if index >= self.header.items as usize {
            return false;
        }
        let from = self.texts;
        let len = self.put_text(text, MOST_TEXT);
        let Ok(rows) = self.loan.tensor_mut::<u64>(ITEMS_FIELD) else { return false };
        let Some(word) = rows.get_mut(2 * index + 1) else { return false };
        let last = u64::from_le(*word) >> 8 & 1;
        *word = (status as u64 | last << 8 | (len as u64) << 16 | (from as u64) << 32).to_le();
        true
    }

    /// Adds a text to the texts' field, cut to what there is room for; returns its bytes.
    pub(super) fn put_text(&mut self, text: &str, most: usize) -> usize {
        let Ok(room) = self.loan.tensor_mut::<u8>(TEXT_FIELD) else { return 0 };
        let room = &mut room[self.texts..];
        let len = floor_char_boundary(text, most.min(room.len()));
        room[..len].copy_from_slice(&text.as_bytes()[..len]);
        self.texts += len;
        len
    }

    /// Says when it was computed.
    pub fn set_timings(&mut self, timings: Timings) {
        self.header.timings = timings;
    }

    /// Sends it. Does not block.
    ///
    /// # Errors
    /// [`PublishError::Forked`] in a forked child.
    pub fn publish(self) -> Result<(), PublishError> {
        let Self { mut loan, book, header, ends, .. } = self;
        loan.set_user(&header.encode())?;
        loan.set_correlation_id(header.request);
        loan.publish()?;
        ends.enter(book);
        Ok(())
    }

    /// Lets go of the server; publish it with [`Server::publish`](super::Server::publish).
    pub fn detach(self) -> DetachedAnswer {
        DetachedAnswer { loan: self.loan.detach(), header: self.header, ends: self.ends }
    }
}

/// The longest start of `text` of at most `most` bytes that ends between characters.
fn floor_char_boundary(text: &str, most: usize) -> usize {
    if text.len() <= most {
        return text.len();
    }
    (0..=most).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

impl<'s> Deref for AnswerLoan<'s> {
    type Target = Loan<'s>;

    fn deref(&self) -> &Loan<'s> {
        &self.loan
    }
}

impl<'s> DerefMut for AnswerLoan<'s> {
    fn deref_mut(&mut self) -> &mut Loan<'s> {
        &mut self.loan
    }
}

/// An answer's slot that does not borrow its server. Dropping it gives the slot back.
#[derive(Debug)]
#[must_use = "an answer that is dropped is never sent"]
pub struct DetachedAnswer {
    loan: DetachedLoan,
    header: Header,
    ends: Ends,
}

impl DetachedAnswer {
    /// As [`AnswerLoan::set_timings`].
    pub fn set_timings(&mut self, timings: Timings) {
        self.header.timings = timings;
    }

    pub(super) fn publish(self, answers: &mut Producer, book: &Mutex<Book>) -> Result<(), Error> {
        let Self { mut loan, header, ends } = self;
        loan.set_user(&header.encode())?;
        loan.set_correlation_id(header.request);
        answers.publish(loan)?;
        ends.enter(book);
        Ok(())
    }
}

impl Deref for DetachedAnswer {
    type Target = DetachedLoan;

    fn deref(&self) -> &DetachedLoan {
        &self.loan
    }
}

impl DerefMut for DetachedAnswer {
    fn deref_mut(&mut self) -> &mut DetachedLoan {
        &mut self.loan
    }
}

#[cfg(test)]
mod tests {
    use super::floor_char_boundary;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(floor_char_boundary("abc", 5), 3);
        assert_eq!(floor_char_boundary("abc", 2), 2);
        assert_eq!(floor_char_boundary("aä", 2), 1);
        assert_eq!(floor_char_boundary("ää", 3), 2);
        assert_eq!(floor_char_boundary("ä", 0), 0);
    }
}
