//! `Tensor`: one tensor of a message or loan, and the ways to look at it.

use std::sync::{
    OnceLock,
    atomic::{AtomicBool, Ordering},
};

use forebay::MAX_RANK;
use pyo3::{
    exceptions::{PyBufferError, PyValueError},
    prelude::*,
    types::{PyBytes, PyCapsule, PyTuple},
};

use crate::{
    buffer, device,
    dlpack::{self, Form},
    errors,
    memory::{Memory, Owned},
    numpy,
    torch::{self, Route},
};

/// One tensor, in shared memory: contiguous, row-major, 64-byte aligned. It was not copied, and making arrays of it does
/// not copy either.
///
/// Every array made of it (and every view of such an array) keeps the slot it lies in; the slot is released when the
/// last one is dropped, in any order, on any thread.
///
/// Writing: NumPy arrays of a tensor that is not `writable` are read-only. torch and JAX know no read-only memory:
/// writing in place to a torch tensor of such a ring ends the process (SIGSEGV). Call `.copy()` first, or create the
/// ring with `writable=True`.
#[pyclass(frozen, weakref, name = "Tensor", module = "forebay")]
#[derive(Debug)]
pub(crate) struct PyTensor {
    pub(crate) memory: Memory,
    /// In bytes, once the buffer protocol asked for them: it wants them to stay in one place.
    strides: OnceLock<Box<[isize; MAX_RANK]>>,
    /// Something reads its bytes through it: a buffer, an array whose base it is.
    lent: AtomicBool,
}

impl PyTensor {
    #[inline]
    pub(crate) fn new(memory: Memory) -> Self {
        Self { memory, strides: OnceLock::new(), lent: AtomicBool::new(false) }
    }

    /// Something is about to read its bytes through it, perhaps a GPU.
    #[inline]
    pub(crate) fn lend(&self) {
        device::note_of(&self.memory);
        // ORDER none, Relaxed: who lends and who drops it hold the interpreter, or a reference in between.
        self.lent.store(true, Ordering::Relaxed);
    }

    /// Steps between elements, per dim, in bytes.
    pub(crate) fn byte_strides(&self) -> &[isize; MAX_RANK] {
        self.strides.get_or_init(|| {
            let meta = self.memory.meta();
            let (mut strides, mut step) = (Box::new([0; MAX_RANK]), meta.dtype.size() as isize);
            for (i, &dim) in meta.shape().iter().enumerate().rev() {
                strides[i] = step;
                // Dims of a tensor without elements may be anything; nobody goes that far.
                step = step.wrapping_mul(isize::try_from(dim).unwrap_or(isize::MAX).max(1));
            }
            strides
        })
    }

    /// Refuses what must not be exported (any more).
    #[inline]
    pub(crate) fn check(&self, py: Python<'_>) -> PyResult<()> {
        match self.memory.refusal() {
            None => Ok(()),
            Some(refusal) => Err(errors::refusal(py, refusal)),
        }
    }

    fn copied(&self, py: Python<'_>) -> PyResult<Memory> {
        self.check(py)?;
        let memory = &self.memory;
        // Long enough to let other threads run meanwhile.
        if self.nbytes() > 1 << 18 {
            Ok(py.detach(|| Owned::copy_of(memory.meta(), buffer::bytes(memory)))?)
        } else {
            Ok(Owned::copy_of(memory.meta(), buffer::bytes(memory))?)
        }
    }
}

impl Drop for PyTensor {
    fn drop(&mut self) {
        if self.lent.load(Ordering::Relaxed) {
            device::note_of(&self.memory);
        }
    }
}

