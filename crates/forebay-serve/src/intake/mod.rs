//! What requests bring becomes rows of tensors: one file for each kind of item, all of the work done by forebay-ingest.
//!
//! ```text
//!   Input ──▶ prepare ──▶ Prepared: a size or an error for each item, and what rows are written from
//!                            │ the schedule puts items of several calls together
//!                            ▼
//!             fields, write ──▶ a loan: one row for each item, padded to one width
//! ```
//!
//! A bad item is an error of its own, with its index; its neighbours do not notice. What is wrong with the call as a
//! whole (no such tensor, an unknown parameter) is a [`Refusal`].

mod image;
mod parameters;
mod table;
mod tensors;
mod text;

use forebay::{ANY, DType, FieldSpec, Schema, service::DetachedRequest};
use serde_json::{Map, Value};

use self::{image::Images, parameters::Parameters, table::Table, tensors::Tensors, text::Texts};
use crate::{
    backend::{Input, ItemError, ItemErrorKind, ParameterInfo, Refusal, Takes, TensorInfo, TokenizedText},
    config::{Config, InputConfig},
    schedule::Size,
};

pub use self::text::Detokenizer;

/// Slots get at most this many bytes unless the configuration says how many.
const MOST_SLOT_BYTES: u64 = 64 << 20;
/// What fields are rounded up to in a slot.
const ALIGN: u64 = forebay::ALIGN;

/// Why a model's inputs cannot be prepared: the configuration, or a file that it names.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {what}")]
pub struct IntakeError {
    /// The key of the configuration.
    pub key: String,
    /// What is wrong, what is expected.
    pub what: String,
}

impl IntakeError {
    fn new(key: impl Into<String>, what: impl ToString) -> Self {
        Self { key: key.into(), what: what.to_string() }
    }
}

enum Kind {
    Texts(Texts),
    Images(Images),
    Tensors(Tensors),
    Rows(Table),
}

/// Turns what requests bring into rows of tensors. Shared between threads freely.
pub struct Intake {
    kind: Kind,
    parameters: Parameters,
    schema: Schema,
    slot_bytes: u64,
    max_bytes: u64,
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake")
            .field("schema", &self.schema)
            .field("slot_bytes", &self.slot_bytes)
            .finish_non_exhaustive()
    }
}

/// A call's items, ready to be written.
#[derive(Debug)]
pub struct Prepared {
    /// What each takes, or why it cannot be used.
    pub items: Vec<Result<Size, ItemError>>,
    body: Body,
    parameters: parameters::Values,
}

#[derive(Debug)]
enum Body {
    Texts(forebay_ingest::Tokens),
    Images(Vec<Option<image::Pixels>>),
    Tensors(Vec<tensors::Rows>),
    Rows(table::Rows),
}

/// A call of which nothing but its parameters has been read.
#[derive(Debug)]
pub(crate) struct Begun(parameters::Values);

/// An image of a call, prepared by itself; or what is wrong with it.
#[derive(Debug)]
pub(crate) struct Image(Result<image::Pixels, ItemError>);

/// One row of what was prepared.
pub type RowOf<'p> = (&'p Prepared, usize);

/// A tensor of a batch: name, type, dims.
#[derive(Debug)]
pub struct Field<'i> {
    name: &'i str,
    dtype: DType,
    shape: Vec<u64>,
}

impl Field<'_> {
    /// As a loan takes it.
    #[must_use]
    pub fn spec(&self) -> FieldSpec<'_> {
        FieldSpec::new(self.name, self.dtype, &self.shape)
    }
}

/// An item that cannot be used.
fn invalid(message: impl ToString) -> ItemError {
    ItemError { kind: ItemErrorKind::Invalid, message: message.to_string() }
}

fn refuse(field: impl Into<String>, message: impl ToString) -> Refusal {
    Refusal::Invalid { field: field.into(), item: None, message: message.to_string() }
}

