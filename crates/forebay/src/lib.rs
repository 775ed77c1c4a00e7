//! Zero-copy tensors from a Rust process to a Python or Rust process on the same host, through shared memory.
//!
//! ```no_run
//! use forebay::{Consumer, DType, FieldSpec, Producer};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // One process writes in place …
//! let mut producer = Producer::create("tokens")?;
//! let mut loan = producer.loan(&[FieldSpec::new("input_ids", DType::I64, &[2, 4])])?;
//! loan.tensor_mut::<i64>("input_ids")?.copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
//! loan.publish()?;
//!
//! // … another one reads where it was written.
//! let mut consumer = Consumer::attach("tokens")?;
//! let message = consumer.recv()?;
//! let ids = message.tensor("input_ids")?;
//! drop(message); // the tensor keeps the slot
//! assert_eq!(ids.as_slice::<i64>()?[7], 8);
//! # Ok(()) }
//! ```
//!
//! A received tensor stays as it is for as long as it is kept; slots are released in any order; a process that dies, at
//! any instruction, costs nothing that was published. How: `docs/protocol.md`; whom that asks to trust whom:
//! `docs/trust.md`.
//!
//! # Costs
//! A message costs the same whatever its size; nobody copies its bytes. A ring's memory is allocated up front. One
//! thread per producer serves attaching consumers and is asleep otherwise; a consumer has none.
//!
//! # Features
//! None is on by default.
//! - `cuda`: the module `cuda`, copies to GPUs that keep their slot. The CUDA runtime is found at run time, nothing is
//!   linked.
//! - `ndarray`: `Tensor::view` and `Loan::view_mut`.
//! - `tokio`: receiving as a future, `Consumer::recv_async`.
#![deny(unsafe_code)]

mod consumer;
#[cfg(feature = "cuda")]
pub mod cuda;
mod element;
mod error;
pub mod inspect;
mod lease;
mod message;
mod options;
mod producer;
mod rendezvous;
mod segment;
pub mod service;
mod slice;

pub use consumer::{Consumer, ConsumerOptions, ConsumerSet, ConsumerStats, Messages};
pub use element::Element;
pub use error::{
    AttachError, CreateError, HeldLease, Holder, LoanError, PublishError, RecvError, TensorError, WaitError,
};
pub use forebay_layout::{
    ALIGN, ANY, Backing, DType, Defect, Kind, MAX_CONSUMERS, MAX_FIELDS, MAX_RANK, MAX_USER_BYTES, UnknownDType,
    UnknownName, WhenFull,
    descriptor::TensorMeta,
    geometry::{Geometry, SlotClass},
    schema::{Field, Schema, SchemaBuilder, SchemaError},
};
pub use forebay_os::OsError;
pub use message::{Message, Tensor};
pub use options::{
    AckMode, DEFAULT_ATTACH_TIMEOUT, DEFAULT_FULL_TIMEOUT, DEFAULT_MAX_ATTEMPTS, DEFAULT_MAX_CONSUMERS,
    DEFAULT_RECONNECT, DEFAULT_SLOT_BYTES, DEFAULT_SLOTS, DeadLetters, Numa, QUOTA_PATIENCE, WaitPolicy,
};
pub use producer::{
    DeadLetter, DeadTensor, DetachedLoan, FieldSpec, Loan, Mapped, Producer, ProducerOptions, ProducerStats, Takeover,
};
