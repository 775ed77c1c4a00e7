//! The conformance table: every behaviour × kind × backing × wake × language. A cell is a test that ran; its name stands
//! in it, and an empty cell fails the run.
//!
//! `cargo test` runs the pairwise part: every pair of kind, backing and wake meets in some run. The binary
//! `forebay-conformance` runs all of it and prints the matrix. Another language's runner reads `--list` (one JSON object
//! a cell), runs what it can, writes the same objects with `outcome` and `detail` filled in to a file, and
//! `--merge FILE` puts them beside Rust's; `--languages rust,python` says whose cells must be there.

mod behaviours;
mod crash;
mod matrix;

use std::{
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use forebay::{Backing, Consumer, ConsumerOptions, Kind, Message, Producer, ProducerOptions, RecvError, WaitPolicy};
use serde::{Deserialize, Serialize};

use crate::{Place, WATCHDOG, actor, ledger};

/// How a consumer learns that there is a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wake {
    /// It looks without end.
    Spin,
    /// It spins for a while, then sleeps on its futex word.
    Adaptive,
    /// It sleeps on its futex word at once.
    Block,
    /// It waits in poll(2) on `fileno()`.
    Eventfd,
}

impl Wake {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 4] = [Self::Spin, Self::Adaptive, Self::Block, Self::Eventfd];

    /// Its name in the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Spin => "spin",
            Self::Adaptive => "adaptive",
            Self::Block => "block",
            Self::Eventfd => "eventfd",
        }
    }

    fn policy(self) -> WaitPolicy {
        match self {
            Self::Spin => WaitPolicy::Spin,
            Self::Block => WaitPolicy::Block,
            Self::Adaptive | Self::Eventfd => WaitPolicy::Adaptive,
        }
    }
}

/// One behaviour.
#[derive(Debug, Clone, Copy)]
pub struct Behaviour {
    /// A sentence; also the test's name.
    pub name: &'static str,
    /// Why there is no such thing on a broadcast ring, if there is none.
    pub queue_only: Option<&'static str>,
    run: fn(&Setup),
}

/// One cell: what ran, and what came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cell {
    /// The behaviour's name.
    pub behaviour: String,
    /// `queue` or `broadcast`.
    pub kind: String,
    /// `posix` or `memfd`.
    pub backing: String,
    /// How the consumer waits.
    pub wake: Wake,
    /// Whose API was used.
    pub language: String,
    /// The test that stands for the cell; empty until one ran.
    #[serde(default)]
    pub test: String,
    /// `pass`, `fail`, `none` (there is no such thing for this kind) or empty.
    #[serde(default)]
    pub outcome: String,
    /// Why it failed, or why there is none.
    #[serde(default)]
    pub detail: String,
}

/// What a behaviour's test works with.
#[derive(Debug)]
pub struct Setup {
    place: Place,
    kind: Kind,
    backing: Backing,
    wake: Wake,
    actor: PathBuf,
}

impl Setup {
    fn producer(&self) -> ProducerOptions {
        Producer::options("conformance")
            .dir(self.place.path())
            .kind(self.kind)
            .backing(self.backing)
            .wait(self.wake.policy())
            .schema(ledger::schema())
            .slots(8)
            .full_timeout(Some(WATCHDOG))
    }

    fn consumer(&self) -> ConsumerOptions {
        Consumer::options("conformance").dir(self.place.path()).wait(self.wake.policy()).timeout(Some(WATCHDOG))
    }

    /// A ring with one consumer that is counted in.
    fn pair(&self) -> (Producer, Consumer) {
        self.pair_of(self.producer(), self.consumer())
    }

    fn pair_of(&self, producer: ProducerOptions, consumer: ConsumerOptions) -> (Producer, Consumer) {
        let mut producer = producer.create().unwrap();
        let consumer = consumer.attach().unwrap();
        producer.wait_for_consumers(1, Some(WATCHDOG)).unwrap();
        (producer, consumer)
    }

    /// The next message, waited for in the way of this cell.
    fn try_next(&self, consumer: &mut Consumer) -> Result<Message, RecvError> {
        receive(self.wake, consumer)
    }

    fn next(&self, consumer: &mut Consumer) -> Message {
        let message = self.try_next(consumer).unwrap();
        ledger::check_message(&message);
        message
    }

    /// Asserts that there is no message now.
    fn nothing(&self, consumer: &mut Consumer) {
        let found = consumer.recv_timeout(Duration::from_millis(1));
        assert!(matches!(found, Err(RecvError::Timeout { .. })), "{found:?}");
    }

    /// Starts an actor with the options of this cell.
    fn start(&self, role: &str, options: &str) -> crate::Actor {
        let (kind, backing, wait) = (self.kind, self.backing, self.wake.policy());
        let options = format!("kind={kind} backing={backing} wait={wait} {options}");
        crate::Actor::start(&self.actor.to_string_lossy(), &self.place, role, "conformance", &options, &[])
    }
}

fn receive(wake: Wake, consumer: &mut Consumer) -> Result<Message, RecvError> {
    match wake {
        Wake::Eventfd => actor::poll_for(consumer),
        _ => consumer.recv_timeout(WATCHDOG),
    }
}

