//! The processes of one worker: started as a group that ends with this process, read from, killed, waited for.

use std::{
    collections::VecDeque,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    runtime::Handle,
    sync::{oneshot, watch},
};

/// Longest line of a worker that is logged as one.
const LINE_BYTES: usize = 8 << 10;
/// Last words that are kept of a worker.
const LAST_WORDS: usize = 8;

/// How long they are waited for once it has ended.
const LAST_WORDS_TIME: Duration = Duration::from_millis(30);

type Job = Box<dyn FnOnce() + Send>;

/// The thread that starts all processes. A process that is to end with its parent ends with the *thread* that started
/// it: so that must be one that lives as long as this process.
#[derive(Debug, Clone)]
pub(super) struct Spawner(mpsc::Sender<Job>);

impl Spawner {
    pub(super) fn start() -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let run = move || queue.into_iter().for_each(|job| job());
        std::thread::Builder::new().name("forebay-spawner".into()).spawn(run)?;
        Ok(Self(jobs))
    }

    async fn spawn(&self, command: Start) -> Result<tokio::process::Child, String> {
        let (done, child) = oneshot::channel();
        let runtime = Handle::current();
        let job = move || {
            let _inside = runtime.enter();
            // Whoever waited has left: dropping the child kills it.
            let _ = done.send(command.spawn());
        };
        let gone = || "the thread that starts processes is gone".to_owned();
        self.0.send(Box::new(job)).map_err(|_| gone())?;
        child.await.map_err(|_| gone())?
    }
}

/// What to start.
#[derive(Debug, Clone)]
pub(super) struct Start {
    pub(super) command: Vec<String>,
    pub(super) cwd: Option<PathBuf>,
    pub(super) env: Vec<(String, String)>,
}

impl Start {
    fn spawn(self) -> Result<tokio::process::Child, String> {
        let (program, arguments) = self.command.split_first().ok_or("worker.command is empty")?;
        let mut command = std::process::Command::new(program);
        command.args(arguments).envs(self.env).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(cwd) = &self.cwd {
            command.current_dir(cwd);
        }
        // A group of its own: signals of a terminal are for the daemon, and what a worker starts goes with it.
        command.process_group(0);
        let parent = rustix::process::getpid();
        let die_with_parent = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before that.
            if rustix::process::getppid() != Some(parent) {
                return Err(rustix::io::Errno::SRCH.into());
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes two system calls; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(die_with_parent) };
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(true);
        command.spawn().map_err(|e| format!("cannot start {program:?}: {e}; see worker.command and worker.cwd"))
    }
}

/// One process, as the group knows it.
#[derive(Debug)]
struct Process {
    pid: Pid,
    gone: Arc<AtomicBool>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy)]
struct Exit {
    rank: usize,
    status: ExitStatus,
    at: Instant,
}

/// The processes of one life of a worker. Dropping it kills them.
#[derive(Debug)]
pub(super) struct Group {
    processes: Vec<Process>,
    /// How each ended, in the order of their ends.
    exits: watch::Receiver<Vec<Exit>>,
    words: Arc<Mutex<VecDeque<String>>>,
}

impl Group {
    /// Starts a process for each of `starts`.
    pub(super) async fn start(spawner: &Spawner, worker: usize, starts: Vec<Start>) -> Result<Self, String> {
        let (told, exits) = watch::channel(Vec::new());
        let told = Arc::new(told);
        let ranks = starts.len();
        let mut group = Self { processes: Vec::new(), exits, words: Arc::default() };
        for (rank, start) in starts.into_iter().enumerate() {
            // An error drops the group, which kills the ranks before.
            let mut child = spawner.spawn(start).await?;
            let raw = child.id().and_then(|id| Pid::from_raw(id as i32));
            let pid = raw.ok_or("a worker ended before it began")?;
            let rank_label = (ranks > 1).then_some(rank);
            let mut readers = Vec::new();
            for (stream, output) in [
                ("stdout", child.stdout.take().map(|out| Box::new(out) as Box<dyn AsyncRead + Send + Unpin>)),
                ("stderr", child.stderr.take().map(|out| Box::new(out) as Box<dyn AsyncRead + Send + Unpin>)),
            ] {
                if let Some(output) = output {
                    let reader = log_lines(output, worker, rank_label, stream, Arc::clone(&group.words));
                    readers.push(tokio::spawn(reader));
                }
            }
            let gone = Arc::new(AtomicBool::new(false));
            let (ended, told) = (Arc::clone(&gone), Arc::clone(&told));
            tokio::spawn(async move {
                let status = child.wait().await.unwrap_or_else(|_| ExitStatus::from_raw(0xff00));
                // ORDER none, Relaxed: a hint that the number may be somebody else's from now on.
                ended.store(true, Ordering::Relaxed);
                // Its last words say why; what it started may hold the pipes open longer.
                let last_words = async {
                    for reader in readers {
                        let _ = reader.await;
                    }
                };
                let _ = tokio::time::timeout(LAST_WORDS_TIME, last_words).await;
                told.send_modify(|exits| exits.push(Exit { rank, status, at: Instant::now() }));
            });
            group.processes.push(Process { pid, gone });
        }
        Ok(group)
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(|process| process.pid.as_raw_nonzero().get() as u32).collect()
    }

