//! A CUDA runtime without a device, for tests: `rustc --crate-type cdylib -o libcudart.so.fake fake_cudart.rs`.
//!
//! Its devices' memory is this process's. Copies and events wait in their stream until the test lets them be done
//! (`fake_run`), and a copy then reads what is there *then*: a slot that was released early shows. It follows graph capture
//! as the real one does: a call that would spoil somebody's capture fails, spoils it, and is counted.
//!
//! What a test may call begins with `fake_`. One state for the process; `fake_reset` begins anew.

use std::{
    cell::Cell,
    collections::{HashMap, VecDeque},
    ffi::{c_char, c_int, c_void},
    sync::{Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
};

/// `cudaError_t`.
const SUCCESS: c_int = 0;
const INVALID_VALUE: c_int = 1;
const NOT_READY: c_int = 600;
const ALREADY_REGISTERED: c_int = 712;
const NOT_REGISTERED: c_int = 713;
const CAPTURE_UNSUPPORTED: c_int = 900;
const CAPTURED_EVENT: c_int = 907;

enum Work {
    Copy { to: usize, from: usize, len: usize },
    Mark { event: usize, turn: u64 },
}

#[derive(Default)]
struct Event {
    recorded: u64,
    done: u64,
    captured: bool,
}

struct Capture {
    by: ThreadId,
    spoilt: bool,
}

#[derive(Default)]
struct State {
    hold: bool,
    read_only_supported: bool,
    /// By `FAIL_*`: what the function answers instead of working, this often.
    fail: HashMap<c_int, (c_int, u32)>,
    registered: HashMap<usize, (usize, u32)>,
    streams: HashMap<usize, VecDeque<Work>>,
    captures: HashMap<usize, Capture>,
    events: Vec<Event>,
    last_error: c_int,
    counts: [i64; 16],
}

// What `fake_count` is asked for.
const REGISTERED: usize = 0;
const UNREGISTERED: usize = 1;
const COPIED: usize = 2;
/// Calls that would have spoilt a capture.
const SPOILT: usize = 3;
/// Memory unregistered while a copy out of it was to come.
const TORN: usize = 4;
/// Copies out of memory that was not registered.
const PAGEABLE: usize = 5;
const QUERIES: usize = 6;
const EVENTS: usize = 7;
const FLAGS: usize = 8;

// What `fake_fail` is told.
const FAIL_REGISTER: c_int = 0;
const FAIL_COPY: c_int = 1;
const FAIL_QUERY: c_int = 2;
const FAIL_RECORD: c_int = 3;
const FAIL_DEVICE: c_int = 4;

static STATE: Mutex<Option<State>> = Mutex::new(None);

thread_local! {
    static DEVICE: Cell<c_int> = const { Cell::new(0) };
    static MODE: Cell<c_int> = const { Cell::new(0) };
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

struct Locked(MutexGuard<'static, Option<State>>);

impl std::ops::Deref for Locked {
    type Target = State;
    fn deref(&self) -> &State {
        self.0.as_ref().unwrap()
    }
}

impl std::ops::DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut State {
        self.0.as_mut().unwrap()
    }
}

fn state() -> Locked {
    let mut guard = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    guard.get_or_insert_with(|| State { read_only_supported: true, ..State::default() });
    Locked(guard)
}

impl State {
    fn answer(&mut self, status: c_int) -> c_int {
        if status != SUCCESS {
            self.last_error = status;
        }
        status
    }

    fn failing(&mut self, which: c_int) -> Option<c_int> {
        let (code, times) = self.fail.get_mut(&which)?;
        if *times == 0 {
            return None;
        }
        *times -= 1;
        Some(*code)
    }

    /// A call that spoils captures, unless the calling thread said that it is no concern of them.
    fn is_unsafe(&mut self) -> bool {
        let (mode, me) = (MODE.get(), thread::current().id());
        let mut spoils = false;
        for capture in self.captures.values_mut() {
            if mode == 0 || mode == 1 && capture.by == me {
                capture.spoilt = true;
                spoils = true;
            }
        }
        self.counts[SPOILT] += i64::from(spoils);
        spoils
    }

    fn is_registered(&self, at: usize) -> bool {
        self.registered.iter().any(|(&start, &(len, _))| (start..start + len).contains(&at))
    }

    fn push(&mut self, stream: usize, work: Work) {
        self.streams.entry(stream).or_default().push_back(work);
        if !self.hold {
            self.run(stream, i64::MAX);
        }
    }

    fn run(&mut self, stream: usize, most: i64) -> i64 {
        let mut done = 0;
        while done < most {
            let Some(work) = self.streams.get_mut(&stream).and_then(VecDeque::pop_front) else { break };
            match work {
                Work::Copy { to, from, len } => {
                    // SAFETY: what the test's program gave to `cudaMemcpyAsync`; that it is still there is what is tested.
                    unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, len) };
                    self.counts[COPIED] += 1;
                }
                Work::Mark { event, turn } => self.events[event - 1].done = turn,
            }
            done += 1;
        }
        done
    }
}