impl Intake {
    /// Reads the files that the model's configuration names.
    ///
    /// # Errors
    /// [`IntakeError`]: one of them cannot be used, or what the configuration says does not fit together.
    pub fn open(config: &Config) -> Result<Self, IntakeError> {
        let model = &config.model;
        let parameters = Parameters::new(&model.parameters)?;
        let kind = match &model.input {
            InputConfig::Text(input) => Kind::Texts(Texts::open(input, model.generate)?),
            InputConfig::Image(input) => Kind::Images(Images::open(input)?),
            InputConfig::Tensors { tensors } => Kind::Tensors(Tensors::new(tensors)?),
            InputConfig::Table(input) => Kind::Rows(Table::open(input, config.limits.body_bytes)?),
        };
        let mut builder = Schema::builder("forebay.serve", 1, 0);
        let own = kind.tensors();
        for tensor in own.iter().chain(&parameters.tensors()) {
            let dims: Vec<u64> =
                std::iter::once(ANY).chain(tensor.shape.iter().map(|dim| dim.unwrap_or(ANY))).collect();
            builder = builder.field(&tensor.name, tensor.dtype, &dims);
        }
        let schema = builder.build().map_err(|e| IntakeError::new("model", e))?;
        let mut intake = Self { kind, parameters, schema, slot_bytes: 0, max_bytes: 0 };
        intake.set_sizes(config)?;
        Ok(intake)
    }

    /// How large slots and batches are.
    fn set_sizes(&mut self, config: &Config) -> Result<(), IntakeError> {
        let (batch, rounding) = (&config.batch, ALIGN * self.schema.fields().len() as u64);
        let items = batch.max_items.max(1) as u64;
        let one = self.largest_item(config).map(|bytes| bytes.saturating_add(rounding));
        let all = match &self.kind {
            // As many items as may be share the tokens that may be.
            Kind::Texts(texts) => {
                let tokens = batch.max_tokens.max(texts.max_width()) as u64;
                Some(tokens * self.token_bytes() + items * self.parameters.bytes())
            }
            _ => self.largest_item(config).map(|bytes| bytes.saturating_mul(items)),
        };
        let all = all.map_or(MOST_SLOT_BYTES, |all| all.saturating_add(rounding));
        let slot_bytes = config.worker.slot_bytes.unwrap_or_else(|| {
            let wanted = batch.max_bytes.map_or(all.min(MOST_SLOT_BYTES), |bytes| bytes.saturating_add(rounding));
            wanted.max(one.unwrap_or(0))
        });
        if let Some(one) = one.filter(|&one| one > slot_bytes) {
            let what = format!("{slot_bytes} bytes, one item alone needs {one}; raise it");
            return Err(IntakeError::new("worker.slot_bytes", what));
        }
        self.slot_bytes = slot_bytes;
        let room = slot_bytes.saturating_sub(rounding);
        self.max_bytes = batch.max_bytes.map_or(room, |bytes| bytes.min(room));
        Ok(())
    }

    /// Bytes of the largest item, if there is a bound.
    fn largest_item(&self, _config: &Config) -> Option<u64> {
        let own = match &self.kind {
            Kind::Texts(texts) => Some(texts.max_width() as u64 * texts.token_bytes()),
            Kind::Images(images) => images.fixed_bytes(),
            Kind::Tensors(tensors) => tensors.largest(),
            Kind::Rows(table) => Some(table.row_bytes()),
        };
        own.map(|own| own.saturating_add(self.parameters.bytes()))
    }

    /// The fields of every batch.
    #[must_use]
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Bytes of a slot for the largest batch.
    #[must_use]
    pub fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// Bytes that the items of a batch may have.
    #[must_use]
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Bytes of one padded token; 0 where there are none.
    #[must_use]
    pub fn token_bytes(&self) -> u64 {
        match &self.kind {
            Kind::Texts(texts) => texts.token_bytes(),
            _ => 0,
        }
    }

    /// What widths are rounded up to.
    #[must_use]
    pub fn pad_to_multiple_of(&self) -> usize {
        match &self.kind {
            Kind::Texts(texts) => texts.multiple_of(),
            _ => 1,
        }
    }

    /// What items are.
    #[must_use]
    pub fn takes(&self) -> Takes {
        match self.kind {
            Kind::Texts(_) => Takes::Texts,
            Kind::Images(_) => Takes::Images,
            Kind::Tensors(_) => Takes::Tensors,
            Kind::Rows(_) => Takes::Rows,
        }
    }

    /// The tensors that workers are given, without those of parameters.
    #[must_use]
    pub fn tensors(&self) -> Vec<TensorInfo> {
        self.kind.tensors()
    }

    /// Parameters that requests may set.
    #[must_use]
    pub fn parameters(&self) -> &[ParameterInfo] {
        self.parameters.all()
    }

    /// The value that a parameter has in a call; `None` if there is no such parameter.
    #[must_use]
    pub fn parameter(&self, prepared: &Prepared, name: &str) -> Option<f64> {
        let place = self.parameters.all().iter().position(|own| own.name == name)?;
        prepared.parameters.number(place)
    }

