//! Waits are cut into slices, after which liveness is probed: a lost wake or an unnoticed death costs at most one.

use std::{sync::OnceLock, time::Duration};

/// The default slice.
const SLICE: Duration = Duration::from_millis(50);

/// The length of a slice; `None` if slices are switched off (`FOREBAY_SLICE_MS=0`), as tests do so that a lost wake is
/// a hang.
pub(crate) fn slice() -> Option<Duration> {
    static CHOSEN: OnceLock<Option<Duration>> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let set = std::env::var("FOREBAY_SLICE_MS").ok().and_then(|ms| ms.parse().ok());
        match set.map(Duration::from_millis) {
            Some(Duration::ZERO) => None,
            Some(slice) => Some(slice.min(SLICE)),
            None => Some(SLICE),
        }
    })
}

/// The time a wait may sleep: what is left until the deadline, at most a slice.
pub(crate) fn nap(left: Option<Duration>) -> Option<Duration> {
    match (left, slice()) {
        (Some(left), Some(slice)) => Some(left.min(slice)),
        (left, slice) => left.or(slice),
    }
}
