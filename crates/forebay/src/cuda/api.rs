//! The functions of the CUDA runtime that are used here, found in the library that this process has loaded already: the
//! only file with a foreign function in it.
//!
//! ```text
//!   $FOREBAY_CUDART              that library, whatever else there is
//!   libcudart.so* in /proc/self/maps        what torch, CuPy or JAX loaded
//!   libcudart.so.13, .12, .11.0  by name, if libcuda.so is mapped: a runtime that is part of another library
//! ```
//!
//! May: call the runtime, with handles that its types vouch for. May not: link against it, load it into a process that has
//! no CUDA, or leave an error behind that the program's next call would find.
#![allow(unsafe_code, reason = "C functions found by name; each block argues why it may call them")]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    ptr::{NonNull, null_mut},
    sync::atomic::{AtomicPtr, AtomicU64, Ordering},
};

use forebay_os::clock;

use super::CudaError;

/// `cudaSuccess`.
const SUCCESS: c_int = 0;
/// `cudaErrorNotReady`: an event's work is not done.
const NOT_READY: c_int = 600;
/// `cudaErrorStreamCaptureImplicit`: asked about the legacy stream while another one captures.
const CAPTURE_IMPLICIT: c_int = 906;
/// `cudaErrorHostMemoryNotRegistered`.
const NOT_REGISTERED: c_int = 713;
/// `cudaDevAttrHostRegisterReadOnlySupported`.
const READ_ONLY_SUPPORTED: c_int = 113;
/// `cudaHostRegisterPortable`: for every device of the process.
const PORTABLE: c_uint = 1;
/// `cudaHostRegisterReadOnly`: the device only reads.
const READ_ONLY: c_uint = 8;
/// `cudaEventDisableTiming`: cheaper, and nobody asks for times.
const NO_TIMING: c_uint = 2;
/// `cudaMemcpyHostToDevice`.
const HOST_TO_DEVICE: c_int = 1;

/// `cudaStreamCaptureMode`: what calls of this thread do to a capture that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum CaptureMode {
    /// They are no concern of captures that other threads began.
    ThreadLocal = 1,
    /// Nor of those that this thread began.
    Relaxed = 2,
}

/// A stream of a device, on which work is done in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stream {
    device: i32,
    handle: usize,
}

impl Stream {
    /// The default stream of a device (the legacy one, as torch has it).
    #[must_use]
    pub const fn default_of(device: i32) -> Self {
        Self { device, handle: 0 }
    }

    /// A stream by its `cudaStream_t` (or `CUstream`).
    ///
    /// # Safety
    /// It is a stream of that device, and is not destroyed before every lease it is named for has ended.
    #[must_use]
    pub const unsafe fn from_raw(device: i32, handle: usize) -> Self {
        Self { device, handle }
    }

    /// The number of its device.
    #[must_use]
    pub const fn device(self) -> i32 {
        self.device
    }

    /// Its handle, 0 for the default stream.
    #[must_use]
    pub const fn handle(self) -> usize {
        self.handle
    }

    fn pointer(self) -> *mut c_void {
        std::ptr::with_exposed_provenance_mut(self.handle)
    }
}

/// An event of a device. It stays for as long as the runtime does: events are used again, never destroyed.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) device: i32,
    handle: NonNull<c_void>,
}

// SAFETY: an event is a handle, which the runtime lets any thread use; ours are used by one thread at a time.
unsafe impl Send for Event {}

/// Whether a stream records a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Capture {
    No,
    /// It does, or it cannot be known because another one does.
    Under,
}

type Status = c_int;

