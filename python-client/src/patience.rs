//! How long a wait keeps the interpreter.
//!
//! Letting go of the interpreter and taking it again costs more than a message does, and much more when another thread
//! wants it. So a consumer that spins does so with the interpreter held at first: for a small part of the time for which
//! CPython lets any thread keep it (`sys.getswitchinterval()`, 5 ms). Where that turns out in vain, because messages come
//! later or because the thread that would send one wants the interpreter, the next waits let go at once; now and then it
//! is tried again. Where it turns out well again and again, other threads still get their turn.

use std::time::Duration;

use forebay::WaitPolicy;

/// A wait that spins anyway keeps the interpreter so long at most.
const SPIN: Duration = Duration::from_micros(100);
/// The same where the wait is to end in sleep: about what a wake costs.
const ADAPTIVE: Duration = Duration::from_micros(30);
/// After this many waits in a row that kept the interpreter, one lets go of it.
const IN_A_ROW: u32 = 16;
/// So many waits let go at once after keeping it was in vain many times.
const MOST_SKIPPED: u32 = 64;

/// What a consumer has learned about its waits.
#[derive(Debug)]
pub(crate) struct Patience {
    /// `None`: never keep it, the wait sleeps at once.
    most: Option<Duration>,
    in_a_row: u32,
    /// Waits that let go at once before the next try.
    skip: u32,
    /// What `skip` becomes when the next try is in vain.
    penalty: u32,
}

impl Patience {
    pub(crate) fn new(wait: WaitPolicy) -> Self {
        let most = match wait {
            WaitPolicy::Spin => Some(SPIN),
            WaitPolicy::Adaptive => Some(ADAPTIVE),
            WaitPolicy::Block => None,
        };
        Self { most, in_a_row: 0, skip: 0, penalty: 1 }
    }

    /// How long the wait that begins now may keep the interpreter, if at all.
    pub(crate) fn next(&mut self) -> Option<Duration> {
        let most = self.most?;
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        if self.in_a_row >= IN_A_ROW {
            self.in_a_row = 0;
            return None;
        }
        self.in_a_row += 1;
        Some(most)
    }

    /// Whether keeping it brought the message.
    pub(crate) fn learn(&mut self, came: bool) {
        if came {
            self.penalty = 1;
        } else {
            (self.in_a_row, self.skip) = (0, self.penalty);
            self.penalty = (2 * self.penalty).min(MOST_SKIPPED);
        }
    }
}
