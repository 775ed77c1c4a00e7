//! A distribution of times, in a few numbers.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Times of one measurement, ns.
#[derive(Debug, Clone)]
pub(crate) struct Times(Histogram<u64>);

/// The distribution as it travels from a peer: value and count of each bucket.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Buckets(pub(crate) Vec<(u64, u64)>);

/// What is said of a distribution, ns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Messages.
    pub count: u64,
    /// Half were at most this.
    pub p50: u64,
    /// 99 of 100.
    pub p99: u64,
    /// 999 of 1,000.
    pub p999: u64,
    /// All.
    pub max: u64,
}

impl Times {
    pub(crate) fn new() -> Self {
        // Up to a minute with three digits; anything longer counts as that.
        Self(Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap_or_else(|_| unreachable!("constants that fit")))
    }

    pub(crate) fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    pub(crate) fn buckets(&self) -> Buckets {
        Buckets(self.0.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect())
    }

    pub(crate) fn add(&mut self, buckets: &Buckets) {
        for &(value, count) in &buckets.0 {
            self.0.saturating_record_n(value, count);
        }
    }

    pub(crate) fn summary(&self) -> Summary {
        let at = |quantile| self.0.value_at_quantile(quantile);
        Summary { count: self.0.len(), p50: at(0.5), p99: at(0.99), p999: at(0.999), max: self.0.max() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_travels_as_buckets_says_the_same() {
        let mut times = Times::new();
        for ns in 1..=1000 {
            times.record(ns);
        }
        let mut copy = Times::new();
        copy.add(&times.buckets());
        assert_eq!(copy.summary(), times.summary());
        let summary = copy.summary();
        assert_eq!((summary.count, summary.p50, summary.p99, summary.p999, summary.max), (1000, 500, 990, 999, 1000));
    }
}
