//! Feature hashing of Python objects: dicts, pairs and strings, as scikit-learn's `FeatureHasher` takes them.
//!
//! Names are hashed while the objects are looked at, which takes longer than hashing does; sorting and adding up rows is
//! done on all cores, without the interpreter.

use forebay_ingest::Work;
use forebay_ingest::table::{FeatureHasher, HashInput, HashedRows};
use pyo3::{
    exceptions::{PyOverflowError, PyTypeError, PyValueError},
    prelude::*,
    types::{PyBytes, PyString},
};

use crate::array::Array;
use crate::errors::{item_error, value_error};
use crate::objects::{self, Looked, Worth};
use crate::work::released;

/// Rows between two looks for signals.
const LOOK_EVERY_ROWS: usize = 1024;

/// Hashes names into columns.
#[pyclass(name = "_FeatureHasher", module = "forebay_ingest", frozen)]
#[derive(Debug)]
pub(crate) struct PyFeatureHasher {
    hasher: FeatureHasher,
    input: HashInput,
    single: bool,
}

/// Hashed rows, sorted and added up.
#[pyclass(name = "_HashedRows", module = "forebay_ingest", frozen)]
#[derive(Debug)]
pub(crate) struct PyHashedRows(HashedRows);

/// What is wrong with one sample.
enum Wrong {
    Said(String),
    Raised(PyErr),
}

impl From<PyErr> for Wrong {
    fn from(error: PyErr) -> Self {
        Self::Raised(error)
    }
}

/// The rows of one call.
struct Rows<'a> {
    hasher: &'a PyFeatureHasher,
    rows: HashedRows,
    /// For `name=value`.
    joined: Vec<u8>,
}

fn name_bytes<'a>(name: &'a Bound<'_, PyAny>) -> Result<&'a [u8], Wrong> {
    if let Ok(name) = name.cast::<PyString>() {
        return Ok(name.to_str()?.as_bytes());
    }
    if let Ok(name) = name.cast::<PyBytes>() {
        return Ok(name.as_bytes());
    }
    let found = name.get_type().name()?.to_string();
    Err(Wrong::Said(format!("a feature name is a {found}, expected str or bytes")))
}

impl Rows<'_> {
    fn put(&mut self, name: &[u8], value: f64) {
        if value != 0.0 {
            self.rows.push(self.hasher.hasher, name, value);
        }
    }

    fn pair(&mut self, name: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> Result<(), Wrong> {
        if let Ok(label) = value.cast::<PyString>() {
            let mut joined = std::mem::take(&mut self.joined);
            join(&mut joined, name_bytes(name)?, label.to_str()?.as_bytes());
            self.put(&joined, 1.0);
            self.joined = joined;
            return Ok(());
        }
        let number = value.extract::<f64>()?;
        if !number.is_finite() {
            return Err(not_finite(number));
        }
        let name = name_bytes(name)?;
        self.put(name, number);
        Ok(())
    }

    fn any_pair(&mut self, item: &Bound<'_, PyAny>) -> Result<(), Wrong> {
        let mut parts = item.try_iter()?;
        let (Some(name), Some(value), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Wrong::Said("something has another length than a pair of name and value".to_owned()));
        };
        let (name, value) = (name?, value?);
        self.pair(&name, &value)
    }

    /// The way of plain lists, dicts, strings and numbers. False if there was something else: nothing was added then.
    fn plain(&mut self, sample: &Bound<'_, PyAny>) -> Result<bool, Wrong> {
        let (input, mut bad, mut joined) = (self.hasher.input, None, std::mem::take(&mut self.joined));
        let mut put = |name: &[u8], worth: Worth<'_>| match worth {
            Worth::Number(number) if number.is_finite() => self.put(name, number),
            Worth::Number(number) => bad = Some(number),
            Worth::Label(label) => {
                join(&mut joined, name, label);
                self.put(&joined, 1.0);
            }
        };
        let looked = match input {
            HashInput::Dict => sample.cast_exact().map(|dict| objects::entries(dict, put)).ok(),
            HashInput::Pair => sample.cast_exact().map(|list| objects::pairs(list, put)).ok(),
            HashInput::String => {
                sample.cast_exact().map(|list| objects::names(list, |name| put(name, Worth::Number(1.0)))).ok()
            }
        };
        self.joined = joined;
        match (looked, bad) {
            (Some(Looked::Raised(error)), _) => Err(Wrong::Raised(error)),
            (Some(Looked::All), Some(number)) => Err(not_finite(number)),
            (Some(Looked::All), None) => Ok(true),
            (Some(Looked::Other) | None, _) => {
                self.rows.restart_row();
                Ok(false)
            }
        }
    }

    fn sample(&mut self, sample: &Bound<'_, PyAny>) -> Result<(), Wrong> {
        if self.plain(sample)? {
            return Ok(());
        }
        match self.hasher.input {
            HashInput::Dict => {
                for item in sample.call_method0("items")?.try_iter()? {
                    self.any_pair(&item?)?;
                }
            }
            HashInput::Pair => {
                for item in sample.try_iter()? {
                    self.any_pair(&item?)?;
                }
            }
            HashInput::String => {
                if sample.is_instance_of::<PyString>() || sample.is_instance_of::<PyBytes>() {
                    return Err(Wrong::Said("the sample is one string, expected an iterable of strings".to_owned()));
                }
                for name in sample.try_iter()? {
                    self.put(name_bytes(&name?)?, 1.0);
                }
            }
        }
        Ok(())
    }
}

