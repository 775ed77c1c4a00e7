//! What a producer tells about its ring: counts, what was taken over, letters that are dead. Copies; they keep nothing.

use pyo3::{
    prelude::*,
    types::{PyBytes, PyDict},
};

use crate::{memory::Owned, tensor::PyTensor};

/// What a ring's producer counted, its predecessors included.
#[pyclass(frozen, get_all, module = "forebay")]
#[derive(Debug, Clone)]
pub(crate) struct ProducerStats {
    /// Messages published.
    published: u64,
    /// Messages dropped: by drop-oldest, or because a broadcast ring had no consumer.
    dropped: u64,
    /// Messages that became dead letters.
    dead_letters: u64,
    /// Payload bytes published.
    bytes: u64,
    /// Times a loan had to wait for a slot.
    full_waits: u64,
    /// Messages that some consumer has not finished with.
    outstanding: u32,
    /// Slots on loan.
    loaned: u32,
}

impl ProducerStats {
    pub(super) fn of(stats: &forebay::ProducerStats) -> Self {
        Self {
            published: stats.published,
            dropped: stats.dropped,
            dead_letters: stats.dead_letters,
            bytes: stats.bytes,
            full_waits: stats.full_waits,
            outstanding: stats.outstanding,
            loaned: stats.loaned,
        }
    }
}

#[pymethods]
impl ProducerStats {
    fn __repr__(&self) -> String {
        let Self { published, dropped, dead_letters, outstanding, loaned, .. } = self;
        format!(
            "<forebay.ProducerStats published {published}, outstanding {outstanding}, dropped {dropped}, dead letters \
             {dead_letters}, loaned {loaned}>"
        )
    }
}

/// What was found when a ring was taken over from a dead producer.
#[pyclass(frozen, get_all, module = "forebay")]
#[derive(Debug)]
pub(crate) struct Takeover {
    /// The new producer's life number.
    epoch: u64,
    /// The last sequence that was published, 0 if none ever was.
    last_sequence: u64,
    /// The user data that was published with it: the place to go on from.
    last_user: Py<PyBytes>,
    /// Messages that consumers had not finished with.
    outstanding: u64,
}

impl Takeover {
    pub(super) fn of(py: Python<'_>, found: &forebay::Takeover) -> Self {
        Self {
            epoch: found.epoch,
            last_sequence: found.last_sequence,
            last_user: PyBytes::new(py, &found.last_user).unbind(),
            outstanding: found.outstanding,
        }
    }
}

/// A message that was delivered as often as allowed and never acked. Its tensors are copies.
#[pyclass(frozen, get_all, module = "forebay")]
#[derive(Debug)]
pub(crate) struct DeadLetter {
    /// Its sequence.
    sequence: u64,
    /// The number it was sent with.
    correlation_id: u64,
    /// Deliveries that ended without an ack.
    attempts: u8,
    /// Its user data.
    user: Py<PyBytes>,
    /// Its tensors, by name.
    tensors: Py<PyDict>,
}

impl DeadLetter {
    pub(super) fn of(py: Python<'_>, letter: &forebay::DeadLetter) -> PyResult<Self> {
        let tensors = PyDict::new(py);
        for tensor in &letter.tensors {
            let copy = PyTensor::new(Owned::copy_of(&tensor.meta, &tensor.bytes)?);
            tensors.set_item(&tensor.name, Bound::new(py, copy)?)?;
        }
        Ok(Self {
            sequence: letter.sequence,
            correlation_id: letter.correlation_id,
            attempts: letter.attempts,
            user: PyBytes::new(py, &letter.user).unbind(),
            tensors: tensors.unbind(),
        })
    }
}

#[pymethods]
impl DeadLetter {
    fn __repr__(&self) -> String {
        format!("<forebay.DeadLetter message {} after {} attempts>", self.sequence, self.attempts)
    }
}
