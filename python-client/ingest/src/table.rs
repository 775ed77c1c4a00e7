//! JSON lines to features, from bytes, memory maps and sequences of lines. What users see of it is in `_tables.py`.

use std::path::PathBuf;

use forebay_ingest::table::{
    BadRow, IndexType, Layout, NumberType, SchemaError, TableBatch, TableEncoder, TableError, TableOptions,
    TableSchema, split_lines,
};
use pyo3::{
    exceptions::{PyFileNotFoundError, PyKeyError, PyOSError, PyTypeError, PyValueError},
    prelude::*,
    types::{PyBytes, PyString},
};

use crate::array::{Array, Element};
use crate::errors::{item_error, value_error};
use crate::work::released;

fn schema_error(error: SchemaError) -> PyErr {
    let text = error.to_string();
    match error {
        SchemaError::Unreadable { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            PyFileNotFoundError::new_err(text)
        }
        SchemaError::Unreadable { .. } => PyOSError::new_err(text),
        _ => PyValueError::new_err(text),
    }
}

/// Encodes JSON lines by a schema.
#[pyclass(name = "_TableEncoder", module = "forebay_ingest", frozen)]
#[derive(Debug)]
pub(crate) struct PyTableEncoder(TableEncoder);

/// The part of a sparse tensor's name that says which of its arrays it is.
const PARTS: [&str; 3] = ["indptr", "indices", "values"];

/// Name, dtype, indices (None if it is dense) and columns of a tensor.
type Tensor = (String, &'static str, Option<&'static str>, usize);

/// Name, dtype and shape of an array.
type Field = (String, &'static str, Vec<usize>);

fn dtype(of: NumberType) -> &'static str {
    match of {
        NumberType::F32 => "float32",
        NumberType::F64 => "float64",
        NumberType::I8 => "int8",
        NumberType::I16 => "int16",
        NumberType::I32 => "int32",
        NumberType::I64 => "int64",
        NumberType::U8 => "uint8",
        NumberType::U16 => "uint16",
        NumberType::U32 => "uint32",
        NumberType::U64 => "uint64",
    }
}

fn index_dtype(of: IndexType) -> &'static str {
    match of {
        IndexType::I32 => "int32",
        IndexType::I64 => "int64",
    }
}

/// What a call says of items that are no lines: the index of each, and why.
type Absent = Vec<(usize, String)>;

/// Lines of a sequence, kept alive while they are read. An item that is none is an empty line, which is never JSON: the
/// encoder leaves it out as it does other bad ones.
fn lines_of<'a>(items: &'a [Bound<'_, PyAny>]) -> (Vec<&'a [u8]>, Absent) {
    let mut absent = Vec::new();
    let mut lines = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        lines.push(line_of(item).unwrap_or_else(|reason| {
            absent.push((index, reason));
            &[]
        }));
    }
    (lines, absent)
}

fn line_of<'a>(item: &'a Bound<'_, PyAny>) -> Result<&'a [u8], String> {
    if let Ok(bytes) = item.cast::<PyBytes>() {
        return Ok(bytes.as_bytes());
    }
    if let Ok(text) = item.cast::<PyString>() {
        // A lone surrogate is no UTF-8.
        return text.to_str().map(str::as_bytes).map_err(|error| format!("it is no Unicode text: {error}"));
    }
    let kind = item.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string());
    Err(format!("it is {kind}, expected bytes or str"))
}

#[pymethods]
impl PyTableEncoder {
    /// From a file (`.toml` or `.json`), or from JSON text.
    #[new]
    #[pyo3(signature = (path, json, max_line_bytes, max_batch_bytes))]
    fn new(
        path: Option<PathBuf>,
        json: Option<&str>,
        max_line_bytes: Option<usize>,
        max_batch_bytes: Option<usize>,
    ) -> PyResult<Self> {
        let schema = match (path, json) {
            (Some(path), None) => TableSchema::from_file(path),
            (None, Some(json)) => TableSchema::from_json(json),
            _ => return Err(PyValueError::new_err("pass either a path or JSON text")),
        };
        let mut options = TableOptions::default();
        options.max_line_bytes = max_line_bytes.unwrap_or(options.max_line_bytes);
        options.max_batch_bytes = max_batch_bytes.unwrap_or(options.max_batch_bytes);
        schema.and_then(|schema| TableEncoder::new(&schema, options)).map(Self).map_err(schema_error)
    }

    #[getter]
    fn tensors(&self) -> Vec<Tensor> {
        self.0
            .tensors()
            .map(|tensor| {
                let indices = (tensor.layout == Layout::Sparse).then(|| index_dtype(tensor.indices));
                (tensor.name.to_owned(), dtype(tensor.dtype), indices, tensor.columns)
            })
            .collect()
    }

    /// Encode a buffer of lines, or a sequence of them.
    #[pyo3(signature = (lines, skip, threads=None))]
    fn encode(
        slf: &Bound<'_, Self>,
        lines: &Bound<'_, PyAny>,
        skip: bool,
        threads: Option<usize>,
    ) -> PyResult<PyTableBatch> {
        let py = slf.py();
        let encoder = &slf.get().0;
        if lines.is_instance_of::<PyString>() {
            return Err(PyTypeError::new_err("lines is one str; pass its .encode(), or a list of lines"));
        }
        let mut absent = Absent::new();
        let encoded = if let Ok(bytes) = lines.cast::<PyBytes>() {
            let bytes = bytes.as_bytes();
            released(py, threads, |work| encoder.encode(&split_lines(bytes), work))?
        } else if let Ok(buffer) = Array::of(lines, "lines") {
            let bytes = buffer.elements::<u8>()?;
            // Others may write to it meanwhile, and no line is to change between the check that it is UTF-8 and the parser.
            released(py, threads, |work| encoder.encode_copied(&split_lines(bytes), work))?
        } else {
            let items: Vec<Bound<'_, PyAny>> = lines.try_iter()?.collect::<PyResult<_>>()?;
            let (lines, none) = lines_of(&items);
            absent = none;
            released(py, threads, |work| encoder.encode(&lines, work))?
        };
        let batch = encoded.map_err(|e: TableError| value_error(e))?;
        let made = PyTableBatch { batch, absent, encoder: slf.clone().unbind() };
        if !skip && let Some(bad) = made.batch.bad().first() {
            return Err(item_error(py, bad.index, format!("item {}: {}", bad.index, made.reason(bad))));
        }
        Ok(made)
    }
}

