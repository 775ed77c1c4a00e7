//! What a hand-over costs on this machine, beside what the hardware allows.
//!
//! ```text
//!   host.rs     the machine, the two cores used, how noisy they are
//!   floor.rs    what no ring can beat: a cache line, a futex wake, a memcpy
//!   order.rs    what one measurement is; what a peer process is told and answers
//!   peer.rs     the other process: receives or sends, stamps, replies
//!   latency.rs, throughput.rs   this process's side of either
//!   plan.rs     which measurements a run makes                  report.rs, plot.rs   what came out, as table, JSON, SVG
//! ```
//!
//! Every figure is from two processes. A message carries the time at which its hand-over began, before the loan; the
//! receiver reads the clock when it has the tensor. One message is in flight at a time, and the next begins when the reply to
//! it has come on a second ring. Latencies contain one reading of the clock, whose cost is printed; so do the floors.

mod floor;
mod host;
mod latency;
mod order;
mod peer;
mod plan;
mod plot;
mod report;
mod summary;
mod throughput;

use std::{io, path::PathBuf, time::Duration};

pub use host::Host;
pub use order::{Direction, Read, Write};
pub use peer::peer;
pub use plan::Wishes;
pub use plot::svg;
pub use report::{Report, Row};

/// Why nothing could be measured.
#[derive(Debug)]
pub enum BenchError {
    /// A ring could not be made, or its peer failed.
    Failed(String),
    /// The system said no.
    Io(io::Error),
}

impl std::fmt::Display for BenchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Failed(why) => f.write_str(why),
            Self::Io(e) => write!(f, "cannot run the other process: {e}"),
        }
    }
}

impl std::error::Error for BenchError {}

impl From<io::Error> for BenchError {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

pub(crate) fn failed(what: &str) -> impl Fn(&dyn std::fmt::Display) -> BenchError + '_ {
    move |why| BenchError::Failed(format!("{what}: {why}"))
}

/// The programs that are the other process.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Runs [`peer`] with the argument it is given.
    pub native: Vec<String>,
    /// A Python that imports forebay, if there is one.
    pub python: Option<PathBuf>,
}

/// How long each measurement may take.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Time for one latency or one rate.
    pub time: Duration,
    /// Messages at most for one latency.
    pub messages: u64,
}

impl Default for Effort {
    fn default() -> Self {
        Self { time: Duration::from_millis(700), messages: 50_000 }
    }
}
