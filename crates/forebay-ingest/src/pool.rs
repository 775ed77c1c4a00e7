//! The bounded set of threads that all parallel work of this crate runs on, the caller's among them.
//!
//! The caller works, it does not wait: handed over to two threads while it sleeps, work of a few milliseconds was seen to
//! run on one core for all of its life, since the kernel had put both where there was a core for each thread but not yet for
//! the caller's. rayon's threads are those that help; its global pool is never used: a process that embeds us decides how
//! many threads there are. Only helpers that are idle are called: what waits in rayon's queue behind another call's work would
//! be waited for at the end, by a caller who has long done everything alone. A [`Pool`] that a fork carried into a child, where
//! its threads do not exist, makes new ones at the first use there instead of waiting for the missing ones without end.

use std::cell::RefCell;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
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

/// A number of threads for work on batches: the caller's, and others that help.
///
/// Shared between threads freely: each caller works, and they share the helpers: one that works for somebody else is not
/// waited for, and is called when it is free if there is work left then. Dropping the pool ends them.
///
/// # Costs
/// Calling helpers takes some 10 µs, more when they sleep: work that is shorter is better done alone.
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
    /// `None` where the caller is the only thread, and while being dropped: a child must not wake what it does not have.
    helpers: Option<Arc<Helpers>>,
    child: OnceLock<Box<Life>>,
}

/// The threads that help.
#[derive(Debug)]
struct Helpers {
    threads: ThreadPool,
    /// How many of them nobody has called.
    idle: AtomicUsize,
}

impl Helpers {
    /// Calls one that is idle, if there is one: it is the caller's until what is given here is dropped.
    fn call(&self) -> Option<Called<'_>> {
        // Without a write, as it is asked between jobs. ORDER: Relaxed, nothing is read that another thread has written; who
        // sees an old number calls a helper one job later, or finds in the next line that there is none.
        let mut idle = self.idle.load(Ordering::Relaxed);
        while let Some(less) = idle.checked_sub(1) {
            // ORDER: Acquire, pairs with the Release in `drop`: who gets a helper comes after the last job that this did for
            // somebody else, so its closure does not wait for that. A failure hands nothing over: Relaxed.
            match self.idle.compare_exchange_weak(idle, less, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(Called(self)),
                Err(found) => idle = found,
            }
        }
        None
    }
}

/// A helper that was called; idle again once this is dropped, on a panic too.
#[derive(Debug)]
struct Called<'a>(&'a Helpers);

impl Drop for Called<'_> {
    fn drop(&mut self) {
        // ORDER: Release, see `call`.
        self.0.idle.fetch_add(1, Ordering::Release);
    }
}

impl Life {
    fn start(threads: usize) -> Result<Self, PoolError> {
        let helpers = match threads - 1 {
            0 => None,
            others => {
                let threads = ThreadPoolBuilder::new()
                    .num_threads(others)
                    .thread_name(|index| format!("forebay-{index}"))
                    .build()
                    .map_err(|e| PoolError::Start { threads: others, why: e.to_string() })?;
                Some(Arc::new(Helpers { threads, idle: AtomicUsize::new(others) }))
            }
        };
        Ok(Self { process: process::id(), helpers, child: OnceLock::new() })
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let helpers = self.helpers.take();
        if self.process != process::id() {
            mem::forget(helpers);
        }
    }
}

impl Pool {
    /// A pool for work on `threads` threads: all but the caller's are started now.
    ///
    /// # Errors
    /// [`PoolError`] if the number is 0 or beyond [`MAX_THREADS`], or the system refuses the threads.
    pub fn new(threads: usize) -> Result<Self, PoolError> {
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(PoolError::Threads { threads });
        }
        Ok(Self { threads, life: Life::start(threads)? })
    }

    /// The pool of the process: work on as many threads as it may use cores, started at the first call.
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

    /// Threads that work on one call, the caller's included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `work` on this thread; what it calls of this crate shares its parts with the pool's threads.
    ///
    /// A panic in a part goes on here, when no other thread works on the rest any more. In a forked child that the system
    /// refuses threads, everything is done here.
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        let _entered = Entered(HELPERS.replace(self.helpers()));
        work()
    }

    /// The helpers in this process.
    fn helpers(&self) -> Option<Arc<Helpers>> {
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
        life.helpers.clone()
    }
}

thread_local! {
    /// Those of the pool that this thread is within.
    static HELPERS: RefCell<Option<Arc<Helpers>>> = const { RefCell::new(None) };
}

/// Puts back what was there before, on a panic too.
struct Entered(Option<Arc<Helpers>>);

impl Drop for Entered {
    fn drop(&mut self) {
        HELPERS.set(self.0.take());
    }
}

/// Whether [`each`] would be helped.
pub(crate) fn is_helped() -> bool {
    HELPERS.with_borrow(Option::is_some)
}

