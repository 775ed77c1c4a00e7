//! An answer, read and checked.

use forebay_layout::{DType, Defect, descriptor::TensorMeta};

use super::{
    ITEMS_FIELD, ItemStatus, TEXT_BYTES, TEXT_FIELD, Timings,
    asking::Ledger,
    error::Bad,
    header::{Header, Kind},
};
use crate::{Message, Tensor, error::TensorError};

/// What an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AnswerKind {
    /// The server is warmed up and answers from now on: [`Answer::readiness`].
    Ready,
    /// The whole batch: fields with a row for each item, in the request's order, and a status each.
    Result,
    /// Rows of some items, perhaps of several requests; more come for those that are not [`last`](AnswerItem::last).
    Part,
    /// The whole request failed, or what was left of it: [`Answer::failure`].
    Failed,
}

/// One row of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerItem {
    /// The item.
    pub id: u64,
    /// The request it belongs to.
    pub request: u64,
    /// How it went.
    pub status: ItemStatus,
    /// Whether nothing more comes for it.
    pub last: bool,
    text: (u32, u16),
}

/// What a server says of itself once it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness<'a> {
    /// Its process id, in its own namespace.
    pub pid: u32,
    /// Ranks it knows of.
    pub ranks: u32,
    /// A short text, such as the framework and its version.
    pub text: &'a str,
}

/// An answer. Its tensors lie in the answers' slot, which is released when it and every tensor taken from it are
/// dropped.
#[derive(Debug)]
pub struct Answer {
    message: Message,
    header: Header,
    items: Vec<AnswerItem>,
    /// Copied up to the end of the last one: what is checked to be text must not change any more, and it must be there in a
    /// forked child too, which has no slot to read from.
    texts: Box<[u8]>,
}

impl Answer {
    /// Reads a message and enters it into the ledger.
    pub(super) fn read(message: Message, ledger: &mut Ledger) -> Result<Self, Bad> {
        let header = Header::decode(message.user())?;
        let mut answer = Self { message, header, items: Vec::new(), texts: Box::default() };
        answer.read_texts()?;
        match header.kind {
            Kind::Ready => {}
            Kind::Failed => {
                if !ledger.open.contains_key(&header.request) {
                    return Err(Defect::new("service.answer.request", header.request, "an open request").into());
                }
                ledger.close(header.request);
            }
            Kind::Part => {
                answer.read_items(ledger)?;
                for item in &answer.items {
                    // Looked up again: the same item may be named twice.
                    if ledger.items.get(&item.id) != Some(&item.request) {
                        return Err(Defect::new("service.answer.item", item.id, "an open item").into());
                    }
                    if item.last {
                        ledger.end_item(item.id, item.request);
                    }
                }
            }
            Kind::Result => {
                answer.read_items(ledger)?;
                let found = ledger.open.get(&header.request);
                let Some(open) = found.filter(|open| open.left == open.ids.len()) else {
                    return Err(
                        Defect::new("service.answer.request", header.request, "a request without answer").into()
                    );
                };
                if !open.ids.iter().eq(answer.items.iter().map(|item| &item.id)) {
                    let expected = "the request's items, in order";
                    return Err(Defect::new("service.answer.items", answer.items.len() as u64, expected).into());
                }
                ledger.close(header.request);
            }
            Kind::Request | Kind::Cancel => {
                return Err(Defect::new("service.header.kind", header.kind as u64, "an answer's, 16 to 19").into());
            }
        }
        Ok(answer)
    }

    /// The texts' field, no more of it than there are texts at most.
    fn slot_texts(&self) -> &[u8] {
        let bytes = self.reserved(TEXT_FIELD, DType::U8).unwrap_or_default();
        &bytes[..bytes.len().min(TEXT_BYTES as usize)]
    }

    /// The texts that the header tells of.
    fn read_texts(&mut self) -> Result<(), Bad> {
        let needed = u64::from(self.header.type_bytes) + u64::from(self.header.text_bytes);
        if needed == 0 {
            return Ok(());
        }
        let texts = self.slot_texts();
        let Some(found) = texts.get(..needed as usize) else {
            return Err(Defect::bounded("service.header.text_bytes", needed, "at most", texts.len() as u64).into());
        };
        self.texts = found.into();
        Ok(())
    }

