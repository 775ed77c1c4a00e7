//! What keeps the slot of an array that was made straight from a message: a Python object that is a lease and nothing
//! else.
//!
//! PyO3's objects know more, and take five times as long to make: the collector tracks them, they can be referred to
//! weakly. This one cannot, holds no other object, and has nothing to call.
#![expect(unsafe_code, reason = "a Python type made by hand")]

use std::{
    ffi::{c_int, c_uint, c_void},
    mem::offset_of,
    ptr::NonNull,
};

use pyo3::{exceptions::PyMemoryError, ffi, prelude::*, sync::PyOnceLock, types::PyType};

use crate::device;

/// An object of the type, as it lies in memory.
#[repr(C)]
struct Object {
    head: ffi::PyObject,
    tensor: forebay::Tensor,
}

/// Where the tensor of an object is.
fn place(object: *mut ffi::PyObject) -> *mut forebay::Tensor {
    object.wrapping_byte_add(offset_of!(Object, tensor)).cast()
}

static TYPE: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// # Safety
/// Python calls this with an object of the type to which there is no reference any more, attached.
unsafe extern "C" fn dealloc(object: *mut ffi::PyObject) {
    // SAFETY: the object is still whole.
    let of = unsafe { ffi::Py_TYPE(object) };
    // SAFETY: all objects of the type are made by `new`, which wrote a tensor there, and this is the only user.
    device::note(unsafe { &*place(object) });
    // SAFETY: as above; nobody uses it any more. It ends a lease, which any thread may do and which runs no Python.
    unsafe { place(object).drop_in_place() };
    // SAFETY: `new` took its memory from the other half of this allocator.
    unsafe { ffi::PyObject_Free(object.cast()) };
    // SAFETY: an object of a type made at run time holds a reference to it, which ends here.
    unsafe { ffi::Py_DECREF(of.cast()) };
}

fn make_type(py: Python<'_>) -> PyResult<Py<PyType>> {
    let doc = c"What keeps the slot of an array, and all that can be made of it; it ends with the array.";
    let slots = &mut [
        ffi::PyType_Slot { slot: ffi::Py_tp_dealloc, pfunc: dealloc as *mut c_void },
        ffi::PyType_Slot { slot: ffi::Py_tp_doc, pfunc: doc.as_ptr().cast_mut().cast() },
        ffi::PyType_Slot { slot: 0, pfunc: std::ptr::null_mut() },
    ];
    let flags = ffi::Py_TPFLAGS_DEFAULT | ffi::Py_TPFLAGS_DISALLOW_INSTANTIATION | ffi::Py_TPFLAGS_IMMUTABLETYPE;
    let mut spec = ffi::PyType_Spec {
        name: c"forebay._native._Lease".as_ptr(),
        basicsize: size_of::<Object>() as c_int,
        itemsize: 0,
        flags: flags as c_uint,
        slots: slots.as_mut_ptr(),
    };
    // SAFETY: the spec and what it points to live through the call, and are copied by it; the name and the doc are static.
    let made = unsafe { ffi::PyType_FromSpec(&raw mut spec) };
    // SAFETY: it is a new reference, or null with an exception set.
    let made = unsafe { Bound::from_owned_ptr_or_err(py, made) }?;
    Ok(made.cast_into::<PyType>().map_err(PyErr::from)?.unbind())
}

/// An object that owns `tensor`; on failure it is handed back.
pub(crate) fn new(py: Python<'_>, tensor: forebay::Tensor) -> Result<Bound<'_, PyAny>, (PyErr, forebay::Tensor)> {
    let of = match TYPE.get_or_try_init(py, || make_type(py)) {
        Ok(of) => of,
        Err(e) => return Err((e, tensor)),
    };
    device::note(&tensor);
    // SAFETY: this thread is attached, as `py` shows.
    let memory = unsafe { ffi::PyObject_Malloc(size_of::<Object>()) };
    let Some(object) = NonNull::new(memory.cast::<ffi::PyObject>()) else {
        return Err((PyMemoryError::new_err("no memory for the owner of an array"), tensor));
    };
    // SAFETY: `object` is fresh memory of the right size, aligned for anything.
    unsafe { place(object.as_ptr()).write(tensor) };
    // SAFETY: as above; it becomes an object of a type whose objects are laid out so.
    let object = unsafe { ffi::PyObject_Init(object.as_ptr(), of.as_ptr().cast()) };
    // SAFETY: it is a new object, and this is the reference to it.
    Ok(unsafe { Bound::from_owned_ptr(py, object) })
}

/// The tensor of an object made by [`new`], as long as it lives.
pub(crate) fn tensor<'a>(of: &'a Bound<'_, PyAny>) -> Option<&'a forebay::Tensor> {
    let own = TYPE.get(of.py())?;
    if !of.get_type().is(own) {
        return None;
    }
    // SAFETY: an object of this type has a tensor there, which nobody changes and which lives as long as it does.
    Some(unsafe { &*place(of.as_ptr()) })
}
