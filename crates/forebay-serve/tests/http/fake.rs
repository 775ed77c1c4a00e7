//! A model without a worker: answers by what it is asked.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use forebay::DType;
use forebay_serve::backend::{
    Answer, Backend, Boxed, Call, Finish, Health, Input, ItemError, ItemErrorKind, ModelInfo, NamedTensor, Part, Parts,
    Priority, Refusal, Row, Rows, Status, Takes, TensorInfo, Timings, TokenizedText, TraceContext, WorkerStatus,
};
use futures_core::Stream;
use tokio::sync::watch;

/// What was asked of it.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) calls: AtomicUsize,
    /// Calls that were dropped before they were answered.
    pub(crate) dropped: AtomicUsize,
    pub(crate) trace: Mutex<Option<TraceContext>>,
    pub(crate) priority: Mutex<Priority>,
    pub(crate) parameters: Mutex<String>,
    pub(crate) not_ready: AtomicBool,
}

pub(crate) struct Fake {
    model: ModelInfo,
    pub(crate) seen: Arc<Seen>,
    /// Calls with the text "hang" go on when this says so.
    go: watch::Receiver<bool>,
}

fn tensor(name: &str, dtype: DType, shape: &[Option<u64>]) -> TensorInfo {
    TensorInfo { name: name.to_owned(), dtype, shape: shape.to_vec() }
}

pub(crate) fn model(takes: Takes) -> ModelInfo {
    let inputs = match takes {
        Takes::Texts => vec![tensor("input_ids", DType::I64, &[None])],
        Takes::Images => vec![tensor("pixel_values", DType::F32, &[Some(3), Some(2), Some(2)])],
        Takes::Tensors => vec![tensor("x", DType::F32, &[Some(3)]), tensor("k", DType::I64, &[])],
        Takes::Rows => vec![tensor("features", DType::F32, &[Some(2)])],
    };
    ModelInfo {
        name: "fake".to_owned(),
        version: "1".to_owned(),
        takes,
        inputs,
        outputs: vec![tensor("embedding", DType::F32, &[Some(4)])],
        parameters: Vec::new(),
        generates: false,
        max_items: 8,
        max_tokens: Some(16),
    }
}

impl Fake {
    pub(crate) fn new(model: ModelInfo, go: watch::Receiver<bool>) -> Self {
        Self { model, seen: Arc::default(), go }
    }
}

/// Rows in memory.
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

/// Counts a call that was dropped before its end.
struct Watch(Arc<Seen>, bool);

impl Watch {
    fn answered(&mut self) {
        self.1 = true;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.1 {
            self.0.dropped.fetch_add(1, SeqCst);
        }
    }
}

fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// An embedding: the length of what came, and 1/2, 1/3, 1/4.
fn embedding(length: usize) -> Result<Row, ItemError> {
    let bytes = floats([length as f32, 0.5, 1.0 / 3.0, 0.25]);
    Ok(Row { rows: Arc::new(Memory(vec![("embedding".to_owned(), DType::F32, vec![4], bytes)])), row: 0 })
}

fn of_text(text: &str) -> Result<Row, ItemError> {
    match text {
        "bad" => Err(ItemError { kind: ItemErrorKind::Invalid, message: "too long: 17 tokens, 16 may be".to_owned() }),
        "raises" => Err(ItemError { kind: ItemErrorKind::Model, message: "ValueError: no".to_owned() }),
        "nan" => {
            let bytes = floats([f32::NAN, f32::INFINITY, -0.0, 1.0]);
            Ok(Row { rows: Arc::new(Memory(vec![("embedding".to_owned(), DType::F32, vec![4], bytes)])), row: 0 })
        }
        // More than sockets have room for.
        "huge" => {
            let rows = Memory(vec![("embedding".to_owned(), DType::F32, vec![6 << 20], vec![0; 24 << 20])]);
            Ok(Row { rows: Arc::new(rows), row: 0 })
        }
        text => embedding(text.len()),
    }
}

fn of_tensors(all: &[NamedTensor]) -> Vec<Result<Row, ItemError>> {
    let items = usize::try_from(all[0].shape[0]).unwrap();
    let tensors = all.iter().map(|one| (one.name.clone(), one.dtype, one.shape[1..].to_vec(), one.bytes.to_vec()));
    let rows: Arc<dyn Rows> = Arc::new(Memory(tensors.collect()));
    (0..items).map(|row| Ok(Row { rows: Arc::clone(&rows), row })).collect()
}

fn refusal(text: &str) -> Option<Refusal> {
    Some(match text {
        "full" => Refusal::Full { waiting: 9, limit: 9, retry_after_s: 3 },
        "memory" => Refusal::Memory { held_bytes: 9, limit_bytes: 8, retry_after_s: 3 },
        "late" => Refusal::QueueTimeout { waited_s: 5.0 },
        "deadline" => Refusal::Deadline,
        "invalid" => Refusal::Invalid { field: "parameters.k".to_owned(), item: None, message: "unknown".to_owned() },
        "large" => Refusal::TooLarge("one item has more bytes than a slot".to_owned()),
        "boom" => Refusal::Worker { kind: "ValueError".to_owned(), message: "no".to_owned() },
        "died" => Refusal::WorkerDied,
        "starting" => Refusal::NotReady("loading".to_owned()),
        "draining" => Refusal::Draining,
        "unsupported" => Refusal::Unsupported("not that".to_owned()),
        _ => return None,
    })
}

