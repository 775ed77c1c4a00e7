//! What the library does when the system says no: every system call of every operation fails in turn, descriptors run
//! out or are lost, signals interrupt and stop everything, file systems are full, clocks differ.
//!
//! ```text
//!   victim/        the process that is maltreated: operations, and what must be afterwards as before
//!   tracer.rs      makes one chosen call fail, by ptrace         errnos.rs   which errors which call returns
//!   matrix.rs      every call, one after the other               limits.rs   few descriptors, many signals
//!   space.rs       full file systems, at every allocation        lost.rs     descriptors closed and used by others
//!   stopped.rs     SIGSTOP and SIGCONT around every wait         clock.rs    peers whose clocks are hours apart
//! ```
//!
//! What the tracer does is injected: the kernel never carried the call out. All the rest is real.
//!
//! `FOREBAY_FAULTS=full` runs all of it (`make faults`). Without it, calls fail with fewer errors each, and at every place
//! only in the operations of `matrix::AT_ALL_PLACES`; in the others, at a call's first and last place.
#![allow(clippy::print_stdout, reason = "figures are printed")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "the tracer knows one machine's registers"))]

mod actors;
mod clock;
#[cfg(target_arch = "x86_64")]
mod errnos;
mod limits;
mod lost;
#[cfg(target_arch = "x86_64")]
mod matrix;
mod report;
mod space;
mod stopped;
#[cfg(target_arch = "x86_64")]
mod tracer;

/// The process that faults are put into.
const VICTIM: &str = env!("CARGO_BIN_EXE_forebay-victim");

/// Whether everything is to be run.
fn full() -> bool {
    std::env::var("FOREBAY_FAULTS").is_ok_and(|value| value == "full")
}

#[cfg(not(target_arch = "x86_64"))]
#[test]
fn system_calls_are_made_to_fail_on_x86_64_only() {
    eprintln!("skipped: making system calls fail needs x86_64, whose registers the tracer knows");
}
