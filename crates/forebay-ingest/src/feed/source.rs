//! The lines of a list of inputs, one after the other, again and again if asked, resumable.
//!
//! A source reads; it does not judge. It gives raw lines with their places and the [`Position`] after each; what is an
//! item is decided by [`Format`](crate::Format), what happens to a bad one by the pipeline.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::input::{Checked, Input, Reader, fingerprint};
use super::line::{LineReader, Next, Tail};
use super::order::{Order, Repeat, check_shuffle};
use super::position::Position;
use super::shuffle::Shuffle;
use crate::error::IngestError;

/// Most inputs that a list may have.
const MAX_INPUTS: usize = 1 << 20;
/// The numbers of a position stay below this, so that counting on from them never overflows.
const COUNTS: u64 = 1 << 62;

/// How inputs are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceOptions {
    /// Longest line that may be an item, in bytes without its end; default 1 MiB. Tokenizing takes 60 to
    /// 150 times a line's bytes in memory, on each worker.
    pub max_line_bytes: usize,
    /// How often the list is read; default once. Streams can be read once only.
    pub repeat: Repeat,
    /// Inputs and their lines in another order; by default they come as they stand. Streams cannot be shuffled.
    pub shuffle: Option<Shuffle>,
}

impl SourceOptions {
    /// Default of [`max_line_bytes`](Self::max_line_bytes).
    pub const DEFAULT_MAX_LINE_BYTES: usize = 1 << 20;
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self { max_line_bytes: Self::DEFAULT_MAX_LINE_BYTES, repeat: Repeat::default(), shuffle: None }
    }
}

/// One raw line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// Index of the input in the list.
    pub file: u32,
    /// Its number in that input, from 1.
    pub number: u64,
    /// Its bytes, without line end (and, in a first line, without a byte order mark); empty if it is too long.
    pub bytes: &'a [u8],
    /// Its length in bytes if that is more than `limit`.
    pub too_long: Option<u64>,
    /// The longest that a line may be: `max_line_bytes`.
    pub limit: usize,
}

/// Reads the lines of a list of inputs.
///
/// Memory is bounded by `max_line_bytes`. Inputs are opened one at a time; that they exist and may be read is checked
/// for all of them at the start.
///
/// # Resuming
/// In regular files a resumed source seeks to its position; earlier files are not opened. Streams (standard input,
/// FIFOs) cannot seek: feed the same stream from its beginning, and the lines before the position are read past and
/// compared by their hash.
pub struct Source {
    inputs: Vec<Checked>,
    options: SourceOptions,
    order: Order,
    cancel: Arc<AtomicBool>,
    position: Position,
    reader: Option<LineReader<Reader>>,
    buffer: Vec<u8>,
    /// Set while a resumed input has not been opened yet.
    resume_at: Option<Position>,
    done: bool,
    read_bytes: u64,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("inputs", &self.inputs).field("position", &self.position).finish_non_exhaustive()
    }
}

impl Source {
    /// A source that starts at the beginning of the first input.
    ///
    /// # Errors
    /// [`IngestError::NoInput`], [`Open`](IngestError::Open), [`Folder`](IngestError::Folder),
    /// [`StdinTwice`](IngestError::StdinTwice), [`CannotRepeat`](IngestError::CannotRepeat),
    /// [`BadOption`](IngestError::BadOption). Nothing has been read then.
    pub fn open(inputs: &[Input], options: SourceOptions) -> Result<Self, IngestError> {
        check_options(inputs, &options)?;
        let checked = inputs.iter().map(Checked::new).collect::<Result<Vec<_>, _>>()?;
        if options.repeat != Repeat::Times(1)
            && let Some(stream) = checked.iter().find(|input| input.is_stream())
        {
            return Err(IngestError::CannotRepeat { file: stream.name() });
        }
        if options.shuffle.is_some()
            && let Some(stream) = checked.iter().find(|input| input.is_stream())
        {
            return Err(IngestError::CannotShuffle { file: stream.name() });
        }
        let order = Order::new(options.shuffle, checked.len());
        let position = Position {
            inputs: order.fingerprint(fingerprint(&checked)),
            file: order.first(),
            check: Tail::default().hash(),
            ..Position::default()
        };
        Ok(Self {
            inputs: checked,
            options,
            order,
            cancel: Arc::default(),
            position,
            reader: None,
            buffer: Vec::new(),
            resume_at: None,
            done: false,
            read_bytes: 0,
        })
    }

