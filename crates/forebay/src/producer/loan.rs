//! The exclusive right to write one slot: publish it, or drop it.

use std::{ptr::NonNull, sync::Arc};

use forebay_layout::{DType, MAX_USER_BYTES, descriptor::TensorMeta, schema::Schema};

use super::{Producer, outline::Outline, site::Site};
use crate::{
    element::{self, Element},
    error::{PublishError, TensorError},
    segment::Slots,
};

/// A tensor that a message is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldSpec<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its element type.
    pub dtype: DType,
    /// Its dims, outermost first.
    pub shape: &'a [u64],
}

impl<'a> FieldSpec<'a> {
    /// A tensor of this name, type and shape.
    #[must_use]
    pub const fn new(name: &'a str, dtype: DType, shape: &'a [u64]) -> Self {
        Self { name, dtype, shape }
    }
}

/// What a loan knows, whoever owns it.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) slot: u32,
    /// `None`: the producer's own, which does not change while the loan borrows it.
    pub(super) outline: Option<Arc<Outline>>,
    pub(super) correlation_id: u64,
    pub(super) user: Vec<u8>,
}

impl Ticket {
    pub(super) fn new(slot: u32) -> Self {
        Self { slot, outline: None, correlation_id: 0, user: Vec::new() }
    }

    fn set_user(&mut self, user: &[u8]) -> Result<(), PublishError> {
        if user.len() > MAX_USER_BYTES {
            return Err(PublishError::UserBytes { found: user.len(), limit: MAX_USER_BYTES });
        }
        self.user.clear();
        self.user.extend_from_slice(user);
        Ok(())
    }
}

/// A loan's slot, layout and memory, to find tensors in.
struct Canvas<'a> {
    slot: u32,
    outline: &'a Outline,
    schema: Option<&'a Schema>,
    data: &'a Slots,
}

impl<'a> Canvas<'a> {
    fn find(&self, name: &str) -> Result<usize, TensorError> {
        self.outline.find(self.schema, name).ok_or_else(|| {
            let fields: Vec<&str> = match self.schema {
                Some(schema) => schema.fields().iter().map(|field| field.name.as_str()).collect(),
                None => self.outline.names.iter().map(|name| name.as_str()).collect(),
            };
            TensorError::NoField { name: name.to_owned(), fields: fields.join(", ") }
        })
    }

    fn bytes(&self, index: usize) -> Option<&'a mut [u8]> {
        let meta = self.outline.fields.get(index)?;
        Some(self.data.exclusive(self.slot, meta.offset, meta.nbytes))
    }

    fn tensor<T: Element>(&self, index: usize, name: &str) -> Result<&'a mut [T], TensorError> {
        let no_field = || TensorError::NoField { name: name.to_owned(), fields: self.outline.fields.len().to_string() };
        let meta = self.outline.fields.get(index).ok_or_else(no_field)?;
        element::check::<T>(name, meta.dtype)?;
        Ok(element::slice_mut(self.data.exclusive(self.slot, meta.offset, meta.nbytes)))
    }
}

fn shrink(outline: &mut Outline, index: usize, shape: &[u64]) -> Result<(), TensorError> {
    if outline.shrink(index, shape) {
        return Ok(());
    }
    let fields = match outline.fields.get(index) {
        Some(meta) => format!("a smaller shape of the same rank than {:?}", meta.shape()),
        None => outline.fields.len().to_string(),
    };
    Err(TensorError::NoField { name: index.to_string(), fields })
}

/// One slot, to write. Publish it, or drop it and nothing happened.
#[derive(Debug)]
#[must_use = "a loan that is dropped publishes nothing"]
pub struct Loan<'p> {
    producer: &'p mut Producer,
    /// `None` once published or detached.
    ticket: Option<Ticket>,
}

impl<'p> Loan<'p> {
    pub(super) fn new(producer: &'p mut Producer, ticket: Ticket) -> Self {
        Self { producer, ticket: Some(ticket) }
    }

    fn ticket(&self) -> &Ticket {
        self.ticket.as_ref().expect("a loan has its ticket until it is used up")
    }

    fn ticket_mut(&mut self) -> &mut Ticket {
        self.ticket.as_mut().expect("a loan has its ticket until it is used up")
    }

    fn outline(&self) -> &Outline {
        self.ticket().outline.as_deref().unwrap_or(&self.producer.outline)
    }