/// Does every job, this thread and the idle helpers of the pool that it is within each taking the next; the results come in
/// the order of the jobs.
pub(crate) fn each<J: Send, R: Send>(
    jobs: impl ExactSizeIterator<Item = J> + Send,
    does: impl Fn(J) -> R + Sync,
) -> Vec<R> {
    each_with(jobs, || (), |(), job| does(job))
}

/// As [`each`], with something that every thread that takes part makes once, for all of its jobs.
pub(crate) fn each_with<J: Send, S, R: Send>(
    jobs: impl ExactSizeIterator<Item = J> + Send,
    makes: impl Fn() -> S + Sync,
    does: impl Fn(&mut S, J) -> R + Sync,
) -> Vec<R> {
    let all = each_while(jobs, makes, does, None);
    all.unwrap_or_else(|Stopped| unreachable!("nobody was asked whether to stop"))
}

/// It was told to stop; the rest was not done.
#[derive(Debug)]
pub(crate) struct Stopped;

/// Jobs that the calling thread does between two questions whether to stop, where these are short.
const JOBS_A_QUESTION: usize = 8;

/// After this time the end of a job is waited for and no more: one job may be a photograph, another 10 µs.
const TIME_A_QUESTION: Duration = Duration::from_millis(4);

/// When to ask whether to stop.
struct Questions<'a> {
    stop: &'a dyn Fn() -> bool,
    /// Jobs done since it was asked.
    jobs: usize,
    asked: Instant,
}

impl<'a> Questions<'a> {
    fn new(stop: &'a dyn Fn() -> bool) -> Self {
        Self { stop, jobs: 0, asked: Instant::now() }
    }

    /// One more job is done; whether to stop, if it is time to ask.
    fn after_a_job(&mut self) -> bool {
        self.jobs += 1;
        if self.jobs < JOBS_A_QUESTION && self.asked.elapsed() < TIME_A_QUESTION {
            return false;
        }
        let answer = (self.stop)();
        (self.jobs, self.asked) = (0, Instant::now());
        answer
    }
}

