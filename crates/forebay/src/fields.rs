//! The tensors of one message, kept without allocation while there are at most two.

use arrayvec::ArrayVec;
use forebay_layout::descriptor::TensorMeta;

/// A short list of tensors.
#[derive(Debug, Clone)]
pub(crate) enum FieldList {
    Few(ArrayVec<TensorMeta, 2>),
    Many(Vec<TensorMeta>),
}

impl FieldList {
    /// An empty list.
    pub(crate) fn new() -> Self {
        Self::Few(ArrayVec::new_const())
    }

    pub(crate) fn push(&mut self, meta: TensorMeta) {
        match self {
            Self::Few(fields) if !fields.is_full() => fields.push(meta),
            Self::Few(fields) => {
                let mut many = fields.to_vec();
                many.push(meta);
                *self = Self::Many(many);
            }
            Self::Many(fields) => fields.push(meta),
        }
    }

    pub(crate) fn as_slice(&self) -> &[TensorMeta] {
        match self {
            Self::Few(fields) => fields,
            Self::Many(fields) => fields,
        }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [TensorMeta] {
        match self {
            Self::Few(fields) => fields,
            Self::Many(fields) => fields,
        }
    }
}
