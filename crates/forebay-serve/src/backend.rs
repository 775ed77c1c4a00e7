//! The border between HTTP and the engine: a call goes in, rows of tensors or a refusal come out.
//!
//! Nothing here knows of sockets, status codes, rings or processes. What is refused says why in words that may be shown
//! to a client; which status code that is, HTTP decides.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Instant};

use bytes::Bytes;
use forebay::DType;
use futures_core::Stream;
use serde_json::{Map, Value};

/// A future that HTTP awaits.
pub type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;
/// The parts of a streamed answer, in order. Dropping it cancels what is not done.
pub type Parts = Pin<Box<dyn Stream<Item = Result<Part, Refusal>> + Send>>;

/// A model, as HTTP sees it.
pub trait Backend: Send + Sync + 'static {
    /// What the model is called, takes and gives. Does not change while the process lives.
    fn model(&self) -> &ModelInfo;

    /// Answers all items of `call`. Dropping the future cancels them: they leave the queue, and a worker that has them is
    /// told.
    ///
    /// An item that cannot be used fails alone, inside the [`Answer`]; a [`Refusal`] concerns the whole call.
    fn infer(&self, call: Call) -> Boxed<Result<Answer, Refusal>>;

    /// Answers the items of `call` bit by bit; of models that [`generate`](ModelInfo::generates).
    fn generate(&self, call: Call) -> Boxed<Result<Parts, Refusal>>;

    /// The tokens of texts, for those who ask for nothing else; `None` if the model takes no text.
    fn tokenize(
        &self,
        texts: Vec<String>,
        special_tokens: bool,
        deadline: Instant,
    ) -> Boxed<Option<Result<Vec<TokenizedText>, Refusal>>>;

    /// Whether requests can be answered now.
    fn health(&self) -> Health;

    /// What goes on inside, for the status page and the metrics. Cheap: asked for at every scrape.
    fn status(&self) -> Status;

    /// Replaces the workers one after the other without a failed request. Ends when all are new ones.
    fn reload(&self) -> Boxed<Result<(), String>>;
}

/// What a model is called, takes and gives.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// Its name in paths.
    pub name: String,
    /// Its version, as the configuration has it.
    pub version: String,
    /// What items are.
    pub takes: Takes,
    /// The tensors that workers are given; dims are those of one item, `None` where it varies.
    pub inputs: Vec<TensorInfo>,
    /// The tensors that workers give, where the configuration says; else empty.
    pub outputs: Vec<TensorInfo>,
    /// Parameters that a request may set.
    pub parameters: Vec<ParameterInfo>,
    /// Whether answers may be streamed as tokens.
    pub generates: bool,
    /// Items that one call may have.
    pub max_items: usize,
    /// Tokens that one text may have, of models that take text.
    pub max_tokens: Option<usize>,
}

/// What the items of a model are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Texts, or pairs of texts.
    Texts,
    /// Encoded images.
    Images,
    /// Tensors, as the configuration declares them.
    Tensors,
    /// JSON objects, as the table schema declares them.
    Rows,
}

/// A tensor by name.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// The dims of one item, without the batch; `None` where they vary.
    pub shape: Vec<Option<u64>>,
}

/// A parameter of a request that becomes a tensor with one element an item.
#[derive(Debug, Clone)]
pub struct ParameterInfo {
    /// Its name, in requests and in batches.
    pub name: String,
    /// Its element type: an integer, a float or a bool.
    pub dtype: DType,
    /// What an item has that does not set it.
    pub default: f64,
    /// The smallest value allowed.
    pub min: Option<f64>,
    /// The largest value allowed.
    pub max: Option<f64>,
}

/// One request.
#[derive(Debug)]
pub struct Call {
    /// Its items.
    pub input: Input,
    /// Parameters, by name; unknown ones and such out of range are refused with their name.
    pub parameters: Map<String, Value>,
    /// Who goes first when not all fit.
    pub priority: Priority,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// The id in logs and in the response's header.
    pub request_id: Arc<str>,
    /// The caller's place in a trace.
    pub trace: Option<TraceContext>,
}

