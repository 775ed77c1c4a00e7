//! The ring protocol with a thread for each process, on one memory: what is a word of the ring is atomic, what is payload
//! is plain memory. `make tsan` runs this under ThreadSanitizer, which sees every access to the payload that no edge of
//! the protocol orders; as ordinary tests they check that nothing is lost, twice or torn.
//!
//! ThreadSanitizer knows no fences, and needs none here: no payload changes hands by a fence. Those of the position entries
//! (E3) only tell a torn copy from a whole one, those of the wakers (E5) only decide who sleeps; both concern words that
//! are atomic. What a death orders is told by the kernel's lock in the product and by an atomic word here.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

mod broadcast;
mod memory;
mod park;
mod queue;
mod rig;
mod run;
