//! What the tests share: a place of their own, the real binary as a child, and consumers that check what they get.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test helper fails by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use forebay::{AckMode, Consumer, Message, RecvError, inspect};
use forebay_ingest::{Position, Tokenizer, TokenizerOptions};

/// No wait in a test is longer; whoever waits this long hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A directory with a rendezvous directory and a tokenizer in it. Dropping it removes every ring that the test left.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tokenizer.json"), numbers_json(None)).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.path("rings")
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// A text of this many lines; line i says "i mod 1000, i / 1000" and some more, so that rows differ in length.
    pub(crate) fn numbers(&self, name: &str, lines: usize) -> PathBuf {
        let text: String = (0..lines).map(|i| number_line(i) + "\n").collect();
        self.write(name, text)
    }

    /// `forebay COMMAND`, in this place.
    pub(crate) fn command(&self, command: &str) -> Command {
        let mut child = Command::new(env!("CARGO_BIN_EXE_forebay"));
        // Signals are noticed at the end of a slice: switched off for this process, they stay on for the child.
        child.env_remove("FOREBAY_SLICE_MS");
        child.arg(command).env("FOREBAY_DIR", self.dir()).env_remove("XDG_RUNTIME_DIR").current_dir(self.folder.path());
        child
    }

    /// `forebay feed --tokenizer THAT OF THIS PLACE ARGS…`, running.
    pub(crate) fn feed<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Running {
        let mut command = self.command("feed");
        command.args(["--tokenizer", "tokenizer.json"]).args(args);
        Running::start(command)
    }

    /// `forebay feed ARGS…`, running.
    pub(crate) fn feed_other<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Running {
        let mut command = self.command("feed");
        command.args(args);
        Running::start(command)
    }

    /// A consumer that acks what it drops.
    pub(crate) fn consumer(&self, ring: &str) -> Consumer {
        Consumer::options(ring).dir(self.dir()).timeout(Some(PATIENCE)).label("test consumer").attach().unwrap()
    }

    /// A consumer that gives back what it drops without an ack.
    pub(crate) fn manual_consumer(&self, ring: &str) -> Consumer {
        let options = Consumer::options(ring).dir(self.dir()).timeout(Some(PATIENCE));
        options.label("manual consumer").ack(AckMode::Manual).attach().unwrap()
    }

    /// Waits until so many messages were published in the ring of this place.
    #[track_caller]
    pub(crate) fn wait_until_published(&self, messages: u64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let rings = inspect::list(Some(&self.dir())).unwrap();
            let head = rings.first().and_then(|ring| ring.view.as_ref().ok()).map_or(0, |view| view.head);
            if head > messages {
                return;
            }
            assert!(Instant::now() < deadline, "{rings:?}");
            thread::yield_now();
        }
    }

    /// Nothing of any ring is left in /dev/shm or in the directory.
    pub(crate) fn assert_clean(&self) {
        let left = inspect::list(Some(&self.dir())).unwrap();
        assert!(left.is_empty(), "left behind: {left:?}");
        let files: Vec<_> = fs::read_dir(self.dir()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert!(files.is_empty(), "left behind: {files:?}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let cleaned = inspect::clean(Some(&self.dir()));
        if !thread::panicking() {
            assert_eq!(cleaned.unwrap().kept, [], "somebody still holds a ring at the end of the test");
        }
    }
}

/// A line of [`Place::numbers`].
pub(crate) fn number_line(i: usize) -> String {
    let more = " 7".repeat(i % 5);
    format!("{} {}{more}", i % 1000, i / 1000)
}

/// A tokenizer whose words `0` to `999` are their own ids.
pub(crate) fn numbers_json(max_length: Option<usize>) -> String {
    let vocab: Vec<String> = (0..1000).map(|id| format!("\"{id}\":{id}")).collect();
    let truncation = max_length.map_or("null".to_owned(), |length| {
        format!(r#"{{"max_length":{length},"strategy":"LongestFirst","stride":0,"direction":"Right"}}"#)
    });
    format!(
        r#"{{"version":"1.0","truncation":{truncation},"added_tokens":[],"pre_tokenizer":{{"type":"WhitespaceSplit"}},
            "model":{{"type":"WordLevel","vocab":{{{}}},"unk_token":"missing"}}}}"#,
        vocab.join(",")
    )
}

/// The bundled data.
pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/data").join(name)
}

// === children ===

/// Lines that another thread collects.
#[derive(Clone, Default)]
struct Collected(Arc<Shared>);

#[derive(Default)]
struct Shared {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    lines: Vec<String>,
    ended: bool,
}

impl Collected {
    fn from(pipe: impl Read + Send + 'static) -> (Self, JoinHandle<()>) {
        let this = Self::default();
        let to = this.clone();
        let thread = thread::spawn(move || {
            for line in BufReader::new(pipe).lines() {
                let Ok(line) = line else { break };
                to.0.lines.lock().unwrap().lines.push(line);
                to.0.changed.notify_all();
            }
            to.0.lines.lock().unwrap().ended = true;
            to.0.changed.notify_all();
        });
        (this, thread)
    }

    fn text(&self) -> String {
        self.0.lines.lock().unwrap().lines.join("\n")
    }

