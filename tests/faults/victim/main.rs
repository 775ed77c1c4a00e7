//! Runs operations of the library on order, one a line, and says how each ended: the process that faults are put into.
//!
//! An order is `OPERATION [free=N | storm]`. The answer is one line: outcome, milliseconds, what was left behind at
//! once, what was left behind for good, and the error's text, separated by tabs.
#![allow(clippy::print_stdout, reason = "this is how it answers")]
#![allow(clippy::unwrap_used, reason = "a check that fails ends the round and is answered")]

mod operations;
mod stage;

use std::{
    io::{BufRead, Write},
    panic,
    sync::{Arc, Mutex},
};

use stage::{DONE, Limit, Outcome, Stage, mark};

fn main() {
    let panics: Arc<Mutex<Vec<String>>> = Arc::default();
    let heard = Arc::clone(&panics);
    panic::set_hook(Box::new(move |info| {
        let thread = std::thread::current();
        heard.lock().unwrap().push(format!("{} in {}", info, thread.name().unwrap_or("?")).replace('\n', " "));
    }));
    stage::ignore_marks();
    println!("ready");
    let mut order = String::new();
    let mut input = std::io::stdin().lock();
    while matches!(input.read_line(&mut order), Ok(n) if n > 0) {
        let (name, limit) = match order.trim().split_once(' ') {
            Some((name, limit)) => (name.to_owned(), Limit::parse(limit)),
            None => (order.trim().to_owned(), Limit::None),
        };
        order.clear();
        let outcome = round(&name, limit, &panics);
        println!("{}", outcome.line());
        std::io::stdout().flush().unwrap();
        mark(DONE);
    }
}

fn round(name: &str, limit: Limit, panics: &Arc<Mutex<Vec<String>>>) -> Outcome {
    let operation = operations::find(name).unwrap_or_else(|| panic!("no operation {name:?}"));
    let before = stage::Snapshot::take();
    let mut stage = Stage::new(limit);
    let ended = panic::catch_unwind(panic::AssertUnwindSafe(|| operation(&mut stage)));
    stage.lift();
    let mut outcome = stage.outcome();
    outcome.left.extend(before.until_same());
    // What a failing unlink leaves is for `forebay clean`: it must find all of it.
    let _ = forebay::inspect::clean(None);
    outcome.leaked = before.until_same();
    let heard = std::mem::take(&mut *panics.lock().unwrap());
    if ended.is_err() || !heard.is_empty() {
        outcome.panicked(&heard.join("; "));
    }
    outcome
}
