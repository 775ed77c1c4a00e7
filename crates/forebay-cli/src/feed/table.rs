//! Feeding tables: the tensors of a schema, a sparse one as three.

use std::sync::Arc;

use forebay::{ANY, DType, Element as RingElement, Loan, LoanError};
use forebay_ingest::{
    Batch, Batches, IngestError, Input, PipelineOptions, Position, Source, SourceOptions, TablePipeline,
    table::{
        Element, IndexElement, IndexType, Layout, NumberType, TableBatch, TableEncoder, TensorSpec, WriteTableError,
    },
};

use super::kind::{Feeds, Tensor};
use crate::failure::Failure;

/// Lines of JSON, encoded.
pub(super) struct Table {
    pub(super) inputs: Vec<Input>,
    pub(super) options: SourceOptions,
    pub(super) encoder: Arc<TableEncoder>,
}

fn dtype(of: NumberType) -> DType {
    match of {
        NumberType::F32 => DType::F32,
        NumberType::F64 => DType::F64,
        NumberType::I8 => DType::I8,
        NumberType::I16 => DType::I16,
        NumberType::I32 => DType::I32,
        NumberType::I64 => DType::I64,
        NumberType::U8 => DType::U8,
        NumberType::U16 => DType::U16,
        NumberType::U32 => DType::U32,
        NumberType::U64 => DType::U64,
    }
}

/// The tensors that one of the schema becomes: rows, and for a sparse one its entries.
fn tensors(spec: &TensorSpec<'_>, rows: u64, entries: u64) -> Vec<Tensor> {
    let name = spec.name;
    match spec.layout {
        Layout::Dense => vec![Tensor::new(name, dtype(spec.dtype), [rows, spec.columns as u64])],
        Layout::Sparse => {
            let indices = match spec.indices {
                IndexType::I32 => DType::I32,
                IndexType::I64 => DType::I64,
            };
            vec![
                Tensor::new(format!("{name}.indptr"), indices, [rows + 1]),
                Tensor::new(format!("{name}.indices"), indices, [entries]),
                Tensor::new(format!("{name}.values"), DType::F32, [entries]),
            ]
        }
    }
}

fn dense<T: Element + RingElement>(
    data: &TableBatch,
    index: usize,
    name: &str,
    loan: &mut Loan<'_>,
) -> Result<(), Failure> {
    let out = loan.tensor_mut::<T>(name).map_err(Failure::failed)?;
    data.write_dense(index, out).map_err(Failure::failed)
}

fn sparse<I: IndexElement + RingElement>(
    data: &TableBatch,
    index: usize,
    name: &str,
    loan: &mut Loan<'_>,
) -> Result<(), Failure> {
    let values = loan.tensor_mut(&format!("{name}.values")).map_err(Failure::failed)?;
    data.write_values(index, values).map_err(Failure::failed)?;
    let (indices, indptr) = (format!("{name}.indices"), format!("{name}.indptr"));
    let (indices, indptr) = loan.tensors_mut::<I, I>(&indices, &indptr).map_err(Failure::failed)?;
    let written: Result<(), WriteTableError> =
        data.write_columns(index, indices).and_then(|()| data.write_offsets(index, indptr));
    written.map_err(Failure::failed)
}

impl Feeds for Table {
    type Source = Source;
    type Data = TableBatch;
    const NAME: &'static str = "rows";

    fn largest(&self, batch: u32) -> Vec<Tensor> {
        self.encoder.tensors().flat_map(|spec| tensors(&spec, batch.into(), ANY)).collect()
    }

    fn open(&self) -> Result<Source, IngestError> {
        Source::open(&self.inputs, self.options.clone())
    }

    fn resume(&self, position: &Position) -> Result<Source, IngestError> {
        Source::resume(&self.inputs, self.options.clone(), position)
    }

    fn position(&self, source: &Source) -> Position {
        source.position()
    }

    fn name(&self, source: &Source, file: u32) -> String {
        source.name(file)
    }

    fn start(&self, source: Source, options: PipelineOptions) -> Result<Batches<TableBatch>, IngestError> {
        TablePipeline::tables(source, Arc::clone(&self.encoder), options)
    }

    fn tensors(&self, batch: &Batch<TableBatch>) -> Vec<Tensor> {
        let entries = |index| batch.data.sparse_shape(index).map_or(0, |shape| shape.entries as u64);
        let specs = self.encoder.tensors().enumerate();
        specs.flat_map(|(index, spec)| tensors(&spec, batch.rows() as u64, entries(index))).collect()
    }

    fn write(&self, batch: &Batch<TableBatch>, loan: &mut Loan<'_>) -> Result<(), Failure> {
        let data = &batch.data;
        for (index, spec) in self.encoder.tensors().enumerate() {
            let write = match (spec.layout, spec.dtype, spec.indices) {
                (Layout::Sparse, _, IndexType::I32) => sparse::<i32>,
                (Layout::Sparse, _, IndexType::I64) => sparse::<i64>,
                (Layout::Dense, NumberType::F32, _) => dense::<f32>,
                (Layout::Dense, NumberType::F64, _) => dense::<f64>,
                (Layout::Dense, NumberType::I8, _) => dense::<i8>,
                (Layout::Dense, NumberType::I16, _) => dense::<i16>,
                (Layout::Dense, NumberType::I32, _) => dense::<i32>,
                (Layout::Dense, NumberType::I64, _) => dense::<i64>,
                (Layout::Dense, NumberType::U8, _) => dense::<u8>,
                (Layout::Dense, NumberType::U16, _) => dense::<u16>,
                (Layout::Dense, NumberType::U32, _) => dense::<u32>,
                (Layout::Dense, NumberType::U64, _) => dense::<u64>,
            };
            write(data, index, spec.name, loan)?;
        }
        Ok(())
    }

    fn too_large(&self, error: &LoanError, _: &Batch<TableBatch>, _: &Batches<TableBatch>) -> String {
        format!("{error}. On the command line: --slot-bytes or a smaller --batch")
    }

    fn note(&self, slot_bytes: u64, batch: u32) -> Option<String> {
        self.encoder.tensors().any(|spec| spec.layout == Layout::Sparse).then(|| {
            let slot = crate::units::Bytes(slot_bytes);
            format!("the schema has sparse tensors, whose size depends on the lines: {batch} rows have {slot}; more end the feed. --slot-bytes makes room")
        })
    }
}
