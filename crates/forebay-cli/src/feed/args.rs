//! What `feed` can be told, and what becomes of it.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use forebay::{
    Backing, DEFAULT_MAX_ATTEMPTS, DEFAULT_MAX_CONSUMERS, DEFAULT_SLOTS, Kind, Producer, ProducerOptions, WhenFull,
};
use forebay_ingest::{
    Format, ImageFeedOptions, Input, OnError, PipelineOptions, Repeat, Shuffle, SourceOptions, Tokenizer,
    TokenizerOptions,
    image::{Dtype, ImageOptions, ImageProcessor, Recipe},
    table::{TableEncoder, TableOptions, TableSchema},
};

use super::{
    help::{AFTER_HELP, LONG_ABOUT},
    images::{Images, most, usual},
    kind::{Feeds, schema},
    table::Table,
    text::Text,
};
use crate::{
    failure::Failure,
    stop::Stop,
    units::{Bytes, Limit, seconds},
};

/// Bytes that a batch of images may always have, however small a slot is.
const LEAST_BATCH_BYTES: usize = 256 << 20;

/// What is fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Text,
    Images,
    Table,
}

/// Feed texts, images or JSON lines into a ring
#[derive(Debug, Parser)]
#[command(long_about = LONG_ABOUT, after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Files to read, in this order; `-` is standard input. Of images also folders, tar shards and patterns (`'a/*.tar'`)
    #[arg(value_name = "FILE", default_value = "-")]
    files: Vec<std::ffi::OsString>,

    /// Lines of text (the default)
    #[arg(long, conflicts_with_all = ["images", "jsonl"], help_heading = "What")]
    text: bool,

    /// Images of files, folders and tar shards
    #[arg(long, conflicts_with = "jsonl", requires = "processor", help_heading = "What")]
    images: bool,

    /// Lines of JSON, by a schema
    #[arg(long, requires = "schema", help_heading = "What")]
    jsonl: bool,

    /// Name of the ring [default: tokens, images or rows]
    #[arg(long, help_heading = "Ring")]
    ring: Option<String>,

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

    /// Bytes of a slot, the largest message [default: what a batch of the largest rows needs; 1 MiB if nothing bounds them]
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

    /// Discard what an earlier feed of this name left, and start with the first item
    #[arg(long, help_heading = "Ring")]
    pub(super) fresh: bool,

    /// Keep the place in the input in this file, too, and go on from it when the ring is gone (memfd, a reboot, `forebay
    /// clean`). Written after messages, every 100 ms at most: what was published since comes again; what was published
    /// and lay in the lost ring unread does not
    #[arg(long, value_name = "FILE", help_heading = "Ring")]
    pub(super) position: Option<PathBuf>,

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

    /// Take the slots from a NUMA node: its number, or gpu:N for the one that a GPU is attached to
    #[arg(long, value_name = "NODE", help_heading = "Ring")]
    numa: Option<forebay::Numa>,

    /// A Hugging Face tokenizer.json, or the folder that holds it
    #[arg(long, value_name = "PATH", required_unless_present_any = ["images", "jsonl"], conflicts_with_all = ["images", "jsonl"], help_heading = "Text")]
    tokenizer: Option<PathBuf>,

    /// Lines are JSON objects, the text is this field; dots lead into nested objects [default: lines are plain text]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["images", "jsonl"], help_heading = "Text")]
    field: Option<String>,

    /// Rows of a message, 1 to 1048576
    #[arg(long, value_name = "ROWS", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1 << 20), help_heading = "Batches")]
    pub(super) batch: u32,

    /// Tokens of the longest row, special tokens included; longer lines are truncated [default: what the tokenizer says]
    #[arg(long, value_name = "TOKENS", conflicts_with_all = ["images", "jsonl"], help_heading = "Text")]
    max_length: Option<usize>,

    /// Round the width of every message up to a multiple of so many tokens, also past --max-length [default: not]
    #[arg(long, value_name = "TOKENS", conflicts_with_all = ["images", "jsonl"], help_heading = "Text")]
    pad_to_multiple: Option<usize>,

    /// Bytes of the longest line; longer ones are errors of their line
    #[arg(long, value_name = "BYTES", default_value = "1MiB", help_heading = "Batches")]
    max_line_bytes: Bytes,

    /// How often to read the files: a number, or forever
    #[arg(long, value_name = "TIMES", default_value_t = Repeat::default(), help_heading = "Batches")]
    repeat: Repeat,

    /// Another order, the same for the same seed: of the files and shards in each pass, and of the items within blocks as
    /// they are read (--shuffle-block). Resumable as long as the files stay as they are
    #[arg(long, value_name = "SEED", help_heading = "Batches")]
    shuffle: Option<u64>,

    /// Items of a block that is shuffled; all are held in memory as they were read, at most 256 MiB of them
    #[arg(long, value_name = "ITEMS", requires = "shuffle", default_value_t = Shuffle::DEFAULT_BLOCK_ITEMS, help_heading = "Batches")]
    shuffle_block: usize,

    /// Whether batches are published in the order of reading, or each as soon as it is ready
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, help_heading = "Batches")]
    pub(super) ordered: bool,

    /// Make rows of lines that are only white space, too; by default they are passed over and counted
    #[arg(long, conflicts_with_all = ["images", "jsonl"], help_heading = "Text")]
    keep_blank: bool,

    /// What to do with a bad item (not UTF-8, too long, without the field; damaged; not of the schema; larger
    /// than a slot): fail (end there) or skip (leave it out, say which and why for the first 20, and count all; a batch
    /// that is larger than a slot becomes several messages)
    #[arg(long, value_name = "POLICY", default_value_t = OnError::Fail, help_heading = "Batches")]
    pub(super) on_error: OnError,

    /// Append every item that is left out to this file, a line of JSON each: input, item (its number there), kind, reason.
    /// After a kill or a signal what was read ahead is told again; --fresh empties it first
    #[arg(long, value_name = "FILE", help_heading = "Batches")]
    pub(super) report: Option<PathBuf>,

    /// Threads that prepare, up to 1024; 0 is one per core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1024), help_heading = "Batches")]
    workers: u32,

    /// A Hugging Face preprocessor_config.json, or the folder that holds it
    #[arg(long, value_name = "PATH", requires = "images", help_heading = "Images")]
    processor: Option<PathBuf>,

    /// Type of the pixels: float32, float16, bfloat16 or uint8
    #[arg(long, value_name = "DTYPE", default_value = "float32", value_parser = dtype, help_heading = "Images")]
    dtype: Dtype,

    /// Send labels, too: whole numbers from the .cls beside each image, in its shard or its folder; an image without one
    /// is a bad item
    #[arg(long, requires = "images", help_heading = "Images")]
    labels: bool,

    /// Send the name of each image, too, filled up with zeros; of one beyond 256 bytes the end
    #[arg(long, requires = "images", help_heading = "Images")]
    keys: bool,

    /// Bytes of the largest image file or member
    #[arg(long, value_name = "BYTES", default_value = "64MiB", help_heading = "Images")]
    max_image_bytes: Bytes,

    /// A schema of tensors, .toml or .json
    #[arg(long, value_name = "PATH", requires = "jsonl", help_heading = "Tables")]
    schema: Option<PathBuf>,

    /// Consumers to wait for before the first message [default: 0 on a queue, 1 on broadcast]
    #[arg(long, value_name = "N", help_heading = "Running")]
    wait_for: Option<usize>,

    /// How long SIGINT and SIGTERM wait for consumers to receive what was published
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = seconds, help_heading = "Running")]
    pub(super) drain_timeout: Duration,

    /// Show progress even if standard error is no terminal, a line each second
    #[arg(long, conflicts_with = "no_progress", help_heading = "Running")]
    progress: bool,

    /// Show no progress
    #[arg(long, help_heading = "Running")]
    no_progress: bool,

    /// Print the summary as JSON
    #[arg(long, help_heading = "Running")]
    pub(super) json: bool,
}

