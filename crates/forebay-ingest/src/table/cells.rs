//! What was found in a line: one cell for each value that the schema asks for, and the text and names they refer to.

use std::ops::Range;

use super::element::Number;
use super::error::RowError;
use super::hash::murmur3_32;
use super::plan::Plan;

/// A value of a line.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) enum Cell {
    /// Absent or null.
    #[default]
    Missing,
    Bool(bool),
    Number(Number),
    /// Place in the text.
    Text(Range<usize>),
    /// Places among the features.
    Features(Range<usize>),
}

impl Cell {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Bool(_) => "true or false",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::Features(_) => "a collection",
        }
    }
}

/// Cells of one line; used again for the next one.
#[derive(Debug, Default)]
pub(crate) struct Cells {
    pub(crate) cells: Vec<Cell>,
    /// Keys that were there, by node.
    seen: Vec<bool>,
    /// Strings that columns need, one after the other.
    pub(crate) text: String,
    /// Hash and value of each name.
    pub(crate) features: Vec<(i32, f64)>,
    /// Hash and place in the text of each name of the object being read.
    names: Vec<(i32, Range<usize>)>,
    /// One bit for each hash of them, taken modulo their number.
    met: Met,
    /// Whether a bit was set twice.
    meets: bool,
    /// What ended the reading, if it was not the JSON.
    pub(crate) problem: Option<RowError>,
}

/// Number of bits: few enough to clear, and enough that the names of most objects do not meet.
const MET_BITS: usize = 4096;

#[derive(Debug)]
struct Met([u64; MET_BITS / 64]);

impl Default for Met {
    fn default() -> Self {
        Self([0; MET_BITS / 64])
    }
}

/// Memory that is kept for the next line; a huge line gives back what it took.
const KEPT_BYTES: usize = 1 << 20;

impl Cells {
    pub(crate) fn clear(&mut self, plan: &Plan) {
        self.cells.clear();
        self.cells.resize(plan.cells.len(), Cell::Missing);
        self.seen.clear();
        self.seen.resize(plan.nodes.len(), false);
        self.text.clear();
        self.text.shrink_to(KEPT_BYTES);
        self.features.clear();
        self.features.shrink_to(KEPT_BYTES / 16);
        if !self.names.is_empty() {
            // An object that did not end.
            self.names.clear();
            (self.met, self.meets) = (Met::default(), false);
        }
        self.names.shrink_to(KEPT_BYTES / 16);
        self.problem = None;
    }

    /// Marks a key as seen; false if it was before.
    pub(crate) fn first_time(&mut self, node: usize) -> bool {
        !std::mem::replace(&mut self.seen[node], true)
    }

    /// Keeps a string.
    pub(crate) fn keep(&mut self, text: &str) -> Range<usize> {
        let start = self.text.len();
        self.text.push_str(text);
        start..self.text.len()
    }

    /// Adds a name that counts `value`. One that counts nothing is left out.
    pub(crate) fn add(&mut self, name: &[u8], value: f64) {
        if value != 0.0 {
            self.features.push((murmur3_32(name), value));
        }
    }

    /// Adds the name of this hash, which counts `value`.
    pub(crate) fn add_hash(&mut self, hash: i32, value: f64) {
        if value != 0.0 {
            self.features.push((hash, value));
        }
    }

    /// The hash of a name that was kept.
    pub(crate) fn hash(&self, name: Range<usize>) -> i32 {
        murmur3_32(&self.text.as_bytes()[name])
    }

    /// Adds `name=label`, which counts 1; `name` is what was kept last.
    pub(crate) fn add_label(&mut self, name: Range<usize>, label: &str) {
        self.text.push('=');
        self.text.push_str(label);
        let hash = murmur3_32(&self.text.as_bytes()[name.start..]);
        self.features.push((hash, 1.0));
        self.text.truncate(name.end);
    }

    /// Remembers a name of an object and its hash, to find duplicates.
    pub(crate) fn remember(&mut self, hash: i32, name: Range<usize>) {
        let bit = hash.cast_unsigned() as usize % MET_BITS;
        let word = &mut self.met.0[bit / 64];
        self.meets |= *word >> (bit % 64) & 1 == 1;
        *word |= 1 << (bit % 64);
        self.names.push((hash, name));
    }

    /// A name that was remembered twice, if there is one; forgets all.
    pub(crate) fn duplicate(&mut self) -> Option<String> {
        self.met = Met::default();
        if !std::mem::take(&mut self.meets) {
            self.names.clear();
            return None;
        }
        self.names.sort_unstable_by_key(|(hash, name)| (*hash, name.start));
        let text = &self.text;
        let mut twice = None;
        for same_hash in self.names.chunk_by(|a, b| a.0 == b.0) {
            // Names of one hash are few, unless somebody chose them so: sorted, that stays quick as well.
            if same_hash.len() > 1 && twice.is_none() {
                let mut names: Vec<&str> = same_hash.iter().map(|(_, name)| &text[name.clone()]).collect();
                names.sort_unstable();
                twice = names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0].to_owned());
            }
        }
        self.names.clear();
        twice
    }
}
