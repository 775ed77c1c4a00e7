//! Makes all measurements of a run and holds what came out; every figure beside its floor.

use forebay::{Kind, WaitPolicy};
use serde::Serialize;

use crate::{
    BenchError, Effort, Host, Programs, Wishes,
    floor::{self, Floors},
    host::Watch,
    latency::{self, Case, Setting},
    order::{Direction, Read, Write},
    summary::Summary,
    throughput,
};

/// One line of the answer.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Who hands to whom.
    pub direction: Direction,
    /// Kind of ring.
    pub kind: &'static str,
    /// How many consumers.
    pub consumers: u32,
    /// Payload of a message.
    pub bytes: u64,
    /// How the consumer waits.
    pub wait: &'static str,
    /// Whether the payload is copied in.
    pub write: Write,
    /// Whether it is read.
    pub read: Read,
    /// From before the loan to the tensor in the other process, ns.
    pub one_way: Option<Summary>,
    /// The same and a reply of 8 bytes, ns.
    pub round_trip: Option<Summary>,
    /// Messages a second, where that was measured.
    pub per_second: Option<f64>,
    /// What the hardware takes for its part of `one_way`, ns (p50): a cache line, or a wake where the consumer sleeps, and a
    /// memcpy where the payload is copied.
    pub floor_ns: Option<f64>,
    /// p50 of `one_way` ÷ `floor_ns`; for a rate of copies, GB/s ÷ those of memcpy.
    pub ratio: Option<f64>,
}

/// What a run found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// On which machine.
    pub host: Host,
    /// What nothing can beat.
    pub floors: Floors,
    /// Latencies.
    pub latencies: Vec<Row>,
    /// Rates.
    pub rates: Vec<Row>,
    /// Measurements that could not be made, and why.
    pub missing: Vec<String>,
    /// What speaks against believing the figures.
    pub doubts: Vec<String>,
}

impl Report {
    /// Makes the measurements. `progress` is told what comes next, and how many are done of how many.
    #[must_use]
    pub fn measure(
        host: Host,
        wishes: &Wishes,
        programs: &Programs,
        effort: Effort,
        mut progress: impl FnMut(&str, usize, usize),
    ) -> Self {
        let python = programs.python.is_some();
        let watch = Watch::start();
        let setting = Setting { programs, pinned: host.pinned, effort };
        let (latencies, rates) = (wishes.latencies(python), wishes.rates(python));
        let total = latencies.len() + rates.len() + 1;
        progress("floors", 0, total);
        let first = floor::cache_line(host.pinned, effort);
        let floors = Floors {
            clock_ns: floor::clock_ns(),
            cache_line: first,
            futex: floor::futex_wake(host.pinned, effort),
            memcpy: wishes.copied_sizes(python).iter().map(|&bytes| (bytes, floor::memcpy(bytes, effort))).collect(),
        };
        let mut this =
            Self { host, floors, latencies: Vec::new(), rates: Vec::new(), missing: Vec::new(), doubts: Vec::new() };
        if !python {
            this.missing.push("Python: no interpreter that imports forebay; name one with --python".to_owned());
        }
        for case in latencies {
            progress(&describe(&case), this.latencies.len() + 1, total);
            let found = latency::measure(&case, &setting);
            this.note(case, found, Self::latency_row);
        }
        for case in rates {
            progress(&describe(&case), this.latencies.len() + this.rates.len() + 1, total);
            let found = throughput::measure(&case, &setting);
            this.note(case, found, Self::rate_row);
        }
        let last = floor::cache_line(this.host.pinned, effort);
        this.doubts = watch.doubts(this.host.cores, (first.p50, last.p50));
        this
    }

    fn note<T>(&mut self, case: Case, found: Result<T, BenchError>, row: impl FnOnce(&mut Self, Case, T)) {
        match found {
            Ok(found) => row(self, case, found),
            Err(e) => self.missing.push(format!("{}: {e}", describe(&case))),
        }
    }

    fn latency_row(&mut self, case: Case, found: latency::Latency) {
        let hand_over = if case.sleeps() { self.floors.futex.p50 } else { self.floors.cache_line.p50 } as f64;
        let copy = if case.write == Write::Copy { self.floors.copy_ns(case.bytes) } else { 0.0 };
        // What reading every byte takes depends on where they lie; no floor is claimed for it.
        let floor = (case.read == Read::None).then_some(hand_over + copy);
        let ratio = floor.map(|floor| found.one_way.p50 as f64 / floor.max(1.0));
        let row = Row {
            one_way: Some(found.one_way),
            round_trip: Some(found.round_trip),
            floor_ns: floor,
            ratio,
            ..Self::row(case)
        };
        self.latencies.push(row);
    }

    fn rate_row(&mut self, case: Case, per_second: f64) {
        let memcpy = self.floors.memcpy.iter().find(|(bytes, _)| *bytes == case.bytes);
        let ratio = match (case.write, memcpy) {
            (Write::Copy, Some(&(_, rate))) => Some(per_second * case.bytes as f64 / 1e9 / rate),
            _ => None,
        };
        self.rates.push(Row { per_second: Some(per_second), ratio, ..Self::row(case) });
    }

    fn row(case: Case) -> Row {
        Row {
            direction: case.direction,
            kind: if case.kind == Kind::Queue { "queue" } else { "broadcast" },
            consumers: case.consumers,
            bytes: case.bytes,
            wait: case.wait.name(),
            write: case.write,
            read: case.read,
            one_way: None,
            round_trip: None,
            per_second: None,
            floor_ns: None,
            ratio: None,
        }
    }
}

fn describe(case: &Case) -> String {
    let wait = match case.wait {
        WaitPolicy::Spin => "polling",
        WaitPolicy::Adaptive => "adaptive",
        WaitPolicy::Block => "sleeping",
    };
    format!("{}, {} B, {wait}", case.direction.name(), case.bytes)
}
