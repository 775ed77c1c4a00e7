//! DLPack's C exchange API: a function of torch (2.14 and later) that makes a tensor of a `DLManagedTensorVersioned`
//! without a capsule or a Python call.
#![expect(unsafe_code, reason = "a table of C functions, found through a capsule")]

use std::ffi::{CStr, c_int, c_void};

use forebay::DType;
use pyo3::{
    prelude::*,
    types::{PyCapsule, PyCapsuleMethods},
};

use crate::{
    dlpack::{self, DlVersion, Versioned},
    memory::Memory,
};

const NAME: &CStr = c"dlpack_exchange_api";

type ToPyObject = unsafe extern "C" fn(*mut Versioned, *mut *mut c_void) -> c_int;

/// `DLPackExchangeAPI` up to the function used here.
#[repr(C)]
struct Table {
    version: DlVersion,
    older: *const Table,
    allocator: *const c_void,
    from_py_object: *const c_void,
    to_py_object: Option<ToPyObject>,
}

/// torch's function, once found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exchange(ToPyObject);

impl Exchange {
    /// Looks for the function in `torch.Tensor`.
    pub(crate) fn find(tensor_type: &Bound<'_, PyAny>) -> Option<Self> {
        let capsule = tensor_type.getattr("__dlpack_c_exchange_api__").ok()?.cast_into::<PyCapsule>().ok()?;
        let mut table: *const Table = capsule.pointer_checked(Some(NAME)).ok()?.as_ptr().cast();
        while !table.is_null() {
            // SAFETY: a capsule of this name leads to a table that lives as long as the process; all versions start with
            // their version and the address of an older one.
            let version = unsafe { (*table).version };
            if version.major == 1 {
                // SAFETY: a table of major version 1 has this field.
                return unsafe { (*table).to_py_object }.map(Self);
            }
            // SAFETY: as above.
            table = unsafe { (*table).older };
        }
        None
    }

    /// Makes a torch tensor that owns `memory`.
    ///
    /// On failure the memory is kept for good: the standard does not say who has it then, and twice is worse than never.
    /// Callers therefore use this for dtypes of which a trial succeeded, which leaves running out of memory.
    pub(crate) fn import<'py>(self, py: Python<'py>, memory: Memory, dtype: DType) -> PyResult<Bound<'py, PyAny>> {
        let managed = dlpack::versioned(memory, dtype, false);
        let mut made: *mut c_void = std::ptr::null_mut();
        // SAFETY: the function is torch's, of version 1; `managed` is a tensor of that version which is given away;
        // `made` has room for one pointer; `py` shows that this thread is attached.
        let rc = unsafe { (self.0)(managed.as_ptr(), &raw mut made) };
        if rc != 0 {
            return Err(PyErr::fetch(py));
        }
        // SAFETY: on success it is a new reference to a Python object.
        Ok(unsafe { Bound::from_owned_ptr(py, made.cast()) })
    }
}
