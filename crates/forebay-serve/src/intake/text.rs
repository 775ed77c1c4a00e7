//! Texts become `input_ids`, `attention_mask` and, if asked for, `token_type_ids`.

use std::sync::Arc;

use forebay::DType;
use forebay_ingest::{
    DetokenizeStream, OffsetUnit, RowOptions, Side, Text, Tokenizer, TokenizerError, TokenizerOptions, Tokens, Width,
};

use super::{Body, IntakeError, invalid};
use crate::{
    backend::{ItemError, Refusal, TensorInfo, TextItem, TokenizedText},
    config::TextInput,
    schedule::Size,
};

/// Makes text of ids that come one by one.
pub type Detokenizer = DetokenizeStream<Arc<Tokenizer>>;

const NAMES: [&str; 3] = ["input_ids", "attention_mask", "token_type_ids"];
/// Tokens of a text where nobody says how many it may have.
const DEFAULT_MAX_TOKENS: usize = 512;

pub(super) struct Texts {
    tokenizer: Arc<Tokenizer>,
    /// One token more than allowed where longer texts are refused, so that they are known.
    rows: RowOptions,
    max_tokens: usize,
    multiple_of: usize,
    count: usize,
}

impl Texts {
    pub(super) fn open(input: &TextInput, generate: bool) -> Result<Self, IntakeError> {
        let left = input.pad_left.unwrap_or(generate);
        let options = TokenizerOptions {
            max_length: input.max_tokens,
            pad_side: Some(if left { Side::Left } else { Side::Right }),
            add_special_tokens: input.special_tokens,
            ..TokenizerOptions::default()
        };
        let refused = |error: TokenizerError| match error {
            TokenizerError::MaxLengthTooSmall { .. } => IntakeError::new("model.input.max_tokens", error),
            error => IntakeError::new("model.input.tokenizer", error),
        };
        let tokenizer = Tokenizer::from_file(&input.tokenizer, &options).map_err(refused)?;
        let max_tokens = input.max_tokens.or(tokenizer.max_length()).unwrap_or(DEFAULT_MAX_TOKENS);
        let rows = RowOptions {
            max_length: Some(max_tokens + usize::from(!input.truncate)),
            width: Width::Longest,
            pad_to_multiple_of: 1,
            type_ids: input.token_type_ids,
            offsets: None,
            overflow: None,
            ..tokenizer.rows().clone()
        };
        if input.pad_to_multiple_of == 0 {
            return Err(IntakeError::new("model.input.pad_to_multiple_of", "0; expected 1 or more"));
        }
        // What no text can be tokenized with is found now.
        let limits = RowOptions { max_length: Some(max_tokens), ..rows.clone() };
        let tried = tokenizer.encode(&[Text::Single("a"), Text::Pair("a", "b")], &limits, None);
        tried.map_err(refused)?;
        let count = if input.token_type_ids { 3 } else { 2 };
        Ok(Self { tokenizer: Arc::new(tokenizer), rows, max_tokens, multiple_of: input.pad_to_multiple_of, count })
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn token_bytes(&self) -> u64 {
        self.count as u64 * 8
    }

    pub(super) fn multiple_of(&self) -> usize {
        self.multiple_of
    }

    pub(super) fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Tokens of the widest row.
    pub(super) fn max_width(&self) -> usize {
        self.max_tokens.next_multiple_of(self.multiple_of)
    }

    pub(super) fn tensors(&self) -> Vec<TensorInfo> {
        let one = |name: &&str| TensorInfo { name: (*name).to_owned(), dtype: DType::I64, shape: vec![None] };
        NAMES[..self.count].iter().map(one).collect()
    }

    pub(super) fn detokenizer(&self) -> Detokenizer {
        DetokenizeStream::new(Arc::clone(&self.tokenizer), true)
    }

    pub(super) fn prepare(&self, items: &[TextItem]) -> (Vec<Result<Size, ItemError>>, Body) {
        let texts: Vec<Text<'_>> = items
            .iter()
            .map(|item| match &item.pair {
                Some(pair) => Text::Pair(&item.text, pair),
                None => Text::Single(&item.text),
            })
            .collect();
        let tokens = match self.tokenizer.encode(&texts, &self.rows, None) {
            Ok(tokens) => tokens,
            Err(error) => {
                // The options were tried when the tokenizer was opened; what is left is told to every item.
                let items = items.iter().map(|_| Err(invalid(&error))).collect();
                return (items, Body::Images(Vec::new()));
            }
        };
        let mut sizes: Vec<Result<Size, ItemError>> = tokens.iter().map(|row| self.size(row.len())).collect();
        for error in tokens.errors() {
            if let Some(size) = sizes.get_mut(error.row) {
                *size = Err(invalid(&error.reason));
            }
        }
        (sizes, Body::Texts(tokens))
    }

    fn size(&self, tokens: usize) -> Result<Size, ItemError> {
        let limit = self.max_tokens;
        if tokens > limit {
            return Err(invalid(format!(
                "the text has more than {limit} tokens, as many are allowed; send a shorter one"
            )));
        }
        Ok(Size { tokens, ..Size::default() })
    }

    pub(super) fn tokenize(&self, texts: &[String], special_tokens: bool) -> Result<Vec<TokenizedText>, Refusal> {
        let options = RowOptions {
            max_length: None,
            width: Width::Longest,
            add_special_tokens: special_tokens,
            offsets: Some(OffsetUnit::Bytes),
            type_ids: false,
            ..self.rows.clone()
        };
        let given: Vec<Text<'_>> = texts.iter().map(|text| Text::Single(text)).collect();
        let refused =
            |item: Option<usize>, message: String| Refusal::Invalid { field: "texts".to_owned(), item, message };
        let tokens = self.tokenizer.encode(&given, &options, None).map_err(|e| refused(None, e.to_string()))?;
        let tokens = tokens.complete().map_err(|e| refused(Some(e.row), e.reason.to_string()))?;
        let mut offsets = tokens.offsets().unwrap_or_default().iter();
        let one = |ids: &[u32]| TokenizedText {
            ids: ids.to_vec(),
            tokens: ids.iter().map(|&id| self.tokenizer.id_to_token(id).unwrap_or_default()).collect(),
            offsets: offsets.by_ref().take(ids.len()).copied().collect(),
        };
        Ok(tokens.iter().map(one).collect())
    }
}

/// Writes row `row` of tensor `tensor`.
pub(super) fn write(tokens: &Tokens, tensor: usize, row: usize, to: &mut [u8]) -> Result<(), String> {
    if row >= tokens.rows() {
        return Err(format!("no row {row}"));
    }
    let to: &mut [i64] = bytemuck::try_cast_slice_mut(to).map_err(|e| e.to_string())?;
    let done = match tensor {
        0 => tokens.write_row(row, to),
        1 => tokens.write_row_mask(row, to),
        _ => tokens.write_row_type_ids(row, to),
    };
    done.map_err(|e| e.to_string())
}