fn dtype(name: &str) -> Result<Dtype, String> {
    match name {
        "float32" => Ok(Dtype::F32),
        "float16" => Ok(Dtype::F16),
        "bfloat16" => Ok(Dtype::Bf16),
        "uint8" => Ok(Dtype::U8),
        _ => Err(format!("{name:?} is none of float32, float16, bfloat16, uint8")),
    }
}

impl Args {
    /// What is to be fed.
    pub(super) fn what(&self) -> What {
        match (self.images, self.jsonl) {
            (true, _) => What::Images,
            (_, true) => What::Table,
            _ => What::Text,
        }
    }

    /// Name of the ring.
    pub(super) fn ring<'a>(&'a self, otherwise: &'a str) -> &'a str {
        self.ring.as_deref().unwrap_or(otherwise)
    }

    /// Whether somebody has to type the text.
    pub(super) fn reads_terminal(&self) -> bool {
        !self.images && self.files.iter().any(|file| file == "-") && std::io::stdin().is_terminal()
    }

    /// Whether progress is shown in any case, or never.
    pub(super) fn shown(&self) -> (bool, bool) {
        (self.progress, self.no_progress)
    }

    fn inputs(&self) -> Vec<Input> {
        self.files.iter().map(Input::from_argument).collect()
    }

