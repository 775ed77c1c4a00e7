//! What a victim answered, and whether that is all right.

use std::time::Duration;

/// How far beyond its own deadline an operation may end: a second is promised, the rest is for a machine that runs
/// other tests at the same time, and the tracer in the way.
const LATE: Duration = Duration::from_secs(1 + 3);

/// The answer of one round.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) ok: bool,
    pub(crate) text: String,
    pub(crate) left: String,
}

/// The longest that an operation waits by itself.
pub(crate) fn deadline(operation: &str) -> Duration {
    match operation.split('-').next() {
        // A second for the answer to its greeting, and what it was told to wait for a producer.
        Some("attach" | "reconnect" | "list" | "clean" | "doctor") => Duration::from_millis(2300),
        // The waits of these are 1.5 s, some several.
        _ => Duration::from_millis(1500),
    }
}

impl Answer {
    /// Reads an answer; what is never all right is an error here: a panic, a death, a leak, a wait that is too long.
    pub(crate) fn read(operation: &str, said: &Result<String, String>) -> Result<Self, String> {
        let line = said.as_ref().map_err(Clone::clone)?;
        let parts: Vec<&str> = line.splitn(5, '\t').collect();
        let &[kind, elapsed, left, leaked, text] = parts.as_slice() else {
            return Err(format!("not an answer: {line:?}"));
        };
        if kind == "panic" {
            return Err(format!("PANIC {text}"));
        }
        if !leaked.is_empty() {
            return Err(format!("LEAK {leaked}; {text}"));
        }
        let elapsed = Duration::from_millis(elapsed.parse().map_err(|e| format!("{e}: {line:?}"))?);
        if elapsed > deadline(operation) + LATE {
            return Err(format!("LATE {elapsed:?}; {text}"));
        }
        Ok(Self { ok: kind == "ok", text: text.to_owned(), left: left.to_owned() })
    }

    /// Whether what is left is a file that a clean finds and that only a failed removal, or a lock that could not be
    /// taken, can leave.
    pub(crate) fn left_is_excusable(&self, removal_failed: bool) -> bool {
        let only = |what: &str| self.left.split(", ").all(|left| left.contains(what));
        self.left.is_empty()
            // Nobody may remove a lock file whose lock he could not take: somebody else may have it by now.
            || only(".lock: 0 -> 1") && ["lock file", ".lock", "/proc/self/fd"].iter().any(|w| self.text.contains(w))
            || only(".lock: 0 -> 1") && self.text.contains("readdir")
            || removal_failed && self.left.split(", ").all(|left| left.starts_with("file ") || left.starts_with("object "))
    }
}