// === what a test calls ===

#[unsafe(no_mangle)]
pub extern "C" fn fake_reset() {
    *STATE.lock().unwrap_or_else(PoisonError::into_inner) = None;
    drop(state());
}

/// Work waits for `fake_run` from now on, or is done at once.
#[unsafe(no_mangle)]
pub extern "C" fn fake_hold(on: c_int) {
    let mut state = state();
    state.hold = on != 0;
    if on == 0 {
        let streams: Vec<usize> = state.streams.keys().copied().collect();
        for stream in streams {
            state.run(stream, i64::MAX);
        }
    }
}

/// Lets a stream do the next `most` things; how many there were.
#[unsafe(no_mangle)]
pub extern "C" fn fake_run(stream: usize, most: i64) -> i64 {
    state().run(stream, most)
}

#[unsafe(no_mangle)]
pub extern "C" fn fake_waiting(stream: usize) -> i64 {
    state().streams.get(&stream).map_or(0, |work| work.len() as i64)
}

#[unsafe(no_mangle)]
pub extern "C" fn fake_fail(which: c_int, code: c_int, times: u32) {
    state().fail.insert(which, (code, times));
}

#[unsafe(no_mangle)]
pub extern "C" fn fake_read_only(supported: c_int) {
    state().read_only_supported = supported != 0;
}

