//! `forebay-ingest` for Python: texts, images and tables in, NumPy arrays out, or written where they are wanted.
//!
//! A module and wheel of its own, so that a process that only receives tensors never loads a tokenizer. It holds no
//! logic that Rust users lack: conversions and nothing else. This file only registers.

mod array;
mod errors;
mod hasher;
mod image;
mod numeric;
mod objects;
mod pools;
mod table;
mod text;
mod work;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let error = module.py().get_type::<errors::IngestError>();
    error.setattr("index", module.py().None())?;
    module.add("IngestError", error)?;
    module.add_class::<text::PyTokenizer>()?;
    module.add_class::<text::PyBatch>()?;
    module.add_class::<text::PyTokens>()?;
    module.add_class::<text::PyDecodeStream>()?;
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
