//! What can go wrong with items and inputs, one enum per operation; the parts have their own in `text/error.rs` and so on.
//!
//! Texts have three parts: what happened; found and expected; what to do. Nothing here does I/O or decides a policy:
//! whether a bad line ends the run is [`OnError`](crate::OnError).

use std::io;

/// Why one line became no item. The line's place is told by whoever carries this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ItemError {
    /// Bytes that are not text.
    #[error("not UTF-8: byte {at} of the line is 0x{byte:02x}, which cannot stand there")]
    NotUtf8 {
        /// Where in the line, from 1.
        at: usize,
        /// The first byte that does not fit.
        byte: u8,
    },
    /// More bytes than an item may have; the line was never held in memory.
    #[error("the line has {found_bytes} bytes, at most {limit_bytes} are allowed (max_line_bytes)")]
    TooLong {
        /// Length of the line without its end.
        found_bytes: u64,
        /// The limit.
        limit_bytes: usize,
    },
    /// The line is not one JSON value.
    #[error("not JSON: {detail}")]
    BadJson {
        /// What the JSON parser said; its "line 1" is this line.
        detail: String,
    },
    /// The line is JSON, the field is not in it.
    #[error("the field {field:?} is not in this JSON line")]
    NoField {
        /// The dotted path asked for.
        field: String,
    },
    /// The field is there and is not text.
    #[error("the field {field:?} of this JSON line is {found}, expected a string")]
    NotText {
        /// The dotted path asked for.
        field: String,
        /// The kind of value found.
        found: &'static str,
    },
    /// The tokenizer gave an error for this text.
    #[error("the tokenizer refused the text: {detail}")]
    Refused {
        /// What it said.
        detail: String,
    },
    /// The line became no row of a table.
    #[cfg(feature = "tables")]
    #[error("{reason}")]
    Row {
        /// Why.
        reason: crate::table::RowError,
    },
    /// A sample, or a whole shard from here on, could not be read.
    #[cfg(feature = "images")]
    #[error("{key}: {detail}")]
    Sample {
        /// Its name, as far as it is known.
        key: String,
        /// What was wrong and what to do.
        detail: String,
    },
    /// A sample has no label, or one that is no whole number.
    #[cfg(feature = "images")]
    #[error("{key}: {detail}; give every image a .cls, or do without labels")]
    Label {
        /// Its name.
        key: String,
        /// What was wrong.
        detail: String,
    },
    /// An image became no tensor.
    #[cfg(feature = "images")]
    #[error("{key}: {error}")]
    Image {
        /// Its name.
        key: String,
        /// Why.
        error: crate::image::ImageError,
    },
}

/// Why a stored position is not one. Retrying does not help; starting afresh does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PositionError {
    /// Too many or too few bytes, another magic number, or a checksum that does not match.
    #[error(
        "the stored position is not one of forebay's: {what}; expected {expected_bytes} bytes as written by \
         Position::encode; start afresh, without resuming"
    )]
    Garbage {
        /// What does not fit.
        what: String,
        /// The length of a good one.
        expected_bytes: usize,
    },
    /// Written by another release.
    #[error(
        "the stored position has version {found}, this build reads {expected}; resume with the release that wrote it, \
         or start afresh"
    )]
    Version {
        /// Version found.
        found: u16,
        /// Version understood.
        expected: u16,
    },
}

