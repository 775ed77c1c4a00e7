//! The samples of files, folders and shards, again and again if asked, in another order if asked, resumable.
//!
//! [`ImageSource`] reads; this adds what a feeder needs beyond one pass: positions of the same kind as those of lines,
//! repetition, an order of the inputs, labels beside files.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::batch::LineId;
use super::order::{Order, Repeat, check_shuffle};
use super::position::Position;
use super::shuffle::Shuffle;
use super::stage::{Collected, Reads, Taken, Unit};
use crate::error::{IngestError, ItemError};
use crate::image::{ImageSource, ImageSourceOptions, Sample};

/// Most bytes of a label's file.
const MAX_LABEL_BYTES: u64 = 64;

/// How images are read for a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ImageFeedOptions {
    /// How a file or shard is read.
    pub source: ImageSourceOptions,
    /// How often the inputs are read; default once.
    pub repeat: Repeat,
    /// Inputs and samples in another order; by default they come as they stand.
    pub shuffle: Option<Shuffle>,
    /// Whether every image has a label, a whole number: in a shard the member `.cls` beside it, else the file beside it
    /// that is named like it and ends in `.cls`. A sample without one is bad then. Default: labels are not looked at.
    pub labels: bool,
}

/// A list of image files, folders and shards for a pipeline to read.
///
/// What an input must be is checked at the start, whether it can be read when its turn comes: a file or shard that cannot
/// is a bad sample.
#[derive(Debug)]
pub struct ImageFeed {
    source: ImageSource,
    options: ImageFeedOptions,
    order: Order,
    position: Position,
    cancel: Arc<AtomicBool>,
    /// Bytes of each input when it was looked at.
    lengths: Vec<u64>,
    read_bytes: u64,
    done: bool,
}

impl ImageFeed {
    /// The samples of these inputs, from the beginning.
    ///
    /// # Errors
    /// [`IngestError::Images`] if an input is missing or nothing is to be read, [`BadOption`](IngestError::BadOption).
    pub fn open<P: AsRef<Path>>(inputs: &[P], options: ImageFeedOptions) -> Result<Self, IngestError> {
        check_shuffle(options.shuffle)?;
        if options.repeat == Repeat::Times(0) {
            let (option, found) = ("repeat", "0".to_owned());
            return Err(IngestError::BadOption { option, found, expected: "1 or more, or forever" });
        }
        let mut source = ImageSource::open(inputs, options.source).map_err(IngestError::Images)?;
        // One byte more, to know a longer one by.
        source.limit_labels(options.labels.then_some(MAX_LABEL_BYTES + 1));
        let order = Order::new(options.shuffle, source.inputs().len());
        // A missing file is told when its turn comes.
        let lengths = source.inputs().iter().map(|path| fs::metadata(path).map_or(0, |data| data.len())).collect();
        let position =
            Position { inputs: order.fingerprint(source.position().check), file: order.first(), ..Position::default() };
        let mut feed =
            Self { source, options, order, position, cancel: Arc::default(), lengths, read_bytes: 0, done: false };
        feed.source.go_to(position.file.into(), 0);
        Ok(feed)
    }

    /// The same from a position on that a pipeline over the same inputs gave. Whether shards and files are still those
    /// is not looked at.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`IngestError::OtherInputs`] if the inputs or the shuffling are others.
    pub fn resume<P: AsRef<Path>>(
        inputs: &[P],
        options: ImageFeedOptions,
        position: &Position,
    ) -> Result<Self, IngestError> {
        let mut feed = Self::open(inputs, options)?;
        let (found, expected, inputs) = (position.inputs, feed.position.inputs, feed.lengths.len());
        let counts = [position.pass, position.offset, position.line, position.items];
        if found != expected || position.file as usize >= inputs || counts.iter().any(|&count| count >= 1 << 62) {
            return Err(IngestError::OtherInputs { found, expected, inputs });
        }
        feed.position = *position;
        feed.order.go_to(position.pass, position.file);
        if position.line > 0 && !feed.source.is_shard(position.file as usize) {
            // A file is one sample. It is left as it was at first, by the next take: a block that begins there is then the
            // same one.
            feed.source.go_to(u64::from(position.file) + 1, 0);
        } else {
            feed.source.go_to(position.file.into(), position.offset);
        }
        Ok(feed)
    }

