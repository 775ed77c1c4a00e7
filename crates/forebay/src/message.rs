//! A received message and its tensors: views that keep the slot leased until the last of them is dropped.

use std::{ptr::NonNull, time::Duration};

use forebay_layout::{
    DType, Defect, FieldName,
    descriptor::{Head, TensorMeta},
    schema::Schema,
};
use forebay_os::clock;
use forebay_ring::Claim;

use crate::{
    element::{self, Element},
    error::TensorError,
    fields::FieldList,
    lease::Lease,
};

/// A message: named tensors, a correlation id, user data. Its memory stays as it is until it and every tensor taken
/// from it are dropped.
#[derive(Debug)]
pub struct Message {
    lease: Lease,
    body: Box<Body>,
}

/// What a message says of itself. Boxed, so that passing a message on moves three words.
#[derive(Debug)]
struct Body {
    head: Head,
    attempts: u8,
    fields: FieldList,
    names: Vec<FieldName>,
    user: Vec<u8>,
}

impl Message {
    /// Reads what a claimed message says of itself, once, and checks it. On a defect the lease ends here, and the
    /// message goes back.
    pub(crate) fn read(lease: Lease, claim: &Claim) -> Result<Self, Defect> {
        let mut body = Box::new(Body {
            head: Head::default(),
            attempts: claim.attempts,
            fields: FieldList::new(),
            names: Vec::new(),
            user: Vec::new(),
        });
        match body.fill(&lease, claim) {
            Ok(()) => Ok(Self { lease, body }),
            Err(defect) => {
                lease.nack();
                Err(defect)
            }
        }
    }

    /// What keeps its memory.
    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Its place in the order of publishing, from 1.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.body.head.sequence
    }

    /// The number the sender gave it, 0 if none.
    #[must_use]
    pub fn correlation_id(&self) -> u64 {
        self.body.head.correlation_id
    }

    /// Earlier deliveries that ended without an ack: 0 the first time. Always 0 on a broadcast ring.
    #[must_use]
    pub fn attempts(&self) -> u8 {
        self.body.attempts
    }

    /// The sender's user data, at most 256 bytes.
    #[must_use]
    pub fn user(&self) -> &[u8] {
        &self.body.user
    }

    /// CLOCK_MONOTONIC when it was published, in ns; `None` if the producer takes no timestamps.
    #[must_use]
    pub fn timestamp_ns(&self) -> Option<u64> {
        (self.body.head.timestamp_ns != 0).then_some(self.body.head.timestamp_ns)
    }

    /// Number of tensors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.body.fields.as_slice().len()
    }

    /// True if it has no tensor.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the slot in use: its tensors, each rounded up to 64.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        self.body.head.payload_bytes
    }

    /// The slot it lies in.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.lease.slot()
    }

    /// How long it is held, to the resolution of the coarse clock (a few ms).
    #[must_use]
    pub fn held_for(&self) -> Duration {
        if self.lease.attachment().is_foreign() {
            // A forked child holds nothing, and has no memory to read it from.
            return Duration::ZERO;
        }
        let since = self.lease.attachment().part.since(self.lease.slot());
        Duration::from_nanos(clock::monotonic_ns().saturating_sub(since))
    }

    /// The name of tensor `index`.
    #[must_use]
    pub fn name(&self, index: usize) -> Option<&str> {
        match &self.lease.attachment().schema {
            Some(schema) => schema.fields().get(index).map(|field| field.name.as_str()),
            None => self.body.names.get(index).map(|name| name.as_str()),
        }
    }

    /// The names of all tensors, in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|index| self.name(index).unwrap_or_default())
    }

    /// dtype, shape and bytes of tensor `index`.
    #[must_use]
    pub fn meta(&self, index: usize) -> Option<&TensorMeta> {
        self.body.fields.as_slice().get(index)
    }

    /// The tensor with this name. It keeps the slot leased, also after the message is dropped.
    ///
    /// # Errors
    /// [`TensorError::NoField`] names the fields there are.
    pub fn tensor(&self, name: &str) -> Result<Tensor, TensorError> {
        let index = self.names().position(|own| own == name);
        index.and_then(|index| self.tensor_at(index)).ok_or_else(|| TensorError::NoField {
            name: name.to_owned(),
            fields: self.names().collect::<Vec<_>>().join(", "),
        })
    }

    /// Tensor `index`.
    #[must_use]
    pub fn tensor_at(&self, index: usize) -> Option<Tensor> {
        Some(Tensor {
            lease: self.lease.clone(),
            meta: *self.meta(index)?,
            name: FieldName::from(self.name(index)?).ok()?,
        })
    }

    /// The message is dealt with: it will not come back, even if this process dies. Its memory stays as it is until the
    /// last view is dropped. False if it was nacked before.
    pub fn ack(&self) -> bool {
        self.lease.ack()
    }

    /// The message was not dealt with: once the last view is dropped it goes to a consumer again (perhaps this one), or
    /// becomes a dead letter when its attempts are spent. False if it was acked before.
    pub fn nack(&self) -> bool {
        self.lease.nack()
    }
}

