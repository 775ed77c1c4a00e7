//! Makes chosen system calls of a running process fail, by ptrace. The process runs the real library; nothing in it
//! knows which call will fail.
//!
//! May: stop a victim at each of its system calls, skip one and put an errno in place of its result, or let it happen
//! and then change its result. May not: look into the victim's memory, or know what a call is good for.
//!
//! Calls are counted only between two marks that the victim sets around the operation under test, apart for the thread
//! that set the mark and for all its other threads.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    io::{self, BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use forebay_testkit::{Place, WATCHDOG};
use libc::{c_long, pid_t};

use crate::errnos;

/// Which of the victim's threads a fault is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// The one that runs the operation.
    Caller,
    /// All others: the producer's control thread, a sleeping peer.
    Others,
}

/// A system call and, for calls that are many in one, which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Call {
    pub(crate) number: c_long,
    pub(crate) part: u64,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&errnos::name(*self))
    }
}

/// What is to fail.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) role: Role,
    pub(crate) call: Call,
    /// Its occurrence, from 1.
    pub(crate) nth: u32,
    /// How many from that one on.
    pub(crate) times: u32,
    pub(crate) errno: i32,
}

/// How one operation ended.
#[derive(Debug)]
pub(crate) struct Round {
    /// How often the fault was put in.
    pub(crate) hits: u32,
    /// What was called, how often.
    pub(crate) seen: BTreeMap<(Role, Call), u32>,
    /// What the victim said; an `Err` says how it ended instead.
    pub(crate) said: Result<String, String>,
}

/// Marks: signals that the victim ignores and sends to itself, counted from the first real-time one.
const BEGIN: i32 = 1;
const END: i32 = 2;
const DONE: i32 = 3;

#[derive(Debug, Default, Clone, Copy)]
struct Thread {
    /// The errno that this thread's present call is to return.
    answer: Option<i32>,
}

/// A process under the injector's control. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Victim {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    threads: HashMap<pid_t, Thread>,
    place: Place,
    /// Milliseconds since `start` at which the watchdog kills it; 0 for never.
    deadline: Arc<AtomicU64>,
    late: Arc<AtomicBool>,
    start: Instant,
    over: bool,
}

fn pid_of(child: &Child) -> pid_t {
    child.id() as pid_t
}

/// One ptrace request that neither reads nor writes this process's memory.
fn ptrace(request: libc::c_uint, tid: pid_t, address: usize, data: usize) -> io::Result<c_long> {
    // SAFETY: the requests used here take numbers, not pointers.
    let rc = unsafe { libc::ptrace(request, tid, address, data) };
    if rc == -1 { Err(io::Error::last_os_error()) } else { Ok(rc) }
}

/// A word of the victim's registers.
fn register(tid: pid_t, at: usize) -> io::Result<u64> {
    let mut word: u64 = 0;
    // The system call itself, unlike glibc's wrapper, stores the word and can return -1 for errors alone.
    // SAFETY: PEEKUSER stores one word at its last argument, which is ours.
    let rc = unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_PEEKUSER, tid, at, &raw mut word) };
    if rc == -1 { Err(io::Error::last_os_error()) } else { Ok(word) }
}

/// Offsets in x86-64's `struct user`, in bytes.
mod offset {
    pub(super) const RAX: usize = 10 * 8;
    pub(super) const RSI: usize = 13 * 8;
    pub(super) const RDI: usize = 14 * 8;
    pub(super) const RDX: usize = 12 * 8;
    pub(super) const R10: usize = 7 * 8;
    pub(super) const ORIG_RAX: usize = 15 * 8;
}

