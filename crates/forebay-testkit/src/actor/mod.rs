//! The actor: a process of a test that does what it is told, line by line, and may be killed at any instruction.
//!
//! `forebay-actor producer|consumer|server|client RING key=value…` reads commands from stdin and answers each with one line (`work`
//! and `stream` with one a message). Its first line is `ready …` or `error …`. It ends, cleanly, at the end of stdin.
//!
//! | both | |
//! |---|---|
//! | `exit` | leaves at once: nothing is dropped, no handler runs |
//! | `stop` | stops itself (SIGSTOP) |
//! | `daemonize` | closes every descriptor above 2, as a daemonizer does |
//! | `usurp` | as `daemonize`, and opens files and sockets of its own, which get the old numbers |
//! | `own` | `ok` if nobody wrote to them, read from them or closed them; looked at again when it ends |
//! | `limit N` | may open no more than N descriptors from now on |
//! | `fork` | forks a child that inherits everything, tries every entry point, says what came of it, and stays |
//!
//! The commands of each role are listed in its file.

mod consumer;
mod process;
mod producer;
pub mod service;

pub(crate) use consumer::poll_for;

use std::{
    collections::HashMap,
    fmt::Debug,
    io::{BufRead, Write},
    process::ExitCode,
    str::FromStr,
};

use forebay::{DType, Schema};

use crate::ledger;

/// Runs an actor with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    process::set_watchdog();
    let mut args = std::env::args().skip(1);
    let (Some(role), Some(ring)) = (args.next(), args.next()) else {
        say("error usage: forebay-actor producer|consumer|server|client RING key=value…");
        return ExitCode::from(64);
    };
    let options = Options(
        args.map(|arg| arg.split_once('=').map_or((arg.clone(), String::new()), |(k, v)| (k.to_owned(), v.to_owned())))
            .collect(),
    );
    let code = match role.as_str() {
        "producer" => producer::run(&ring, &options),
        "consumer" => consumer::run(&ring, &options),
        "server" => service::run_server(&ring, &options),
        "client" => service::run_client(&ring, &options),
        _ => {
            say(&format!("error no role {role:?}"));
            ExitCode::from(64)
        }
    };
    if process::own_are_whole() { code } else { ExitCode::FAILURE }
}

/// `key=value` arguments.
struct Options(HashMap<String, String>);

impl Options {
    fn get<T: FromStr<Err: Debug>>(&self, key: &str) -> Option<T> {
        self.0.get(key).map(|value| value.parse().unwrap_or_else(|e| panic!("{key}={value}: {e:?}")))
    }

    fn or<T: FromStr<Err: Debug>>(&self, key: &str, default: T) -> T {
        self.get(key).unwrap_or(default)
    }

    /// `schema=none`, `schema=other`, or the ledger's.
    fn schema(&self) -> Option<Schema> {
        match self.0.get("schema").map(String::as_str) {
            Some("none") => None,
            Some("other") => {
                Some(Schema::builder("ledger", 1, 0).field(ledger::FIELD, DType::F32, &[64]).build().unwrap())
            }
            _ => Some(ledger::schema()),
        }
    }
}

/// One line to the test. A test that does not listen any more gets nothing.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{}", line.replace('\n', " | "));
}

/// The name of an enum's variant.
fn variant(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

fn error<E: Debug + std::fmt::Display>(e: &E) -> String {
    format!("error {} {e}", variant(e))
}

/// Reads commands until the end of stdin; `serve` handles those that are its role's.
fn serve(mut serve: impl FnMut(&str, &str)) {
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let (command, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match command {
            "exit" => process::exit_at_once(),
            "stop" => process::stop(),
            "daemonize" => {
                process::close_everything();
                say("daemonized");
            }
            "usurp" => {
                process::usurp();
                say("usurped");
            }
            "own" => say(if process::own_are_whole() { "ok" } else { "error somebody touched what is ours" }),
            "limit" => {
                process::limit_descriptors(rest.parse().unwrap());
                say("limited");
            }
            _ => serve(command, rest),
        }
    }
}
