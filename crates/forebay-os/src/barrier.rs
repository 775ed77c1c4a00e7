//! The asymmetric barrier: the side that goes to sleep pays, the side that publishes does not.
//!
//! Parker: set the parked bit, [`heavy`], look again, sleep. Waker: publish, [`light`], read the bit.
//! If the heavy barrier comes first, the waker's read sees the bit; if the publication comes first,
//! the parker's second look sees it. With `membarrier` the kernel runs a full barrier on every CPU
//! that runs a *registered* process, so that the waker's own barrier may be one for the compiler
//! alone. Both sides must have registered, and both must agree on the kind: whether they do is
//! decided by exchanging the value of [`register`] at attach, never by a test (a missing
//! registration showed no lost wake either).

use std::sync::atomic::{Ordering, compiler_fence, fence};

use rustix::thread::{MembarrierCommand, MembarrierQuery, membarrier, membarrier_query};

/// Forces [`Barrier::Fence`] when set to `1`, for comparison and for kernels that misbehave.
pub const ENV_NO_MEMBARRIER: &str = "FOREBAY_NO_MEMBARRIER";

/// How the two sides of parking order their stores and loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Barrier {
    /// `membarrier(GLOBAL_EXPEDITED)` by the parker, nothing by the waker. Both are registered.
    Membarrier,
    /// A sequentially consistent fence on both sides.
    Fence,
}

/// Registers this process for the global expedited barrier and says which kind it can do.
///
/// Registering again is cheap and changes nothing. A forked child has to ask for itself.
#[must_use]
pub fn register() -> Barrier {
    if std::env::var_os(ENV_NO_MEMBARRIER).is_some_and(|v| v == "1") {
        return Barrier::Fence;
    }
    let wanted = MembarrierQuery::GLOBAL_EXPEDITED | MembarrierQuery::REGISTER_GLOBAL_EXPEDITED;
    if !membarrier_query().contains(wanted) {
        return Barrier::Fence;
    }
    match membarrier(MembarrierCommand::RegisterGlobalExpedited) {
        Ok(()) => Barrier::Membarrier,
        Err(_) => Barrier::Fence,
    }
}

/// The parker's barrier, between setting its bit and looking again.
///
/// True if it holds. False only if the kernel could not run it (out of memory, twice): the caller
/// then must not sleep longer than it can afford to miss a wake.
pub fn heavy(barrier: Barrier) -> bool {
    // ORDER park, SeqCst: alone it is the parker's half for `Fence`; before a membarrier it keeps
    // the compiler and this CPU from moving the second look ahead of the bit.
    fence(Ordering::SeqCst);
    match barrier {
        Barrier::Fence => true,
        Barrier::Membarrier => {
            membarrier(MembarrierCommand::GlobalExpedited).is_ok()
                // The slow kind waits for a grace period (milliseconds) and allocates nothing.
                || membarrier(MembarrierCommand::Global).is_ok()
        }
    }
}

/// The waker's barrier, between publishing and reading the parked bit.
pub fn light(barrier: Barrier) {
    match barrier {
        // ORDER park, compiler only: the CPU's half is supplied by the parker's membarrier.
        Barrier::Membarrier => compiler_fence(Ordering::SeqCst),
        // ORDER park, SeqCst: pairs with the fence in `heavy`.
        Barrier::Fence => fence(Ordering::SeqCst),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registered_process_can_run_the_barrier_it_was_promised() {
        let barrier = register();
        assert!(heavy(barrier));
        assert!(heavy(Barrier::Fence));
        light(barrier);
        light(Barrier::Fence);
    }
}