    fn canvas(&self) -> Canvas<'_> {
        let schema = self.producer.options.schema.as_ref();
        Canvas { slot: self.ticket().slot, outline: self.outline(), schema, data: &self.producer.site.objects.data }
    }

    /// The elements of a tensor, to write in place. What a slot held before is still in it.
    ///
    /// # Errors
    /// [`TensorError`]: no such field, or another type.
    pub fn tensor_mut<T: Element>(&mut self, name: &str) -> Result<&mut [T], TensorError> {
        let canvas = self.canvas();
        canvas.tensor(canvas.find(name)?, name)
    }

    /// The elements of two tensors at once.
    ///
    /// # Errors
    /// As [`tensor_mut`](Self::tensor_mut); also if both are the same.
    pub fn tensors_mut<T: Element, U: Element>(
        &mut self,
        a: &str,
        b: &str,
    ) -> Result<(&mut [T], &mut [U]), TensorError> {
        let canvas = self.canvas();
        let (i, j) = (canvas.find(a)?, canvas.find(b)?);
        if i == j {
            return Err(TensorError::NoField { name: b.to_owned(), fields: "two different fields".to_owned() });
        }
        Ok((canvas.tensor(i, a)?, canvas.tensor(j, b)?))
    }

    /// The bytes of tensor `index`, to write in place; `None` if there is no such one.
    pub fn bytes_mut(&mut self, index: usize) -> Option<&mut [u8]> {
        self.canvas().bytes(index)
    }

    /// A tensor as an array of its shape, to write in place.
    ///
    /// # Errors
    /// As [`tensor_mut`](Self::tensor_mut).
    #[cfg(feature = "ndarray")]
    pub fn view_mut<T: Element>(&mut self, name: &str) -> Result<ndarray::ArrayViewMutD<'_, T>, TensorError> {
        let index = self.canvas().find(name)?;
        let shape: Vec<usize> = self.fields()[index].shape().iter().map(|&dim| dim as usize).collect();
        let wrong = |_| TensorError::NoField { name: name.to_owned(), fields: "a shape that fits".to_owned() };
        ndarray::ArrayViewMutD::from_shape(shape, self.tensor_mut::<T>(name)?).map_err(wrong)
    }

    /// dtype, shape and place of all tensors, in the order of the schema (or of the specs, without one).
    #[must_use]
    pub fn fields(&self) -> &[TensorMeta] {
        &self.outline().fields
    }

    /// Makes a tensor smaller, keeping its rank: for what is only known once it is written. Its elements are then the
    /// first ones of what was written.
    ///
    /// # Errors
    /// No such tensor, or not smaller.
    pub fn shrink(&mut self, index: usize, shape: &[u64]) -> Result<(), TensorError> {
        let common = &self.producer.outline;
        let ticket = self.ticket.as_mut().expect("a loan has its ticket until it is used up");
        shrink(Arc::make_mut(ticket.outline.get_or_insert_with(|| Arc::clone(common))), index, shape)
    }

    /// Gives the message a number that the receiver sees.
    pub fn set_correlation_id(&mut self, id: u64) {
        self.ticket_mut().correlation_id = id;
    }

    /// Gives the message up to 256 bytes that the receiver sees.
    ///
    /// # Errors
    /// [`PublishError::UserBytes`]: too long.
    pub fn set_user(&mut self, user: &[u8]) -> Result<(), PublishError> {
        self.ticket_mut().set_user(user)
    }

    /// The slot it lies in.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.ticket().slot
    }

    /// Publishes the message and returns its sequence.
    ///
    /// # Errors
    /// [`PublishError::Forked`] in a forked child.
    #[inline]
    pub fn publish(mut self) -> Result<u64, PublishError> {
        let ticket = self.ticket.take().expect("a loan has its ticket until it is used up");
        self.producer.publish_ticket(&ticket)
    }

    /// Lets go of the producer, so that it can make further loans meanwhile; publish with [`Producer::publish`].
    pub fn detach(mut self) -> DetachedLoan {
        let ticket = self.ticket.take().expect("a loan has its ticket until it is used up");
        self.producer.site.loan_detached();
        DetachedLoan {
            site: Arc::clone(&self.producer.site),
            schema: self.producer.schema.clone(),
            outline: ticket.outline.clone().unwrap_or_else(|| Arc::clone(&self.producer.outline)),
            ticket: Some(ticket),
        }
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take()
            && !self.producer.site.token.is_stale()
        {
            self.producer.core.abandon(ticket.slot);
        }
    }
}

