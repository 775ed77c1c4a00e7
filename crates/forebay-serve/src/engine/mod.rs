//! The [`Backend`] of real workers: calls become items, items batches, batches messages in a ring, answers results.
//!
//! ```text
//!   infer ─▶ intake (here, or on the CPU pool) ─▶ schedule.push ─▶ dispatch ─▶ request ring of a worker
//!     ▲                                             ▲                              ║
//!     └── oneshot ◀── call.answer ◀── answers ◀─────┘ schedule.release ◀── answer ring, a task for each worker
//! ```
//!
//! There is no dispatcher thread: whoever pushes an item, or reads an answer, hands over what can be handed over, behind
//! short locks (reading, then schedule, then line, then call; never two of them the other way round). A request costs three
//! wakes: the HTTP thread's, the worker's, the HTTP thread's.
//!
//! A call that is dropped leaves the queue; workers that have its items are told. What nobody waits for is not answered.

mod call;
mod dispatch;
mod link;
mod pool;
mod rows;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    any::Any,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use forebay::DType;
use tokio::sync::{Notify, mpsc, oneshot};

use self::{
    call::{Call as Open, Sink},
    rows::Kept,
};
pub(crate) use self::{
    dispatch::Reading,
    link::{Entry, Link, ending},
};
use crate::{
    backend::{
        Answer, Backend, Boxed, Call, Finish, Health, Input, ItemError, ModelInfo, Parts, Refusal, Row, Status, Takes,
        TensorInfo, Timings, TokenizedText,
    },
    config::Config,
    intake::{Intake, IntakeError, Prepared},
    metrics::{Metrics, Stage},
    schedule::{Expired, Limits, Schedule},
    trace::Tracer,
    workers::{Board, Workers, WorkersError},
};

/// Bytes of prepared items that may be held at a time.
const PREPARED_BYTES: u64 = 1 << 30;
/// Texts that are tokenized on the calling thread, in bytes.
const QUICK_BYTES: usize = 4 << 10;
/// Bytes that each byte of a text may become where its tokens themselves are asked for, with their texts and places.
const TOKENIZED_BYTES: u64 = 128;
/// The engine may end while its timer sleeps: it looks this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);
/// Items that may wait.
const MAX_WAITING: usize = 16_384;

/// Why the engine does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The workers cannot be watched over.
    #[error(transparent)]
    Workers(#[from] WorkersError),
    /// The threads of the CPU pool cannot be started.
    #[error("cannot start the CPU pool: {0}; lower server.cpu_threads or raise the limit on processes")]
    Pool(String),
}

/// What tasks of the engine share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) model: ModelInfo,
    pub(crate) intake: Intake,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tracer: Tracer,
    pub(crate) dir: Option<PathBuf>,
    pool: rayon::ThreadPool,
    schedule: Mutex<Schedule<Entry>>,
    links: RwLock<Vec<Arc<Link>>>,
    /// What workers must give, where the configuration says.
    outputs: Vec<TensorInfo>,
    pub(crate) board: Board,
    next_item: AtomicU64,
    prepared_bytes: AtomicU64,
    draining: AtomicBool,
    timer: Notify,
    /// When the timer rings next, in ns after `began`; u64::MAX for never.
    rings_at: AtomicU64,
    began: Instant,
}

/// The engine: a model with its workers.
#[derive(Debug)]
pub struct Engine {
    core: Arc<Core>,
    workers: Workers,
}

/// A model's configuration, with the files that it names read.
#[derive(Debug)]
pub struct Checked {
    config: Config,
    model: ModelInfo,
    intake: Intake,
}

impl Checked {
    /// What the model is called, takes and gives.
    #[must_use]
    pub fn model(&self) -> &ModelInfo {
        &self.model
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }
}

/// Reads what the configuration names: tokenizer, processor, schema. Starts nothing.
///
/// # Errors
/// [`IntakeError`] names the key.
pub fn check(config: Config) -> Result<Checked, IntakeError> {
    let (model, intake) = read(&config)?;
    Ok(Checked { config, model, intake })
}

