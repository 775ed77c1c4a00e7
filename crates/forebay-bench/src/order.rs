//! What one measurement is, and what a peer process is told and answers: one line of JSON each.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::summary::Buckets;

/// The field that every message has.
pub(crate) const FIELD: &str = "x";

/// Who hands to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Rust to Rust.
    Native,
    /// Rust to a NumPy array in Python.
    Numpy,
    /// Rust to a torch tensor in Python.
    Torch,
    /// Python (an array) to Rust.
    FromPython,
}

impl Direction {
    /// As tables show it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "Rust → Rust",
            Self::Numpy => "Rust → NumPy",
            Self::Torch => "Rust → torch",
            Self::FromPython => "Python → Rust",
        }
    }
}

/// What the producer does with the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Write {
    /// It was written in the slot: nothing is copied.
    InPlace,
    /// It is copied into the slot from elsewhere.
    Copy,
}

/// What the consumer does with the payload before it looks at the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Read {
    /// Nothing: it has the tensor.
    None,
    /// It reads every byte.
    All,
}

/// What a peer process is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) dir: PathBuf,
    /// The ring that is measured.
    pub(crate) ring: String,
    /// The ring of the replies, which the other end of `ring` makes; none where a rate is measured.
    pub(crate) reply: Option<String>,
    /// True: receives from `ring` and makes `reply`. False: makes `ring` and receives from `reply`.
    pub(crate) receives: bool,
    pub(crate) direction: Direction,
    pub(crate) wait: String,
    pub(crate) write: Write,
    pub(crate) read: Read,
    pub(crate) bytes: u64,
    /// The first messages are not counted: they warm caches, predictors and the Python interpreter.
    pub(crate) warm: u64,
    /// Messages to send, where it sends.
    pub(crate) messages: u64,
    /// Nanoseconds between a reply and the next message.
    pub(crate) nap_ns: u64,
    pub(crate) cpu: Option<usize>,
}

/// What a peer process says at its end.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Times from the beginning of a hand-over to its end, where it received.
    pub(crate) times: Buckets,
    /// Messages received.
    pub(crate) messages: u64,
    /// From the first of them to the last, ns.
    pub(crate) span_ns: u64,
}