impl Backend for Fake {
    fn model(&self) -> &ModelInfo {
        &self.model
    }

    fn infer(&self, call: Call) -> Boxed<Result<Answer, Refusal>> {
        self.seen.calls.fetch_add(1, SeqCst);
        *self.seen.trace.lock().unwrap() = call.trace;
        *self.seen.priority.lock().unwrap() = call.priority;
        *self.seen.parameters.lock().unwrap() = serde_json::Value::Object(call.parameters).to_string();
        let mut watch = Watch(Arc::clone(&self.seen), false);
        let mut go = self.go.clone();
        Box::pin(async move {
            let mut tokens = 0;
            let items = match &call.input {
                Input::Texts(texts) => {
                    let first = texts[0].text.as_str();
                    if first == "hang" {
                        let _ = go.wait_for(|go| *go).await;
                    }
                    if let Some(refusal) = refusal(first) {
                        watch.answered();
                        return Err(refusal);
                    }
                    let whole = |one: &forebay_serve::backend::TextItem| {
                        one.pair.as_ref().map_or(one.text.clone(), |pair| format!("{}{pair}", one.text))
                    };
                    tokens = texts.iter().map(|one| whole(one).split_whitespace().count() as u64).sum();
                    texts.iter().map(|one| of_text(&whole(one))).collect()
                }
                Input::Images(images) => images.iter().map(|image| embedding(image.len())).collect(),
                Input::Rows(rows) => rows.iter().map(|row| embedding(row.len())).collect(),
                Input::Tensors(tensors) => of_tensors(tensors),
            };
            watch.answered();
            Ok(Answer { items, timings: Timings { tokens, batch_items: 1, ..Timings::default() } })
        })
    }

    fn generate(&self, call: Call) -> Boxed<Result<Parts, Refusal>> {
        let Input::Texts(texts) = call.input else { panic!("texts") };
        let watch = Watch(Arc::clone(&self.seen), false);
        Box::pin(async move {
            if let Some(refusal) = refusal(&texts[0].text) {
                return Err(refusal);
            }
            let mut parts = VecDeque::new();
            let mut endless = false;
            for (item, text) in texts.iter().enumerate() {
                let words: Vec<_> = text.text.split(' ').collect();
                for (i, word) in words.iter().enumerate() {
                    let finished = match *word {
                        "breaks" => Some(Finish::Error(of_text("raises").unwrap_err())),
                        "unusable" => Some(Finish::Error(of_text("bad").unwrap_err())),
                        _ if i + 1 == words.len() => Some(Finish::Stop),
                        _ => None,
                    };
                    endless |= *word == "endless";
                    let part = Part { item, tokens: vec![i as u32], text: format!("{word}!"), finished };
                    parts.push_back(Ok(part));
                    if *word == "dies" {
                        parts.push_back(Err(Refusal::WorkerDied));
                    }
                }
            }
            Ok(Box::pin(Queue { parts, endless, tick: None, watch }) as Parts)
        })
    }

    fn tokenize(
        &self,
        texts: Vec<String>,
        special: bool,
        _deadline: Instant,
    ) -> Boxed<Option<Result<Vec<TokenizedText>, Refusal>>> {
        let done = (self.model.takes == Takes::Texts).then(|| {
            let tokens = |text: String| TokenizedText {
                ids: text.bytes().map(u32::from).chain(special.then_some(0)).collect(),
                tokens: text.chars().map(String::from).chain(special.then(|| "[END]".to_owned())).collect(),
                offsets: (0..text.len() as u64).map(|at| [at, at + 1]).collect(),
            };
            Ok(texts.into_iter().map(tokens).collect())
        });
        Box::pin(std::future::ready(done))
    }

    fn health(&self) -> Health {
        if self.seen.not_ready.load(SeqCst) {
            Health::NotReady("workers are starting".to_owned())
        } else {
            Health::Ready
        }
    }

    fn status(&self) -> Status {
        let worker = WorkerStatus {
            state: "ready".to_owned(),
            pids: vec![4711],
            restarts: 2,
            slots: (1, 4),
            oldest_lease_s: 0.5,
            rss_bytes: 123_456,
            ..WorkerStatus::default()
        };
        Status { workers: vec![worker], queued_items: 3, running_items: 1, oldest_wait_s: 0.25 }
    }

    fn reload(&self) -> Boxed<Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

/// Parts that are there, and then, if endless, one each millisecond.
struct Queue {
    parts: VecDeque<Result<Part, Refusal>>,
    endless: bool,
    tick: Option<Pin<Box<tokio::time::Sleep>>>,
    watch: Watch,
}

impl Stream for Queue {
    type Item = Result<Part, Refusal>;

    fn poll_next(mut self: Pin<&mut Self>, waker: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(part) = self.parts.pop_front() {
            return Poll::Ready(Some(part));
        }
        if !self.endless {
            self.watch.answered();
            return Poll::Ready(None);
        }
        let tick = self.tick.get_or_insert_with(|| Box::pin(tokio::time::sleep(Duration::from_millis(1))));
        if tick.as_mut().poll(waker).is_pending() {
            return Poll::Pending;
        }
        self.tick = None;
        Poll::Ready(Some(Ok(Part { item: 0, tokens: vec![7], text: "more ".to_owned(), finished: None })))
    }
}
