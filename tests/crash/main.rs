//! A crash at every instruction: steps the compiled library through its operations, takes a picture of the shared memory
//! after each instruction that changed it, and asks whether what is left can be recovered exactly.
//!
//! ```text
//!   main.rs      arguments, workers, the table          oracle.rs   what must be true after each operation, in sequence
//!   step.rs      the trap flag and its handler          audit.rs    THE AUDIT of one picture; short, to be believed
//!   actor.rs     the process that is stepped            walk/       a seeded walk over operations, deaths and takeovers
//!   rig.rs       its other end: start, order, kill      place.rs    pictures of a whole ring: objects, names, locks
//!   board.rs     what the two share: orders, the log    picture.rs  what a picture of the words says
//!   memory.rs    the ring's memory as the tracer sees it, and copies of it on the heap
//!   setup.rs     the ring of a seed, and what its messages contain
//!   tally.rs     what was counted, and how it is printed
//! ```
//! See "A crash at every instruction" in `docs/testing.md`.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test program: it reports on stdout and fails by panicking"
)]

mod actor;
mod audit;
mod board;
mod memory;
mod oracle;
mod picture;
mod place;
mod rig;
mod setup;
mod step;
mod tally;
mod walk;

use std::{
    io::{BufRead, BufReader},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use tally::Tally;

/// What the program was told.
struct Options {
    points: u64,
    seed: u64,
    scenario: Option<u64>,
    worker: Option<u64>,
    workers: u64,
    /// No further scenario is begun after this time, even if there are too few points.
    seconds: u64,
}

fn options() -> Options {
    let mut options = Options { points: 200_000, seed: 1, scenario: None, worker: None, workers: 0, seconds: u64::MAX };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().and_then(|value| value.parse().ok());
        let value = value.unwrap_or_else(|| panic!("{name} needs a number"));
        match name.as_str() {
            "--points" => options.points = value,
            "--seed" => options.seed = value,
            "--scenario" => options.scenario = Some(value),
            "--worker" => options.worker = Some(value),
            "--workers" => options.workers = value,
            "--seconds" => options.seconds = value,
            other => panic!("{other} is none of --points, --seed, --scenario, --workers, --seconds"),
        }
    }
    if options.workers == 0 {
        options.workers = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    }
    options
}

fn main() -> ExitCode {
    if let Some(orders) = actor::orders() {
        actor::run(&orders);
        return ExitCode::SUCCESS;
    }
    if cfg!(not(all(target_arch = "x86_64", target_os = "linux"))) {
        eprintln!("stepping instruction by instruction is written for Linux on x86_64; this is neither");
        return ExitCode::from(2);
    }
    let options = options();
    match options.worker {
        Some(worker) => work(&options, worker),
        None => lead(&options),
    }
}

/// Walks one scenario after the other until enough points are found, and says what was counted on stdout.
fn work(options: &Options, worker: u64) -> ExitCode {
    rig::stay_on_cpu(worker);
    let mut tally = Tally::default();
    match options.scenario {
        Some(scenario) => walk::walk(options.seed, scenario, None, &mut tally),
        None => {
            let (mut scenario, start) = (worker, Instant::now());
            let until = start.checked_add(Duration::from_secs(options.seconds));
            let over =
                |tally: &Tally| tally.points() >= options.points.div_ceil(options.workers) || tally.failures() > 0;
            while !over(&tally) && start.elapsed().as_secs() < options.seconds {
                walk::walk(options.seed, scenario, until, &mut tally);
                scenario += options.workers;
            }
        }
    }
    tally.write();
    ExitCode::SUCCESS
}

/// Starts a worker for each CPU, adds up what they counted, prints the table.
fn lead(options: &Options) -> ExitCode {
    let start = Instant::now();
    let myself = std::env::current_exe().unwrap();
    let workers = if options.scenario.is_some() { 1 } else { options.workers };
    let started: Vec<_> = (0..workers)
        .map(|worker| {
            let mut command = Command::new(&myself);
            for (name, value) in [
                ("--points", Some(options.points)),
                ("--seed", Some(options.seed)),
                ("--workers", Some(workers)),
                ("--worker", Some(worker)),
                ("--seconds", Some(options.seconds)),
                ("--scenario", options.scenario),
            ] {
                if let Some(value) = value {
                    command.args([name, &value.to_string()]);
                }
            }
            command.stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let mut tally = Tally::default();
    let mut died = false;
    for mut worker in started {
        for line in BufReader::new(worker.stdout.take().unwrap()).lines() {
            tally.read(&line.unwrap());
        }
        let status = worker.wait().unwrap();
        if !status.success() {
            println!("a worker ended with {status}");
            died = true;
        }
    }
    println!("{}", tally.table(options.seed, start.elapsed()));
    let limited = options.scenario.is_some() || options.seconds != u64::MAX;
    let enough = tally.points() >= if limited { 1 } else { options.points };
    if tally.failures() == 0 && enough && !died { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
