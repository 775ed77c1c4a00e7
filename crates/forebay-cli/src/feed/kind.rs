//! What texts, images and tables each add to a feed: their inputs, their pipeline, their tensors.

use std::ops::Range;

use forebay::{DType, FieldSpec, Loan, LoanError, Schema, SchemaError};
use forebay_ingest::{Batch, BatchData, Batches, IngestError, PipelineOptions, Position, Unit};

use crate::failure::Failure;

/// A tensor of a message.
#[derive(Debug)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dtype: DType,
    pub(super) shape: Vec<u64>,
}

impl Tensor {
    pub(super) fn new(name: impl Into<String>, dtype: DType, shape: impl Into<Vec<u64>>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into() }
    }

    pub(super) fn spec(&self) -> FieldSpec<'_> {
        FieldSpec::new(&self.name, self.dtype, &self.shape)
    }
}

/// What is fed.
pub(super) trait Feeds {
    /// Where its items come from.
    type Source;
    /// What a batch of them becomes.
    type Data: BatchData;
    /// Name of the schema, and of the ring if none is given.
    const NAME: &'static str;
    /// What its items are.
    const UNIT: Unit = Unit::Line;
    /// Whether it is counted in tokens.
    const TOKENS: bool = false;

    /// The tensors of every message, of at most `batch` rows: their largest shapes.
    fn largest(&self, batch: u32) -> Vec<Tensor>;

    /// The tensors that a slot has room for, where nobody says how large it is: a few messages may be larger.
    fn usual(&self, batch: u32) -> Vec<Tensor> {
        self.largest(batch)
    }

    fn open(&self) -> Result<Self::Source, IngestError>;
    fn resume(&self, position: &Position) -> Result<Self::Source, IngestError>;
    fn position(&self, source: &Self::Source) -> Position;
    fn name(&self, source: &Self::Source, file: u32) -> String;
    fn start(&self, source: Self::Source, options: PipelineOptions) -> Result<Batches<Self::Data>, IngestError>;

    /// The tensors of these rows of a batch, in the order of [`largest`](Self::largest), as small as they can be.
    fn tensors(&self, batch: &Batch<Self::Data>, rows: &Range<usize>) -> Vec<Tensor>;

    /// Writes them into a loan of these tensors.
    fn write(&self, batch: &Batch<Self::Data>, rows: &Range<usize>, loan: &mut Loan<'_>) -> Result<(), Failure>;

    /// Tokens in these rows, without their padding and with it.
    fn tokens(&self, _batch: &Batch<Self::Data>, _rows: &Range<usize>) -> (u64, u64) {
        (0, 0)
    }

    /// What to do about a batch that is larger than a slot.
    fn too_large(&self, error: &LoanError, batch: &Batch<Self::Data>, pipeline: &Batches<Self::Data>) -> String;

    /// What to know about a ring with slots of so many bytes for batches of so many rows.
    fn note(&self, _slot_bytes: u64, _batch: u32) -> Option<String> {
        None
    }
}

/// The schema of messages of these tensors.
pub(super) fn schema(name: &str, tensors: &[Tensor]) -> Result<Schema, SchemaError> {
    let builder = Schema::builder(name, 1, 0);
    tensors.iter().fold(builder, |builder, t| builder.field(&t.name, t.dtype, &t.shape)).build()
}
