//! A received message and its tensors: views that keep the slot leased until the last of them is dropped.

use std::{ptr::NonNull, time::Duration};

use forebay_layout::{DType, descriptor::TensorMeta};
use forebay_os::clock;

use crate::{
    element::{self, Element},
    error::TensorError,
    lease::{Description, Lease},
};

/// A message: named tensors, a correlation id, user data. Its memory stays as it is until it and every tensor taken
/// from it are dropped.
#[derive(Debug)]
pub struct Message {
    lease: Lease,
}

impl Message {
    pub(crate) fn new(lease: Lease) -> Self {
        Self { lease }
    }

    /// What keeps its memory.
    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    fn says(&self) -> &Description {
        self.lease.description()
    }

    /// Its place in the order of publishing, from 1.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.says().head().sequence
    }

    /// The number the sender gave it, 0 if none.
    #[must_use]
    pub fn correlation_id(&self) -> u64 {
        self.says().head().correlation_id
    }

    /// Earlier deliveries that ended without an ack: 0 the first time. Always 0 on a broadcast ring.
    #[must_use]
    pub fn attempts(&self) -> u8 {
        self.says().attempts
    }

    /// The sender's user data, at most 256 bytes.
    #[must_use]
    pub fn user(&self) -> &[u8] {
        &self.says().user
    }

    /// CLOCK_MONOTONIC when it was published, in ns; `None` if the producer takes no timestamps.
    #[must_use]
    pub fn timestamp_ns(&self) -> Option<u64> {
        (self.says().head().timestamp_ns != 0).then_some(self.says().head().timestamp_ns)
    }

    /// Number of tensors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.says().fields.len()
    }

    /// True if it has no tensor.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the slot in use: its tensors, each rounded up to 64.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        self.says().head().payload_bytes
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
        self.lease.name(index)
    }

    /// The names of all tensors, in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|index| self.name(index).unwrap_or_default())
    }

    /// dtype, shape and bytes of tensor `index`.
    #[must_use]
    pub fn meta(&self, index: usize) -> Option<&TensorMeta> {
        self.says().fields.get(index)
    }

    /// The tensor with this name. It keeps the slot leased, also after the message is dropped.
    ///
    /// # Errors
    /// [`TensorError::NoField`] names the fields there are.
    pub fn tensor(&self, name: &str) -> Result<Tensor, TensorError> {
        let index = self.index_of(name)?;
        Ok(Tensor { lease: self.lease.clone(), index })
    }

    /// Tensor `index`.
    #[must_use]
    pub fn tensor_at(&self, index: usize) -> Option<Tensor> {
        (index < self.len()).then(|| Tensor { lease: self.lease.clone(), index })
    }

    /// The bytes of tensor `index`; `None` if there is no such one. As [`Tensor::as_bytes`], but borrowed from the message:
    /// for who is through with them before the message is dropped.
    #[must_use]
    #[inline]
    pub fn bytes(&self, index: usize) -> Option<&[u8]> {
        (index < self.len()).then(|| self.lease.bytes(index))
    }

    /// The elements of the tensor with this name, borrowed as [`bytes`](Self::bytes) are.
    ///
    /// # Errors
    /// [`TensorError::NoField`] names the fields there are; [`TensorError::DType`] if it holds another type.
    pub fn as_slice<T: Element>(&self, name: &str) -> Result<&[T], TensorError> {
        let index = self.index_of(name)?;
        element::check::<T>(name, self.says().fields[index].dtype)?;
        Ok(element::slice(self.lease.bytes(index)))
    }

    fn index_of(&self, name: &str) -> Result<usize, TensorError> {
        self.names().position(|own| own == name).ok_or_else(|| TensorError::NoField {
            name: name.to_owned(),
            fields: self.names().collect::<Vec<_>>().join(", "),
        })
    }

    /// Tensor `index` in the message's stead: what [`tensor_at`](Self::tensor_at) gives, for less.
    ///
    /// # Errors
    /// The message itself, if it has no such tensor.
    pub fn into_tensor(self, index: usize) -> Result<Tensor, Self> {
        if index < self.len() { Ok(Tensor { lease: self.lease, index }) } else { Err(self) }
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

/// One tensor of a received message: contiguous, row-major, 64-byte aligned, in shared memory. Cloning is cheap and
/// copies nothing; the slot is released when the message and all its tensors are dropped, on whatever thread.
#[derive(Debug, Clone)]
pub struct Tensor {
    lease: Lease,
    /// Its place among the message's tensors, of which it is one.
    index: usize,
}

impl Tensor {
    /// The message that it is part of: to ack or nack it, to ask who sent it. Another handle, which keeps the slot too.
    #[must_use]
    pub fn message(&self) -> Message {
        Message { lease: self.lease.clone() }
    }

    /// What keeps its memory.
    #[cfg(feature = "cuda")]
    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.lease.name(self.index).unwrap_or_default()
    }

    /// Its element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.meta().dtype
    }

    /// Its dims, outermost first.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        self.meta().shape()
    }

    /// Its size in bytes.
    #[must_use]
    pub fn nbytes(&self) -> u64 {
        self.meta().nbytes
    }

    /// dtype, shape and place.
    #[must_use]
    pub fn meta(&self) -> &TensorMeta {
        &self.lease.description().fields[self.index]
    }

    /// Its bytes. Those of a small tensor may be read from where its message was announced, and not from its slot: the
    /// same bytes, in another place than [`as_ptr`](Self::as_ptr) says.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.lease.bytes(self.index)
    }

    /// Where its bytes start: inside the mapped slot, 64-byte aligned. Good as long as this tensor or a clone lives.
    #[must_use]
    pub fn as_ptr(&self) -> NonNull<u8> {
        let meta = self.meta();
        self.lease.attachment().data.address(self.lease.slot(), meta.offset, meta.nbytes)
    }

    /// Its elements.
    ///
    /// # Errors
    /// [`TensorError::DType`] if it holds another type.
    pub fn as_slice<T: Element>(&self) -> Result<&[T], TensorError> {
        element::check::<T>(self.name(), self.dtype())?;
        Ok(element::slice(self.as_bytes()))
    }

    /// Its elements, to change in place.
    ///
    /// # Errors
    /// [`TensorError::ReadOnly`] unless the ring is a `writable` queue and this is the only handle to the message.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T], TensorError> {
        element::check::<T>(self.name(), self.dtype())?;
        if !self.is_writable() || !self.lease.handles().is_one() {
            return Err(TensorError::ReadOnly { name: self.name().to_owned() });
        }
        let (data, meta) = (&self.lease.attachment().data, self.meta());
        Ok(element::slice_mut(data.exclusive(self.lease.slot(), meta.offset, meta.nbytes)))
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
        let wrong = |_| TensorError::NoField { name: self.name().to_owned(), fields: "a shape that fits".to_owned() };
        ndarray::ArrayViewD::from_shape(shape, self.as_slice::<T>()?).map_err(wrong)
    }
}
