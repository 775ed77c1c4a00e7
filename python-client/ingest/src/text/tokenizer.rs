//! `Tokenizer`: loading, encoding, decoding.

use std::path::PathBuf;
use std::sync::Arc;

use forebay_ingest::{Plan, PlanOptions, RowOptions, TiktokenOptions, Tokenizer, TokenizerError, Tokens};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::batch::PyBatch;
use super::options::{Loading, Rows};
use super::stream::PyDecodeStream;
use super::texts::Held;
use super::tokens::PyTokens;
use crate::errors::{encode_error, item_error, tokenizer_error, value_error};
use crate::pools::Threads;

/// A tokenizer, shared between threads freely; encoding releases the interpreter.
#[pyclass(name = "Tokenizer", module = "forebay_ingest", frozen)]
#[derive(Debug)]
pub(crate) struct PyTokenizer {
    inner: Arc<Tokenizer>,
}

/// Encodes with the interpreter released, looking for signals between slabs.
fn encode(
    py: Python<'_>,
    tokenizer: &Tokenizer,
    held: &Held<'_>,
    options: &RowOptions,
    threads: &Threads,
) -> PyResult<(Tokens, Vec<(usize, String)>)> {
    let (texts, bad) = held.texts();
    let mut interrupted = None;
    let encoded = py.detach(|| {
        tokenizer.encode_while(&texts, options, threads.pool(), || {
            interrupted = Python::attach(|py| py.check_signals()).err();
            interrupted.is_none()
        })
    });
    match (encoded.map_err(tokenizer_error)?, interrupted) {
        (Some(tokens), None) => Ok((tokens, bad)),
        (_, Some(error)) => Err(error),
        (None, None) => Err(value_error("encoding stopped without a reason; report this")),
    }
}

/// Raises the first error unless it is to be reported.
fn raise_first(py: Python<'_>, tokens: &Tokens, bad: &[(usize, String)], on_error: &str) -> PyResult<()> {
    match (on_error, tokens.errors().first()) {
        ("report", _) | ("raise", None) => Ok(()),
        ("raise", Some(error)) => Err(match bad.first() {
            Some((index, reason)) if *index == error.row => {
                item_error(py, *index, format!("text {index} cannot be tokenized: {reason}; leave it out"))
            }
            _ => encode_error(py, error),
        }),
        _ => Err(PyValueError::new_err(format!("on_error is {on_error:?}, expected \"raise\" or \"report\""))),
    }
}

#[pymethods]
impl PyTokenizer {
    /// Load a tokenizer from a `tokenizer.json` or the folder that holds one.
    #[staticmethod]
    #[pyo3(signature = (
        path, *, max_length=None, width=None, pad_to_multiple_of=None, pad_id=None, pad_side=None,
        truncation_side=None, add_special_tokens=true, normalize=None, special_in_text=true
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of one Python function")]
    fn from_file(
        py: Python<'_>,
        path: PathBuf,
        max_length: Option<usize>,
        width: Option<&Bound<'_, PyAny>>,
        pad_to_multiple_of: Option<usize>,
        pad_id: Option<u32>,
        pad_side: Option<&str>,
        truncation_side: Option<&str>,
        add_special_tokens: bool,
        normalize: Option<&str>,
        special_in_text: bool,
    ) -> PyResult<Self> {
        let options = Loading {
            max_length,
            width,
            pad_to_multiple_of,
            pad_id,
            pad_side,
            truncation_side,
            add_special_tokens,
            normalize,
            special_in_text,
        }
        .options()?;
        Self::loaded(py.detach(|| Tokenizer::from_file(&path, &options)))
    }

    /// Load a vocabulary in tiktoken's format; `name` says which published one it is, else give pattern and special tokens.
    #[staticmethod]
    #[pyo3(signature = (
        path, name=None, *, pattern=None, special_tokens=None, max_length=None, width=None, pad_to_multiple_of=None,
        pad_id=None, pad_side=None, truncation_side=None, special_in_text=true
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of one Python function")]
    fn from_tiktoken(
        py: Python<'_>,
        path: PathBuf,
        name: Option<&str>,
        pattern: Option<String>,
        special_tokens: Option<std::collections::HashMap<String, u32>>,
        max_length: Option<usize>,
        width: Option<&Bound<'_, PyAny>>,
        pad_to_multiple_of: Option<usize>,
        pad_id: Option<u32>,
        pad_side: Option<&str>,
        truncation_side: Option<&str>,
        special_in_text: bool,
    ) -> PyResult<Self> {
        let mut vocabulary = match (name, &pattern) {
            (Some(name), _) => TiktokenOptions::named(name).ok_or_else(|| {
                value_error(format!(
                    "name is {name:?}, expected gpt2, r50k_base, p50k_base, cl100k_base or o200k_base; for another \
                     vocabulary pass pattern and special_tokens"
                ))
            })?,
            (None, Some(_)) => TiktokenOptions { pattern: String::new(), special_tokens: Vec::new() },
            (None, None) => {
                return Err(value_error("neither name nor pattern is given; a vocabulary does not say them"));
            }
        };
        vocabulary.pattern = pattern.unwrap_or(vocabulary.pattern);
        vocabulary.special_tokens = special_tokens.map_or(vocabulary.special_tokens, |all| all.into_iter().collect());
        let options = Loading {
            max_length,
            width,
            pad_to_multiple_of,
            pad_id,
            pad_side,
            truncation_side,
            add_special_tokens: true,
            normalize: None,
            special_in_text,
        }
        .options()?;
        Self::loaded(py.detach(|| Tokenizer::from_tiktoken(&path, &vocabulary, &options)))
    }

