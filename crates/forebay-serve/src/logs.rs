//! The log: lines on standard error, for people or as JSON, written by a thread of its own.
//!
//! A request never waits for whoever reads the log. Lines go into a queue that is bounded in lines and in bytes; when it is
//! full they are dropped, and how many is said as soon as there is room.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use tracing_subscriber::{
    filter::Targets, fmt, fmt::MakeWriter, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::config::{LogConfig, LogFormat};

/// Lines that wait to be written, at most.
const QUEUED: usize = 8192;
/// Bytes of lines that wait, at most. Most have 200; one of a worker may have 16 KiB, and several times that where they
/// are no text.
const QUEUED_BYTES: usize = 8 << 20;
/// Bytes that are written at once, about.
const AT_ONCE: usize = 64 << 10;

/// Ends the log when dropped: what waits is written.
#[derive(Debug)]
#[must_use = "what waits is written when this is dropped"]
pub struct Guard {
    lines: Lines,
    thread: Option<thread::JoinHandle<()>>,
}

/// Writes the log of this process to standard error from now on, as `config` says.
///
/// # Errors
/// There is a log already, or no thread can be started.
pub fn init(config: &LogConfig) -> io::Result<Guard> {
    // The level was checked with the configuration.
    let filter: Targets = config.level.parse().map_err(io::Error::other)?;
    let (lines, guard) = to(io::stderr())?;
    let base = fmt::layer().with_writer(lines);
    let registry = tracing_subscriber::registry().with(filter);
    let done = match config.format {
        LogFormat::Text => {
            use io::IsTerminal as _;
            registry.with(base.with_target(false).with_ansi(io::stderr().is_terminal())).try_init()
        }
        LogFormat::Json => registry.with(base.json().flatten_event(true)).try_init(),
    };
    done.map_err(io::Error::other)?;
    Ok(guard)
}

/// A writer whose lines go to `out`, and what ends it.
fn to(out: impl Write + Send + 'static) -> io::Result<(Lines, Guard)> {
    let (send, receive) = sync_channel(QUEUED);
    let lines = Lines { send, counts: Arc::default() };
    let counts = Arc::clone(&lines.counts);
    let write = move || write_all(&receive, &counts, out);
    let thread = thread::Builder::new().name("forebay-log".into()).spawn(write)?;
    Ok((lines.clone(), Guard { lines, thread: Some(thread) }))
}

/// What is sent: a line, or none as the end.
type Line = Option<Vec<u8>>;

#[derive(Debug, Clone)]
struct Lines {
    send: SyncSender<Line>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Lines, since it was said last.
    dropped: AtomicU64,
    /// Bytes of the lines that wait.
    queued: AtomicUsize,
}

impl Lines {
    /// Whether there was room for it.
    fn queue(&self, line: Vec<u8>) -> bool {
        let bytes = line.capacity();
        // ORDER none, Relaxed: a count; nothing else is read on the strength of it.
        let before = self.counts.queued.fetch_add(bytes, Relaxed);
        let fits = before.saturating_add(bytes) <= QUEUED_BYTES && self.send.try_send(Some(line)).is_ok();
        if !fits {
            // ORDER none, Relaxed: as above.
            self.counts.queued.fetch_sub(bytes, Relaxed);
        }
        fits
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Blocks where the queue is full: what is in it was promised. Nobody may be left to read it; then it ends, too.
        let _ = self.lines.send.send(None);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write_all(lines: &Receiver<Line>, counts: &Counts, mut out: impl Write) {
    let mut together = Vec::with_capacity(AT_ONCE);
    while let Ok(first) = lines.recv() {
        let mut next = Some(first);
        let mut ended = false;
        while let Some(line) = next {
            match line {
                Some(line) => {
                    // ORDER none, Relaxed: a count.
                    counts.queued.fetch_sub(line.capacity(), Relaxed);
                    together.extend_from_slice(&line);
                }
                None => ended = true,
            }
            next = if together.len() < AT_ONCE && !ended { lines.try_recv().ok() } else { None };
        }
        // ORDER none, Relaxed: a count.
        let lost = counts.dropped.swap(0, Relaxed);
        if lost > 0 {
            together
                .extend_from_slice(format!("{lost} lines of the log were dropped: it is read too slowly\n").as_bytes());
        }
        // Nobody may read it; the service goes on.
        let _ = out.write_all(&together);
        let _ = out.flush();
        together.clear();
        if ended {
            return;
        }
    }
}

/// One line of the log, sent when it is whole.
struct OneLine<'a> {
    lines: &'a Lines,
    line: Vec<u8>,
}

impl Write for OneLine<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for OneLine<'_> {
    fn drop(&mut self) {
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() && !self.lines.queue(line) {
            // ORDER none, Relaxed: a count.
            self.lines.counts.dropped.fetch_add(1, Relaxed);
        }
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = OneLine<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        OneLine { lines: self, line: Vec::with_capacity(256) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use super::*;

    /// Takes bytes only while its lock is free.
    #[derive(Clone, Default)]
    struct Slow(Arc<Mutex<Vec<u8>>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is written in the end of `all` lines with `tail` after their numbers, which nobody took meanwhile; how many
    /// of them are there, and how many were lost.
    fn written_late(all: usize, tail: &str) -> (String, usize, usize) {
        let slow = Slow::default();
        let (lines, guard) = to(slow.clone()).expect("a thread");
        let held = slow.0.lock().unwrap_or_else(PoisonError::into_inner);
        for i in 0..all {
            lines.make_writer().write_all(format!("line {i}{tail}\n").as_bytes()).expect("a line");
        }
        drop(held);
        drop(guard);
        assert_eq!(lines.counts.queued.load(Relaxed), 0);
        let text = String::from_utf8(std::mem::take(&mut slow.0.lock().unwrap_or_else(PoisonError::into_inner)));
        let text = text.expect("UTF-8");
        let written = text.lines().filter(|line| line.starts_with("line ")).count();
        let lost =
            text.lines().filter_map(|line| line.strip_suffix(" lines of the log were dropped: it is read too slowly"));
        let lost: usize = lost.map(|count| count.parse::<usize>().expect("a count")).sum();
        (text, written, lost)
    }

    #[test]
    fn lines_that_nobody_takes_are_dropped_and_counted_and_never_waited_for() {
        let all = 4 * QUEUED;
        let (text, written, lost) = written_late(all, "");
        assert!(lost > 0 && text.starts_with("line 0\nline 1\n"));
        assert_eq!(written + lost, all);
    }

    #[test]
    fn long_lines_that_nobody_takes_are_bounded_by_their_bytes() {
        let (all, long) = (QUEUED / 4, "x".repeat(64 << 10));
        let (text, written, lost) = written_late(all, &long);
        assert_eq!(written + lost, all);
        // Those that the writer had in its hands are not in the queue.
        assert!(written > 100 && text.len() < QUEUED_BYTES + 2 * AT_ONCE + (64 << 10) + 1000, "{written}");
    }
}
