//! The binary `forebay`: parses, calls the crates below, prints. What it knows, a library user can do too.
//!
//! ```text
//!   feed/     text → tokens → a ring                  ls.rs      what rings there are
//!   serve.rs  HTTP → batches → workers                bench.rs   how fast it is here
//!   clean.rs  removes what nobody holds any more      doctor.rs  what the host allows, and what to change
//!   stop.rs   SIGINT, SIGTERM                         units.rs   sizes and times on the command line
//! ```
//!
//! Exit codes: 0 done, 1 it failed while running, 64 the command line or a file it names cannot be used.

mod bench;
mod clean;
mod doctor;
mod failure;
mod feed;
mod ls;
mod serve;
mod show;
mod stop;
mod units;

use std::process::ExitCode;

use clap::{Parser, Subcommand, error::ErrorKind};

use crate::failure::{EXIT_USAGE, Failure};

/// `serve` makes some seventy small allocations a request, on threads that free what others made.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What was built.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

const ABOUT: &str = "Hands tensors from one process to others on the same host, without a copy.";

const LONG_ABOUT: &str = "\
Hands tensors from one process to others on the same host, through shared memory, without a copy.

`serve` puts HTTP, tokenizing and batching before a Python worker. Below it are rings: a ring has a name, one producer and \
up to 32 consumers. `feed` is a producer: it tokenizes text and writes the ids where \
consumers read them. Consumers are programs that use the forebay library, in Rust or Python:

    for message in forebay.Consumer(\"tokens\"):
        model(**message.torch())";

const AFTER_HELP: &str = "\
Environment:
  FOREBAY_DIR  Folder in which producers and consumers meet; it must be yours and closed to others.
               [default: $XDG_RUNTIME_DIR/forebay, else /tmp/forebay-<uid>]

Exit codes:
  0   done
  1   it failed while running
  64  the command line, or a file that it names, cannot be used
  130, 143  a second SIGINT, SIGTERM ended it at once";

#[derive(Debug, Parser)]
#[command(name = "forebay", version, about = ABOUT, long_about = LONG_ABOUT, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Feed(Box<feed::Args>),
    Serve(serve::Args),
    Ls(ls::Args),
    Clean(clean::Args),
    Doctor(doctor::Args),
    Bench(Box<bench::Args>),
    #[command(hide = true)]
    BenchPeer(bench::PeerArgs),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Nobody may be left to read it; the code says it all the same.
            let _ = e.print();
            let asked = matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked { ExitCode::SUCCESS } else { ExitCode::from(EXIT_USAGE) };
        }
    };
    let done = match cli.command {
        Command::Feed(args) => feed::run(*args),
        Command::Serve(args) => serve::run(&args),
        Command::Ls(args) => ls::run(&args),
        Command::Clean(args) => clean::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::BenchPeer(args) => bench::run_peer(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, text }) => {
            // An empty text: it was told when it happened.
            if !text.is_empty() {
                show::say(&text);
            }
            ExitCode::from(code)
        }
    }
}
