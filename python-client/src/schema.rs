//! `Schema` and `Field`: what the messages of a ring hold.

use forebay::{ANY, Field, Schema};
use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyDict, PyInt, PyString, PyTuple},
};

use crate::{dtype, errors};

/// Reads dims: an int or a sequence of ints; with `open`, None and -1 stand for "no bound".
pub(crate) fn dims(value: &Bound<'_, PyAny>, open: bool) -> PyResult<Vec<u64>> {
    let dim = |dim: &Bound<'_, PyAny>| -> PyResult<u64> {
        if open && (dim.is_none() || dim.extract::<i64>().is_ok_and(|dim| dim == -1)) {
            return Ok(ANY);
        }
        dim.extract::<u64>().map_err(|_| {
            let none = if open { ", or None for no bound" } else { "" };
            PyValueError::new_err(format!("a dim is {dim}, expected an int, 0 or more{none}"))
        })
    };
    if value.is_instance_of::<PyInt>() {
        return Ok(vec![dim(value)?]);
    }
    if let Ok(tuple) = value.cast::<PyTuple>() {
        return tuple.iter_borrowed().map(|item| dim(&item)).collect();
    }
    value.try_iter()?.map(|item| dim(&item?)).collect()
}

/// One field of a schema: name, element type, the largest value of each dim.
#[pyclass(frozen, eq, name = "Field", module = "forebay")]
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PyField(Field);

#[pymethods]
impl PyField {
    #[new]
    fn new(py: Python<'_>, name: &str, dtype: &Bound<'_, PyAny>, max_dims: &Bound<'_, PyAny>) -> PyResult<Self> {
        let (dtype, dims) = (dtype::from_python(dtype)?, dims(max_dims, true)?);
        Field::new(name, dtype, &dims).map(Self).map_err(|e| errors::schema(py, e))
    }

    /// Its name.
    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }

    /// Name of its element type.
    #[getter]
    fn dtype(&self) -> &'static str {
        self.0.dtype.name()
    }

    /// The largest value of each dim, outermost first; None for no bound.
    #[getter]
    fn max_dims<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.0.max_dims().iter().map(|&dim| (dim != ANY).then_some(dim)))
    }

    fn __repr__(&self) -> String {
        format!("<forebay.Field {}>", self.0)
    }

    fn __getnewargs__<'py>(&self, py: Python<'py>) -> PyResult<(&str, &'static str, Bound<'py, PyTuple>)> {
        Ok((self.name(), self.dtype(), self.max_dims(py)?))
    }
}

/// The fields that every message of a ring has: names, element types, ranks, largest dims; with a name and a version.
///
/// Args:
///     name: what the messages are.
///     version: "major.minor". Both sides need the same major version; a higher minor one may only widen bounds.
///     fields: field name to (dtype, largest dims), or a sequence of Field. None as a dim: no bound.
/// Raises:
///     SchemaError: a name, a rank or the number of fields is out of range.
///
/// Example:
///     Schema("tokens", "1.0", {"input_ids": ("int64", (32, 128))})
#[pyclass(frozen, eq, name = "Schema", module = "forebay")]
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PySchema(pub(crate) Schema);

#[pymethods]
impl PySchema {
    #[new]
    fn new(py: Python<'_>, name: &str, version: &Bound<'_, PyAny>, fields: &Bound<'_, PyAny>) -> PyResult<Self> {
        let (major, minor) = read_version(version)?;
        let mut builder = Schema::builder(name, major, minor);
        if let Ok(named) = fields.cast::<PyDict>() {
            for (field, spec) in named.iter() {
                let (dtype, shape) = spec.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
                let field = field.cast_into::<PyString>()?;
                builder = builder.field(field.to_str()?, dtype::from_python(&dtype)?, &dims(&shape, true)?);
            }
        } else {
            for field in fields.try_iter()? {
                let field = field?;
                let Field { name, dtype, .. } = field.cast::<PyField>()?.get().0;
                builder = builder.field(&name, dtype, field.cast::<PyField>()?.get().0.max_dims());
            }
        }
        builder.build().map(Self).map_err(|e| errors::schema(py, e))
    }

    /// What the messages are.
    #[getter]
    fn name(&self) -> &str {
        self.0.name()
    }

    /// "major.minor".
    #[getter]
    fn version(&self) -> String {
        let (major, minor) = self.0.version();
        format!("{major}.{minor}")
    }

    /// The fields, in order.
    #[getter]
    fn fields<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let fields: PyResult<Vec<_>> = self.0.fields().iter().map(|&field| Bound::new(py, PyField(field))).collect();
        PyTuple::new(py, fields?)
    }

    /// Bytes of the largest message, each tensor rounded up to 64; None if a dim has no bound.
    #[getter]
    fn max_bytes(&self) -> Option<u64> {
        self.0.max_bytes()
    }

    /// Why a reader that expects this schema cannot read messages of `other`, line by line (- this, + other); None if it
    /// can.
    fn mismatch(&self, other: &Self) -> Option<String> {
        self.0.mismatch(&other.0).map(|mismatch| mismatch.to_string())
    }

    fn __repr__(&self) -> String {
        format!("<forebay.Schema {}>", self.0)
    }

    fn __getnewargs__<'py>(&self, py: Python<'py>) -> PyResult<(&str, String, Bound<'py, PyTuple>)> {
        Ok((self.name(), self.version(), self.fields(py)?))
    }
}

fn read_version(version: &Bound<'_, PyAny>) -> PyResult<(u16, u16)> {
    if let Ok(pair) = version.extract::<(u16, u16)>() {
        return Ok(pair);
    }
    let text = version.str()?;
    let parse = |text: &str| {
        let (major, minor) = text.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    parse(text.to_str()?).ok_or_else(|| {
        PyValueError::new_err(format!("a schema's version is {text:?}, expected \"major.minor\", e.g. \"1.0\""))
    })
}
