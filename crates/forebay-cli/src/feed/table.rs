//! Feeding tables: the tensors of a schema, a sparse one as three.

use std::{ops::Range, sync::Arc};

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

/// The tensors that one of the schema becomes: rows, and for a sparse one its entries.
fn tensors(spec: &TensorSpec<'_>, rows: u64, entries: u64) -> Vec<Tensor> {
    let name = spec.name;
    match spec.layout {
        Layout::Dense => vec![Tensor::new(name, spec.dtype.into(), [rows, spec.columns as u64])],
        Layout::Sparse => {
            let indices = DType::from(spec.indices);
            vec![
                Tensor::new(format!("{name}.indptr"), indices, [rows + 1]),
                Tensor::new(format!("{name}.indices"), indices, [entries]),
                Tensor::new(format!("{name}.values"), DType::F32, [entries]),
            ]
        }
    }
}

/// Where each row of a sparse tensor begins among its entries, and where the last one ends.
fn starts<I: IndexElement>(data: &TableBatch, index: usize) -> Result<Vec<usize>, Failure>
where
    usize: TryFrom<I>,
{
    let mut offsets = vec![I::default(); data.rows() + 1];
    data.write_offsets(index, &mut offsets).map_err(Failure::failed)?;
    let starts: Option<Vec<usize>> = offsets.into_iter().map(|offset| usize::try_from(offset).ok()).collect();
    starts.ok_or_else(|| Failure::failed("an offset of a sparse tensor is negative"))
}

/// Entries that these rows have in a sparse tensor.
fn entries(data: &TableBatch, index: usize, indices: IndexType, rows: &Range<usize>) -> usize {
    if *rows == (0..data.rows()) {
        return data.sparse_shape(index).map_or(0, |shape| shape.entries);
    }
    let starts = match indices {
        IndexType::I32 => starts::<i32>(data, index),
        IndexType::I64 => starts::<i64>(data, index),
    };
    starts.map_or(0, |starts| starts[rows.end] - starts[rows.start])
}

fn dense<T: Element + RingElement>(
    data: &TableBatch,
    index: usize,
    rows: &Range<usize>,
    name: &str,
    loan: &mut Loan<'_>,
) -> Result<(), Failure> {
    let out = loan.tensor_mut::<T>(name).map_err(Failure::failed)?;
    if *rows == (0..data.rows()) {
        return data.write_dense(index, out).map_err(Failure::failed);
    }
    let [all, columns] = data.dense_shape(index).map_err(Failure::failed)?;
    let mut whole = vec![T::default(); all * columns];
    data.write_dense(index, &mut whole).map_err(Failure::failed)?;
    out.copy_from_slice(&whole[rows.start * columns..rows.end * columns]);
    Ok(())
}

fn sparse<I: IndexElement + RingElement>(
    data: &TableBatch,
    index: usize,
    rows: &Range<usize>,
    name: &str,
    loan: &mut Loan<'_>,
) -> Result<(), Failure>
where
    usize: TryFrom<I>,
{
    if *rows != (0..data.rows()) {
        return sparse_part::<I>(data, index, rows, name, loan);
    }
    let values = loan.tensor_mut(&format!("{name}.values")).map_err(Failure::failed)?;
    data.write_values(index, values).map_err(Failure::failed)?;
    let (indices, indptr) = (format!("{name}.indices"), format!("{name}.indptr"));
    let (indices, indptr) = loan.tensors_mut::<I, I>(&indices, &indptr).map_err(Failure::failed)?;
    let written: Result<(), WriteTableError> =
        data.write_columns(index, indices).and_then(|()| data.write_offsets(index, indptr));
    written.map_err(Failure::failed)
}

/// As `sparse`, for some of the rows: rare, so by way of the whole tensor.
fn sparse_part<I: IndexElement + RingElement>(
    data: &TableBatch,
    index: usize,
    rows: &Range<usize>,
    name: &str,
    loan: &mut Loan<'_>,
) -> Result<(), Failure>
where
    usize: TryFrom<I>,
{
    let starts = starts::<I>(data, index)?;
    let (first, end) = (starts[rows.start], starts[rows.end]);
    let count = data.sparse_shape(index).map_err(Failure::failed)?.entries;
    let (mut values, mut columns) = (vec![0f32; count], vec![I::default(); count]);
    data.write_values(index, &mut values).map_err(Failure::failed)?;
    data.write_columns(index, &mut columns).map_err(Failure::failed)?;
    let out: &mut [f32] = loan.tensor_mut(&format!("{name}.values")).map_err(Failure::failed)?;
    out.copy_from_slice(&values[first..end]);
    let (indices, indptr) = (format!("{name}.indices"), format!("{name}.indptr"));
    let (indices, indptr) = loan.tensors_mut::<I, I>(&indices, &indptr).map_err(Failure::failed)?;
    indices.copy_from_slice(&columns[first..end]);
    for (out, start) in indptr.iter_mut().zip(&starts[rows.start..=rows.end]) {
        *out = I::try_from(start - first).map_err(|_| Failure::failed("an offset is larger than its type"))?;
    }
    Ok(())
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

    fn tensors(&self, batch: &Batch<TableBatch>, rows: &Range<usize>) -> Vec<Tensor> {
        let specs = self.encoder.tensors().enumerate();
        let of = |(index, spec): (usize, TensorSpec<'_>)| {
            let entries = match spec.layout {
                Layout::Dense => 0,
                Layout::Sparse => entries(&batch.data, index, spec.indices, rows),
            };
            tensors(&spec, rows.len() as u64, entries as u64)
        };
        specs.flat_map(of).collect()
    }

    fn write(&self, batch: &Batch<TableBatch>, rows: &Range<usize>, loan: &mut Loan<'_>) -> Result<(), Failure> {
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
            write(data, index, rows, spec.name, loan)?;
        }
        Ok(())
    }

    fn too_large(&self, error: &LoanError, _: &Batch<TableBatch>, _: &Batches<TableBatch>) -> String {
        format!("{error}. On the command line: --slot-bytes or a smaller --batch")
    }

    fn note(&self, slot_bytes: u64, batch: u32) -> Option<String> {
        self.encoder.tensors().any(|spec| spec.layout == Layout::Sparse).then(|| {
            let slot = crate::units::Bytes(slot_bytes);
            format!("the schema has sparse tensors, whose size depends on the lines: {batch} rows have {slot}; more end the feed, or with --on-error skip are sent in parts or left out. --slot-bytes makes room")
        })
    }
}
