//! The one place that says where atomics come from: `core`, or loom or shuttle when models run; and the waker's half of
//! E5.

#[cfg(not(any(loom, shuttle)))]
pub use core::sync::atomic::AtomicU64;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use core::sync::atomic::{Ordering, fence};
#[cfg(loom)]
pub use loom::sync::atomic::AtomicU64;
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{Ordering, fence};
#[cfg(all(shuttle, not(loom)))]
pub use shuttle::sync::atomic::AtomicU64;
#[cfg(all(shuttle, not(loom)))]
pub(crate) use shuttle::sync::atomic::{Ordering, fence};

/// What a waker does between its store (a message, a release) and its look at who sleeps. `fences` says whether some
/// peer has no membarrier ([`Reader::fences`](crate::Reader::fences)).
#[inline]
pub fn waker_fence(fences: bool) {
    // ORDER E5 park, SeqCst fence: if it comes before the sleeper's, the sleeper's second look sees the store; if after,
    // the waker sees the mark. Without `fences` the sleeper's membarrier runs this fence on our CPU, wherever we are, and
    // the compiler must keep the order of this side (a model has no compiler that would change it).
    if fences {
        fence(Ordering::SeqCst);
    } else {
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
    }
}
