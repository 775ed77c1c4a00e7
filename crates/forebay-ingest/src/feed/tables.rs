//! Tables: lines of JSON, encoded by a schema.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::batch::{Batch, LineId};
use super::pipeline::{Batches, PipelineOptions};
use super::position::Position;
use super::shuffle::Shuffle;
use super::source::Source;
use super::stage::{BatchData, Collected, Prepared, Prepares, Reads, Taken, Unit};
use crate::error::{IngestError, ItemError};
use crate::table::{TableBatch, TableEncoder};

/// A pipeline from lines of JSON to rows of features.
pub type TablePipeline = Batches<TableBatch>;

/// A batch of encoded rows.
pub type RowBatch = Batch<TableBatch>;

impl TablePipeline {
    /// Starts the threads. Blank lines are passed over and counted; the longest line is that of the source or of the
    /// encoder, whichever is shorter.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use forebay_ingest::{Input, PipelineOptions, Source, SourceOptions, TablePipeline};
    /// use forebay_ingest::table::{TableEncoder, TableOptions, TableSchema};
    ///
    /// let schema = TableSchema::from_json(r#"{"tensors": [{"name": "length", "columns": [
    ///     {"type": "numeric", "path": "n", "missing": {"fill": 0}}]}]}"#)?;
    /// let encoder = TableEncoder::new(&schema, TableOptions::default())?;
    /// # let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data");
    /// let source = Source::open(&[Input::from(format!("{data}/kjv.jsonl"))], SourceOptions::default())?;
    /// let mut pipeline = TablePipeline::tables(source, Arc::new(encoder), PipelineOptions::default())?;
    /// let batch = pipeline.next().expect("there are lines")?;
    /// assert_eq!(batch.data.dense_shape(0)?, [32, 1]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Pipeline::start`](crate::Pipeline::start); [`IngestError::BadOption`] also if a batch could pass
    /// [`TableOptions::max_batch_bytes`](crate::table::TableOptions::max_batch_bytes).
    pub fn tables(source: Source, encoder: Arc<TableEncoder>, options: PipelineOptions) -> Result<Self, IngestError> {
        if !encoder.takes(options.batch_rows) {
            return Err(IngestError::BadOption {
                option: "batch_rows",
                found: options.batch_rows.to_string(),
                expected: "rows whose dense tensors fit into max_batch_bytes of the encoder",
            });
        }
        Self::run(TableLines { source }, Encoding(encoder), options)
    }
}

impl BatchData for TableBatch {
    fn rows(&self) -> usize {
        self.rows()
    }
}

/// Lines, one after the other, and where each ends.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Lines {
    fn get(&self, item: usize) -> &[u8] {
        let start = item.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[item]]
    }
}

impl Collected for Lines {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn pick(&mut self, items: &[usize]) -> Self {
        let mut picked = Self::default();
        for &item in items {
            picked.bytes.extend_from_slice(self.get(item));
            picked.ends.push(picked.bytes.len());
        }
        picked
    }
}

struct TableLines {
    source: Source,
}

impl Reads for TableLines {
    type Raw = Lines;
    const UNIT: Unit = Unit::Line;
    const BATCH_BYTES: usize = usize::MAX;

    fn take(&mut self, into: &mut Lines) -> Result<Taken, IngestError> {
        let Some(line) = self.source.next_line()? else { return Ok(Taken::EndOfPass) };
        let id = LineId { file: line.file, line: line.number };
        if let Some(found_bytes) = line.too_long {
            return Ok(Taken::Bad(id, ItemError::TooLong { found_bytes, limit_bytes: line.limit }));
        }
        if line.bytes.trim_ascii().is_empty() {
            return Ok(Taken::Blank);
        }
        into.bytes.extend_from_slice(line.bytes);
        into.ends.push(into.bytes.len());
        Ok(Taken::Item(id))
    }

    super::lines_of_source!();
}

struct Encoding(Arc<TableEncoder>);

/// Lines that are encoded between two questions whether to stop.
const TURN: usize = 64;

impl Prepares for Encoding {
    type Raw = Lines;
    type Data = TableBatch;

    fn prepare(&self, raw: Lines, _first_only: bool, stop: &dyn Fn() -> bool) -> Option<Prepared<TableBatch>> {
        let lines: Vec<&[u8]> = (0..raw.len()).map(|item| raw.get(item)).collect();
        let mut data = self.0.encode_here(&lines, TURN, stop)?;
        let bad = data.take_bad().into_iter().map(|bad| (bad.index, ItemError::Row { reason: bad.reason })).collect();
        Some(Prepared { data, bad })
    }
}