fn read(config: &Config) -> Result<(ModelInfo, Intake), IntakeError> {
    let intake = Intake::open(config)?;
    let model = &config.model;
    let output = |(at, output): (usize, &crate::config::OutputConfig)| {
        let key = |what: &str| format!("model.outputs[{at}].{what}");
        let wrong = |key: String, what: String| IntakeError { key, what };
        let dtype: DType =
            output.dtype.parse().map_err(|e: forebay::UnknownDType| wrong(key("dtype"), e.to_string()))?;
        let shape = output.shape.iter().map(|&dim| u64::try_from(dim).ok()).collect();
        Ok(TensorInfo { name: output.name.clone(), dtype, shape })
    };
    let info = ModelInfo {
        name: model.name.clone(),
        version: model.version.clone(),
        takes: intake.takes(),
        inputs: intake.tensors(),
        outputs: model.outputs.iter().enumerate().map(output).collect::<Result<_, _>>()?,
        parameters: intake.parameters().to_vec(),
        generates: model.generate,
        max_items: config.limits.items,
        max_tokens: intake.max_tokens(),
    };
    Ok((info, intake))
}

impl Engine {
    /// Starts the workers; does not wait until they are ready. `dir`: where rings meet; `None` as [`forebay::Producer`] has
    /// it.
    ///
    /// Within a tokio runtime, whose tasks it uses.
    ///
    /// # Errors
    /// [`EngineError`]; nothing was started then.
    pub fn start(
        checked: Checked,
        dir: Option<PathBuf>,
        metrics: Arc<Metrics>,
        tracer: Tracer,
    ) -> Result<Self, EngineError> {
        let Checked { config, model, intake } = checked;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = match config.server.cpu_threads {
            // As many as there are cores, though others want them too: who has work shall not wait beside an idle core.
            0 => cores,
            threads => threads,
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("forebay-cpu-{index}"))
            // Without this a panic would end the process. Whoever waits for the work is told that it will not come.
            .panic_handler(|panic| tracing::error!(what = words(&*panic), "work on the CPU pool panicked"))
            .build()
            .map_err(|e| EngineError::Pool(e.to_string()))?;
        let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        let limits = Limits {
            max_items: config.batch.max_items.max(1),
            max_tokens: config.batch.max_tokens,
            max_bytes: intake.max_bytes(),
            token_bytes: intake.token_bytes(),
            pad_to_multiple_of: intake.pad_to_multiple_of(),
            buckets: config.batch.buckets.clone(),
            window: seconds(config.batch.window_ms / 1e3),
            prefetch: config.batch.prefetch,
            continuous: config.model.generate,
            queue_timeout: seconds(config.limits.queue_timeout_s).min(Duration::from_secs(86_400 * 365)),
            max_waiting: MAX_WAITING,
        };
        let core = Arc::new(Core {
            outputs: model.outputs.clone(),
            config,
            model,
            intake,
            metrics,
            tracer,
            dir,
            pool,
            schedule: Mutex::new(Schedule::new(limits)),
            links: RwLock::default(),
            board: Board::default(),
            next_item: AtomicU64::new(1),
            prepared_bytes: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            timer: Notify::new(),
            rings_at: AtomicU64::new(u64::MAX),
            began: Instant::now(),
        });
        let workers = Workers::start(&core)?;
        let weak = Arc::downgrade(&core);
        tokio::spawn(Core::keep_time(weak));
        Ok(Self { core, workers })
    }

    /// Refuses new calls from now on; those that are there go on.
    pub fn drain(&self) {
        // ORDER none, Relaxed: the flag is the whole message.
        self.core.draining.store(true, Ordering::Relaxed);
    }

    /// Lets the workers finish what they have, then end; kills those that take longer than their grace. What still waits
    /// is refused.
    pub async fn stop(&self) {
        self.drain();
        self.workers.stop().await;
        self.core.refuse_waiting(&Refusal::Draining);
    }
}

/// Cancels a call whose future was dropped.
struct Guard {
    core: Arc<Core>,
    call: Arc<Open>,
    bytes: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // ORDER none, Relaxed: a count of memory.
        self.core.prepared_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        let sent = self.call.abandon();
        self.core.forget(&self.call, sent);
    }
}

impl Core {
    pub(crate) fn schedule(&self) -> MutexGuard<'_, Schedule<Entry>> {
        // The schedule has no callbacks: a panic in it would be an error of its own.
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn link(&self, key: u64) -> Option<Arc<Link>> {
        self.links.read().unwrap_or_else(PoisonError::into_inner).iter().find(|link| link.key == key).cloned()
    }