    #[track_caller]
    fn wait_for(&self, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut found = self.0.lines.lock().unwrap();
        loop {
            if let Some(line) = found.lines.iter().find(|line| line.contains(part)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let all = || found.lines.join("\n");
            assert!(!found.ended, "it ended without saying {part:?}:\n{}", all());
            assert!(!left.is_zero(), "it did not say {part:?}:\n{}", all());
            found = self.0.changed.wait_timeout(found, left).unwrap().0;
        }
    }
}

/// The binary, running. Dropping it kills it.
pub(crate) struct Running {
    child: Child,
    out: Collected,
    err: Collected,
    threads: Vec<JoinHandle<()>>,
}

/// How it ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}\n{}", self.out, self.err))
    }

    #[track_caller]
    pub(crate) fn assert_code(&self, code: i32) -> &Self {
        assert_eq!(self.status.code(), Some(code), "{:?}\n{}\n{}", self.status, self.out, self.err);
        self
    }

    #[track_caller]
    pub(crate) fn assert_says(&self, parts: &[&str]) -> &Self {
        for part in parts {
            assert!(self.err.contains(part), "{part:?} is not in:\n{}", self.err);
        }
        self
    }
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (out, out_thread) = Collected::from(child.stdout.take().unwrap());
        let (err, err_thread) = Collected::from(child.stderr.take().unwrap());
        Self { child, out, err, threads: vec![out_thread, err_thread] }
    }

    /// Waits until it says something like this on standard error; returns the line.
    #[track_caller]
    pub(crate) fn wait_for(&self, part: &str) -> String {
        self.err.wait_for(part)
    }

    /// Waits until it writes something like this on standard output.
    #[track_caller]
    pub(crate) fn wait_for_output(&self, part: &str) -> String {
        self.out.wait_for(part)
    }

    /// What it reads.
    pub(crate) fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status().unwrap();
        assert!(sent.success());
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(mut self) -> Ended {
        self.child.kill().unwrap();
        self.end()
    }

    /// Signals until it has ended; those that come close together count once.
    pub(crate) fn signal_until_it_ends(&mut self, name: &str) {
        while !self.has_ended() {
            self.signal(name);
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until it has ended.
    #[track_caller]
    pub(crate) fn end(&mut self) -> Ended {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.err.text());
            thread::sleep(Duration::from_millis(2));
        };
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        Ended { status, out: self.out.text(), err: self.err.text() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end.
#[track_caller]
pub(crate) fn finish(command: Command) -> Ended {
    Running::start(command).end()
}

pub(crate) fn signal_of(ended: &Ended) -> Option<i32> {
    ended.status.signal()
}

// === receiving ===

/// What a message brought.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Got {
    pub(crate) sequence: u64,
    pub(crate) first_item: u64,
    pub(crate) next: Position,
    /// Rows without padding, by the mask.
    pub(crate) rows: Vec<Vec<u32>>,
}

impl Got {
    pub(crate) fn of(message: &Message) -> Self {
        let (ids, mask) = (message.tensor("input_ids").unwrap(), message.tensor("attention_mask").unwrap());
        assert_eq!(ids.shape(), mask.shape());
        assert!(message.timestamp_ns().is_some());
        let cols = ids.shape()[1] as usize;
        let (ids, mask) = (ids.as_slice::<i64>().unwrap(), mask.as_slice::<i64>().unwrap());
        let row = |(ids, mask): (&[i64], &[i64])| {
            ids.iter().zip(mask).filter(|(_, mask)| **mask == 1).map(|(id, _)| *id as u32).collect()
        };
        Self {
            sequence: message.sequence(),
            first_item: message.correlation_id(),
            // Of a batch in parts, what is done of it follows.
            next: Position::decode(&message.user()[..Position::ENCODED_BYTES]).unwrap(),
            rows: ids.chunks(cols.max(1)).zip(mask.chunks(cols.max(1))).map(row).collect(),
        }
    }
}

/// The next message; the consumer is through with it.
#[track_caller]
pub(crate) fn receive(consumer: &mut Consumer) -> Got {
    Got::of(&consumer.recv_timeout(PATIENCE).unwrap())
}

/// All messages until the ring is closed.
pub(crate) fn receive_all(consumer: &mut Consumer) -> Vec<Got> {
    let mut all = Vec::new();
    loop {
        match consumer.recv_timeout(PATIENCE) {
            Ok(message) => all.push(Got::of(&message)),
            Err(RecvError::Closed { .. }) => return all,
            Err(e) => panic!("{e}"),
        }
    }
}

/// The rows of these messages are exactly those of `texts`, each once and in order.
#[track_caller]
pub(crate) fn assert_rows(got: &[Got], tokenizer: &Path, texts: &[impl AsRef<str>]) {
    let tokenizer = Tokenizer::from_file(tokenizer, &TokenizerOptions::default()).unwrap();
    let expected = tokenizer.encode_batch(texts.iter().map(AsRef::as_ref)).unwrap();
    let mut item = 0;
    for message in got {
        assert_eq!(message.first_item, item as u64, "message {}", message.sequence);
        for row in &message.rows {
            assert!(item < expected.rows(), "more rows than lines");
            assert_eq!(row, expected.row(item), "row {item}");
            item += 1;
        }
        assert_eq!(message.next.items, item as u64);
    }
    assert_eq!(item, expected.rows(), "lines are missing");
}

/// The texts of [`Place::numbers`].
pub(crate) fn number_lines(lines: usize) -> Vec<String> {
    (0..lines).map(number_line).collect()
}

/// Ends the process if it is not dropped within two minutes.
pub(crate) struct Watchdog(#[allow(dead_code, reason = "its drop is the signal")] Sender<()>);

pub(crate) fn watchdog() -> Watchdog {
    let (alive, ended) = channel();
    let test = thread::current().name().unwrap_or("?").to_owned();
    thread::spawn(move || {
        if ended.recv_timeout(Duration::from_secs(120)) == Err(RecvTimeoutError::Timeout) {
            eprintln!("{test} hangs");
            std::process::abort();
        }
    });
    Watchdog(alive)
}