/// All behaviours, in the order of the table.
#[must_use]
pub fn behaviours() -> Vec<Behaviour> {
    behaviours::all().into_iter().chain(crash::all()).collect()
}

/// All combinations of kind, backing and wake; or of them as many as it takes that every pair of values meets.
#[must_use]
pub fn combinations(pairwise: bool) -> Vec<(Kind, Backing, Wake)> {
    let mut list = Vec::new();
    for (k, kind) in [Kind::Queue, Kind::Broadcast].into_iter().enumerate() {
        for (b, backing) in [Backing::Posix, Backing::Memfd].into_iter().enumerate() {
            for (w, wake) in Wake::ALL.into_iter().enumerate() {
                if !pairwise || (k + b + w) % 2 == 0 {
                    list.push((kind, backing, wake));
                }
            }
        }
    }
    list
}

/// Runs one behaviour in one combination.
#[must_use]
pub fn run(behaviour: &Behaviour, (kind, backing, wake): (Kind, Backing, Wake), actor: PathBuf) -> Cell {
    let mut cell = empty(behaviour, (kind, backing, wake), "rust");
    cell.test = behaviour.name.to_owned();
    if let (Kind::Broadcast, Some(why)) = (kind, behaviour.queue_only) {
        (cell.outcome, cell.detail) = ("none".to_owned(), why.to_owned());
        return cell;
    }
    let run = behaviour.run;
    let result = catch_unwind(AssertUnwindSafe(|| {
        crate::watchdog::within(behaviour.name, move || {
            run(&Setup { place: Place::new(), kind, backing, wake, actor });
        });
    }));
    match result {
        Ok(()) => "pass".clone_into(&mut cell.outcome),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            (cell.outcome, cell.detail) = ("fail".to_owned(), text.unwrap_or_else(|| "panicked".to_owned()));
        }
    }
    cell
}

fn empty(behaviour: &Behaviour, (kind, backing, wake): (Kind, Backing, Wake), language: &str) -> Cell {
    Cell {
        behaviour: behaviour.name.to_owned(),
        kind: kind.to_string(),
        backing: backing.to_string(),
        wake,
        language: language.to_owned(),
        test: String::new(),
        outcome: String::new(),
        detail: String::new(),
    }
}

const USAGE: &str = "usage: forebay-conformance [--pairwise] [--list] [--json FILE] [--merge FILE]… [--languages a,b]
  --pairwise       only as many combinations as it takes that every pair of kind, backing and wake meets
  --list           print the cells there are, one JSON object a line, and run nothing
  --json FILE      also write what ran to FILE, one JSON object a line
  --merge FILE     put the cells that another language's runner wrote beside ours
  --languages a,b  whose cells must be there; default: rust and those of the merged files";

/// The binary `forebay-conformance`.
#[must_use]
pub fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|first| ["producer", "consumer"].contains(&first.as_str())) {
        // The processes that die in the table are this binary itself.
        return actor::main();
    }
    match command(std::env::args().skip(1)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(what) => {
            let _ = writeln!(std::io::stderr(), "forebay-conformance: {what}\n{USAGE}");
            ExitCode::from(64)
        }
    }
}

fn command(mut args: impl Iterator<Item = String>) -> Result<bool, String> {
    let (mut pairwise, mut list, mut json, mut merge, mut languages) = (false, false, None, Vec::new(), Vec::new());
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--pairwise" => pairwise = true,
            "--list" => list = true,
            "--json" => json = Some(value()?),
            "--merge" => merge.push(value()?),
            "--languages" => languages.extend(value()?.split(',').map(str::to_owned)),
            _ => return Err(format!("no option {arg:?}")),
        }
    }
    let combinations = combinations(pairwise);
    let mut out = std::io::stdout().lock();
    let line = |cell: &Cell| serde_json::to_string(cell).map_err(|e| e.to_string());
    if list {
        for behaviour in behaviours() {
            for &combination in &combinations {
                let mut cell = empty(&behaviour, combination, "");
                if combination.0 == Kind::Broadcast && behaviour.queue_only.is_some() {
                    "none".clone_into(&mut cell.outcome);
                    behaviour.queue_only.unwrap_or_default().clone_into(&mut cell.detail);
                }
                writeln!(out, "{}", line(&cell)?).map_err(|e| e.to_string())?;
            }
        }
        return Ok(true);
    }
    let actor = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut cells = Vec::new();
    for behaviour in behaviours() {
        cells.extend(combinations.iter().map(|&combination| run(&behaviour, combination, actor.clone())));
    }
    if let Some(path) = json {
        let text = cells.iter().map(line).collect::<Result<Vec<_>, _>>()?.join("\n");
        std::fs::write(&path, text + "\n").map_err(|e| format!("{path}: {e}"))?;
    }
    for path in merge {
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        for (number, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
            let cell = serde_json::from_str(text).map_err(|e| format!("{path}:{}: {e}", number + 1))?;
            cells.push(cell);
        }
    }
    if languages.is_empty() {
        languages = cells.iter().map(|cell| cell.language.clone()).collect();
        languages.sort();
        languages.dedup();
    }
    matrix::print(&mut out, &behaviours(), &combinations, &cells, &languages).map_err(|e| e.to_string())
}
