//! The request path of a Python model server, in one process: HTTP in, ready batches of tensors out to the workers,
//! and their answers back.
//!
//! ```text
//!   client ──▶ http ──▶ Backend ──▶ engine ──▶ forebay::service ══ rings ══▶ worker (Python)
//!              auth,     the       intake: text, images, tables → tensors   model, forward pass
//!              limits,   border    schedule: queue, batches, deadlines
//!              formats             workers: start, watch, restart
//! ```
//!
//! - [`config`]: one TOML file, the environment and flags become one checked [`Config`].
//! - [`http`]: routes, formats, admission, draining.
//! - [`engine`]: calls become batches in the rings of worker processes; [`intake`] and [`schedule`] are parts of it.
//! - [`metrics`], [`trace`], [`logs`]: what can be seen from outside.
//! - [`backend`]: what HTTP knows of a model, and nothing else; tests put a fake in its place.

pub mod backend;
pub mod config;
pub mod engine;
pub mod http;
pub mod intake;
pub mod logs;
pub mod metrics;
mod page;
pub mod schedule;
pub mod trace;
mod workers;

pub use config::Config;
