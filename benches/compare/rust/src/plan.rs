//! What a process of a pair is told: one JSON object, the same for Rust and Python.

use std::{path::PathBuf, str::FromStr};

use serde::Deserialize;

/// One pair of processes, one size.
#[derive(Debug, Deserialize)]
pub(crate) struct Plan {
    /// Which transport.
    pub(crate) candidate: String,
    /// A folder of this pair's own, in memory.
    pub(crate) dir: PathBuf,
    /// A name of this pair's own, for what has no folder.
    pub(crate) name: String,
    /// Payload of a message, at least 16.
    pub(crate) bytes: usize,
    /// Messages that the transport is to have room for.
    pub(crate) slots: usize,
    /// Core of this process.
    pub(crate) cpu: usize,
    /// Idle time of the producer between an answer and the next message.
    pub(crate) gap_ns: u64,
    /// Messages at the beginning of each phase that are not counted.
    pub(crate) warm: u64,
    /// Messages of each latency phase that are.
    pub(crate) count: u64,
    /// Messages of the rate phase; 0: none.
    pub(crate) rate_count: u64,
}

/// Which of the two processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Makes the channel and sends.
    Send,
    /// Receives and measures.
    Receive,
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "send" => Ok(Self::Send),
            "recv" => Ok(Self::Receive),
            other => Err(format!("expected send or recv, not {other}")),
        }
    }
}