    /// Where it stands.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Name of input `file`, for people.
    #[must_use]
    pub fn name(&self, file: u32) -> String {
        let path = self.source.inputs().get(file as usize);
        path.map_or_else(|| format!("input {file}"), |path| path.display().to_string())
    }

    /// Whether its samples bring labels.
    #[must_use]
    pub fn labels(&self) -> bool {
        self.options.labels
    }

    fn move_to(&mut self, pass: u64, file: u32) {
        self.position = Position { pass, file, offset: 0, line: 0, ..self.position };
        self.source.go_to(file.into(), 0);
    }

    /// Moves to the next input; false at the end of a pass.
    fn next_input(&mut self) -> bool {
        if let Some(file) = self.order.next_in_pass() {
            self.move_to(self.position.pass, file);
            return true;
        }
        let pass = self.position.pass + 1;
        self.done = matches!(self.options.repeat, Repeat::Times(times) if pass >= times);
        if !self.done {
            let first = self.order.start(pass);
            self.move_to(pass, first);
        }
        false
    }

    /// The label of a sample.
    fn label(&self, sample: &Sample) -> Result<i64, ItemError> {
        let wrong = |detail: String| ItemError::Label { key: sample.key.clone(), detail };
        let beside;
        let bytes = if self.source.is_shard(sample.input as usize) {
            match &sample.label {
                Some((ending, bytes)) if ending == "cls" => bytes,
                _ => return Err(wrong("no member .cls beside it".into())),
            }
        } else {
            // The key is what people read of it: not every path can be written so.
            let path = self.source.inputs()[sample.input as usize].with_extension("cls");
            let mut bytes = Vec::new();
            let read = File::open(&path).and_then(|file| file.take(MAX_LABEL_BYTES + 1).read_to_end(&mut bytes));
            read.map_err(|error| wrong(format!("cannot read {}: {error}", path.display())))?;
            beside = bytes;
            &beside
        };
        let text = std::str::from_utf8(bytes).ok().map(str::trim);
        text.filter(|_| bytes.len() as u64 <= MAX_LABEL_BYTES).and_then(|text| text.parse().ok()).ok_or_else(|| {
            let found = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
            wrong(format!("its label is {found:?}, expected a whole number"))
        })
    }
}

/// Samples that were read, and their labels if they have some.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    pub(crate) samples: Vec<(Sample, i64)>,
    bytes: usize,
}

impl Collected for Samples {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn pick(&mut self, items: &[usize]) -> Self {
        let empty = || (Sample { key: String::new(), input: 0, image: Vec::new(), label: None }, 0);
        let samples = items.iter().map(|&item| std::mem::replace(&mut self.samples[item], empty())).collect();
        Self { samples, bytes: 0 }
    }
}

impl Reads for ImageFeed {
    type Raw = Samples;
    const UNIT: Unit = Unit::Sample;
    const BATCH_BYTES: usize = 256 << 20;

    fn take(&mut self, into: &mut Samples) -> Result<Taken, IngestError> {
        loop {
            if self.done {
                return Ok(Taken::EndOfPass);
            }
            // ORDER none, Relaxed: the flag is the whole message.
            if self.cancel.load(Ordering::Relaxed) {
                self.done = true;
                return Err(IngestError::Cancelled { file: self.name(self.position.file) });
            }
            // A source leaves a file with its only sample, and a shard at its end.
            let there = self.source.position().input == u64::from(self.position.file);
            let Some(sample) = there.then(|| self.source.next_of_input()).flatten() else {
                self.read_bytes += self.lengths[self.position.file as usize].saturating_sub(self.position.offset);
                if self.next_input() {
                    continue;
                }
                return Ok(Taken::EndOfPass);
            };
            self.position.line += 1;
            let now = self.source.position();
            let same = now.input == u64::from(self.position.file);
            let offset = if same { now.offset } else { self.lengths[self.position.file as usize] };
            self.read_bytes += offset.saturating_sub(self.position.offset);
            self.position.offset = offset;
            let id = LineId { file: self.position.file, line: self.position.line };
            let mut sample = match sample {
                Ok(sample) => sample,
                Err(error) => return Ok(Taken::Bad(id, ItemError::Sample { key: error.key, detail: error.reason })),
            };
            let label = if self.options.labels { self.label(&sample) } else { Ok(0) };
            // It is a number now: what is kept is what is counted.
            sample.label = None;
            return Ok(match label {
                Ok(label) => {
                    into.bytes += sample.image.len() + sample.key.len();
                    into.samples.push((sample, label));
                    Taken::Item(id)
                }
                Err(reason) => Taken::Bad(id, reason),
            });
        }
    }

