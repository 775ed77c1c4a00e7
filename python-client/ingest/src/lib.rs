//! The tokenizers of `forebay-ingest` for Python: text in, padded `int64` arrays out, written where they are wanted.
//!
//! A module and wheel of its own, so that a process that only receives tensors never loads a tokenizer. It holds no
//! logic that Rust users lack: conversions and nothing else.

mod array;
mod errors;
mod hasher;
mod image;
mod numeric;
mod objects;
mod pools;
mod table;
mod work;

use std::{path::PathBuf, sync::Arc};

use crate::errors::{IngestError, value_error};
use forebay_ingest::{PadSide, Tokenizer, TokenizerError, TokenizerOptions, Tokens, Width};
use pyo3::{
    buffer::PyBuffer,
    exceptions::{PyFileNotFoundError, PyOSError, PyTypeError, PyValueError},
    prelude::*,
    types::PyString,
};

/// A Hugging Face tokenizer, loaded from its `tokenizer.json`.
#[pyclass(name = "Tokenizer", module = "forebay_ingest", frozen)]
#[derive(Debug)]
struct PyTokenizer {
    inner: Arc<Tokenizer>,
}

/// A batch of texts as token ids, not padded yet.
#[pyclass(name = "Tokens", module = "forebay_ingest", frozen)]
#[derive(Debug)]
struct PyTokens {
    inner: Tokens,
}

fn width(width: &Bound<'_, PyAny>) -> PyResult<Width> {
    if let Ok(columns) = width.extract::<usize>() {
        return Ok(Width::Fixed(columns));
    }
    match width.cast::<PyString>().map(|name| name.to_cow()) {
        Ok(Ok(name)) if name == "longest" => Ok(Width::Longest),
        _ => Err(PyValueError::new_err(format!("width is {width}, expected \"longest\" or a number of columns"))),
    }
}

fn pad_side(side: Option<&str>) -> PyResult<Option<PadSide>> {
    match side {
        None => Ok(None),
        Some("left") => Ok(Some(PadSide::Left)),
        Some("right") => Ok(Some(PadSide::Right)),
        Some(other) => Err(PyValueError::new_err(format!("pad_side is {other:?}, expected \"left\" or \"right\""))),
    }
}

#[pymethods]
impl PyTokenizer {
    /// Load a tokenizer from a `tokenizer.json` or the folder that holds one.
    #[staticmethod]
    #[pyo3(signature = (path, *, max_length=None, width=None, pad_to_multiple_of=None, pad_id=None, pad_side=None, add_special_tokens=true))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of one Python function")]
    fn from_file(
        py: Python<'_>,
        path: PathBuf,
        max_length: Option<usize>,
        width: Option<&Bound<'_, PyAny>>,
        pad_to_multiple_of: Option<usize>,
        pad_id: Option<u32>,
        pad_side: Option<&str>,
        add_special_tokens: bool,
    ) -> PyResult<Self> {
        let options = TokenizerOptions {
            max_length,
            width: width.map_or(Ok(Width::Longest), self::width)?,
            pad_to_multiple_of,
            pad_id,
            pad_side: self::pad_side(pad_side)?,
            add_special_tokens,
        };
        let loaded = py.detach(|| Tokenizer::from_file(&path, &options));
        match loaded {
            Ok(inner) => Ok(Self { inner: Arc::new(inner) }),
            Err(TokenizerError::Unreadable { path, source }) => {
                let missing = source.kind() == std::io::ErrorKind::NotFound;
                let text = TokenizerError::Unreadable { path, source }.to_string();
                Err(if missing { PyFileNotFoundError::new_err(text) } else { PyOSError::new_err(text) })
            }
            Err(e) => Err(value_error(e)),
        }
    }

    /// Tokenize a batch with the interpreter released; call from several threads to use several cores.
    fn tokenize(&self, py: Python<'_>, texts: Vec<String>) -> PyResult<PyTokens> {
        let inner = py.detach(|| self.inner.encode_batch(texts.iter().map(String::as_str))).map_err(value_error)?;
        Ok(PyTokens { inner })
    }