    /// Tokens that a text may have.
    #[must_use]
    pub fn max_tokens(&self) -> Option<usize> {
        match &self.kind {
            Kind::Texts(texts) => Some(texts.max_tokens()),
            _ => None,
        }
    }

    /// The tokens of texts with their places; `None` if items are no texts.
    #[must_use]
    pub fn tokenize(&self, texts: &[String], special_tokens: bool) -> Option<Result<Vec<TokenizedText>, Refusal>> {
        match &self.kind {
            Kind::Texts(own) => Some(own.tokenize(texts, special_tokens)),
            _ => None,
        }
    }

    /// Makes text of ids that come one by one; `None` if items are no texts.
    #[must_use]
    pub fn detokenizer(&self) -> Option<Detokenizer> {
        match &self.kind {
            Kind::Texts(texts) => Some(texts.detokenizer()),
            _ => None,
        }
    }

    /// Whether preparing this takes so little that waking another thread for it would take longer.
    #[must_use]
    pub fn is_quick(&self, input: &Input) -> bool {
        const QUICK_TEXT_BYTES: usize = 4 << 10;
        match input {
            Input::Texts(items) => {
                let bytes = items.iter().map(|item| item.text.len() + item.pair.as_ref().map_or(0, String::len));
                bytes.sum::<usize>() + 16 * items.len() <= QUICK_TEXT_BYTES
            }
            Input::Images(_) => false,
            // Looked at, not copied.
            Input::Tensors(_) => true,
            Input::Rows(rows) => rows.iter().map(bytes::Bytes::len).sum::<usize>() <= 2 * QUICK_TEXT_BYTES,
        }
    }

    /// Bytes that the prepared items will take, about.
    #[must_use]
    pub fn estimate(&self, input: &Input) -> u64 {
        match (input, &self.kind) {
            (Input::Texts(items), _) => {
                items.iter().map(|item| (item.text.len() + item.pair.as_ref().map_or(0, String::len)) as u64).sum()
            }
            (Input::Images(items), Kind::Images(images)) => {
                items.iter().map(|image| images.bytes_of(image, self.max_bytes)).sum()
            }
            (Input::Images(items), _) => items.len() as u64,
            (Input::Tensors(tensors), _) => tensors.iter().map(|tensor| tensor.bytes.len() as u64).sum(),
            (Input::Rows(rows), Kind::Rows(table)) => rows.len() as u64 * table.row_bytes(),
            (Input::Rows(rows), _) => rows.len() as u64,
        }
    }

    /// Prepares the items of a call, on this thread.
    ///
    /// # Errors
    /// [`Refusal::Invalid`], [`Refusal::Unsupported`], [`Refusal::TooLarge`]: the call as a whole cannot be used.
    pub fn prepare(&self, input: Input, parameters: &Map<String, Value>) -> Result<Prepared, Refusal> {
        let begun = self.begin(parameters)?;
        let (items, body) = match (input, &self.kind) {
            (Input::Texts(items), Kind::Texts(texts)) => texts.prepare(&items),
            (Input::Images(items), Kind::Images(_)) => {
                return self.put_together(begun, items.iter().map(|image| self.image(image)));
            }
            (Input::Tensors(items), Kind::Tensors(tensors)) => tensors.prepare(items)?,
            (Input::Rows(items), Kind::Rows(table)) => table.prepare(&items)?,
            _ => return Err(Refusal::Unsupported(format!("this model takes {}; send those", self.kind.items()))),
        };
        self.finish(begun, items, body)
    }

    /// Reads what concerns a call as a whole.
    pub(crate) fn begin(&self, parameters: &Map<String, Value>) -> Result<Begun, Refusal> {
        self.parameters.read(parameters).map(Begun)
    }

    /// Prepares one image: those of a call may be prepared on several threads, and are [put
    /// together](Self::put_together) then.
    pub(crate) fn image(&self, image: &[u8]) -> Image {
        match &self.kind {
            Kind::Images(images) => Image(images.prepare(image, self.max_bytes)),
            kind => Image(Err(invalid(format!("an image; this model takes {}", kind.items())))),
        }
    }

    /// The images of a call, all of them, in their order.
    pub(crate) fn put_together(
        &self,
        begun: Begun,
        images: impl IntoIterator<Item = Image>,
    ) -> Result<Prepared, Refusal> {
        let (items, body) = image::put_together(images.into_iter().map(|image| image.0));
        self.finish(begun, items, body)
    }

