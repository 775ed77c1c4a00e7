//! The forebay command line: feed, ls, clean, doctor.
fn main() {}
