//! Where images come from: files, the files of folders, and tar shards as WebDataset lays them out.
//!
//! ```text
//!   inputs ──▶ ImageSource ──▶ Sample { key, image, label }  one at a time, in order
//!              files: one sample a file                       ImagePosition after each: resume from there
//!              *.tar: members of one key are one sample
//! ```
//!
//! Memory is that of one sample: a file or a member beyond [`ImageSourceOptions::max_bytes`] is an error of that sample
//! and is never read. A sample that cannot be read does not end the source.

mod files;
mod tar;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use tar::{Labels, Shard};

/// How a source reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageSourceOptions {
    /// Most bytes of an image or of what stands beside it. Default: 64 MiB.
    pub max_bytes: u64,
}

impl Default for ImageSourceOptions {
    fn default() -> Self {
        Self { max_bytes: 64 << 20 }
    }
}

/// Where a source stands: after so many samples of an input, and at which byte of a shard the next one begins.
///
/// It belongs to the list of inputs it was made with, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct ImagePosition {
    /// Index of the input that is read, in the list of files that folders were spread out to.
    pub input: u64,
    /// Byte of a shard at which the next sample begins, 0 for an image file.
    pub offset: u64,
    /// Samples given out so far, those included that could not be read.
    pub samples: u64,
    /// Identifies the list of inputs.
    pub check: u64,
}

/// An image and what stands beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sample {
    /// Its name: the path of a file; in a shard the member's name up to the first dot of its last part.
    pub key: String,
    /// Index of the input that it comes from.
    pub input: u64,
    /// The bytes of the image's file.
    pub image: Vec<u8>,
    /// The bytes of the member that is named like the image and ends in `.cls`, `.txt` or `.json`: the
    /// ending and them. Of several it is that of `.cls`, else the last one.
    pub label: Option<(String, Vec<u8>)>,
}

/// Why a sample could not be read; the source goes on behind it.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {reason}")]
#[non_exhaustive]
pub struct SampleError {
    /// The name of the sample, as far as it is known.
    pub key: String,
    /// Index of the input that it comes from.
    pub input: u64,
    /// What was wrong and what to do.
    pub reason: String,
}

/// Why there is no source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageSourceError {
    /// There is nothing to read.
    #[error(
        "no image and no tar shard among the inputs ({given} given); name files ending in .jpg, .jpeg, .png, .webp or .tar"
    )]
    Nothing {
        /// Inputs named.
        given: usize,
    },
    /// An input is missing or may not be read.
    #[error("cannot read {}: {source}; check the path and its permissions", path.display())]
    Unreadable {
        /// The input.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The position is of another list of inputs.
    #[error(
        "cannot resume: the position belongs to another list of inputs (found {found:016x}, expected {expected:016x} for \
         the {inputs} inputs); name the same files in the same order, or start afresh"
    )]
    OtherInputs {
        /// What the position says.
        found: u64,
        /// What the inputs say.
        expected: u64,
        /// Number of inputs.
        inputs: usize,
    },
}

/// Reads images one after the other.
#[derive(Debug)]
pub struct ImageSource {
    inputs: Vec<PathBuf>,
    options: ImageSourceOptions,
    position: ImagePosition,
    shard: Option<Shard<File>>,
    labels: Labels,
}

impl ImageSource {
    /// A source of these inputs: image files, tar shards, and folders, whose images and shards are taken in the order
    /// of their paths, those of folders in them included.
    ///
    /// Nothing is read yet but folders.
    ///
    /// # Errors
    /// [`ImageSourceError`] if an input is missing or nothing is to be read.
    pub fn open<P: AsRef<Path>>(inputs: &[P], options: ImageSourceOptions) -> Result<Self, ImageSourceError> {
        let found = files::spread(inputs)?;
        if found.is_empty() {
            return Err(ImageSourceError::Nothing { given: inputs.len() });
        }
        let position = ImagePosition { check: files::fingerprint(&found), ..ImagePosition::default() };
        Ok(Self { inputs: found, options, position, shard: None, labels: Labels::All })
    }

