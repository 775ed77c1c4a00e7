//! DLPack: tensors out as capsules of either version, and a look at what others export.
//!
//! What is exported owns a [`Memory`] and nothing of Python, so its deleter is pure Rust and may run on any thread, with
//! or without the interpreter. What is imported is only looked at while its capsule lives.
#![expect(unsafe_code, reason = "the C structs of DLPack, and pointers that cross to other libraries in them")]

use std::{
    ffi::{CStr, c_void},
    ptr::{NonNull, null_mut},
};

use forebay::{DType, MAX_RANK};
use pyo3::{
    exceptions::{PyBufferError, PyValueError},
    ffi,
    prelude::*,
    types::{PyCapsule, PyCapsuleMethods},
};

use crate::{device::Watch, memory::Memory};

const LEGACY: &CStr = c"dltensor";
const VERSIONED: &CStr = c"dltensor_versioned";
/// The version whose rules our capsules keep: strides are always given.
const VERSION: DlVersion = DlVersion { major: 1, minor: 2 };
pub(crate) const CPU: i32 = 1;
/// Host memory that CUDA, or ROCm, pinned: any CPU reads it as its own.
const CUDA_HOST: i32 = 3;
const ROCM_HOST: i32 = 11;
const READ_ONLY: u64 = 1;
const IS_COPIED: u64 = 2;

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DlVersion {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct DlDevice {
    kind: i32,
    id: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DlDataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[repr(C)]
#[derive(Debug)]
struct DlTensor {
    data: *mut c_void,
    device: DlDevice,
    ndim: i32,
    dtype: DlDataType,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

/// `DLManagedTensor`, the form before version 1.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Legacy {
    tensor: DlTensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Legacy)>,
}

/// `DLManagedTensorVersioned`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Versioned {
    version: DlVersion,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Versioned)>,
    flags: u64,
    tensor: DlTensor,
}

const _: () = {
    assert!(size_of::<DlTensor>() == 48 && size_of::<Legacy>() == 64 && size_of::<Versioned>() == 80);
    assert!(std::mem::offset_of!(Versioned, tensor) == 32 && std::mem::offset_of!(Versioned, flags) == 24);
};

/// Whether memory of a device of this kind is the host's.
pub(crate) const fn is_host(kind: i32) -> bool {
    matches!(kind, CPU | CUDA_HOST | ROCM_HOST)
}

const fn data_type(dtype: DType) -> DlDataType {
    let code = match dtype {
        DType::I8 | DType::I16 | DType::I32 | DType::I64 => 0,
        DType::U8 | DType::U16 | DType::U32 | DType::U64 => 1,
        DType::F16 | DType::F32 | DType::F64 => 2,
        DType::BF16 => 4,
        DType::C64 | DType::C128 => 5,
        DType::Bool => 6,
        DType::F8E4M3 => 10,
        DType::F8E5M2 => 12,
    };
    DlDataType { code, bits: (dtype.size() * 8) as u8, lanes: 1 }
}

/// One exported tensor: the struct that others see, the dims it points to, and what keeps the bytes alive.
struct Export<M> {
    managed: M,
    shape: [i64; MAX_RANK],
    strides: [i64; MAX_RANK],
    /// Before the memory: it ends with a word on it.
    _watch: Option<Watch>,
    _memory: Memory,
}

fn tensor_of(memory: &Memory, dtype: DType) -> DlTensor {
    let meta = memory.meta();
    DlTensor {
        // As the standard asks: no address for a tensor without elements.
        data: if meta.nbytes == 0 { null_mut() } else { memory.ptr().as_ptr().cast() },
        device: DlDevice { kind: CPU, id: 0 },
        ndim: meta.rank() as i32,
        dtype: data_type(dtype),
        shape: null_mut(),
        strides: null_mut(),
        byte_offset: 0,
    }
}

/// Dims and strides in elements; dims fit because a tensor's bytes do.
fn dims_of(memory: &Memory) -> ([i64; MAX_RANK], [i64; MAX_RANK]) {
    let (mut shape, mut strides, mut step) = ([0; MAX_RANK], [0; MAX_RANK], 1_i64);
    for (i, &dim) in memory.meta().shape().iter().enumerate().rev() {
        shape[i] = i64::try_from(dim).unwrap_or(i64::MAX);
        strides[i] = step;
        step = step.saturating_mul(shape[i].max(1));
    }
    (shape, strides)
}

