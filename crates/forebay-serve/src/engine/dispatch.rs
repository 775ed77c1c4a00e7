//! Batches to workers, answers to calls.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use forebay::{
    LoanError,
    service::{AnswerKind, Item, ItemStatus, Meta, RequestLoan, ServiceError, Trace, now_ns},
};

use super::{
    Core,
    call::{Call, Event, Sent},
    link::{Entry, Flight, Handed, Link},
    rows::Given,
};
use crate::{
    backend::{ItemError, ItemErrorKind, Refusal, TraceContext},
    config::OnDeath,
    intake::{Field, RowOf},
    metrics::Stage,
    schedule::{Batch, Waiting},
    trace::{Attribute, Span, SpanKind},
};

/// How soon a worker without a slot is tried again.
const RETRY: Duration = Duration::from_millis(2);

/// Why a batch was not handed over.
enum Undone {
    /// No slot is free.
    Full,
    /// The worker is gone, or its ring cannot be used.
    Gone,
    /// The items cannot be sent: an error in this program.
    Wrong(String),
}

/// What became of an item in an answer.
#[derive(Debug)]
struct Done {
    call: Arc<Call>,
    item: usize,
    batch: Arc<Handed>,
    last: bool,
    /// Its row.
    result: Result<usize, Failure>,
}

#[derive(Debug)]
enum Failure {
    Item(ItemError),
    /// The batch that it was in failed as a whole.
    Batch {
        kind: String,
        message: String,
    },
    Call(Refusal),
}

impl Core {
    /// Hands over all that can be.
    pub(crate) fn dispatch(self: &Arc<Self>) {
        loop {
            let (batch, wake) = {
                let mut schedule = self.schedule();
                let batch = schedule.assign(Instant::now());
                let wake = if batch.is_none() { schedule.wake_at() } else { None };
                (batch, wake)
            };
            let Some(batch) = batch else {
                self.set_timer(wake);
                return;
            };
            self.hand_over(batch);
        }
    }

    fn hand_over(self: &Arc<Self>, batch: Batch<Entry>) {
        let Batch { id, worker, items, width } = batch;
        let undone = match self.link(worker) {
            Some(link) => match self.publish(&link, id, items, width) {
                Ok(()) => return,
                Err(undone) => undone,
            },
            None => (Undone::Gone, items),
        };
        let (why, items) = undone;
        let mut schedule = self.schedule();
        schedule.release(id, items.len());
        match why {
            Undone::Wrong(what) => {
                drop(schedule);
                tracing::error!(what, "a batch could not be written");
                for item in items {
                    let refusal = Refusal::Worker { kind: "Internal".to_owned(), message: what.clone() };
                    self.refuse(&item.load.call, refusal);
                }
            }
            Undone::Full => {
                schedule.block_worker(worker, true);
                schedule.put_back(items);
                drop(schedule);
                self.unblock_later(worker);
            }
            Undone::Gone => {
                schedule.block_worker(worker, true);
                schedule.put_back(items);
            }
        }
    }

