//! Real processes, stopped and killed at will. One file per concern.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]