impl Body {
    fn fill(&mut self, lease: &Lease, claim: &Claim) -> Result<(), Defect> {
        let attachment = lease.attachment();
        let (reader, schema) = (&attachment.reader, attachment.schema.as_ref());
        if let Some(schema) = schema
            && let Some((head, first)) = reader.inline_of(claim)?
        {
            self.head = head;
            if let Some(meta) = first {
                self.fields.push(meta);
            }
            return check_schema(schema, self.fields.as_slice());
        }
        self.head = reader.head_of(claim)?;
        for index in 0..self.head.fields {
            let (meta, name) = reader.field_of(claim, index)?;
            self.fields.push(meta);
            if schema.is_none() {
                self.names.push(name);
            }
        }
        if self.head.user_bytes != 0 {
            self.user = reader.user_of(claim, &self.head);
        }
        schema.map_or(Ok(()), |schema| check_schema(schema, self.fields.as_slice()))
    }
}

/// The schema's bounds hold for what arrives, so that a model fed from the ring need not check them again.
fn check_schema(schema: &Schema, fields: &[TensorMeta]) -> Result<(), Defect> {
    if fields.len() != schema.fields().len() {
        let expected = schema.fields().len() as u64;
        return Err(Defect::bounded("descriptor.fields", fields.len() as u64, "the schema's", expected));
    }
    for (meta, field) in fields.iter().zip(schema.fields()) {
        if meta.dtype != field.dtype {
            let (found, own) = (meta.dtype.code(), field.dtype.code());
            return Err(Defect::bounded("field.dtype", found.into(), "the schema's", own.into()));
        }
        if meta.rank() != field.max_dims().len() {
            return Err(Defect::bounded(
                "field.rank",
                meta.rank() as u64,
                "the schema's",
                field.max_dims().len() as u64,
            ));
        }
        if let Some((&dim, &most)) = meta.shape().iter().zip(field.max_dims()).find(|(dim, most)| dim > most) {
            return Err(Defect::bounded("field.dims", dim, "at most the schema's", most));
        }
    }
    Ok(())
}

/// One tensor of a received message: contiguous, row-major, 64-byte aligned, in shared memory. Cloning is cheap and
/// copies nothing; the slot is released when the message and all its tensors are dropped, on whatever thread.
#[derive(Debug, Clone)]
pub struct Tensor {
    lease: Lease,
    meta: TensorMeta,
    name: FieldName,
}

impl Tensor {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.meta.dtype
    }

    /// Its dims, outermost first.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        self.meta.shape()
    }

    /// Its size in bytes.
    #[must_use]
    pub fn nbytes(&self) -> u64 {
        self.meta.nbytes
    }

    /// dtype, shape and place.
    #[must_use]
    pub fn meta(&self) -> &TensorMeta {
        &self.meta
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.lease.attachment().data.leased(self.lease.slot(), self.meta.offset, self.meta.nbytes)
    }

    /// Where its bytes start: inside the mapped slot, 64-byte aligned. Good as long as this tensor or a clone lives.
    #[must_use]
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.lease.attachment().data.address(self.lease.slot(), self.meta.offset, self.meta.nbytes)
    }

    /// Its elements.
    ///
    /// # Errors
    /// [`TensorError::DType`] if it holds another type.
    pub fn as_slice<T: Element>(&self) -> Result<&[T], TensorError> {
        element::check::<T>(&self.name, self.meta.dtype)?;
        Ok(element::slice(self.as_bytes()))
    }

    /// Its elements, to change in place.
    ///
    /// # Errors
    /// [`TensorError::ReadOnly`] unless the ring is a `writable` queue and this is the only handle to the message.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T], TensorError> {
        element::check::<T>(&self.name, self.meta.dtype)?;
        if !self.is_writable() || self.lease.handles() != 1 {
            return Err(TensorError::ReadOnly { name: self.name.to_string() });
        }
        let data = &self.lease.attachment().data;
        Ok(element::slice_mut(data.exclusive(self.lease.slot(), self.meta.offset, self.meta.nbytes)))
    }

    /// Whether its memory may be written: only on a queue created with `writable`. Writing through a pointer to a
    /// tensor that is not is a fault that ends the process.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.lease.attachment().data.is_writable()
    }

    /// True in a forked child of the process that received it, where its memory is gone.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        self.lease.attachment().is_foreign()
    }

    /// Its elements as an array of its shape.
    ///
    /// # Errors
    /// [`TensorError::DType`] if it holds another type.
    #[cfg(feature = "ndarray")]
    pub fn view<T: Element>(&self) -> Result<ndarray::ArrayViewD<'_, T>, TensorError> {
        let shape: Vec<usize> = self.shape().iter().map(|&dim| dim as usize).collect();
        let wrong = |_| TensorError::NoField { name: self.name.to_string(), fields: "a shape that fits".to_owned() };
        ndarray::ArrayViewD::from_shape(shape, self.as_slice::<T>()?).map_err(wrong)
    }
}
