//! Single-stepping from inside: the trap flag of the processor raises SIGTRAP after every instruction, and its handler
//! looks at the ring's words and logs what changed. No other process is switched to, so a step costs a microsecond or
//! two, and no right to trace anybody is needed.
//!
//! A call of the C library is one step, as a system call is: neither writes a word of a ring. The handler lets the
//! library run freely by putting a trap in place of its return address. So the handler never runs inside of the
//! allocator and may use it.
//!
//! Only an instruction that stores into the ring's pages can make a new picture. So there is a faster way that sees the
//! same: the pages are read-only, the store faults, it is repeated as a single step with the pages writable, and the
//! picture is taken then. That holds for whatever thread stores: while the main thread stands still, it is the control
//! thread that is stepped.
#![allow(unsafe_code, reason = "a signal handler that changes the interrupted registers")]

use std::{
    ops::Range,
    ptr,
    sync::atomic::{AtomicPtr, Ordering::SeqCst},
};

use crate::{
    board::{Board, Mode},
    memory::{Memory, Watch},
};

/// The trap flag.
const TRAP: i64 = 0x100;

/// What the handler works with; it lives as long as the process.
pub(crate) struct Stepper {
    pub(crate) board: &'static Board,
    /// The ring's words, and what they said after the last step.
    pub(crate) memory: Option<Memory>,
    pub(crate) picture: Vec<u64>,
    /// The objects, while the ring is made or unmade.
    pub(crate) watch: Watch,
    /// Asks the rig to look at everything, and waits until it did.
    pub(crate) look: fn(),
    /// Where the program lies: what is outside of it is the C library and the kernel's page.
    program: Range<u64>,
    /// Where the library call that runs returns to.
    back: u64,
    /// The next instruction is a system call.
    calls: bool,
    mode: Mode,
    most: u64,
    prefix: String,
    /// Where this process may write words of the ring.
    writable: Vec<Range<u64>>,
}

static STEPPER: AtomicPtr<Stepper> = AtomicPtr::new(ptr::null_mut());

#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(".globl forebay_crash_back", "forebay_crash_back:", "int3");

unsafe extern "C" {
    /// Where library calls return to: a trap.
    fn forebay_crash_back();
}

impl Stepper {
    pub(crate) fn new(board: &'static Board, prefix: &str, look: fn()) -> Self {
        let program = std::env::current_exe().unwrap().display().to_string();
        let ranges = mapped(|line| line.ends_with(&program)).into_iter();
        let program = ranges.reduce(|all, one| all.start.min(one.start)..all.end.max(one.end)).unwrap_or(0..0);
        Self {
            board,
            memory: None,
            picture: Vec::new(),
            watch: Watch::new(prefix),
            look,
            program,
            back: 0,
            calls: false,
            mode: Mode::Free,
            most: 0,
            prefix: prefix.to_owned(),
            writable: Vec::new(),
        }
    }

    /// Where the program is loaded, for reports.
    pub(crate) fn base(&self) -> u64 {
        self.program.start
    }

    /// Installs the handlers. They run on the stack of whoever traps: no instruction that is stepped uses what lies more
    /// than the ABI's red zone below its stack pointer, and the alternate stacks that the standard library gives its
    /// threads are a few pages.
    pub(crate) fn install(self) -> &'static mut Self {
        // SAFETY: plain numbers, filled in below.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_trap as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for.
        unsafe { libc::sigaction(libc::SIGTRAP, &raw const action, ptr::null_mut()) };
        action.sa_sigaction = on_fault as *const () as usize;
        // SAFETY: as above.
        unsafe { libc::sigaction(libc::SIGSEGV, &raw const action, ptr::null_mut()) };
        let this = Box::into_raw(Box::new(self));
        STEPPER.store(this, SeqCst);
        // SAFETY: never freed; the handler uses it only between `start` and `stop`, while its owner does not. If it is the
        // control thread that traps, the owner waits for a byte of the rig meanwhile.
        unsafe { &mut *this }
    }

    /// Readies everything; the next thing is [`start`], or [`protect`](Self::protect).
    pub(crate) fn prepare(&mut self) -> Mode {
        (self.mode, self.most, self.calls) = (self.board.mode(), self.board.most(), false);
        if let Some(memory) = &self.memory {
            self.picture = memory.picture();
        }
        if self.mode == Mode::Whole {
            self.watch.look_again();
            self.watch.changed();
        }
        if self.mode == Mode::Stores {
            let (prefix, data) = (self.prefix.clone(), format!("{}data", self.prefix));
            self.writable = mapped(|line| line.contains(" rw-s ") && line.contains(&prefix) && !line.ends_with(&data));
        }
        self.mode
    }

    /// Makes stores into the ring's words fault, or lets them through.
    pub(crate) fn protect(&self, protect: bool) {
        let rights = libc::PROT_READ | if protect { 0 } else { libc::PROT_WRITE };
        for range in &self.writable {
            let (at, len) = (range.start as *mut libc::c_void, (range.end - range.start) as usize);
            // SAFETY: mappings of the library, which stay mapped while an operation that keeps them runs; what it does
            // with them is only delayed.
            unsafe { libc::mprotect(at, len, rights) };
        }
    }

    /// After each step: what changed, who must know, and whether this was the last.
    fn look(&mut self, ip: u64, called: bool) {
        let steps = self.board.stepped();
        match self.mode {
            Mode::Words | Mode::Stores => {
                if let Some(memory) = &self.memory {
                    let changes = memory.changes(&mut self.picture);
                    if !changes.is_empty() {
                        self.board.log(ip, &changes);
                    }
                }
            }
            Mode::Whole => {
                if called {
                    self.watch.look_again();
                }
                if self.watch.changed() || called {
                    self.board.log(ip, &[]);
                    (self.look)();
                }
            }
            Mode::Free | Mode::Count => {}
        }
        if steps == self.most {
            die();
        }
    }
}