    pub(crate) fn is_draining(&self) -> bool {
        // ORDER none, Relaxed: the flag is the whole message.
        self.draining.load(Ordering::Relaxed)
    }

    /// A worker is ready: it is given batches from now on.
    pub(crate) fn add_link(self: &Arc<Self>, link: Arc<Link>) {
        let key = link.key;
        self.links.write().unwrap_or_else(PoisonError::into_inner).push(link);
        self.schedule().add_worker(key);
        self.dispatch();
    }

    /// A worker is given nothing new.
    pub(crate) fn close_link(&self, link: &Link) {
        self.schedule().close_worker(link.key);
    }

    /// A worker is gone: its calls are answered, or go to another one.
    pub(crate) fn remove_link(self: &Arc<Self>, link: &Link) {
        self.links.write().unwrap_or_else(PoisonError::into_inner).retain(|other| other.key != link.key);
        self.bury(link);
        self.dispatch();
    }

    /// Prepares, enqueues and dispatches a call.
    async fn admit(self: &Arc<Self>, mut call: Call, sink: Sink) -> Result<Guard, Refusal> {
        if self.is_draining() {
            return Err(Refusal::Draining);
        }
        if let Some(why) = self.board.failed() {
            return Err(Refusal::NotReady(why));
        }
        if call.deadline <= Instant::now() {
            return Err(Refusal::Deadline);
        }
        let items = items(&call.input);
        if items > self.config.limits.items {
            let limit = self.config.limits.items;
            return Err(Refusal::TooLarge(format!("{items} items in one request, at most {limit} are allowed")));
        }
        let bytes = self.intake.estimate(&call.input);
        let memory = Reserved::new(self, bytes)?;
        let started = Instant::now();
        let prepared = self.prepare(&mut call).await?;
        let ingest = started.elapsed();
        self.metrics.stage(Stage::Ingest, ingest.as_secs_f64());
        memory.keep();
        let call = Open::new(prepared, &call, sink, ingest);
        let guard = Guard { core: Arc::clone(self), call, bytes };
        if !guard.call.finish_if_done() {
            self.enqueue(&guard.call)?;
        }
        Ok(guard)
    }

    /// Makes tensors, here if that is quick, else on the CPU pool.
    async fn prepare(self: &Arc<Self>, call: &mut Call) -> Result<Prepared, Refusal> {
        let input = std::mem::replace(&mut call.input, Input::Texts(Vec::new()));
        if self.intake.is_quick(&input) {
            return self.intake.prepare(input, &call.parameters);
        }
        match input {
            Input::Images(images) if images.len() > 1 && self.intake.takes() == Takes::Images => {
                let begun = self.intake.begin(&call.parameters)?;
                let image = |core: &Self, image: Bytes| core.intake.image(&image);
                let images = self.each_on_the_pool(call.deadline, images, image).await?;
                self.intake.put_together(begun, images)
            }
            input => {
                let parameters = call.parameters.clone();
                self.on_the_pool(call.deadline, move |core| core.intake.prepare(input, &parameters)).await?
            }
        }
    }

    fn enqueue(self: &Arc<Self>, call: &Arc<Open>) -> Result<(), Refusal> {
        let good: Vec<_> = call
            .prepared
            .items
            .iter()
            .enumerate()
            .filter_map(|(item, size)| Some((*size.as_ref().ok()?, Entry { call: Arc::clone(call), item, deaths: 0 })))
            .collect();
        let now = Instant::now();
        let pushed = self.schedule().push(now, call.priority, call.deadline, good.into_iter());
        match pushed {
            Ok(ticket) => {
                // Set once: this is the only place.
                let _ = call.ticket.set(ticket);
            }
            Err(full) => {
                return Err(Refusal::Full { waiting: full.waiting, limit: MAX_WAITING, retry_after_s: 1 });
            }
        }
        self.dispatch();
        Ok(())
    }