/// A loan that does not borrow its producer: several may be written at a time, on any thread. Dropping it gives the slot
/// back. One that outlives its producer can be written still, so a ring that was kept for a successor has none until
/// it is dropped: creating the ring fails with [`CreateError::Taken`](crate::CreateError::Taken) meanwhile.
#[derive(Debug)]
#[must_use = "a loan that is dropped publishes nothing"]
pub struct DetachedLoan {
    site: Arc<Site>,
    schema: Option<Arc<Schema>>,
    outline: Arc<Outline>,
    /// `None` once published.
    ticket: Option<Ticket>,
}

impl DetachedLoan {
    fn ticket(&self) -> &Ticket {
        self.ticket.as_ref().expect("a loan has its ticket until it is used up")
    }

    fn canvas(&self) -> Canvas<'_> {
        let (slot, schema) = (self.ticket().slot, self.schema.as_deref());
        Canvas { slot, outline: &self.outline, schema, data: &self.site.objects.data }
    }

    /// As [`Loan::tensor_mut`].
    ///
    /// # Errors
    /// As [`Loan::tensor_mut`].
    pub fn tensor_mut<T: Element>(&mut self, name: &str) -> Result<&mut [T], TensorError> {
        let canvas = self.canvas();
        canvas.tensor(canvas.find(name)?, name)
    }

    /// The place of the tensor with this name.
    ///
    /// # Errors
    /// [`TensorError::NoField`].
    pub fn index_of(&self, name: &str) -> Result<usize, TensorError> {
        self.canvas().find(name)
    }

    /// The name of tensor `index`.
    #[must_use]
    pub fn name(&self, index: usize) -> Option<&str> {
        match &self.schema {
            Some(schema) => schema.fields().get(index).map(|field| field.name.as_str()),
            None => self.outline.names.get(index).map(|name| name.as_str()),
        }
    }

    /// As [`Loan::bytes_mut`].
    pub fn bytes_mut(&mut self, index: usize) -> Option<&mut [u8]> {
        self.canvas().bytes(index)
    }

    /// As [`Loan::fields`].
    #[must_use]
    pub fn fields(&self) -> &[TensorMeta] {
        &self.outline.fields
    }

    /// As [`Loan::shrink`].
    ///
    /// # Errors
    /// As [`Loan::shrink`].
    pub fn shrink(&mut self, index: usize, shape: &[u64]) -> Result<(), TensorError> {
        shrink(Arc::make_mut(&mut self.outline), index, shape)
    }

    /// Where tensor `index` starts; `None` if there is no such one. Good until the loan is published or dropped, and
    /// mapped as long as [`keep_mapped`](Self::keep_mapped)'s answer lives.
    #[must_use]
    pub fn tensor_ptr(&self, index: usize) -> Option<NonNull<u8>> {
        let meta = self.outline.fields.get(index)?;
        Some(self.site.objects.data.address(self.ticket().slot, meta.offset, meta.nbytes))
    }

    /// Keeps the memory mapped, though no longer ours to write, after the loan is published or dropped.
    #[must_use]
    pub fn keep_mapped(&self) -> Mapped {
        Mapped(Arc::clone(&self.site))
    }

    /// As [`Loan::set_correlation_id`].
    pub fn set_correlation_id(&mut self, id: u64) {
        self.ticket.as_mut().expect("a loan has its ticket until it is used up").correlation_id = id;
    }

    /// As [`Loan::set_user`].
    ///
    /// # Errors
    /// As [`Loan::set_user`].
    pub fn set_user(&mut self, user: &[u8]) -> Result<(), PublishError> {
        self.ticket.as_mut().expect("a loan has its ticket until it is used up").set_user(user)
    }

    /// The slot it lies in.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.ticket().slot
    }

    pub(super) fn into_ticket(mut self, site: &Arc<Site>) -> Result<Ticket, PublishError> {
        if Arc::ptr_eq(&self.site, site) {
            let ticket = self.ticket.take().expect("a loan has its ticket until it is used up");
            Ok(Ticket { outline: Some(Arc::clone(&self.outline)), ..ticket })
        } else {
            Err(PublishError::NotOurs)
        }
    }
}

impl Drop for DetachedLoan {
    fn drop(&mut self) {
        // In a forked child the loan is the parent's.
        if self.site.token.is_stale() {
            return;
        }
        if let Some(ticket) = self.ticket.take() {
            self.site.abandon(ticket.slot);
        }
        // Last: the name may go with it, and from then on nothing here is ours to change.
        self.site.loan_ended();
    }
}

/// Keeps a producer's memory mapped.
#[derive(Debug, Clone)]
pub struct Mapped(Arc<Site>);

impl Mapped {
    /// True in a forked child, where the memory is gone.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        self.0.token.is_stale()
    }
}
