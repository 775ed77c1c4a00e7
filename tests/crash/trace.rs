//! ptrace: a process that is started stopped, goes on by one instruction or to its next stop, and can be killed anywhere.
//!
//! Only the thread that runs the operations is traced. A producer's control thread runs freely; it sleeps unless somebody
//! connects or dies.

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    ptr,
};

use crate::board::{Answer, Board, Order, State};

/// What an actor that is stepped may take, in instructions, before it counts as lost.
pub(crate) const MOST_STEPS: u64 = 20_000_000;

/// Whether this process may trace a child.
///
/// # Errors
/// Why not, and which setting says so.
pub(crate) fn permitted() -> Result<(), String> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("--nothing").stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = start(command).map_err(|e| {
        format!(
            "ptrace(PTRACE_TRACEME) says {e}; it needs kernel.yama.ptrace_scope below 3 and a seccomp profile that allows \
             ptrace (containers: --cap-add=SYS_PTRACE or --security-opt seccomp=unconfined)"
        )
    })?;
    let _ = child.kill();
    let _ = child.wait();
    Ok(())
}

/// Keeps this thread and all that it starts on one CPU, where a step costs two switches and no interrupt.
pub(crate) fn stay_on_cpu(nth: u64) {
    // SAFETY: plain bytes, all zero is an empty set.
    let mut allowed: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: a set of that size, to be written.
    if unsafe { libc::sched_getaffinity(0, size, &raw mut allowed) } != 0 {
        return;
    }
    // SAFETY: within a set's size.
    let cpus: Vec<usize> = (0..1024).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &allowed) }).collect();
    let Some(&cpu) = cpus.get(nth as usize % cpus.len().max(1)) else { return };
    // SAFETY: as above.
    let mut one: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: within a set's size.
    unsafe { libc::CPU_SET(cpu, &mut one) };
    // SAFETY: a set of that size, to be read. If it is refused, steps are slower.
    unsafe { libc::sched_setaffinity(0, size, &raw const one) };
}

fn start(mut command: Command) -> io::Result<Child> {
    let traced = || {
        // SAFETY: takes no memory.
        match unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: the closure makes one system call.
    unsafe { command.pre_exec(traced) };
    command.spawn()
}

/// A process that is stepped. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Actor {
    pub(crate) board: Board,
    child: Child,
    alive: bool,
}

/// How an actor came to stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Trap,
    Signal(i32),
    Gone(i32),
}

