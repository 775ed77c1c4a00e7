//! Which interpreter of the process is asking.
#![allow(unsafe_code, reason = "the stable ABI has no safe wrapper for this question")]

use pyo3::{exceptions::PyImportError, ffi, prelude::*};

/// Called by Python at import. Another interpreter than the first would share this module's objects with it: closing
/// everything at its end closed the first one's rings as well.
#[pyfunction(name = "_refuse_other_interpreters")]
pub(crate) fn refuse_other_interpreters(_py: Python<'_>) -> PyResult<()> {
    // SAFETY: the caller is attached to an interpreter, which `_py` proves; this returns that one's state.
    let here = unsafe { ffi::PyInterpreterState_Get() };
    // SAFETY: as above; the state lives as long as the interpreter that runs this function.
    let id = unsafe { ffi::PyInterpreterState_GetID(here) };
    if id == 0 {
        return Ok(());
    }
    Err(PyImportError::new_err(format!(
        "forebay works in the first interpreter of a process, this is interpreter {id}; import it there, or use a process \
         of its own"
    )))
}