    /// A source that goes on at `position`, which a source over the same list gave.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), and [`IngestError::OtherInputs`]; [`BadOption`](IngestError::BadOption) for a
    /// position that no run can reach. That the files are still the same is checked here for regular files, by the
    /// first [`next_line`](Self::next_line) for streams:
    /// [`Shrunk`](IngestError::Shrunk), [`Changed`](IngestError::Changed), [`GrownLine`](IngestError::GrownLine).
    pub fn resume(inputs: &[Input], options: SourceOptions, position: &Position) -> Result<Self, IngestError> {
        let mut source = Self::open(inputs, options)?;
        // A position travels through a ring, where others may have written it.
        let counts = [position.pass, position.offset, position.line, position.items];
        if let Some(found) = counts.into_iter().find(|&count| count >= COUNTS) {
            let expected = "numbers below 2^62, as of a run that was";
            return Err(IngestError::BadOption {
                option: "a number of the position",
                found: found.to_string(),
                expected,
            });
        }
        if position.inputs != source.position.inputs || position.file as usize >= inputs.len() {
            return Err(IngestError::OtherInputs {
                found: position.inputs,
                expected: source.position.inputs,
                inputs: inputs.len(),
            });
        }
        source.position = *position;
        source.order.go_to(position.pass, position.file);
        if source.inputs[position.file as usize].is_stream() {
            source.resume_at = Some(*position);
        } else {
            source.reader = Some(source.open_in_the_middle(position)?);
        }
        Ok(source)
    }