impl Actor {
    /// Starts one, which then waits for its first order.
    ///
    /// # Errors
    /// It cannot be started or traced.
    pub(crate) fn start(arguments: impl FnOnce(&Board) -> [String; 5], env: &[(&str, &str)]) -> Result<Self, String> {
        let board = Board::new();
        let mut command = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
        command.args(arguments(&board)).envs(env.iter().copied()).stdin(Stdio::null());
        // Whatever it has to say goes with the report.
        command.stdout(Stdio::null());
        let child = start(command).map_err(|e| e.to_string())?;
        let mut actor = Self { board, child, alive: true };
        // It stands at its first instruction.
        actor.wait()?;
        let options = libc::PTRACE_O_EXITKILL as usize;
        // SAFETY: takes no memory.
        unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, actor.pid(), 0, options) };
        actor.to_state(State::Idle)?;
        Ok(actor)
    }

    fn pid(&self) -> libc::pid_t {
        self.child.id() as libc::pid_t
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    fn wait(&mut self) -> Result<Stop, String> {
        let mut status = 0;
        // SAFETY: our own child and a status to write.
        while unsafe { libc::waitpid(self.pid(), &raw mut status, libc::__WALL) } < 0 {
            let e = io::Error::last_os_error();
            if e.kind() != io::ErrorKind::Interrupted {
                return Err(format!("waitpid: {e}"));
            }
        }
        Ok(if libc::WIFSTOPPED(status) {
            match libc::WSTOPSIG(status) {
                libc::SIGTRAP => Stop::Trap,
                signal => Stop::Signal(signal),
            }
        } else {
            self.alive = false;
            Stop::Gone(status)
        })
    }

    fn resume(&mut self, how: libc::c_uint, signal: i32) -> Result<Stop, String> {
        // SAFETY: takes no memory.
        if unsafe { libc::ptrace(how, self.pid(), 0, signal as usize) } == -1 {
            return Err(format!("ptrace: {}", io::Error::last_os_error()));
        }
        self.wait()
    }

    /// Goes on, in one go, until it stops in `state`.
    fn to_state(&mut self, state: State) -> Result<(), String> {
        let mut signal = 0;
        loop {
            match self.resume(libc::PTRACE_CONT, signal)? {
                Stop::Trap if self.board.state() == state => return Ok(()),
                Stop::Trap => signal = 0,
                Stop::Signal(fatal @ (libc::SIGSEGV | libc::SIGBUS | libc::SIGABRT | libc::SIGILL)) => {
                    return Err(format!("it got signal {fatal} at {}", self.place()));
                }
                Stop::Signal(other) => signal = other,
                Stop::Gone(status) => return Err(format!("it ended with status {status:#x}")),
            }
        }
    }

    /// Gives an order and goes on to where the operation begins.
    pub(crate) fn prepare(&mut self, order: Order) -> Result<(), String> {
        self.board.give(order);
        self.to_state(State::Ready)
    }

    /// One instruction further; false once the operation is over.
    pub(crate) fn step(&mut self) -> Result<bool, String> {
        match self.resume(libc::PTRACE_SINGLESTEP, 0)? {
            Stop::Trap => Ok(self.board.state() != State::Over),
            Stop::Signal(signal) => Err(format!("it got signal {signal} at {}", self.place())),
            Stop::Gone(status) => Err(format!("it ended with status {status:#x}")),
        }
    }

    /// From wherever it stands to the end of the order.
    pub(crate) fn finish(&mut self) -> Result<Answer, String> {
        self.to_state(State::Idle)?;
        Ok(self.board.answered())
    }

    /// kill -9, and waits until it is gone with all that it held.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if self.alive {
            // An error means that it is gone already.
            let _ = self.child.kill();
            while self.alive {
                if self.wait().is_err() {
                    break;
                }
            }
        }
    }

    /// The next instruction to be executed.
    pub(crate) fn ip(&self) -> u64 {
        // SAFETY: plain numbers.
        let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        // SAFETY: a place for the registers of a process that stands still.
        unsafe { libc::ptrace(libc::PTRACE_GETREGS, self.pid(), ptr::null_mut::<libc::c_void>(), &raw mut regs) };
        regs.rip
    }

    fn place(&self) -> String {
        format!("{:#x}", self.ip())
    }

    /// Where `ip` lies in the program, as function and line if `addr2line` is there to ask.
    pub(crate) fn place_of(&self, ip: u64) -> String {
        let program = std::env::current_exe().unwrap();
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.id())).unwrap_or_default();
        let mine = program.display().to_string();
        for line in maps.lines() {
            let mut parts = line.split_whitespace();
            let (Some(range), _, Some(offset)) = (parts.next(), parts.next(), parts.next()) else { continue };
            let hex = |text: &str| u64::from_str_radix(text, 16).unwrap_or(0);
            let Some((from, to)) = range.split_once('-') else { continue };
            if !(hex(from)..hex(to)).contains(&ip) {
                continue;
            }
            if !line.ends_with(&mine) {
                return format!("{ip:#x} in {}", line.split_whitespace().nth(5).unwrap_or("no file"));
            }
            // The program headers of what rustc links map a file offset at a fixed distance; the first mapping's
            // address is the base that symbols count from.
            let base = maps.lines().find(|line| line.ends_with(&mine)).and_then(|line| line.split_once('-'));
            let address = ip - base.map_or(0, |(base, _)| hex(base));
            let asked = Command::new("addr2line").args(["-fCpe", &mine, &format!("{address:#x}")]).output();
            let said = asked
                .ok()
                .filter(|output| output.status.success())
                .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
            return said
                .unwrap_or_else(|| format!("{address:#x} of the program (file offset {offset}); addr2line tells"));
        }
        format!("{ip:#x}")
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.end();
    }
}