/// The runtime's functions.
#[derive(Debug)]
pub(crate) struct Api {
    path: PathBuf,
    get_device: unsafe extern "C" fn(*mut c_int) -> Status,
    set_device: unsafe extern "C" fn(c_int) -> Status,
    device_attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> Status,
    bus_id: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> Status,
    host_register: unsafe extern "C" fn(*mut c_void, usize, c_uint) -> Status,
    host_unregister: unsafe extern "C" fn(*mut c_void) -> Status,
    memcpy_async: unsafe extern "C" fn(*mut c_void, *const c_void, usize, c_int, *mut c_void) -> Status,
    stream_synchronize: unsafe extern "C" fn(*mut c_void) -> Status,
    stream_is_capturing: unsafe extern "C" fn(*mut c_void, *mut c_int) -> Status,
    event_create: unsafe extern "C" fn(*mut *mut c_void, c_uint) -> Status,
    event_record: unsafe extern "C" fn(*mut c_void, *mut c_void) -> Status,
    event_query: unsafe extern "C" fn(*mut c_void) -> Status,
    exchange_capture_mode: unsafe extern "C" fn(*mut c_int) -> Status,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    last_error: unsafe extern "C" fn() -> Status,
}

/// What was found, once something was. Never freed. Not a OnceLock: a fork in mid-initialisation would leave one that hangs
/// the child.
static FOUND: AtomicPtr<Api> = AtomicPtr::new(null_mut());

