//! Strings and numbers in lists and dicts, looked at where they are, without counting references.
//!
//! Only objects of exactly the built-in types are looked at: nothing that is done to them runs Python code, so nobody can
//! take them out of their container meanwhile. What is anything else is left to the caller.
#![expect(unsafe_code, reason = "borrowed references of the C API")]

use std::ptr::{NonNull, null_mut};

use pyo3::{
    ffi,
    prelude::*,
    sync::critical_section::with_critical_section,
    types::{PyDict, PyList},
};

/// What became of a container.
#[derive(Debug)]
#[must_use]
pub(crate) enum Looked {
    /// Everything was seen.
    All,
    /// Something is not of the types looked for; what was seen so far is not to be counted.
    Other,
    /// Something is wrong with a string.
    Raised(PyErr),
}

/// What a name is worth.
pub(crate) enum Worth<'a> {
    Number(f64),
    Label(&'a [u8]),
}

/// A reference that somebody else holds as long as `'a`.
#[derive(Clone, Copy)]
struct Borrowed<'a>(NonNull<ffi::PyObject>, std::marker::PhantomData<&'a ()>);

enum Not {
    Other,
    Raised(PyErr),
}

impl<'a> Borrowed<'a> {
    /// # Safety
    /// S1 `object` is null, or an object that lives as long as `'a`.
    unsafe fn new(object: *mut ffi::PyObject) -> Option<Self> {
        NonNull::new(object).map(|object| Self(object, std::marker::PhantomData))
    }

    fn is_exactly(self, of: *mut ffi::PyTypeObject) -> bool {
        // SAFETY: a living object has a type.
        let found = unsafe { ffi::Py_TYPE(self.0.as_ptr()) };
        std::ptr::eq(found, of)
    }

    /// The UTF-8 of a string.
    fn utf8(self, py: Python<'_>) -> Result<&'a [u8], Not> {
        if !self.is_exactly(&raw mut ffi::PyUnicode_Type) {
            return Err(Not::Other);
        }
        let mut len = 0;
        // SAFETY: a living str. The call keeps what it makes inside of the object and runs no Python code.
        let text = unsafe { ffi::PyUnicode_AsUTF8AndSize(self.0.as_ptr(), &raw mut len) };
        if text.is_null() {
            // A lone surrogate.
            return Err(Not::Raised(PyErr::fetch(py)));
        }
        // SAFETY: the call said so: `len` bytes that live and stay as they are as long as the object.
        Ok(unsafe { std::slice::from_raw_parts(text.cast::<u8>(), len.cast_unsigned()) })
    }

    fn worth(self, py: Python<'_>) -> Result<Worth<'a>, Not> {
        if self.is_exactly(&raw mut ffi::PyFloat_Type) {
            // SAFETY: a living float; its number is read.
            return Ok(Worth::Number(unsafe { ffi::PyFloat_AsDouble(self.0.as_ptr()) }));
        }
        if self.is_exactly(&raw mut ffi::PyLong_Type) {
            // SAFETY: a living int; its number is converted.
            let number = unsafe { ffi::PyLong_AsDouble(self.0.as_ptr()) };
            if number == -1.0
                && let Some(raised) = PyErr::take(py)
            {
                return Err(Not::Raised(raised));
            }
            return Ok(Worth::Number(number));
        }
        self.utf8(py).map(Worth::Label)
    }
}

fn looked(result: Result<(), Not>) -> Looked {
    match result {
        Ok(()) => Looked::All,
        Err(Not::Other) => Looked::Other,
        Err(Not::Raised(error)) => Looked::Raised(error),
    }
}

/// Calls `each` for every item of a list. `each` runs no Python code and lets go of no interpreter.
fn items<'a>(list: &'a Bound<'_, PyList>, mut each: impl FnMut(Borrowed<'a>) -> Result<(), Not>) -> Result<(), Not> {
    with_critical_section(list, || {
        let mut index = 0;
        loop {
            // SAFETY: a living list, whose length is asked for.
            let len = unsafe { ffi::PyList_Size(list.as_ptr()) };
            if index >= len {
                return Ok(());
            }
            // SAFETY: the index is below the length.
            let item = unsafe { ffi::PyList_GetItem(list.as_ptr(), index) };
            // SAFETY: S1 the list holds it, and nobody changes the list while `each` runs: no Python code does, and a build
            // without the interpreter lock keeps others out by the critical section.
            let item = unsafe { Borrowed::new(item) };
            each(item.ok_or(Not::Other)?)?;
            index += 1;
        }
    })
}

/// Gives every string of a list to `each`, which may not touch Python.
pub(crate) fn names(list: &Bound<'_, PyList>, mut each: impl FnMut(&[u8])) -> Looked {
    let py = list.py();
    looked(items(list, |item| {
        each(item.utf8(py)?);
        Ok(())
    }))
}

/// Gives every pair (a tuple) of a list to `each`, which may not touch Python.
pub(crate) fn pairs(list: &Bound<'_, PyList>, mut each: impl FnMut(&[u8], Worth<'_>)) -> Looked {
    let py = list.py();
    looked(items(list, |item| {
        if !item.is_exactly(&raw mut ffi::PyTuple_Type) {
            return Err(Not::Other);
        }
        // SAFETY: a living tuple, whose length is asked for.
        if unsafe { ffi::PyTuple_Size(item.0.as_ptr()) } != 2 {
            return Err(Not::Other);
        }
        // SAFETY: it has two items.
        let name = unsafe { ffi::PyTuple_GetItem(item.0.as_ptr(), 0) };
        // SAFETY: as above.
        let worth = unsafe { ffi::PyTuple_GetItem(item.0.as_ptr(), 1) };
        // SAFETY: S1 the tuple holds it, and the list holds the tuple.
        let name = unsafe { Borrowed::new(name) };
        // SAFETY: as above.
        let worth = unsafe { Borrowed::new(worth) };
        each(name.ok_or(Not::Other)?.utf8(py)?, worth.ok_or(Not::Other)?.worth(py)?);
        Ok(())
    }))
}

/// Gives every entry of a dict to `each`, which may not touch Python.
pub(crate) fn entries(dict: &Bound<'_, PyDict>, mut each: impl FnMut(&[u8], Worth<'_>)) -> Looked {
    let py = dict.py();
    looked(with_critical_section(dict, || {
        let mut place = 0;
        let (mut name, mut worth) = (null_mut(), null_mut());
        // SAFETY: a living dict, which nobody changes meanwhile, see `items`; the places are ours.
        while unsafe { ffi::PyDict_Next(dict.as_ptr(), &raw mut place, &raw mut name, &raw mut worth) } != 0 {
            // SAFETY: S1 the dict holds it.
            let name = unsafe { Borrowed::new(name) };
            // SAFETY: as above.
            let worth = unsafe { Borrowed::new(worth) };
            each(name.ok_or(Not::Other)?.utf8(py)?, worth.ok_or(Not::Other)?.worth(py)?);
        }
        Ok(())
    }))
}
