//! Futexes on words that several processes share.
//!
//! A wake is a hint: every answer means "look at the shared word again". Words are never loaded or
//! stored here; the kernel alone compares them.
#![allow(unsafe_code, reason = "the low half of a 64-bit word is found by a pointer cast")]

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::thread::futex::{self, Flags, Wait, WaitFlags, WaitPtr, WaitvFlags};

use crate::clock;

/// Words that one [`wait_any`] hands to the kernel at most (`FUTEX_WAITV_MAX`).
const WAITV_MAX: usize = 128;

/// The longest nap where the kernel cannot wait for several words at once.
const NAP: Duration = Duration::from_millis(1);

/// Set once the kernel has answered that it knows no `futex_waitv` (before Linux 5.16, or seccomp).
static NO_WAITV: AtomicBool = AtomicBool::new(false);

/// Why a wait came back. In every case the caller looks at the shared words again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Waited {
    /// Somebody woke it, or the kernel did for a reason of its own.
    Woken,
    /// A word did not hold the expected value, so there was nothing to wait for.
    Changed,
    /// The timeout has passed.
    TimedOut,
    /// A signal handler ran.
    Interrupted,
}

/// Sleeps until `word` is woken, unless it does not hold `expected`; at most for `timeout`.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) -> Waited {
    let timeout = timeout.map(clock::timespec);
    answer(futex::wait(word, Flags::empty(), expected, timeout.as_ref()))
}

/// Wakes up to `n` waiters of `word`, in any process, and says how many there were.
///
/// Change the word first: a wake without a changed value is lost between a waiter's last look and
/// its sleep.
pub fn wake(word: &AtomicU32, n: u32) -> u32 {
    // The kernel takes a signed count.
    let n = n.min(i32::MAX as u32);
    match futex::wake(word, Flags::empty(), n) {
        Ok(woken) => u32::try_from(woken).unwrap_or(u32::MAX),
        // A reference cannot be a bad address; what is left (seccomp) has no better answer.
        Err(_) => 0,
    }
}

/// Sleeps until any of `words` is woken, unless one does not hold its expected value.
///
/// Without `futex_waitv` (before Linux 5.16), or with more than 128 words, it sleeps in naps of at
/// most a millisecond, during which only one word's wake is noticed at once.
pub fn wait_any(words: &[(&AtomicU32, u32)], timeout: Option<Duration>) -> Waited {
    match *words {
        [] => {
            std::thread::sleep(timeout.unwrap_or(NAP));
            return Waited::TimedOut;
        }
        [(word, expected)] => return wait(word, expected, timeout),
        _ => {}
    }
    // ORDER none, Relaxed: a hint that saves a failing call; nothing else is read because of it.
    if words.len() <= WAITV_MAX && !NO_WAITV.load(Ordering::Relaxed) {
        match waitv(words, timeout) {
            Err(Errno::NOSYS | Errno::PERM) => NO_WAITV.store(true, Ordering::Relaxed),
            other => return answer(other),
        }
    }
    naps(words, timeout)
}

/// Whether the kernel has `futex_waitv`, by trying it.
#[must_use]
pub fn has_waitv() -> bool {
    let (one, two) = (AtomicU32::new(0), AtomicU32::new(0));
    // The second word does not hold what is expected: the call answers at once.
    !matches!(waitv(&[(&one, 0), (&two, 1)], Some(Duration::ZERO)), Err(Errno::NOSYS | Errno::PERM))
}

/// `futex_waitv` over at most [`WAITV_MAX`] words.
fn waitv(words: &[(&AtomicU32, u32)], timeout: Option<Duration>) -> Result<(), Errno> {
    let mut list = [Wait::new(); WAITV_MAX];
    for (entry, (word, expected)) in list.iter_mut().zip(words) {
        entry.val = u64::from(*expected);
        entry.uaddr = WaitPtr::new(word.as_ptr().cast::<c_void>());
        entry.flags = WaitFlags::SIZE_U32;
    }
    // This call takes a point in time, the others a span.
    let deadline = timeout.map(|t| {
        let now = Duration::from_nanos(clock::monotonic_ns());
        clock::timespec(now.saturating_add(t))
    });
    let list = &list[..words.len()];
    futex::waitv(list, WaitvFlags::empty(), deadline.as_ref(), futex::ClockId::Monotonic).map(drop)
}

