//! Messages on their way to a GPU: `Consumer.pin`, `Message.to`, `Message.record_stream`, and views whose end tells the slot
//! which stream may still read it.
//!
//! Whatever is made of a pinned slot notes torch's current stream when it is made and when it ends: DLPack's tensors by a
//! `Watch`, NumPy's arrays in `keeper.rs`, buffers with their `Tensor`. On threads that Python does not know nothing is asked.
//! Noting is a lock of our own for a moment, no call of CUDA.
#![expect(unsafe_code, reason = "streams and addresses of a device come from Python as numbers")]

use std::sync::{Mutex, PoisonError};

use forebay::cuda::{self, CudaError, Stream};
use pyo3::{
    exceptions::{PyRuntimeWarning, PyTypeError, PyValueError},
    ffi, intern,
    prelude::*,
    types::{PyDict, PyInt, PyString},
};

use crate::{consumer::PyConsumer, errors, memory::Memory, message::PyMessage, tensor::PyTensor, torch};

// === views ===

/// Lives as long as a view of a pinned slot, which streams may read without telling.
#[derive(Debug)]
pub(crate) struct Watch {
    tensor: forebay::Tensor,
}

impl Watch {
    /// Of a view that is about to be made of `memory`; `None` if its slot is not pinned.
    #[inline]
    pub(crate) fn of(memory: &Memory) -> Option<Self> {
        let Memory::Leased(tensor) = memory else { return None };
        tensor.pinned_for()?;
        note(tensor);
        Some(Self { tensor: tensor.clone() })
    }
}

/// The stream that this thread gives its work to may read the slot, if it is pinned. The thread is one that Python knows.
#[inline]
pub(crate) fn note(tensor: &forebay::Tensor) {
    if let Some(device) = tensor.pinned_for()
        && !tensor.is_foreign()
        && let Some(stream) = cuda::torch_current_stream(device)
    {
        // Without a device there is nothing to follow.
        let _ = tensor.record_stream(stream);
    }
}

/// As [`note`], of whatever keeps a tensor's bytes.
#[inline]
pub(crate) fn note_of(memory: &Memory) {
    if let Memory::Leased(tensor) = memory {
        note(tensor);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: it may be asked on any thread, attached or not, and at the interpreter's end says null.
        let is_python_thread = !unsafe { ffi::PyGILState_GetThisThreadState() }.is_null();
        if is_python_thread {
            note(&self.tensor);
        }
    }
}

// === what Python passes ===

/// Where tensors are to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Device {
    Cpu,
    /// `None`: the current one.
    Cuda(Option<i32>),
}

impl Device {
    /// "cuda", "cuda:1", 1, "cpu", `torch.device`, `cupy.cuda.Device`.
    fn of(object: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let Some(object) = object else { return Ok(Self::Cuda(None)) };
        let unknown =
            || PyValueError::new_err(format!("device is {object:?}, expected \"cuda\", \"cuda:N\", N or \"cpu\""));
        if let Ok(number) = object.cast::<PyInt>() {
            return Ok(Self::Cuda(Some(number.extract()?)));
        }
        let py = object.py();
        let (kind, index) = match object.cast::<PyString>() {
            Ok(text) => match text.to_str()?.split_once(':') {
                Some((kind, index)) => (kind.to_owned(), Some(index.parse().map_err(|_| unknown())?)),
                None => (text.to_string(), None),
            },
            Err(_) => match object.getattr(intern!(py, "type")) {
                Ok(kind) => (kind.extract()?, object.getattr(intern!(py, "index"))?.extract()?),
                Err(_) => {
                    ("cuda".to_owned(), Some(object.getattr(intern!(py, "id")).map_err(|_| unknown())?.extract()?))
                }
            },
        };
        match kind.as_str() {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(index)),
            _ => Err(unknown()),
        }
    }
}