/// As [`each_with`]; asks `stop` now and then, on this thread, and is [`Stopped`] if that says yes.
pub(crate) fn each_while<J: Send, S, R: Send>(
    jobs: impl ExactSizeIterator<Item = J> + Send,
    makes: impl Fn() -> S + Sync,
    does: impl Fn(&mut S, J) -> R + Sync,
    stop: Option<&dyn Fn() -> bool>,
) -> Result<Vec<R>, Stopped> {
    let count = jobs.len();
    // Nothing once somebody said to stop.
    let next = Mutex::new(Some(jobs.enumerate()));
    // A job that panics does so without the lock.
    let take = |give_up: bool| {
        let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
        if give_up {
            *next = None;
        }
        next.as_mut()?.next()
    };
    let done = Mutex::new(Vec::with_capacity(count));
    // Calls for help before each job, saying how many are left besides it. Gives whether it was told to stop.
    let take_part = |stop: Option<&dyn Fn() -> bool>, call: &mut dyn FnMut(usize)| {
        let mut take = |give_up: bool| {
            let (index, job) = take(give_up)?;
            call(count - 1 - index);
            Some((index, job))
        };
        let Some(first) = take(false) else { return false };
        let (mut held, mut mine, mut job) = (makes(), Vec::new(), Some(first));
        let mut questions = stop.map(Questions::new);
        let mut stopped = false;
        while let Some((index, given)) = job {
            mine.push((index, does(&mut held, given)));
            stopped = index + 1 < count && questions.as_mut().is_some_and(Questions::after_a_job);
            job = take(stopped);
        }
        done.lock().unwrap_or_else(PoisonError::into_inner).append(&mut mine);
        stopped
    };
    let stopped = match HELPERS.with_borrow(Clone::clone) {
        Some(helpers) if count > 1 => helpers.threads.in_place_scope(|scope| {
            // As many in all as there are jobs besides the first: who helps does so until no job is left. Those that worked
            // for somebody else at first are called later.
            let mut wanted = count - 1;
            take_part(stop, &mut |left| {
                for _ in 0..left.min(wanted) {
                    let Some(called) = helpers.call() else { break };
                    wanted -= 1;
                    scope.spawn(|_| {
                        let _called = called;
                        take_part(None, &mut |_| {});
                    });
                }
            })
        }),
        _ => take_part(stop, &mut |_| {}),
    };
    // Also where helpers did the last jobs while it was asked: what has been told to stop does not go on.
    if stopped {
        return Err(Stopped);
    }
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|&(index, _)| index);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::{Barrier, Condvar, mpsc};
    use std::thread;

    /// After this time a test has failed.
    const LIMIT: Duration = Duration::from_secs(20);

    /// Where threads wait for each other, with an end.
    #[derive(Default)]
    struct Meeting {
        here: Mutex<usize>,
        came: Condvar,
    }

    impl Meeting {
        /// Whether `count` threads have come.
        fn of(&self, count: usize) -> bool {
            let mut here = self.here.lock().unwrap();
            *here += 1;
            self.came.notify_all();
            let (_here, waited) = self.came.wait_timeout_while(here, LIMIT, |here| *here < count).unwrap();
            !waited.timed_out()
        }
    }

    fn idle(pool: &Pool) -> usize {
        pool.helpers().unwrap().idle.load(Ordering::Relaxed)
    }

    #[test]
    fn the_caller_and_the_helpers_work_and_nobody_else() {
        let pool = Pool::new(3).unwrap();
        assert_eq!(pool.threads(), 3);
        // Nobody gets further before all three have a job.
        let all = Barrier::new(3);
        let names = pool.run(|| {
            each(0..3, |_| {
                all.wait();
                thread::current().name().unwrap_or("").to_owned()
            })
        });
        let here = thread::current().name().unwrap_or("").to_owned();
        assert_eq!(
            names.into_iter().collect::<HashSet<_>>(),
            HashSet::from([here, "forebay-0".into(), "forebay-1".into()])
        );
    }

    #[test]
    fn results_come_in_the_order_of_the_jobs() {
        let pool = Pool::new(4).unwrap();
        for count in [0, 1, 2, 1000] {
            let squares = pool.run(|| each(0..count, |job| job * job));
            assert!(squares.into_iter().eq((0..count).map(|job| job * job)));
        }
    }

    #[test]
    fn outside_of_a_pool_and_within_a_part_nobody_helps() {
        let pool = Pool::new(2).unwrap();
        let here = thread::current().id();
        assert!(!is_helped());
        assert!(each(0..9, |_| thread::current().id()).into_iter().all(|id| id == here));
        assert!(pool.run(|| pool.run(is_helped) && is_helped()));
        assert!(!Pool::new(1).unwrap().run(is_helped));
        assert!(!is_helped());
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
        for bad in [0, 1, 99] {
            let work = std::panic::AssertUnwindSafe(|| {
                pool.run(|| each(0..100, |job| if job == bad { panic!("of the work") } else { job }))
            });
            let caught = std::panic::catch_unwind(work);
            assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"of the work"));
            assert!(!is_helped());
        }
        assert_eq!(pool.run(|| each(0..3, |job| job)), [0, 1, 2]);
        // The helper as well.
        let both = Meeting::default();
        assert_eq!(pool.run(|| each(0..2, |_| both.of(2))), [true, true]);
        assert_eq!(idle(&pool), 1);
    }

    #[test]
    fn a_call_does_not_wait_for_helpers_that_work_for_another() {
        let pool = Pool::new(3).unwrap();
        let (held, released) = (Barrier::new(4), Barrier::new(4));
        let (say, said) = mpsc::channel();
        thread::scope(|scope| {
            // On this thread and both helpers.
            scope.spawn(|| {
                pool.run(|| {
                    each(0..3, |_| {
                        held.wait();
                        released.wait();
                    })
                })
            });
            held.wait();
            let short = scope.spawn(|| say.send(pool.run(|| each(0..9, |_| thread::current().id()))));
            let by = said.recv_timeout(LIMIT);
            released.wait();
            assert_eq!(by, Ok(vec![short.thread().id(); 9]));
        });
        assert_eq!(idle(&pool), 2);
    }

    #[test]
    fn a_call_that_began_alone_is_helped_when_the_helpers_are_idle() {
        let pool = Pool::new(3).unwrap();
        let (held, released, together) = (Barrier::new(4), Barrier::new(4), Meeting::default());
        let by = thread::scope(|scope| {
            let other = scope.spawn(|| {
                pool.run(|| {
                    each(0..3, |_| {
                        held.wait();
                        released.wait();
                    })
                })
            });
            held.wait();
            let other = Mutex::new(Some(other));
            pool.run(|| {
                each(0..4, |job| {
                    if job == 0 {
                        // Until the other call is over, and with it the work of both helpers.
                        released.wait();
                        other.lock().unwrap().take().unwrap().join().unwrap();
                    } else {
                        assert!(together.of(3), "nobody helps");
                    }
                    thread::current().id()
                })
            })
        });
        assert_eq!(by[0], thread::current().id());
        assert_eq!(by[1..].iter().collect::<HashSet<_>>().len(), 3);
        assert_eq!(idle(&pool), 2);
    }

    #[test]
    fn a_pool_of_another_process_makes_threads_of_its_own() {
        let mut pool = Pool::new(2).unwrap();
        // As a forked child sees it: the threads belong to somebody else.
        pool.life.process = 0;
        assert!(pool.run(is_helped));
        assert!(pool.life.child.get().is_some());
        // Dropped last, as itself again, so that no thread outlives the test.
        pool.life.process = process::id();
    }
}
