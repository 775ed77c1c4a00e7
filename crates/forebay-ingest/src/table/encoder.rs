//! Lines in, rows out, on any number of threads.

use std::sync::Arc;

use super::batch::{Part, Stored, TableBatch};
use super::cells::Cells;
use super::element::{IndexType, NumberType};
use super::error::{RowError, SchemaError, TableError};
use super::plan::Plan;
use super::schema::{Layout, TableSchema};
use super::{BadRow, read, row};
use crate::work::Work;

/// Limits of an encoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableOptions {
    /// Longest line in bytes; a longer one is an error of that line. 1 MiB, if nothing is said.
    pub max_line_bytes: usize,
    /// Most bytes of dense rows in a batch, see [`TableError::TooLarge`]. 1 GiB, if nothing is said.
    pub max_batch_bytes: usize,
}

impl Default for TableOptions {
    fn default() -> Self {
        Self { max_line_bytes: 1 << 20, max_batch_bytes: 1 << 30 }
    }
}

/// Encodes lines of JSON by a schema. Shared between threads freely.
///
/// ```
/// use forebay_ingest::Work;
/// use forebay_ingest::table::{TableEncoder, TableOptions, TableSchema, split_lines};
///
/// let schema = TableSchema::from_json(r#"{"tensors": [{"name": "x", "columns": [
///     {"type": "numeric", "path": "a.b"}, {"type": "one_hot", "path": "c", "vocabulary": ["yes", "no"]}
/// ]}]}"#)?;
/// let encoder = TableEncoder::new(&schema, TableOptions::default())?;
/// let lines = split_lines(b"{\"a\": {\"b\": 7}, \"c\": \"no\"}\n{\"c\": 1}\n");
/// let batch = encoder.encode(&lines, &Work::shared())?;
/// let mut x = vec![0.0f32; 3 * batch.rows()];
/// batch.write_dense(0, &mut x)?;
/// assert_eq!(x, [7.0, 0.0, 1.0]);
/// assert_eq!(batch.bad()[0].to_string(), "item 1: a.b is missing, and its rule for missing values is \"error\"");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct TableEncoder {
    plan: Arc<Plan>,
    options: TableOptions,
}

/// What the memory of lines is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// Nobody writes to it.
    Steady,
    /// Somebody may.
    Written,
}

/// Bytes and number of lines in a job.
const JOB_BYTES: usize = 64 << 10;
const JOB_LINES: usize = 1024;

/// A tensor that an encoder makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorSpec<'a> {
    /// Its name.
    pub name: &'a str,
    /// Dense or sparse.
    pub layout: Layout,
    /// Type of its elements.
    pub dtype: NumberType,
    /// Type of offsets and column numbers, if it is sparse.
    pub indices: IndexType,
    /// Number of columns.
    pub columns: usize,
}

impl TableEncoder {
    /// An encoder for `schema`.
    ///
    /// # Errors
    /// [`SchemaError`] if the schema contradicts itself.
    pub fn new(schema: &TableSchema, options: TableOptions) -> Result<Self, SchemaError> {
        Ok(Self { plan: Arc::new(Plan::new(schema)?), options })
    }