/// A stream: torch's, CuPy's, anything with `__cuda_stream__`, or its handle as a number. `None` if none was given.
fn stream_of(object: Option<&Bound<'_, PyAny>>, device: Option<i32>) -> PyResult<Option<Stream>> {
    let Some(object) = object else { return Ok(None) };
    let py = object.py();
    let mut device = device;
    let handle: usize = if let Ok(number) = object.cast::<PyInt>() {
        number.extract()?
    } else if let Ok(handle) = object.getattr(intern!(py, "cuda_stream")) {
        let own: Option<i32> = object.getattr(intern!(py, "device_index")).and_then(|own| own.extract()).ok();
        if let (Some(own), Some(asked)) = (own, device)
            && own != asked
        {
            return Err(PyValueError::new_err(format!("the stream is one of device {own}, expected {asked}")));
        }
        device = device.or(own);
        handle.extract()?
    } else if let Ok(protocol) = object.getattr(intern!(py, "__cuda_stream__")) {
        let (version, handle): (usize, usize) =
            if protocol.is_callable() { protocol.call0()?.extract()? } else { protocol.extract()? };
        if version != 0 {
            return Err(PyValueError::new_err(format!("__cuda_stream__ of version {version}, expected 0")));
        }
        handle
    } else if let Ok(handle) = object.getattr(intern!(py, "ptr")) {
        handle.extract()?
    } else {
        return Err(PyTypeError::new_err(format!(
            "{object:?} is no stream; pass a torch.cuda.Stream, an object with __cuda_stream__, or a handle"
        )));
    };
    let device = match device {
        Some(device) => device,
        None => cuda::current_device().map_err(|e| errors::device(py, &e))?,
    };
    // SAFETY: it is what the program calls a stream; that it lives until the slot is released is asked for in the docs.
    Ok(Some(unsafe { Stream::from_raw(device, handle) }))
}

/// Where the elements of `to` begin, if it is a contiguous array of a device with room for exactly `nbytes`.
fn address_of(name: &str, to: &Bound<'_, PyAny>, nbytes: u64) -> PyResult<usize> {
    let py = to.py();
    let wrong = |what: String| PyValueError::new_err(format!("out[{name:?}] {what}"));
    let (at, found): (usize, u64) = match to.getattr(intern!(py, "data_ptr")) {
        Ok(pointer) => {
            if !to.getattr(intern!(py, "is_cuda"))?.extract::<bool>()? {
                return Err(wrong("is not on a GPU".to_owned()));
            }
            if !to.call_method0(intern!(py, "is_contiguous"))?.extract::<bool>()? {
                return Err(wrong("is not contiguous".to_owned()));
            }
            (pointer.call0()?.extract()?, to.getattr(intern!(py, "nbytes"))?.extract()?)
        }
        Err(_) => {
            let Ok(says) = to.getattr(intern!(py, "__cuda_array_interface__")) else {
                return Err(wrong("is neither a torch tensor nor an array with __cuda_array_interface__".to_owned()));
            };
            if says.get_item("strides").is_ok_and(|strides| !strides.is_none()) {
                return Err(wrong("is not contiguous".to_owned()));
            }
            let (at, read_only): (usize, bool) = says.get_item("data")?.extract()?;
            if read_only {
                return Err(wrong("is read-only".to_owned()));
            }
            let shape: Vec<u64> = says.get_item("shape")?.extract()?;
            let kind: String = says.get_item("typestr")?.extract()?;
            let item: u64 = kind.get(2..).and_then(|size| size.parse().ok()).unwrap_or(0);
            (at, shape.iter().try_fold(item, |all, &dim| all.checked_mul(dim)).unwrap_or(u64::MAX))
        }
    };
    if found != nbytes {
        return Err(wrong(format!("has {found} bytes, the tensor {nbytes}")));
    }
    Ok(at)
}

/// What was warned of, each once in a process.
static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn warn_once(py: Python<'_>, text: String) -> PyResult<()> {
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.contains(&text) {
        return Ok(());
    }
    said.push(text.clone());
    // Warning runs code of the program.
    drop(said);
    let text = std::ffi::CString::new(text).unwrap_or_default();
    PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), &text, 1)
}

/// Whether there is simply nothing to copy with: torch can do it in its own way.
fn is_without_runtime(e: &CudaError) -> bool {
    matches!(e, CudaError::NotLoaded { .. } | CudaError::MissingFunction { .. })
}

/// For a thread that waits for events: what it asks is no concern of graphs that other threads capture.
#[pyfunction(name = "_leave_captures_alone")]
pub(crate) fn leave_captures_alone() {
    // Without a runtime nothing is captured.
    let _ = cuda::leave_captures_alone();
}

