//! What is seen while `feed` runs: a bar on a terminal, a line each second where one was asked for, else nothing.

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use forebay_ingest::Report;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{show, units};

/// Between two looks at the rate.
const TICK: Duration = Duration::from_millis(100);
/// Between two lines where there is no terminal.
const LINE: Duration = Duration::from_secs(1);

/// Shows how far a feed is.
#[derive(Debug)]
pub(super) struct Progress {
    shown: Shown,
    start: Instant,
    last: Instant,
    input_bytes: Option<u64>,
    /// Whether there are tokens to count.
    tokens: bool,
}

#[derive(Debug)]
enum Shown {
    Bar(ProgressBar),
    Lines,
    Nothing,
}

impl Progress {
    /// `forced` and `never` are what was asked for, `input_bytes` is what there is to read, if that is known.
    pub(super) fn new((forced, never): (bool, bool), tokens: bool, input_bytes: Option<u64>) -> Self {
        let shown = match (never, io::stderr().is_terminal(), forced) {
            (true, ..) | (false, false, false) => Shown::Nothing,
            (false, true, _) => Shown::Bar(bar(input_bytes)),
            (false, false, true) => Shown::Lines,
        };
        let now = Instant::now();
        Self { shown, start: now, last: now, input_bytes, tokens }
    }

    /// Takes note of what was read and published so far.
    pub(super) fn update(&mut self, report: &Report) {
        let due = match self.shown {
            Shown::Bar(_) => TICK,
            Shown::Lines => LINE,
            Shown::Nothing => return,
        };
        if self.last.elapsed() < due {
            return;
        }
        self.last = Instant::now();
        let text = self.text(report);
        match &self.shown {
            Shown::Bar(bar) => {
                bar.set_position(report.input_bytes);
                bar.set_message(text);
            }
            _ => show::say(&match self.input_bytes {
                Some(all) if all > 0 => format!("{:3} %  {text}", report.input_bytes * 100 / all),
                _ => text,
            }),
        }
    }

    /// No slot is free. Shown if that lasts.
    pub(super) fn waiting(&mut self) {
        if let Shown::Bar(bar) = &self.shown
            && self.last.elapsed() >= TICK
        {
            self.last = Instant::now();
            bar.set_message("waiting for a free slot");
        }
    }

    /// Everything is published; `left` messages are still with consumers.
    pub(super) fn draining(&mut self, left: u32) {
        if let Shown::Bar(bar) = &self.shown {
            bar.set_message(format!("waiting until consumers have the last {left} messages"));
        }
    }

    /// Runs `f`, which writes to standard error, without tearing the bar.
    pub(super) fn pause(&self, f: impl FnOnce()) {
        match &self.shown {
            Shown::Bar(bar) => bar.suspend(f),
            _ => f(),
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }

    fn text(&self, report: &Report) -> String {
        let seconds = self.start.elapsed().as_secs_f64().max(1e-3);
        let (what, amount) = if self.tokens { ("tokens", report.tokens) } else { ("rows", report.items) };
        format!("{} messages  {} {what}/s", units::grouped(report.batches), units::rate(amount as f64 / seconds))
    }
}

fn bar(input_bytes: Option<u64>) -> ProgressBar {
    let (template, bar) = match input_bytes {
        Some(bytes) => ("{percent:>3} % [{bar:20}] {bytes}/{total_bytes}  {msg}", ProgressBar::new(bytes)),
        None => ("{spinner} {bytes}  {msg}", ProgressBar::new_spinner()),
    };
    bar.set_draw_target(ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