    /// The rows of the items' field, checked against the ledger and the other fields, and their texts.
    fn read_items(&mut self, ledger: &Ledger) -> Result<(), Bad> {
        let bytes = self.reserved(ITEMS_FIELD, DType::U64).unwrap_or_default();
        let rows = u64::from(self.header.items);
        if bytes.len() as u64 != rows * 16 {
            return Err(
                Defect::bounded("service.answer.items", bytes.len() as u64 / 16, "as the header says,", rows).into()
            );
        }
        for (_, meta) in self.fields() {
            if meta.shape().first() != Some(&rows) {
                let found = meta.shape().first().copied().unwrap_or_default();
                return Err(Defect::bounded("service.answer.rows", found, "one for each item,", rows).into());
            }
        }
        let texts = self.slot_texts();
        let mut last_text = 0;
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        let items: Result<Vec<_>, Bad> = bytes
            .chunks_exact(16)
            .map(|row| {
                let (id, word) = (word(&row[..8]), word(&row[8..]));
                let status = match word & 0xff {
                    0 => ItemStatus::Ok,
                    1 => ItemStatus::Error,
                    2 => ItemStatus::Cancelled,
                    other => return Err(Defect::new("service.answer.status", other, "0, 1 or 2").into()),
                };
                let (last, text) = (word >> 8 & 0xff, ((word >> 32) as u32, (word >> 16) as u16));
                if last > 1 {
                    return Err(Defect::new("service.answer.last", last, "0 or 1").into());
                }
                let end = u64::from(text.0) + u64::from(text.1);
                if end > texts.len() as u64 {
                    return Err(Defect::bounded("service.answer.text", end, "at most", texts.len() as u64).into());
                }
                if text.1 > 0 {
                    last_text = last_text.max(end as usize);
                }
                let known = ledger.items.get(&id);
                let request = *known.ok_or(Defect::new("service.answer.item", id, "an item of an open request"))?;
                Ok(AnswerItem { id, request, status, last: last == 1, text })
            })
            .collect();
        let items = items?;
        if last_text > 0 {
            self.texts = texts[..last_text].into();
        }
        self.items = items;
        Ok(())
    }

    fn reserved(&self, name: &str, dtype: DType) -> Option<&[u8]> {
        let index = self.message.names().position(|own| own == name)?;
        let meta = self.message.meta(index).filter(|meta| meta.dtype == dtype)?;
        debug_assert_eq!(meta.nbytes % dtype.size() as u64, 0);
        self.message.bytes(index)
    }

    fn text(&self, from: usize, len: usize) -> &str {
        let bytes = self.texts.get(from..from + len).unwrap_or_default();
        // A text that is none is shown up to where it is.
        match str::from_utf8(bytes) {
            Ok(text) => text,
            Err(e) => str::from_utf8(&bytes[..e.valid_up_to()]).unwrap_or_default(),
        }
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> AnswerKind {
        match self.header.kind {
            Kind::Ready => AnswerKind::Ready,
            Kind::Part => AnswerKind::Part,
            Kind::Failed => AnswerKind::Failed,
            // `read` lets no other kind pass.
            _ => AnswerKind::Result,
        }
    }

    /// The request it answers; 0 for [`Ready`](AnswerKind::Ready) and for [`Part`](AnswerKind::Part), whose items say it.
    #[must_use]
    pub fn request(&self) -> u64 {
        self.header.request
    }

    /// Its rows: each item, how it went, whether that is all. Empty for Ready and Failed.
    #[must_use]
    pub fn items(&self) -> &[AnswerItem] {
        &self.items
    }

    /// What went wrong with row `index`; `None` if there is no such row or no text.
    #[must_use]
    pub fn error(&self, index: usize) -> Option<&str> {
        let (from, len) = self.items.get(index)?.text;
        (len > 0).then(|| self.text(from as usize, len.into()))
    }

    /// The type and text of the exception, if the request failed as a whole.
    #[must_use]
    pub fn failure(&self) -> Option<(&str, &str)> {
        let (kind, text) = (self.header.type_bytes as usize, self.header.text_bytes as usize);
        (self.header.kind == Kind::Failed).then(|| (self.text(0, kind), self.text(kind, text)))
    }

    /// What the server says of itself, if this is its first word.
    #[must_use]
    pub fn readiness(&self) -> Option<Readiness<'_>> {
        let Header { pid, ranks, text_bytes, .. } = self.header;
        (self.header.kind == Kind::Ready).then(|| Readiness { pid, ranks, text: self.text(0, text_bytes as usize) })
    }

    /// When the server computed it.
    #[must_use]
    pub fn timings(&self) -> Timings {
        self.header.timings
    }

    /// The message, with the tensors: the server's fields, then [`ITEMS_FIELD`] and [`TEXT_FIELD`].
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The message in the answer's stead: to keep its tensors.
    #[must_use]
    pub fn into_message(self) -> Message {
        self.message
    }

    /// The server's fields: name, dtype, shape.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &TensorMeta)> {
        (0..self.message.len())
            .filter_map(|index| Some((self.message.name(index)?, self.message.meta(index)?)))
            .filter(|(name, _)| !is_reserved(name))
    }

    /// One of the server's fields. It keeps the slot, also after the answer is dropped.
    ///
    /// # Errors
    /// [`TensorError::NoField`] names the fields there are.
    pub fn tensor(&self, name: &str) -> Result<Tensor, TensorError> {
        self.message.tensor(name)
    }
}

/// Whether a field is the service's own.
pub(super) fn is_reserved(name: &str) -> bool {
    name == ITEMS_FIELD || name == TEXT_FIELD
}
