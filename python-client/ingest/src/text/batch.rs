//! A batch as Python sees it: named arrays, made of memory that Rust filled.

use std::sync::Mutex;
use std::sync::PoisonError;

use forebay_ingest::Tokens;
use numpy::ndarray::{ArrayD, IxDyn};
use numpy::{Element, IntoPyArray};
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyIterator, PyList, PyTuple};

use crate::errors::value_error;

/// Elements, until an array owns them.
enum Data {
    I64(Vec<i64>),
    I32(Vec<i32>),
    Taken,
}

/// One named tensor; the NumPy array is made when it is first asked for.
struct Tensor {
    name: &'static str,
    shape: Vec<usize>,
    data: Mutex<Data>,
    array: PyOnceLock<Py<PyAny>>,
}

impl Tensor {
    fn new(name: &'static str, shape: Vec<usize>, data: Data) -> Self {
        Self { name, shape, data: Mutex::new(data), array: PyOnceLock::new() }
    }

    fn array<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let made = self.array.get_or_try_init(py, || {
            let mut data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
            match std::mem::replace(&mut *data, Data::Taken) {
                Data::I64(elements) => owned(py, &self.shape, elements),
                Data::I32(elements) => owned(py, &self.shape, elements),
                Data::Taken => Err(value_error("the array could not be made before; encode again")),
            }
        })?;
        Ok(made.bind(py).clone())
    }
}

/// An array that owns `elements`, without a copy.
fn owned<T: Element>(py: Python<'_>, shape: &[usize], elements: Vec<T>) -> PyResult<Py<PyAny>> {
    let array = ArrayD::from_shape_vec(IxDyn(shape), elements).map_err(value_error)?;
    Ok(array.into_pyarray(py).into_any().unbind())
}

/// Texts as token ids: named arrays (a mapping), and what is to be known of them.
#[pyclass(name = "Batch", module = "forebay_ingest", frozen, mapping)]
pub(crate) struct PyBatch {
    tensors: Vec<Tensor>,
    /// Index and reason.
    errors: Vec<(usize, String)>,
    items: Vec<usize>,
    /// Rows, real tokens, padded tokens, longest row.
    counts: [usize; 4],
}

impl PyBatch {
    /// The arrays of `tokens`: padded, or one after the other.
    pub(crate) fn new(tokens: &Tokens, ragged: bool) -> PyResult<Self> {
        let tensors = if ragged { ragged_tensors(tokens)? } else { padded_tensors(tokens)? };
        let padded = if ragged { tokens.token_count() } else { tokens.padded_count() };
        let longest = tokens.iter().map(<[u32]>::len).max().unwrap_or(0);
        Ok(Self {
            tensors,
            errors: tokens.errors().iter().map(|error| (error.row, error.reason.to_string())).collect(),
            items: tokens.items().collect(),
            counts: [tokens.rows(), tokens.token_count(), padded, longest],
        })
    }

    /// Says why `item` is no text, in place of what the tokenizer said.
    pub(crate) fn explain(&mut self, item: usize, reason: String) {
        if let Some(known) = self.errors.iter_mut().find(|(index, _)| *index == item) {
            known.1 = reason;
        }
    }
}

fn padded_tensors(tokens: &Tokens) -> PyResult<Vec<Tensor>> {
    let (shape, count) = (vec![tokens.rows(), tokens.cols()], tokens.padded_count());
    let (mut ids, mut mask) = (vec![0; count], vec![0; count]);
    tokens.write_into(&mut ids, &mut mask).map_err(value_error)?;
    let mut tensors = vec![
        Tensor::new("input_ids", shape.clone(), Data::I64(ids)),
        Tensor::new("attention_mask", shape.clone(), Data::I64(mask)),
    ];
    if tokens.type_ids().is_some() {
        let mut types = vec![0; count];
        tokens.write_type_ids(&mut types).map_err(value_error)?;
        tensors.push(Tensor::new("token_type_ids", shape.clone(), Data::I64(types)));
    }
    if tokens.offsets().is_some() {
        let mut offsets = vec![[0; 2]; count];
        tokens.write_offsets(&mut offsets).map_err(value_error)?;
        let shape = [shape, vec![2]].concat();
        tensors.push(Tensor::new("offset_mapping", shape, Data::I64(offsets.into_flattened())));
    }
    Ok(tensors)
}

