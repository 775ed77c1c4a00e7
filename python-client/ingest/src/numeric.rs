//! Scaling, norms and nearest rows on arrays of NumPy. The classes and defaults that users see are in `_numbers.py`.

use forebay_ingest::numeric::{
    self, Float, Metric, MinMaxFit, MinMaxScaler, NumericError, StandardFit, StandardScaler, top_k as find_top_k,
};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
};

use crate::array::{Array, Element};
use crate::errors::{item_error, value_error};
use crate::work::released;

fn numeric_error(py: Python<'_>, error: &NumericError) -> PyErr {
    match error {
        NumericError::Infinite { row, .. } | NumericError::NotFinite { row } => item_error(py, *row, error.to_string()),
        _ => value_error(error),
    }
}

/// Runs code with the array's elements, whichever of the two types they are of.
macro_rules! of_floats {
    ($array:expr, $type:ident => $code:expr) => {
        if $array.is::<f32>() {
            type $type = f32;
            $code
        } else if $array.is::<f64>() {
            type $type = f64;
            $code
        } else {
            return Err(PyTypeError::new_err("the array is neither float32 nor float64; convert it with .astype"));
        }
    };
}

/// Count, mean, variance and scale, each with a number a column.
type Columns = (Vec<f64>, Vec<f64>, Vec<f64>, Vec<f64>);

/// Count, mean, variance and scale of each column.
#[pyfunction]
#[pyo3(signature = (x, columns, threads=None))]
pub(crate) fn standard_fit(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    columns: usize,
    threads: Option<usize>,
) -> PyResult<Columns> {
    let array = Array::of(x, "x")?;
    let fit = of_floats!(array, T => {
        let x = array.elements::<T>()?;
        released(py, threads, |work| StandardFit::new(x, columns, work))?
    })
    .map_err(|e| numeric_error(py, &e))?;
    let scale = fit.scale();
    Ok((fit.count, fit.mean, fit.variance, scale))
}

/// Smallest and largest number of each column.
#[pyfunction]
#[pyo3(signature = (x, columns, threads=None))]
pub(crate) fn minmax_fit(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    columns: usize,
    threads: Option<usize>,
) -> PyResult<(Vec<f64>, Vec<f64>)> {
    let array = Array::of(x, "x")?;
    of_floats!(array, T => {
        let x = array.elements::<T>()?;
        let fit = released(py, threads, |work| MinMaxFit::new(x, columns, work))?;
        let fit = fit.map_err(|e| numeric_error(py, &e))?;
        let wide = |row: Vec<T>| row.into_iter().map(Float::to_f64).collect();
        Ok((wide(fit.min), wide(fit.max)))
    })
}