    async fn infer(self: Arc<Self>, call: Call) -> Result<Answer, Refusal> {
        if self.model.generates {
            return self.infer_by_generating(call).await;
        }
        let deadline = call.deadline;
        let (sink, answer) = oneshot::channel();
        let guard = self.admit(call, Sink::Whole(sink)).await?;
        let answer = match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(answer) => answer.unwrap_or(Err(Refusal::Draining)),
            Err(_) => Err(Refusal::Deadline),
        };
        drop(guard);
        answer
    }

    /// The whole of what a generating model gives: one tensor of token ids for each item.
    async fn infer_by_generating(self: Arc<Self>, call: Call) -> Result<Answer, Refusal> {
        use std::future::poll_fn;
        let count = items(&call.input);
        let mut parts = self.generate(call).await?;
        let mut items: Vec<(Vec<u32>, Option<ItemError>)> = vec![(Vec::new(), None); count];
        while let Some(part) = poll_fn(|context| parts.as_mut().poll_next(context)).await {
            let part = part?;
            if let Some((tokens, error)) = items.get_mut(part.item) {
                tokens.extend(part.tokens);
                if let Some(Finish::Error(why)) = part.finished {
                    *error = Some(why);
                }
            }
        }
        let row = |(tokens, error): (Vec<u32>, Option<ItemError>)| match error {
            Some(error) => Err(error),
            None => Ok(Row { rows: Arc::new(Kept::tokens(&tokens)), row: 0 }),
        };
        Ok(Answer { items: items.into_iter().map(row).collect(), timings: Timings::default() })
    }

    async fn generate(self: &Arc<Self>, call: Call) -> Result<Parts, Refusal> {
        if !self.model.generates {
            return Err(Refusal::Unsupported("this model does not generate; ask for its answer as a whole".to_owned()));
        }
        let deadline = call.deadline;
        let (sink, events) = mpsc::unbounded_channel();
        let guard = self.admit(call, Sink::Stream(sink)).await?;
        Ok(stream::parts(self, guard, events, deadline))
    }

    /// Takes a call's items out of the queue and tells the workers that have some.
    fn forget(&self, call: &Arc<Open>, sent: Vec<call::Sent>) {
        if let Some(ticket) = call.ticket.get() {
            let gone = self.schedule().cancel(ticket);
            drop(gone);
        }
        for sent in sent {
            if let Some(link) = self.link(sent.worker) {
                let mut line = link.lock();
                let open: Vec<u64> = sent.ids.iter().copied().filter(|id| line.flights.contains_key(id)).collect();
                if !open.is_empty() {
                    line.client.cancel(sent.request, &open);
                }
            }
        }
    }

    /// Ends a call with a refusal; its other items are not needed any more.
    fn refuse(&self, call: &Arc<Open>, refusal: Refusal) {
        let sent = call.refuse(refusal);
        self.forget(call, sent);
    }

    fn refuse_waiting(&self, refusal: &Refusal) {
        let never = Instant::now() + Duration::from_secs(86_400 * 3650);
        let waiting = self.schedule().expire(never);
        for (_, entry) in waiting {
            self.refuse(&entry.call, refusal.clone());
        }
    }

    /// With all workers failed, nothing that waits will be answered soon.
    pub(crate) fn fail_if_hopeless(&self) {
        if let Some(why) = self.board.failed() {
            self.refuse_waiting(&Refusal::NotReady(why));
        }
    }

    /// Refuses what waited too long.
    fn expire(&self) {
        let expired = self.schedule().expire(Instant::now());
        for (why, entry) in expired {
            let refusal = match why {
                Expired::Deadline => Refusal::Deadline,
                Expired::Queue { waited } => Refusal::QueueTimeout { waited_s: waited.as_secs_f64() },
            };
            tracing::debug!(request = %entry.call.request_id, %refusal, "an item left the queue");
            self.refuse(&entry.call, refusal);
        }
    }

    /// Sees to it that the timer rings when the schedule wants to.
    fn set_timer(&self, wake: Option<Instant>) {
        let at = self.on_the_clock(wake);
        // ORDER none, Relaxed: `Notify` orders what it wakes; what comes while the timer looks, it looks for again.
        if at < self.rings_at.fetch_min(at, Ordering::Relaxed) {
            self.timer.notify_one();
        }
    }

    /// As ns after the engine began; u64::MAX for never.
    fn on_the_clock(&self, at: Option<Instant>) -> u64 {
        let at = at.map(|at| at.saturating_duration_since(self.began).as_nanos());
        at.map_or(u64::MAX, |at| u64::try_from(at).unwrap_or(u64::MAX))
    }

    /// Expires and dispatches when it is time to. Ends with the engine.
    async fn keep_time(weak: std::sync::Weak<Self>) {
        loop {
            let Some(core) = weak.upgrade() else { return };
            // Nobody needs to ring while it is awake.
            core.rings_at.store(0, Ordering::Relaxed);
            core.expire();
            core.dispatch();
            let wake = core.schedule().wake_at();
            core.rings_at.store(core.on_the_clock(wake), Ordering::Relaxed);
            // What came in between rang for nobody.
            let later = core.schedule().wake_at();
            if later.is_some_and(|later| wake.is_none_or(|wake| later < wake)) {
                continue;
            }
            let longest = Instant::now() + LONGEST_SLEEP;
            let until = wake.map_or(longest, |wake| wake.min(longest));
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => {}
                () = core.timer.notified() => {}
            }
        }
    }
}

