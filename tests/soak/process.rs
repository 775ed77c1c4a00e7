//! Forking, killing and reaping. The supervisor has one thread, which is what makes fork without exec sound.
#![allow(unsafe_code, reason = "fork, signals and timers are what a kill soak is made of")]

use std::{io, mem::MaybeUninit, ptr, time::Duration};

/// Gives freed memory back: what a supervisor has mapped, every fork copies the tables of and every death tears down.
pub(crate) fn slim() {
    // SAFETY: looks at the C library's own free lists.
    unsafe { libc::malloc_trim(0) };
}

/// CLOCK_MONOTONIC in ns.
pub(crate) fn now() -> u64 {
    forebay_os::clock::monotonic_ns()
}

/// Forks; `work` runs in the child, which ends with what it returns. Returns the child's pid.
///
/// The caller has one thread. A panic of `work` ends the child with 101.
pub(crate) fn fork(work: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: the calling process has no other thread that could hold a lock in the child.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid > 0 {
        return Ok(pid);
    }
    let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(101);
    exit(code)
}

/// Leaves at once.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: ends the process; nothing of the parent's is run or flushed.
    unsafe { libc::_exit(code) }
}

/// This process is killed when its parent dies.
pub(crate) fn die_with_parent() {
    // SAFETY: sets an attribute of this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// Orphans among the descendants of this process become its children.
pub(crate) fn adopt_orphans() {
    // SAFETY: sets an attribute of this process.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
}

/// Ends this process by SIGALRM after `seconds`, whatever happens.
pub(crate) fn watchdog(seconds: u32) {
    // SAFETY: sets a timer and nothing else.
    unsafe { libc::alarm(seconds) };
}

/// Sleeps until a signal ends this process.
pub(crate) fn pause() -> ! {
    loop {
        // SAFETY: sleeps until a signal comes.
        unsafe { libc::pause() };
    }
}

/// Sends a signal to a process that this one, or one of its children, started and that is not reaped.
pub(crate) fn kill(pid: i32, signal: i32) {
    assert!(pid > 1, "a soak signals its own victims only");
    // SAFETY: changes no memory of this process.
    unsafe { libc::kill(pid, signal) };
}

/// What became of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Stopped,
    Killed(i32),
    Left(i32),
}

/// The next child that stopped or ended, if one did.
pub(crate) fn next_change() -> Option<(i32, Change)> {
    let mut status = 0;
    // SAFETY: `status` is valid for the call; only children of this process are concerned.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::WUNTRACED) };
    if pid <= 0 {
        return None;
    }
    let change = if libc::WIFSTOPPED(status) {
        Change::Stopped
    } else if libc::WIFSIGNALED(status) {
        Change::Killed(libc::WTERMSIG(status))
    } else {
        Change::Left(libc::WEXITSTATUS(status))
    };
    Some((pid, change))
}

fn child_signal() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: initialises the set it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: the set was initialised above.
    unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD) };
    // SAFETY: initialised above.
    unsafe { set.assume_init() }
}

/// SIGCHLD waits until it is asked for.
pub(crate) fn block_child_signal() {
    let set = child_signal();
    // SAFETY: the set is initialised; the old one is not wanted.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
}

/// Undoes [`block_child_signal`].
pub(crate) fn unblock_child_signal() {
    let set = child_signal();
    // SAFETY: as above.
    unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut()) };
}

/// Waits until a child changed, at most `timeout`.
pub(crate) fn wait_for_child(timeout: Duration) {
    let set = child_signal();
    let limit = libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
    };
    // SAFETY: both are valid for the call; the signal's description is not wanted.
    unsafe { libc::sigtimedwait(&raw const set, ptr::null_mut(), &raw const limit) };
}

/// A timer that sends this process a signal that it cannot catch.
#[derive(Debug)]
pub(crate) struct Timer(libc::timer_t);

impl Timer {
    pub(crate) fn new(signal: i32) -> io::Result<Self> {
        let mut timer = ptr::null_mut();
        // SAFETY: all zero is a valid sigevent.
        let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = signal;
        // SAFETY: both pointers are valid for the call.
        let rc = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
        if rc == 0 { Ok(Self(timer)) } else { Err(io::Error::last_os_error()) }
    }

    /// Goes off once, at `at` on the clock of [`now`].
    pub(crate) fn arm(&self, at: u64) {
        // SAFETY: all zero is a valid itimerspec.
        let mut spec: libc::itimerspec = unsafe { MaybeUninit::zeroed().assume_init() };
        spec.it_value.tv_sec = (at / 1_000_000_000) as libc::time_t;
        spec.it_value.tv_nsec = (at % 1_000_000_000) as libc::c_long;
        // SAFETY: the timer was created and is never deleted; `spec` is valid for the call.
        let rc = unsafe { libc::timer_settime(self.0, libc::TIMER_ABSTIME, &raw const spec, ptr::null_mut()) };
        assert_eq!(rc, 0, "timer_settime: {}", io::Error::last_os_error());
    }
}

/// Moves the next child of this process into a PID namespace of its own, where it is process 1.
#[derive(Debug)]
pub(crate) struct Namespaces {
    own: std::fs::File,
}

impl Namespaces {
    /// `None` where that is not allowed.
    pub(crate) fn new() -> Option<Self> {
        let this = Self { own: std::fs::File::open("/proc/self/ns/pid").ok()? };
        let allowed = this.enter();
        this.leave();
        allowed.then_some(this)
    }

    /// The next child is in a new namespace.
    pub(crate) fn enter(&self) -> bool {
        // SAFETY: concerns children that are yet to be made.
        unsafe { libc::unshare(libc::CLONE_NEWPID) == 0 }
    }

    /// Further children are in this process's own again.
    pub(crate) fn leave(&self) {
        use std::os::fd::AsRawFd;
        // SAFETY: the descriptor is open for the call.
        unsafe { libc::setns(self.own.as_raw_fd(), libc::CLONE_NEWPID) };
    }
}

/// A small generator, the same for the same seed.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// 0 to `n` − 1.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// True once in `n`.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// From `low` to `high`, small ones as likely as large ones.
    pub(crate) fn scale_free(&mut self, low: u64, high: u64) -> u64 {
        let (low, high) = (low.max(1) as f64, high.max(2) as f64);
        let share = self.below(1 << 20) as f64 / (1 << 20) as f64;
        (low * (high / low).powf(share)) as u64
    }
}

/// Spins until `at`.
pub(crate) fn spin_until(at: u64) {
    while now() < at {
        std::hint::spin_loop();
    }
}