    /// The same from a position on that an earlier run stored.
    ///
    /// # Errors
    /// As [`open`](Self::open), or if the inputs are not those of the position.
    pub fn resume<P: AsRef<Path>>(
        inputs: &[P],
        options: ImageSourceOptions,
        position: &ImagePosition,
    ) -> Result<Self, ImageSourceError> {
        let mut source = Self::open(inputs, options)?;
        let (found, expected) = (position.check, source.position.check);
        if found != expected {
            return Err(ImageSourceError::OtherInputs { found, expected, inputs: source.inputs.len() });
        }
        source.position = *position;
        Ok(source)
    }

    /// The files that are read, in order.
    #[must_use]
    pub fn inputs(&self) -> &[PathBuf] {
        &self.inputs
    }

    /// Where it stands: from here [`resume`](Self::resume) goes on with the sample that `next` would give now.
    #[must_use]
    pub fn position(&self) -> ImagePosition {
        self.position
    }

    /// From now on reads nothing of what stands beside an image in a shard, or so many bytes of its `.cls`.
    pub(crate) fn limit_labels(&mut self, class_bytes: Option<u64>) {
        self.labels = class_bytes.map_or(Labels::Nothing, Labels::Class);
    }

    /// Goes to the sample that begins at byte `offset` of input `input`.
    pub(crate) fn go_to(&mut self, input: u64, offset: u64) {
        self.shard = None;
        (self.position.input, self.position.offset) = (input, offset);
    }

    /// Whether the input is a shard: else it is an image's file.
    pub(crate) fn is_shard(&self, input: usize) -> bool {
        self.inputs.get(input).is_some_and(|path| files::is_shard(path))
    }

    /// The next sample of the input it stands in; `None` if there is none in it any more, or there is no such input.
    /// After the last sample of an input, or after `None`, it may stand in the next one.
    pub(crate) fn next_of_input(&mut self) -> Option<Result<Sample, SampleError>> {
        let path = self.inputs.get(usize::try_from(self.position.input).ok()?)?.clone();
        let next = if files::is_shard(&path) { self.read_shard(&path) } else { Some(self.read_file(&path)) };
        self.position.samples += u64::from(next.is_some());
        next
    }

    fn error(&self, key: impl Into<String>, reason: impl Into<String>) -> SampleError {
        SampleError { key: key.into(), input: self.position.input, reason: reason.into() }
    }

    fn next_input(&mut self) {
        self.shard = None;
        self.position.input += 1;
        self.position.offset = 0;
    }

    fn read_file(&mut self, path: &Path) -> Result<Sample, SampleError> {
        let key = path.display().to_string();
        let read = files::read(path, self.options.max_bytes);
        let input = self.position.input;
        let result = match read {
            Ok(image) => Ok(Sample { key, input, image, label: None }),
            Err(reason) => Err(self.error(key, reason)),
        };
        self.next_input();
        result
    }

    /// The next sample of the shard `path`; `None` at its end.
    fn read_shard(&mut self, path: &Path) -> Option<Result<Sample, SampleError>> {
        let input = self.position.input;
        if self.shard.is_none() {
            let opened = File::open(path).and_then(|file| Shard::at(file, self.position.offset));
            match opened {
                Ok(shard) => self.shard = Some(shard),
                Err(error) => {
                    self.next_input();
                    let reason = format!("cannot open the shard: {error}; check the path and its permissions");
                    return Some(Err(SampleError { key: path.display().to_string(), input, reason }));
                }
            }
        }
        let shard = self.shard.as_mut()?;
        let next = shard.next_sample(self.options.max_bytes, self.labels);
        self.position.offset = shard.offset();
        match next {
            Ok(None) => {
                self.next_input();
                None
            }
            Ok(Some(Ok(tar::Found { key, image, label }))) => Some(Ok(Sample { key, input, image, label })),
            Ok(Some(Err((key, reason)))) => Some(Err(SampleError { key, input, reason })),
            Err(reason) => {
                // What follows in the shard cannot be found.
                let key = format!("{} at byte {}", path.display(), self.position.offset);
                self.next_input();
                Some(Err(SampleError { key, input, reason }))
            }
        }
    }
}

impl Iterator for ImageSource {
    type Item = Result<Sample, SampleError>;

    fn next(&mut self) -> Option<Self::Item> {
        while usize::try_from(self.position.input).is_ok_and(|input| input < self.inputs.len()) {
            if let Some(next) = self.next_of_input() {
                return Some(next);
            }
        }
        None
    }
}
