//! The exclusive right to write one slot: publish it, or drop it.

use std::{ptr::NonNull, sync::Arc};

use forebay_layout::{
    ALIGN, DType, FieldName, MAX_USER_BYTES, check_field_name, descriptor::TensorMeta, round_up, schema::Schema,
};

use super::{Producer, site::Site};
use crate::{
    element::{self, Element},
    error::{LoanError, PublishError, TensorError},
    fields::FieldList,
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

/// The layout of one message in a slot.
#[derive(Debug)]
pub(super) struct Outline {
    pub(super) fields: FieldList,
    /// Schemaless rings only.
    pub(super) names: Vec<FieldName>,
    pub(super) payload_bytes: u64,
}

impl Outline {
    /// Lays the tensors out one after the other, each 64-byte aligned, in the schema's order.
    pub(super) fn new(ring: &str, schema: Option<&Schema>, specs: &[FieldSpec<'_>]) -> Result<Self, LoanError> {
        let wrong = |what: String| LoanError::Fields { ring: ring.to_owned(), what };
        let mut outline = Self { fields: FieldList::new(), names: Vec::new(), payload_bytes: 0 };
        match schema {
            Some(schema) => {
                if let Some(extra) = specs.iter().find(|spec| schema.index_of(spec.name).is_none()) {
                    return Err(wrong(format!("no field {:?} in schema {schema}; leave it out", extra.name)));
                }
                for field in schema.fields() {
                    let name = field.name.as_str();
                    let mut found = specs.iter().filter(|spec| spec.name == name);
                    let (Some(spec), None) = (found.next(), found.next()) else {
                        return Err(wrong(format!("field {name:?} of schema {schema} must be given once")));
                    };
                    if spec.dtype != field.dtype {
                        return Err(wrong(format!(
                            "field {name:?} is {}, the schema says {}; convert it first",
                            spec.dtype, field.dtype
                        )));
                    }
                    if spec.shape.len() != field.max_dims().len() {
                        return Err(wrong(format!(
                            "field {name:?} has shape {:?} of rank {}, the schema says {field}",
                            spec.shape,
                            spec.shape.len()
                        )));
                    }
                    if spec.shape.iter().zip(field.max_dims()).any(|(dim, most)| dim > most) {
                        return Err(wrong(format!(
                            "field {name:?} has shape {:?}, the schema allows at most {field}",
                            spec.shape
                        )));
                    }
                    outline.push(spec).ok_or_else(|| wrong(too_large(spec)))?;
                }
            }
            None => {
                if specs.len() > forebay_layout::MAX_FIELDS {
                    return Err(wrong(format!(
                        "{} fields, at most {} are possible; send several messages",
                        specs.len(),
                        forebay_layout::MAX_FIELDS
                    )));
                }
                for (i, spec) in specs.iter().enumerate() {
                    let name = check_field_name(spec.name).map_err(|e| wrong(format!("field {:?}: {e}", spec.name)))?;
                    if specs[..i].iter().any(|other| other.name == spec.name) {
                        return Err(wrong(format!("field {:?} is given twice", spec.name)));
                    }
                    outline.names.push(name);
                    outline.push(spec).ok_or_else(|| wrong(too_large(spec)))?;
                }
            }
        }
        Ok(outline)
    }

    fn push(&mut self, spec: &FieldSpec<'_>) -> Option<()> {
        let meta = TensorMeta::new(spec.dtype, spec.shape, self.payload_bytes)?;
        self.payload_bytes = round_up(self.payload_bytes.checked_add(meta.nbytes)?, ALIGN)?;
        self.fields.push(meta);
        Some(())
    }
}

fn too_large(spec: &FieldSpec<'_>) -> String {
    format!("field {:?} of shape {:?} has more than 8 dims or more bytes than there can be", spec.name, spec.shape)
}

/// What a loan knows, whoever owns it.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) slot: u32,
    pub(super) outline: Outline,
    pub(super) correlation_id: u64,
    pub(super) user: Vec<u8>,
}

impl Ticket {
    fn set_user(&mut self, user: &[u8]) -> Result<(), PublishError> {
        if user.len() > MAX_USER_BYTES {
            return Err(PublishError::UserBytes { found: user.len(), limit: MAX_USER_BYTES });
        }
        self.user.clear();
        self.user.extend_from_slice(user);
        Ok(())
    }

    fn find(&self, schema: Option<&Schema>, name: &str) -> Result<usize, TensorError> {
        let names = || -> Vec<&str> {
            match schema {
                Some(schema) => schema.fields().iter().map(|field| field.name.as_str()).collect(),
                None => self.outline.names.iter().map(|name| name.as_str()).collect(),
            }
        };
        let found = match schema {
            Some(schema) => schema.index_of(name),
            None => self.outline.names.iter().position(|own| own.as_str() == name),
        };
        found.ok_or_else(|| TensorError::NoField { name: name.to_owned(), fields: names().join(", ") })
    }

    fn bytes<'a>(&self, data: &'a Slots, index: usize) -> Option<&'a mut [u8]> {
        let meta = self.outline.fields.as_slice().get(index)?;
        Some(data.exclusive(self.slot, meta.offset, meta.nbytes))
    }

    fn tensor<'a, T: Element>(&self, data: &'a Slots, index: usize, name: &str) -> Result<&'a mut [T], TensorError> {
        let no_field =
            || TensorError::NoField { name: name.to_owned(), fields: self.outline.fields.as_slice().len().to_string() };
        let meta = self.outline.fields.as_slice().get(index).ok_or_else(no_field)?;
        element::check::<T>(name, meta.dtype)?;
        Ok(element::slice_mut(data.exclusive(self.slot, meta.offset, meta.nbytes)))
    }

    /// Lowers the outermost dim of a tensor after the fact: a batch that turned out shorter.
    fn shrink(&mut self, index: usize, shape: &[u64]) -> Result<(), TensorError> {
        let name = index.to_string();
        let fields = self.outline.fields.as_mut_slice();
        let Some(meta) = fields.get_mut(index) else {
            return Err(TensorError::NoField { name, fields: fields.len().to_string() });
        };
        match TensorMeta::new(meta.dtype, shape, meta.offset) {
            Some(new) if new.nbytes <= meta.nbytes && new.rank() == meta.rank() => {
                *meta = new;
                Ok(())
            }
            _ => Err(TensorError::NoField {
                name,
                fields: format!("a smaller shape of the same rank than {:?}", meta.shape()),
            }),
        }
    }
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

    /// The elements of a tensor, to write in place. What a slot held before is still in it.
    ///
    /// # Errors
    /// [`TensorError`]: no such field, or another type.
    pub fn tensor_mut<T: Element>(&mut self, name: &str) -> Result<&mut [T], TensorError> {
        let site = &self.producer.site;
        let index = self.ticket().find(self.producer.options.schema.as_ref(), name)?;
        self.ticket().tensor(&site.objects.data, index, name)
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
        let schema = self.producer.options.schema.as_ref();
        let (i, j) = (self.ticket().find(schema, a)?, self.ticket().find(schema, b)?);
        if i == j {
            return Err(TensorError::NoField { name: b.to_owned(), fields: "two different fields".to_owned() });
        }
        let data = &self.producer.site.objects.data;
        Ok((self.ticket().tensor(data, i, a)?, self.ticket().tensor(data, j, b)?))
    }

    /// The bytes of tensor `index`, to write in place; `None` if there is no such one.
    pub fn bytes_mut(&mut self, index: usize) -> Option<&mut [u8]> {
        self.ticket().bytes(&self.producer.site.objects.data, index)
    }

    /// A tensor as an array of its shape, to write in place.
    ///
    /// # Errors
    /// As [`tensor_mut`](Self::tensor_mut).
    #[cfg(feature = "ndarray")]
    pub fn view_mut<T: Element>(&mut self, name: &str) -> Result<ndarray::ArrayViewMutD<'_, T>, TensorError> {
        let index = self.ticket().find(self.producer.options.schema.as_ref(), name)?;
        let shape: Vec<usize> = self.fields()[index].shape().iter().map(|&dim| dim as usize).collect();
        let wrong = |_| TensorError::NoField { name: name.to_owned(), fields: "a shape that fits".to_owned() };
        ndarray::ArrayViewMutD::from_shape(shape, self.tensor_mut::<T>(name)?).map_err(wrong)
    }

    /// dtype, shape and place of all tensors, in the order of the schema (or of the specs, without one).
    #[must_use]
    pub fn fields(&self) -> &[TensorMeta] {
        self.ticket().outline.fields.as_slice()
    }

    /// Makes a tensor smaller, keeping its rank: for what is only known once it is written. Its elements are then the
    /// first ones of what was written.
    ///
    /// # Errors
    /// No such tensor, or not smaller.
    pub fn shrink(&mut self, index: usize, shape: &[u64]) -> Result<(), TensorError> {
        self.ticket_mut().shrink(index, shape)
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
    pub fn publish(mut self) -> Result<u64, PublishError> {
        let ticket = self.ticket.take().expect("a loan has its ticket until it is used up");
        self.producer.publish_ticket(ticket)
    }

    /// Lets go of the producer, so that it can make further loans meanwhile; publish with [`Producer::publish`].
    pub fn detach(mut self) -> DetachedLoan {
        let ticket = self.ticket.take().expect("a loan has its ticket until it is used up");
        DetachedLoan {
            site: Arc::clone(&self.producer.site),
            schema: self.producer.schema.clone(),
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
/// back.
#[derive(Debug)]
#[must_use = "a loan that is dropped publishes nothing"]
pub struct DetachedLoan {
    site: Arc<Site>,
    schema: Option<Arc<Schema>>,
    /// `None` once published.
    ticket: Option<Ticket>,
}

impl DetachedLoan {
    fn ticket(&self) -> &Ticket {
        self.ticket.as_ref().expect("a loan has its ticket until it is used up")
    }

    /// As [`Loan::tensor_mut`].
    ///
    /// # Errors
    /// As [`Loan::tensor_mut`].
    pub fn tensor_mut<T: Element>(&mut self, name: &str) -> Result<&mut [T], TensorError> {
        let index = self.index_of(name)?;
        self.ticket().tensor(&self.site.objects.data, index, name)
    }

    /// The place of the tensor with this name.
    ///
    /// # Errors
    /// [`TensorError::NoField`].
    pub fn index_of(&self, name: &str) -> Result<usize, TensorError> {
        self.ticket().find(self.schema.as_deref(), name)
    }

    /// The name of tensor `index`.
    #[must_use]
    pub fn name(&self, index: usize) -> Option<&str> {
        match &self.schema {
            Some(schema) => schema.fields().get(index).map(|field| field.name.as_str()),
            None => self.ticket().outline.names.get(index).map(|name| name.as_str()),
        }
    }

    /// As [`Loan::bytes_mut`].
    pub fn bytes_mut(&mut self, index: usize) -> Option<&mut [u8]> {
        self.ticket().bytes(&self.site.objects.data, index)
    }

    /// As [`Loan::fields`].
    #[must_use]
    pub fn fields(&self) -> &[TensorMeta] {
        self.ticket().outline.fields.as_slice()
    }

    /// As [`Loan::shrink`].
    ///
    /// # Errors
    /// As [`Loan::shrink`].
    pub fn shrink(&mut self, index: usize, shape: &[u64]) -> Result<(), TensorError> {
        self.ticket.as_mut().expect("a loan has its ticket until it is used up").shrink(index, shape)
    }

    /// Where tensor `index` starts; `None` if there is no such one. Good until the loan is published or dropped, and
    /// mapped as long as [`keep_mapped`](Self::keep_mapped)'s answer lives.
    #[must_use]
    pub fn tensor_ptr(&self, index: usize) -> Option<NonNull<u8>> {
        let meta = self.ticket().outline.fields.as_slice().get(index)?;
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
            Ok(self.ticket.take().expect("a loan has its ticket until it is used up"))
        } else {
            Err(PublishError::NotOurs)
        }
    }
}

impl Drop for DetachedLoan {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take()
            && !self.site.token.is_stale()
        {
            self.site.abandon(ticket.slot);
        }
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
