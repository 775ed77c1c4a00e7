//! The kill soak: producers and consumers on all kinds of rings, killed at random moments hundreds of times a second, and
//! a book outside of the transport that says afterwards whether anything was lost, torn, given twice or left behind.
//!
//! ```text
//!   main.rs        options, rounds, leaks       supervisor/    one round: births, shots, stops, recoveries
//!   plan.rs        which rings; who dies where  victim.rs, consumer.rs, producer.rs   what victims do
//!   states.rs      what they were doing         python.rs, actor.py                   victims with torch views
//!   ledger.rs      the book                     audit.rs       reads the book, exactly
//!   watch.rs       slot words, from outside     tally.rs, report.rs   the figures
//! ```
#![allow(clippy::print_stdout, reason = "it prints its figures")]
#![deny(unsafe_code)]

mod audit;
mod consumer;
mod ledger;
mod plan;
mod process;
mod producer;
mod python;
mod report;
mod states;
mod supervisor;
mod tally;
mod victim;
mod watch;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use forebay_testkit::{Place, audit as leaks};

use crate::{
    ledger::{Ledger, ring},
    process::{Dice, Namespaces},
    python::Python,
    states::State,
    supervisor::{Round, Stage},
    tally::Tally,
};

/// A round lasts this long, so that a stop of 30 s fits in.
const ROUND: Duration = Duration::from_secs(60);

struct Options {
    span: Duration,
    round: Duration,
    seed: u64,
    /// Births a second at most.
    rate: f64,
    json: Option<PathBuf>,
    python: Option<(PathBuf, PathBuf)>,
    /// Every state must have been died in this often.
    least: u64,
    /// Recovery must not take longer, in 99 of 100 cases, while the ring's producer lives.
    recovery: Option<Duration>,
    /// Only rings whose name contains this.
    only: String,
}