/// The items of a call, at least one.
#[derive(Debug)]
pub enum Input {
    /// Texts or pairs.
    Texts(Vec<TextItem>),
    /// Encoded images: JPEG, PNG or WebP.
    Images(Vec<Bytes>),
    /// Tensors with all items in dim 0, the same number in each.
    Tensors(Vec<NamedTensor>),
    /// JSON objects, one an item.
    Rows(Vec<Bytes>),
}

/// A text, or a pair of them.
#[derive(Debug, Clone)]
pub struct TextItem {
    /// The text.
    pub text: String,
    /// The second one of a pair.
    pub pair: Option<String>,
}

/// A tensor of a request.
#[derive(Debug, Clone)]
pub struct NamedTensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its dims, the items first.
    pub shape: Vec<u64>,
    /// Its elements, row-major, little-endian; the length is checked by who makes it.
    pub bytes: Bytes,
}

/// Who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    /// Before all others.
    High,
    /// As most.
    #[default]
    Normal,
    /// When nobody else waits.
    Low,
}

/// A place in a trace, as in the W3C header `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The span that encloses what is done here.
    pub span_id: [u8; 8],
    /// Whether it is recorded.
    pub sampled: bool,
}

/// The answer to a call: one entry an item, in the items' order.
#[derive(Debug)]
pub struct Answer {
    /// What became of each item.
    pub items: Vec<Result<Row, ItemError>>,
    /// Where the time went.
    pub timings: Timings,
}

impl Answer {
    /// The items that failed, and why.
    pub fn errors(&self) -> impl Iterator<Item = (usize, &ItemError)> {
        self.items.iter().enumerate().filter_map(|(i, item)| Some((i, item.as_ref().err()?)))
    }
}

/// Rows of tensors that items' answers lie in: a slot of a ring, or memory of a test.
pub trait Rows: Send + Sync + fmt::Debug {
    /// The number of tensors.
    fn tensors(&self) -> usize;
    /// Name, element type and dims of one, without dim 0, which counts the items.
    fn tensor(&self, tensor: usize) -> (&str, DType, &[u64]);
    /// The bytes of one item in one tensor.
    fn bytes(&self, tensor: usize, row: usize) -> &[u8];
}

/// One item's answer. It holds a slot of the worker's ring: serialize it at once, before anything is written to a slow
/// client, and drop it.
#[derive(Debug, Clone)]
pub struct Row {
    /// What it lies in.
    pub rows: Arc<dyn Rows>,
    /// Its place there.
    pub row: usize,
}

impl Row {
    /// Name, element type, dims of one item and bytes of each tensor.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, DType, &[u64], &[u8])> {
        (0..self.rows.tensors()).map(|tensor| {
            let (name, dtype, shape) = self.rows.tensor(tensor);
            (name, dtype, shape, self.rows.bytes(tensor, self.row))
        })
    }
}

/// Why one item failed while its neighbours need not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemError {
    /// What kind of failure.
    pub kind: ItemErrorKind,
    /// What happened, for the client.
    pub message: String,
}

/// Kinds of failures of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemErrorKind {
    /// The item cannot be used: not an image, too long, not of the schema.
    Invalid,
    /// The model raised on it.
    Model,
}

/// Where the time of a call went; of the item that took longest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// Making tensors of the input, in seconds.
    pub ingest_s: f64,
    /// Waiting for a worker, in seconds.
    pub queue_s: f64,
    /// From publishing to the worker's start, in seconds.
    pub hand_over_s: f64,
    /// In the worker, in seconds.
    pub forward_s: f64,
    /// Items in its batch.
    pub batch_items: usize,
    /// Tokens of all items together, without padding, of models that take text; else 0.
    pub tokens: u64,
}

/// A piece of a streamed answer.
#[derive(Debug, Clone)]
pub struct Part {
    /// Which item of the call.
    pub item: usize,
    /// New tokens.
    pub tokens: Vec<u32>,
    /// The text they complete; never half a character.
    pub text: String,
    /// Why it ended, with the last part.
    pub finished: Option<Finish>,
}

