//! A model that is not there. What it is asked must be what it says that it takes; what it answers, the input chooses:
//! an item that starts with `!` makes it refuse the call, one that starts with `?` fails.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Instant,
};

use forebay::DType;
use forebay_serve::backend::{
    Answer, Backend, Boxed, Call, Finish, Health, Input, ItemError, ItemErrorKind, ModelInfo, NamedTensor, Part, Parts,
    Refusal, Row, Rows, Status, Takes, TensorInfo, Timings, TokenizedText, WorkerStatus,
};
use futures_core::Stream;

/// Element types that answers have.
const DTYPES: [DType; 10] = [
    DType::F16,
    DType::BF16,
    DType::F32,
    DType::F64,
    DType::Bool,
    DType::I8,
    DType::U64,
    DType::C64,
    DType::F8E4M3,
    DType::F8E5M2,
];

/// What the model made happen, and to whom.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<Vec<(Arc<str>, Doing)>>);

/// The status code of what the model did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// The answer has it.
    Must(u16),
    /// The answer has it, unless there is another way to say it.
    May(u16),
}

impl Seen {
    fn note(&self, id: &Arc<str>, doing: Doing) {
        self.0.lock().unwrap().push((Arc::clone(id), doing));
    }

    /// What was done to the request with this id, and forgets all others.
    pub(super) fn take(&self, id: &str) -> Option<Doing> {
        let all = std::mem::take(&mut *self.0.lock().unwrap());
        all.into_iter().find(|(known, _)| **known == *id).map(|(_, doing)| doing)
    }
}

pub(super) struct Fake {
    model: ModelInfo,
    pub(super) seen: Arc<Seen>,
}

fn tensor(name: &str, dtype: DType, shape: &[Option<u64>]) -> TensorInfo {
    TensorInfo { name: name.to_owned(), dtype, shape: shape.to_vec() }
}

impl Fake {
    pub(super) fn new(takes: Takes, inputs: usize, generates: bool) -> Self {
        let all = match takes {
            Takes::Texts => vec![tensor("input_ids", DType::I64, &[None])],
            Takes::Images => vec![tensor("pixel_values", DType::F32, &[Some(3), Some(2), Some(2)])],
            Takes::Tensors => vec![
                tensor("x", DType::F32, &[None, Some(2)]),
                tensor("m", DType::Bool, &[None]),
                tensor("k", DType::I64, &[]),
            ],
            Takes::Rows => vec![tensor("features", DType::F32, &[Some(2)])],
        };
        let model = ModelInfo {
            name: "fake".to_owned(),
            version: "1".to_owned(),
            takes,
            inputs: all.into_iter().take(inputs).collect(),
            outputs: vec![tensor("embedding", DType::F32, &[Some(4)])],
            parameters: Vec::new(),
            generates,
            max_items: 4,
            max_tokens: Some(16),
        };
        Self { model, seen: Arc::default() }
    }

    fn check_count(&self, count: usize) {
        assert!((1..=self.model.max_items).contains(&count), "{count} items");
    }

    /// Whether a call is what the model takes.
    fn check(&self, call: &Call) {
        assert!(!call.request_id.is_empty());
        match (&call.input, self.model.takes) {
            (Input::Texts(all), Takes::Texts) => self.check_count(all.len()),
            (Input::Images(all), Takes::Images) | (Input::Rows(all), Takes::Rows) => self.check_count(all.len()),
            (Input::Tensors(all), Takes::Tensors) => self.check_tensors(all),
            (input, takes) => panic!("{input:?} for {takes:?}"),
        }
    }

    fn check_tensors(&self, all: &[NamedTensor]) {
        assert_eq!(all.len(), self.model.inputs.len());
        let items = all[0].shape[0];
        self.check_count(usize::try_from(items).unwrap());
        for info in &self.model.inputs {
            let one =
                all.iter().find(|one| one.name == info.name).unwrap_or_else(|| panic!("{} is missing", info.name));
            assert_eq!((one.dtype, one.shape.len(), one.shape[0]), (info.dtype, info.shape.len() + 1, items));
            assert!(one.shape[1..].iter().zip(&info.shape).all(|(dim, is)| is.is_none_or(|is| is == *dim)), "{one:?}");
            let bytes = one.shape.iter().try_fold(one.dtype.size() as u64, |all, dim| all.checked_mul(*dim));
            assert_eq!(bytes, Some(one.bytes.len() as u64), "{one:?}");
        }
    }
}