/// Waits for one word after the other, a nap each; the kernel compares all of them in each round.
fn naps(words: &[(&AtomicU32, u32)], timeout: Option<Duration>) -> Waited {
    let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
    loop {
        for (word, expected) in words {
            match wait(word, *expected, Some(Duration::ZERO)) {
                Waited::TimedOut => {}
                other => return other,
            }
        }
        let left = match deadline {
            Some(d) => d.saturating_duration_since(Instant::now()),
            None => NAP,
        };
        if left.is_zero() {
            return Waited::TimedOut;
        }
        let (word, expected) = words[0];
        match wait(word, expected, Some(left.min(NAP))) {
            Waited::TimedOut => {}
            other => return other,
        }
    }
}

/// The kernel's answer in our words.
fn answer(result: Result<(), Errno>) -> Waited {
    match result {
        Ok(()) => Waited::Woken,
        Err(Errno::AGAIN) => Waited::Changed,
        Err(Errno::TIMEDOUT) => Waited::TimedOut,
        Err(Errno::INTR) => Waited::Interrupted,
        Err(_) => {
            // Refused by a filter, or out of kernel memory: the caller will look and come back, so
            // keep it from turning into a busy loop.
            std::thread::sleep(NAP);
            Waited::Interrupted
        }
    }
}

/// The low 32 bits of a 64-bit word, as the address for [`wait`], [`wake`] and [`wait_any`].
///
/// For these calls only. Loading or storing through it beside 64-bit accesses of the same word
/// would mix access sizes, which Rust does not define; the value to wait for is
/// `word.load(..) as u32`.
#[must_use]
pub fn low_half(word: &AtomicU64) -> &AtomicU32 {
    let half: *const AtomicU32 = ptr::from_ref(word).cast();
    // SAFETY: the pointer comes from a live `AtomicU64`, so its first 4 bytes are inside the same
    // object, aligned to 8, and live as long as the borrow we return. Every bit pattern is an
    // `AtomicU32`, both types allow mutation through a shared reference, and on the little-endian
    // targets that this crate builds for the first half is the low one. No access of this size is
    // made in this process: the functions above pass the address to the kernel and nothing else.
    unsafe { &*half }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_for_a_value_that_is_not_there_returns_at_once() {
        let word = AtomicU32::new(7);
        assert_eq!(wait(&word, 6, None), Waited::Changed);
        assert_eq!(wait_any(&[(&word, 7), (&AtomicU32::new(0), 1)], None), Waited::Changed);
    }

    #[test]
    fn a_wait_that_nobody_ends_times_out_and_not_early() {
        let (a, b) = (AtomicU32::new(1), AtomicU32::new(2));
        let span = Duration::from_millis(5);
        for words in [&[(&a, 1)][..], &[(&a, 1), (&b, 2)][..], &[][..]] {
            let start = Instant::now();
            assert_eq!(wait_any(words, Some(span)), Waited::TimedOut);
            assert!(start.elapsed() >= span);
        }
        let start = Instant::now();
        assert_eq!(naps(&[(&a, 1), (&b, 2)], Some(span)), Waited::TimedOut);
        assert!(start.elapsed() >= span);
    }

    #[test]
    fn naps_notice_a_change_of_any_word() {
        let (a, b) = (AtomicU32::new(1), AtomicU32::new(2));
        assert_eq!(naps(&[(&a, 1), (&b, 3)], None), Waited::Changed);
    }

    #[test]
    fn the_low_half_is_what_the_kernel_compares() {
        let word = AtomicU64::new(0xAAAA_BBBB_0000_0005);
        assert_eq!(wait(low_half(&word), 5, Some(Duration::ZERO)), Waited::TimedOut);
        assert_eq!(wait(low_half(&word), 6, Some(Duration::ZERO)), Waited::Changed);
    }

    #[test]
    fn wake_counts_the_sleepers_it_woke() {
        let word = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                while word.load(Ordering::Acquire) == 0 {
                    wait(low_half(&word), 0, None);
                }
            });
            assert_eq!(wake(low_half(&AtomicU64::new(0)), 1), 0);
            // Until the sleeper is seen asleep; the test harness is the watchdog.
            while wake(low_half(&word), u32::MAX) == 0 {
                std::thread::yield_now();
            }
            word.store(1, Ordering::Release);
            wake(low_half(&word), 1);
            sleeper.join().unwrap();
        });
    }
}
