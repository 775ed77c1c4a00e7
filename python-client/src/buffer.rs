//! The buffer protocol: tensors out to NumPy, `memoryview` and `torch.frombuffer`, and bytes in from anywhere.
//!
//! A `Py_buffer` owns a reference to the tensor object, and that owns the memory: the lease ends in the object's drop,
//! never in `releasebuffer`, because `torch.frombuffer` and `numpy.ndarray` release the buffer at once and keep only the
//! reference.
#![expect(unsafe_code, reason = "Py_buffer is a C struct, filled in and read through pointers")]

use std::{
    ffi::{CStr, c_int, c_void},
    ptr::null_mut,
};

use forebay::DType;
use pyo3::{exceptions::PyBufferError, ffi, prelude::*};

use crate::{errors, memory::Memory, tensor::PyTensor};

/// The format character of a dtype; none exists for bfloat16 and the 8-bit floats.
const fn format(dtype: DType) -> Option<&'static CStr> {
    Some(match dtype {
        DType::Bool => c"?",
        DType::U8 => c"B",
        DType::U16 => c"H",
        DType::U32 => c"I",
        DType::U64 => c"Q",
        DType::I8 => c"b",
        DType::I16 => c"h",
        DType::I32 => c"i",
        DType::I64 => c"q",
        DType::F16 => c"e",
        DType::F32 => c"f",
        DType::F64 => c"d",
        DType::C64 => c"Zf",
        DType::C128 => c"Zd",
        DType::BF16 | DType::F8E4M3 | DType::F8E5M2 => return None,
    })
}

const fn wants(flags: c_int, what: c_int) -> bool {
    flags & what == what
}

#[pymethods]
impl PyTensor {
    /// # Safety
    /// Python calls this with a `Py_buffer` to fill in.
    unsafe fn __getbuffer__(slf: PyRef<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let py = slf.py();
        // SAFETY: Python's promise: `view` is one `Py_buffer`, for this call ours alone. `obj` must be null on failure.
        unsafe { (*view).obj = null_mut() };
        if let Some(refusal) = slf.memory.refusal() {
            return Err(errors::refusal(py, refusal));
        }
        slf.lend();
        let writable = slf.memory.is_writable();
        if wants(flags, ffi::PyBUF_WRITABLE) && !writable {
            return Err(PyBufferError::new_err(
                "this tensor is read-only; .copy() it, or create the ring with writable=True (queue only)",
            ));
        }
        let meta = slf.memory.meta();
        if wants(flags, ffi::PyBUF_F_CONTIGUOUS) && meta.shape().iter().filter(|&&dim| dim != 1).count() > 1 {
            return Err(PyBufferError::new_err(
                "this tensor lies row by row, expected column by column; .copy() it so",
            ));
        }
        let format = format(meta.dtype);
        if wants(flags, ffi::PyBUF_FORMAT) && format.is_none() {
            return Err(PyBufferError::new_err(format!(
                "the buffer protocol has no format for {}; use .numpy(), .torch() or .tobytes()",
                meta.dtype
            )));
        }
        let dims_wanted = wants(flags, ffi::PyBUF_ND);
        let strides_wanted = wants(flags, ffi::PyBUF_STRIDES);
        let filled = ffi::Py_buffer {
            buf: slf.memory.ptr().as_ptr().cast::<c_void>(),
            obj: null_mut(),
            len: slf.nbytes(),
            itemsize: meta.dtype.size() as isize,
            readonly: c_int::from(!writable),
            ndim: if dims_wanted { meta.rank() as c_int } else { 1 },
            // Python declares it as writable and never writes to it.
            format: match format {
                Some(format) if wants(flags, ffi::PyBUF_FORMAT) => format.as_ptr().cast_mut(),
                _ => null_mut(),
            },
            // Dims lie in the object, which does not move and is kept alive by `obj`. u64 reads as isize: a dim larger
            // than that would not fit a slot.
            shape: if dims_wanted { meta.dims().as_ptr().cast_mut().cast() } else { null_mut() },
            strides: if strides_wanted { slf.byte_strides().as_ptr().cast_mut() } else { null_mut() },
            suboffsets: null_mut(),
            internal: null_mut(),
        };
        // SAFETY: as above; a plain struct is stored.
        unsafe { view.write(filled) };
        let owner = slf.into_pyobject(py)?.into_any().unbind().into_ptr();
        // SAFETY: as above; the reference is given away here and dropped by `PyBuffer_Release`.
        unsafe { (*view).obj = owner };
        Ok(())
    }
}

/// The bytes of a tensor.
pub(crate) fn bytes(memory: &Memory) -> &[u8] {
    match memory {
        Memory::Leased(tensor) => tensor.as_bytes(),
        Memory::Loaned(_) | Memory::Owned(_) | Memory::Rows(_) => {
            let len = usize::try_from(memory.meta().nbytes).unwrap_or(0);
            // SAFETY: `memory` keeps `len` initialized bytes at `ptr` alive and mapped while it is borrowed. Python code
            // may write to them through other views meanwhile, as it may to any NumPy array that is being copied: the
            // values are then unspecified, and nothing here depends on them.
            unsafe { std::slice::from_raw_parts(memory.ptr().as_ptr(), len) }
        }
    }
}

/// Whether `bytes` are the very ones of `memory`, as in `loan["x"] = loan["x"]`.
pub(crate) fn same_place(memory: &Memory, bytes: &[u8]) -> bool {
    std::ptr::eq(memory.ptr().as_ptr(), bytes.as_ptr())
}

