//! Element types as Python spells them: `"int64"`, `numpy.int64`, `numpy.dtype("int64")`, `torch.int64`, `float`.
//!
//! NumPy works out the name of a dtype in Python, which takes longer than sending a message. So the objects that were read
//! last are remembered with what they were found to be: those that can be hashed, which do not change.

use std::sync::{Mutex, PoisonError};

use forebay::DType;
use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyString, PyType},
};

/// Objects that are remembered.
const KNOWN: usize = 16;

/// The objects read last, and the place of the newest.
struct Seen {
    known: Vec<(Py<PyAny>, DType)>,
    newest: usize,
}

static SEEN: Mutex<Seen> = Mutex::new(Seen { known: Vec::new(), newest: 0 });

/// The place of `dtype` in tables that have one entry per dtype.
pub(crate) const fn index(dtype: DType) -> usize {
    dtype as usize - 1
}

/// Reads an element type.
pub(crate) fn from_python(value: &Bound<'_, PyAny>) -> PyResult<DType> {
    if value.is_instance_of::<PyString>() {
        return read(value);
    }
    {
        let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, dtype)) = seen.known.iter().find(|(known, _)| known.is(value)) {
            return Ok(*dtype);
        }
    }
    let dtype = read(value)?;
    if value.hash().is_ok() {
        remember(value, dtype);
    }
    Ok(dtype)
}

fn remember(value: &Bound<'_, PyAny>, dtype: DType) {
    let new = (value.clone().unbind(), dtype);
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let old = if seen.known.len() < KNOWN {
        seen.known.push(new);
        None
    } else {
        seen.newest = (seen.newest + 1) % KNOWN;
        let place = seen.newest;
        Some(std::mem::replace(&mut seen.known[place], new))
    };
    drop(seen);
    // Its end may run code of the program, which may come back here.
    drop(old);
}

fn read(value: &Bound<'_, PyAny>) -> PyResult<DType> {
    let parse = |name: &str| {
        let name = name.strip_prefix("torch.").unwrap_or(name);
        name.parse::<DType>().map_err(|e| PyValueError::new_err(format!("{name:?}: {e}")))
    };
    if let Ok(name) = value.cast::<PyString>() {
        return parse(name.to_str()?);
    }
    if value.is_instance_of::<PyType>() {
        let numpy = value.py().import("numpy")?;
        return read(&numpy.call_method1("dtype", (value,))?);
    }
    match value.getattr("name").and_then(|name| name.extract::<String>()) {
        Ok(name) => parse(&name),
        Err(_) => parse(value.str()?.to_str()?),
    }
}

/// Reads the element type in a buffer's format.
pub(crate) fn from_format(format: &[u8], item_size: usize) -> Option<DType> {
    let (order, code) = match format {
        [order @ (b'@' | b'=' | b'<' | b'>' | b'!' | b'|'), code @ ..] => (*order, code),
        code => (b'@', code),
    };
    if matches!(order, b'>' | b'!') && item_size > 1 {
        return None;
    }
    Some(match (code, item_size) {
        (b"?", 1) => DType::Bool,
        (b"b", 1) => DType::I8,
        (b"B" | b"c", 1) => DType::U8,
        (b"h" | b"i" | b"l" | b"q" | b"n", 2) => DType::I16,
        (b"h" | b"i" | b"l" | b"q" | b"n", 4) => DType::I32,
        (b"h" | b"i" | b"l" | b"q" | b"n", 8) => DType::I64,
        (b"H" | b"I" | b"L" | b"Q" | b"N", 2) => DType::U16,
        (b"H" | b"I" | b"L" | b"Q" | b"N", 4) => DType::U32,
        (b"H" | b"I" | b"L" | b"Q" | b"N", 8) => DType::U64,
        (b"e", 2) => DType::F16,
        (b"f", 4) => DType::F32,
        (b"d", 8) => DType::F64,
        (b"Zf", 8) => DType::C64,
        (b"Zd", 16) => DType::C128,
        _ => return None,
    })
}