    /// A flag that ends [`next_line`](Self::next_line), also inside an endless line, when it is set to true.
    #[must_use]
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancel)
    }

    /// The next raw line, or `None` at the end of each pass over the inputs; [`is_done`](Self::is_done) says whether
    /// that was the last one. Waits for streams.
    ///
    /// # Errors
    /// [`IngestError::Read`], [`Open`](IngestError::Open) if an input has vanished meanwhile,
    /// [`Cancelled`](IngestError::Cancelled), and those of resuming in a stream. The source is done then.
    pub fn next_line(&mut self) -> Result<Option<Line<'_>>, IngestError> {
        if self.done {
            return Ok(None);
        }
        // ORDER none, Relaxed: the flag is the whole message.
        if self.cancel.load(Ordering::Relaxed) {
            self.done = true;
            return Err(IngestError::Cancelled { file: self.name(self.position.file) });
        }
        let next = match self.advance() {
            Ok(next) => next,
            Err(error) => {
                self.done = true;
                return Err(error);
            }
        };
        let too_long = match next {
            None => return Ok(None),
            Some(Next::TooLong(length)) => Some(length),
            Some(_) => None,
        };
        Ok(Some(Line {
            file: self.position.file,
            number: self.position.line,
            bytes: &self.buffer,
            too_long,
            limit: self.options.max_line_bytes,
        }))
    }

    /// Whether all passes have ended, or an error has ended them.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Bytes of input read so far, without those before a resumed position.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// Where the source stands: after the line given last. `items` is as it was at the start or resume.
    #[must_use]
    pub fn position(&self) -> Position {
        let check = match &self.reader {
            Some(reader) => reader.check(),
            None => self.position.check,
        };
        Position { check, ..self.position }
    }

    /// How its items are shuffled.
    pub(crate) fn shuffle(&self) -> Option<Shuffle> {
        self.options.shuffle
    }

    /// Number of inputs.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs.len()
    }

    /// Name of input `file`, for people.
    #[must_use]
    pub fn name(&self, file: u32) -> String {
        self.inputs.get(file as usize).map_or_else(|| format!("input {file}"), Checked::name)
    }

    /// Whether any input is a stream.
    #[must_use]
    pub fn has_stream(&self) -> bool {
        self.inputs.iter().any(Checked::is_stream)
    }

    /// Bytes between here and the end of the last pass, by the files' lengths when the source was opened. `None` if
    /// that is unknown: a stream is among the inputs, or they are repeated forever.
    #[must_use]
    pub fn remaining_bytes(&self) -> Option<u64> {
        let Repeat::Times(times) = self.options.repeat else {
            return None;
        };
        let lengths = self.inputs.iter().map(Checked::length).collect::<Option<Vec<u64>>>()?;
        let pass: u64 = lengths.iter().sum();
        let done: u64 = self.order.done().iter().map(|&file| lengths[file]).sum();
        let whole = pass.saturating_mul(times.saturating_sub(self.position.pass));
        Some(whole.saturating_sub(done + self.position.offset))
    }

    /// Reads the next line into the buffer, over the ends of files; `None` at the end of a pass.
    fn advance(&mut self) -> Result<Option<Next>, IngestError> {
        loop {
            let mut reader = match self.reader.take() {
                Some(reader) => reader,
                None => self.open_current()?,
            };
            let next = reader.next(&mut self.buffer);
            self.read_bytes += reader.offset() - self.position.offset;
            (self.position.offset, self.position.line) = (reader.offset(), reader.line());
            self.reader = Some(reader);
            let next = next.map_err(|source| IngestError::Read {
                file: self.name(self.position.file),
                line: self.position.line,
                source,
            })?;
            match next {
                Next::Line | Next::TooLong(_) => return Ok(Some(next)),
                Next::Cancelled => {
                    return Err(IngestError::Cancelled { file: self.name(self.position.file) });
                }
                Next::End => {
                    if let Some(file) = self.order.next_in_pass() {
                        self.move_to(self.position.pass, file);
                        continue;
                    }
                    let pass = self.position.pass + 1;
                    self.done = matches!(self.options.repeat, Repeat::Times(times) if pass >= times);
                    if !self.done {
                        let first = self.order.start(pass);
                        self.move_to(pass, first);
                    }
                    return Ok(None);
                }
            }
        }
    }

    /// Moves to the start of an input.
    fn move_to(&mut self, pass: u64, file: u32) {
        self.reader = None;
        self.position = Position { pass, file, offset: 0, line: 0, check: Tail::default().hash(), ..self.position };
    }

    /// Opens the current input, at its start or, in a stream that is resumed, after what was delivered.
    fn open_current(&mut self) -> Result<LineReader<Reader>, IngestError> {
        let input = &self.inputs[self.position.file as usize];
        let start = (0, 0, Tail::default());
        let mut reader = self.line_reader(input.open()?, start);
        if let Some(position) = self.resume_at.take() {
            self.read_past(&mut reader, &position)?;
        }
        Ok(reader)
    }

    fn line_reader(&self, inner: Reader, start: (u64, u64, Tail)) -> LineReader<Reader> {
        LineReader::new(inner, self.options.max_line_bytes, start, Arc::clone(&self.cancel))
    }

    /// Opens the regular file of `position` there, if it still is what it was.
    fn open_in_the_middle(&self, position: &Position) -> Result<LineReader<Reader>, IngestError> {
        let input = &self.inputs[position.file as usize];
        let (file, offset, line) = (input.name(), position.offset, position.line);
        let opened = input.open_at(offset)?;
        if opened.length < offset {
            return Err(IngestError::Shrunk { file, found_bytes: opened.length, offset, line });
        }
        if opened.tail.hash() != position.check {
            return Err(IngestError::Changed { file, offset, line });
        }
        if !opened.after_line_end && opened.length > offset {
            return Err(IngestError::GrownLine { file, offset, line });
        }
        Ok(self.line_reader(opened.reader, (offset, line, opened.tail)))
    }

    /// Reads the lines of a stream up to `position`, if they are what they were.
    fn read_past(&self, reader: &mut LineReader<Reader>, position: &Position) -> Result<(), IngestError> {
        let file = self.name(position.file);
        let (offset, line) = (position.offset, position.line);
        let mut scratch = Vec::new();
        while reader.line() < line {
            let next = reader.next(&mut scratch).map_err(|source| IngestError::Read {
                file: file.clone(),
                line: reader.line(),
                source,
            })?;
            match next {
                Next::Line | Next::TooLong(_) => {}
                Next::Cancelled => return Err(IngestError::Cancelled { file }),
                Next::End => {
                    return Err(IngestError::Shrunk { file, found_bytes: reader.offset(), offset, line });
                }
            }
        }
        if reader.offset() != offset || reader.check() != position.check {
            return Err(IngestError::Changed { file, offset, line });
        }
        Ok(())
    }
}

fn check_options(inputs: &[Input], options: &SourceOptions) -> Result<(), IngestError> {
    let bad = |option, found: &dyn fmt::Display, expected| IngestError::BadOption {
        option,
        found: found.to_string(),
        expected,
    };
    if inputs.is_empty() {
        return Err(IngestError::NoInput);
    }
    if inputs.len() > MAX_INPUTS {
        return Err(bad("inputs", &inputs.len(), "at most 1048576 files"));
    }
    if options.max_line_bytes == 0 || options.max_line_bytes > 1 << 30 {
        return Err(bad("max_line_bytes", &options.max_line_bytes, "1 byte to 1 GiB"));
    }
    check_shuffle(options.shuffle)?;
    if options.repeat == Repeat::Times(0) {
        return Err(bad("repeat", &0, "1 or more, or forever"));
    }
    let count = inputs.iter().filter(|&i| *i == Input::Stdin).count();
    if count > 1 {
        return Err(IngestError::StdinTwice { count });
    }
    Ok(())
}