    /// The tensors that it makes, in the order of their indices.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorSpec<'_>> {
        self.plan.tensors.iter().map(|tensor| TensorSpec {
            name: &tensor.name,
            layout: tensor.layout,
            dtype: tensor.dtype,
            indices: tensor.indices,
            columns: tensor.width,
        })
    }

    /// Encodes lines, without their line ends; rows are in the order of the lines. Bad ones are left out, see
    /// [`TableBatch::bad`].
    ///
    /// # Errors
    /// [`TableError`] if the rows would not fit the memory allowed, or the work was stopped.
    pub fn encode(&self, lines: &[&[u8]], work: &Work<'_>) -> Result<TableBatch, TableError> {
        self.encode_from(lines, Memory::Steady, work)
    }

    /// As [`encode`](Self::encode), of lines that somebody may write to meanwhile, such as those of a map of a file: each is
    /// copied before it is looked at, so that what is parsed is what was found to be UTF-8. A line that changes is the old one,
    /// the new one or a mixture. Extra memory: the longest line, for each thread.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_copied(&self, lines: &[&[u8]], work: &Work<'_>) -> Result<TableBatch, TableError> {
        self.encode_from(lines, Memory::Written, work)
    }

    fn encode_from(&self, lines: &[&[u8]], memory: Memory, work: &Work<'_>) -> Result<TableBatch, TableError> {
        let (bytes, max) = (self.dense_bytes(lines.len()), self.options.max_batch_bytes);
        if bytes > max as u128 {
            return Err(TableError::TooLarge { lines: lines.len(), bytes, max });
        }
        let jobs = jobs(lines);
        let parts = work.map(jobs.into_iter(), |(first, lines)| self.part(first, lines, memory))?;
        Ok(TableBatch::new(Arc::clone(&self.plan), lines.len(), parts))
    }

    /// Bytes of the dense rows of so many lines.
    fn dense_bytes(&self, lines: usize) -> u128 {
        let dense = self.plan.tensors.iter().filter(|tensor| tensor.layout == Layout::Dense);
        dense.map(|tensor| tensor.width as u128 * tensor.dtype.size() as u128).sum::<u128>() * lines as u128
    }

    /// Whether a batch of so many lines is within the limits.
    #[cfg(feature = "feed")]
    pub(crate) fn takes(&self, lines: usize) -> bool {
        self.dense_bytes(lines) <= self.options.max_batch_bytes as u128
    }

    /// As [`encode`](Self::encode), on this thread, of lines that are within the limits. `None` if `stop`, asked every
    /// `turn` lines, said yes.
    #[cfg(feature = "feed")]
    pub(crate) fn encode_here(&self, lines: &[&[u8]], turn: usize, stop: &dyn Fn() -> bool) -> Option<TableBatch> {
        let mut parts = Vec::new();
        for (at, lines) in lines.chunks(turn).enumerate() {
            if stop() {
                return None;
            }
            parts.push(self.part(at * turn, lines, Memory::Steady));
        }
        Some(TableBatch::new(Arc::clone(&self.plan), lines.len(), parts))
    }

    fn part(&self, first: usize, lines: &[&[u8]], memory: Memory) -> Part {
        let stored = self.plan.tensors.iter().map(Stored::new).collect();
        let mut part = Part { rows: 0, stored, bad: Vec::new() };
        let (mut cells, mut entries) = (Cells::default(), Vec::new());
        let mut copy = Vec::new();
        for (index, line) in lines.iter().enumerate() {
            let copy = (memory == Memory::Written).then_some(&mut copy);
            let read = self.read(line, copy, &mut cells);
            match read.and_then(|()| row::append(&self.plan, &cells, &mut entries, &mut part.stored)) {
                Ok(()) => part.rows += 1,
                Err(reason) => part.bad.push(BadRow { index: first + index, reason }),
            }
        }
        part
    }

    fn read(&self, line: &[u8], copy: Option<&mut Vec<u8>>, cells: &mut Cells) -> Result<(), RowError> {
        let max = self.options.max_line_bytes;
        if line.len() > max {
            return Err(RowError::TooLong { length: line.len(), max });
        }
        let line = copy.map_or(line, |copy| copied(line, copy));
        // What is found here the parser relies on, without looking again.
        let text = std::str::from_utf8(line).map_err(|error| {
            let at = error.valid_up_to();
            RowError::NotUtf8 { at: at + 1, byte: line[at] }
        })?;
        cells.clear(&self.plan);
        let mut json = serde_json::Deserializer::from_str(text);
        let result = read::read(&mut json, &self.plan, cells).and_then(|()| json.end());
        result.map_err(|error| cells.problem.take().unwrap_or_else(|| RowError::BadJson { detail: error.to_string() }))
    }
}

