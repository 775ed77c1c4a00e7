//! `forebay ls`: what rings there are, who publishes, who holds what since when, and how fast it goes.

use std::{
    collections::HashMap,
    io::{self, IsTerminal},
    path::PathBuf,
    thread,
    time::{Duration, Instant, SystemTime},
};

use clap::Parser;
use forebay::{
    Kind,
    inspect::{self, ConsumerReport, RingReport, RingView},
};
use serde_json::{Value, json};

use crate::{
    failure::Failure,
    show::{self, count, table},
    stop::Stop,
    units::{Bytes, grouped, rate, seconds, span},
};

/// Between the two looks that rates are made from.
const SAMPLE: Duration = Duration::from_millis(200);
/// How often a watch looks for a signal.
const SLICE: Duration = Duration::from_millis(50);

const LONG_ABOUT: &str = "\
Lists the rings of a directory: producers, consumers, messages that wait, who holds which slots since when, and rates.

It only looks: no ring is changed, nobody waits for it. Dead producers are listed too, as long as something of their ring \
is left; `forebay clean` removes what nobody holds.";

const AFTER_HELP: &str = "\
Columns:
  WAITING    messages that nobody has taken; on a broadcast ring, that the slowest consumer has still to read
  HELD       slots that a consumer reads or has not acked
  FREE       slots that the producer may use now
  MSG/S, MB/S  over the last 200 ms (or since the last look of --watch)

Examples:
  forebay ls
  forebay ls tokens --watch 1
  forebay ls --json | jq '.[] | {name, depth, consumers: (.consumers | length)}'";

/// List rings: who publishes, who holds what, how fast
#[derive(Debug, Parser)]
#[command(long_about = LONG_ABOUT, after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Rings to list [default: all]
    #[arg(value_name = "RING")]
    rings: Vec<String>,

    /// Look again and again, this long apart (seconds, or with ms, s, m)
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    watch: Option<Duration>,

    /// Look once instead of twice, 200 ms apart: no rates
    #[arg(long)]
    no_rates: bool,

    /// Print JSON: an array of rings, with times in seconds and sizes in bytes
    #[arg(long)]
    json: bool,

    /// Folder in which producers and consumers meet [default: $FOREBAY_DIR, else as `forebay --help` says]
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

/// Runs `forebay ls`.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let Some(every) = args.watch else {
        let before = (!args.no_rates).then(|| look(args)).transpose()?;
        if before.as_ref().is_some_and(|sample| !sample.rings.is_empty()) {
            thread::sleep(SAMPLE);
        }
        return print(args, &look(args)?, before.as_ref(), false);
    };
    let stop = Stop::on_signals().map_err(|e| Failure::failed(format!("cannot catch signals: {e}")))?;
    let clear = io::stdout().is_terminal() && !args.json;
    let mut before = None;
    while !stop.asked() {
        let sample = look(args)?;
        print(args, &sample, before.as_ref(), clear)?;
        before = Some(sample);
        let next = Instant::now() + every;
        while !stop.asked() && Instant::now() < next {
            thread::sleep(SLICE.min(next.saturating_duration_since(Instant::now())));
        }
    }
    Ok(())
}

/// What one look saw.
struct Sample {
    at: Instant,
    rings: Vec<RingReport>,
}

fn look(args: &Args) -> Result<Sample, Failure> {
    let mut rings = inspect::list(args.dir.as_deref()).map_err(Failure::failed)?;
    if !args.rings.is_empty() {
        if let Some(missing) = args.rings.iter().find(|name| rings.iter().all(|ring| ring.name != **name)) {
            return Err(Failure::failed(format!("there is no ring {missing:?}; {}", others(&rings))));
        }
        rings.retain(|ring| args.rings.contains(&ring.name));
    }
    Ok(Sample { at: Instant::now(), rings })
}

fn others(rings: &[RingReport]) -> String {
    let names: Vec<&str> = rings.iter().map(|ring| ring.name.as_str()).collect();
    if names.is_empty() {
        "there is none in this directory (--dir, FOREBAY_DIR)".to_owned()
    } else {
        format!("there is {}", names.join(", "))
    }
}

/// Per second, between two looks.
#[derive(Debug, Clone, Default)]
struct Rates {
    messages: f64,
    bytes: f64,
    /// By member index and incarnation.
    received: HashMap<(u8, u16), f64>,
}

fn rates(ring: &RingReport, now: &Sample, before: Option<&Sample>) -> Option<Rates> {
    let before = before?;
    let old = before.rings.iter().find(|old| old.name == ring.name)?.view.as_ref().ok()?;
    let new = ring.view.as_ref().ok()?;
    if old.instance != new.instance {
        return None;
    }
    let seconds = now.at.duration_since(before.at).as_secs_f64().max(1e-3);
    let per_second = |new: u64, old: u64| new.saturating_sub(old) as f64 / seconds;
    let received = new.consumers.iter().filter_map(|consumer| {
        let key = (consumer.index, consumer.incarnation);
        let old = old.consumers.iter().find(|old| (old.index, old.incarnation) == key)?;
        Some((key, per_second(consumer.received, old.received)))
    });
    Some(Rates {
        messages: per_second(new.head, old.head),
        bytes: per_second(new.bytes, old.bytes),
        received: received.collect(),
    })
}

