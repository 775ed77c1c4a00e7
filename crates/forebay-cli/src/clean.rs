//! `forebay clean`: removes what no living process holds, and says what it removed.

use std::path::PathBuf;

use clap::Parser;
use forebay::inspect;
use serde_json::{Value, json};

use crate::{
    failure::Failure,
    show::{self, count},
    units::Bytes,
};

const LONG_ABOUT: &str = "\
Removes the shared memory, sockets and lock files of rings that no living process holds, and says what it removed.

A ring is held by its producer and, on posix, by every consumer that still reads it. Living rings are never touched; a \
process that is merely stopped lives. Messages that nobody received, and the place where a stopped `feed` would go on, \
go with a removed ring.";

const AFTER_HELP: &str = "\
Examples:
  forebay clean --dry-run
  forebay clean
  forebay clean --dir /run/pod/forebay";

/// Remove what no living process holds
#[derive(Debug, Parser)]
#[command(long_about = LONG_ABOUT, after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Folder in which producers and consumers meet [default: $FOREBAY_DIR, else as `forebay --help` says]
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

/// Runs `forebay clean`.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let dir = args.dir.as_deref();
    let cleaned = if args.dry_run { inspect::would_clean(dir) } else { inspect::clean(dir) };
    let cleaned = cleaned.map_err(Failure::failed)?;
    if args.json {
        let removed: Vec<Value> = cleaned
            .removed
            .iter()
            .map(|item| json!({ "ring": item.ring, "what": item.what, "bytes": item.bytes, "why": item.why }))
            .collect();
        let kept: Vec<Value> = cleaned.kept.iter().map(|kept| json!({ "ring": kept.ring, "why": kept.why })).collect();
        return show::put(&format!("{}\n", json!({ "dry_run": args.dry_run, "removed": removed, "kept": kept })));
    }
    let verb = if args.dry_run { "would remove" } else { "removed" };
    let mut text = String::new();
    let mut ring = "";
    for item in &cleaned.removed {
        if item.ring != ring {
            ring = &item.ring;
            text.push_str(&format!("ring {ring}: {}\n", item.why));
        }
        let size = if item.bytes > 0 { format!(" ({})", Bytes(item.bytes)) } else { String::new() };
        text.push_str(&format!("  {verb} {}{size}\n", item.what));
    }
    for kept in &cleaned.kept {
        text.push_str(&format!("ring {}: kept, {}\n", kept.ring, kept.why));
    }
    let bytes = cleaned.removed.iter().map(|item| item.bytes).sum();
    text.push_str(&match cleaned.removed.len() as u64 {
        0 => "nothing to remove\n".to_owned(),
        things => format!("{verb} {}, {} of memory\n", count(things, "thing"), Bytes(bytes)),
    });
    show::put(&text)
}
