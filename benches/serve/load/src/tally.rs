//! Counts and latencies, and the JSON made of them.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::connection::Outcome;

/// What happened while it counted.
#[derive(Debug)]
pub(crate) struct Tally {
    latency: Histogram<u64>,
    outcomes: BTreeMap<Outcome, u64>,
    /// Fell due and was not answered within the patience.
    pub(crate) unanswered: u64,
    /// The most that waited for a free connection.
    pub(crate) most_waiting: usize,
}

impl Tally {
    pub(crate) fn new() -> Result<Self, String> {
        // Nanoseconds, up to ten minutes, three digits.
        let latency = Histogram::new_with_bounds(1, 600_000_000_000, 3).map_err(|error| error.to_string())?;
        Ok(Self { latency, outcomes: BTreeMap::new(), unanswered: 0, most_waiting: 0 })
    }

    pub(crate) fn count(&mut self, outcome: Outcome, latency: Duration) {
        *self.outcomes.entry(outcome).or_default() += 1;
        if outcome == Outcome::Status(200, true) {
            self.latency.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    /// `offered` is the rate that was asked for, if one was.
    pub(crate) fn answer(&self, took: Duration, offered: Option<f64>) -> Value {
        let good = self.latency.len();
        let wrong: BTreeMap<String, u64> =
            self.outcomes.iter().filter_map(|(outcome, n)| Some((name(*outcome)?, *n))).collect();
        let at = |q: f64| self.latency.value_at_quantile(q) as f64 / 1e3;
        json!({
            "answered": good,
            "errors": wrong,
            "unanswered": self.unanswered,
            "most_waiting": self.most_waiting,
            "seconds": took.as_secs_f64(),
            "offered": offered,
            "rate": good as f64 / took.as_secs_f64(),
            "us": if good == 0 { Value::Null } else { json!({
                "mean": self.latency.mean() / 1e3, "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999),
                "max": self.latency.max() as f64 / 1e3,
            }) },
        })
    }
}

fn name(outcome: Outcome) -> Option<String> {
    match outcome {
        Outcome::Status(200, true) => None,
        Outcome::Status(200, false) => Some("wrong body".to_owned()),
        Outcome::Status(code, _) => Some(code.to_string()),
        Outcome::Broken => Some("connection broke".to_owned()),
    }
}
