//! Element types as Python spells them: `"int64"`, `numpy.int64`, `numpy.dtype("int64")`, `torch.int64`, `float`.

use forebay::DType;
use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyString, PyType},
};

/// The place of `dtype` in tables that have one entry per dtype.
pub(crate) const fn index(dtype: DType) -> usize {
    dtype as usize - 1
}

/// Reads an element type.
pub(crate) fn from_python(value: &Bound<'_, PyAny>) -> PyResult<DType> {
    let parse = |name: &str| {
        let name = name.strip_prefix("torch.").unwrap_or(name);
        name.parse::<DType>().map_err(|e| PyValueError::new_err(format!("{name:?}: {e}")))
    };
    if let Ok(name) = value.cast::<PyString>() {
        return parse(name.to_str()?);
    }
    if value.is_instance_of::<PyType>() {
        let numpy = value.py().import("numpy")?;
        return from_python(&numpy.call_method1("dtype", (value,))?);
    }
    match value.getattr("name").and_then(|name| name.extract::<String>()) {
        Ok(name) => parse(&name),
        Err(_) => parse(value.str()?.to_str()?),
    }
}

/// Reads the element type in a buffer's format.
pub(crate) fn from_format(format: &str, item_size: usize) -> Option<DType> {
    let (order, code) = match format.as_bytes().first()? {
        b'@' | b'=' | b'<' | b'>' | b'!' | b'|' => format.split_at(1),
        _ => ("", format),
    };
    if matches!(order, ">" | "!") && item_size > 1 {
        return None;
    }
    Some(match (code, item_size) {
        ("?", 1) => DType::Bool,
        ("b", 1) => DType::I8,
        ("B" | "c", 1) => DType::U8,
        ("h" | "i" | "l" | "q" | "n", 2) => DType::I16,
        ("h" | "i" | "l" | "q" | "n", 4) => DType::I32,
        ("h" | "i" | "l" | "q" | "n", 8) => DType::I64,
        ("H" | "I" | "L" | "Q" | "N", 2) => DType::U16,
        ("H" | "I" | "L" | "Q" | "N", 4) => DType::U32,
        ("H" | "I" | "L" | "Q" | "N", 8) => DType::U64,
        ("e", 2) => DType::F16,
        ("f", 4) => DType::F32,
        ("d", 8) => DType::F64,
        ("Zf", 8) => DType::C64,
        ("Zd", 16) => DType::C128,
        _ => return None,
    })
}
