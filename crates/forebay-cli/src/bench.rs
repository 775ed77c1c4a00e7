//! `forebay bench`: how fast is it here. Parses, calls `forebay-bench`, prints.

use std::{path::PathBuf, process::Command, time::Duration};

use forebay::{Kind, WaitPolicy};
use forebay_bench::{Direction, Effort, Host, Programs, Read, Report, Row, Wishes, Write};

use crate::{
    failure::Failure,
    show::{self, table},
    units::{Bytes, grouped, seconds},
};

const LONG: &str = "\
Measures on this machine what handing a message over takes, and prints each figure beside what the hardware takes for its \
part. Without arguments it answers in less than a minute; with any of --size, --wait, --direction, --kind, --consumers, \
--write and --read it measures every combination of what is named.

A time is from before the loan to the tensor in the other process, one message in flight. The rings are made in a folder of \
their own and removed.";

/// Measures what a hand-over takes on this machine.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG)]
pub(crate) struct Args {
    /// Payload of a message, such as 64, 4KiB, 1GiB; may be repeated or separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "BYTES")]
    size: Vec<Bytes>,
    /// How the consumer waits: spin (polling), adaptive, block (asleep when the message comes).
    #[arg(long, value_delimiter = ',', value_name = "POLICY")]
    wait: Vec<WaitPolicy>,
    /// Who hands to whom: native (Rust to Rust), numpy, torch (Rust to Python), from-python.
    #[arg(long, value_delimiter = ',', value_name = "WAY", value_parser = direction)]
    direction: Vec<Direction>,
    /// queue, broadcast.
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
    kind: Vec<Kind>,
    /// Consumers, 1 to 32.
    #[arg(long, value_delimiter = ',', value_name = "N", value_parser = clap::value_parser!(u32).range(1..=32))]
    consumers: Vec<u32>,
    /// in-place (the payload was written in the slot), copy (it is copied into it).
    #[arg(long, value_delimiter = ',', value_name = "HOW", value_parser = write)]
    write: Vec<Write>,
    /// none (the consumer has the tensor), all (it reads every byte).
    #[arg(long, value_delimiter = ',', value_name = "HOW", value_parser = read)]
    read: Vec<Read>,
    /// Time for each measurement.
    #[arg(long, default_value = "700ms", value_name = "TIME", value_parser = seconds)]
    time: Duration,
    /// Interpreter that imports forebay. [default: python3, if it does]
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
    /// Print everything as one JSON object.
    #[arg(long)]
    json: bool,
    /// Draw the latencies over the size into this SVG file.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// The other process of a measurement; started by `bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct PeerArgs {
    order: String,
}

fn direction(text: &str) -> Result<Direction, String> {
    match text {
        "native" => Ok(Direction::Native),
        "numpy" => Ok(Direction::Numpy),
        "torch" => Ok(Direction::Torch),
        "from-python" => Ok(Direction::FromPython),
        _ => Err("expected native, numpy, torch or from-python".to_owned()),
    }
}

fn write(text: &str) -> Result<Write, String> {
    match text {
        "in-place" => Ok(Write::InPlace),
        "copy" => Ok(Write::Copy),
        _ => Err("expected in-place or copy".to_owned()),
    }
}

fn read(text: &str) -> Result<Read, String> {
    match text {
        "none" => Ok(Read::None),
        "all" => Ok(Read::All),
        _ => Err("expected none or all".to_owned()),
    }
}

/// Runs the other process's side.
pub(crate) fn run_peer(args: &PeerArgs) -> Result<(), Failure> {
    let answer = forebay_bench::peer(&args.order).map_err(Failure::failed)?;
    show::put(&answer)
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let wishes = Wishes {
        sizes: args.size.iter().map(|bytes| bytes.0).collect(),
        waits: args.wait.clone(),
        directions: args.direction.clone(),
        kinds: args.kind.clone(),
        consumers: args.consumers.clone(),
        writes: args.write.clone(),
        reads: args.read.clone(),
    };
    let own = std::env::current_exe().map_err(|e| Failure::failed(format!("cannot find this program: {e}")))?;
    let programs = Programs {
        native: vec![own.display().to_string(), "bench-peer".to_owned()],
        python: python(args.python.as_ref())?,
    };
    let effort = Effort { time: args.time, ..Effort::default() };
    // `make binary` says what was built.
    let version = match option_env!("FOREBAY_COMMIT") {
        Some(commit) if !commit.is_empty() => format!("{} ({commit})", crate::VERSION),
        _ => crate::VERSION.to_owned(),
    };
    let host = Host::look(&version);
    let bar = (!args.json).then(|| indicatif::ProgressBar::new(1));
    let report = Report::measure(host, &wishes, &programs, effort, |what, done, of| {
        if let Some(bar) = &bar {
            bar.set_length(of as u64);
            bar.set_position(done as u64);
            bar.set_message(what.to_owned());
        }
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    if let Some(path) = &args.plot {
        let picture = forebay_bench::svg(&report).map_err(Failure::failed)?;
        std::fs::write(path, picture).map_err(|e| Failure::failed(format!("cannot write {}: {e}", path.display())))?;
    }
    let text = if args.json {
        serde_json::to_string_pretty(&report).map_err(Failure::failed)? + "\n"
    } else {
        text_of(&report)
    };
    show::put(&text)?;
    if report.latencies.is_empty() && report.rates.is_empty() {
        return Err(Failure::failed(report.missing.join("; ")));
    }
    Ok(())
}

/// The interpreter to use: the one named must work, the one that is there may not.
fn python(named: Option<&PathBuf>) -> Result<Option<PathBuf>, Failure> {
    let program = named.cloned().unwrap_or_else(|| PathBuf::from("python3"));
    let tried = Command::new(&program).args(["-c", "import forebay, numpy"]).output();
    match tried {
        Ok(output) if output.status.success() => Ok(Some(program)),
        _ if named.is_none() => Ok(None),
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr);
            let why = why.lines().last().unwrap_or("it says nothing");
            Err(Failure::usage(format!("{} cannot import forebay and numpy: {why}", program.display())))
        }
        Err(e) => Err(Failure::usage(format!("cannot run {}: {e}", program.display()))),
    }
}

