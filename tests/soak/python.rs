//! The Python zygote: a process that has imported torch and forebay and forks victims on command; it reaps them and
//! notes how they ended.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::fd::AsRawFd,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{ledger::Ledger, plan::Mix, states::Role, victim::Fate};

/// The zygote, from outside.
#[derive(Debug)]
pub(crate) struct Python {
    child: Child,
    tell: ChildStdin,
    hear: BufReader<ChildStdout>,
    /// What it imported.
    pub(crate) versions: String,
}

impl Python {
    /// Starts it and waits until it has imported everything.
    pub(crate) fn start(interpreter: &Path, script: &Path, ledger: &Ledger) -> io::Result<Self> {
        let book = format!("/proc/{}/fd/{}", std::process::id(), ledger.file().as_raw_fd());
        let mut child =
            Command::new(interpreter).arg(script).arg(book).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(tell), Some(hear)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("no pipes"));
        };
        let mut this = Self { child, tell, hear: BufReader::new(hear), versions: String::new() };
        this.versions = this.line()?;
        writeln!(this.tell, "{}", crate::ledger::layout())?;
        Ok(this)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.hear.read_line(&mut line)? == 0 {
            return Err(io::Error::other(format!("it ended: {:?}", self.child.try_wait())));
        }
        Ok(line.trim_end().to_owned())
    }

    /// Has it fork a victim, whose pid it notes in the ledger. Nobody waits for that: forking what has imported torch
    /// takes its time.
    pub(crate) fn bear(&mut self, dir: &Path, mix: &Mix, role: Role, fate: &Fate) -> io::Result<()> {
        let order: Value = json!({
            "life": fate.life,
            "ring": fate.ring,
            "name": mix.name,
            "role": role.text(),
            "directory": dir,
            "seed": fate.seed,
            "stays": fate.keeper,
            "kind": mix.kind.to_string(),
            "backing": mix.backing.to_string(),
            "slots": mix.slots,
            "words": mix.words,
            "schema": mix.schema,
            "max_attempts": mix.max_attempts,
            "max_consumers": mix.max_consumers,
            "aim": fate.aim.map(|aim| aim.state as u64),
        });
        writeln!(self.tell, "{order}")?;
        self.tell.flush()
    }

    /// Says if it is gone.
    pub(crate) fn failure(&self) -> Option<String> {
        let gone = !Path::new(&format!("/proc/{}/fd", self.child.id())).exists();
        gone.then(|| "the Python zygote ended".to_owned())
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // It ends by itself at the end of its input; this is for when it does not.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