/// Why a source or a pipeline stopped, or could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IngestError {
    /// The list of inputs is empty.
    #[error("no input: found an empty list, expected files or \"-\"; name at least one")]
    NoInput,
    /// An option is outside its range.
    #[error("{option} is {found}, expected {expected}; change the option")]
    BadOption {
        /// Name of the option.
        option: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// An input is missing or may not be read.
    #[error("cannot open {file}: {source}; expected a readable file; check the path and its permissions")]
    Open {
        /// The input.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// An input is a folder.
    #[error("cannot read {file}: it is a folder, expected a file; name the files in it (a glob such as {file}/*.txt)")]
    Folder {
        /// The input.
        file: String,
    },
    /// Reading broke off. Everything before it was delivered.
    #[error(
        "cannot read on in {file} after line {line}: {source}; repair the medium and resume from the last position"
    )]
    Read {
        /// The input.
        file: String,
        /// The last whole line.
        line: u64,
        /// What the system said.
        source: io::Error,
    },
    /// Standard input stands in the list more than once.
    #[error("standard input is named {count} times, expected at most once; name it once")]
    StdinTwice {
        /// How often.
        count: usize,
    },
    /// A pipe was to be read more than once.
    #[error(
        "cannot repeat {file}: it is a pipe, which can be read once, expected files; write it to a file first, or read \
         it once"
    )]
    CannotRepeat {
        /// The input.
        file: String,
    },
    /// A pipe was to be shuffled.
    #[error(
        "cannot shuffle {file}: it is a pipe, whose beginning cannot be read again, expected files; write it to a file \
         first, or keep the order"
    )]
    CannotShuffle {
        /// The input.
        file: String,
    },
    /// There is nothing to read images from.
    #[cfg(feature = "images")]
    #[error(transparent)]
    Images(crate::image::ImageSourceError),
    /// A sample is no item and the policy is to fail. Everything before it was delivered.
    #[error("{file} sample {sample}: {reason}; repair it, or pass on_error = skip to leave such samples out")]
    BadSample {
        /// The input.
        file: String,
        /// Number of the sample in it, from 1.
        sample: u64,
        /// Why it is no item.
        reason: ItemError,
    },
    /// A whole pass over the inputs gave no item, so repeating it would never end.
    #[error(
        "nothing to repeat: {lines} lines or samples read in one pass, no item among them; check the inputs or repeat once"
    )]
    NothingToRepeat {
        /// Lines or samples in the pass.
        lines: u64,
    },
    /// A line is no item and the policy is to fail. Everything before it was delivered.
    #[error("{file} line {line}: {reason}; repair the line, or pass on_error = skip to leave such lines out")]
    BadLine {
        /// The input.
        file: String,
        /// Line number in it, from 1.
        line: u64,
        /// Why it is no item.
        reason: ItemError,
    },
    /// A position of other inputs was given.
    #[error(
        "cannot resume: the position belongs to another list of inputs (found {found:016x}, expected {expected:016x} for \
         the {inputs} inputs named); name the same files in the same order, or start afresh"
    )]
    OtherInputs {
        /// Fingerprint in the position.
        found: u64,
        /// Fingerprint of the inputs given.
        expected: u64,
        /// Number of inputs given.
        inputs: usize,
    },
    /// An input has become shorter than the position.
    #[error(
        "cannot resume in {file}: it has {found_bytes} bytes, the position is at byte {offset} (line {line}); the file \
         was cut or replaced; restore it, or start afresh"
    )]
    Shrunk {
        /// The input.
        file: String,
        /// Bytes (for a pipe: bytes that came) found.
        found_bytes: u64,
        /// Bytes expected before the position.
        offset: u64,
        /// Lines expected before the position.
        line: u64,
    },
    /// The bytes before the position are others than they were.
    #[error(
        "cannot resume in {file}: what stands before byte {offset} (line {line}) is not what was read then; the file was \
         changed or replaced; restore it, or start afresh"
    )]
    Changed {
        /// The input.
        file: String,
        /// The position's byte.
        offset: u64,
        /// The position's line.
        line: u64,
    },
    /// The last line had no end when it was read, and has grown.
    #[error(
        "cannot resume in {file}: line {line} had no line end when it was read up to byte {offset}, and has grown since; \
         let writers append whole lines, or start afresh"
    )]
    GrownLine {
        /// The input.
        file: String,
        /// The position's byte.
        offset: u64,
        /// The position's line.
        line: u64,
    },
    /// A thread could not be started.
    #[error(
        "cannot start thread {index} of {threads} of the pipeline: {source}; lower workers or raise the thread limit"
    )]
    Spawn {
        /// Which thread, from 1.
        index: usize,
        /// How many were wanted.
        threads: usize,
        /// What the system said.
        source: io::Error,
    },
    /// A thread of the pipeline ended without an answer: an error in forebay.
    #[error(
        "a thread of the pipeline ended without an answer after item {items}; this is an error in forebay; report it"
    )]
    WorkerLost {
        /// Items delivered before.
        items: u64,
    },
    /// The cancel flag was set while a line was being read.
    #[error("cancelled while reading {file}; found the cancel flag set; resume from the last position")]
    Cancelled {
        /// The input.
        file: String,
    },
}