    /// Sends a signal to every process, and to what they started.
    pub(super) fn signal(&self, signal: Signal) {
        for process in &self.processes {
            // ORDER none, Relaxed: see where it is stored.
            if !process.gone.load(Ordering::Relaxed) {
                // It may be gone by now.
                let _ = kill_process_group(process.pid, signal);
            }
        }
    }

    /// Waits until one of them has ended; says which and how.
    pub(super) async fn one_ended(&self) -> String {
        let mut exits = self.exits.clone();
        // Its sender lives in the tasks that wait for the processes.
        let first = exits.wait_for(|exits| !exits.is_empty()).await.map(|exits| exits.first().copied());
        match first {
            Ok(Some(exit)) => self.tell(exit),
            _ => "ended".to_owned(),
        }
    }

    /// Waits until all have ended, at most so long; false if some have not.
    pub(super) async fn all_ended(&self, timeout: Duration) -> bool {
        let (mut exits, count) = (self.exits.clone(), self.processes.len());
        tokio::time::timeout(timeout, exits.wait_for(|exits| exits.len() >= count)).await.is_ok()
    }

    /// How the first that ended did, if one has.
    pub(super) fn first_exit(&self) -> Option<String> {
        let first = self.exits.borrow().first().copied();
        first.map(|exit| self.tell(exit))
    }

    /// When the first that ended did, if one has.
    pub(super) fn one_ended_at(&self) -> Option<Instant> {
        self.exits.borrow().first().map(|exit| exit.at)
    }

    fn tell(&self, Exit { rank, status, .. }: Exit) -> String {
        let whose = if self.processes.len() > 1 { format!("rank {rank}: ") } else { String::new() };
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("killed by signal {signal}"),
            (None, None) => "ended".to_owned(),
        };
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        match words.back() {
            Some(last) if !status.success() => format!("{whose}{how}: {last}"),
            _ => format!("{whose}{how}"),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Logs what a worker writes, line by line.
async fn log_lines(
    mut output: Box<dyn AsyncRead + Send + Unpin>,
    worker: usize,
    rank: Option<usize>,
    stream: &'static str,
    words: Arc<Mutex<VecDeque<String>>>,
) {
    let mut line: Vec<u8> = Vec::new();
    let mut buffer = vec![0; LINE_BYTES];
    let say = |line: &mut Vec<u8>| {
        let text = String::from_utf8_lossy(line).trim_end().to_owned();
        line.clear();
        if text.is_empty() {
            return;
        }
        match rank {
            Some(rank) => tracing::info!(target: "forebay_serve::worker", worker, rank, stream, "{text}"),
            None => tracing::info!(target: "forebay_serve::worker", worker, stream, "{text}"),
        }
        if stream == "stderr" {
            let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
            if words.len() >= LAST_WORDS {
                words.pop_front();
            }
            words.push_back(text.chars().take(300).collect());
        }
    };
    while let Ok(count) = output.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        for piece in buffer[..count].split_inclusive(|&byte| byte == b'\n') {
            line.extend_from_slice(piece);
            if piece.ends_with(b"\n") || line.len() >= LINE_BYTES {
                say(&mut line);
            }
        }
    }
    say(&mut line);
}