fn options() -> Result<Options, String> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64);
    let mut options = Options {
        span: Duration::from_secs(60),
        round: ROUND,
        seed: clock % 1_000_000_007,
        rate: 900.0,
        json: None,
        python: None,
        least: 0,
        recovery: None,
        only: String::new(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{name} needs a value"));
        let number = |text: String| text.parse::<f64>().map_err(|e| format!("{text}: {e}"));
        match name.as_str() {
            "--minutes" => options.span = Duration::from_secs_f64(60.0 * number(value()?)?),
            "--seconds" => options.span = Duration::from_secs_f64(number(value()?)?),
            "--round" => options.round = Duration::from_secs_f64(number(value()?)?),
            "--seed" => options.seed = value()?.parse().map_err(|e| format!("--seed: {e}"))?,
            "--rate" => options.rate = number(value()?)?,
            "--least" => options.least = number(value()?)? as u64,
            "--recovery-ms" => options.recovery = Some(Duration::from_secs_f64(number(value()?)? / 1000.0)),
            "--json" => options.json = Some(value()?.into()),
            "--only" => options.only = value()?,
            "--python" => options.python = Some((value()?.into(), value()?.into())),
            _ => {
                return Err(format!(
                    "{name:?}? It takes --minutes N or --seconds N, --seed N, --json FILE, --python INTERPRETER \
                     actor.py, --least KILLS, --recovery-ms N, --rate PER-SECOND, --round SECONDS, --only RING"
                ));
            }
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(tally) if tally.failures.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(e) => {
            println!("error: {e}");
            ExitCode::from(64)
        }
    }
}

fn run(options: &Options) -> Result<Tally, String> {
    println!("soak: seed {}, {:.0?} in rounds of {:.0?}", options.seed, options.span, options.round);
    process::adopt_orphans();
    process::block_child_signal();
    let namespaces = Namespaces::new();
    let ledger = Ledger::new().map_err(|e| format!("no ledger: {e}"))?;
    let mut python = match &options.python {
        Some((interpreter, script)) => {
            Some(Python::start(interpreter, script, &ledger).map_err(|e| format!("no Python zygote: {e}"))?)
        }
        None => None,
    };
    let mut tally = Tally::default();
    let mut dice = Dice::new(options.seed);
    let start = Instant::now();
    while start.elapsed() + Duration::from_secs(2) < options.span && tally.failures.is_empty() {
        let span = options.round.min(options.span.saturating_sub(start.elapsed()));
        round(options, &ledger, &mut tally, dice.next(), span, namespaces.as_ref(), python.as_mut())?;
        if options.span > options.round {
            report::progress(&tally, start.elapsed());
        }
    }
    drop(python);
    promises(options, &mut tally);
    report::print(&tally, options.least, namespaces.is_some(), options.seed);
    if let Some(path) = &options.json {
        report::json(&tally, options.seed, path).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(tally)
}

/// What is asked of the run as a whole.
fn promises(options: &Options, tally: &mut Tally) {
    let few = |state: &&State| tally.kills_of(**state, false) < options.least;
    let few: Vec<&str> = State::ALL.iter().filter(few).map(|state| state.text()).collect();
    if !few.is_empty() {
        tally.failures.push(format!("fewer than {} kills while {}", options.least, few.join(", ")));
    }
    let p99 = Duration::from_nanos(tally.led.quantile(0.99));
    if let Some(most) = options.recovery
        && p99 > most
    {
        tally.failures.push(format!("recovery took {p99:.1?} in 99 of 100 cases, {most:.1?} is promised"));
    }
}

fn round(
    options: &Options,
    ledger: &Ledger,
    tally: &mut Tally,
    seed: u64,
    span: Duration,
    namespaces: Option<&Namespaces>,
    python: Option<&mut Python>,
) -> Result<(), String> {
    let place = Place::new();
    let before = (leaks::descriptors(), leaks::mappings(), sockets());
    ledger.clear().map_err(|e| format!("no ledger: {e}"))?;
    let mut dice = Dice::new(seed);
    let longest_stop = Duration::from_secs(30).min(span / 2);
    let mut mixes = plan::mixes(&mut dice, python.is_some(), longest_stop);
    mixes.retain(|mix| mix.name.contains(&options.only));
    let stage = Stage { ledger, dir: place.path(), namespaces, rate: options.rate };
    let mut round = Round::new(stage, tally, dice, mixes, python);
    let failures = round.run(span);
    let (mixes, lives, witnesses) = (round.mixes(), round.lives(), std::mem::take(&mut round.witnesses));
    drop(round);
    let whole = failures.is_empty();
    tally.failures = failures;
    tally.rounds += 1;
    if whole {
        audit::audit(ledger, &mixes, lives, &witnesses, tally);
        process::slim();
        leftovers(&place, before, tally);
    }
    tally.torn += tally.failures.iter().filter(|failure| failure.contains("TORN")).count() as u64;
    tally.leaks += tally.failures.iter().filter(|failure| failure.contains("LEAK")).count() as u64;
    if !tally.failures.is_empty() {
        let path = std::env::temp_dir().join(format!("soak-ledger-{}-{}", options.seed, tally.rounds));
        let cells: Vec<u64> = (0..mixes.len()).map(|each| ledger.ring(each, ring::INTENT)).collect();
        match ledger.save(&path, lives, &cells) {
            Ok(()) => tally.failures.push(format!("the ledger of round {} is in {}", tally.rounds, path.display())),
            Err(e) => tally.failures.push(format!("the ledger cannot be kept: {e}")),
        }
        place.sweep();
    }
    Ok(())
}

/// Paths of sockets that somebody still has.
fn sockets() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let mut paths: Vec<String> =
        table.lines().filter_map(|line| line.split_whitespace().nth(7)).map(str::to_owned).collect();
    paths.retain(|path| path.contains("forebay-test-"));
    paths
}

/// What must be as it was before the round.
fn leftovers(place: &Place, before: (Vec<String>, Vec<String>, Vec<String>), tally: &mut Tally) {
    let mut found = Vec::new();
    let files = |dir: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(dir).map(|list| list.flatten().map(|file| file.path()).collect()).unwrap_or_default()
    };
    let left = files(place.path());
    if !left.is_empty() {
        found.push(format!("LEAK: left in the ring directory: {left:?}"));
    }
    if !place.objects().is_empty() {
        found.push(format!("LEAK: left in /dev/shm: {:?}", place.objects()));
    }
    let after = (leaks::descriptors(), leaks::mappings(), sockets());
    let own = |path: &String| path.contains(&place.path().display().to_string());
    if (&after.0, &after.1) != (&before.0, &before.1) || after.2.iter().any(own) {
        found.push(format!("LEAK: files, mappings, sockets were {before:?}, are {after:?}"));
    }
    tally.failures.extend(found);
}