    fn shuffle(&self) -> Option<Shuffle> {
        self.shuffle.map(|seed| Shuffle { seed, block_items: self.shuffle_block })
    }

    fn source_options(&self) -> SourceOptions {
        SourceOptions { max_line_bytes: self.max_line_bytes.size(), repeat: self.repeat, shuffle: self.shuffle() }
    }

    /// What feeding text needs.
    pub(super) fn text(&self) -> Result<Text, Failure> {
        let options = TokenizerOptions {
            max_length: self.max_length,
            pad_to_multiple_of: self.pad_to_multiple,
            ..TokenizerOptions::default()
        };
        let tokenizer = Tokenizer::from_file(needed(&self.tokenizer)?, &options).map_err(Failure::usage)?;
        Ok(Text { inputs: self.inputs(), options: self.source_options(), tokenizer: Arc::new(tokenizer) })
    }

    /// What feeding images needs.
    pub(super) fn images(&self) -> Result<Images, Failure> {
        if self.files.iter().any(|file| file == "-") {
            return Err(Failure::usage("--images reads no standard input; name files, folders or tar shards"));
        }
        let path = needed(&self.processor)?;
        let recipe =
            Recipe::from_file(path).map_err(|e| Failure::usage(format!("--processor {}: {e}", path.display())))?;
        let mut how = ImageOptions::default();
        how.dtype = self.dtype;
        // Whoever reads the files asks for the same, and has told by then which one is larger.
        how.limits.max_bytes = self.max_image_bytes.size();
        match self.slot_bytes {
            // More than a slot, as a batch that is too large for one is halved until its parts fit.
            Some(slot) => {
                let together = slot.size().saturating_mul(self.batch as usize);
                how.limits.max_batch_bytes = together.max(LEAST_BATCH_BYTES);
            }
            // Slots are made for the largest batch that there can be.
            None if most(&recipe).is_some() => how.limits.max_batch_bytes = usize::MAX,
            // Or for the usual ones, of which four are the most that unusual ones make of one: those may be halved.
            None => {
                if let Some((height, width)) = usual(&recipe) {
                    // Three channels and a mask.
                    let pixel = 3 * how.dtype.bytes() + size_of::<i64>();
                    let image = (height as usize).saturating_mul(width as usize).saturating_mul(pixel);
                    let together = image.saturating_mul(self.batch as usize).saturating_mul(4);
                    how.limits.max_batch_bytes = how.limits.max_batch_bytes.max(together);
                }
            }
        }
        let processor = ImageProcessor::new(recipe, how).map_err(Failure::usage)?;
        let mut options = ImageFeedOptions::default();
        options.source.max_bytes = self.max_image_bytes.0;
        (options.repeat, options.shuffle, options.labels) = (self.repeat, self.shuffle(), self.labels);
        let inputs = self.files.iter().map(|file| spread(file.as_ref())).collect::<Result<Vec<_>, _>>()?.concat();
        Ok(Images { inputs, options, processor: Arc::new(processor), keys: self.keys })
    }

