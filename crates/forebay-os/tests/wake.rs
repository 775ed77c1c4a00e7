//! Futexes, event counters and barriers between real processes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{Child, Flag, WATCHDOG, deadline};
use forebay_os::futex::{self, Waited};
use forebay_os::object::{allocate, memfd};
use forebay_os::{Access, Barrier, Conn, EventFd, Mapping, barrier};

fn object() -> OwnedFd {
    let fd = memfd::create("forebay-os-test", None).unwrap();
    allocate(&fd, 4096).unwrap();
    fd
}

/// The `n`-th 64-bit word of a mapping.
fn word(mapping: &Mapping, n: usize) -> &AtomicU64 {
    let words: NonNull<AtomicU64> = mapping.base().cast();
    assert!(n < mapping.len() / 8);
    // SAFETY: inside the mapping (above).
    let at = unsafe { words.add(n) };
    // SAFETY: page-aligned start, 8-byte steps, mapped as long as the borrow, used as atomics only.
    unsafe { at.as_ref() }
}

#[test]
fn a_wake_reaches_a_sleeper_in_another_process() {
    let fd = object();
    let ready = Flag::new();
    let mut child = Child::fork(|| {
        // Looking is enough for sleeping: the sleeper's mapping is read-only.
        let mapping = Mapping::map(fd.as_fd(), 4096, Access::ReadOnly).unwrap();
        let words = [word(&mapping, 0), word(&mapping, 5)];
        ready.raise();
        while words[1].load(Ordering::Acquire) == 0 {
            let list = words.map(|w| (futex::low_half(w), w.load(Ordering::Acquire) as u32));
            if list[1].1 == 0 {
                assert_ne!(futex::wait_any(&list, Some(WATCHDOG)), Waited::TimedOut);
            }
        }
    });
    let mapping = Mapping::map(fd.as_fd(), 4096, Access::ReadWrite).unwrap();
    ready.wait();
    // Seen asleep, then told.
    common::until("a sleeper", || futex::wake(futex::low_half(word(&mapping, 5)), 1) == 1);
    word(&mapping, 5).store(1, Ordering::Release);
    futex::wake(futex::low_half(word(&mapping, 5)), u32::MAX);
    child.succeed();
}

#[test]
fn a_signal_ends_a_wait() {
    extern "C" fn nothing(_: libc::c_int) {}
    let fd = object();
    let ready = Flag::new();
    let mut child = Child::fork(|| {
        let handler: extern "C" fn(libc::c_int) = nothing;
        // SAFETY: a handler that does nothing; the zeroed rest is an empty mask and no flags.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as libc::sighandler_t;
        // SAFETY: valid action, old one not asked for.
        unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
        let mapping = Mapping::map(fd.as_fd(), 4096, Access::ReadOnly).unwrap();
        ready.raise();
        let two = [(futex::low_half(word(&mapping, 0)), 0), (futex::low_half(word(&mapping, 1)), 0)];
        assert_eq!(futex::wait_any(&two, Some(WATCHDOG)), Waited::Interrupted);
        ready.raise();
        assert_eq!(futex::wait(two[0].0, 0, Some(WATCHDOG)), Waited::Interrupted);
        ready.raise();
    });
    ready.wait();
    for _ in 0..2 {
        // A signal before the wait is spent on nothing, hence another and another, with time between
        // them in which the child can get on.
        common::until("the end of the wait", || {
            child.signal(libc::SIGUSR1);
            ready.take_within(Duration::from_millis(1))
        });
    }
    child.succeed();
}

#[test]
fn an_event_counter_that_was_passed_on_wakes_its_maker() {
    let (ours, theirs) = Conn::pair().unwrap();
    let theirs = OwnedFd::from(theirs);
    let event = EventFd::new().unwrap();
    ours.send(b"e", &[event.as_fd()]).unwrap();
    let mut child = Child::fork(|| {
        let conn = Conn::from_fd(theirs).unwrap();
        let received = conn.recv(&mut [0; 4], 1, deadline()).unwrap();
        let event = EventFd::from_fd(received.fds.into_iter().next().unwrap()).unwrap();
        assert!(event.signal());
    });
    let ready = forebay_os::poll::poll_one(event.as_fd(), forebay_os::poll::Events::READ, Some(WATCHDOG)).unwrap();
    assert!(!ready.is_empty() && event.drain());
    child.succeed();
}

#[test]
fn the_environment_can_forbid_membarrier() {
    Child::fork(|| {
        // SAFETY: the only thread of this process.
        unsafe { std::env::set_var(barrier::ENV_NO_MEMBARRIER, "1") };
        assert_eq!(barrier::register(), Barrier::Fence);
        // SAFETY: as above.
        unsafe { std::env::remove_var(barrier::ENV_NO_MEMBARRIER) };
        // A child registers for itself, and then may run what it was promised.
        assert!(barrier::heavy(barrier::register()));
    })
    .succeed();
}