    /// Tokenize into named arrays, with the interpreter released, on `threads` threads (None: one a core).
    #[pyo3(signature = (
        texts, pairs=None, *, padding=None, truncation=None, max_length=None, stride=None, pad_to_multiple_of=None,
        add_special_tokens=None, type_ids=None, offsets=false, ragged=false, threads=None, on_error="raise"
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of one Python function")]
    fn encode_batch(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        pairs: Option<&Bound<'_, PyAny>>,
        padding: Option<&Bound<'_, PyAny>>,
        truncation: Option<&Bound<'_, PyAny>>,
        max_length: Option<usize>,
        stride: Option<usize>,
        pad_to_multiple_of: Option<usize>,
        add_special_tokens: Option<bool>,
        type_ids: Option<bool>,
        offsets: bool,
        ragged: bool,
        threads: Option<usize>,
        on_error: &str,
    ) -> PyResult<PyBatch> {
        let rows = Rows {
            padding,
            truncation,
            max_length,
            stride,
            pad_to_multiple_of,
            add_special_tokens,
            type_ids,
            offsets,
            pairs: pairs.is_some(),
        };
        let options = rows.options(self.inner.rows())?;
        let held = Held::new(texts, pairs)?;
        let threads = Threads::of(threads)?;
        let (tokens, bad) = encode(py, &self.inner, &held, &options, &threads)?;
        raise_first(py, &tokens, &bad, on_error)?;
        let mut batch = py.detach(|| threads.run(tokens.padded_count(), || PyBatch::new(&tokens, ragged)))?;
        for (item, reason) in bad {
            batch.explain(item, reason);
        }
        Ok(batch)
    }

    /// Tokenize many texts into several batches that waste little padding: rows of like length together.
    #[pyo3(signature = (
        texts, *, max_rows=32, max_tokens=None, keep_order=false, max_length=None, pad_to_multiple_of=None,
        offsets=false, ragged=false, threads=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of one Python function")]
    fn encode_planned(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        max_rows: usize,
        max_tokens: Option<usize>,
        keep_order: bool,
        max_length: Option<usize>,
        pad_to_multiple_of: Option<usize>,
        offsets: bool,
        ragged: bool,
        threads: Option<usize>,
    ) -> PyResult<Vec<PyBatch>> {
        let rows = Rows {
            padding: None,
            truncation: None,
            max_length,
            stride: None,
            pad_to_multiple_of,
            add_special_tokens: None,
            type_ids: None,
            offsets,
            pairs: false,
        };
        let options = rows.options(self.inner.rows())?;
        let held = Held::new(texts, None)?;
        let (tokens, bad) = encode(py, &self.inner, &held, &options, &Threads::of(threads)?)?;
        raise_first(py, &tokens, &bad, "raise")?;
        let limits = PlanOptions { max_rows, max_tokens, pad_to_multiple_of: options.pad_to_multiple_of, keep_order };
        py.detach(|| {
            let lengths: Vec<usize> = tokens.iter().map(<[u32]>::len).collect();
            let plan = Plan::new(&lengths, &limits);
            plan.batches.iter().map(|batch| PyBatch::new(&tokens.pick(&batch.rows), ragged)).collect()
        })
    }

    /// Tokenize without padding: its `shape` says what to loan, `write_into` writes there.
    #[pyo3(signature = (texts, pairs=None, *, threads=1))]
    fn tokenize(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        pairs: Option<&Bound<'_, PyAny>>,
        threads: Option<usize>,
    ) -> PyResult<PyTokens> {
        let held = Held::new(texts, pairs)?;
        let (inner, bad) = encode(py, &self.inner, &held, self.inner.rows(), &Threads::of(threads)?)?;
        raise_first(py, &inner, &bad, "raise")?;
        Ok(PyTokens { inner })
    }

    /// The text of `ids`; special tokens left out unless told otherwise.
    #[pyo3(signature = (ids, *, skip_special_tokens=true))]
    fn decode(&self, py: Python<'_>, ids: Vec<u32>, skip_special_tokens: bool) -> PyResult<String> {
        py.detach(|| self.inner.decode(&ids, skip_special_tokens)).map_err(value_error)
    }

    /// A stream that turns ids into text one by one, as a model makes them.
    #[pyo3(signature = (*, skip_special_tokens=true))]
    fn decode_stream(&self, skip_special_tokens: bool) -> PyDecodeStream {
        PyDecodeStream::new(Arc::clone(&self.inner), skip_special_tokens)
    }

    /// The id of a token as the vocabulary writes it, or None.
    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Longest row in tokens, None for no limit.
    #[getter]
    fn max_length(&self) -> Option<usize> {
        self.inner.max_length()
    }

    /// What short rows are filled with.
    #[getter]
    fn pad_id(&self) -> u32 {
        self.inner.pad_id()
    }

    /// Tokens in the vocabulary, added ones included.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }
}

impl PyTokenizer {
    fn loaded(result: Result<Tokenizer, TokenizerError>) -> PyResult<Self> {
        result.map(|inner| Self { inner: Arc::new(inner) }).map_err(tokenizer_error)
    }
}