/// A tensor as `DLManagedTensorVersioned`, with `dtype` in the place of its own one (of the same size). Whoever gets it
/// calls its deleter once.
pub(crate) fn versioned(memory: Memory, dtype: DType, copied: bool) -> NonNull<Versioned> {
    let flags = if memory.is_writable() { 0 } else { READ_ONLY } | if copied { IS_COPIED } else { 0 };
    let (shape, strides) = dims_of(&memory);
    let tensor = tensor_of(&memory, dtype);
    let managed = Versioned { version: VERSION, context: null_mut(), deleter: Some(delete_versioned), flags, tensor };
    let raw = Box::into_raw(Box::new(Export { managed, shape, strides, _watch: Watch::of(&memory), _memory: memory }));
    // SAFETY: `raw` comes from a box, and nobody else has it yet.
    let export = unsafe { &mut *raw };
    export.managed.context = raw.cast();
    export.managed.tensor.shape = export.shape.as_mut_ptr();
    export.managed.tensor.strides = export.strides.as_mut_ptr();
    NonNull::from(&mut export.managed)
}

/// As [`versioned`], in the form before version 1.
fn legacy(memory: Memory, dtype: DType) -> NonNull<Legacy> {
    let (shape, strides) = dims_of(&memory);
    let tensor = tensor_of(&memory, dtype);
    let managed = Legacy { tensor, context: null_mut(), deleter: Some(delete_legacy) };
    let raw = Box::into_raw(Box::new(Export { managed, shape, strides, _watch: Watch::of(&memory), _memory: memory }));
    // SAFETY: `raw` comes from a box, and nobody else has it yet.
    let export = unsafe { &mut *raw };
    export.managed.context = raw.cast();
    export.managed.tensor.shape = export.shape.as_mut_ptr();
    export.managed.tensor.strides = export.strides.as_mut_ptr();
    NonNull::from(&mut export.managed)
}

/// # Safety
/// S1 `managed` was made by [`versioned`]. S2 this is called once for it, after its last use.
unsafe extern "C" fn delete_versioned(managed: *mut Versioned) {
    // SAFETY: S1, S2: it is alive, and `context` is where `versioned` put it.
    let context = unsafe { (*managed).context };
    // SAFETY: S1: `context` is the box that `versioned` leaked; S2: it is taken back once.
    drop(unsafe { Box::from_raw(context.cast::<Export<Versioned>>()) });
}

/// # Safety
/// S1 `managed` was made by [`legacy`]. S2 this is called once for it, after its last use.
unsafe extern "C" fn delete_legacy(managed: *mut Legacy) {
    // SAFETY: S1, S2: it is alive, and `context` is where `legacy` put it.
    let context = unsafe { (*managed).context };
    // SAFETY: S1: `context` is the box that `legacy` leaked; S2: it is taken back once.
    drop(unsafe { Box::from_raw(context.cast::<Export<Legacy>>()) });
}

/// The capsule's pointer if it still has the name under which nobody has taken it.
///
/// # Safety
/// `capsule` is a capsule, and this thread is attached.
unsafe fn untaken(capsule: *mut ffi::PyObject, name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: the caller's promise; a wrong name is an answer, not an error.
    if unsafe { ffi::PyCapsule_IsValid(capsule, name.as_ptr()) } == 0 {
        return None;
    }
    // SAFETY: the caller's promise; the name was just found to be this one, so no exception is set.
    NonNull::new(unsafe { ffi::PyCapsule_GetPointer(capsule, name.as_ptr()) })
}

unsafe extern "C" fn drop_versioned(capsule: *mut ffi::PyObject) {
    // SAFETY: Python calls this with the capsule that dies, attached.
    if let Some(managed) = unsafe { untaken(capsule, VERSIONED) } {
        // SAFETY: the capsule was made by `capsule` from `versioned` (S1); it was not taken, so nobody else deletes (S2).
        unsafe { delete_versioned(managed.as_ptr().cast()) };
    }
}

unsafe extern "C" fn drop_legacy(capsule: *mut ffi::PyObject) {
    // SAFETY: Python calls this with the capsule that dies, attached.
    if let Some(managed) = unsafe { untaken(capsule, LEGACY) } {
        // SAFETY: the capsule was made by `capsule` from `legacy` (S1); it was not taken, so nobody else deletes (S2).
        unsafe { delete_legacy(managed.as_ptr().cast()) };
    }
}

/// Which form of capsule to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Before version 1: cannot say that a tensor is read-only.
    Legacy,
    /// Version 1.
    Versioned,
}

