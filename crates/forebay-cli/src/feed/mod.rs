//! `forebay feed`: texts, images and lines of JSON become tensors in a ring.
//!
//! ```text
//!   args.rs help.rs  what it can be told    run.rs       from the first item to the last message
//!   kind.rs   what differs: text.rs         progress.rs  while it runs     summary.rs  when it ends
//!             images.rs table.rs            lines.rs     which items are where
//!   place.rs  where it stands               keep.rs      in a file         resume.rs   where it begins
//!   skips.rs  what is left out, in a file
//! ```

mod args;
mod help;
mod images;
mod keep;
mod kind;
mod lines;
mod place;
mod progress;
mod resume;
mod run;
mod skips;
mod summary;
mod table;
mod text;

pub(crate) use args::Args;
pub(crate) use run::run;