#[unsafe(no_mangle)]
pub extern "C" fn fake_count(which: usize) -> i64 {
    let state = state();
    match which {
        REGISTERED => state.registered.len() as i64,
        EVENTS => state.events.len() as i64,
        _ => state.counts.get(which).copied().unwrap_or(-1),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn fake_begin_capture(stream: usize) {
    state().captures.insert(stream, Capture { by: thread::current().id(), spoilt: false });
}

/// 1 if the graph came to be, 0 if somebody spoilt it.
#[unsafe(no_mangle)]
pub extern "C" fn fake_end_capture(stream: usize) -> c_int {
    let capture = state().captures.remove(&stream);
    c_int::from(capture.is_some_and(|capture| !capture.spoilt))
}

/// Memory of a device.
#[unsafe(no_mangle)]
pub extern "C" fn fake_alloc(len: usize) -> usize {
    Box::leak(vec![0_u8; len].into_boxed_slice()).as_mut_ptr() as usize
}

/// What `aoti_torch_get_current_cuda_stream` answers on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn fake_set_current_stream(stream: usize) {
    CURRENT.set(stream);
}

// === the runtime ===

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaGetDevice(device: *mut c_int) -> c_int {
    let mut state = state();
    if let Some(code) = state.failing(FAIL_DEVICE) {
        return state.answer(code);
    }
    // SAFETY: the runtime's contract.
    unsafe { *device = DEVICE.get() };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cudaSetDevice(device: c_int) -> c_int {
    if !(0..4).contains(&device) {
        return state().answer(101);
    }
    DEVICE.set(device);
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaDeviceGetAttribute(value: *mut c_int, which: c_int, device: c_int) -> c_int {
    let mut state = state();
    if !(0..4).contains(&device) {
        return state.answer(101);
    }
    // SAFETY: the runtime's contract.
    unsafe { *value = c_int::from(which == 113 && state.read_only_supported) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaDeviceGetPCIBusId(text: *mut c_char, len: c_int, device: c_int) -> c_int {
    let name = format!("0000:{device:02X}:00.0\0");
    if name.len() > len as usize {
        return INVALID_VALUE;
    }
    // SAFETY: the runtime's contract.
    unsafe { std::ptr::copy_nonoverlapping(name.as_ptr().cast(), text, name.len()) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cudaHostRegister(at: *mut c_void, len: usize, flags: u32) -> c_int {
    let mut state = state();
    if let Some(code) = state.failing(FAIL_REGISTER) {
        return state.answer(code);
    }
    if state.is_unsafe() {
        return state.answer(CAPTURE_UNSUPPORTED);
    }
    let at = at as usize;
    if at % 4096 != 0 || len == 0 {
        return state.answer(INVALID_VALUE);
    }
    if state.is_registered(at) {
        return state.answer(ALREADY_REGISTERED);
    }
    state.registered.insert(at, (len, flags));
    state.counts[FLAGS] = i64::from(flags);
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cudaHostUnregister(at: *mut c_void) -> c_int {
    let mut state = state();
    let at = at as usize;
    let Some((len, _)) = state.registered.remove(&at) else { return state.answer(NOT_REGISTERED) };
    let reads = |work: &Work| matches!(work, Work::Copy { from, .. } if (at..at + len).contains(from));
    let torn = state.streams.values().flatten().filter(|work| reads(work)).count();
    state.counts[TORN] += torn as i64;
    state.counts[UNREGISTERED] += 1;
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cudaMemcpyAsync(
    to: *mut c_void,
    from: *const c_void,
    len: usize,
    _kind: c_int,
    stream: *mut c_void,
) -> c_int {
    let mut state = state();
    if let Some(code) = state.failing(FAIL_COPY) {
        return state.answer(code);
    }
    let (to, from, stream) = (to as usize, from as usize, stream as usize);
    if state.captures.contains_key(&stream) {
        return state.answer(CAPTURE_UNSUPPORTED);
    }
    if !state.is_registered(from) {
        state.counts[PAGEABLE] += 1;
    }
    state.push(stream, Work::Copy { to, from, len });
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cudaStreamSynchronize(stream: *mut c_void) -> c_int {
    let mut state = state();
    if state.is_unsafe() {
        return state.answer(CAPTURE_UNSUPPORTED);
    }
    state.run(stream as usize, i64::MAX);
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaStreamIsCapturing(stream: *mut c_void, status: *mut c_int) -> c_int {
    let captures = state().captures.contains_key(&(stream as usize));
    // SAFETY: the runtime's contract.
    unsafe { *status = c_int::from(captures) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaEventCreateWithFlags(event: *mut *mut c_void, _flags: u32) -> c_int {
    let mut state = state();
    state.events.push(Event::default());
    let handle = state.events.len();
    // SAFETY: the runtime's contract.
    unsafe { *event = handle as *mut c_void };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cudaEventRecord(event: *mut c_void, stream: *mut c_void) -> c_int {
    let mut state = state();
    if let Some(code) = state.failing(FAIL_RECORD) {
        return state.answer(code);
    }
    let (event, stream) = (event as usize, stream as usize);
    let captured = state.captures.contains_key(&stream);
    let Some(own) = state.events.get_mut(event.wrapping_sub(1)) else { return state.answer(INVALID_VALUE) };
    own.captured = captured;
    own.recorded += 1;
    let turn = own.recorded;
    if !captured {
        state.push(stream, Work::Mark { event, turn });
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cudaEventQuery(event: *mut c_void) -> c_int {
    let mut state = state();
    state.counts[QUERIES] += 1;
    if let Some(code) = state.failing(FAIL_QUERY) {
        return state.answer(code);
    }
    if state.is_unsafe() {
        return state.answer(CAPTURE_UNSUPPORTED);
    }
    let Some(own) = state.events.get((event as usize).wrapping_sub(1)) else { return state.answer(INVALID_VALUE) };
    let status = match own {
        Event { captured: true, .. } => CAPTURED_EVENT,
        Event { recorded, done, .. } if recorded == done => SUCCESS,
        _ => NOT_READY,
    };
    state.answer(status)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaThreadExchangeStreamCaptureMode(mode: *mut c_int) -> c_int {
    // SAFETY: the runtime's contract.
    unsafe { *mode = MODE.replace(*mode) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cudaGetErrorString(_code: c_int) -> *const c_char {
    c"a fake error".as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn cudaGetLastError() -> c_int {
    std::mem::take(&mut state().last_error)
}

// === torch's part ===

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aoti_torch_get_current_cuda_stream(_device: i32, stream: *mut *mut c_void) -> i32 {
    // SAFETY: torch's contract.
    unsafe { *stream = CURRENT.get() as *mut c_void };
    0
}
