//! `[worker]`: the processes that run the model.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

/// The processes that run the model.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerConfig {
    /// Program and arguments, such as `["python", "worker.py"]`.
    pub command: Vec<String>,
    /// How many. Default 1.
    #[serde(default = "one")]
    pub count: usize,
    /// Processes that run one model together, each seeing every batch. Default 1.
    #[serde(default = "one")]
    pub ranks: usize,
    /// Where they run; default: the folder of the configuration file.
    pub cwd: Option<PathBuf>,
    /// Beyond what they inherit.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// How long one may take until it says that it is ready, in seconds. Default 300.
    #[serde(default = "start_timeout_s")]
    pub start_timeout_s: f64,
    /// How long one batch may take before the worker counts as hanging and is replaced, in seconds. Default 60.
    #[serde(default = "batch_timeout_s")]
    pub batch_timeout_s: f64,
    /// How long one is given to finish before it is killed, in seconds. Default 10.
    #[serde(default = "grace_s")]
    pub grace_s: f64,
    /// What becomes of requests whose worker died. Default `fail`.
    #[serde(default)]
    pub on_death: OnDeath,
    /// The first pause before a dead one is started again, in seconds; doubles up to 30. Default 0.1.
    #[serde(default = "backoff_s")]
    pub backoff_s: f64,
    /// Deaths within a minute after which the model is not ready any more. Default 5.
    #[serde(default = "crash_loop")]
    pub crash_loop: usize,
    /// Slots for batches. Default: prefetch + 3; + 8 where models generate.
    pub slots: Option<u32>,
    /// Bytes of one. Default: what the largest batch needs, at most 64 MiB, but one item in any case; 64 MiB where items
    /// have no bound.
    pub slot_bytes: Option<u64>,
    /// Slots for answers. Default 16.
    #[serde(default = "answer_slots")]
    pub answer_slots: u32,
    /// Bytes of one. Default 1 MiB.
    #[serde(default = "answer_slot_bytes")]
    pub answer_slot_bytes: u64,
}

/// What becomes of requests whose worker died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDeath {
    /// 502 at once: they may have been what killed it.
    #[default]
    Fail,
    /// Once more on another worker, then 502.
    Retry,
}

fn one() -> usize {
    1
}

fn start_timeout_s() -> f64 {
    300.0
}

fn batch_timeout_s() -> f64 {
    60.0
}

fn grace_s() -> f64 {
    10.0
}

fn backoff_s() -> f64 {
    0.1
}

fn crash_loop() -> usize {
    5
}

fn answer_slots() -> u32 {
    16
}

fn answer_slot_bytes() -> u64 {
    1 << 20
}
