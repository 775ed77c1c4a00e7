//! The native half of the Python package `forebay`: PyO3 classes over the crate `forebay`.
//!
//! ```text
//!   consumer.rs  receive.rs  patience.rs  quota.rs  form.rs  set.rs  message.rs     receiving
//!   producer.rs  loan.rs  incoming.rs                                     sending
//!   tensor.rs    one tensor             memory.rs  keeper.rs              what keeps its bytes alive
//!   numpy.rs  array_api.rs   torch.rs  exchange.rs  dlpack.rs  buffer.rs  the ways out of it
//!   device.rs                                         ways to a GPU, and what keeps a slot meanwhile
//!   schema.rs    dtype.rs  errors.rs    lifecycle.rs     fork, exit, signals
//!   turns.rs                                          threads that wait in one handle
//!   service/                                          request and response
//!   inspect.rs                                        rings from outside
//!   interpreter.rs                                    the first interpreter of a process, and no other
//! ```
//!
//! This file only registers. Unsafe code lives in `array_api.rs`, `buffer.rs`, `device.rs`, `dlpack.rs`, `exchange.rs`,
//! `interpreter.rs` and `keeper.rs` alone.
//! Nothing here holds logic that a Rust user lacks, and nothing imports NumPy, torch or JAX before it is asked for one of their arrays.
#![deny(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("forebay runs on Linux only: it needs memfd, futex and open-file-description locks");

mod array_api;
mod buffer;
mod consumer;
mod copying;
mod device;
mod dlpack;
mod dtype;
mod errors;
mod exchange;
mod form;
mod incoming;
mod inspect;
mod interpreter;
mod keeper;
mod lifecycle;
mod loan;
mod memory;
mod message;
mod numpy;
mod patience;
mod producer;
mod quota;
mod receive;
mod schema;
mod service;
mod set;
mod tensor;
mod torch;
mod turns;

/// The native half of `forebay`; import `forebay` instead.
#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use crate::consumer::{ConsumerStats, HeldLease, PyConsumer};
    #[pymodule_export]
    use crate::device::leave_captures_alone;
    #[pymodule_export]
    use crate::inspect::{ConsumerReport, HeldSlot, RingReport, list_rings};
    #[pymodule_export]
    use crate::interpreter::refuse_other_interpreters;
    #[pymodule_export]
    use crate::lifecycle::{after_fork_in_child, close_everything};
    #[pymodule_export]
    use crate::loan::PyLoan;
    #[pymodule_export]
    use crate::message::PyMessage;
    #[pymodule_export]
    use crate::producer::{DeadLetter, ProducerStats, PyProducer, Takeover};
    #[pymodule_export]
    use crate::schema::{PyField, PySchema};
    #[pymodule_export]
    use crate::service::{PyAnswer, PyAnswerItem, PyBatch, PyItem, PyServiceClient, PyServiceServer};
    #[pymodule_export]
    use crate::set::PyConsumerSet;
    #[pymodule_export]
    use crate::tensor::PyTensor;
    #[pymodule_export]
    use crate::torch::torch_routes;

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "a Python name")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
