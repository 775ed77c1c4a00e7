//! SIGINT and SIGTERM: the first asks to stop, the second ends the program at once.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
    low_level,
};

/// Signals this close together are one: `timeout` and process groups deliver one wish twice.
const SAME: Duration = Duration::from_millis(300);

/// Whether somebody asked to stop. Waits look at it at least every 50 ms.
#[derive(Debug, Clone)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// From now on the first SIGINT or SIGTERM sets the flag, and a later one exits with 128 + its number.
    pub(crate) fn on_signals() -> io::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let flag = Arc::clone(&asked);
        thread::Builder::new().name("forebay-signals".into()).spawn(move || {
            let mut first = None;
            for signal in signals.forever() {
                let first = *first.get_or_insert_with(Instant::now);
                // ORDER none, Relaxed: the flag is the whole message.
                if flag.swap(true, Ordering::Relaxed) && first.elapsed() >= SAME {
                    low_level::exit(128 + signal);
                }
            }
        })?;
        Ok(Self(asked))
    }

    /// True once a signal came.
    pub(crate) fn asked(&self) -> bool {
        // ORDER none, Relaxed: the flag is the whole message.
        self.0.load(Ordering::Relaxed)
    }

    /// The flag, for what watches it by itself.
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}
