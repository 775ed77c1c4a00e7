//! Feeding text: two tensors of token ids and their mask.

use std::{borrow::Cow, ops::Range, sync::Arc};

use forebay::{ANY, DType, Loan, LoanError};
use forebay_ingest::{
    Batch, Batches, IngestError, Input, Pipeline, PipelineOptions, Position, Source, SourceOptions, Tokenizer, Tokens,
};

use super::kind::{Feeds, Tensor};
use crate::failure::Failure;

/// The field of the token ids.
const IDS: &str = "input_ids";
/// The field of the mask.
const MASK: &str = "attention_mask";

/// Lines, tokenized.
pub(super) struct Text {
    pub(super) inputs: Vec<Input>,
    pub(super) options: SourceOptions,
    pub(super) tokenizer: Arc<Tokenizer>,
}

/// These rows of a batch, as wide as they need.
fn part<'b>(batch: &'b Batch<Tokens>, rows: &Range<usize>) -> Cow<'b, Tokens> {
    if *rows == (0..batch.rows()) {
        Cow::Borrowed(&batch.data)
    } else {
        Cow::Owned(batch.data.pick(&rows.clone().collect::<Vec<_>>()))
    }
}

impl Feeds for Text {
    type Source = Source;
    type Data = Tokens;
    const NAME: &'static str = "tokens";
    const TOKENS: bool = true;

    fn largest(&self, batch: u32) -> Vec<Tensor> {
        let dims = [batch.into(), self.tokenizer.max_cols().map_or(ANY, |cols| cols as u64)];
        vec![Tensor::new(IDS, DType::I64, dims), Tensor::new(MASK, DType::I64, dims)]
    }

    fn open(&self) -> Result<Source, IngestError> {
        Source::open(&self.inputs, self.options.clone())
    }

    fn resume(&self, position: &Position) -> Result<Source, IngestError> {
        Source::resume(&self.inputs, self.options.clone(), position)
    }

    fn position(&self, source: &Source) -> Position {
        source.position()
    }

    fn name(&self, source: &Source, file: u32) -> String {
        source.name(file)
    }

    fn start(&self, source: Source, options: PipelineOptions) -> Result<Batches<Tokens>, IngestError> {
        Pipeline::start(source, Arc::clone(&self.tokenizer), options)
    }

    fn tensors(&self, batch: &Batch<Tokens>, rows: &Range<usize>) -> Vec<Tensor> {
        let part = part(batch, rows);
        let shape = [part.rows() as u64, part.cols() as u64];
        vec![Tensor::new(IDS, DType::I64, shape), Tensor::new(MASK, DType::I64, shape)]
    }

    fn write(&self, batch: &Batch<Tokens>, rows: &Range<usize>, loan: &mut Loan<'_>) -> Result<(), Failure> {
        let (ids, mask) = loan.tensors_mut::<i64, i64>(IDS, MASK).map_err(Failure::failed)?;
        part(batch, rows).write_into(ids, mask).map(drop).map_err(Failure::failed)
    }

    fn tokens(&self, batch: &Batch<Tokens>, rows: &Range<usize>) -> (u64, u64) {
        let part = part(batch, rows);
        (part.token_count() as u64, part.padded_count() as u64)
    }

    fn too_large(&self, error: &LoanError, batch: &Batch<Tokens>, pipeline: &Batches<Tokens>) -> String {
        let longest = batch.data.iter().zip(&batch.lines).max_by_key(|(row, _)| row.len());
        let line = longest.map_or(String::new(), |(row, id)| {
            format!("; its longest row has {} tokens ({} line {})", row.len(), pipeline.name(id.file), id.line)
        });
        format!("{error}{line}. On the command line: --slot-bytes, --max-length or a smaller --batch")
    }

    fn note(&self, slot_bytes: u64, batch: u32) -> Option<String> {
        self.tokenizer.max_cols().is_none().then(|| {
            format!(
                "this tokenizer sets no longest row: a slot holds {batch} rows of up to {} tokens; a batch with a longer \
                 line ends the feed, or with --on-error skip is sent in parts, and a row that has no room by itself is left \
                 out. --max-length truncates, --slot-bytes makes room",
                slot_bytes / (16 * u64::from(batch.max(1)))
            )
        })
    }
}