impl Api {
    /// The runtime of this process.
    ///
    /// # Errors
    /// [`CudaError::NotLoaded`]: there is none yet. [`CudaError::MissingFunction`]: it is another one.
    pub(crate) fn find() -> Result<&'static Self, CudaError> {
        // ORDER Acquire: pairs with the store below; the table is whole.
        let mut found = FOUND.load(Ordering::Acquire);
        if found.is_null() {
            found = Box::into_raw(Box::new(Self::load()?));
            // ORDER Release: as above. Of two that come at once the later counts, and the other stays for good.
            FOUND.store(found, Ordering::Release);
        }
        // SAFETY: it points to a leaked box, which nobody changes or frees.
        Ok(unsafe { &*found })
    }

    fn load() -> Result<Self, CudaError> {
        let (path, library) = Library::find()?;
        let function = |name: &'static CStr| {
            library.symbol(name).ok_or_else(|| CudaError::MissingFunction {
                path: path.display().to_string(),
                name: name.to_string_lossy().into_owned(),
            })
        };
        /// # Safety
        /// `at` is a function of that type.
        unsafe fn typed<F: Copy>(at: NonNull<c_void>) -> F {
            const { assert!(size_of::<F>() == size_of::<NonNull<c_void>>()) };
            // SAFETY: the caller's promise; sizes are equal by the assertion.
            unsafe { std::mem::transmute_copy(&at) }
        }
        macro_rules! functions {
            ($($field:ident = $name:literal),* $(,)?) => {
                Self {
                    // SAFETY: a function of this name in the CUDA runtime, version 11 or later, has the type of the field.
                    $($field: unsafe { typed(function($name)?) },)*
                    path: path.clone(),
                }
            };
        }
        Ok(functions! {
            get_device = c"cudaGetDevice",
            set_device = c"cudaSetDevice",
            device_attribute = c"cudaDeviceGetAttribute",
            bus_id = c"cudaDeviceGetPCIBusId",
            host_register = c"cudaHostRegister",
            host_unregister = c"cudaHostUnregister",
            memcpy_async = c"cudaMemcpyAsync",
            stream_synchronize = c"cudaStreamSynchronize",
            stream_is_capturing = c"cudaStreamIsCapturing",
            event_create = c"cudaEventCreateWithFlags",
            event_record = c"cudaEventRecord",
            event_query = c"cudaEventQuery",
            exchange_capture_mode = c"cudaThreadExchangeStreamCaptureMode",
            error_string = c"cudaGetErrorString",
            last_error = c"cudaGetLastError",
        })
    }

    /// Where it was found.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// `Ok` if `status` is success. Otherwise the error, which the program's next call does not find any more.
    fn check(&self, call: &'static str, status: Status) -> Result<(), CudaError> {
        if status == SUCCESS {
            return Ok(());
        }
        self.forget_error();
        // SAFETY: it takes any number.
        let text = unsafe { (self.error_string)(status) };
        let text = if text.is_null() {
            "unknown error".to_owned()
        } else {
            // SAFETY: the runtime answers with a string that lives as long as it does.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        Err(CudaError::Call { call, code: status, text })
    }

    fn forget_error(&self) {
        // SAFETY: it takes nothing and changes only what this thread's next call of it would say.
        unsafe { (self.last_error)() };
    }

    /// This thread's device.
    pub(crate) fn current_device(&self) -> Result<i32, CudaError> {
        let mut device = 0;
        // SAFETY: there is room for one number.
        let status = unsafe { (self.get_device)(&raw mut device) };
        self.check("cudaGetDevice", status).map(|()| device)
    }

    fn select(&self, device: i32) -> Result<(), CudaError> {
        // SAFETY: it takes any number.
        let status = unsafe { (self.set_device)(device) };
        self.check("cudaSetDevice", status)
    }

    /// Whether this device can register memory that is mapped read-only.
    pub(super) fn registers_read_only(&self, device: i32) -> Result<bool, CudaError> {
        let mut value = 0;
        // SAFETY: there is room for one number.
        let status = unsafe { (self.device_attribute)(&raw mut value, READ_ONLY_SUPPORTED, device) };
        self.check("cudaDeviceGetAttribute", status).map(|()| value != 0)
    }

    /// The device's place on the PCI bus, such as `0000:3b:00.0`.
    pub(crate) fn pci_bus_id(&self, device: i32) -> Result<String, CudaError> {
        let mut text = [0_u8; 32];
        // SAFETY: there is room for as many bytes as it is told.
        let status = unsafe { (self.bus_id)(text.as_mut_ptr().cast(), text.len() as c_int, device) };
        self.check("cudaDeviceGetPCIBusId", status)?;
        let text = CStr::from_bytes_until_nul(&text).unwrap_or_default();
        Ok(text.to_string_lossy().to_ascii_lowercase())
    }

    /// Registers memory: pins its pages, and tells every device of the process where they are.
    ///
    /// # Safety
    /// The memory stays mapped until it is unregistered; if not `read_only`, it is mapped writable.
    pub(super) unsafe fn register(&self, base: NonNull<u8>, len: usize, read_only: bool) -> Result<(), CudaError> {
        let flags = if read_only { PORTABLE | READ_ONLY } else { PORTABLE };
        // SAFETY: the caller's promise.
        let status = unsafe { (self.host_register)(base.as_ptr().cast(), len, flags) };
        self.check("cudaHostRegister", status)
    }

    /// Undoes [`register`](Self::register).
    ///
    /// # Safety
    /// It was registered, is still mapped, and no copy reads it any more.
    pub(super) unsafe fn unregister(&self, base: NonNull<u8>) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        let status = unsafe { (self.host_unregister)(base.as_ptr().cast()) };
        if status == NOT_REGISTERED {
            // The device was reset meanwhile: as good.
            self.forget_error();
            return Ok(());
        }
        self.check("cudaHostUnregister", status)
    }

    /// Begins a copy to the device; the device of the stream is the current one.
    ///
    /// # Safety
    /// S1 `from` leads to `len` bytes that stay as they are until the stream is past the copy. S2 `to` is the address of
    /// `len` bytes in the memory of the stream's device, of the caller's alone until then.
    pub(super) unsafe fn copy(
        &self,
        to: usize,
        from: NonNull<u8>,
        len: usize,
        stream: Stream,
    ) -> Result<(), CudaError> {
        let to = std::ptr::with_exposed_provenance_mut(to);
        // SAFETY: S1, S2; the stream is one by the contract of its type.
        let status = unsafe { (self.memcpy_async)(to, from.as_ptr().cast(), len, HOST_TO_DEVICE, stream.pointer()) };
        self.check("cudaMemcpyAsync", status)
    }

    /// Waits until the stream has nothing left to do.
    pub(super) fn wait_for(&self, stream: Stream) -> Result<(), CudaError> {
        // SAFETY: the stream is one by the contract of its type.
        let status = unsafe { (self.stream_synchronize)(stream.pointer()) };
        self.check("cudaStreamSynchronize", status)
    }

    /// Whether a graph is being recorded on the stream.
    pub(super) fn capture(&self, stream: Stream) -> Result<Capture, CudaError> {
        let mut state = 0;
        // SAFETY: the stream is one by the contract of its type; there is room for one number.
        let status = unsafe { (self.stream_is_capturing)(stream.pointer(), &raw mut state) };
        if status == CAPTURE_IMPLICIT {
            self.forget_error();
            return Ok(Capture::Under);
        }
        self.check("cudaStreamIsCapturing", status)?;
        Ok(if state == 0 { Capture::No } else { Capture::Under })
    }

    /// A new event of `device`, which is the current one.
    pub(super) fn new_event(&self, device: i32) -> Result<Event, CudaError> {
        let mut handle = null_mut();
        // SAFETY: there is room for one handle.
        let status = unsafe { (self.event_create)(&raw mut handle, NO_TIMING) };
        self.check("cudaEventCreateWithFlags", status)?;
        let call = "cudaEventCreateWithFlags";
        let handle = NonNull::new(handle).ok_or(CudaError::Call { call, code: 0, text: "no event".to_owned() })?;
        Ok(Event { device, handle })
    }

    /// The event is done when the stream is past what it was given so far.
    pub(super) fn record(&self, event: &Event, stream: Stream) -> Result<(), CudaError> {
        // SAFETY: the event was made by `new_event`, the stream is one by the contract of its type.
        let status = unsafe { (self.event_record)(event.handle.as_ptr(), stream.pointer()) };
        self.check("cudaEventRecord", status)
    }

    /// Whether the stream is past the event.
    pub(super) fn is_done(&self, event: &Event) -> Result<bool, CudaError> {
        // SAFETY: the event was made by `new_event`.
        let status = unsafe { (self.event_query)(event.handle.as_ptr()) };
        if status == NOT_READY {
            self.forget_error();
            return Ok(false);
        }
        self.check("cudaEventQuery", status).map(|()| true)
    }

    /// Makes calls of this thread no concern of captures, as `mode` says, until the answer is dropped.
    pub(super) fn aside(&self, mode: CaptureMode) -> Aside<'_> {
        let mut other = mode as c_int;
        // SAFETY: there is a number to exchange.
        let status = unsafe { (self.exchange_capture_mode)(&raw mut other) };
        Aside { api: self, before: (status == SUCCESS).then_some(other) }
    }

    /// As [`aside`](Self::aside), for the rest of the thread.
    pub(super) fn aside_for_good(&self) {
        std::mem::forget(self.aside(CaptureMode::ThreadLocal));
    }

    /// As [`on`](Self::on), for the rest of the thread.
    pub(super) fn on_for_good(&self, device: i32) -> Result<(), CudaError> {
        self.select(device)
    }

    /// Makes `device` the current one of this thread until the answer is dropped.
    pub(super) fn on(&self, device: i32) -> Result<OnDevice<'_>, CudaError> {
        let before = self.current_device()?;
        if before != device {
            self.select(device)?;
        }
        Ok(OnDevice { api: self, before, current: device })
    }
}

