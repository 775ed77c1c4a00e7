//! `forebay doctor`: what the host allows, what that costs, and the exact fix.

use std::path::PathBuf;

use clap::Parser;
use forebay::inspect::{self, Check, Severity};
use serde_json::{Value, json};

use crate::{
    failure::Failure,
    show::{self, count},
};

const LONG_ABOUT: &str = "\
Looks at what rings need of this host: kernel, /dev/shm, memory limits, locks, seals, futexes, huge pages, systemd. For \
each it says what was found, what that costs, and the exact command or setting to change it.

It changes nothing. Run it where the rings are to live: in the container, as the user.";

const AFTER_HELP: &str = "\
Severities:
  ok       as it should be
  note     it costs a little, or matters to some
  warning  it is likely to hurt
  problem  rings do not work like this; the exit code is 1";

/// Say what the host allows, what that costs, and how to mend it
#[derive(Debug, Parser)]
#[command(long_about = LONG_ABOUT, after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Print JSON: an array of checks
    #[arg(long)]
    json: bool,

    /// Folder in which producers and consumers meet [default: $FOREBAY_DIR, else as `forebay --help` says]
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

/// Runs `forebay doctor`.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let checks = inspect::doctor(args.dir.as_deref());
    if args.json {
        let values: Vec<Value> = checks.iter().map(to_json).collect();
        show::put(&format!("{}\n", Value::Array(values)))?;
    } else {
        show::put(&to_text(&checks))?;
    }
    let problems = checks.iter().filter(|check| check.severity == Severity::Problem).count();
    if problems == 0 {
        return Ok(());
    }
    Err(Failure::failed(format!("{} found: rings do not work here as it is", count(problems as u64, "problem"))))
}

fn to_json(check: &Check) -> Value {
    json!({
        "name": check.name,
        "severity": check.severity.name(),
        "found": check.found,
        "meaning": check.meaning,
        "fix": check.fix,
    })
}

fn to_text(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let indent = " ".repeat(width + 11);
    let mut text = String::new();
    for check in checks {
        text.push_str(&format!("{:<7}  {:<width$}  {}\n", check.severity, check.name, check.found));
        text.push_str(&format!("{indent}{}\n", check.meaning));
        if let Some(fix) = &check.fix {
            text.push_str(&format!("{indent}fix: {fix}\n"));
        }
    }
    text
}