/// Rows of all tensors, to be written.
#[pyclass(name = "_TableBatch", module = "forebay_ingest", frozen)]
#[derive(Debug)]
pub(crate) struct PyTableBatch {
    batch: TableBatch,
    absent: Absent,
    encoder: Py<PyTableEncoder>,
}

impl PyTableBatch {
    /// Why a line was left out.
    fn reason(&self, bad: &BadRow) -> String {
        match self.absent.binary_search_by_key(&bad.index, |&(index, _)| index) {
            Ok(at) => self.absent[at].1.clone(),
            Err(_) => bad.reason.to_string(),
        }
    }

    fn write<T: Element + forebay_ingest::table::Element>(&self, index: usize, out: &mut Array) -> PyResult<()> {
        self.batch.write_dense(index, out.elements_mut::<T>()?).map_err(value_error)
    }

    fn write_sparse<I: Element + forebay_ingest::table::IndexElement>(
        &self,
        index: usize,
        [offsets, columns, values]: [&mut Array; 3],
    ) -> PyResult<()> {
        let (offsets, columns) = (offsets.elements_mut::<I>()?, columns.elements_mut::<I>()?);
        self.batch.write_sparse(index, offsets, columns, values.elements_mut::<f32>()?).map_err(value_error)
    }
}

#[pymethods]
impl PyTableBatch {
    #[getter]
    fn rows(&self) -> usize {
        self.batch.rows()
    }

    /// Index of the line that each row was made of.
    #[getter]
    fn items(&self) -> Vec<usize> {
        self.batch.items().collect()
    }

    /// Index and reason of each line that was left out.
    #[getter]
    fn errors(&self) -> Vec<(usize, String)> {
        self.batch.bad().iter().map(|bad| (bad.index, self.reason(bad))).collect()
    }

    /// Name, dtype and shape of each array that `write_into` wants.
    #[getter]
    fn fields(&self) -> PyResult<Vec<Field>> {
        let mut fields = Vec::new();
        for (index, tensor) in self.encoder.get().0.tensors().enumerate() {
            let name = tensor.name;
            if tensor.layout == Layout::Dense {
                let shape = self.batch.dense_shape(index).map_err(value_error)?;
                fields.push((name.to_owned(), dtype(tensor.dtype), shape.to_vec()));
            } else {
                let shape = self.batch.sparse_shape(index).map_err(value_error)?;
                let types = [index_dtype(tensor.indices), index_dtype(tensor.indices), dtype(tensor.dtype)];
                for ((part, of), length) in PARTS.iter().zip(types).zip([shape.rows + 1, shape.entries, shape.entries])
                {
                    fields.push((format!("{name}.{part}"), of, vec![length]));
                }
            }
        }
        Ok(fields)
    }

    /// Write every tensor into the array of its name.
    fn write_into(&self, py: Python<'_>, arrays: &Bound<'_, PyAny>) -> PyResult<()> {
        let get = |name: &str| {
            let found =
                arrays.get_item(name).map_err(|_| PyKeyError::new_err(format!("there is no array {name:?}")))?;
            Array::of(&found, "the array").map_err(|e| value_error(format!("{name}: {}", e.value(py))))
        };
        let mut dense = Vec::new();
        let mut sparse = Vec::new();
        for (index, tensor) in self.encoder.get().0.tensors().enumerate() {
            if tensor.layout == Layout::Dense {
                dense.push((index, tensor.dtype, get(tensor.name)?));
            } else {
                let parts = PARTS.map(|part| get(&format!("{}.{part}", tensor.name)));
                let [offsets, columns, values] = parts;
                sparse.push((index, tensor.indices, [offsets?, columns?, values?]));
            }
        }
        let all: Vec<&Array> =
            dense.iter().map(|(.., array)| array).chain(sparse.iter().flat_map(|(.., parts)| parts)).collect();
        for (index, array) in all.iter().enumerate() {
            for other in &all[..index] {
                array.apart(other)?;
            }
        }
        for (index, of, array) in &mut dense {
            match of {
                NumberType::F32 => self.write::<f32>(*index, array),
                NumberType::F64 => self.write::<f64>(*index, array),
                NumberType::I8 => self.write::<i8>(*index, array),
                NumberType::I16 => self.write::<i16>(*index, array),
                NumberType::I32 => self.write::<i32>(*index, array),
                NumberType::I64 => self.write::<i64>(*index, array),
                NumberType::U8 => self.write::<u8>(*index, array),
                NumberType::U16 => self.write::<u16>(*index, array),
                NumberType::U32 => self.write::<u32>(*index, array),
                NumberType::U64 => self.write::<u64>(*index, array),
            }?;
        }
        for (index, of, [offsets, columns, values]) in &mut sparse {
            match of {
                IndexType::I32 => self.write_sparse::<i32>(*index, [offsets, columns, values]),
                IndexType::I64 => self.write_sparse::<i64>(*index, [offsets, columns, values]),
            }?;
        }
        Ok(())
    }
}
