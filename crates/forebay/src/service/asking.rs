//! A request to write: tensors in place, then published as a whole.

use std::ops::{Deref, DerefMut};

use forebay_layout::DType;

use super::{
    ITEMS_FIELD, IdMap, Item, Meta,
    header::{Header, Kind},
};
use crate::{
    error::{LoanError, PublishError},
    producer::{DetachedLoan, FieldSpec, Loan, Producer},
};

/// What a client waits for.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// The last request's id.
    last: u64,
    /// Open requests, with the ids of their items and how many of these have no answer yet.
    pub(super) open: IdMap<Open>,
    /// Which request an open item belongs to.
    pub(super) items: IdMap<u64>,
}

#[derive(Debug)]
pub(super) struct Open {
    pub(super) ids: Vec<u64>,
    pub(super) left: usize,
}

impl Ledger {
    fn enter(&mut self, ids: Vec<u64>) -> u64 {
        self.last += 1;
        for &id in &ids {
            self.items.insert(id, self.last);
        }
        let left = ids.len();
        self.open.insert(self.last, Open { ids, left });
        self.last
    }

    /// Forgets a request and what is left of its items.
    pub(super) fn close(&mut self, request: u64) {
        if let Some(open) = self.open.remove(&request) {
            for id in open.ids {
                if self.items.get(&id) == Some(&request) {
                    self.items.remove(&id);
                }
            }
        }
    }

    /// An item has its last answer.
    pub(super) fn end_item(&mut self, id: u64, request: u64) {
        self.items.remove(&id);
        if let Some(open) = self.open.get_mut(&request) {
            open.left -= 1;
            if open.left == 0 {
                self.open.remove(&request);
            }
        }
    }

    /// The first of these that an open request has.
    fn taken(&self, mut ids: impl Iterator<Item = u64>) -> Option<u64> {
        ids.find(|id| self.items.contains_key(id))
    }

    /// Whether these can be the items of a new request.
    fn check(&self, ring: &str, fields: &[FieldSpec<'_>], items: &[Item]) -> Result<(), LoanError> {
        let wrong = |what: String| Err(LoanError::Fields { ring: ring.to_owned(), what });
        if items.is_empty() {
            return wrong("a request without items; leave it out".to_owned());
        }
        for field in fields {
            if field.shape.first().is_some_and(|&rows| rows != items.len() as u64) {
                let (name, shape, items) = (field.name, field.shape, items.len());
                return wrong(format!(
                    "field {name:?} has shape {shape:?} for {items} items; its first dim must be {items}"
                ));
            }
        }
        if let Some(id) = self.taken(items.iter().map(|item| item.id)) {
            return wrong(format!("item {id} is in a request without an answer; give each item its own id"));
        }
        if !items.is_sorted_by(|a, b| a.id < b.id) {
            let mut ids: Vec<u64> = items.iter().map(|item| item.id).collect();
            ids.sort_unstable();
            if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
                return wrong(format!("item {} is given twice; give each item its own id", pair[0]));
            }
        }
        Ok(())
    }
}

/// The loan of a request's slot.
pub(super) fn begin<'c>(
    requests: &'c mut Producer,
    ledger: &'c mut Ledger,
    fields: &[FieldSpec<'_>],
    items: &[Item],
) -> Result<RequestLoan<'c>, LoanError> {
    ledger.check(requests.ring(), fields, items)?;
    let shape = [items.len() as u64, 2];
    let mut specs = Vec::with_capacity(fields.len() + 1);
    specs.extend_from_slice(fields);
    specs.push(FieldSpec::new(ITEMS_FIELD, DType::U64, &shape));
    let mut loan = requests.try_loan(&specs).map_err(|e| match e {
        // What the caller knows of: his own fields.
        LoanError::TooLarge { ring, needed, largest } => {
            let own = (shape[0] * 16).next_multiple_of(64);
            LoanError::TooLarge { ring, needed: needed.saturating_sub(own), largest: largest.saturating_sub(own) }
        }
        e => e,
    })?;
    let rows = loan.tensor_mut::<u64>(ITEMS_FIELD).expect("it was asked for above, as u64");
    for (row, item) in rows.chunks_exact_mut(2).zip(items) {
        row.copy_from_slice(&[item.id.to_le(), item.deadline_ns.to_le()]);
    }
    let ids = items.iter().map(|item| item.id).collect();
    Ok(RequestLoan { loan, ledger, ids })
}

fn header(request: u64, items: usize, meta: &Meta) -> [u8; super::header::BYTES] {
    let mut header = Header::new(Kind::Request, request, items);
    header.meta = *meta;
    header.encode()
}

/// A request's slot, to write as any [`Loan`]. Its last field is the items', which is written already. Publish it, or
/// drop it and nothing happened.
#[derive(Debug)]
#[must_use = "a request that is dropped is never asked"]
pub struct RequestLoan<'c> {
    loan: Loan<'c>,
    ledger: &'c mut Ledger,
    ids: Vec<u64>,
}

impl RequestLoan<'_> {
    /// Asks; returns the request's id, by which its answers are known. Does not block.
    ///
    /// # Errors
    /// [`PublishError::Closed`] after a drain, [`PublishError::Forked`] in a forked child.
    pub fn publish(self, meta: &Meta) -> Result<u64, PublishError> {
        let Self { mut loan, ledger, ids } = self;
        let id = ledger.last + 1;
        loan.set_user(&header(id, ids.len(), meta))?;
        loan.set_correlation_id(id);
        loan.publish()?;
        Ok(ledger.enter(ids))
    }

    /// Lets go of the client, so that it can be used meanwhile, and the request be written on any thread; publish it
    /// with [`Client::publish`](super::Client::publish).
    pub fn detach(self) -> DetachedRequest {
        DetachedRequest { loan: self.loan.detach(), ids: self.ids }
    }
}

impl<'c> Deref for RequestLoan<'c> {
    type Target = Loan<'c>;

    fn deref(&self) -> &Loan<'c> {
        &self.loan
    }
}

impl<'c> DerefMut for RequestLoan<'c> {
    fn deref_mut(&mut self) -> &mut Loan<'c> {
        &mut self.loan
    }
}

/// A request's slot that does not borrow its client: several may be written at a time, on any thread. Dropping it gives
/// the slot back.
#[derive(Debug)]
#[must_use = "a request that is dropped is never asked"]
pub struct DetachedRequest {
    loan: DetachedLoan,
    ids: Vec<u64>,
}

impl DetachedRequest {
    pub(super) fn publish(
        self,
        requests: &mut Producer,
        ledger: &mut Ledger,
        meta: &Meta,
    ) -> Result<u64, PublishError> {
        let Self { mut loan, ids } = self;
        // Looked at when it was begun, but others may have been asked since: the server ends the service at such a pair.
        if let Some(item) = ledger.taken(ids.iter().copied()) {
            return Err(PublishError::ItemTaken { item });
        }
        let id = ledger.last + 1;
        loan.set_user(&header(id, ids.len(), meta))?;
        loan.set_correlation_id(id);
        requests.publish(loan)?;
        Ok(ledger.enter(ids))
    }

    /// The ids of its items.
    #[must_use]
    pub fn ids(&self) -> &[u64] {
        &self.ids
    }
}

impl Deref for DetachedRequest {
    type Target = DetachedLoan;

    fn deref(&self) -> &DetachedLoan {
        &self.loan
    }
}

impl DerefMut for DetachedRequest {
    fn deref_mut(&mut self) -> &mut DetachedLoan {
        &mut self.loan
    }
}