/// Mappings of this process, by their lines in /proc/self/maps.
fn mapped(which: impl Fn(&str) -> bool) -> Vec<Range<u64>> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let range = |line: &str| {
        let (from, rest) = line.split_once('-').unwrap();
        hex(from)..hex(rest.split(' ').next().unwrap())
    };
    maps.lines().filter(|line| which(line)).map(range).collect()
}

fn die() -> ! {
    let me = std::process::id() as libc::pid_t;
    // SAFETY: ends this process, at once and wherever it is.
    unsafe { libc::kill(me, libc::SIGKILL) };
    loop {
        std::hint::spin_loop();
    }
}

#[cfg(target_arch = "x86_64")]
extern "C" fn on_trap(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: set before the first trap, and its owner waits while an operation is stepped.
    let stepper = unsafe { &mut *STEPPER.load(SeqCst) };
    // SAFETY: the kernel gives a handler the interrupted context, which it alone has.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let regs = &mut context.uc_mcontext.gregs;
    let (rip, rsp, flags) = (libc::REG_RIP as usize, libc::REG_RSP as usize, libc::REG_EFL as usize);
    let mut called = std::mem::take(&mut stepper.calls);
    if regs[rip] as u64 == forebay_crash_back as *const () as u64 + 1 {
        regs[rip] = stepper.back as i64;
        regs[flags] |= TRAP;
        called = true;
    }
    let ip = regs[rip] as u64;
    // SAFETY: this thread's own; whoever was interrupted may be about to read it.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { errno.read() };
    stepper.look(ip, called);
    // SAFETY: as above.
    unsafe { errno.write(before) };
    if stepper.mode == Mode::Stores {
        stepper.protect(true);
        regs[flags] &= !TRAP;
        return;
    }
    if stepper.program.contains(&ip) {
        // SAFETY: the instruction that comes next; two bytes of it are in the program's text.
        stepper.calls = unsafe { (ip as *const [u8; 2]).read_unaligned() } == [0x0f, 0x05];
        return;
    }
    // It has just entered the library by a call: let it run, and trap where it returns.
    let stack = regs[rsp] as u64 as *mut u64;
    // SAFETY: the interrupted stack pointer points to the return address.
    stepper.back = unsafe { stack.read() };
    if stepper.program.contains(&stepper.back) {
        // SAFETY: as above; nothing but the return reads it.
        unsafe { stack.write(forebay_crash_back as *const () as u64) };
    }
    regs[flags] &= !TRAP;
}

/// A store into a page of the ring: it is let through, alone.
#[cfg(target_arch = "x86_64")]
extern "C" fn on_fault(_: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: as in `on_trap`.
    let stepper = unsafe { &*STEPPER.load(SeqCst) };
    // SAFETY: the kernel gives the handler a description of the signal.
    let info = unsafe { &*info };
    // SAFETY: it is one of a fault, which has an address.
    let at = unsafe { info.si_addr() } as u64;
    if stepper.mode == Mode::Stores && stepper.writable.iter().any(|range| range.contains(&at)) {
        stepper.protect(false);
        // SAFETY: as in `on_trap`.
        let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
        context.uc_mcontext.gregs[libc::REG_EFL as usize] |= TRAP;
    } else {
        // A fault that is not ours: it happens again, and ends the process.
        // SAFETY: the default action.
        unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
extern "C" fn on_fault(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

#[cfg(not(target_arch = "x86_64"))]
extern "C" fn on_trap(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// From the next instruction on, every one traps.
#[inline(always)]
pub(crate) fn start() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: sets a flag; the handler is installed.
    unsafe {
        core::arch::asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq");
    }
}

/// No instruction traps any more.
#[inline(always)]
pub(crate) fn stop() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: clears a flag.
    unsafe {
        core::arch::asm!("pushfq", "and qword ptr [rsp], -257", "popfq");
    }
}