#[pymethods]
impl PyTensor {
    /// Dims, outermost first.
    #[getter]
    pub(crate) fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.memory.meta().shape())
    }

    /// Steps between elements, per dim, in elements: always those of a contiguous tensor.
    #[getter]
    fn strides<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let meta = self.memory.meta();
        PyTuple::new(py, self.byte_strides()[..meta.rank()].iter().map(|bytes| bytes / meta.dtype.size() as isize))
    }

    /// Name of the element type, as NumPy and torch spell it: "int64", "bfloat16", "float8_e4m3fn".
    #[getter]
    fn dtype(&self) -> &'static str {
        self.memory.dtype().name()
    }

    /// Number of dims.
    #[getter]
    fn ndim(&self) -> usize {
        self.memory.meta().rank()
    }

    /// Bytes of all elements.
    #[getter]
    pub(crate) fn nbytes(&self) -> isize {
        // It lies in a mapping of this process, so it fits.
        isize::try_from(self.memory.meta().nbytes).unwrap_or(isize::MAX)
    }

    /// Address of the first element: inside the mapped slot, a multiple of 64.
    #[getter]
    fn data_ptr(&self) -> usize {
        self.memory.ptr().addr().get()
    }

    /// Always "cpu".
    #[getter]
    fn device(&self) -> &'static str {
        "cpu"
    }

    /// Whether its memory may be written in place.
    #[getter]
    fn writable(&self) -> bool {
        self.memory.is_writable()
    }

    /// A NumPy array of this memory; nothing is copied.
    ///
    /// bfloat16 and the 8-bit floats need the package `ml_dtypes`.
    ///
    /// Returns:
    ///     numpy.ndarray; read-only unless the tensor is `writable`.
    /// Raises:
    ///     DTypeUnavailable: NumPy has no such element type and `ml_dtypes` is not installed.
    ///     LoanEnded: the loan it belongs to was published.
    ///     ForkedError: this is a forked child of the process that received it.
    fn numpy<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        numpy::of(slf)
    }

    /// A torch tensor of this memory; nothing is copied.
    ///
    /// torch has no read-only tensors: do not write to it in place unless the tensor is `writable`.
    ///
    /// Args:
    ///     route: how to import it: "exchange" (torch 2.14+), "dlpack", "legacy" or "frombuffer". None takes
    ///         $FOREBAY_TORCH_ROUTE, else the cheapest that this torch has. They differ in cost only.
    /// Returns:
    ///     torch.Tensor
    /// Raises:
    ///     ValueError: this torch has no such route.
    ///     LoanEnded: the loan it belongs to was published.
    ///     ForkedError: this is a forked child of the process that received it.
    #[pyo3(signature = (*, route = None))]
    fn torch<'py>(&self, py: Python<'py>, route: Option<&str>) -> PyResult<Bound<'py, PyAny>> {
        let route = route.map(str::parse::<Route>).transpose()?;
        torch::of(py, self.memory.clone(), route)
    }

    /// A copy in private memory, which holds no slot and may be written.
    ///
    /// Returns:
    ///     Tensor
    fn copy(&self, py: Python<'_>) -> PyResult<Self> {
        Ok(Self::new(self.copied(py)?))
    }

    /// A copy of its bytes, row-major.
    fn tobytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.check(py)?;
        let bytes = buffer::bytes(&self.memory);
        // Unlike `PyBytes::new`, which panics, this raises MemoryError if there is no room.
        PyBytes::new_with(py, bytes.len(), |to| {
            to.copy_from_slice(bytes);
            Ok(())
        })
    }

    /// For `numpy.asarray` and its kind.
    #[pyo3(signature = (dtype = None, copy = None))]
    fn __array__<'py>(
        slf: &Bound<'py, Self>,
        dtype: Option<Bound<'py, PyAny>>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let own = numpy::of(slf)?;
        let same = match &dtype {
            Some(dtype) => own.getattr("dtype")?.eq(py.import("numpy")?.call_method1("dtype", (dtype,))?)?,
            None => true,
        };
        match (dtype, copy) {
            (_, Some(true)) if same => own.call_method0("copy"),
            (Some(_), Some(false)) if !same => {
                Err(PyValueError::new_err("another dtype needs a copy, and copy=False forbids it"))
            }
            (Some(dtype), _) if !same => own.call_method1("astype", (dtype,)),
            _ => Ok(own),
        }
    }

    /// The DLPack protocol: a capsule that `torch.from_dlpack`, `jax.dlpack.from_dlpack`, `numpy.from_dlpack` and others
    /// take. Nothing is copied unless `copy=True`.
    ///
    /// Raises:
    ///     BufferError: a stream, or another device than the CPU.
    #[pyo3(signature = (*, stream = None, max_version = None, dl_device = None, copy = None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        self.check(py)?;
        if stream.is_some() {
            return Err(PyBufferError::new_err("host memory has no streams; pass stream=None"));
        }
        if dl_device.is_some_and(|device| device != (dlpack::CPU, 0)) {
            return Err(PyBufferError::new_err("this tensor is in host memory; pass dl_device=(1, 0) or None"));
        }
        let form = if max_version.is_some_and(|(major, _)| major >= 1) { Form::Versioned } else { Form::Legacy };
        let copied = copy == Some(true);
        let memory = if copied { self.copied(py)? } else { self.memory.clone() };
        let dtype = memory.dtype();
        dlpack::capsule(py, memory, dtype, form, copied)
    }

    /// The DLPack protocol: (1, 0), the CPU.
    fn __dlpack_device__(&self) -> (i32, i32) {
        (dlpack::CPU, 0)
    }

    fn __len__(&self) -> PyResult<usize> {
        match self.memory.meta().shape().first() {
            Some(&dim) => Ok(usize::try_from(dim)?),
            None => Err(pyo3::exceptions::PyTypeError::new_err("len() of a tensor without dims")),
        }
    }

    fn __repr__(&self) -> String {
        let meta = self.memory.meta();
        let place = match (&self.memory, self.memory.is_writable()) {
            (Memory::Leased(_) | Memory::Rows(_), false) => "leased",
            (Memory::Leased(_) | Memory::Rows(_), true) => "leased, writable",
            (Memory::Loaned(_), _) => "on loan",
            (Memory::Owned(_), _) => "own copy",
        };
        format!("<forebay.Tensor {}{:?}, {} bytes, {place}>", meta.dtype, meta.shape(), meta.nbytes)
    }
}