    /// Refuses what no batch has room for.
    fn finish(
        &self,
        Begun(parameters): Begun,
        mut items: Vec<Result<Size, ItemError>>,
        body: Body,
    ) -> Result<Prepared, Refusal> {
        let room = self.max_bytes;
        for item in &mut items {
            if let Ok(size) = item {
                size.bytes += self.parameters.bytes();
                let bytes = size.bytes + (size.tokens as u64).saturating_mul(self.token_bytes());
                if bytes > room {
                    *item = Err(invalid(format!(
                        "the item needs {bytes} bytes in a batch, there is room for {room}; send a smaller one"
                    )));
                }
            }
        }
        if items.is_empty() {
            return Err(refuse("inputs", "no items; send at least one"));
        }
        Ok(Prepared { items, body, parameters })
    }

    /// The tensors of a batch of these rows; they are of one group. `width`: tokens of the longest, rounded up.
    #[must_use]
    pub fn fields(&self, rows: &[RowOf<'_>], width: usize) -> Vec<Field<'_>> {
        let count = rows.len() as u64;
        let own = self.kind.count();
        let fields = self.schema.fields().iter().enumerate().map(|(index, field)| {
            let mut shape = vec![count];
            if index < own
                && let Some(&(first, row)) = rows.first()
            {
                match &first.body {
                    Body::Texts(_) => shape.push(width.max(1) as u64),
                    Body::Images(images) => {
                        shape.extend(images.get(row).and_then(Option::as_ref).map_or([0; 3], image::Pixels::shape));
                    }
                    Body::Tensors(tensors) => shape.extend(tensors.get(index).map_or(&[][..], tensors::Rows::shape)),
                    Body::Rows(rows) => shape.push(rows.width(index)),
                }
            }
            Field { name: field.name.as_str(), dtype: field.dtype, shape }
        });
        fields.collect()
    }

    /// Writes rows into a loan made of their [`fields`](Self::fields).
    ///
    /// # Errors
    /// A text, if the loan is of other fields: an error in this program.
    pub fn write(&self, rows: &[RowOf<'_>], loan: &mut DetachedRequest) -> Result<(), String> {
        let own = self.kind.count();
        for index in 0..self.schema.fields().len() {
            let name = self.schema.fields()[index].name.as_str();
            let place = loan.index_of(name).map_err(|e| e.to_string())?;
            let bytes = loan.bytes_mut(place).ok_or_else(|| format!("no field {name}"))?;
            if bytes.is_empty() {
                continue;
            }
            if !bytes.len().is_multiple_of(rows.len().max(1)) {
                return Err(format!("{} bytes of {name} for {} rows", bytes.len(), rows.len()));
            }
            let each = bytes.len() / rows.len().max(1);
            for (to, &(prepared, row)) in bytes.chunks_exact_mut(each).zip(rows) {
                if index < own {
                    prepared.body.write(index, row, to)?;
                } else {
                    prepared.parameters.write(index - own, to)?;
                }
            }
        }
        Ok(())
    }
}

impl Kind {
    /// What items are, in words.
    fn items(&self) -> &'static str {
        match self {
            Self::Texts(_) => "texts",
            Self::Images(_) => "images",
            Self::Tensors(_) => "tensors",
            Self::Rows(_) => "JSON objects",
        }
    }

    fn tensors(&self) -> Vec<TensorInfo> {
        match self {
            Self::Texts(texts) => texts.tensors(),
            Self::Images(images) => images.tensors(),
            Self::Tensors(tensors) => tensors.tensors(),
            Self::Rows(table) => table.tensors(),
        }
    }

    /// Tensors, without those of parameters.
    fn count(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.count(),
            Self::Images(_) => 1,
            Self::Tensors(tensors) => tensors.count(),
            Self::Rows(table) => table.count(),
        }
    }
}

impl Body {
    fn write(&self, tensor: usize, row: usize, to: &mut [u8]) -> Result<(), String> {
        match self {
            Self::Texts(tokens) => text::write(tokens, tensor, row, to),
            Self::Images(images) => {
                let pixels = images.get(row).and_then(Option::as_ref).ok_or("no such image")?;
                copy(pixels.bytes(), to)
            }
            Self::Tensors(tensors) => copy(tensors.get(tensor).ok_or("no such tensor")?.row(row), to),
            Self::Rows(rows) => copy(rows.row(tensor, row), to),
        }
    }
}

fn copy(from: &[u8], to: &mut [u8]) -> Result<(), String> {
    if from.len() != to.len() {
        return Err(format!("{} bytes where there is room for {}", from.len(), to.len()));
    }
    to.copy_from_slice(from);
    Ok(())
}

#[cfg(test)]
mod tests;
