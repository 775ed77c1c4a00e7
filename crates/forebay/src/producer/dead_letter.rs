//! Messages that were given up, copied out of their slots before those are used again.

use forebay_layout::descriptor::TensorMeta;

/// A message that was delivered as often as allowed and never acked. Nothing of it is shared any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its sequence.
    pub sequence: u64,
    /// The number it was sent with.
    pub correlation_id: u64,
    /// Deliveries that ended without an ack.
    pub attempts: u8,
    /// Its user data.
    pub user: Vec<u8>,
    /// Its tensors.
    pub tensors: Vec<DeadTensor>,
}

/// A tensor of a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadTensor {
    /// Its name.
    pub name: String,
    /// dtype and shape.
    pub meta: TensorMeta,
    /// Its bytes, row-major.
    pub bytes: Vec<u8>,
}
