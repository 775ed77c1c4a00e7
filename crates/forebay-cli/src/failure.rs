//! What ends the program early: a text for people and an exit code for programs.

use std::fmt::Display;

/// It failed while running.
pub(crate) const EXIT_FAILED: u8 = 1;
/// The command line or a file that it names cannot be used (`EX_USAGE` of sysexits).
pub(crate) const EXIT_USAGE: u8 = 64;

/// Why the program ends early.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) text: String,
}

impl Failure {
    /// Running it again with the same arguments may work.
    pub(crate) fn failed(why: impl Display) -> Self {
        Self { code: EXIT_FAILED, text: why.to_string() }
    }

    /// The arguments, or a file that they name, must change.
    pub(crate) fn usage(why: impl Display) -> Self {
        Self { code: EXIT_USAGE, text: why.to_string() }
    }
}
