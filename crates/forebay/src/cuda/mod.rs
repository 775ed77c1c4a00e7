//! From the slot to a GPU: memory that CUDA reads without a staging copy, and leases that last until it is through.
//! Feature `cuda`; there is nothing to link against, the runtime is found in the process.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let destination = 0;
//! use forebay::{Consumer, cuda::Stream};
//!
//! let mut consumer = Consumer::attach("frames")?;
//! if let Err(why) = consumer.pin(None) {
//!     eprintln!("not pinned: {why}"); // all else works as before
//! }
//! let message = consumer.recv()?;
//! // SAFETY: `destination` has room for tensor 0 on device 0, and nobody else uses it meanwhile.
//! unsafe { message.copy_to_device(&[(0, destination)], Stream::default_of(0))? };
//! drop(message); // acked; its slot is free when the copy is done
//! # Ok(()) }
//! ```
//!
//! ```text
//!   api.rs   the runtime's functions, found by name     side.rs  what is in flight, and what keeps it
//!   error.rs what it refused                            reaper.rs  the thread that looks when nobody receives
//! ```
//!
//! # When the process ends
//! Copies to a device only read the slot. A process that dies in the middle of one leaves nothing that could write: whoever
//! gets the slot next may write it at once, and only the dying device program could have read that. The other direction is
//! another matter: results go to private pinned memory first (`forebay.torch.Replies` does so), never from the device into a
//! slot.
//!
//! # Costs
//! Registering takes about as long as touching every page once. One thread per attachment that uses a device, asleep
//! otherwise. A copy costs the runtime's own calls and an event; a lease's end on another thread costs what it did before.

mod api;
mod error;
mod reaper;
mod side;

use std::path::Path;

pub(crate) use self::side::Side;
use self::{api::Api, side::Leg};
pub use self::{
    api::{Stream, torch_current_stream},
    error::CudaError,
};
use crate::{
    Consumer, Message, Tensor,
    lease::{Attachment, Lease},
};

/// The CUDA runtime that was found in this process.
///
/// # Errors
/// [`CudaError::NotLoaded`], [`CudaError::MissingFunction`].
pub fn runtime() -> Result<&'static Path, CudaError> {
    Ok(Api::find()?.path())
}

/// The device that calls of this thread are for.
///
/// # Errors
/// There is no runtime, or no device.
pub fn current_device() -> Result<i32, CudaError> {
    Api::find()?.current_device()
}

/// A device's place on the PCI bus, such as `0000:3b:00.0`: its folder in `/sys/bus/pci/devices`.
///
/// # Errors
/// There is no runtime, or no such device.
pub fn pci_bus_id(device: i32) -> Result<String, CudaError> {
    Api::find()?.pci_bus_id(device)
}

/// From now on, what this thread asks of the runtime is no concern of graphs that other threads capture: for a thread that
/// waits for events, which would otherwise spoil them.
///
/// # Errors
/// There is no runtime.
pub fn leave_captures_alone() -> Result<(), CudaError> {
    Api::find()?.aside_for_good();
    Ok(())
}

/// The process ends: from now on nobody asks its devices anything. Leases that they keep end with the process.
pub fn process_ends() {
    side::PROCESS_ENDS.store(true, std::sync::atomic::Ordering::SeqCst);
}

impl Attachment {
    /// Its side that deals with devices, made for `device` if there was none.
    fn side(&self, device: Option<i32>) -> Result<&Side, CudaError> {
        if self.is_foreign() {
            return Err(CudaError::Forked { ring: self.ring.clone() });
        }
        if let Some(side) = self.device.get() {
            return Ok(side);
        }
        let made = Side::new(self.reader.plan().slots as usize, device)?;
        // Of two that are made at once one goes, and its thread with it.
        Ok(self.device.get_or_init(|| made))
    }

    fn pin(&self, device: Option<i32>) -> Result<(), CudaError> {
        self.side(device)?.shared().register(self.data.shared_mapping(), &self.ring)
    }

    fn is_pinned(&self) -> bool {
        self.device.get().is_some_and(|side| side.shared().is_pinned())
    }
}

