//! JSON objects become the dense tensors of a table schema.

use bytes::Bytes;
use forebay_ingest::{
    Work,
    table::{Layout, NumberType, TableEncoder, TableOptions, TableSchema},
};

use super::{Body, IntakeError, invalid};
use crate::{
    backend::{ItemError, Refusal, TensorInfo},
    config::TableInput,
    schedule::Size,
};

pub(super) struct Table {
    encoder: TableEncoder,
    row_bytes: u64,
}

/// The rows of a call, tensor by tensor.
#[derive(Debug)]
pub(super) struct Rows {
    tensors: Vec<Dense>,
    /// The row that each item became.
    places: Vec<Option<usize>>,
}

#[derive(Debug)]
struct Dense {
    width: u64,
    each: usize,
    bytes: Vec<u8>,
}

impl Rows {
    pub(super) fn width(&self, tensor: usize) -> u64 {
        self.tensors.get(tensor).map_or(0, |dense| dense.width)
    }

    pub(super) fn row(&self, tensor: usize, item: usize) -> &[u8] {
        let found = self.places.get(item).copied().flatten().zip(self.tensors.get(tensor));
        found.and_then(|(row, dense)| dense.bytes.get(row * dense.each..(row + 1) * dense.each)).unwrap_or_default()
    }
}

impl Table {
    pub(super) fn open(input: &TableInput, body_bytes: u64) -> Result<Self, IntakeError> {
        let key = "model.input.schema";
        let schema = TableSchema::from_file(&input.schema).map_err(|e| IntakeError::new(key, e))?;
        let max_line_bytes = usize::try_from(body_bytes).unwrap_or(usize::MAX);
        let options = TableOptions { max_line_bytes, ..TableOptions::default() };
        let encoder = TableEncoder::new(&schema, options).map_err(|e| IntakeError::new(key, e))?;
        if let Some(sparse) = encoder.tensors().find(|tensor| tensor.layout == Layout::Sparse) {
            let what = format!("tensor {:?} is sparse, which has no rows to batch; make it dense", sparse.name);
            return Err(IntakeError::new(key, what));
        }
        let row_bytes = encoder.tensors().map(|tensor| tensor.columns as u64 * tensor.dtype.size() as u64).sum();
        Ok(Self { encoder, row_bytes })
    }

    pub(super) fn count(&self) -> usize {
        self.encoder.tensors().len()
    }

    pub(super) fn row_bytes(&self) -> u64 {
        self.row_bytes
    }

    pub(super) fn tensors(&self) -> Vec<TensorInfo> {
        let one = |tensor: forebay_ingest::table::TensorSpec<'_>| TensorInfo {
            name: tensor.name.to_owned(),
            dtype: tensor.dtype.into(),
            shape: vec![Some(tensor.columns as u64)],
        };
        self.encoder.tensors().map(one).collect()
    }

    pub(super) fn prepare(&self, items: &[Bytes]) -> Result<(Vec<Result<Size, ItemError>>, Body), Refusal> {
        let lines: Vec<&[u8]> = items.iter().map(|item| &item[..]).collect();
        let batch = self.encoder.encode(&lines, &Work::here()).map_err(|e| Refusal::TooLarge(e.to_string()))?;
        let size = Size { tokens: 0, bytes: self.row_bytes, group: 0 };
        let mut sizes: Vec<Result<Size, ItemError>> = vec![Ok(size); items.len()];
        let mut places = vec![None; items.len()];
        for bad in batch.bad() {
            if let Some(size) = sizes.get_mut(bad.index) {
                *size = Err(invalid(&bad.reason));
            }
        }
        for (row, item) in batch.items().enumerate() {
            places[item] = Some(row);
        }
        let mut tensors = Vec::new();
        for (index, tensor) in self.encoder.tensors().enumerate() {
            let elements = batch.rows() * tensor.columns;
            macro_rules! write {
                ($($variant:ident $type:ty),*) => {
                    match tensor.dtype {
                        $(NumberType::$variant => {
                            let mut values: Vec<$type> = vec![Default::default(); elements];
                            batch.write_dense(index, &mut values).map(|()| bytemuck::cast_slice(&values).to_vec())
                        })*
                    }
                };
            }
            let bytes = write!(F32 f32, F64 f64, I8 i8, I16 i16, I32 i32, I64 i64, U8 u8, U16 u16, U32 u32, U64 u64);
            let bytes = bytes.map_err(|e| Refusal::Unsupported(e.to_string()))?;
            let each = tensor.columns * tensor.dtype.size();
            tensors.push(Dense { width: tensor.columns as u64, each, bytes });
        }
        Ok((sizes, Body::Rows(Rows { tensors, places })))
    }
}