/// Rows in memory: name, type, dims of one row, all rows.
struct Memory(Vec<(String, DType, Vec<u64>, Vec<u8>)>);

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memory")
    }
}

impl Rows for Memory {
    fn tensors(&self) -> usize {
        self.0.len()
    }

    fn tensor(&self, tensor: usize) -> (&str, DType, &[u64]) {
        let (name, dtype, shape, _) = &self.0[tensor];
        (name, *dtype, shape)
    }

    fn bytes(&self, tensor: usize, row: usize) -> &[u8] {
        let (_, dtype, shape, bytes) = &self.0[tensor];
        let size = dtype.size() * usize::try_from(shape.iter().product::<u64>()).unwrap();
        &bytes[row * size..(row + 1) * size]
    }
}

fn alone(name: &str, dtype: DType, shape: &[u64], bytes: Vec<u8>) -> Row {
    Row { rows: Arc::new(Memory(vec![(name.to_owned(), dtype, shape.to_vec(), bytes)])), row: 0 }
}

/// What becomes of one item: an embedding, elements of some type made of its own bytes, or a failure.
fn of_item(item: &[u8]) -> Result<Row, ItemError> {
    match item {
        [b'?', b'm', ..] => Err(ItemError { kind: ItemErrorKind::Model, message: "ValueError: no".to_owned() }),
        [b'?', ..] => Err(ItemError { kind: ItemErrorKind::Invalid, message: "not an item".to_owned() }),
        [b'~', which, elements @ ..] => {
            let dtype = DTYPES[usize::from(*which) % DTYPES.len()];
            let pairs = elements.len() / (2 * dtype.size());
            let bytes = elements[..pairs * 2 * dtype.size()].to_vec();
            Ok(alone("logits", dtype, &[pairs as u64, 2], bytes))
        }
        item => {
            let values = [item.len() as f32, 0.5, f32::NAN, -0.0];
            Ok(alone("embedding", DType::F32, &[4], values.into_iter().flat_map(f32::to_le_bytes).collect()))
        }
    }
}

fn of_tensors(all: &[NamedTensor]) -> Vec<Result<Row, ItemError>> {
    let items = usize::try_from(all[0].shape[0]).unwrap();
    let tensors = all.iter().map(|one| (one.name.clone(), one.dtype, one.shape[1..].to_vec(), one.bytes.to_vec()));
    let rows: Arc<dyn Rows> = Arc::new(Memory(tensors.collect()));
    (0..items).map(|row| Ok(Row { rows: Arc::clone(&rows), row })).collect()
}

/// What the model says instead of an answer, and the status code that the documentation has for it.
fn refusal(item: &[u8]) -> Option<(Refusal, u16)> {
    let [b'!', which, ..] = item else { return None };
    let text = || "no".to_owned();
    Some(match which % 10 {
        0 => (Refusal::Full { waiting: 9, limit: 9, retry_after_s: 0 }, 429),
        1 => (Refusal::QueueTimeout { waited_s: 5.0 }, 503),
        2 => (Refusal::Deadline, 504),
        3 => (Refusal::Invalid { field: "parameters.k".to_owned(), item: Some(0), message: text() }, 422),
        4 => (Refusal::TooLarge(text()), 413),
        5 => (Refusal::Worker { kind: "ValueError".to_owned(), message: String::new() }, 500),
        6 => (Refusal::WorkerDied, 502),
        7 => (Refusal::NotReady(text()), 503),
        8 => (Refusal::Draining, 503),
        _ => (Refusal::Unsupported(text()), 422),
    })
}

impl Backend for Fake {
    fn model(&self) -> &ModelInfo {
        &self.model
    }

