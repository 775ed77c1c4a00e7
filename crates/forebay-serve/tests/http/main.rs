//! HTTP in front of a model that is not there: real sockets, a fake backend.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admission;
mod client;
mod fake;
mod formats;
mod generating;
#[cfg(feature = "grpc")]
mod grpc;
mod hostile;
mod life;
mod openai;
mod page;
mod seen;
mod streams;
mod v2;