fn print(args: &Args, sample: &Sample, before: Option<&Sample>, clear: bool) -> Result<(), Failure> {
    let rated: Vec<(&RingReport, Option<Rates>)> =
        sample.rings.iter().map(|ring| (ring, rates(ring, sample, before))).collect();
    let text = if args.json {
        let rings: Vec<Value> = rated.iter().map(|(ring, rates)| to_json(ring, rates.as_ref())).collect();
        format!("{}\n", Value::Array(rings))
    } else {
        to_text(&rated)
    };
    // Home, then clear below: the screen does not flicker.
    let before = if clear { "\x1b[H\x1b[2J" } else { "" };
    show::put(&format!("{before}{text}"))
}

// === for people ===

fn to_text(rings: &[(&RingReport, Option<Rates>)]) -> String {
    if rings.is_empty() {
        return "no rings\n".to_owned();
    }
    let head = [
        "RING",
        "KIND",
        "BACKING",
        "PRODUCER",
        "CONSUMERS",
        "WAITING",
        "HELD",
        "FREE",
        "PUBLISHED",
        "MSG/S",
        "MB/S",
        "DROPPED",
        "DEAD",
    ];
    let rows: Vec<Vec<String>> = rings.iter().map(|(ring, rates)| ring_row(ring, rates.as_ref())).collect();
    let mut text = table(&head, &rows);
    for (ring, rates) in rings {
        text.push('\n');
        match &ring.view {
            Ok(view) => text.push_str(&details(ring, view, rates.as_ref())),
            Err(why) => text.push_str(&format!("{}: {why}\n", ring.name)),
        }
    }
    text
}

fn producer(ring: &RingReport) -> String {
    let alive = if ring.producer.alive { "alive" } else { "dead" };
    match (ring.producer.pid, ring.producer.label.as_str()) {
        (0, "") => alive.to_owned(),
        (0, note) => format!("{alive}, {note}"),
        (pid, "") => format!("{alive}, pid {pid}"),
        (pid, label) => format!("{alive}, pid {pid} ({label})"),
    }
}

fn ring_row(ring: &RingReport, rates: Option<&Rates>) -> Vec<String> {
    let mut row = vec![ring.name.clone()];
    let Ok(view) = &ring.view else {
        row.extend(["?".to_owned(), "?".to_owned(), producer(ring)]);
        row.resize(13, "-".to_owned());
        return row;
    };
    let slots = &view.slots;
    let number = |n: u64| grouped(n);
    row.extend([
        view.kind.to_string(),
        view.backing.to_string(),
        producer(ring),
        format!("{}/{}", view.consumers.iter().filter(|consumer| consumer.alive).count(), view.max_consumers),
        number(view.depth),
        number(u64::from(slots.claimed) + u64::from(slots.acked)),
        number(u64::from(slots.free) + u64::from(slots.done)),
        number(view.head.saturating_sub(1)),
        rates.map_or("-".to_owned(), |rates| rate(rates.messages)),
        rates.map_or("-".to_owned(), |rates| format!("{:.1}", rates.bytes / 1e6)),
        number(view.dropped),
        number(view.dead_letters),
    ]);
    row
}

fn details(ring: &RingReport, view: &RingView, rates: Option<&Rates>) -> String {
    let classes: Vec<String> = view
        .classes
        .iter()
        .map(|class| format!("{} of {}", count(class.slots.into(), "slot"), Bytes(class.slot_bytes)))
        .collect();
    let mut text = format!(
        "{}: {} ({} of memory{}), {}, {}, epoch {}\n",
        ring.name,
        classes.join(", "),
        Bytes(view.memory_bytes),
        view.numa_node.map_or_else(String::new, |node| format!(" on NUMA node {node}")),
        view.schema.as_ref().map_or("no schema".to_owned(), |schema| format!("schema {schema}")),
        view.state,
        view.epoch
    );
    if ring.producer.started_unix_ns > 0 {
        text.push_str(&format!(
            "  producer {}, started {} ago",
            producer(ring),
            span(since(ring.producer.started_unix_ns))
        ));
        text.push_str(&format!(", {} for a slot\n", count(view.full_waits, "wait")));
    }
    if view.slots.unreadable > 0 {
        text.push_str(&format!(
            "  {} with a word that no forebay writes\n",
            count(view.slots.unreadable.into(), "slot")
        ));
    }
    if view.consumers.is_empty() {
        text.push_str("  no consumer\n");
        return text;
    }
    let queue = view.kind == Kind::Queue;
    let head = if queue {
        ["  CONSUMER", "STATE", "RECEIVED", "ACKED", "GIVEN BACK", "MSG/S", "SINCE", "HOLDS"]
    } else {
        ["  CONSUMER", "STATE", "RECEIVED", "MISSED", "BEHIND", "MSG/S", "SINCE", "HOLDS"]
    };
    let rows: Vec<Vec<String>> = view.consumers.iter().map(|consumer| consumer_row(consumer, queue, rates)).collect();
    text + &table(&head, &rows)
}