    fn infer(&self, call: Call) -> Boxed<Result<Answer, Refusal>> {
        self.check(&call);
        let items: Vec<Vec<u8>> = match &call.input {
            Input::Texts(texts) => {
                let whole = texts.iter().map(|one| format!("{}{}", one.text, one.pair.as_deref().unwrap_or_default()));
                whole.map(String::into_bytes).collect()
            }
            Input::Images(all) | Input::Rows(all) => all.iter().map(|one| one.to_vec()).collect(),
            Input::Tensors(_) => Vec::new(),
        };
        if let Some((refusal, status)) = items.first().and_then(|item| refusal(item)) {
            self.seen.note(&call.request_id, Doing::Must(status));
            return Box::pin(async move { Err(refusal) });
        }
        let items = match &call.input {
            Input::Tensors(tensors) => of_tensors(tensors),
            _ => items.iter().map(|item| of_item(item)).collect(),
        };
        let raised = |row: &Result<Row, ItemError>| row.as_ref().is_err_and(|e| e.kind == ItemErrorKind::Model);
        let alike = |pair: &[Result<Row, ItemError>]| match pair {
            [Ok(one), Ok(other)] => one.rows.tensor(0) == other.rows.tensor(0),
            _ => true,
        };
        if items.iter().any(raised) || !items.windows(2).all(alike) {
            self.seen.note(&call.request_id, Doing::May(500));
        }
        Box::pin(
            async move { Ok(Answer { items, timings: Timings { tokens: 3, batch_items: 1, ..Timings::default() } }) },
        )
    }

    /// A part for each word of each text: `?` fails the item, `!` the whole, `.` ends it without a word.
    fn generate(&self, call: Call) -> Boxed<Result<Parts, Refusal>> {
        self.check(&call);
        let Input::Texts(texts) = call.input else { panic!("it takes texts") };
        if let Some((refusal, status)) = refusal(texts[0].text.as_bytes()) {
            self.seen.note(&call.request_id, Doing::Must(status));
            return Box::pin(async move { Err(refusal) });
        }
        let mut parts = Vec::new();
        for (item, text) in texts.iter().enumerate() {
            let words: Vec<_> = text.text.split(' ').collect();
            for (i, word) in words.iter().enumerate() {
                let finished = match *word {
                    "?" => {
                        let message = "KeyError: 3".to_owned();
                        Some(Finish::Error(ItemError { kind: ItemErrorKind::Model, message }))
                    }
                    "#" => Some(Finish::Length),
                    "." => None,
                    _ => (i + 1 == words.len()).then_some(Finish::Stop),
                };
                parts.push(Ok(Part { item, tokens: vec![i as u32], text: format!("{word} "), finished }));
                if *word == "!" {
                    parts.push(Err(Refusal::WorkerDied));
                }
            }
        }
        let says = |word: &str| texts.iter().any(|text| text.text.split(' ').any(|one| one == word));
        if says("!") {
            self.seen.note(&call.request_id, Doing::May(502));
        } else if says("?") {
            self.seen.note(&call.request_id, Doing::May(500));
        }
        Box::pin(async move { Ok(Box::pin(Queue(parts.into_iter())) as Parts) })
    }

    fn tokenize(
        &self,
        texts: Vec<String>,
        special: bool,
        _deadline: Instant,
    ) -> Boxed<Option<Result<Vec<TokenizedText>, Refusal>>> {
        let tokens = |text: String| TokenizedText {
            ids: text.bytes().map(u32::from).chain(special.then_some(0)).collect(),
            tokens: text.chars().map(String::from).chain(special.then(|| "[END]".to_owned())).collect(),
            offsets: (0..text.len() as u64).map(|at| [at, at + 1]).collect(),
        };
        let done = (self.model.takes == Takes::Texts).then(|| {
            self.check_count(texts.len());
            Ok(texts.into_iter().map(tokens).collect())
        });
        Box::pin(std::future::ready(done))
    }

    fn health(&self) -> Health {
        Health::Ready
    }

    fn status(&self) -> Status {
        let worker = WorkerStatus { state: "ready".to_owned(), pids: vec![4711], slots: (1, 4), ..Default::default() };
        Status { workers: vec![worker], queued_items: 3, running_items: 1, oldest_wait_s: 0.25 }
    }

    fn reload(&self) -> Boxed<Result<(), String>> {
        Box::pin(async move { Ok(()) })
    }
}

/// Parts that are there.
struct Queue(std::vec::IntoIter<Result<Part, Refusal>>);

impl Stream for Queue {
    type Item = Result<Part, Refusal>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.0.next())
    }
}