/// Memory for prepared items, given back unless it is kept.
struct Reserved<'c> {
    core: &'c Core,
    bytes: u64,
}

impl<'c> Reserved<'c> {
    fn new(core: &'c Core, bytes: u64) -> Result<Self, Refusal> {
        // ORDER none, Relaxed: a count of memory.
        let before = core.prepared_bytes.fetch_add(bytes, Ordering::Relaxed);
        let reserved = Self { core, bytes };
        if before > 0 && before.saturating_add(bytes) > PREPARED_BYTES {
            return Err(Refusal::Memory { held_bytes: before, limit_bytes: PREPARED_BYTES, retry_after_s: 1 });
        }
        Ok(reserved)
    }

    fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        // ORDER none, Relaxed: a count of memory.
        self.core.prepared_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

/// Items of an input.
fn items(input: &Input) -> usize {
    match input {
        Input::Texts(items) => items.len(),
        Input::Images(items) => items.len(),
        Input::Rows(items) => items.len(),
        Input::Tensors(tensors) => {
            let rows = tensors.first().and_then(|tensor| tensor.shape.first().copied()).unwrap_or(0);
            usize::try_from(rows).unwrap_or(usize::MAX)
        }
    }
}

impl Backend for Engine {
    fn model(&self) -> &ModelInfo {
        &self.core.model
    }

    fn infer(&self, call: Call) -> Boxed<Result<Answer, Refusal>> {
        Box::pin(Arc::clone(&self.core).infer(call))
    }

    fn generate(&self, call: Call) -> Boxed<Result<Parts, Refusal>> {
        let core = Arc::clone(&self.core);
        Box::pin(async move { core.generate(call).await })
    }

    fn tokenize(
        &self,
        texts: Vec<String>,
        special_tokens: bool,
        deadline: Instant,
    ) -> Boxed<Option<Result<Vec<TokenizedText>, Refusal>>> {
        let bytes = texts.iter().map(String::len).sum::<usize>();
        if bytes <= QUICK_BYTES {
            return Box::pin(std::future::ready(self.core.intake.tokenize(&texts, special_tokens)));
        }
        let core = Arc::clone(&self.core);
        let work = move |core: &Core| core.intake.tokenize(&texts, special_tokens);
        Box::pin(async move {
            let done = async {
                let _memory = Reserved::new(&core, (bytes as u64).saturating_mul(TOKENIZED_BYTES))?;
                core.on_the_pool(deadline, work).await
            };
            done.await.unwrap_or_else(|refusal| Some(Err(refusal)))
        })
    }

    fn health(&self) -> Health {
        if self.core.is_draining() {
            return Health::Draining;
        }
        // Beyond it whoever asks is told 504.
        let patience = Duration::try_from_secs_f64(self.core.config.limits.request_timeout_s);
        self.core.board.health(patience.unwrap_or(Duration::MAX))
    }

    fn status(&self) -> Status {
        let (queued_items, running_items, oldest) = {
            let schedule = self.core.schedule();
            (schedule.waiting(), schedule.running(), schedule.oldest())
        };
        let oldest_wait_s = oldest.map_or(0.0, |since| since.elapsed().as_secs_f64());
        Status { workers: self.core.board.status(&self.core), queued_items, running_items, oldest_wait_s }
    }

    fn reload(&self) -> Boxed<Result<(), String>> {
        let reload = self.workers.reload();
        Box::pin(reload)
    }
}
