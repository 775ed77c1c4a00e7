//! Races of the ring protocol, forced word by word: the memory calls back when a chosen word is looked at, and the other
//! side acts there and then, on the same thread. What a stress test meets once a week happens here every time.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

mod copy;
mod hooked;
mod scan;