    fn position(&self) -> Position {
        self.position
    }

    fn is_done(&self) -> bool {
        self.done
    }

    fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    fn remaining_bytes(&self) -> Option<u64> {
        let Repeat::Times(times) = self.options.repeat else { return None };
        let pass: u64 = self.lengths.iter().sum();
        let done: u64 = self.order.done().iter().map(|&file| self.lengths[file]).sum();
        let whole = pass.saturating_mul(times.saturating_sub(self.position.pass));
        Some(whole.saturating_sub(done + self.position.offset))
    }

    fn name(&self, file: u32) -> String {
        self.name(file)
    }

    fn inputs(&self) -> usize {
        self.lengths.len()
    }

    fn has_stream(&self) -> bool {
        false
    }

    fn cancel_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancel)
    }

    fn shuffle(&self) -> Option<Shuffle> {
        self.options.shuffle
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::process::Command;

    #[test]
    fn a_label_is_found_beside_a_file_whose_name_is_no_text() {
        let folder = tempfile::tempdir().unwrap();
        let name = |ending: &[u8]| folder.path().join(OsStr::from_bytes(&[b"caf\xe9.", ending].concat()));
        fs::write(name(b"jpg"), b"image").unwrap();
        fs::write(name(b"cls"), b"7").unwrap();
        let options = ImageFeedOptions { labels: true, ..ImageFeedOptions::default() };
        for input in [folder.path().to_owned(), name(b"jpg")] {
            let mut samples = Samples::default();
            let taken = ImageFeed::open(&[input], options).unwrap().take(&mut samples).unwrap();
            assert!(matches!(taken, Taken::Item(LineId { file: 0, line: 1 })), "{taken:?}");
            let (sample, label) = &samples.samples[0];
            assert_eq!(*label, 7);
            assert!(sample.key.ends_with("caf\u{fffd}.jpg"), "{}", sample.key);
        }
    }

    #[test]
    fn what_stands_beside_an_image_is_neither_kept_nor_counted() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            fs::write(folder.path().join(name).with_extension("jpg"), b"image").unwrap();
            fs::write(folder.path().join(name).with_extension("cls"), b"7\n").unwrap();
            fs::write(folder.path().join(name).with_extension("json"), vec![b' '; 100_000]).unwrap();
        }
        let members = ["a.jpg", "a.cls", "a.json", "b.jpg", "b.cls", "b.json"];
        let done = Command::new("tar").current_dir(folder.path()).args(["-cf", "shard.tar"]).args(members).status();
        assert!(done.unwrap().success());
        for labels in [false, true] {
            let options = ImageFeedOptions { labels, ..ImageFeedOptions::default() };
            let mut feed = ImageFeed::open(&[folder.path().join("shard.tar")], options).unwrap();
            let mut samples = Samples::default();
            while !feed.is_done() {
                assert!(!matches!(feed.take(&mut samples).unwrap(), Taken::Bad(..)));
            }
            assert_eq!(samples.bytes(), 2 * ("image".len() + "a".len()));
            let label = if labels { 7 } else { 0 };
            assert!(samples.samples.iter().all(|(sample, found)| sample.label.is_none() && *found == label));
        }
    }
}
