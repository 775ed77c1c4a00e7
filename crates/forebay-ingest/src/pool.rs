//! The bounded set of threads that all parallel work of this crate runs on.
//!
//! rayon's global pool is never used: a process that embeds us decides how many threads there are. A [`Pool`] that a
//! fork carried into a child, where its threads do not exist, makes new ones at the first use there instead of waiting
//! for the missing ones without end.

use std::num::NonZero;
use std::sync::OnceLock;
use std::{mem, process};

use rayon::{ThreadPool, ThreadPoolBuilder};

/// Most threads that a pool may have: beyond this a number is a mistake, not a machine.
pub const MAX_THREADS: usize = 1024;

/// Why there is no pool.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// The number of threads is not one to run with. Retrying does not help.
    #[error("a pool of {threads} threads was asked for, expected 1 to {MAX_THREADS}; change the number")]
    Threads {
        /// What was asked for.
        threads: usize,
    },
    /// The system gave no thread: a limit of the user or the container. Retrying may help.
    #[error("cannot start {threads} threads: {why}; ask for fewer, or raise the limit on processes (ulimit -u)")]
    Start {
        /// What was asked for.
        threads: usize,
        /// What the system said.
        why: String,
    },
}

/// A number of threads for work on batches.
///
/// Shared between threads freely: callers take turns at the same threads. Dropping it ends the threads.
///
/// # Costs
/// Handing work over and waiting for it takes some 10 µs, more when the threads sleep: work that is shorter is better
/// done where it is.
#[derive(Debug)]
pub struct Pool {
    threads: usize,
    life: Life,
}

/// The threads in one process, and those of the children that inherited them.
///
/// A list and no lock: a fork may happen while another thread holds a lock, and the child would wait for it for ever.
#[derive(Debug)]
struct Life {
    process: u32,
    /// `None` only while being dropped: a child must not wake threads that it does not have.
    threads: Option<ThreadPool>,
    child: OnceLock<Box<Life>>,
}

impl Life {
    fn start(threads: usize) -> Result<Self, PoolError> {
        let started = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("forebay-{index}"))
            .build()
            .map_err(|e| PoolError::Start { threads, why: e.to_string() })?;
        Ok(Self { process: process::id(), threads: Some(started), child: OnceLock::new() })
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let threads = self.threads.take();
        if self.process != process::id() {
            mem::forget(threads);
        }
    }
}

impl Pool {
    /// A pool of exactly `threads` threads, started now.
    ///
    /// # Errors
    /// [`PoolError`] if the number is 0 or beyond [`MAX_THREADS`], or the system refuses the threads.
    pub fn new(threads: usize) -> Result<Self, PoolError> {
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(PoolError::Threads { threads });
        }
        Ok(Self { threads, life: Life::start(threads)? })
    }

    /// The pool of the process: one thread for each core that the process may use, started at the first call.
    ///
    /// # Errors
    /// [`PoolError::Start`] if the system refuses the threads; the next call tries again.
    pub fn shared() -> Result<&'static Self, PoolError> {
        static SHARED: OnceLock<Pool> = OnceLock::new();
        if let Some(pool) = SHARED.get() {
            return Ok(pool);
        }
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS);
        let pool = Self::new(cores)?;
        Ok(SHARED.get_or_init(|| pool))
    }

    /// Number of its threads.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `work` on the pool and waits for it: rayon's iterators and joins inside use these threads and no others.
    ///
    /// Called from within the pool it runs `work` at once. A panic in `work` goes on in the caller. In a forked child
    /// that the system refuses threads, `work` runs on the calling thread.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match self.current() {
            Some(threads) => threads.install(work),
            None => work(),
        }
    }

    /// The threads of this process.
    fn current(&self) -> Option<&ThreadPool> {
        let here = process::id();
        let mut life = &self.life;
        while life.process != here {
            life = match life.child.get() {
                Some(child) => child,
                None => {
                    let started = Life::start(self.threads).ok()?;
                    life.child.get_or_init(|| Box::new(started))
                }
            };
        }
        life.threads.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;
    use std::collections::HashSet;
    use std::thread;

    #[test]
    fn work_runs_on_exactly_the_threads_of_the_pool() {
        let pool = Pool::new(3).unwrap();
        assert_eq!(pool.threads(), 3);
        let names: HashSet<String> = pool.install(|| {
            assert_eq!(rayon::current_num_threads(), 3);
            (0..1000).into_par_iter().map(|_| thread::current().name().unwrap_or("").to_owned()).collect()
        });
        assert!(names.iter().all(|name| name.starts_with("forebay-")), "{names:?}");
        assert!(names.len() <= 3);
    }

    #[test]
    fn a_number_of_threads_that_makes_no_sense_is_refused() {
        for threads in [0, MAX_THREADS + 1, usize::MAX] {
            let why = Pool::new(threads).unwrap_err().to_string();
            assert!(why.contains(&format!("{threads} threads")) && why.contains("1 to 1024"), "{why}");
        }
    }

    #[test]
    fn the_shared_pool_is_one() {
        let pool = Pool::shared().unwrap();
        assert!(std::ptr::eq(pool, Pool::shared().unwrap()));
        assert_eq!(pool.threads(), thread::available_parallelism().unwrap().get());
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(2).unwrap();
        let work = std::panic::AssertUnwindSafe(|| pool.install(|| -> () { panic!("of the work") }));
        let caught = std::panic::catch_unwind(work);
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"of the work"));
        assert_eq!(pool.install(|| 7), 7);
    }

    #[test]
    fn a_pool_of_another_process_makes_threads_of_its_own() {
        let mut pool = Pool::new(2).unwrap();
        // As a forked child sees it: the threads belong to somebody else.
        pool.life.process = 0;
        assert_eq!(pool.install(rayon::current_num_threads), 2);
        assert!(pool.life.child.get().is_some());
        // Dropped last, as itself again, so that no thread outlives the test.
        pool.life.process = process::id();
    }
}
