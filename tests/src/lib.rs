//! Tests that need more than one crate or more than one process.
//!
//! ```text
//!   process/       real processes, stopped and killed, one file per concern    ring/   races, forced word by word
//!   hostile/       peers that lie, scribble, squat and flood
//!   conformance/   the table of behaviours, pairwise (all of it: the binary forebay-conformance)
//! ```
//! The actors and the table itself are in `forebay-testkit`; the binaries are here because cargo tells a test only of
//! those of its own package.
