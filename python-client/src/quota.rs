//! A wait without a timeout that finds itself at quota, over all the turns that it has.
//!
//! The crate `forebay` counts its patience anew in each call, and a wait that gives way to another thread's is one call a
//! turn: two that gave way to each other would wait without end.

use std::time::Instant;

use forebay::{QUOTA_PATIENCE, RecvError};

/// What the turns of a wait have seen so far.
#[derive(Debug, Default)]
pub(crate) struct AtQuota {
    /// Since when every look was in vain, and how many messages had come by then, to other threads.
    since: Option<(Instant, u64)>,
}

impl AtQuota {
    /// What a look gave as a turn began, when `received` messages had come before: `Ok(None)` says to wait.
    pub(crate) fn judge<M>(
        &mut self,
        found: Result<Option<M>, RecvError>,
        received: u64,
    ) -> Result<Option<M>, RecvError> {
        match found {
            Err(RecvError::Quota { .. }) if !self.is_long(received) => Ok(None),
            Ok(None) => {
                self.since = None;
                Ok(None)
            }
            found => found,
        }
    }

    fn is_long(&mut self, received: u64) -> bool {
        match self.since {
            Some((since, before)) if before == received => since.elapsed() >= QUOTA_PATIENCE,
            _ => {
                self.since = Some((Instant::now(), received));
                false
            }
        }
    }
}
