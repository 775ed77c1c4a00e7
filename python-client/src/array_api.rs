//! NumPy's C API, found at run time: arrays over memory that something else owns, made without a call into Python.
//!
//! NumPy publishes a table of functions in a capsule; the places used here have not moved since NumPy 1.7, so nothing of
//! NumPy is needed to build this. A table of another major version is left alone: arrays are then made by calling
//! `numpy.ndarray`.
#![expect(unsafe_code, reason = "a table of C functions, found through a capsule")]

use std::{
    ffi::{c_int, c_uint, c_void},
    ptr::{NonNull, null_mut},
};

use forebay::TensorMeta;
use pyo3::{
    exceptions::PyModuleNotFoundError,
    ffi,
    prelude::*,
    types::{PyCapsule, PyCapsuleMethods, PyType},
};

/// Places in the table.
const VERSION: usize = 0;
const ARRAY_TYPE: usize = 2;
const NEW_FROM_DESCR: usize = 94;
const SET_BASE_OBJECT: usize = 282;

/// Flags of an array: row-major, and its elements lie as their type wants it.
const CONTIGUOUS_ALIGNED: c_int = 0x0101;
const WRITABLE: c_int = 0x0400;

type Version = unsafe extern "C" fn() -> c_uint;
type NewFromDescr = unsafe extern "C" fn(
    *mut ffi::PyTypeObject,
    *mut ffi::PyObject,
    c_int,
    *const isize,
    *const isize,
    *mut c_void,
    c_int,
    *mut ffi::PyObject,
) -> *mut ffi::PyObject;
type SetBaseObject = unsafe extern "C" fn(*mut ffi::PyObject, *mut ffi::PyObject) -> c_int;

/// Where an array's elements lie, and what they are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) at: NonNull<u8>,
    pub(crate) meta: &'a TensorMeta,
    pub(crate) writable: bool,
}

/// What of the table is used.
#[derive(Debug)]
pub(crate) struct ArrayApi {
    ndarray: Py<PyType>,
    new: NewFromDescr,
    set_base: SetBaseObject,
}

/// Entry `place` of the table.
///
/// # Safety
/// S1 `table` is NumPy's table, which lives as long as the process. S2 it has a function of type `F` at `place`.
unsafe fn function<F: Copy>(table: *const *mut c_void, place: usize) -> F {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: S1, S2: the table has this place.
    let entry = unsafe { table.add(place) };
    // SAFETY: S2: what stands there is the address of such a function.
    unsafe { entry.cast::<F>().read() }
}

impl ArrayApi {
    /// Looks for the table of the installed NumPy; `None` if it is of a major version that is not known here.
    pub(crate) fn find(py: Python<'_>) -> PyResult<Option<Self>> {
        let module = match py.import("numpy._core._multiarray_umath") {
            Err(e) if e.is_instance_of::<PyModuleNotFoundError>(py) => py.import("numpy.core._multiarray_umath"),
            found => found,
        }?;
        let capsule = module.getattr("_ARRAY_API")?.cast_into::<PyCapsule>().map_err(PyErr::from)?;
        let table: *const *mut c_void = capsule.pointer_checked(None)?.as_ptr().cast();
        // SAFETY: S1 this is NumPy's capsule, which its own module holds for good. S2 all versions have this function there.
        let version = unsafe { function::<Version>(table, VERSION) };
        // SAFETY: it takes nothing and only answers.
        let version = unsafe { version() };
        if !matches!(version >> 24, 1 | 2) {
            return Ok(None);
        }
        // SAFETY: S1 as above. S2 in versions 1 and 2 a type object's address stands there, which is read as such.
        let ndarray = unsafe { function::<*mut ffi::PyObject>(table, ARRAY_TYPE) };
        // SAFETY: the type lives as long as NumPy does; a reference of our own is taken to it.
        let ndarray = unsafe { Bound::from_borrowed_ptr(py, ndarray) };
        Ok(Some(Self {
            ndarray: ndarray.cast_into::<PyType>().map_err(PyErr::from)?.unbind(),
            // SAFETY: S1 as above. S2 versions 1 and 2 have these functions there.
            new: unsafe { function(table, NEW_FROM_DESCR) },
            // SAFETY: as above.
            set_base: unsafe { function(table, SET_BASE_OBJECT) },
        }))
    }

    /// An array of elements `descr` (a numpy.dtype) over `memory`.
    pub(crate) fn array<'py>(
        &self,
        descr: &Bound<'py, PyAny>,
        memory: Place<'_>,
        base: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = descr.py();
        let Place { at, meta, writable } = memory;
        let flags = CONTIGUOUS_ALIGNED | if writable { WRITABLE } else { 0 };
        // SAFETY: the function is NumPy's; it gets its own array type, a reference to a dtype, which it takes over, and
        // dims that it copies: `rank` many, which as i64 are what they are as u64, since a dim that large fits no slot.
        // Behind the address lie as many bytes as dtype and dims say; the base set below keeps them there.
        let made = unsafe {
            (self.new)(
                self.ndarray.as_ptr().cast(),
                descr.clone().into_ptr(),
                meta.rank() as c_int,
                meta.dims().as_ptr().cast(),
                std::ptr::null(),
                at.as_ptr().cast(),
                flags,
                null_mut(),
            )
        };
        // SAFETY: it is a new reference, or null with an exception set.
        let made = unsafe { Bound::from_owned_ptr_or_err(py, made) }?;
        // SAFETY: the array is new and has no base yet; the reference to `base` is taken over, also on failure.
        let rc = unsafe { (self.set_base)(made.as_ptr(), base.clone().into_ptr()) };
        if rc == 0 { Ok(made) } else { Err(PyErr::fetch(py)) }
    }
}