    fn unblock_later(self: &Arc<Self>, worker: u64) {
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(RETRY).await;
            if let Some(core) = weak.upgrade() {
                core.schedule().block_worker(worker, false);
                core.dispatch();
            }
        });
    }

    /// Writes a batch into a slot of the worker and publishes it.
    fn publish(
        &self,
        link: &Link,
        id: u64,
        items: Vec<Waiting<Entry>>,
        width: usize,
    ) -> Result<(), (Undone, Vec<Waiting<Entry>>)> {
        let left = Instant::now();
        // ORDER none, Relaxed: only that no number is used twice.
        let first = self.next_item.fetch_add(items.len() as u64, std::sync::atomic::Ordering::Relaxed);
        let rows: Vec<RowOf<'_>> = items.iter().map(|item| (&item.load.call.prepared, item.load.item)).collect();
        let fields = self.intake.fields(&rows, width);
        let specs: Vec<_> = fields.iter().map(Field::spec).collect();
        let numbers = (first..).zip(&items);
        let ids: Vec<Item> = numbers.map(|(id, item)| Item::until(id, item.load.call.deadline_ns)).collect();
        let loan = {
            let mut line = link.lock();
            if line.dead {
                drop(line);
                return Err((Undone::Gone, items));
            }
            let loan = line.client.request(&specs, &ids).map(RequestLoan::detach);
            match loan {
                Ok(loan) => {
                    line.leaking = None;
                    Ok(loan)
                }
                Err(LoanError::Full { .. }) => {
                    if line.client.outstanding() > 0 {
                        line.leaking = None;
                    } else {
                        line.leaking.get_or_insert_with(Instant::now);
                    }
                    Err(Undone::Full)
                }
                Err(error @ (LoanError::TooLarge { .. } | LoanError::Fields { .. })) => {
                    Err(Undone::Wrong(error.to_string()))
                }
                Err(error) => {
                    tracing::warn!(worker = link.worker, %error, "the worker's ring takes nothing");
                    Err(Undone::Gone)
                }
            }
        };
        let mut loan = match loan {
            Ok(loan) => loan,
            Err(undone) => return Err((undone, items)),
        };
        if let Err(what) = self.intake.write(&rows, &mut loan) {
            return Err((Undone::Wrong(what), items));
        }
        let tokens: usize = items.iter().map(|item| item.size().tokens).sum();
        let trace = self.batch_trace(&items);
        let deadline_ns = items.iter().map(|item| item.load.call.deadline_ns).max().unwrap_or(0);
        let meta = Meta {
            deadline_ns,
            trace: trace.as_ref().map(|(context, ..)| Trace {
                trace_id: context.trace_id,
                span_id: context.span_id,
                flags: u8::from(context.sampled),
            }),
        };
        let count = items.len();
        let oldest = items.iter().map(Waiting::since).min().unwrap_or(left);
        let calls: Vec<(Arc<Call>, u64, Duration)> = (first..)
            .zip(&items)
            .map(|(id, item)| (Arc::clone(&item.load.call), id, left.saturating_duration_since(item.since())))
            .collect();
        let request = {
            let mut line = link.lock();
            if line.dead {
                return Err((Undone::Gone, items));
            }
            if line.flights.is_empty() {
                line.progress = Instant::now();
            }
            let batch = Arc::new(Handed { id, items: count, published_ns: now_ns(), trace });
            let request = match line.client.publish(loan, &meta) {
                Ok(request) => request,
                Err(error) => {
                    tracing::warn!(worker = link.worker, %error, "the worker's ring takes nothing");
                    return Err((Undone::Gone, items));
                }
            };
            for (id, waiting) in (first..).zip(items) {
                line.flights.insert(id, Flight { waiting, batch: Arc::clone(&batch), request, begun: false });
            }
            request
        };
        self.metrics.batch(count, width * count, (width * count).saturating_sub(tokens));
        self.metrics.stage(Stage::BatchWait, left.saturating_duration_since(oldest).as_secs_f64());
        self.note_sent(link, request, count, calls);
        Ok(())
    }

    /// Lets each call know where its items are; those that were cancelled meanwhile are cancelled there, too.
    fn note_sent(&self, link: &Link, request: u64, count: usize, calls: Vec<(Arc<Call>, u64, Duration)>) {
        let mut calls = calls.into_iter().peekable();
        while let Some((call, id, waited)) = calls.next() {
            let mut ids = vec![id];
            while let Some((_, id, _)) = calls.next_if(|(next, ..)| Arc::ptr_eq(next, &call)) {
                ids.push(id);
            }
            let waited = waited.as_secs_f64();
            self.metrics.stage(Stage::Queue, waited);
            call.time(|timings| {
                timings.queue_s = timings.queue_s.max(waited);
                timings.batch_items = timings.batch_items.max(count);
            });
            let sent = Sent { worker: link.key, request, ids };
            if !call.sent(sent.clone()) {
                let mut line = link.lock();
                let open: Vec<u64> = sent.ids.into_iter().filter(|id| line.flights.contains_key(id)).collect();
                if !open.is_empty() {
                    line.client.cancel(request, &open);
                }
            }
        }
    }

    /// The span of a batch: a part of the first recorded request in it, linked to the others.
    fn batch_trace(&self, items: &[Waiting<Entry>]) -> Option<(TraceContext, [u8; 8], Vec<TraceContext>)> {
        if !self.tracer.is_on() {
            return None;
        }
        let mut requests = items.iter().filter_map(|item| item.load.call.trace).filter(|trace| trace.sampled);
        let parent = requests.next()?;
        let mut links: Vec<TraceContext> = Vec::new();
        for link in requests {
            if link != parent && !links.contains(&link) {
                links.push(link);
            }
        }
        Some((self.tracer.start(Some(parent))?, parent.span_id, links))
    }

    /// Reads what a worker answered; how its life ended, once it has.
    pub(crate) fn read_answers(self: &Arc<Self>, link: &Link) -> Result<Reading, ServiceError> {
        let _only = link.reading();
        loop {
            let (given, done) = {
                let mut line = link.lock();
                let answer = match line.client.try_answer() {
                    Ok(Some(answer)) => answer,
                    Ok(None) => return Ok(Reading::All),
                    Err(ServiceError::Recv(forebay::RecvError::Quota { .. })) => return Ok(Reading::Quota),
                    Err(error) => return Err(error),
                };
                line.progress = Instant::now();
                // Nothing new for one that has died since: it would count as what that died of.
                line.dead |= !line.client.is_alive();
                if answer.kind() == AnswerKind::Ready {
                    continue;
                }
                let given = Arc::new(Given::new(answer));
                let done = self.sort(&mut line.flights, &given);
                (given, done)
            };
            link.hold(&given);
            self.took(link, &given, &done);
            self.deliver(&given, done);
        }
    }

    /// Reads what is left of the answers of a worker that is gone, and gives it nothing new meanwhile.
    pub(crate) fn read_last_answers(self: &Arc<Self>, link: &Link) {
        self.close_link(link);
        link.close();
        // How it ended is known. Where all is held that may be, all slots are, and nothing lies in them unread.
        let _ = self.read_answers(link);
    }

    /// What an answer says of each item.
    fn sort(&self, flights: &mut HashMap<u64, Flight>, given: &Given) -> Vec<Done> {
        let answer = given.answer();
        if let Some((kind, message)) = answer.failure() {
            let request = answer.request();
            let failed: Vec<u64> = items_of(flights, request);
            let failure = || Failure::Batch { kind: kind.to_owned(), message: message.to_owned() };
            let flights = failed.into_iter().filter_map(|id| flights.remove(&id));
            return flights.map(|flight| Done::new(&flight, true, Err(failure()))).collect();
        }
        let wrong = if self.model.generates { None } else { given.check(&self.outputs).err() };
        let mut done = Vec::with_capacity(answer.items().len());
        for (row, item) in answer.items().iter().enumerate() {
            let result = match item.status {
                ItemStatus::Ok => match &wrong {
                    Some(message) if !self.outputs.is_empty() => {
                        Err(Failure::Batch { kind: "WrongOutput".to_owned(), message: message.clone() })
                    }
                    _ => Ok(row),
                },
                ItemStatus::Error => {
                    let message = answer.error(row).unwrap_or("the model failed on this item").to_owned();
                    Err(Failure::Item(ItemError { kind: ItemErrorKind::Model, message }))
                }
                ItemStatus::Cancelled => Err(Failure::Call(Refusal::Deadline)),
            };
            if item.last {
                done.extend(flights.remove(&item.id).map(|flight| Done::new(&flight, true, result)));
            } else if let Some(flight) = flights.get_mut(&item.id) {
                flight.begun = true;
                done.push(Done::new(flight, false, result));
            }
        }
        done
    }

    /// Enters an answer into the schedule, hands over what that makes room for, and measures.
    fn took(self: &Arc<Self>, link: &Link, given: &Given, done: &[Done]) {
        let mut ended: HashMap<u64, usize> = HashMap::new();
        for done in done.iter().filter(|done| done.last) {
            *ended.entry(done.batch.id).or_default() += 1;
        }
        if !ended.is_empty() {
            let mut schedule = self.schedule();
            schedule.block_worker(link.key, false);
            for (batch, items) in ended {
                schedule.release(batch, items);
            }
            drop(schedule);
            self.dispatch();
        }
        self.measure(given, done);
    }

    fn measure(&self, given: &Given, done: &[Done]) {
        let timings = given.answer().timings();
        let Some(first) = done.first().filter(|_| timings.start_ns > 0) else { return };
        let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e9;
        let forward = seconds(timings.start_ns, timings.end_ns);
        self.metrics.stage(Stage::Forward, forward);
        let mut hand_over = None;
        if !self.model.generates {
            let seconds = seconds(first.batch.published_ns, timings.start_ns);
            self.metrics.stage(Stage::HandOver, seconds);
            hand_over = Some(seconds);
        }
        for done in done {
            done.call.time(|times| {
                times.forward_s =
                    if self.model.generates { times.forward_s + forward } else { times.forward_s.max(forward) };
                times.hand_over_s = times.hand_over_s.max(hand_over.unwrap_or(0.0));
            });
        }
        if let Some((context, parent, links)) = &first.batch.trace {
            self.spans(first, (timings.start_ns, timings.end_ns), (*context, *parent, links.clone()));
        }
    }

    fn spans(
        &self,
        done: &Done,
        (start_ns, end_ns): (u64, u64),
        (context, parent, links): (TraceContext, [u8; 8], Vec<TraceContext>),
    ) {
        let (now, wall) = (now_ns(), SystemTime::now());
        let at = |ns: u64| wall - Duration::from_nanos(now.saturating_sub(ns));
        let batch = &done.batch;
        if done.last {
            self.tracer.span(Span {
                context,
                parent: Some(parent),
                name: "batch",
                kind: SpanKind::Internal,
                start: at(batch.published_ns),
                end: wall,
                attributes: vec![("forebay.items", Attribute::Int(batch.items as i64))],
                links,
                error: None,
            });
        }
        if let Some(forward) = self.tracer.start(Some(context)) {
            self.tracer.span(Span {
                context: forward,
                parent: Some(context.span_id),
                name: "forward",
                kind: SpanKind::Consumer,
                start: at(start_ns),
                end: at(end_ns),
                attributes: Vec::new(),
                links: Vec::new(),
                error: None,
            });
        }
    }

    /// Gives results to calls. A batch that failed as a whole fails the items that were in it: a call with others, too, is
    /// answered with what becomes of those.
    fn deliver(&self, given: &Arc<Given>, done: Vec<Done>) {
        let mut done = done.into_iter().peekable();
        while let Some(first) = done.next() {
            let call = Arc::clone(&first.call);
            let (mut results, mut failed, mut refusal) = (Vec::new(), Vec::new(), None);
            let mut one = |Done { item, last, result, .. }: Done| match result {
                Ok(row) => results.push((item, last, Ok(row))),
                Err(Failure::Item(error)) => results.push((item, last, Err(error))),
                Err(Failure::Batch { kind, message }) => failed.push((item, kind, message)),
                Err(Failure::Call(why)) => refusal = Some(why),
            };
            one(first);
            while let Some(next) = done.next_if(|next| Arc::ptr_eq(&next.call, &call)) {
                one(next);
            }
            if failed.len() == call.prepared.items.len() {
                refusal = failed.pop().map(|(_, kind, message)| Refusal::Worker { kind, message });
            } else {
                results.extend(failed.into_iter().map(|(item, kind, message)| {
                    let message = if message.is_empty() { kind } else { format!("{kind}: {message}") };
                    (item, true, Err(ItemError { kind: ItemErrorKind::Model, message }))
                }));
            }
            if self.model.generates {
                for (item, last, result) in results {
                    call.event(match result {
                        Ok(row) => Event::Tokens { item, tokens: given.tokens(row), last },
                        Err(error) => Event::Failed { item, error },
                    });
                }
            } else if !results.is_empty() {
                call.answer(results.into_iter().map(|(item, _, result)| (item, result)).collect(), given);
            }
            if let Some(refusal) = refusal {
                self.refuse(&call, refusal);
            }
        }
    }

    /// Answers for a worker that is gone: its calls fail, or go to another one.
    pub(super) fn bury(&self, link: &Link) {
        let flights: Vec<Flight> = {
            let mut line = link.lock();
            line.dead = true;
            line.flights.drain().map(|(_, flight)| flight).collect()
        };
        self.schedule().remove_worker(link.key);
        let retry = self.config.worker.on_death == OnDeath::Retry;
        // A worker takes one batch after the other: those behind the first are not what it died of. Generating ones take all.
        let running = flights.iter().map(|flight| flight.request).min().filter(|_| !self.model.generates);
        let mut again = Vec::new();
        for flight in flights {
            let innocent = running.is_some_and(|running| flight.request > running);
            let mut waiting = flight.waiting;
            if waiting.load.call.is_over() {
                continue;
            }
            if !flight.begun && (innocent || retry && waiting.load.deaths == 0) {
                waiting.load.deaths += u32::from(!innocent);
                again.push(waiting);
            } else {
                let call = Arc::clone(&waiting.load.call);
                self.refuse(&call, Refusal::WorkerDied);
            }
        }
        self.schedule().begin_anew(Instant::now(), again);
    }
}

impl Done {
    fn new(flight: &Flight, last: bool, result: Result<usize, Failure>) -> Self {
        let entry = &flight.waiting.load;
        Self { call: Arc::clone(&entry.call), item: entry.item, batch: Arc::clone(&flight.batch), last, result }
    }
}

/// The items of a request that have no answer yet, in their order.
fn items_of(flights: &HashMap<u64, Flight>, request: u64) -> Vec<u64> {
    let own = flights.iter().filter(|(_, flight)| flight.request == request);
    let mut ids: Vec<u64> = own.map(|(&id, _)| id).collect();
    ids.sort_unstable();
    ids
}

/// How far reading answers came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Nothing is left.
    All,
    /// More can be read once answers that are being serialized are let go of.
    Quota,
}