/// A tensor as a capsule, with `dtype` in the place of its own one (of the same size).
pub(crate) fn capsule<'py>(
    py: Python<'py>,
    memory: Memory,
    dtype: DType,
    form: Form,
    copied: bool,
) -> PyResult<Bound<'py, PyCapsule>> {
    match form {
        Form::Versioned => {
            let managed = versioned(memory, dtype, copied).cast();
            // SAFETY: `managed` lives until a taker or `drop_versioned` deletes it, which both may do on any thread.
            unsafe { PyCapsule::new_with_pointer_and_destructor(py, managed, VERSIONED, Some(drop_versioned)) }
        }
        Form::Legacy => {
            let managed = legacy(memory, dtype).cast();
            // SAFETY: `managed` lives until a taker or `drop_legacy` deletes it, which both may do on any thread.
            unsafe { PyCapsule::new_with_pointer_and_destructor(py, managed, LEGACY, Some(drop_legacy)) }
        }
    }
}

/// What somebody else's capsule holds: a contiguous tensor in host memory.
#[derive(Debug)]
pub(crate) struct Foreign {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<u64>,
    pub(crate) data: *const u8,
}

/// Looks into a capsule without taking it: what is found is good as long as the capsule lives.
pub(crate) fn inspect(capsule: &Bound<'_, PyCapsule>) -> PyResult<Foreign> {
    let tensor: *const DlTensor = if capsule.is_valid_checked(Some(LEGACY)) {
        let managed: *const Legacy = capsule.pointer_checked(Some(LEGACY))?.as_ptr().cast();
        // SAFETY: a capsule of this name points to a living `DLManagedTensor`, by the standard; only an address is made.
        unsafe { &raw const (*managed).tensor }
    } else if capsule.is_valid_checked(Some(VERSIONED)) {
        let managed: *const Versioned = capsule.pointer_checked(Some(VERSIONED))?.as_ptr().cast();
        // SAFETY: a capsule of this name starts with a version, by the standard.
        let version = unsafe { (*managed).version };
        if version.major != VERSION.major {
            return Err(PyBufferError::new_err(format!("a DLPack tensor of version {}, expected 1", version.major)));
        }
        // SAFETY: of this major version it is a living `DLManagedTensorVersioned`; only an address is made.
        unsafe { &raw const (*managed).tensor }
    } else {
        return Err(PyValueError::new_err("__dlpack__ gave no untaken DLPack capsule"));
    };
    // SAFETY: the tensor lives as long as its capsule, which is borrowed here, and nobody writes to it.
    let tensor = unsafe { &*tensor };
    if !is_host(tensor.device.kind) {
        return Err(PyValueError::new_err("is not in host memory; move it to the CPU first"));
    }
    let dtype = DType::ALL.into_iter().find(|&dtype| data_type(dtype) == tensor.dtype).ok_or_else(|| {
        let DlDataType { code, bits, lanes } = tensor.dtype;
        PyValueError::new_err(format!(
            "has a dtype that no ring carries (DLPack code {code}, {bits} bits, {lanes} lanes)"
        ))
    })?;
    let rank = usize::try_from(tensor.ndim).unwrap_or(usize::MAX);
    if rank > MAX_RANK {
        return Err(PyValueError::new_err(format!("has {rank} dims, at most {MAX_RANK} are possible")));
    }
    let dims = |from: *const i64| -> Option<&[i64]> {
        if rank == 0 || from.is_null() {
            return (rank == 0).then_some(&[]);
        }
        // SAFETY: by the standard a pointer that is not null leads to `ndim` values that live as long as the tensor.
        Some(unsafe { std::slice::from_raw_parts(from, rank) })
    };
    let shape = dims(tensor.shape).ok_or_else(|| PyValueError::new_err("a DLPack tensor without a shape"))?;
    if let Some(strides) = dims(tensor.strides)
        && !shape.contains(&0)
    {
        let mut step = 1_i64;
        for (&dim, &stride) in shape.iter().zip(strides).rev() {
            if dim != 1 && stride != step {
                return Err(PyValueError::new_err(
                    "is not contiguous; pass .contiguous() or numpy.ascontiguousarray()",
                ));
            }
            step = step.saturating_mul(dim);
        }
    }
    let shape = shape.iter().map(|&dim| u64::try_from(dim).unwrap_or(0)).collect();
    let data = tensor.data.cast::<u8>().cast_const().wrapping_add(usize::try_from(tensor.byte_offset).unwrap_or(0));
    Ok(Foreign { dtype, shape, data })
}
