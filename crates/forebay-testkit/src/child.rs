//! The test's end of an actor: start it, tell it what to do, read its lines under the watchdog, kill it.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
};

use crate::{Place, WATCHDOG};

/// An actor's environment variable that switches slices off, so that a lost wake is a hang.
pub const NO_SLICES: (&str, &str) = ("FOREBAY_SLICE_MS", "0");
/// An actor's environment variable that makes it do without membarrier.
pub const NO_MEMBARRIER: (&str, &str) = ("FOREBAY_NO_MEMBARRIER", "1");

/// A running actor. Killed and reaped when dropped.
#[derive(Debug)]
pub struct Actor {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    transcript: String,
    ends_cleanly: bool,
}

impl Actor {
    /// Starts `binary ROLE RING options…` in `place`, with `env` in its environment.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    pub fn start(binary: &str, place: &Place, role: &str, ring: &str, options: &str, env: &[(&str, &str)]) -> Self {
        let mut command = Command::new(binary);
        command.args([role, ring]).args(options.split_whitespace()).envs(env.iter().copied());
        Self::spawn(command, place, &format!("{role} {ring} {options}"))
    }

    /// Starts `command`, which becomes an actor.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    pub fn spawn(mut command: Command, place: &Place, what: &str) -> Self {
        command.env("FOREBAY_DIR", place.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {what}: {e}"));
        let stdout = child.stdout.take().unwrap();
        let (send, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let stdin = child.stdin.take();
        let name = format!("{what} (pid {})", child.id());
        let ends_cleanly = what.starts_with("producer");
        Self { name, child, stdin, lines, transcript: String::new(), ends_cleanly }
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives it a command.
    ///
    /// # Panics
    /// It does not read any more.
    pub fn tell(&mut self, command: &str) {
        let _ = writeln!(self.transcript, "> {command}");
        let stdin = self.stdin.as_mut().expect("the actor's stdin was closed");
        if let Err(e) = writeln!(stdin, "{command}") {
            panic!("{} does not listen: {e}\n{}", self.name, self.transcript);
        }
    }

    /// Its next line.
    ///
    /// # Panics
    /// None came within the watchdog's time, or it ended.
    pub fn line(&mut self) -> String {
        match self.lines.recv_timeout(WATCHDOG) {
            Ok(line) => {
                let _ = writeln!(self.transcript, "< {line}");
                line
            }
            Err(RecvTimeoutError::Timeout) => {
                panic!("{} said nothing for {WATCHDOG:?} (a lost wake is a hang)\n{}", self.name, self.transcript)
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait();
                panic!("{} ended ({status:?}) without a word\n{}", self.name, self.transcript)
            }
        }
    }

    /// Its next line, if there is one by now.
    pub fn try_line(&mut self) -> Option<String> {
        self.lines.try_recv().ok()
    }

    /// All it still said before it was killed, or ended by itself.
    pub fn rest(&mut self) -> Vec<String> {
        // The end of the lines is the end of its stdout.
        self.lines.iter().collect()
    }

    /// Its next line, which must start with `start`; what follows it.
    ///
    /// # Panics
    /// Another line came, or none.
    #[track_caller]
    pub fn expect(&mut self, start: &str) -> String {
        let line = self.line();
        match line.strip_prefix(start) {
            Some(rest) => rest.trim_start().to_owned(),
            None => panic!("{} said {line:?}, expected {start:?}\n{}", self.name, self.transcript),
        }
    }

    /// Gives it a command and returns its answer, which must start with `start`.
    #[track_caller]
    pub fn ask(&mut self, command: &str, start: &str) -> String {
        self.tell(command);
        self.expect(start)
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// It was reaped.
    pub fn signal(&self, signal: i32) {
        signal_pid(self.pid(), signal);
    }

    /// Stops it, and waits until every thread of it has stopped. SIGCONT lets it go on.
    ///
    /// # Panics
    /// It was reaped, or does not stop.
    pub fn stop(&self) {
        self.signal(libc::SIGSTOP);
        let tasks = format!("/proc/{}/task", self.pid());
        let state = |stat: String| stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        crate::watchdog::until("the stop", || {
            let mut tasks = std::fs::read_dir(&tasks).unwrap().flatten();
            tasks.all(|task| {
                std::fs::read_to_string(task.path().join("stat")).is_ok_and(|stat| state(stat) == Some('T'))
            })
        });
    }

    /// kill -9, and waits until it is gone.
    pub fn kill(&mut self) {
        self.ends_cleanly = false;
        // An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Closes its stdin and waits for its end.
    ///
    /// # Panics
    /// It does not end.
    pub fn finish(mut self) -> ExitStatus {
        self.stdin = None;
        let start = std::time::Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < WATCHDOG, "{} does not end\n{}", self.name, self.transcript);
            thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.stdin = None;
        let start = std::time::Instant::now();
        // A producer that is not in the middle of something closes its ring and leaves nothing behind.
        while self.ends_cleanly
            && !thread::panicking()
            && start.elapsed() < WATCHDOG
            && matches!(self.child.try_wait(), Ok(None))
        {
            thread::sleep(std::time::Duration::from_millis(1));
        }
        self.kill();
    }
}

/// Sends `signal` to `pid`, a process that this test started.
pub fn signal_pid(pid: u32, signal: i32) {
    // SAFETY: kill changes no memory of this process.
    unsafe { libc::kill(pid as libc::pid_t, signal) };
}

/// The value of `key=` in a line of an actor.
///
/// # Panics
/// There is none, or it is no number.
#[must_use]
#[track_caller]
pub fn number(line: &str, key: &str) -> u64 {
    let found = line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    found.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no number {key} in {line:?}"))
}
