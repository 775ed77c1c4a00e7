//! The clocks, as nanoseconds. All three answer from the vDSO, without entering the kernel.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// `CLOCK_MONOTONIC` in nanoseconds: the same for all processes of one host, never set back.
#[must_use]
pub fn monotonic_ns() -> u64 {
    nanos(clock_gettime(ClockId::Monotonic))
}

/// `CLOCK_MONOTONIC_COARSE` in nanoseconds: a few times cheaper, and up to one tick (1 to 10 ms) old.
#[must_use]
pub fn monotonic_coarse_ns() -> u64 {
    nanos(clock_gettime(ClockId::MonotonicCoarse))
}

/// `CLOCK_REALTIME` in nanoseconds since 1970: for people to read, may be set forth and back.
#[must_use]
pub fn realtime_ns() -> u64 {
    nanos(clock_gettime(ClockId::Realtime))
}

/// Seconds and nanoseconds as one number; a clock before 1970 reads as 0.
fn nanos(t: Timespec) -> u64 {
    let seconds = t.tv_sec.max(0) as u64;
    // Wraps in 584 years; the kernel keeps the nanoseconds below a second.
    seconds.wrapping_mul(1_000_000_000).wrapping_add(t.tv_nsec as u64)
}

/// A duration as the kernel wants it; longer than 292 years reads as 292 years.
pub(crate) fn timespec(duration: std::time::Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX / 1_000_000_000),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_never_goes_back_and_coarse_is_never_ahead() {
        let coarse = monotonic_coarse_ns();
        let a = monotonic_ns();
        let b = monotonic_ns();
        assert!(a <= b);
        assert!(coarse <= a);
        assert!(realtime_ns() > 1_600_000_000_000_000_000);
    }

    #[test]
    fn an_endless_duration_stays_a_valid_timespec() {
        let t = timespec(std::time::Duration::MAX);
        assert!(t.tv_sec > 0 && t.tv_nsec < 1_000_000_000);
    }
}
