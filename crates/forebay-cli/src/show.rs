//! Text on its way out. Results go to standard output, everything else to standard error.

use std::io::{self, Write};

use crate::failure::Failure;

/// Tells something on standard error.
pub(crate) fn say(text: &str) {
    // Nobody may be left to read it, which changes nothing.
    let _ = writeln!(io::stderr().lock(), "forebay: {text}");
}

/// Puts a result on standard output. A reader that has seen enough (`| head`) is no error.
pub(crate) fn put(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// `1 line`, `2 lines`.
pub(crate) fn count(number: u64, one: &str) -> String {
    let many = if number == 1 { "" } else { "s" };
    format!("{} {one}{many}", crate::units::grouped(number))
}
