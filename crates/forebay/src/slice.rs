//! Waits are cut into slices, after which liveness is probed: a lost wake or an unnoticed death costs at most one.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The default slice.
const SLICE_MS: u64 = 50;
/// Nobody asked yet.
const UNREAD: u64 = u64::MAX;

/// The length of a slice; `None` if slices are switched off (`FOREBAY_SLICE_MS=0`), as tests do so that a lost wake is
/// a hang.
pub(crate) fn slice() -> Option<Duration> {
    // Not a OnceLock: a fork in mid-initialisation would leave one that hangs the child. Reading twice does no harm.
    static CHOSEN_MS: AtomicU64 = AtomicU64::new(UNREAD);
    let mut ms = CHOSEN_MS.load(Ordering::Relaxed);
    if ms == UNREAD {
        let set = std::env::var("FOREBAY_SLICE_MS").ok().and_then(|ms| ms.parse::<u64>().ok());
        ms = set.unwrap_or(SLICE_MS).min(SLICE_MS);
        CHOSEN_MS.store(ms, Ordering::Relaxed);
    }
    (ms != 0).then(|| Duration::from_millis(ms))
}

/// The time a wait may sleep: what is left until the deadline, at most a slice.
pub(crate) fn nap(left: Option<Duration>) -> Option<Duration> {
    match (left, slice()) {
        (Some(left), Some(slice)) => Some(left.min(slice)),
        (left, slice) => left.or(slice),
    }
}
