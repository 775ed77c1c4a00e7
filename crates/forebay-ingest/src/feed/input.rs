//! What is read: files and standard input, looked at before anything is read.
//!
//! An input is either a regular file, in which a run can seek when it resumes, or a stream (standard input, a FIFO, a
//! device), in which it can only read past what it has delivered. This file opens and measures; it reads no line.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::line::{TAIL_BYTES, Tail};
use super::position::fnv1a_on;
use crate::error::IngestError;

const BUFFER_BYTES: usize = 256 << 10;

/// One entry of the list of inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A file; FIFOs and devices are read as streams.
    File(PathBuf),
    /// Standard input, at most once in a list.
    Stdin,
}

impl Input {
    /// The input that a command line means: `-` is standard input, everything else a path.
    #[must_use]
    pub fn from_argument(argument: impl AsRef<OsStr>) -> Self {
        let argument = argument.as_ref();
        if argument == "-" { Self::Stdin } else { Self::File(argument.into()) }
    }
}

impl<P: AsRef<Path>> From<P> for Input {
    /// The file at `path`, also if it is called `-`.
    fn from(path: P) -> Self {
        Self::File(path.as_ref().to_owned())
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Stdin => f.write_str("standard input"),
        }
    }
}

/// An input that has been looked at.
#[derive(Debug)]
pub(crate) struct Checked {
    input: Input,
    /// Its length at the start if it is a regular file, `None` for a stream.
    length: Option<u64>,
    /// Its path without links, for the fingerprint.
    canonical: Option<PathBuf>,
}

pub(crate) type Reader = BufReader<Box<dyn Read + Send>>;

impl Checked {
    /// Looks at `input`: it exists, is not a folder, and may be read.
    pub(crate) fn new(input: &Input) -> Result<Self, IngestError> {
        let open_error = |source| IngestError::Open { file: input.to_string(), source };
        let (length, canonical) = match input {
            Input::Stdin => (None, None),
            Input::File(path) => {
                let metadata = fs::metadata(path).map_err(open_error)?;
                if metadata.is_dir() {
                    return Err(IngestError::Folder { file: input.to_string() });
                }
                if metadata.is_file() {
                    // Opening a FIFO would wait for its writer; a file is opened to see whether it may be.
                    File::open(path).map_err(open_error)?;
                    let canonical = fs::canonicalize(path).map_err(open_error)?;
                    (Some(metadata.len()), Some(canonical))
                } else {
                    (None, None)
                }
            }
        };
        Ok(Self { input: input.clone(), length, canonical })
    }

    /// Whether the input can be read only once, and not from the middle.
    pub(crate) fn is_stream(&self) -> bool {
        self.length.is_none()
    }

    /// Length when it was looked at, `None` for a stream.
    pub(crate) fn length(&self) -> Option<u64> {
        self.length
    }

    /// Its name, for people.
    pub(crate) fn name(&self) -> String {
        self.input.to_string()
    }

    /// Opens it at its beginning.
    pub(crate) fn open(&self) -> Result<Reader, IngestError> {
        let inner: Box<dyn Read + Send> = match &self.input {
            Input::Stdin => Box::new(io::stdin()),
            Input::File(path) => Box::new(File::open(path).map_err(|e| self.open_error(e))?),
        };
        Ok(BufReader::with_capacity(BUFFER_BYTES, inner))
    }

    /// Opens a regular file at `offset`. Also gives its length now and the bytes before the offset.
    pub(crate) fn open_at(&self, offset: u64) -> Result<Opened, IngestError> {
        let Input::File(path) = &self.input else {
            unreachable!("standard input is a stream, and streams are read past");
        };
        let opened = (|| {
            let mut file = File::open(path)?;
            let length = file.metadata()?.len();
            let start = offset.saturating_sub(TAIL_BYTES as u64).min(length);
            file.seek(SeekFrom::Start(start))?;
            let mut before = Vec::new();
            file.by_ref().take(offset.min(length) - start).read_to_end(&mut before)?;
            let mut tail = Tail::default();
            tail.push(&before);
            let inner: Box<dyn Read + Send> = Box::new(file);
            Ok(Opened {
                reader: BufReader::with_capacity(BUFFER_BYTES, inner),
                length,
                tail,
                after_line_end: matches!(before.last(), None | Some(b'\n')),
            })
        })();
        opened.map_err(|source| self.open_error(source))
    }

    fn open_error(&self, source: io::Error) -> IngestError {
        IngestError::Open { file: self.name(), source }
    }
}

/// A regular file, opened in the middle.
pub(crate) struct Opened {
    pub(crate) reader: Reader,
    pub(crate) length: u64,
    pub(crate) tail: Tail,
    pub(crate) after_line_end: bool,
}

/// Hash of the list: number, order, kind and real path of each input. Streams all look alike.
pub(crate) fn fingerprint(inputs: &[Checked]) -> u64 {
    let seed = super::position::fnv1a(&(inputs.len() as u64).to_le_bytes());
    inputs.iter().fold(seed, |hash, input| {
        let path = input.canonical.as_ref().map_or(&b"-"[..], |path| path.as_os_str().as_bytes());
        let hash = fnv1a_on(hash, &[u8::from(input.is_stream())]);
        fnv1a_on(fnv1a_on(hash, &(path.len() as u64).to_le_bytes()), path)
    })
}
