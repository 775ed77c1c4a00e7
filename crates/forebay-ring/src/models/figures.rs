//! What was explored, for `ci/model.sh` to sum up.

use std::{cell::Cell, fs::File, io::Write as _, time::Instant};

std::thread_local! {
    /// Deaths in all histories of the model that runs in this thread, and are not reported yet.
    static DEATHS: Cell<u64> = const { Cell::new(0) };
}

/// Adds deaths.
#[cfg(shuttle)]
pub(super) fn count_deaths(deaths: u64) {
    DEATHS.set(DEATHS.get() + deaths);
}

/// Appends a line to the file that `FOREBAY_MODEL_FIGURES` names: model, how it was explored, runs, seconds, deaths.
pub(super) fn report(how: &str, runs: u64, start: Instant) {
    let deaths = DEATHS.take();
    let Some(path) = std::env::var_os("FOREBAY_MODEL_FIGURES") else { return };
    let thread = std::thread::current();
    let model = thread.name().unwrap_or("a model").trim_start_matches("models::");
    let line = format!("{model}\t{how}\t{runs}\t{:.3}\t{deaths}\n", start.elapsed().as_secs_f64());
    let mut file = File::options().append(true).create(true).open(path).expect("the file for figures");
    file.write_all(line.as_bytes()).expect("the file for figures");
}
