//! The live status page: one file without anything outside it, filled in from `/status`.

/// The page.
pub(crate) const HTML: &str = include_str!("status.html");
