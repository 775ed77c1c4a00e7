//! Peers that lie: every word that another process may write, and every packet that it may send, made to say what no
//! honest one says. What comes of it is an error that names the field, a peer that is dropped, or nothing; never a
//! panic, a fault, a hang, or damage to a third one. See `README.md` beside this file.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

mod control;
mod descriptors;
mod flood;
mod header;
mod impostor;
mod members;
mod messages;
mod rig;
mod scribble;
mod segment;
mod servers;
mod services;
mod skew;
mod squat;
#[path = "../process/stage.rs"]
#[allow(dead_code, reason = "the process tests use the rest of it")]
mod stage;
mod tables;
mod takeover;
mod truncate;
mod words;