// === the classes' part ===

impl PyConsumer {
    /// Pins its slots, or warns once why they are not.
    pub(crate) fn pin_or_warn(&self, py: Python<'_>, device: Option<i32>) -> PyResult<bool> {
        self.check(py)?;
        let pinned = py.detach(|| self.shared.lock().as_mut().map(|inner| inner.consumer.pin(device)));
        match pinned {
            None => Err(self.closed(py)),
            Some(Ok(())) => Ok(true),
            Some(Err(e)) => {
                warn_once(py, format!("forebay: slots are not pinned, copies to a GPU take a detour: {e}"))?;
                Ok(false)
            }
        }
    }
}

#[pymethods]
impl PyConsumer {
    /// Registers the slots with CUDA, so that a GPU's copy engine reads them directly and copies do not wait. Undone by
    /// itself when the consumer and everything received are gone. Takes about as long as touching every page.
    ///
    /// Uses the CUDA runtime that torch, CuPy or JAX loaded. Where it cannot be done, a RuntimeWarning says why, once, and
    /// everything works unpinned.
    ///
    /// Args:
    ///     device: the GPU that copies go to: "cuda", "cuda:1", 1, torch.device. None: the current one.
    /// Returns:
    ///     Whether they are pinned.
    #[pyo3(signature = (device = None))]
    fn pin(&self, py: Python<'_>, device: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        match Device::of(device)? {
            Device::Cuda(device) => self.pin_or_warn(py, device),
            Device::Cpu => Err(PyValueError::new_err("device is \"cpu\", expected a GPU")),
        }
    }

    /// Whether the slots are registered with CUDA.
    #[getter]
    fn pinned(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, |consumer| consumer.is_pinned())
    }

    /// Messages whose slots are kept because a GPU may still read them. They count as held.
    #[getter]
    fn in_flight(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |consumer| consumer.in_flight())
    }

    /// The first error that was met while following copies, once; None if there was none.
    fn take_device_trouble(&self, py: Python<'_>) -> PyResult<Option<String>> {
        Ok(self.with(py, |consumer| consumer.take_device_trouble())?.map(|e| e.to_string()))
    }
}