impl Consumer {
    /// Registers the slots with CUDA, so that copies to a device read them directly and do not wait. Once is enough; it is
    /// undone after the consumer and everything received through it are dropped. Blocks for about as long as it takes to
    /// touch every page. The producer notices nothing.
    ///
    /// `device` is the one that copies go to mostly; `None` is this thread's current one. All devices of the process may
    /// copy from pinned memory.
    ///
    /// # Errors
    /// It is not pinned, and everything works as before: [`CudaError::NotLoaded`], [`CudaError::ReadOnlyMap`], or what the
    /// runtime said.
    pub fn pin(&mut self, device: Option<i32>) -> Result<(), CudaError> {
        self.attachment().pin(device)
    }

    /// Whether [`pin`](Self::pin) succeeded.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.attachment().is_pinned()
    }

    /// Leases that are kept because a device may still read their slots. They count as held.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.attachment().device.get().map_or(0, |side| side.shared().in_flight())
    }

    /// The first error that was met while following copies, once. Their leases ended: a device that failed reads nothing.
    #[must_use]
    pub fn take_device_trouble(&self) -> Option<CudaError> {
        self.attachment().device.get()?.shared().take_trouble()
    }
}

impl Lease {
    fn record_stream(&self, stream: Stream) -> Result<(), CudaError> {
        self.attachment().side(Some(stream.device()))?.shared().watch(self, stream);
        Ok(())
    }
}

impl Message {
    /// Copies tensors to the memory of a device: pairs of a tensor's index and the address it goes to. Does not wait; the
    /// slot stays leased until the stream is past the copies, also when the message is dropped at once, and the message
    /// counts as acked when it is dropped. The consumer need not be [pinned](Consumer::pin): then the runtime copies twice,
    /// and may wait.
    ///
    /// # Safety
    /// Each address has room for its tensor in the memory of the stream's device, and nobody else uses that until the stream
    /// is past the copies.
    ///
    /// # Errors
    /// [`CudaError::Capturing`]: the stream records a graph; nothing was copied. Otherwise what the runtime said; some of
    /// the copies may have been begun, and the slot stays leased until they are through.
    #[allow(unsafe_code, reason = "where the copies go is the caller's to know")]
    pub unsafe fn copy_to_device(&self, to: &[(usize, usize)], stream: Stream) -> Result<(), CudaError> {
        let leg = |&(index, to): &(usize, usize)| {
            let meta = self.meta(index).ok_or(CudaError::NoTensor { index, len: self.len() })?;
            let lease = self.lease();
            let from = lease.attachment().data.address(lease.slot(), meta.offset, meta.nbytes);
            Ok(Leg { from, len: meta.nbytes as usize, to })
        };
        let legs = to.iter().map(leg).collect::<Result<Vec<_>, CudaError>>()?;
        let side = self.lease().attachment().side(Some(stream.device()))?;
        // SAFETY: the legs begin in the leased slot, by the descriptor's check; where they end is the caller's promise.
        unsafe { side.shared().copy(self.lease(), &legs, stream) }
    }

    /// The slot stays leased until `stream` is past everything it was given before the last handle of the program ended:
    /// for copies and kernels that the program starts itself on views of it.
    ///
    /// # Errors
    /// There is no runtime or no device.
    pub fn record_stream(&self, stream: Stream) -> Result<(), CudaError> {
        self.lease().record_stream(stream)
    }

    /// Whether this is the process that received it: another one must not even ask CUDA for its devices.
    ///
    /// # Errors
    /// [`CudaError::Forked`] in a forked child of that process.
    pub fn check_here(&self) -> Result<(), CudaError> {
        let attachment = self.lease().attachment();
        if attachment.is_foreign() { Err(CudaError::Forked { ring: attachment.ring.clone() }) } else { Ok(()) }
    }

    /// Whether its slot is [pinned](Consumer::pin).
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.lease().attachment().is_pinned()
    }
}

impl Tensor {
    /// As [`Message::record_stream`]: it is about the slot, which the whole message lies in.
    ///
    /// # Errors
    /// As there.
    pub fn record_stream(&self, stream: Stream) -> Result<(), CudaError> {
        self.lease().record_stream(stream)
    }

    /// The device that its slot is pinned for; `None` if it is not pinned.
    #[must_use]
    pub fn pinned_for(&self) -> Option<i32> {
        let side = self.lease().attachment().device.get()?.shared();
        side.is_pinned().then(|| side.device())
    }
}

impl Attachment {
    /// Ends the leases that no device reads any more.
    #[inline]
    pub(crate) fn poll_device(&self) {
        if let Some(side) = self.device.get()
            && !self.is_foreign()
        {
            side.shared().poll();
        }
    }
}
