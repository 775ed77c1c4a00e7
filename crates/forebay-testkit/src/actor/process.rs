//! What an actor does to its own process.
#![allow(unsafe_code, reason = "fork, signals and raw descriptors are what these tests are about")]

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    os::{fd::AsRawFd, unix::fs::FileExt, unix::net::UnixStream},
    sync::Mutex,
};

/// No actor outlives a hanging test by much.
const LIFETIME_S: u32 = 120;

/// Ends this process by SIGALRM if it outlives every test.
pub(super) fn set_watchdog() {
    // SAFETY: sets a timer and nothing else.
    unsafe { libc::alarm(LIFETIME_S) };
}

/// Leaves without dropping anything or running a handler.
pub(super) fn exit_at_once() -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) }
}

/// Stops this process until it gets SIGCONT.
pub(super) fn stop() {
    // SAFETY: changes no memory.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// Closes every descriptor but stdin, stdout and stderr, whoever owns it.
pub(super) fn close_everything() {
    // SAFETY: handles that own these descriptors are never dropped after this: the actor is killed, or exits at once.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
}

/// Files and sockets under numbers that were others' before. Never dropped.
static OWN: Mutex<Vec<(File, UnixStream, UnixStream)>> = Mutex::new(Vec::new());
const MINE: &[u8] = b"mine";

/// Closes every descriptor, and takes their numbers for files and sockets.
pub(super) fn usurp() {
    close_everything();
    let dir = std::env::var_os("FOREBAY_DIR").expect("a test names its place");
    let mut own = OWN.lock().unwrap();
    for n in 0..40 {
        let path = std::path::Path::new(&dir).join(format!("own-{}-{n}", std::process::id()));
        let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(MINE).unwrap();
        let (one, other) = UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        other.set_nonblocking(true).unwrap();
        own.push((file, one, other));
    }
    assert_eq!(own[0].0.as_raw_fd(), 3, "the old numbers are taken");
}

/// Whether what [`usurp`] opened is as it was.
pub(super) fn own_are_whole() -> bool {
    let quiet =
        |mut socket: &UnixStream| matches!(socket.read(&mut [0; 1]), Err(e) if e.kind() == ErrorKind::WouldBlock);
    OWN.lock().unwrap().iter().all(|(file, one, other)| {
        let mut found = [0; 16];
        matches!(file.read_at(&mut found, 0), Ok(n) if &found[..n] == MINE) && quiet(one) && quiet(other)
    })
}

/// Lowers the number of descriptors that this process may have.
pub(super) fn limit_descriptors(most: u64) {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: 4096 };
    // SAFETY: `limit` is a valid rlimit for the length of the call.
    let rc = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(rc, 0, "setrlimit: {}", std::io::Error::last_os_error());
}

/// Descriptors this process has.
pub(super) fn descriptors() -> u64 {
    std::fs::read_dir("/proc/self/fd").map_or(0, |fds| fds.count() as u64 - 1)
}

/// Forks; `work` runs in the child, which then stays until it is killed. Returns the child's pid.
pub(super) fn fork_and_stay(work: impl FnOnce()) -> u32 {
    // SAFETY: the child runs on its only thread; glibc keeps its allocator usable there.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid != 0 {
        return pid as u32;
    }
    set_watchdog();
    // A panic in the child must not run on into the parent's code.
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
        super::say("child panicked");
    }
    loop {
        // SAFETY: sleeps until a signal comes.
        unsafe { libc::pause() };
    }
}

/// Forks past the handlers that close what a child may not have: it keeps every descriptor until it is killed.
pub(super) fn fork_unnoticed() -> u32 {
    // SAFETY: the child calls nothing but `pause`.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    if pid != 0 {
        return u32::try_from(pid).unwrap_or_else(|_| panic!("clone: {}", std::io::Error::last_os_error()));
    }
    set_watchdog();
    loop {
        // SAFETY: sleeps until a signal comes.
        unsafe { libc::pause() };
    }
}

/// Whether reading a byte at `address` is a fault, found out by a child of this process that does it.
pub(super) fn is_fault(address: usize) -> bool {
    // SAFETY: as in `fork_and_stay`; the child reads one byte and leaves.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: no core file of a fault that is meant to happen.
        unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
        // SAFETY: it is no memory of ours if the wall stands, and then the child ends here; otherwise it is readable.
        let byte = unsafe { std::ptr::read_volatile(std::ptr::with_exposed_provenance::<u8>(address)) };
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(byte == 1)) };
    }
    let mut status = 0;
    // SAFETY: our own child; `status` is valid for the call.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    libc::WIFSIGNALED(status) && matches!(libc::WTERMSIG(status), libc::SIGSEGV | libc::SIGBUS)
}