#[pymethods]
impl PyMessage {
    /// Copies all tensors to a GPU, straight from the slot, without waiting. The slot is released when the copies are done
    /// and no view is left, whatever becomes of the message: it may be dropped at once, and is acked then.
    ///
    /// Work given to the stream afterwards finds the copies done, as with torch's own `.to(..., non_blocking=True)`. The
    /// consumer should be pinned; if it is not, the runtime copies twice and may wait.
    ///
    /// Args:
    ///     device: "cuda", "cuda:1", 1, torch.device; None is "cuda". "cpu" gives what torch() gives.
    ///     stream: where to copy: a torch.cuda.Stream, an object with `__cuda_stream__`, a CuPy stream, a handle. None: torch's
    ///         current stream. It must live until the copies are done.
    ///     out: arrays to copy into, by name: torch tensors or anything with `__cuda_array_interface__`, contiguous, of as many
    ///         bytes. Fields that are not named are not copied. None: new torch tensors.
    /// Returns:
    ///     dict from name to what it was copied to.
    /// Raises:
    ///     DeviceError: the GPU refused, or the stream captures a graph.
    #[pyo3(signature = (device = None, *, stream = None, out = None))]
    fn to<'py>(
        &self,
        py: Python<'py>,
        device: Option<&Bound<'py, PyAny>>,
        stream: Option<&Bound<'py, PyAny>>,
        out: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        self.message.check_here().map_err(|e| errors::device(py, &e))?;
        let asked = match Device::of(device)? {
            Device::Cuda(asked) => asked,
            Device::Cpu if stream.is_some() || out.is_some() => {
                return Err(PyValueError::new_err("device is \"cpu\", which takes neither stream nor out"));
            }
            Device::Cpu => return self.torch(py, None),
        };
        let index = match asked.map_or_else(cuda::current_device, Ok) {
            Ok(index) => index,
            Err(e) if is_without_runtime(&e) => return self.by_torch(py, asked, out),
            Err(e) => return Err(errors::device(py, &e)),
        };
        let own = match stream_of(stream, Some(index))? {
            Some(own) => own,
            None => cuda::torch_current_stream(index).unwrap_or(Stream::default_of(index)),
        };
        let made = match out {
            Some(out) => out.clone(),
            None => self.room_on(py, index, stream)?,
        };
        let mut to = Vec::with_capacity(made.len());
        for (name, array) in made.iter() {
            let name = name.cast_into::<PyString>().map_err(PyErr::from)?;
            let Some(at) = self.index_of(&name)? else { return Err(self.no_field(&name)) };
            let nbytes = self.message.meta(at).map_or(0, |meta| meta.nbytes);
            to.push((at, address_of(name.to_str()?, &array, nbytes)?));
        }
        let copy = || {
            // SAFETY: the arrays have room for these tensors, and their owner orders its own use of them by the stream.
            unsafe { self.message.copy_to_device(&to, own) }
        };
        // Of memory that is not pinned the runtime copies before it comes back.
        let copied = if self.message.is_pinned() { copy() } else { py.detach(copy) };
        match copied {
            Ok(()) => Ok(made),
            Err(e) if is_without_runtime(&e) => self.by_torch(py, asked, out),
            Err(e) => Err(errors::device(py, &e)),
        }
    }

    /// Says that work on this stream reads views of the message: its slot is released only when the stream is past what it was
    /// given before the last view ended. torch's current stream at a view's making and end is known without it; others are not.
    ///
    /// Args:
    ///     stream: as in to. It must live until the slot is released.
    #[pyo3(signature = (stream))]
    fn record_stream(&self, py: Python<'_>, stream: &Bound<'_, PyAny>) -> PyResult<()> {
        self.message.check_here().map_err(|e| errors::device(py, &e))?;
        let Some(stream) = stream_of(Some(stream), None)? else { return Ok(()) };
        self.message.record_stream(stream).map_err(|e| errors::device(py, &e))
    }
}

impl PyMessage {
    fn no_field(&self, name: &Bound<'_, PyString>) -> PyErr {
        match name.to_str().map(|name| self.message.tensor(name)) {
            Ok(Err(e)) => errors::tensor(name.py(), e),
            Ok(Ok(_)) => PyValueError::new_err("the field is there"),
            Err(e) => e,
        }
    }

    /// New torch tensors on a GPU, allocated for the stream that writes them first.
    fn room_on<'py>(
        &self,
        py: Python<'py>,
        index: i32,
        stream: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let place = ("cuda", index);
        let all = || self.dict(py, |memory| torch::empty_on(py, memory.meta(), place));
        let Some(stream) = stream else { return all() };
        let cuda = py.import("torch")?.getattr("cuda")?;
        let stream = if stream.hasattr("cuda_stream")? {
            stream.clone()
        } else {
            let handle = stream_of(Some(stream), Some(index))?.map_or(0, Stream::handle);
            cuda.call_method1("ExternalStream", (handle, torch::device(py, place)?))?
        };
        let with = cuda.call_method1("stream", (stream,))?;
        with.call_method0("__enter__")?;
        let made = all();
        with.call_method1("__exit__", (py.None(), py.None(), py.None()))?;
        made
    }

    /// As torch does it by itself: it waits until it has read the slot.
    fn by_torch<'py>(
        &self,
        py: Python<'py>,
        index: Option<i32>,
        out: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let views = self.torch(py, None)?;
        let made = PyDict::new(py);
        let name = index.map_or_else(|| "cuda".to_owned(), |index| format!("cuda:{index}"));
        for (key, view) in views.iter() {
            let done = match out.map(|out| out.get_item(&key)).transpose()?.flatten() {
                Some(to) => to.call_method1("copy_", (view,))?,
                None if out.is_some() => continue,
                None => view.call_method1("to", (&name,))?,
            };
            made.set_item(key, done)?;
        }
        Ok(made)
    }
}

#[pymethods]
impl PyTensor {
    /// Whether it lies in memory that CUDA copies from directly, without waiting.
    #[getter]
    fn pinned(&self) -> bool {
        matches!(&self.memory, Memory::Leased(tensor) if tensor.pinned_for().is_some())
    }
}
