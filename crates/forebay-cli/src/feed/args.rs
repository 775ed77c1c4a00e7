//! What `feed` can be told, and what becomes of it.

use std::{io::IsTerminal, path::PathBuf, time::Duration};

use clap::Parser;
use forebay::{
    ANY, Backing, DEFAULT_MAX_ATTEMPTS, DEFAULT_MAX_CONSUMERS, DEFAULT_SLOTS, DType, Kind, Producer, ProducerOptions,
    Schema, WhenFull,
};
use forebay_ingest::{Format, Input, OnError, PipelineOptions, Repeat, SourceOptions, Tokenizer, TokenizerOptions};

use crate::{
    failure::Failure,
    stop::Stop,
    units::{Bytes, Limit, seconds},
};

const LONG_ABOUT: &str = "\
Tokenizes text on all cores and publishes it, batch by batch, in a ring of shared memory.

Every line is one row. A batch becomes one message with two tensors, written in place into the ring:

    input_ids       int64 [rows, columns]   token ids, short rows filled up with the tokenizer's padding id
    attention_mask  int64 [rows, columns]   1 for a token, 0 for padding

The message's correlation id is the number of its first row over the whole run, from 0.

Started again after it was killed or stopped, with the same files, it goes on after the last published line: nothing is \
sent twice, nothing is left out (posix backing). --fresh starts over.

SIGINT and SIGTERM end it: it stops reading, waits until everything published was received, and closes the ring. A \
second signal ends it at once.";

const AFTER_HELP: &str = "\
Examples:
  forebay feed --tokenizer tokenizer.json corpus.txt
  forebay feed --tokenizer models/minilm --field text --max-length 128 a.jsonl b.jsonl
  zcat corpus.gz | forebay feed --tokenizer tokenizer.json -
  forebay feed --tokenizer tokenizer.json --kind broadcast --wait-for 4 --repeat forever corpus.txt

Sizes are bytes or carry KiB, MiB, GiB. Times are seconds or carry ms, s, m, h.";

/// Tokenize text into a ring
#[derive(Debug, Parser)]
#[command(long_about = LONG_ABOUT, after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Files to read, in this order; `-` is standard input
    #[arg(value_name = "FILE", default_value = "-")]
    files: Vec<std::ffi::OsString>,

    /// Name of the ring
    #[arg(long, default_value = "tokens", help_heading = "Ring")]
    pub(super) ring: String,

    /// Who gets a message: queue (one consumer; it comes back if that one dies) or broadcast (every consumer)
    #[arg(long, default_value_t = Kind::Queue, help_heading = "Ring")]
    pub(super) kind: Kind,

    /// Where the memory comes from: posix (/dev/shm; survives a restart of this process) or memfd (sealed, not limited by
    /// /dev/shm, gone with this process)
    #[arg(long, default_value_t = Backing::Posix, help_heading = "Ring")]
    pub(super) backing: Backing,

    /// How many messages the ring holds at most
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SLOTS, help_heading = "Ring")]
    slots: u32,

    /// Bytes of a slot, the largest message [default: what batch and max-length need, else 1 MiB]
    #[arg(long, value_name = "BYTES", help_heading = "Ring")]
    slot_bytes: Option<Bytes>,

    /// When no slot is free: block (wait for one), fail, or drop-oldest (give up the oldest that nobody has taken)
    #[arg(long, value_name = "POLICY", default_value_t = WhenFull::Block, help_heading = "Ring")]
    pub(super) when_full: WhenFull,

    /// How long to wait for a slot before it says who holds them and ends; none waits without end
    #[arg(long, value_name = "TIME", default_value = "60s", help_heading = "Ring")]
    full_timeout: Limit,

    /// Consumers that may be attached at a time, 1 to 32
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_CONSUMERS, help_heading = "Ring")]
    max_consumers: u32,

    /// Deliveries without an ack before a message is a dead letter (queue); 0 for never
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_ATTEMPTS, help_heading = "Ring")]
    max_attempts: u32,

    /// Discard what an earlier feed of this name left, and start with the first line
    #[arg(long, help_heading = "Ring")]
    pub(super) fresh: bool,

    /// Folder in which producers and consumers meet [default: $FOREBAY_DIR, else as `forebay --help` says]
    #[arg(long, value_name = "FOLDER", help_heading = "Ring")]
    dir: Option<PathBuf>,

    /// What `forebay ls` and error texts call this producer
    #[arg(long, default_value = "forebay feed", help_heading = "Ring")]
    label: String,

    /// Map every page before the first message
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, help_heading = "Ring")]
    prefault: bool,

    /// Lock the ring in memory, if the limits allow it (see `forebay doctor`)
    #[arg(long, help_heading = "Ring")]
    mlock: bool,

    /// Ask for huge pages, if the host has them (see `forebay doctor`)
    #[arg(long, help_heading = "Ring")]
    huge_pages: bool,

    /// A Hugging Face tokenizer.json, or the folder that holds it
    #[arg(long, value_name = "PATH", help_heading = "Text")]
    tokenizer: PathBuf,

    /// Lines are JSON objects, the text is this field; dots lead into nested objects [default: lines are plain text]
    #[arg(long, value_name = "NAME", help_heading = "Text")]
    field: Option<String>,

    /// Rows of a message, 1 to 1048576
    #[arg(long, value_name = "ROWS", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1 << 20), help_heading = "Text")]
    batch: u32,

    /// Tokens of the longest row, special tokens included; longer lines are truncated [default: what the tokenizer says]
    #[arg(long, value_name = "TOKENS", help_heading = "Text")]
    max_length: Option<usize>,

    /// Bytes of the longest line; longer ones are errors of their line
    #[arg(long, value_name = "BYTES", default_value = "1MiB", help_heading = "Text")]
    max_line_bytes: Bytes,

    /// How often to read the files: a number, or forever
    #[arg(long, value_name = "TIMES", default_value_t = Repeat::default(), help_heading = "Text")]
    repeat: Repeat,

    /// Make rows of lines that are only white space, too; by default they are passed over and counted
    #[arg(long, help_heading = "Text")]
    keep_blank: bool,

    /// What to do with a line that is not UTF-8, too long, or without the field: fail (end there) or skip (count it)
    #[arg(long, value_name = "POLICY", default_value_t = OnError::Fail, help_heading = "Text")]
    pub(super) on_error: OnError,

    /// Threads that tokenize, up to 1024; 0 is one per core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1024), help_heading = "Text")]
    workers: u32,

    /// Consumers to wait for before the first message [default: 0 on a queue, 1 on broadcast]
    #[arg(long, value_name = "N", help_heading = "Running")]
    wait_for: Option<usize>,

    /// How long SIGINT and SIGTERM wait for consumers to receive what was published
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = seconds, help_heading = "Running")]
    pub(super) drain_timeout: Duration,

    /// Show progress even if standard error is no terminal, a line each second
    #[arg(long, conflicts_with = "no_progress", help_heading = "Running")]
    pub(super) progress: bool,

    /// Show no progress
    #[arg(long, help_heading = "Running")]
    pub(super) no_progress: bool,

    /// Print the summary as JSON
    #[arg(long, help_heading = "Running")]
    pub(super) json: bool,
}