// === the table ===

fn text_of(report: &Report) -> String {
    let host = &report.host;
    let pinned = host.pinned.map_or("not pinned".to_owned(), |(a, b)| format!("pinned to {a} and {b}"));
    let mut text = format!(
        "forebay {} · {}, {} cores, {pinned} · Linux {} · governor {} · pages of {} · huge pages in shared memory: {}\n",
        host.version,
        host.cpu,
        host.cores,
        host.kernel,
        host.governor.as_deref().unwrap_or("not shown"),
        Bytes(host.page_bytes as u64),
        host.shmem_huge.as_deref().unwrap_or("not shown"),
    );
    let floors = &report.floors;
    text.push_str(&format!(
        "floors: a cache line {}, a futex wake {}, a reading of the clock {:.0} ns",
        time(floors.cache_line.p50),
        time(floors.futex.p50),
        floors.clock_ns
    ));
    for (bytes, rate) in &floors.memcpy {
        text.push_str(&format!(", memcpy of {} {rate:.1} GB/s", Bytes(*bytes)));
    }
    text.push_str("\n\n");
    if !report.latencies.is_empty() {
        let head = [
            "HAND-OVER",
            "RING",
            "N",
            "SIZE",
            "WAIT",
            "PAYLOAD",
            "P50",
            "P99",
            "P99.9",
            "MAX",
            "FLOOR",
            "×",
            "AND BACK",
        ];
        text.push_str(&table(&head, &report.latencies.iter().map(latency).collect::<Vec<_>>()));
        text.push('\n');
    }
    if !report.rates.is_empty() {
        let head = ["RATE", "RING", "N", "SIZE", "PAYLOAD", "MESSAGES/S", "GB/S", "× MEMCPY"];
        text.push_str(&table(&head, &report.rates.iter().map(rate).collect::<Vec<_>>()));
    }
    for missing in &report.missing {
        text.push_str(&format!("not measured: {missing}\n"));
    }
    for doubt in &report.doubts {
        text.push_str(&format!("doubtful: {doubt}\n"));
    }
    text
}

fn payload(row: &Row) -> String {
    let write = if row.write == Write::Copy { "copied in" } else { "in place" };
    if row.read == Read::All { format!("{write}, read") } else { write.to_owned() }
}

fn latency(row: &Row) -> Vec<String> {
    let times = row.one_way.unwrap_or_default();
    vec![
        row.direction.name().to_owned(),
        row.kind.to_owned(),
        row.consumers.to_string(),
        Bytes(row.bytes).to_string(),
        row.wait.to_owned(),
        payload(row),
        time(times.p50),
        time(times.p99),
        time(times.p999),
        time(times.max),
        row.floor_ns.map_or("-".to_owned(), |ns| time(ns as u64)),
        row.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
        row.round_trip.map_or("-".to_owned(), |times| time(times.p50)),
    ]
}

fn rate(row: &Row) -> Vec<String> {
    let rate = row.per_second.unwrap_or(0.0);
    // Bytes that were only handed over have not gone anywhere.
    let moved = row.write == Write::Copy || row.read == Read::All;
    vec![
        row.direction.name().to_owned(),
        row.kind.to_owned(),
        row.consumers.to_string(),
        Bytes(row.bytes).to_string(),
        payload(row),
        grouped(rate as u64),
        if moved { format!("{:.1}", rate * row.bytes as f64 / 1e9) } else { "-".to_owned() },
        row.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
    ]
}

fn time(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{ns} ns"),
        10_000..10_000_000 => format!("{:.1} µs", ns as f64 / 1e3),
        _ => format!("{:.1} ms", ns as f64 / 1e6),
    }
}
