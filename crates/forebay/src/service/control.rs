//! What a server knows: which items it has to answer, and which of them nobody wants any more.

use std::sync::{Mutex, MutexGuard, PoisonError};

use forebay_layout::{DType, Defect, Kind as RingKind};

use super::{
    ITEMS_FIELD, IdMap, IdSet,
    error::{Bad, End},
    header::{Header, Kind},
};
use crate::{Consumer, Message};

/// Cancellations of requests that did not arrive yet are kept up to here. They are hints; a client that sends more
/// has them forgotten.
const MOST_EARLY: usize = 65_536;

/// A server's book, shared with the requests it handed out.
#[derive(Debug)]
pub(super) struct Book {
    /// Who brings cancellations; `None` after its end.
    control: Option<Consumer>,
    /// Why the client is gone.
    pub(super) ended: Option<End>,
    /// Open requests: how many of their items have no answer yet.
    open: IdMap<Open>,
    /// Which request an open item belongs to.
    items: IdMap<u64>,
    cancelled_items: IdSet,
    cancelled_requests: IdSet,
    /// The last request that was received: they come in order.
    received: u64,
}

#[derive(Debug)]
struct Open {
    ids: Vec<u64>,
    left: usize,
}

pub(super) fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    // Nothing in here is left half done by a panic.
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Book {
    pub(super) fn new(control: Consumer) -> Self {
        Self {
            control: Some(control),
            ended: None,
            open: IdMap::default(),
            items: IdMap::default(),
            cancelled_items: IdSet::default(),
            cancelled_requests: IdSet::default(),
            received: 0,
        }
    }

    /// Reads what the client said since the last time. Does not block.
    pub(super) fn poll(&mut self) {
        while let Some(control) = &mut self.control {
            let end = match control.try_recv() {
                Ok(Some(message)) => match self.note(&message) {
                    Ok(()) => continue,
                    Err(bad) => End::Bad(bad),
                },
                Ok(None) => return,
                Err(e) => match End::of(&e) {
                    Some(end) => end,
                    // It passes, or the requests' ring says it as well.
                    None => return,
                },
            };
            self.control = None;
            self.ended.get_or_insert(end);
        }
    }

    /// Whether this rank, which is not 0, must [`discard`](Self::discard): an older client broadcasts to all.
    pub(super) fn is_owed_a_copy(&self) -> bool {
        self.control.as_ref().is_some_and(|control| control.kind() == RingKind::Broadcast)
    }

    /// Takes this rank's copy of what the client said, so that its slots are free again. Whether the client is gone, or
    /// said what cannot be read, is rank 0's to hear.
    pub(super) fn discard(&mut self) {
        let Some(control) = &mut self.control else { return };
        while let Ok(Some(_)) = control.try_recv() {}
    }

    fn note(&mut self, message: &Message) -> Result<(), Bad> {
        let header = Header::decode(message.user())?;
        if header.kind != Kind::Cancel {
            return Err(Defect::new("service.header.kind", header.kind as u64, "a cancellation's, 2").into());
        }
        let request = header.request;
        if request <= self.received && !self.open.contains_key(&request) {
            return Ok(());
        }
        if header.items == 0 {
            if self.cancelled_requests.len() < MOST_EARLY {
                self.cancelled_requests.insert(request);
            }
            return Ok(());
        }
        let index = message.names().position(|name| name == ITEMS_FIELD);
        let found = index.and_then(|index| Some((message.meta(index)?, message.bytes(index)?)));
        let Some((_, bytes)) =
            found.filter(|(meta, bytes)| meta.dtype == DType::U64 && bytes.len() as u64 == u64::from(header.items) * 8)
        else {
            return Err(
                Defect::new("service.cancel.items", header.items.into(), "as many ids as the header says").into()
            );
        };
        let early = request > self.received;
        for id in bytes.chunks_exact(8).map(|id| id.try_into().map_or(0, u64::from_le_bytes)) {
            if self.items.get(&id) == Some(&request) || early && self.cancelled_items.len() < MOST_EARLY {
                self.cancelled_items.insert(id);
            }
        }
        Ok(())
    }

    pub(super) fn is_cancelled(&self, request: u64, id: u64) -> bool {
        !self.cancelled_items.is_empty() && self.cancelled_items.contains(&id)
            || !self.cancelled_requests.is_empty() && self.cancelled_requests.contains(&request)
    }

    /// The open items that nobody wants: request and item.
    pub(super) fn cancelled(&self) -> Vec<(u64, u64)> {
        if self.ended.is_some() {
            return self.items.iter().map(|(&item, &request)| (request, item)).collect();
        }
        let single = self.cancelled_items.iter().filter_map(|item| Some((*self.items.get(item)?, *item)));
        let whole = self.cancelled_requests.iter().filter_map(|request| Some((*request, self.open.get(request)?)));
        let whole = whole.flat_map(|(request, open)| open.ids.iter().map(move |&item| (request, item)));
        single.chain(whole.filter(|(request, item)| self.items.get(item) == Some(request))).collect()
    }

    /// A request was received. An id that comes twice is the client's fault; the later one has it.
    pub(super) fn enter(&mut self, request: u64, ids: Vec<u64>) -> Result<(), Bad> {
        if self.open.contains_key(&request) {
            return Err(Defect::new("service.header.request", request, "one that is not open already").into());
        }
        for &id in &ids {
            if self.items.insert(id, request).is_some() {
                return Err(Defect::new("service.item", id, "one that is not open already").into());
            }
        }
        let left = ids.len();
        self.received = self.received.max(request);
        self.open.insert(request, Open { ids, left });
        Ok(())
    }

    /// How many items of a request have no answer yet; `None` if it is through.
    pub(super) fn left(&self, request: u64) -> Option<usize> {
        self.open.get(&request).map(|open| open.left)
    }

    /// The request of an open item.
    pub(super) fn request_of(&self, id: u64) -> Option<u64> {
        self.items.get(&id).copied()
    }

    /// Stops listening.
    pub(super) fn leave(&mut self) {
        self.control = None;
    }

    /// Requests that are not answered yet.
    pub(super) fn outstanding(&self) -> usize {
        self.open.len()
    }

    pub(super) fn end_item(&mut self, id: u64) {
        let Some(request) = self.items.remove(&id) else { return };
        self.cancelled_items.remove(&id);
        if let Some(open) = self.open.get_mut(&request) {
            open.left = open.left.saturating_sub(1);
            if open.left == 0 {
                self.close(request);
            }
        }
    }

    pub(super) fn close(&mut self, request: u64) {
        let Some(open) = self.open.remove(&request) else { return };
        self.cancelled_requests.remove(&request);
        for id in open.ids {
            if self.items.get(&id) == Some(&request) {
                self.items.remove(&id);
                self.cancelled_items.remove(&id);
            }
        }
    }
}