/// Whether an object offers the buffer protocol.
pub(crate) fn has_buffer(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: a borrowed object is alive; this looks at its type and cannot fail.
    unsafe { ffi::PyObject_CheckBuffer(object.as_ptr()) != 0 }
}

/// The bytes that another library lends.
///
/// # Safety
/// `data` leads to `len` initialized bytes that stay where they are as long as `owner` is kept (or `len` is 0).
unsafe fn lent<O>(data: *const u8, len: usize, owner: &O) -> &[u8] {
    let _ = owner;
    if len == 0 || data.is_null() {
        return &[];
    }
    // SAFETY: the caller's promise; as above about others who write meanwhile.
    unsafe { std::slice::from_raw_parts(data, len) }
}

/// A contiguous, row-major buffer of somebody's, held until this is dropped.
pub(crate) struct Contiguous(Box<ffi::Py_buffer>);

impl Contiguous {
    /// The buffer of `object`, unless it has none of this kind.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> Option<Self> {
        // It may point into itself, so it stays where it is.
        let mut view = Box::new(ffi::Py_buffer::new());
        let flags = ffi::PyBUF_C_CONTIGUOUS | ffi::PyBUF_FORMAT;
        // SAFETY: the object is alive, this thread is attached, and `view` is an empty one of our own.
        let rc = unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), &raw mut *view, flags) };
        if rc == 0 {
            return Some(Self(view));
        }
        drop(PyErr::take(object.py()));
        None
    }

    /// What its elements are; `None` if no ring carries that.
    pub(crate) fn dtype(&self) -> Option<DType> {
        let item_size = usize::try_from(self.0.itemsize).ok()?;
        if self.0.format.is_null() {
            return (item_size == 1).then_some(DType::U8);
        }
        // SAFETY: it is not null, so it is a string that lives as long as the buffer is held.
        let format = unsafe { CStr::from_ptr(self.0.format) };
        crate::dtype::from_format(format.to_bytes(), item_size)
    }

    /// Its dims.
    pub(crate) fn shape(&self) -> Vec<u64> {
        let rank = usize::try_from(self.0.ndim).unwrap_or(0);
        if rank == 0 || self.0.shape.is_null() {
            return Vec::new();
        }
        // SAFETY: as asked for with the flags, there are `ndim` dims, for as long as the buffer is held.
        let dims = unsafe { std::slice::from_raw_parts(self.0.shape, rank) };
        dims.iter().map(|&dim| dim as u64).collect()
    }

    /// Its bytes, row-major.
    pub(crate) fn bytes(&self) -> &[u8] {
        let len = usize::try_from(self.0.len).unwrap_or(0);
        // SAFETY: the exporter keeps `len` bytes there until the buffer is released.
        unsafe { lent(self.0.buf.cast::<u8>().cast_const(), len, self) }
    }
}

impl Drop for Contiguous {
    fn drop(&mut self) {
        // As PyO3's own: at the interpreter's end there is nobody to release it to.
        Python::try_attach(|_| {
            // SAFETY: it was filled in by `of`, and is released once.
            unsafe { ffi::PyBuffer_Release(&raw mut *self.0) };
        });
    }
}

/// The bytes of a contiguous buffer.
pub(crate) fn of_buffer(buffer: &pyo3::buffer::PyUntypedBuffer) -> Option<&[u8]> {
    if !buffer.is_c_contiguous() {
        return None;
    }
    // SAFETY: the exporter keeps the bytes until the buffer is released, and it is borrowed.
    Some(unsafe { lent(buffer.buf_ptr().cast::<u8>().cast_const(), buffer.len_bytes(), buffer) })
}

/// The bytes of a tensor in somebody's DLPack capsule, `nbytes` many; `capsule` is where `foreign` was found.
pub(crate) fn of_capsule<'a>(
    foreign: &crate::dlpack::Foreign,
    nbytes: usize,
    capsule: &'a Bound<'_, pyo3::types::PyCapsule>,
) -> &'a [u8] {
    // SAFETY: `inspect` found a contiguous tensor, whose shape and dtype say `nbytes`; by the standard it lives until its
    // deleter is called, which the capsule, not taken, does when it dies.
    unsafe { lent(foreign.data, nbytes, capsule) }
}

/// A tensor's bytes as a flat buffer that says it is writable, for `torch.frombuffer`, which warns otherwise: torch knows
/// no read-only tensors by any route.
#[pyclass(frozen, name = "_RawBytes", module = "forebay._native")]
#[derive(Debug)]
pub(crate) struct RawBytes(pub(crate) Memory);

#[pymethods]
impl RawBytes {
    /// # Safety
    /// Python calls this with a `Py_buffer` to fill in.
    unsafe fn __getbuffer__(slf: PyRef<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let py = slf.py();
        let data = slf.0.ptr().as_ptr().cast::<c_void>();
        let len = isize::try_from(slf.0.meta().nbytes)?;
        let owner = slf.into_pyobject(py)?.into_any();
        // SAFETY: Python's promise on `view`; `owner` keeps `len` bytes at `data` alive, and a reference to it is taken.
        let rc = unsafe { ffi::PyBuffer_FillInfo(view, owner.as_ptr(), data, len, 0, flags) };
        if rc == -1 { Err(PyErr::fetch(py)) } else { Ok(()) }
    }
}