fn ragged_tensors(tokens: &Tokens) -> PyResult<Vec<Tensor>> {
    let count = tokens.token_count();
    i32::try_from(count).map_err(|_| value_error("more than 2^31 tokens in one ragged batch; encode fewer texts"))?;
    let (mut ids, mut ends) = (vec![0; count], vec![0; tokens.rows() + 1]);
    tokens.write_ragged(&mut ids).map_err(value_error)?;
    tokens.write_cu_seqlens(&mut ends).map_err(value_error)?;
    let mut tensors = vec![
        Tensor::new("input_ids", vec![count], Data::I64(ids)),
        Tensor::new("cu_seqlens", vec![ends.len()], Data::I32(ends)),
    ];
    if let Some(types) = tokens.type_ids() {
        let types = types.iter().map(|&id| i64::from(id)).collect();
        tensors.push(Tensor::new("token_type_ids", vec![count], Data::I64(types)));
    }
    if let Some(offsets) = tokens.offsets() {
        let flat = offsets.iter().flatten().map(|&place| place as i64).collect();
        tensors.push(Tensor::new("offset_mapping", vec![count, 2], Data::I64(flat)));
    }
    Ok(tensors)
}

#[pymethods]
impl PyBatch {
    fn __getitem__<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        match self.tensors.iter().find(|tensor| tensor.name == name) {
            Some(tensor) => tensor.array(py),
            None => Err(PyKeyError::new_err(name.to_owned())),
        }
    }

    fn __contains__(&self, name: &Bound<'_, PyAny>) -> bool {
        name.extract::<&str>().is_ok_and(|name| self.tensors.iter().any(|tensor| tensor.name == name))
    }

    fn __len__(&self) -> usize {
        self.tensors.len()
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        self.keys(py)?.try_iter()
    }

    fn __repr__(&self) -> String {
        let shown: Vec<String> =
            self.tensors.iter().map(|tensor| format!("{}{:?}", tensor.name, tensor.shape)).collect();
        format!("Batch({})", shown.join(", "))
    }

    /// The names of the arrays.
    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.tensors.iter().map(|tensor| tensor.name))
    }

    /// The arrays.
    fn values<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let arrays = self.tensors.iter().map(|tensor| tensor.array(py)).collect::<PyResult<Vec<_>>>()?;
        PyList::new(py, arrays)
    }

    /// Names and arrays.
    fn items<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let pairs = self.tensors.iter().map(|tensor| (tensor.name, tensor.array(py)?).into_pyobject(py));
        let pairs: Vec<Bound<'py, PyTuple>> = pairs.collect::<PyResult<_>>()?;
        PyList::new(py, pairs)
    }

    /// The array of this name, or `default`.
    #[pyo3(signature = (name, default=None))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        match self.tensors.iter().find(|tensor| tensor.name == name) {
            Some(tensor) => tensor.array(py).map(Some),
            None => Ok(default),
        }
    }

    /// The same as a dict of NumPy arrays.
    fn numpy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let all = PyDict::new(py);
        for tensor in &self.tensors {
            all.set_item(tensor.name, tensor.array(py)?)?;
        }
        Ok(all)
    }

    /// The same as a dict of torch tensors, which share the arrays' memory.
    fn torch<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let from_numpy = py.import("torch")?.getattr("from_numpy")?;
        let all = PyDict::new(py);
        for tensor in &self.tensors {
            all.set_item(tensor.name, from_numpy.call1((tensor.array(py)?,))?)?;
        }
        Ok(all)
    }

    /// Rows: texts, and with overflow their further rows.
    #[getter]
    fn rows(&self) -> usize {
        self.counts[0]
    }

    /// Tokens without padding.
    #[getter]
    fn token_count(&self) -> usize {
        self.counts[1]
    }

    /// Tokens with padding.
    #[getter]
    fn padded_count(&self) -> usize {
        self.counts[2]
    }

    /// Tokens of the longest row: the `max_seqlen` of varlen attention.
    #[getter]
    fn max_seqlen(&self) -> usize {
        self.counts[3]
    }

    /// Share of the padded tokens that is padding, 0 to 1.
    #[getter]
    fn waste(&self) -> f64 {
        let [_, real, padded, _] = self.counts;
        if padded == 0 { 0.0 } else { 1.0 - real as f64 / padded as f64 }
    }

    /// The index of the text that each row belongs to.
    #[getter]
    fn item_of_row(&self) -> Vec<usize> {
        self.items.clone()
    }

    /// With `on_error="report"`: the index of each text that was refused, whose row is empty, and why.
    #[getter]
    fn errors<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let all = PyDict::new(py);
        for (index, reason) in &self.errors {
            all.set_item(index, reason)?;
        }
        Ok(all)
    }
}
