//! Real processes, stopped and killed at will. One file per concern.
//!
//! Actors whose environment switches slices off have nothing but wakes to go on: a lost one is a hang, and the watchdog
//! says so.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

mod consumer_death;
mod corners;
mod crowd;
mod event_loop;
mod fork;
mod policy;
mod producer_death;
mod service;
mod stage;
mod wake;