    #[getter]
    fn max_length(&self) -> Option<usize> {
        self.inner.max_length()
    }

    #[getter]
    fn pad_id(&self) -> u32 {
        self.inner.pad_id()
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }
}

/// Refuses a buffer that a padded batch of `shape` cannot be written into.
fn writable(buffer: &PyBuffer<i64>, name: &str, shape: [usize; 2]) -> PyResult<()> {
    if buffer.readonly() {
        return Err(PyValueError::new_err(format!("{name} is read-only; pass a loan's view or a NumPy array")));
    }
    if buffer.shape() != shape || !buffer.is_c_contiguous() {
        let found = buffer.shape();
        return Err(PyValueError::new_err(format!(
            "{name} has shape {found:?}, expected contiguous {shape:?}; make it of tokens.shape"
        )));
    }
    Ok(())
}

#[pymethods]
impl PyTokens {
    /// Rows and columns of the padded batch.
    #[getter]
    fn shape(&self) -> (usize, usize) {
        (self.inner.rows(), self.inner.cols())
    }

    /// Tokens without padding.
    #[getter]
    fn token_count(&self) -> usize {
        self.inner.token_count()
    }

    /// Write ids and mask, padded, into two writable int64 buffers of this shape.
    fn write_into(
        &self,
        py: Python<'_>,
        input_ids: &Bound<'_, PyAny>,
        attention_mask: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let shape = [self.inner.rows(), self.inner.cols()];
        let get = |object: &Bound<'_, PyAny>, name: &str| {
            PyBuffer::<i64>::get(object).map_err(|e| PyTypeError::new_err(format!("{name} is no int64 buffer: {e}")))
        };
        let (ids, mask) = (get(input_ids, "input_ids")?, get(attention_mask, "attention_mask")?);
        writable(&ids, "input_ids", shape)?;
        writable(&mask, "attention_mask", shape)?;
        if shape.contains(&0) {
            return Ok(());
        }
        // PyBuffer gives cells, the pipeline wants slices: pad once in ordinary memory, then copy with one memcpy each.
        let mut padded_ids = vec![0i64; shape[0] * shape[1]];
        let mut padded_mask = vec![0i64; shape[0] * shape[1]];
        py.detach(|| self.inner.write_into(&mut padded_ids, &mut padded_mask)).map_err(value_error)?;
        ids.copy_from_slice(py, &padded_ids)?;
        mask.copy_from_slice(py, &padded_mask)
    }

    fn __len__(&self) -> usize {
        self.inner.rows()
    }
}

#[pymodule(gil_used = false)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyTokenizer>()?;
    module.add_class::<PyTokens>()?;
    let error = module.py().get_type::<IngestError>();
    error.setattr("index", module.py().None())?;
    module.add("IngestError", error)?;
    module.add_class::<hasher::PyFeatureHasher>()?;
    module.add_class::<hasher::PyHashedRows>()?;
    module.add_class::<image::PyImageBatch>()?;
    module.add_class::<image::PyImageProcessor>()?;
    module.add_class::<numeric::PyMinMaxScaler>()?;
    module.add_class::<numeric::PyStandardScaler>()?;
    module.add_class::<table::PyTableBatch>()?;
    module.add_class::<table::PyTableEncoder>()?;
    module.add_function(wrap_pyfunction!(numeric::l2_normalize, module)?)?;
    module.add_function(wrap_pyfunction!(numeric::minmax_fit, module)?)?;
    module.add_function(wrap_pyfunction!(numeric::minmax_scale, module)?)?;
    module.add_function(wrap_pyfunction!(numeric::standard_fit, module)?)?;
    module.add_function(wrap_pyfunction!(numeric::standard_scale, module)?)?;
    module.add_function(wrap_pyfunction!(numeric::top_k, module)?)
}