fn consumer_row(consumer: &ConsumerReport, queue: bool, rates: Option<&Rates>) -> Vec<String> {
    let label = if consumer.label.is_empty() { String::new() } else { format!(" ({})", consumer.label) };
    let received = rates.and_then(|rates| rates.received.get(&(consumer.index, consumer.incarnation)));
    let [a, b] = if queue { [consumer.acked, consumer.nacked] } else { [consumer.missed, consumer.behind] };
    vec![
        format!("  {} pid {}{label}", consumer.index, consumer.pid),
        if consumer.alive { consumer.state.to_owned() } else { "dead".to_owned() },
        grouped(consumer.received),
        grouped(a),
        grouped(b),
        received.map_or("-".to_owned(), |received| rate(*received)),
        if consumer.attached_unix_ns == 0 { "-".to_owned() } else { span(since(consumer.attached_unix_ns)) },
        holds(consumer),
    ]
}

/// The slots a consumer holds, the oldest first, at most a few of them.
fn holds(consumer: &ConsumerReport) -> String {
    const SHOWN: usize = 3;
    let mut held = consumer.held.clone();
    held.sort_by_key(|slot| std::cmp::Reverse(slot.since));
    let mut parts: Vec<String> = held
        .iter()
        .take(SHOWN)
        .map(|slot| {
            let acked = if slot.acked { ", acked" } else { "" };
            format!("message {} in slot {} for {}{acked}", slot.sequence, slot.slot, span(slot.since))
        })
        .collect();
    if held.len() > SHOWN {
        parts.push(format!("{} more", held.len() - SHOWN));
    }
    if parts.is_empty() { "-".to_owned() } else { parts.join("; ") }
}

fn since(unix_ns: u64) -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_nanos(unix_ns))
}

// === for programs ===

fn to_json(ring: &RingReport, rates: Option<&Rates>) -> Value {
    let producer = &ring.producer;
    let mut value = json!({
        "name": ring.name,
        "producer": {
            "alive": producer.alive,
            "pid": producer.pid,
            "label": producer.label,
            "started_unix_seconds": producer.started_unix_ns as f64 / 1e9,
        },
    });
    let Value::Object(fields) = &mut value else { return value };
    let more = match &ring.view {
        Ok(view) => view_json(view, rates),
        Err(why) => json!({ "error": why }),
    };
    if let Value::Object(more) = more {
        fields.extend(more);
    }
    value
}

fn view_json(view: &RingView, rates: Option<&Rates>) -> Value {
    let slots = &view.slots;
    let classes: Vec<Value> =
        view.classes.iter().map(|class| json!({ "slots": class.slots, "slot_bytes": class.slot_bytes })).collect();
    let consumers: Vec<Value> = view.consumers.iter().map(|consumer| consumer_json(consumer, rates)).collect();
    json!({
        "kind": view.kind.name(),
        "backing": view.backing.name(),
        "when_full": view.when_full.name(),
        "writable": view.writable,
        "schema": view.schema,
        "instance": view.instance,
        "epoch": view.epoch,
        "state": view.state.to_string(),
        "created_unix_seconds": view.created_unix_ns as f64 / 1e9,
        "max_consumers": view.max_consumers,
        "max_attempts": view.max_attempts,
        "classes": classes,
        "memory_bytes": view.memory_bytes,
        "numa_node": view.numa_node,
        "slots": {
            "free": slots.free, "writing": slots.writing, "full": slots.full, "claimed": slots.claimed,
            "acked": slots.acked, "done": slots.done, "dead": slots.dead, "unreadable": slots.unreadable,
        },
        "depth": view.depth,
        "published": view.head.saturating_sub(1),
        "dropped": view.dropped,
        "dead_letters": view.dead_letters,
        "bytes": view.bytes,
        "full_waits": view.full_waits,
        "messages_per_second": rates.map(|rates| rates.messages),
        "bytes_per_second": rates.map(|rates| rates.bytes),
        "consumers": consumers,
    })
}

fn consumer_json(consumer: &ConsumerReport, rates: Option<&Rates>) -> Value {
    let held: Vec<Value> = consumer
        .held
        .iter()
        .map(|held| {
            json!({
                "slot": held.slot, "sequence": held.sequence, "acked": held.acked,
                "since_seconds": held.since.as_secs_f64(),
            })
        })
        .collect();
    json!({
        "index": consumer.index,
        "incarnation": consumer.incarnation,
        "alive": consumer.alive,
        "state": consumer.state,
        "pid": consumer.pid,
        "label": consumer.label,
        "attached_unix_seconds": consumer.attached_unix_ns as f64 / 1e9,
        "received": consumer.received,
        "acked": consumer.acked,
        "nacked": consumer.nacked,
        "missed": consumer.missed,
        "behind": consumer.behind,
        "messages_per_second": rates.and_then(|rates| rates.received.get(&(consumer.index, consumer.incarnation))),
        "held": held,
    })
}
