//! What surrounds an operation: the marks between which faults happen, limits and signal storms, and what of this
//! process and of the host must be afterwards as it was before.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use forebay_testkit::audit;

/// As in the tracer: which of the real-time signals.
const BEGIN: i32 = 1;
const END: i32 = 2;
pub(crate) const DONE: i32 = 3;

/// Tells whoever traces this process where it is. Everybody else does not notice: the signals are ignored.
pub(crate) fn mark(which: i32) {
    // SAFETY: a signal that `ignore_marks` has made harmless.
    unsafe { libc::raise(libc::SIGRTMIN() + which) };
}

/// To be called once, before the first mark.
pub(crate) fn ignore_marks() {
    for which in [BEGIN, END, DONE] {
        // SAFETY: ignoring a signal that nothing here uses otherwise.
        unsafe { libc::signal(libc::SIGRTMIN() + which, libc::SIG_IGN) };
    }
}

/// What makes the operation hard, apart from what a tracer does to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    None,
    /// So many descriptors are free.
    Free(u64),
    /// A signal whose handler does not restart calls, a few thousand times a second.
    Storm,
}

impl Limit {
    pub(crate) fn parse(text: &str) -> Self {
        match text.trim().strip_prefix("free=") {
            Some(n) => Self::Free(n.parse().unwrap()),
            None => {
                assert_eq!(text.trim(), "storm");
                Self::Storm
            }
        }
    }
}

/// How a round ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    kind: &'static str,
    elapsed: Duration,
    pub(crate) left: Vec<String>,
    pub(crate) leaked: Vec<String>,
    text: String,
}

impl Outcome {
    pub(crate) fn panicked(&mut self, why: &str) {
        self.kind = "panic";
        self.text = why.to_owned();
    }

    pub(crate) fn line(&self) -> String {
        let flat = |text: &str| text.replace(['\n', '\t'], " ");
        let (left, leaked) = (flat(&self.left.join(", ")), flat(&self.leaked.join(", ")));
        format!("{}\t{}\t{left}\t{leaked}\t{}", self.kind, self.elapsed.as_millis(), flat(&self.text))
    }
}

/// One round of one operation.
#[derive(Debug)]
pub(crate) struct Stage {
    limit: Limit,
    /// The soft limit on descriptors to go back to.
    before: Option<libc::rlimit>,
    error: Option<String>,
    elapsed: Duration,
    left: Vec<String>,
}

impl Stage {
    pub(crate) fn new(limit: Limit) -> Self {
        Self { limit, before: None, error: None, elapsed: Duration::ZERO, left: Vec::new() }
    }

    /// Runs the operation under test: faults happen in here and nowhere else. `None` if it failed, in which case
    /// nothing of it may be left.
    pub(crate) fn faulty<T>(&mut self, work: impl FnOnce() -> Result<T, String>) -> Option<T> {
        let before = Snapshot::take();
        let done = self.changing(work);
        if done.is_none() {
            self.left = before.until_no_more();
        }
        done
    }

    /// As [`faulty`](Self::faulty), for what is half done when it fails, and may be.
    pub(crate) fn changing<T>(&mut self, work: impl FnOnce() -> Result<T, String>) -> Option<T> {
        self.impose();
        let start = Instant::now();
        mark(BEGIN);
        let done = work();
        mark(END);
        self.elapsed = start.elapsed();
        self.lift();
        match done {
            Ok(made) => Some(made),
            Err(error) => {
                self.error = Some(error);
                None
            }
        }
    }

    fn impose(&mut self) {
        match self.limit {
            Limit::None => {}
            Limit::Free(free) => {
                let now = limit_on_descriptors();
                self.before = Some(now);
                set_limit(libc::rlimit { rlim_cur: number_with(free), ..now });
            }
            Limit::Storm => storm(Duration::from_micros(300)),
        }
    }

    /// Takes limits and storms away.
    pub(crate) fn lift(&mut self) {
        if let Some(before) = self.before.take() {
            set_limit(before);
        }
        if self.limit == Limit::Storm {
            storm(Duration::ZERO);
        }
    }