/// What both scalers do.
trait Scaler<T>: Sync {
    fn into(&self, x: &[T], out: &mut [T], work: &forebay_ingest::Work<'_>) -> Result<(), NumericError>;
    fn in_place(&self, x: &mut [T], work: &forebay_ingest::Work<'_>) -> Result<(), NumericError>;
}

impl<T: Float> Scaler<T> for StandardScaler {
    fn into(&self, x: &[T], out: &mut [T], work: &forebay_ingest::Work<'_>) -> Result<(), NumericError> {
        self.transform(x, out, work)
    }
    fn in_place(&self, x: &mut [T], work: &forebay_ingest::Work<'_>) -> Result<(), NumericError> {
        self.transform_in_place(x, work)
    }
}

impl<T: Float> Scaler<T> for MinMaxScaler<T> {
    fn into(&self, x: &[T], out: &mut [T], work: &forebay_ingest::Work<'_>) -> Result<(), NumericError> {
        self.transform(x, out, work)
    }
    fn in_place(&self, x: &mut [T], work: &forebay_ingest::Work<'_>) -> Result<(), NumericError> {
        self.transform_in_place(x, work)
    }
}

fn scale<T: Element + Send + Sync>(
    py: Python<'_>,
    scaler: &dyn Scaler<T>,
    x: &Array,
    out: &mut Array,
    threads: Option<usize>,
) -> PyResult<()> {
    if x.shape() != out.shape() {
        let (found, expected) = (out.shape(), x.shape());
        return Err(PyValueError::new_err(format!("out has shape {found:?}, expected {expected:?}; make it like x")));
    }
    let done = if x.same_memory(out) {
        let x = out.elements_mut::<T>()?;
        released(py, threads, |work| scaler.in_place(x, work))?
    } else {
        x.apart(out)?;
        let (x, out) = (x.elements::<T>()?, out.elements_mut::<T>()?);
        released(py, threads, |work| scaler.into(x, out, work))?
    };
    done.map_err(|e| numeric_error(py, &e))
}

/// A fitted standard scaler.
#[pyclass(name = "_StandardScaler", module = "forebay_ingest", frozen)]
#[derive(Debug)]
pub(crate) struct PyStandardScaler(StandardScaler);

#[pymethods]
impl PyStandardScaler {
    #[new]
    fn new(mean: Vec<f64>, scale: Vec<f64>) -> PyResult<Self> {
        StandardScaler::from_parts(mean, scale).map(Self).map_err(value_error)
    }

    /// Write x scaled into out, which may be x itself.
    #[pyo3(signature = (x, out, threads=None))]
    fn transform(
        &self,
        py: Python<'_>,
        x: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        threads: Option<usize>,
    ) -> PyResult<()> {
        let (x, mut out) = (Array::of(x, "x")?, Array::of(out, "out")?);
        of_floats!(x, T => scale::<T>(py, &self.0, &x, &mut out, threads))
    }
}

/// A fitted min-max scaler, in both precisions.
#[pyclass(name = "_MinMaxScaler", module = "forebay_ingest", frozen)]
#[derive(Debug)]
pub(crate) struct PyMinMaxScaler {
    single: MinMaxScaler<f32>,
    double: MinMaxScaler<f64>,
}

#[pymethods]
impl PyMinMaxScaler {
    #[new]
    fn new(min: Vec<f64>, max: Vec<f64>, range: (f64, f64)) -> PyResult<Self> {
        let narrow = |row: &[f64]| row.iter().map(|&x| x as f32).collect();
        let single = MinMaxFit::from_parts(narrow(&min), narrow(&max)).map_err(value_error)?;
        let double = MinMaxFit::from_parts(min, max).map_err(value_error)?;
        Ok(Self {
            single: MinMaxScaler::from_fit(single, range).map_err(value_error)?,
            double: MinMaxScaler::from_fit(double, range).map_err(value_error)?,
        })
    }

    /// What each column is multiplied by and what is then added, in the precision asked for.
    fn parts(&self, double: bool) -> (Vec<f64>, Vec<f64>) {
        let wide = |row: &[f32]| row.iter().copied().map(f64::from).collect();
        if double {
            (self.double.scale().to_vec(), self.double.shift().to_vec())
        } else {
            (wide(self.single.scale()), wide(self.single.shift()))
        }
    }

    /// Write x scaled into out, which may be x itself.
    #[pyo3(signature = (x, out, threads=None))]
    fn transform(
        &self,
        py: Python<'_>,
        x: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        threads: Option<usize>,
    ) -> PyResult<()> {
        let (x, mut out) = (Array::of(x, "x")?, Array::of(out, "out")?);
        if x.is::<f32>() {
            scale::<f32>(py, &self.single, &x, &mut out, threads)
        } else {
            scale::<f64>(py, &self.double, &x, &mut out, threads)
        }
    }
}

/// Fit a standard scaler to x and write x scaled into out, which may be x itself.
#[pyfunction]
#[pyo3(signature = (x, out, columns, threads=None))]
pub(crate) fn standard_scale(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    columns: usize,
    threads: Option<usize>,
) -> PyResult<()> {
    let (x, mut out) = (Array::of(x, "x")?, Array::of(out, "out")?);
    of_floats!(x, T => {
        let data = x.elements::<T>()?;
        let fitted = released(py, threads, |work| StandardScaler::fit(data, columns, work))?;
        scale::<T>(py, &fitted.map_err(|e| numeric_error(py, &e))?, &x, &mut out, threads)
    })
}

/// Fit a min-max scaler to x and write x scaled into out, which may be x itself.
#[pyfunction]
#[pyo3(signature = (x, out, columns, range, threads=None))]
pub(crate) fn minmax_scale(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    columns: usize,
    range: (f64, f64),
    threads: Option<usize>,
) -> PyResult<()> {
    let (x, mut out) = (Array::of(x, "x")?, Array::of(out, "out")?);
    of_floats!(x, T => {
        let data = x.elements::<T>()?;
        let fitted = released(py, threads, |work| MinMaxScaler::fit(data, columns, range, work))?;
        scale::<T>(py, &fitted.map_err(|e| numeric_error(py, &e))?, &x, &mut out, threads)
    })
}

/// Divide each row of `columns` elements by its length, in place.
#[pyfunction]
#[pyo3(signature = (x, columns, threads=None))]
pub(crate) fn l2_normalize(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    columns: usize,
    threads: Option<usize>,
) -> PyResult<()> {
    let mut array = Array::of(x, "x")?;
    of_floats!(array, T => {
        let x = array.elements_mut::<T>()?;
        released(py, threads, |work| numeric::l2_normalize(x, columns, work))?
    })
    .map_err(|e| numeric_error(py, &e))
}

fn metric(name: &str) -> PyResult<Metric> {
    match name {
        "dot" => Ok(Metric::Dot),
        "cosine" => Ok(Metric::Cosine),
        _ => Err(PyValueError::new_err(format!("metric is {name:?}, expected \"dot\" or \"cosine\""))),
    }
}

/// Write the k rows of matrix nearest to each query to indices and scores.
#[pyfunction]
#[pyo3(signature = (matrix, queries, metric, indices, scores, threads=None))]
pub(crate) fn top_k(
    py: Python<'_>,
    matrix: &Bound<'_, PyAny>,
    queries: &Bound<'_, PyAny>,
    metric: &str,
    indices: &Bound<'_, PyAny>,
    scores: &Bound<'_, PyAny>,
    threads: Option<usize>,
) -> PyResult<()> {
    let metric = self::metric(metric)?;
    let (matrix, queries) = (Array::of(matrix, "matrix")?, Array::of(queries, "query")?);
    let (mut indices, mut scores) = (Array::of(indices, "indices")?, Array::of(scores, "scores")?);
    let &[_, dim] = matrix.shape() else {
        let found = matrix.shape();
        return Err(PyValueError::new_err(format!("matrix has shape {found:?}, expected rows × columns")));
    };
    if queries.shape().last() != Some(&dim) {
        let found = queries.shape();
        return Err(PyValueError::new_err(format!("query has shape {found:?}, expected {dim} columns as matrix has")));
    }
    let Some(&k) = indices.shape().last() else {
        return Err(PyValueError::new_err("indices has no dimension; pass an array of queries × k"));
    };
    let (rows, asked) = (matrix.elements::<f32>()?, queries.elements::<f32>()?);
    let found = released(py, threads, |work| find_top_k(rows, asked, dim, k, metric, work))?;
    let found = found.map_err(|e| numeric_error(py, &e))?;
    let (indices, scores) = (indices.elements_mut::<i64>()?, scores.elements_mut::<f32>()?);
    if indices.len() != found.indices.len() || scores.len() != found.scores.len() {
        return Err(PyValueError::new_err("indices and scores do not have queries × min(k, rows) elements"));
    }
    indices.copy_from_slice(&found.indices);
    scores.copy_from_slice(&found.scores);
    Ok(())
}