/// See [`Api::aside`].
pub(super) struct Aside<'a> {
    api: &'a Api,
    before: Option<c_int>,
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        if let Some(mut before) = self.before {
            // SAFETY: there is a number to exchange, which the runtime gave.
            unsafe { (self.api.exchange_capture_mode)(&raw mut before) };
        }
    }
}

/// See [`Api::on`].
pub(super) struct OnDevice<'a> {
    api: &'a Api,
    before: i32,
    current: i32,
}

impl OnDevice<'_> {
    /// Another device, until this is dropped.
    pub(super) fn switch(&mut self, device: i32) -> Result<(), CudaError> {
        if device != self.current {
            self.api.select(device)?;
            self.current = device;
        }
        Ok(())
    }
}

impl Drop for OnDevice<'_> {
    fn drop(&mut self) {
        if self.before != self.current {
            // It was the current one before; nobody could be told if it cannot be that any more.
            let _ = self.api.select(self.before);
        }
    }
}

/// A loaded library. Never closed.
struct Library(NonNull<c_void>);

impl Library {
    /// The CUDA runtime, and where it was found.
    fn find() -> Result<(PathBuf, Self), CudaError> {
        if let Some(named) = std::env::var_os("FOREBAY_CUDART").filter(|named| !named.is_empty()) {
            let path = PathBuf::from(named);
            return match Self::open(&path, 0) {
                Some(library) => Ok((path, library)),
                None => {
                    let found = format!("FOREBAY_CUDART is {}, which cannot be loaded", path.display());
                    Err(CudaError::NotLoaded { found })
                }
            };
        }
        let mapped = mapped_libraries();
        for path in mapped.iter().filter(|path| is_called(path, "libcudart.so")) {
            if let Some(library) = Self::open(path, libc::RTLD_NOLOAD) {
                return Ok((path.clone(), library));
            }
        }
        if mapped.iter().any(|path| is_called(path, "libcuda.so")) {
            for name in ["libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"] {
                if let Some(library) = Self::open(Path::new(name), 0) {
                    return Ok((name.into(), library));
                }
            }
            let found = "the driver is loaded, and no libcudart.so".to_owned();
            return Err(CudaError::NotLoaded { found });
        }
        Err(CudaError::NotLoaded { found: "no libcudart.so is mapped".to_owned() })
    }

