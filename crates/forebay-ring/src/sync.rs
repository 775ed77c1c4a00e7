//! The one place that says where atomics come from: `core`, or loom when models run; and the waker's half of E5.

#[cfg(not(loom))]
pub use core::sync::atomic::AtomicU64;
#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{Ordering, fence};
#[cfg(loom)]
pub use loom::sync::atomic::AtomicU64;
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{Ordering, fence};

/// What a waker does between its store (a message, a release) and its look at who sleeps. `fences` says whether some
/// peer has no membarrier ([`Reader::fences`](crate::Reader::fences)).
#[inline]
pub fn waker_fence(fences: bool) {
    // ORDER E5 park, SeqCst fence: if it comes before the sleeper's, the sleeper's second look sees the store; if after,
    // the waker sees the mark. Without `fences` the sleeper's membarrier runs this fence on our CPU, and the compiler
    // must keep the order of this side. For a model the two are the same: the sleeper's call is a fence here.
    #[cfg(not(loom))]
    if !fences {
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
        return;
    }
    #[cfg(loom)]
    let _ = fences;
    fence(Ordering::SeqCst);
}