/// The line as it is now, in `copy`: by its lifetime nothing of it lies elsewhere.
fn copied<'c>(line: &[u8], copy: &'c mut Vec<u8>) -> &'c [u8] {
    copy.clear();
    copy.extend_from_slice(line);
    copy
}

/// Cuts lines into jobs, each with the index of its first line. A long line is a job of its own.
fn jobs<'l, 'b>(lines: &'l [&'b [u8]]) -> Vec<(usize, &'l [&'b [u8]])> {
    let mut jobs = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, line) in lines.iter().enumerate() {
        bytes += line.len();
        if bytes >= JOB_BYTES || at + 1 - start >= JOB_LINES {
            jobs.push((start, &lines[start..=at]));
            (start, bytes) = (at + 1, 0);
        }
    }
    if start < lines.len() {
        jobs.push((start, &lines[start..]));
    }
    jobs
}

/// Cuts text at its line ends, LF or CR LF. A last line needs none; nothing is left out.
#[must_use]
pub fn split_lines(text: &[u8]) -> Vec<&[u8]> {
    let text = text.strip_suffix(b"\n").or((!text.is_empty()).then_some(text));
    text.map_or(Vec::new(), |text| {
        text.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copied_lines_give_what_lines_give() {
        let schema = r#"{"tensors": [{"name": "x", "columns": [
            {"type": "one_hot", "path": "c", "vocabulary": ["yes", "nö"]}, {"type": "numeric", "path": "n"}
        ]}]}"#;
        let schema = TableSchema::from_json(schema).unwrap();
        let encoder = TableEncoder::new(&schema, TableOptions { max_line_bytes: 64, ..Default::default() }).unwrap();
        let long = [b' '; 65];
        // Short ones behind longer ones: what is left of those must not count.
        let good: [&[u8]; 3] =
            [b"{\"c\": \"yes\",    \"n\": 1.5}", "{\"c\":\"nö\",\"n\":2}".as_bytes(), b"{\"n\":3,\"c\":\"yes\"}"];
        let lines =
            [&[good[0], &long, b"{\"c\": \"\xc3\"}", b"{", good[1], b"", good[2]][..], &[good[0]; 3000]].concat();
        let work = Work::shared();
        let (steady, copied) = (encoder.encode(&lines, &work).unwrap(), encoder.encode_copied(&lines, &work).unwrap());
        assert_eq!((steady.rows(), steady.bad().len()), (3003, 4));
        assert!(copied.items().eq(steady.items()));
        let bad = |batch: &TableBatch| batch.bad().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(bad(&copied), bad(&steady));
        let rows = |batch: &TableBatch| {
            let mut rows = vec![0f32; 3 * batch.rows()];
            batch.write_dense(0, &mut rows).unwrap();
            rows
        };
        assert_eq!(rows(&copied), rows(&steady));
    }

    #[test]
    fn a_copied_line_is_looked_at_in_its_copy_alone() {
        let schema =
            TableSchema::from_json(r#"{"tensors": [{"name": "x", "columns": [{"type": "numeric", "path": "n"}]}]}"#);
        let encoder =
            TableEncoder::new(&schema.unwrap(), TableOptions { max_line_bytes: 9, ..Default::default() }).unwrap();
        let mut copy = Vec::new();
        let mut cells = Cells::default();
        let mut read = |line: &[u8], copy: &mut Vec<u8>| encoder.read(line, Some(copy), &mut cells);
        for line in [&b"{\"n\": 1}"[..], b"{}", b"\xff", b"{\"n\":12}"] {
            let _ = read(line, &mut copy);
            assert_eq!(copy, line);
        }
        // Memory for a line that is refused is not asked for.
        assert!(matches!(read(&[b' '; 1000], &mut copy), Err(RowError::TooLong { length: 1000, max: 9 })));
        assert!(copy.capacity() < 1000);
    }
}
