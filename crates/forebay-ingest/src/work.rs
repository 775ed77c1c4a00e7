//! Where work on a batch runs, and who may stop it.
//!
//! A [`Work`] cuts nothing by itself: callers cut their data into jobs whose number and size depend on the data alone, so
//! that results are the same on one thread and on sixty-four.

use std::fmt;

use crate::pool::{Pool, PoolError, Stopped, each_while};

#[derive(Debug, Clone, Copy)]
enum Threads<'a> {
    Here,
    Shared,
    Given(&'a Pool),
}

/// On which threads a call works, and what it asks between its parts whether to go on.
///
/// Work that is one job long is always done on the calling thread, whatever is chosen here: waking a thread would take
/// longer.
#[derive(Clone, Copy)]
pub struct Work<'a> {
    threads: Threads<'a>,
    stop: Option<&'a dyn Fn() -> bool>,
}

impl fmt::Debug for Work<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").field("threads", &self.threads).finish_non_exhaustive()
    }
}

/// Why work was not finished. What it was to write into is then partly written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkError {
    /// The function given to [`Work::stop_when`] said so.
    #[error("stopped before the end; what was being written is incomplete, call again for all of it")]
    Stopped,
    /// There are no threads to work on.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

impl<'a> Work<'a> {
    /// On the calling thread alone.
    #[must_use]
    pub const fn here() -> Self {
        Self { threads: Threads::Here, stop: None }
    }

    /// On the pool of the process, see [`Pool::shared`]; it is started when first needed.
    #[must_use]
    pub const fn shared() -> Self {
        Self { threads: Threads::Shared, stop: None }
    }

    /// On this pool.
    #[must_use]
    pub const fn on(pool: &'a Pool) -> Self {
        Self { threads: Threads::Given(pool), stop: None }
    }

    /// Asks `stop` every few milliseconds and ends with [`WorkError::Stopped`] if it says yes.
    ///
    /// It is asked on the calling thread, between the parts that this thread does: after a part that takes longer, such as a
    /// photograph, when that is done. Work of one part, or of a few short ones, is over without a question.
    #[must_use]
    pub const fn stop_when(mut self, stop: &'a dyn Fn() -> bool) -> Self {
        self.stop = Some(stop);
        self
    }

    fn pool(&self, jobs: usize) -> Result<Option<&'a Pool>, PoolError> {
        match self.threads {
            _ if jobs <= 1 => Ok(None),
            Threads::Here => Ok(None),
            Threads::Shared => Pool::shared().map(Some),
            Threads::Given(pool) => Ok(Some(pool)),
        }
    }

    /// Asks whether to stop, between two [`map`](Self::map)s that may each be over without a question.
    pub(crate) fn go_on(&self) -> Result<(), WorkError> {
        match self.stop {
            Some(stop) if stop() => Err(WorkError::Stopped),
            _ => Ok(()),
        }
    }

    /// Does every job; the results come in the order of the jobs.
    pub(crate) fn map<J: Send, R: Send>(
        &self,
        jobs: impl ExactSizeIterator<Item = J> + Send,
        does: impl Fn(J) -> R + Sync,
    ) -> Result<Vec<R>, WorkError> {
        let jobs_len = jobs.len();
        let all = || each_while(jobs, || (), |(), job| does(job), self.stop);
        let done = match self.pool(jobs_len)? {
            Some(pool) => pool.run(all),
            None => all(),
        };
        done.map_err(|Stopped| WorkError::Stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    /// Longer than the calling thread goes on without asking.
    const LONG: Duration = Duration::from_millis(5);

    #[test]
    fn results_come_in_the_order_of_the_jobs() {
        let pool = Pool::new(3).unwrap();
        for work in [Work::here(), Work::on(&pool), Work::shared()] {
            for count in [0, 1, 2, 100, 1001] {
                let squares = work.map(0..count, |job| job * job).unwrap();
                assert!(squares.into_iter().eq((0..count).map(|job| job * job)));
            }
        }
    }

    #[test]
    fn it_stops_when_told() {
        let asked = Cell::new(0);
        let stop = || {
            asked.set(asked.get() + 1);
            true
        };
        let work = Work::here().stop_when(&stop);
        assert!(matches!(work.map(0..1000, |job| job), Err(WorkError::Stopped)));
        assert_eq!(asked.get(), 1);
    }

    #[test]
    fn it_is_asked_after_a_long_job() {
        let done = AtomicUsize::new(0);
        let stopped = Work::here().stop_when(&|| true).map(0..3, |_| {
            thread::sleep(LONG);
            done.fetch_add(1, Ordering::Relaxed)
        });
        assert!(matches!(stopped, Err(WorkError::Stopped)));
        assert_eq!(done.into_inner(), 1);
    }

    #[test]
    fn told_to_stop_it_stops_though_helpers_did_the_rest_meanwhile() {
        let pool = Pool::new(2).unwrap();
        let (asked, here) = (AtomicBool::new(false), thread::current().id());
        let done = AtomicUsize::new(0);
        let stop = || {
            asked.store(true, Ordering::Relaxed);
            while done.load(Ordering::Relaxed) < 3 {
                thread::yield_now();
            }
            true
        };
        let stopped = Work::on(&pool).stop_when(&stop).map(0..3, |_| {
            if thread::current().id() == here {
                thread::sleep(LONG);
            }
            // One job is the caller's, who asks after it; the others are left to the helper.
            while thread::current().id() != here && !asked.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            done.fetch_add(1, Ordering::Relaxed)
        });
        assert!(matches!(stopped, Err(WorkError::Stopped)));
    }

    #[test]
    fn helpers_stop_when_the_caller_is_told() {
        let pool = Pool::new(3).unwrap();
        let (asked, here) = (AtomicBool::new(false), thread::current().id());
        let stop = || {
            asked.store(true, Ordering::Relaxed);
            true
        };
        let done = AtomicUsize::new(0);
        let stopped = Work::on(&pool).stop_when(&stop).map(0..1000, |_| {
            // Or the helpers might be through before the caller is asked.
            while thread::current().id() != here && !asked.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert!(matches!(stopped, Err(WorkError::Stopped)));
        assert!(done.into_inner() < 1000);
        assert_eq!(Work::on(&pool).map(0..3, |job| job).unwrap(), [0, 1, 2]);
    }
}
