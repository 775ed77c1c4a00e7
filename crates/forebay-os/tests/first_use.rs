//! The very first use of the crate in one thread while another one forks.
//!
//! A test binary of its own: no other test may use the crate in this process before.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod common;

use std::sync::atomic::{AtomicU32, Ordering};

use common::Child;
use forebay_os::{ForkToken, fork};

#[test]
fn a_fork_during_the_first_use_leaves_a_child_that_works() {
    for _ in 0..500 {
        let mut process = Child::fork(|| {
            let started = AtomicU32::new(0);
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        started.fetch_add(1, Ordering::Relaxed);
                        drop(fork::critical());
                    });
                }
                while started.load(Ordering::Relaxed) == 0 {
                    std::hint::spin_loop();
                }
                Child::fork(|| {
                    assert!(!ForkToken::current().is_stale());
                    drop(fork::critical());
                })
                .succeed();
            });
            drop(fork::critical());
        });
        process.succeed();
    }
}
