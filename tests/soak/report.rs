//! Prints what a run measured.

use std::{io, path::Path, time::Duration};

use serde_json::{Map, Value, json};

use crate::{
    states::{Role, State},
    tally::{Tally, Times},
};

fn ms(ns: u64) -> String {
    format!("{:.2} ms", ns as f64 / 1e6)
}

fn per_minute(tally: &Tally, kills: u64) -> f64 {
    kills as f64 * 60.0 / tally.killing.as_secs_f64().max(0.001)
}

/// One line after each round.
pub(crate) fn progress(tally: &Tally, elapsed: Duration) {
    println!(
        "  round {}, {:.0?}: {} + {} kills, {} messages, {} findings",
        tally.rounds,
        elapsed,
        tally.kills(false),
        tally.kills(true),
        tally.published,
        tally.failures.len()
    );
}

fn times(times: &Times) -> String {
    format!(
        "p50 {}, p99 {}, max {} of {}",
        ms(times.quantile(0.5)),
        ms(times.quantile(0.99)),
        ms(times.quantile(1.0)),
        times.count()
    )
}

/// The rows of the table.
fn rows(tally: &Tally, namespaces: bool) -> Vec<(&'static str, String)> {
    let (native, python) = (tally.kills(false), tally.kills(true));
    let refused = if namespaces { "" } else { " (not possible here)" };
    let mut rows = vec![
        ("killed for", format!("{:.1} min in {} rounds", tally.killing.as_secs_f64() / 60.0, tally.rounds)),
        ("kills, native", format!("{native} ({:.0} a minute)", per_minute(tally, native))),
        ("kills, Python", format!("{python} ({:.0} a minute)", per_minute(tally, python))),
        ("victims in their own PID namespace", format!("{}{refused}", tally.namespaced)),
        ("holders with a forked child when they died", tally.forked.to_string()),
        ("stops (SIGSTOP)", format!("{}, the longest {:.1?}", tally.stops, tally.longest_stop)),
        ("published", format!("{} (and {} begun, never published)", tally.published, tally.unpublished)),
        ("received, queues", format!("{} deliveries of {} acked messages", tally.deliveries, tally.acked)),
        ("received, broadcast", format!("{} by members", tally.members_received)),
        ("redelivered, queues", tally.redelivered.to_string()),
        (
            "attempts spent",
            format!(
                "{} = {} nacks + {} deaths of a holder + {} deaths before the note of it",
                tally.by_nack + tally.by_death + tally.by_unnoted,
                tally.by_nack,
                tally.by_death,
                tally.by_unnoted
            ),
        ),
        ("claims seen just before a kill", tally.witnessed.to_string()),
        ("acks that their victim died over", tally.settled_by_absence.to_string()),
        (
            "dead letters",
            format!("{} (handed out again after a producer's death: {})", tally.letters, tally.letters_again),
        ),
        ("published and not received", tally.missing.to_string()),
        ("torn words", format!("{} of {}", tally.torn, tally.words)),
        ("leaks", tally.leaks.to_string()),
        ("recovery, the producer living", times(&tally.led)),
        ("the slowest of these, on ring", tally.slowest.as_ref().map_or_else(String::new, |(_, ring)| ring.clone())),
        ("recovery, without a producer for a while", times(&tally.leaderless)),
    ];
    for (role, python, name) in [
        (Role::Consumer, false, "attach (queue), native"),
        (Role::Member, false, "attach (broadcast), native"),
        (Role::Producer, false, "create or take over, native"),
        (Role::Consumer, true, "attach, Python"),
    ] {
        if let Some(entries) = tally.entries(role, python) {
            rows.push((name, times(entries)));
        }
    }
    rows
}

/// The table, and what is wrong.
pub(crate) fn print(tally: &Tally, least: u64, namespaces: bool, seed: u64) {
    println!();
    for (name, value) in rows(tally, namespaces) {
        println!("| {name:<42} | {value} |");
    }
    println!();
    println!("| {:<8} | {:<22} | {:>10} | {:>10} |", "killed", "while", "native", "Python");
    for &state in State::ALL {
        let role = state.role().map_or("", Role::text);
        let (native, python) = (tally.kills_of(state, false), tally.kills_of(state, true));
        let few = if native < least { "  << too few" } else { "" };
        println!("| {role:<8} | {:<22} | {native:>10} | {python:>10} |{few}", state.text());
    }
    println!();
    for failure in &tally.failures {
        println!("FAILED: {failure}");
    }
    println!(
        "seed {seed}: {}",
        if tally.failures.is_empty() { "nothing lost, nothing torn, nothing left" } else { "FAILED" }
    );
}

/// The same, for programs.
pub(crate) fn json(tally: &Tally, seed: u64, path: &Path) -> io::Result<()> {
    let mut states = Map::new();
    for &state in State::ALL {
        let name = format!("{}: {}", state.role().map_or("", Role::text), state.text());
        states.insert(name, json!({"native": tally.kills_of(state, false), "python": tally.kills_of(state, true)}));
    }
    let recovery = |times: &Times| {
        json!({
            "count": times.count(),
            "p50_ns": times.quantile(0.5),
            "p99_ns": times.quantile(0.99),
            "max_ns": times.quantile(1.0),
        })
    };
    let value: Value = json!({
        "seed": seed,
        "killing_s": tally.killing.as_secs_f64(),
        "rounds": tally.rounds,
        "kills": {"native": tally.kills(false), "python": tally.kills(true)},
        "kills_per_minute": {
            "native": per_minute(tally, tally.kills(false)),
            "python": per_minute(tally, tally.kills(true)),
        },
        "kills_by_state": states,
        "namespaced": tally.namespaced,
        "forked": tally.forked,
        "stops": tally.stops,
        "longest_stop_s": tally.longest_stop.as_secs_f64(),
        "published": tally.published,
        "deliveries": tally.deliveries,
        "members_received": tally.members_received,
        "acked": tally.acked,
        "attempts_spent": {"nack": tally.by_nack, "death": tally.by_death, "unnoted": tally.by_unnoted},
        "dead_letters": tally.letters,
        "dead_letters_again": tally.letters_again,
        "missing": tally.missing,
        "torn": tally.torn,
        "leaks": tally.leaks,
        "words": tally.words,
        "recovery": recovery(&tally.led),
        "recovery_without_producer": recovery(&tally.leaderless),
        "failures": tally.failures,
    });
    std::fs::write(path, format!("{value:#}\n"))
}