impl Victim {
    /// Starts one, stopped at nothing, waiting for its first order.
    pub(crate) fn start(binary: &str) -> Self {
        let place = Place::new();
        let mut command = Command::new(binary);
        command.env("FOREBAY_DIR", place.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        // A group of its own, so that waiting for it takes no other test's children.
        let mut child = command.process_group(0).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let (deadline, late, start) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)), Instant::now());
        let pid = pid_of(&child);
        let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
        let mut this =
            Self { child, stdin, stdout, threads: HashMap::new(), place, deadline, late, start, over: false };
        this.watch();
        // It says so when it waits for orders: from then on it makes no call but read.
        let mut line = String::new();
        this.stdout.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        ptrace(libc::PTRACE_SEIZE, pid, 0, options as usize).unwrap();
        ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0).unwrap();
        this.threads.insert(pid, Thread::default());
        this
    }

    /// Kills it when a round takes longer than the watchdog allows.
    fn watch(&self) {
        let (deadline, late) = (Arc::downgrade(&self.deadline), Arc::clone(&self.late));
        let (start, pid) = (self.start, pid_of(&self.child));
        std::thread::spawn(move || {
            while let Some(deadline) = deadline.upgrade() {
                let at = deadline.load(Ordering::SeqCst);
                if at != 0 && start.elapsed().as_millis() as u64 > at {
                    late.store(true, Ordering::SeqCst);
                    forebay_testkit::child::signal_pid(pid as u32, libc::SIGKILL);
                    return;
                }
                drop(deadline);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
    }

    /// Whether it ended; another is needed then.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// Has it run one operation, with or without a fault.
    pub(crate) fn round(&mut self, order: &str, fault: Option<Fault>) -> Round {
        let mut round = Round { hits: 0, seen: BTreeMap::new(), said: Err("nothing".to_owned()) };
        let until = self.start.elapsed() + WATCHDOG;
        self.deadline.store(until.as_millis() as u64, Ordering::SeqCst);
        writeln!(self.stdin, "{order}").unwrap();
        let mut caller = None;
        loop {
            let mut status = 0;
            // SAFETY: the status is ours; the group is the victim's, and only this thread's tracees are asked for.
            let tid = unsafe { libc::waitpid(-pid_of(&self.child), &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
            if tid < 0 || (libc::WIFEXITED(status) || libc::WIFSIGNALED(status)) && tid == pid_of(&self.child) {
                self.over = true;
                let how = if self.late.load(Ordering::SeqCst) { "HANG" } else { "DIED" };
                round.said = Err(format!("{how}: wait status {status:#x}"));
                break;
            }
            if !libc::WIFSTOPPED(status) {
                self.threads.remove(&tid);
                continue;
            }
            match self.stopped(tid, status, fault, &mut caller, &mut round) {
                Ok(false) => {}
                Ok(true) => break,
                // Killed between its stop and our question: the wait says so.
                Err(_) => continue,
            }
        }
        self.deadline.store(0, Ordering::SeqCst);
        if !self.over {
            let mut line = String::new();
            round.said = match self.stdout.read_line(&mut line) {
                Ok(n) if n > 0 => Ok(line.trim_end_matches('\n').to_owned()),
                other => Err(format!("DIED: {other:?}")),
            };
        }
        round
    }

    /// Deals with one stop. True at the end of the round.
    fn stopped(
        &mut self,
        tid: pid_t,
        status: i32,
        fault: Option<Fault>,
        caller: &mut Option<pid_t>,
        round: &mut Round,
    ) -> io::Result<bool> {
        let signal = libc::WSTOPSIG(status);
        self.threads.entry(tid).or_default();
        let (mut done, mut deliver) = (false, 0);
        if signal == libc::SIGTRAP | 0x80 {
            self.called(tid, fault, *caller, round)?;
        } else if status >> 16 == 0 {
            match signal - libc::SIGRTMIN() {
                BEGIN => {
                    *caller = Some(tid);
                    // From here on every thread stops at its calls, which it does only when it is told so.
                    for &other in self.threads.keys().filter(|&&other| other != tid) {
                        // One that ended meanwhile makes no calls.
                        let _ = ptrace(libc::PTRACE_INTERRUPT, other, 0, 0);
                    }
                }
                END => *caller = None,
                DONE => done = true,
                _ => deliver = signal as usize,
            }
        }
        let go_on = if caller.is_some() { libc::PTRACE_SYSCALL } else { libc::PTRACE_CONT };
        ptrace(go_on, tid, 0, deliver)?;
        Ok(done)
    }

    /// Deals with the entry or the exit of a call.
    fn called(&mut self, tid: pid_t, fault: Option<Fault>, caller: Option<pid_t>, round: &mut Round) -> io::Result<()> {
        let thread = self.threads.entry(tid).or_default();
        if let Some(errno) = thread.answer.take() {
            return ptrace(libc::PTRACE_POKEUSER as _, tid, offset::RAX, -i64::from(errno) as usize).map(drop);
        }
        // At its entry a call's result reads -ENOSYS.
        let entering = register(tid, offset::RAX)? as i64 == -i64::from(libc::ENOSYS);
        let (true, Some(caller)) = (entering, caller) else { return Ok(()) };
        let role = if tid == caller { Role::Caller } else { Role::Others };
        let call = call(tid, register(tid, offset::ORIG_RAX)? as c_long)?;
        let count = round.seen.entry((role, call)).or_default();
        *count += 1;
        if let Some(fault) = fault
            && (fault.role, fault.call) == (role, call)
            && *count >= fault.nth
            && *count - fault.nth < fault.times
        {
            round.hits += 1;
            thread.answer = Some(fault.errno);
            if !errnos::happens_all_the_same(call) {
                ptrace(libc::PTRACE_POKEUSER as _, tid, offset::ORIG_RAX, usize::MAX)?;
            }
        }
        Ok(())
    }
}

/// Which call this is.
fn call(tid: pid_t, number: c_long) -> io::Result<Call> {
    let part = match number {
        libc::SYS_fcntl | libc::SYS_ioctl | libc::SYS_epoll_ctl => register(tid, offset::RSI)?,
        // Without its flags: private or not, which clock.
        libc::SYS_futex => register(tid, offset::RSI)? & 0x7f,
        libc::SYS_madvise => register(tid, offset::RDX)?,
        libc::SYS_membarrier => register(tid, offset::RDI)?,
        // Whether a file is mapped, and else whether it is a stack: what is left is the allocator's.
        libc::SYS_mmap => register(tid, offset::R10)? & (libc::MAP_ANONYMOUS | libc::MAP_STACK) as u64,
        libc::SYS_openat => register(tid, offset::RDX)? & (libc::O_CREAT | libc::O_DIRECTORY) as u64,
        _ => 0,
    };
    Ok(Call { number, part })
}

impl Drop for Victim {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.place.sweep();
    }
}