impl Args {
    /// What is read.
    pub(super) fn inputs(&self) -> Vec<Input> {
        self.files.iter().map(Input::from_argument).collect()
    }

    /// Whether somebody has to type the text.
    pub(super) fn reads_terminal(&self) -> bool {
        self.files.iter().any(|file| file == "-") && std::io::stdin().is_terminal()
    }

    pub(super) fn source_options(&self) -> SourceOptions {
        SourceOptions {
            max_line_bytes: usize::try_from(self.max_line_bytes.0).unwrap_or(usize::MAX),
            repeat: self.repeat,
        }
    }

    pub(super) fn load_tokenizer(&self) -> Result<Tokenizer, Failure> {
        let options = TokenizerOptions { max_length: self.max_length, ..TokenizerOptions::default() };
        Tokenizer::from_file(&self.tokenizer, &options).map_err(Failure::usage)
    }

    pub(super) fn pipeline_options(&self, stop: &Stop) -> PipelineOptions {
        PipelineOptions {
            batch_rows: self.batch as usize,
            workers: self.workers as usize,
            format: self.field.as_ref().map_or_else(Format::default, Format::json_lines),
            keep_blank: self.keep_blank,
            on_error: self.on_error,
            cancel: stop.flag(),
        }
    }

    /// Consumers to wait for.
    pub(super) fn wait_for(&self) -> usize {
        self.wait_for.unwrap_or(match self.kind {
            Kind::Queue => 0,
            Kind::Broadcast => 1,
        })
    }

    pub(super) fn full_timeout(&self) -> Option<Duration> {
        self.full_timeout.0
    }

    /// How to create the ring for rows of this tokenizer.
    pub(super) fn producer_options(&self, tokenizer: &Tokenizer) -> Result<ProducerOptions, Failure> {
        if self.wait_for() > self.max_consumers as usize {
            let (wanted, most) = (self.wait_for(), self.max_consumers);
            return Err(Failure::usage(format!(
                "--wait-for {wanted} consumers, but --max-consumers lets {most} attach; raise it"
            )));
        }
        let mut options = Producer::options(&self.ring)
            .schema(schema(self.batch, tokenizer).map_err(Failure::usage)?)
            .slots(self.slots)
            .kind(self.kind)
            .backing(self.backing)
            .when_full(self.when_full)
            .full_timeout(self.full_timeout())
            .max_consumers(self.max_consumers)
            .max_attempts(self.max_attempts)
            .prefault(self.prefault)
            .mlock(self.mlock)
            .huge_pages(self.huge_pages)
            .timestamps(true)
            .fresh(self.fresh)
            .label(&self.label);
        if let Some(Bytes(bytes)) = self.slot_bytes {
            options = options.slot_bytes(bytes);
        }
        if let Some(dir) = &self.dir {
            options = options.dir(dir);
        }
        Ok(options)
    }
}

/// The fields of every message: two tensors of at most batch × the tokenizer's longest row.
fn schema(batch: u32, tokenizer: &Tokenizer) -> Result<Schema, forebay::SchemaError> {
    let dims = [batch.into(), tokenizer.max_cols().map_or(ANY, |cols| cols as u64)];
    Schema::builder("tokens", 1, 0)
        .field(super::lines::IDS, DType::I64, &dims)
        .field(super::lines::MASK, DType::I64, &dims)
        .build()
}
