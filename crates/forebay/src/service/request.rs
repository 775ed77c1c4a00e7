//! A request, read and checked.

use std::sync::{Arc, Mutex};

use forebay_layout::{DType, Defect, descriptor::TensorMeta};

use super::{
    ITEMS_FIELD, Item, Trace,
    answer::is_reserved,
    control::{Book, lock},
    error::Bad,
    header::{Header, Kind},
};
use crate::{Message, Tensor, error::TensorError};

/// A request, to be answered once. Its tensors lie in the requests' slot, which is released when it and every tensor
/// taken from it are dropped.
#[derive(Debug)]
pub struct Request {
    message: Message,
    header: Header,
    items: Vec<Item>,
    book: Arc<Mutex<Book>>,
    /// Whether all ranks must do the same.
    alike: bool,
}

impl Request {
    /// Reads a message and enters it into the book.
    pub(super) fn read(message: Message, book: &Arc<Mutex<Book>>, alike: bool) -> Result<Self, Bad> {
        let header = Header::decode(message.user())?;
        if header.kind != Kind::Request {
            return Err(Defect::new("service.header.kind", header.kind as u64, "a request's, 1").into());
        }
        let items = read_items(&message, header.items)?;
        lock(book).enter(header.request, items.iter().map(|item| item.id).collect())?;
        Ok(Self { message, header, items, book: Arc::clone(book), alike })
    }

    /// Its number, unique in the service.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.header.request
    }

    /// Its items, one for each row.
    #[must_use]
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// When nobody needs any of it any more: CLOCK_MONOTONIC in ns ([`now_ns`](super::now_ns)), 0 for never.
    #[must_use]
    pub fn deadline_ns(&self) -> u64 {
        self.header.meta.deadline_ns
    }

    /// The span that the work on it belongs to.
    #[must_use]
    pub fn trace(&self) -> Option<Trace> {
        self.header.meta.trace
    }

    /// Whether nobody wants item `index` any more: its client cancelled it, or is gone. Looks now, in well under a
    /// microsecond, without blocking. False if there is no such item. With several ranks always false: they would look at
    /// different times, and go on differently.
    #[must_use]
    pub fn cancelled(&self, index: usize) -> bool {
        let Some(item) = self.items.get(index).filter(|_| !self.alike) else { return false };
        let mut book = lock(&self.book);
        book.poll();
        book.ended.is_some() || book.is_cancelled(self.header.request, item.id)
    }

    /// The message, with the tensors: the client's fields, then [`ITEMS_FIELD`].
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The client's fields: name, dtype, shape. Each that is no scalar has a row for each item.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &TensorMeta)> {
        (0..self.message.len())
            .filter_map(|index| Some((self.message.name(index)?, self.message.meta(index)?)))
            .filter(|(name, _)| !is_reserved(name))
    }

    /// One of the client's fields. It keeps the slot, also after the request is dropped.
    ///
    /// # Errors
    /// [`TensorError::NoField`] names the fields there are.
    pub fn tensor(&self, name: &str) -> Result<Tensor, TensorError> {
        self.message.tensor(name)
    }
}

fn read_items(message: &Message, rows: u32) -> Result<Vec<Item>, Bad> {
    let rows = u64::from(rows);
    let index = message.names().position(|name| name == ITEMS_FIELD);
    let found = index.and_then(|index| Some((message.meta(index)?, message.bytes(index)?)));
    let Some((_, bytes)) = found.filter(|(meta, _)| meta.dtype == DType::U64 && meta.shape() == [rows, 2]) else {
        return Err(Defect::new("service.request.items", rows, "as many rows as the header says").into());
    };
    if rows == 0 {
        return Err(Defect::new("service.request.items", 0, "at least one").into());
    }
    for index in 0..message.len() {
        let dim = message.meta(index).and_then(|meta| meta.shape().first().copied());
        if let Some(found) = dim.filter(|&dim| dim != rows) {
            return Err(Defect::bounded("service.request.rows", found, "one for each item,", rows).into());
        }
    }
    let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
    let item = |row: &[u8]| Item { id: word(&row[..8]), deadline_ns: word(&row[8..]) };
    Ok(bytes.chunks_exact(16).map(item).collect())
}