    /// What feeding tables needs.
    pub(super) fn table(&self) -> Result<Table, Failure> {
        let schema = TableSchema::from_file(needed(&self.schema)?).map_err(Failure::usage)?;
        let options = TableOptions { max_line_bytes: self.max_line_bytes.size(), ..TableOptions::default() };
        let encoder = TableEncoder::new(&schema, options).map_err(Failure::usage)?;
        Ok(Table { inputs: self.inputs(), options: self.source_options(), encoder: Arc::new(encoder) })
    }

    pub(super) fn pipeline_options(&self, stop: &Stop) -> PipelineOptions {
        PipelineOptions {
            batch_rows: self.batch as usize,
            workers: self.workers as usize,
            format: self.field.as_ref().map_or_else(Format::default, Format::json_lines),
            keep_blank: self.keep_blank,
            on_error: self.on_error,
            ordered: self.ordered,
            cancel: stop.flag(),
            ..PipelineOptions::default()
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

    /// How to create the ring for what is fed.
    pub(super) fn producer_options<F: Feeds>(&self, what: &F) -> Result<ProducerOptions, Failure> {
        if self.wait_for() > self.max_consumers as usize {
            let (wanted, most) = (self.wait_for(), self.max_consumers);
            return Err(Failure::usage(format!(
                "--wait-for {wanted} consumers, but --max-consumers lets {most} attach; raise it"
            )));
        }
        let mut options = Producer::options(self.ring(F::NAME))
            .schema(schema(F::NAME, &what.largest(self.batch)).map_err(Failure::usage)?)
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
        let usual = schema(F::NAME, &what.usual(self.batch)).map_err(Failure::usage)?.max_bytes();
        if let Some(bytes) = self.slot_bytes.map(|Bytes(bytes)| bytes).or(usual.map(|bytes| bytes.max(64))) {
            options = options.slot_bytes(bytes);
        }
        if let Some(dir) = &self.dir {
            options = options.dir(dir);
        }
        if let Some(numa) = &self.numa {
            options = options.numa(numa.clone());
        }
        Ok(options)
    }
}

/// The files that a pattern means, sorted; what is there is no pattern.
fn spread(given: &Path) -> Result<Vec<PathBuf>, Failure> {
    let pattern = given.to_str().filter(|name| name.contains(['*', '?', '[']) && !given.exists());
    let Some(pattern) = pattern else { return Ok(vec![given.to_owned()]) };
    let wrong = |why: &dyn std::fmt::Display| {
        Failure::usage(format!("the pattern {pattern} finds nothing to feed: {why}; name files, folders or tar shards"))
    };
    let found: Result<Vec<_>, _> = glob::glob(pattern).map_err(|e| wrong(&e))?.collect();
    let found = found.map_err(|e| wrong(&e))?;
    if found.is_empty() { Err(wrong(&"no file matches")) } else { Ok(found) }
}

/// A path that the kind of input needs; the command line asks for it.
fn needed(path: &Option<PathBuf>) -> Result<&PathBuf, Failure> {
    path.as_ref().ok_or_else(|| Failure::usage("an option is missing; see `forebay feed --help`"))
}