fn not_finite(number: f64) -> Wrong {
    Wrong::Said(format!("a value is {number}, expected a finite number"))
}

/// `name=label`
fn join(joined: &mut Vec<u8>, name: &[u8], label: &[u8]) {
    joined.clear();
    joined.extend_from_slice(name);
    joined.push(b'=');
    joined.extend_from_slice(label);
}

/// Whether what an object raised says that it is not what was expected.
fn about_the_sample(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PyTypeError>(py)
        || error.is_instance_of::<PyValueError>(py)
        || error.is_instance_of::<PyOverflowError>(py)
}

#[pymethods]
impl PyFeatureHasher {
    #[new]
    fn new(features: u32, input: &str, alternate_sign: bool, single: bool) -> PyResult<Self> {
        let hasher = FeatureHasher::new(features, alternate_sign)
            .ok_or_else(|| PyValueError::new_err(format!("n_features is {features}, expected 1 to 2147483647")))?;
        let input = match input {
            "dict" => HashInput::Dict,
            "pair" => HashInput::Pair,
            "string" => HashInput::String,
            _ => {
                return Err(PyValueError::new_err(format!(
                    "input_type is {input:?}, expected \"dict\", \"pair\" or \"string\""
                )));
            }
        };
        Ok(Self { hasher, input, single })
    }

    /// Hash samples into rows.
    #[pyo3(signature = (samples, threads=None))]
    fn transform(&self, py: Python<'_>, samples: &Bound<'_, PyAny>, threads: Option<usize>) -> PyResult<PyHashedRows> {
        let mut rows = Rows { hasher: self, rows: HashedRows::new(self.single), joined: Vec::new() };
        for (index, sample) in samples.try_iter()?.enumerate() {
            let done = rows.sample(&sample?);
            done.map_err(|wrong| {
                let (text, cause) = match wrong {
                    Wrong::Said(text) => (text, None),
                    Wrong::Raised(error) if about_the_sample(py, &error) => (error.value(py).to_string(), Some(error)),
                    Wrong::Raised(error) => return error,
                };
                let error = item_error(py, index, format!("sample {index}: {text}"));
                error.set_cause(py, cause);
                error
            })?;
            rows.rows.end_row();
            if index % LOOK_EVERY_ROWS == LOOK_EVERY_ROWS - 1 {
                py.check_signals()?;
            }
        }
        let unsorted = rows.rows;
        let sorted = released(py, threads, |work: &Work<'_>| unsorted.finish(work))?;
        sorted.map(PyHashedRows).map_err(value_error)
    }
}

#[pymethods]
impl PyHashedRows {
    #[getter]
    fn rows(&self) -> usize {
        self.0.rows()
    }

    #[getter]
    fn entries(&self) -> usize {
        self.0.entries()
    }

    /// Write offsets, columns and values; offsets and columns are both int32 or both int64.
    fn write_into(
        &self,
        indptr: &Bound<'_, PyAny>,
        indices: &Bound<'_, PyAny>,
        values: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let mut indptr = Array::of(indptr, "indptr")?;
        let (mut indices, mut values) = (Array::of(indices, "indices")?, Array::of(values, "values")?);
        indptr.apart(&indices)?;
        indptr.apart(&values)?;
        indices.apart(&values)?;
        let (single, double) = (values.is::<f32>(), indptr.is::<i64>());
        match (double, single) {
            (false, true) => {
                self.0.write(indptr.elements_mut::<i32>()?, indices.elements_mut()?, values.elements_mut::<f32>()?)
            }
            (false, false) => {
                self.0.write(indptr.elements_mut::<i32>()?, indices.elements_mut()?, values.elements_mut::<f64>()?)
            }
            (true, true) => {
                self.0.write(indptr.elements_mut::<i64>()?, indices.elements_mut()?, values.elements_mut::<f32>()?)
            }
            (true, false) => {
                self.0.write(indptr.elements_mut::<i64>()?, indices.elements_mut()?, values.elements_mut::<f64>()?)
            }
        }
        .map_err(value_error)
    }
}
