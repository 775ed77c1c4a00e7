//! Models of the protocol: loom runs them in every order of steps, and with every value, that the memory model allows.
//!
//! One file per edge of the crate's doc. A ring has two slots and two position entries here, so that everything wraps
//! within three messages; the payload is a cell whose accesses loom checks for races, so that a release which no longer
//! carries the reads before it fails although every word is an atomic. What a model leaves out stands in
//! `docs/protocol.md`; `ci/mutants.sh` shows for each ordering which model needs it.
//!
//! ```text
//!   RUSTFLAGS="--cfg loom" cargo test -p forebay-ring --release --lib models
//!   LOOM_MAX_PREEMPTIONS=4    looks at more switches between threads than a model asks for by itself
//!   LOOM_LOG=trace            prints the steps of a failure
//! ```

#![allow(clippy::unwrap_used, reason = "a thread of a model that panicked has failed it")]

#[cfg(loom)]
mod asleep;
#[cfg(loom)]
mod claim;
#[cfg(loom)]
mod commit;
#[cfg(loom)]
mod crash;
#[cfg(loom)]
mod death;
#[cfg(loom)]
mod give_back;
#[cfg(loom)]
mod handover;
#[cfg(loom)]
mod join;
#[cfg(loom)]
mod leave;
#[cfg(loom)]
mod membarrier;
#[cfg(loom)]
mod memory;
#[cfg(loom)]
mod park;
#[cfg(loom)]
mod position;
#[cfg(loom)]
mod release;
#[cfg(loom)]
mod revoke;
#[cfg(loom)]
mod rig;
