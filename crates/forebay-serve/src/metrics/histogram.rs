//! A histogram that many threads add to without waiting for each other.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts of values by upper bounds. Adding is two atomic additions.
#[derive(Debug)]
pub(crate) struct Histogram {
    bounds: &'static [f64],
    /// One more than bounds: the last one counts what is beyond them.
    counts: Box<[AtomicU64]>,
    /// Billionths, so that it can be added to without a loop.
    sum: AtomicU64,
}

/// What a histogram held at one moment; buckets may be a few values apart from each other.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) buckets: Vec<(f64, u64)>,
    pub(crate) sum: f64,
    pub(crate) count: u64,
}

impl Histogram {
    pub(crate) fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }

    /// Counts `value`, which is at least 0; what is no number is left out.
    pub(crate) fn add(&self, value: f64) {
        if value.is_nan() {
            return;
        }
        let value = value.max(0.0);
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        // ORDER none, Relaxed: statistics; nothing is read on the strength of them.
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add((value * 1e9) as u64, Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        // ORDER none, Relaxed: statistics.
        let buckets: Vec<_> = bounds.zip(&self.counts).map(|(bound, count)| (bound, count.load(Relaxed))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        Snapshot { buckets, sum: self.sum.load(Relaxed) as f64 / 1e9, count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lies_in_the_first_bucket_that_is_not_below_it() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 2.5, -1.0, f64::NAN, f64::INFINITY] {
            histogram.add(value);
        }
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.buckets, [(1.0, 3), (2.0, 1), (f64::INFINITY, 2)]);
        assert_eq!(snapshot.count, 6);
    }
}