    fn open(path: &Path, more: c_int) -> Option<Self> {
        let path = CString::new(path.as_os_str().as_bytes()).ok()?;
        // SAFETY: the path is a string. Libraries run code when they are loaded: this one is loaded already, or is the CUDA
        // runtime, by its name or by what the user said.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL | more) };
        NonNull::new(handle).map(Self)
    }

    fn symbol(&self, name: &CStr) -> Option<NonNull<c_void>> {
        // SAFETY: the library is open, the name is a string.
        NonNull::new(unsafe { libc::dlsym(self.0.as_ptr(), name.as_ptr()) })
    }
}

fn is_called(path: &Path, name: &str) -> bool {
    path.file_name().is_some_and(|file| file.as_bytes().starts_with(name.as_bytes()))
}

/// The files that are mapped into this process, each once.
fn mapped_libraries() -> Vec<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut paths: Vec<PathBuf> =
        maps.lines().filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..]))).collect();
    paths.dedup();
    paths
}

/// torch's function that says a thread's current stream, if this process has a torch with CUDA.
type CurrentStream = unsafe extern "C" fn(i32, *mut *mut c_void) -> i32;

/// When it was looked for in vain, and how long that holds.
static LOOKED: AtomicU64 = AtomicU64::new(0);
const BETWEEN_LOOKS_NS: u64 = 10_000_000;

/// torch's function, once found: torch may be imported at any time.
static TORCH: AtomicPtr<c_void> = AtomicPtr::new(null_mut());

/// torch's current stream of `device` on this thread; `None` without torch. Reads a variable of the thread: no call of CUDA,
/// and no interpreter.
///
/// To be asked only on threads that use torch, and once CUDA is in use: at its first call torch makes its streams.
#[must_use]
pub fn torch_current_stream(device: i32) -> Option<Stream> {
    // ORDER none, Relaxed: the address of a function, which is there for good.
    let mut found = TORCH.load(Ordering::Relaxed);
    if found.is_null() {
        // To look costs some µs, and importing torch takes longer than this pause.
        let now = clock::monotonic_coarse_ns();
        if now.saturating_sub(LOOKED.load(Ordering::Relaxed)) < BETWEEN_LOOKS_NS {
            return None;
        }
        let Some(here) = find_torch() else {
            LOOKED.store(now, Ordering::Relaxed);
            return None;
        };
        found = here.as_ptr();
        TORCH.store(found, Ordering::Relaxed);
    }
    // SAFETY: the function of this name in torch's library has this type, which its stable C interface promises.
    let function: CurrentStream = unsafe { std::mem::transmute(found) };
    let mut handle = null_mut();
    // SAFETY: there is room for one handle; torch turns every failure into a status.
    let status = unsafe { function(device, &raw mut handle) };
    (status == 0).then_some(Stream { device, handle: handle.expose_provenance() })
}

fn find_torch() -> Option<NonNull<c_void>> {
    let named = std::env::var_os("FOREBAY_LIBTORCH").filter(|named| !named.is_empty()).map(PathBuf::from);
    let library = Library::open(&named.unwrap_or_else(|| "libtorch_cuda.so".into()), libc::RTLD_NOLOAD)?;
    library.symbol(c"aoti_torch_get_current_cuda_stream")
}