/// Why a streamed item ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// The model said so.
    Stop,
    /// It reached the number of tokens asked for.
    Length,
    /// It failed.
    Error(ItemError),
}

/// A text's tokens.
#[derive(Debug, Clone)]
pub struct TokenizedText {
    /// The ids.
    pub ids: Vec<u32>,
    /// Their texts in the vocabulary.
    pub tokens: Vec<String>,
    /// First and one past the last character (UTF-8 bytes) of each in the text.
    pub offsets: Vec<[u64; 2]>,
}

/// Why a call is not answered.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// As many items are waiting as may. Asking again later helps.
    #[error("the queue is full: {waiting} items wait, {limit} may; try again in {retry_after_s} s")]
    Full {
        /// Items that wait.
        waiting: usize,
        /// Items that may.
        limit: usize,
        /// When a place is likely free, in seconds.
        retry_after_s: u64,
    },
    /// What waits takes as much memory as it may. Asking again later helps.
    #[error("requests that wait take {held_bytes} bytes, {limit_bytes} is the most; try again in {retry_after_s} s")]
    Memory {
        /// Bytes of all that was prepared and is not answered.
        held_bytes: u64,
        /// Bytes that may be.
        limit_bytes: u64,
        /// When there is room again, likely, in seconds.
        retry_after_s: u64,
    },
    /// No worker took it in time.
    #[error("no worker took the request within {waited_s:.1} s")]
    QueueTimeout {
        /// How long it waited, in seconds.
        waited_s: f64,
    },
    /// The caller's deadline passed.
    #[error("the request was not answered before its deadline")]
    Deadline,
    /// The call is not what the model takes.
    #[error("{field}: {message}")]
    Invalid {
        /// The field, as a path such as `inputs[0].shape`.
        field: String,
        /// Which item, where one is to blame.
        item: Option<usize>,
        /// Found and expected.
        message: String,
    },
    /// More than fits, in items or bytes.
    #[error("{0}")]
    TooLarge(String),
    /// The model raised, or gave what cannot be used.
    #[error("the model failed: {message}")]
    Worker {
        /// The type of the exception.
        kind: String,
        /// Its text.
        message: String,
    },
    /// The worker died with it.
    #[error("the worker died while it had the request")]
    WorkerDied,
    /// No worker answers yet, or none any more.
    #[error("no worker is ready: {0}")]
    NotReady(String),
    /// The server is going down.
    #[error("the server is shutting down")]
    Draining,
    /// The model does not do that.
    #[error("{0}")]
    Unsupported(String),
}

/// Whether requests can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Yes.
    Ready,
    /// Not yet, or not any more; why.
    NotReady(String),
    /// No new ones: what is there is being finished.
    Draining,
}

/// What goes on inside.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Each worker.
    pub workers: Vec<WorkerStatus>,
    /// Items that wait for a worker.
    pub queued_items: usize,
    /// Items that workers have.
    pub running_items: usize,
    /// Since when the oldest waits, in seconds.
    pub oldest_wait_s: f64,
}

/// What one worker (with all its ranks) does.
#[derive(Debug, Clone, Default)]
pub struct WorkerStatus {
    /// Its number, from 0.
    pub index: usize,
    /// `starting`, `ready`, `draining`, `backing off`, `failed`.
    pub state: String,
    /// Process ids of its ranks.
    pub pids: Vec<u32>,
    /// How often it was started again.
    pub restarts: u64,
    /// Batches and items that it has now.
    pub batches: usize,
    /// Items of these.
    pub items: usize,
    /// Slots of its request ring: used, all.
    pub slots: (u32, u32),
    /// Age of the oldest answer slot that is held, in seconds.
    pub oldest_lease_s: f64,
    /// How its last life ended, if one did.
    pub last_exit: Option<String>,
    /// Resident memory of all ranks, in bytes.
    pub rss_bytes: u64,
}
