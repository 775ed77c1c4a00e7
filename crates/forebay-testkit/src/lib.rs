//! What the tests of forebay share. Unpublished, and no dependency of a published crate.
//!
//! ```text
//!   watchdog.rs     no test waits without end            ledger.rs   payloads whose every word can be checked
//!   place.rs        a directory of one test's own        audit.rs    what must be as it was: slots, files, maps
//!   child.rs        starts an actor, speaks lines        actor/      the actor: a process to be killed at will
//!   conformance/    every behaviour over every kind, backing and wait, as a table that other languages fill too
//! ```
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

pub mod actor;
pub mod audit;
pub mod child;
pub mod conformance;
pub mod ledger;
pub mod place;
pub mod watchdog;

pub use child::Actor;
pub use place::Place;
pub use watchdog::WATCHDOG;
