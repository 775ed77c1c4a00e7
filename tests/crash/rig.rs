//! The rig's end of an actor: starts it, gives it orders, kills it.

use std::{
    io::{Read, Write},
    os::fd::AsFd,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use forebay_os::poll::{Events, poll_fds};
use forebay_testkit::watchdog::WATCHDOG;

use crate::board::{Answer, Board, Mode, Order, Shot};

/// What an actor says: one byte each.
pub(crate) const IDLE: u8 = b'i';
pub(crate) const LOOK: u8 = b'l';

/// A process that does operations. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Actor {
    pub(crate) board: Board,
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    /// Where its program is loaded.
    base: u64,
    /// After how many steps of its order it dies, 0 if it does not.
    most: u64,
}

/// Keeps this process and all that it starts on one CPU, so that workers do not disturb each other.
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
    // SAFETY: a set of that size, to be read. If it is refused, workers share.
    unsafe { libc::sched_setaffinity(0, size, &raw const one) };
}

impl Actor {
    /// Starts one, which then waits for its first order.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(arguments: impl FnOnce(&Board) -> Vec<String>, env: &[(&str, &str)]) -> Result<Self, String> {
        let board = Board::new();
        let mut command = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
        command.args(arguments(&board)).envs(env.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| e.to_string())?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("an actor without pipes".to_owned());
        };
        let mut actor = Self { board, child, stdin, stdout, base: 0, most: 0 };
        match actor.hear()? {
            Some(IDLE) => {}
            other => return Err(format!("an actor began with {other:?}")),
        }
        actor.base = actor.board.answered().results[0];
        Ok(actor)
    }

    /// Its next byte; `None` once it is dead.
    fn hear(&mut self) -> Result<Option<u8>, String> {
        let mut byte = [0];
        match self.stdout.read(&mut byte) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(byte[0])),
            Err(e) => Err(format!("an actor's pipe: {e}")),
        }
    }

    fn go_on(&mut self) -> Result<(), String> {
        self.stdin.write_all(b"g").map_err(|e| format!("an actor does not listen: {e}"))
    }

    /// Has an order done; `look` is called when something of the ring may have changed, with the steps and where it
    /// stands (in [`Mode::Whole`]). `None`: it died in it.
    pub(crate) fn obey(
        &mut self,
        order: Order,
        mode: Mode,
        most: u64,
        look: impl FnMut(u64, u64) -> Result<(), String>,
    ) -> Result<Option<Answer>, String> {
        self.begin(order, mode, most)?;
        self.answer(look)
    }

    /// Has it begin with an order; [`answer`](Self::answer) waits for the end.
    pub(crate) fn begin(&mut self, order: Order, mode: Mode, most: u64) -> Result<(), String> {
        self.most = most;
        self.board.give(order, mode, most);
        self.go_on()
    }

    /// The answer to the order that it was given; see [`obey`](Self::obey).
    pub(crate) fn answer(
        &mut self,
        mut look: impl FnMut(u64, u64) -> Result<(), String>,
    ) -> Result<Option<Answer>, String> {
        let mut seen = 0;
        loop {
            match self.hear()? {
                Some(LOOK) => {
                    let shots = self.board.shots();
                    let ip = shots.get(seen).map_or(0, |shot| shot.ip);
                    seen = shots.len();
                    look(self.board.steps(), ip)?;
                    self.go_on()?;
                }
                Some(IDLE) => return Ok(Some(self.board.answered())),
                Some(other) => return Err(format!("an actor said {other:?}")),
                None if self.most != 0 => return Ok(None),
                None => {
                    let status = self.child.wait().map_err(|e| e.to_string())?;
                    return Err(format!("the process ended with {status} after {} steps", self.board.steps()));
                }
            }
        }
    }

    /// Has the control thread of a producer stepped from now on; its main thread stands still until
    /// [`untend`](Self::untend).
    pub(crate) fn tend(&mut self, most: u64) -> Result<(), String> {
        self.begin(Order::Tend, Mode::Stores, most)?;
        match self.hear()? {
            Some(LOOK) => Ok(()),
            other => Err(format!("a producer said {other:?}, and does not stand still")),
        }
    }

    /// Lets its main thread go on. False: it died.
    pub(crate) fn untend(&mut self) -> Result<bool, String> {
        // Nobody listens if it is dead, which is what the answer says then.
        let heard = self.go_on();
        let answer = self.answer(|_, _| Err("it looks twice".to_owned()))?;
        if answer.is_some() { heard.map(|()| true) } else { Ok(false) }
    }

    /// Whether it has said something that was not heard yet, or is dead. Waits so long.
    fn has_said(among: &[&Self], wait: Duration) -> Result<bool, String> {
        let fds: Vec<_> = among.iter().map(|actor| (actor.stdout.as_fd(), Events::READ)).collect();
        let said = poll_fds(&fds, Some(wait)).map_err(|e| e.to_string())?;
        Ok(said.iter().any(|events| !events.is_empty()))
    }

    /// Whether it is dead, if it stands still otherwise.
    pub(crate) fn is_dead(&self) -> Result<bool, String> {
        Self::has_said(&[self], Duration::ZERO)
    }

    /// Waits until one of two says something, or dies.
    pub(crate) fn either(&self, other: &Self) -> Result<(), String> {
        if Self::has_said(&[self, other], WATCHDOG)? { Ok(()) } else { Err("nobody says anything".to_owned()) }
    }

    /// What changed in the last operation, and its steps.
    pub(crate) fn shots(&self) -> (Vec<Shot>, u64) {
        (self.board.shots(), self.board.steps())
    }

    /// kill -9, and waits until it is gone with all that it held.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Where `ip` lies in the program: function and line, if `addr2line` is there to ask.
    pub(crate) fn place_of(&self, ip: u64) -> String {
        let program = std::env::current_exe().map(|path| path.display().to_string()).unwrap_or_default();
        let address = ip.wrapping_sub(self.base);
        let asked = Command::new("addr2line").args(["-fCpie", &program, &format!("{address:#x}")]).output();
        let said = asked.ok().filter(|output| output.status.success());
        let said = said.map(|output| String::from_utf8_lossy(&output.stdout).trim().replace('\n', "\n    "));
        said.unwrap_or_else(|| format!("{address:#x} of {program} (addr2line, which is not here, names the line)"))
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.end();
    }
}
