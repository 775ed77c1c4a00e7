//! `forebay feed`: text becomes token tensors in a ring.
//!
//! ```text
//!   args.rs   what it can be told           run.rs       from the first line to the last message
//!   lines.rs  which lines are where         progress.rs  while it runs     summary.rs  when it ends
//! ```

mod args;
mod lines;
mod progress;
mod run;
mod summary;

pub(crate) use args::Args;
pub(crate) use run::run;
