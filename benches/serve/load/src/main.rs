//! Asks one HTTP server over and over and says how long it took.
//!
//! Without `--rate`, a closed loop: each connection asks again as soon as it was answered. With it, an open loop: requests
//! fall due at times that do not depend on the answers (a Poisson process, the same for every server), and each one's
//! latency counts from when it fell due, however late a connection was free for it. A server that stalls is thus charged
//! for every request that fell due meanwhile, not only for the ones that were on their way.
//!
//! One thread, epoll, non-blocking sockets: it should cost the server as little of the processor as possible.

mod connection;
mod run;
mod tally;

use std::{num::NonZeroU64, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;

/// Asks an HTTP server; prints one JSON object.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Where: `127.0.0.1:8080`.
    address: String,
    /// What: `/predict`.
    path: String,
    /// A file with a body, or a folder of such, which are sent in turn.
    #[arg(long)]
    body: PathBuf,
    /// The bodies' type.
    #[arg(long, default_value = "application/json")]
    content_type: String,
    /// Connections, kept open. In an open loop: at most so many.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Requests a second; a closed loop without it.
    #[arg(long)]
    rate: Option<f64>,
    /// How long to measure, in seconds.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// How long to ask beforehand without counting, in seconds.
    #[arg(long, default_value_t = 0.5)]
    warmup: f64,
    /// How long to wait for what is under way at the end, in seconds; what is not there then is unanswered.
    #[arg(long, default_value_t = 10.0)]
    patience: f64,
    /// What every answer must contain; one without it is an error.
    #[arg(long)]
    expect: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match start(&arguments) {
        Ok(answer) => {
            #[expect(clippy::print_stdout, reason = "this is its result")]
            {
                println!("{answer}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("forebay-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> Result<serde_json::Value, String> {
    let bodies = connection::requests(
        &arguments.body,
        &format!("POST {} HTTP/1.1\r\nHost: {}", arguments.path, arguments.address),
        &arguments.content_type,
    )?;
    let plan = run::Plan {
        address: arguments.address.parse().map_err(|error| format!("{}: {error}", arguments.address))?,
        requests: bodies,
        connections: arguments.connections.max(1),
        rate: arguments.rate.filter(|rate| *rate > 0.0),
        warmup: Duration::from_secs_f64(arguments.warmup.max(0.0)),
        measured: Duration::from_secs_f64(arguments.seconds.max(0.01)),
        patience: Duration::from_secs_f64(arguments.patience.max(0.0)),
        expect: arguments.expect.clone().map(String::into_bytes),
    };
    // The kernel adds up to 50 µs to a wait otherwise.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).ok();
    run::run(&plan).map_err(|error| format!("{}: {error}", arguments.address))
}
