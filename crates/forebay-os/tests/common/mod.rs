//! Children made by real forks, directories that clean up after themselves, waiting under a watchdog.
//!
//! A closure given to [`Child::fork`] is dropped in the parent as well: what it is to drop in the child
//! alone, it takes out of an `Option`.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it, none exports it")]

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay_os::Dir;

/// No test waits longer for anything.
pub const WATCHDOG: Duration = Duration::from_secs(30);

pub fn deadline() -> Option<Instant> {
    Some(Instant::now() + WATCHDOG)
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Exited(i32),
    Signalled(i32),
}

/// A forked child; killed and reaped when dropped.
pub struct Child {
    pub pid: libc::pid_t,
    ended: Option<End>,
}

impl Child {
    /// Runs `f` in a forked child and lets it exit with 0, or with 101 if `f` panicked.
    pub fn fork(f: impl FnOnce()) -> Self {
        // SAFETY: the child runs test code on its only thread and leaves by _exit.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            run(f);
        }
        Self { pid, ended: None }
    }

    /// As `fork`, by the bare system call: no atfork handler runs.
    pub fn raw_clone(f: impl FnOnce()) -> Self {
        // SAFETY: as `fork`; flags of a plain fork, no new stack, no thread-id addresses.
        let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        assert!(pid >= 0, "clone: {}", std::io::Error::last_os_error());
        if pid == 0 {
            run(f);
        }
        Self { pid: pid as libc::pid_t, ended: None }
    }

    pub fn signal(&self, signal: i32) {
        assert!(self.ended.is_none());
        // SAFETY: the child is not reaped yet, so the pid is its own.
        unsafe { libc::kill(self.pid, signal) };
    }

    /// Waits for its end; the child's own alarm is the watchdog.
    pub fn wait(&mut self) -> End {
        if let Some(end) = self.ended {
            return end;
        }
        let mut status = 0;
        // SAFETY: our own child, not reaped yet.
        while unsafe { libc::waitpid(self.pid, &raw mut status, 0) } != self.pid {}
        let end = if libc::WIFSIGNALED(status) {
            End::Signalled(libc::WTERMSIG(status))
        } else {
            End::Exited(libc::WEXITSTATUS(status))
        };
        self.ended = Some(end);
        end
    }

    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        assert_eq!(self.wait(), End::Signalled(libc::SIGKILL));
    }

    pub fn succeed(&mut self) {
        assert_eq!(self.wait(), End::Exited(0), "the child's message is above");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.signal(libc::SIGKILL);
            self.wait();
        }
    }
}

fn run(f: impl FnOnce()) -> ! {
    // The harness would keep a child's message in the child's memory.
    std::panic::set_hook(Box::new(|info| {
        let text = format!("in the child: {info}\n");
        let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
    }));
    // SAFETY: nothing but a timer; SIGALRM ends this process if the test hangs.
    unsafe { libc::alarm(WATCHDOG.as_secs() as u32) };
    // SAFETY: asks for SIGKILL when the forking thread ends; changes no memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let code = if catch_unwind(AssertUnwindSafe(f)).is_ok() { 0 } else { 101 };
    // SAFETY: leaves without running the parent's exit handlers.
    unsafe { libc::_exit(code) }
}

/// Sleeps until killed.
pub fn forever() -> ! {
    loop {
        std::thread::sleep(WATCHDOG);
    }
}

/// One byte from one process to another: "I am there".
pub struct Flag(OwnedFd, OwnedFd);

impl Flag {
    pub fn new() -> Self {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        Self(read, write)
    }

    pub fn writer(&self) -> std::os::fd::BorrowedFd<'_> {
        self.1.as_fd()
    }

    pub fn raise(&self) {
        while rustix::io::write(&self.1, b"!").is_err_and(|e| e == rustix::io::Errno::INTR) {}
    }

    /// Whether it is raised, or will be within `span`.
    pub fn take_within(&self, span: Duration) -> bool {
        use forebay_os::poll::{Events, poll_one};
        let ready = poll_one(self.0.as_fd(), Events::READ, Some(span)).unwrap();
        ready.contains(Events::READ) && rustix::io::read(&self.0, &mut [0_u8; 1][..]).unwrap() == 1
    }

    pub fn wait(&self) {
        use forebay_os::poll::{Events, poll_one};
        let ready = poll_one(self.0.as_fd(), Events::READ, Some(WATCHDOG)).unwrap();
        assert!(ready.contains(Events::READ), "nobody raised the flag");
        rustix::io::read(&self.0, &mut [0_u8; 1][..]).unwrap();
    }
}

/// Asks again and again until `f` says yes; returns how long it took.
pub fn until(what: &str, mut f: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !f() {
        assert!(start.elapsed() < WATCHDOG, "{what} did not happen");
        std::thread::yield_now();
    }
    start.elapsed()
}

/// A directory of one test, removed with everything in it.
pub struct Place(pub PathBuf);

impl Place {
    pub fn new() -> Self {
        let name = format!("forebay-os-test-{:032x}", forebay_os::process::random_u128());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn dir(&self) -> Dir {
        Dir::open(Some(&self.0.join("d"))).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