    pub(crate) fn outcome(self) -> Outcome {
        Outcome {
            kind: if self.error.is_some() { "error" } else { "ok" },
            elapsed: self.elapsed,
            left: self.left,
            leaked: Vec::new(),
            text: self.error.unwrap_or_default(),
        }
    }
}

fn limit_on_descriptors() -> libc::rlimit {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the struct it is given.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit
}

fn set_limit(limit: libc::rlimit) {
    // SAFETY: the struct is only read.
    let rc = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(rc, 0, "the limit on descriptors can be lowered");
}

/// The lowest limit under which `free` descriptors can still be opened.
fn number_with(free: u64) -> u64 {
    let taken: Vec<u64> =
        fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    // The directory that was just read is closed by now.
    let is_open = |fd: u64| taken.contains(&fd) && fs::read_link(format!("/proc/self/fd/{fd}")).is_ok();
    (0..).filter(|&fd| !is_open(fd)).nth(free as usize).unwrap_or(0)
}

/// SIGALRM at this interval, to a handler that does nothing and restarts nothing; zero ends it.
fn storm(interval: Duration) {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: all zeros is a valid `sigaction`: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as *const () as usize;
    // SAFETY: the handler does nothing, so it is safe at any instruction; the old action is not asked for.
    unsafe { libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()) };
    let span = libc::timeval { tv_sec: 0, tv_usec: interval.subsec_micros().into() };
    let timer = libc::itimerval { it_interval: span, it_value: span };
    // SAFETY: the struct is only read; the old value is not asked for.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
}

/// Everything that a ring may have taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Snapshot(BTreeMap<String, usize>);

impl Snapshot {
    pub(crate) fn take() -> Self {
        let mut all = BTreeMap::new();
        let mut add = |kind: &str, items: Vec<String>| {
            for item in items {
                *all.entry(format!("{kind} {item}")).or_default() += 1;
            }
        };
        add("descriptor", audit::descriptors());
        // The addresses differ; the object mapped is the last word.
        let object = |line: String| line.rsplit(' ').next().unwrap_or_default().to_owned();
        add("mapping", audit::mappings().into_iter().map(object).collect());
        let names = |dir: &str| -> Vec<String> {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        add("thread", names("/proc/self/task").iter().map(|_| "of this process".to_owned()).collect());
        let dir = std::env::var("FOREBAY_DIR").unwrap();
        let hash = format!("{:08x}", forebay_os::Dir::open(None).unwrap().hash());
        add("file", names(&dir));
        add("object", names("/dev/shm").into_iter().filter(|name| name.contains(&hash)).collect());
        Self(all)
    }

    /// Waits until everything is again as it was here; what is not, if that takes too long.
    pub(crate) fn until_same(&self) -> Vec<String> {
        self.until(|now| now == self)
    }

    /// Waits until nothing is there beside what was here; what is, if that takes too long.
    pub(crate) fn until_no_more(&self) -> Vec<String> {
        self.until(|now| now.0.iter().all(|(what, &n)| n <= self.0.get(what).copied().unwrap_or(0)))
    }

    fn until(&self, fine: impl Fn(&Self) -> bool) -> Vec<String> {
        let start = Instant::now();
        loop {
            let now = Self::take();
            if fine(&now) {
                return Vec::new();
            }
            // A guest that says nothing is shown out after a second.
            if start.elapsed() > Duration::from_secs(3) {
                return self.difference(&now);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn difference(&self, now: &Self) -> Vec<String> {
        let count = |all: &Self, what: &str| all.0.get(what).copied().unwrap_or(0);
        let mut names: Vec<&String> = self.0.keys().chain(now.0.keys()).collect();
        names.sort();
        names.dedup();
        let changed = names.into_iter().filter(|name| count(self, name) != count(now, name));
        changed.map(|name| format!("{name}: {} -> {}", count(self, name), count(now, name))).collect()
    }
}
