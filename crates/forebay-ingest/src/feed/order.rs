//! In which order inputs are read, and how often.

use std::fmt;
use std::str::FromStr;

use super::position::fnv1a_on;
use super::shuffle::Shuffle;
use crate::error::IngestError;

/// How often the list of inputs is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// This many times, at least once.
    Times(u64),
    /// Until cancelled.
    Forever,
}

impl Default for Repeat {
    fn default() -> Self {
        Self::Times(1)
    }
}

impl fmt::Display for Repeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Times(times) => write!(f, "{times}"),
            Self::Forever => f.write_str("forever"),
        }
    }
}

impl FromStr for Repeat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("forever", _) => Ok(Self::Forever),
            (_, Ok(times)) if times > 0 => Ok(Self::Times(times)),
            _ => Err(format!("repeat is {text:?}, expected a number from 1 or \"forever\"; change the option")),
        }
    }
}

/// The order of the inputs, pass by pass.
#[derive(Debug)]
pub(crate) struct Order {
    shuffle: Option<Shuffle>,
    /// That of this pass.
    files: Vec<usize>,
    /// Where in `files` the source is.
    at: usize,
}

impl Order {
    /// That of the first pass over so many inputs, at its beginning.
    pub(crate) fn new(shuffle: Option<Shuffle>, inputs: usize) -> Self {
        let mut order = Self { shuffle, files: (0..inputs).collect(), at: 0 };
        order.start(0);
        order
    }

    /// Goes to the beginning of a pass; its first input.
    pub(crate) fn start(&mut self, pass: u64) -> u32 {
        if let Some(shuffle) = self.shuffle {
            self.files = shuffle.inputs(pass, self.files.len());
        }
        self.at = 0;
        self.first()
    }

    pub(crate) fn first(&self) -> u32 {
        self.files.first().map_or(0, |&file| file as u32)
    }

    /// Goes to an input in the middle of a pass.
    pub(crate) fn go_to(&mut self, pass: u64, file: u32) {
        self.start(pass);
        self.at = self.files.iter().position(|&other| other == file as usize).unwrap_or(0);
    }

    /// Goes to the next input of the pass, if there is one.
    pub(crate) fn next_in_pass(&mut self) -> Option<u32> {
        self.at += 1;
        self.files.get(self.at).map(|&file| file as u32)
    }

    /// Those of this pass before where it is.
    pub(crate) fn done(&self) -> &[usize] {
        &self.files[..self.at.min(self.files.len())]
    }

    /// The fingerprint of inputs in this order: a position is of use for no other.
    pub(crate) fn fingerprint(&self, inputs: u64) -> u64 {
        let Some(Shuffle { seed, block_items }) = self.shuffle else { return inputs };
        fnv1a_on(fnv1a_on(inputs, &seed.to_le_bytes()), &(block_items as u64).to_le_bytes())
    }
}

pub(crate) fn check_shuffle(shuffle: Option<Shuffle>) -> Result<(), IngestError> {
    match shuffle {
        Some(Shuffle { block_items, .. }) if block_items == 0 || block_items > 1 << 30 => Err(IngestError::BadOption {
            option: "block_items",
            found: block_items.to_string(),
            expected: "1 to 1073741824 items",
        }),
        _ => Ok(()),
    }
}
