//! From the first item to the last message.
//!
//! # How it ends
//! - Everything is read: it waits until consumers are through with them, and the ring goes. A signal ends that wait.
//! - A signal, or an error: what is published is drained for at most `--drain-timeout`; on posix the ring stays, with the
//!   position in it, for the same command to go on.
//! - The position of an earlier feed cannot be used: that ring is left as it was found.
//!
//! # A batch that no slot has room for
//! ends the feed, unless bad items are skipped. Then it is halved until its parts fit, each a message of its own, in
//! order; a row that does not fit by itself is left out. While a batch is out in part, its messages carry the place before
//! it and how many of its rows are done ([`Place`]), so that a feed that goes on from there goes on within the batch.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use forebay::{Backing, CreateError, FieldSpec, Kind, LoanError, Producer, WaitError};
use forebay_ingest::{Batch, Batches, IngestError, OnError, PipelineOptions, Skipped, Watcher};

use super::{
    args::{Args, What},
    keep::Keeper,
    kind::{Feeds, Tensor, schema},
    lines::Lines,
    place::{Part, Place},
    progress::Progress,
    resume::resume,
    skips::Skips,
    summary::{Done, Summary, TOO_LARGE},
};
use crate::{
    failure::Failure,
    show::{self, count},
    stop::Stop,
};

/// How long one wait for consumers may last before it looks for dead letters.
const ROUND: Duration = Duration::from_millis(250);

const STOPPING: &str = "stopping: waiting until consumers have what is published";

/// Runs `forebay feed`.
pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let stop = Stop::on_signals().map_err(|e| Failure::failed(format!("cannot catch signals: {e}")))?;
    match args.what() {
        What::Text => feed(&args.text()?, args, stop),
        What::Images => feed(&args.images()?, args, stop),
        What::Table => feed(&args.table()?, args, stop),
    }
}

fn feed<F: Feeds>(what: &F, args: Args, stop: Stop) -> Result<(), Failure> {
    // Everything that can be wrong with the arguments is found before there is a ring.
    let source = what.open().map_err(Failure::usage)?;
    let options = args.producer_options(what)?;
    let mut producer = options.create().map_err(created)?;
    let ring = args.ring(F::NAME);
    announce(&args, ring, what, &producer);
    let started = begin(&args, what, &producer, source, &stop);
    let begun = match started {
        Ok(started) => started,
        Err(failure) => {
            leave(producer);
            return Err(failure);
        }
    };
    if args.reads_terminal() {
        show::say("reading lines from the terminal; Ctrl-D ends them");
    }
    let wait_for = args.wait_for();
    if wait_for > 0 {
        show::say(&format!("waiting for {} to attach", count(wait_for as u64, "consumer")));
    }
    match producer.wait_for_consumers_within(wait_for, None, &mut || stop.asked()) {
        Ok(()) | Err(WaitError::Interrupted) => {}
        Err(e) => return Err(Failure::failed(e)),
    }
    Feed::new(what, args, stop, producer, begun).finish()
}

/// What runs, and what is written beside.
struct Begun<F: Feeds> {
    pipeline: Batches<F::Data>,
    /// Where it began.
    place: Place,
    keeper: Option<Keeper>,
    skips: Option<Arc<Skips>>,
}

/// Starts the pipeline where it has to begin.
fn begin<F: Feeds>(
    args: &Args,
    what: &F,
    producer: &Producer,
    source: F::Source,
    stop: &Stop,
) -> Result<Begun<F>, Failure> {
    let mut keeper = match &args.position {
        Some(path) => {
            let schema = schema(F::NAME, &what.largest(args.batch)).map_err(Failure::usage)?;
            Some(Keeper::new(path, schema.to_string()))
        }
        None => None,
    };
    let (source, place) = resume(args, what, producer, source, keeper.as_ref())?;
    if let Some(keeper) = &mut keeper {
        // Whether it can be written is known before there is a message.
        keeper.save(&place, true)?;
    }
    let skips = args.report.as_deref().map(|path| Skips::open(path, args.fresh)).transpose()?;
    let watcher = skips.as_ref().map_or_else(Watcher::default, Skips::watcher);
    let ahead = place.checkpoint.ahead.clone();
    let options = PipelineOptions { ahead, watcher, ..args.pipeline_options(stop) };
    let pipeline = what.start(source, options).map_err(ingest)?;
    Ok(Begun { pipeline, place, keeper, skips })
}

/// Ends without having published anything: a ring that was taken over is neither closed nor removed, so that the next
/// feed finds it as this one did.
fn leave(producer: Producer) {
    if producer.takeover().is_some() {
        std::mem::forget(producer);
    }
}

fn created(error: CreateError) -> Failure {
    match error {
        CreateError::Name { .. } | CreateError::Geometry { .. } | CreateError::Options { .. } => Failure::usage(error),
        CreateError::Different { .. } | CreateError::Damaged { .. } => {
            Failure::usage(format!("{error}. On the command line that is --fresh"))
        }
        CreateError::Memory { .. } => Failure::failed(format!("{error}; `forebay doctor` shows what there is")),
        _ => Failure::failed(error),
    }
}

/// What went wrong with the inputs; whatever has to do with an earlier feed names the way out.
fn ingest(error: IngestError) -> Failure {
    use IngestError::{Changed, GrownLine, OtherInputs, Shrunk};
    match error {
        OtherInputs { .. } | Shrunk { .. } | Changed { .. } | GrownLine { .. } => {
            Failure::usage(format!("{error}. On the command line that is --fresh"))
        }
        IngestError::BadOption { .. } => Failure::usage(error),
        IngestError::BadLine { .. } | IngestError::BadSample { .. } => {
            Failure::failed(format!("{error} (--on-error skip)"))
        }
        _ => Failure::failed(error),
    }
}

/// Says what ring there is now.
fn announce<F: Feeds>(args: &Args, ring: &str, what: &F, producer: &Producer) {
    let class = &producer.geometry().classes[0];
    show::say(&format!(
        "feeding ring {ring:?}: {} of {}, {} {}",
        count(class.slots.into(), "slot"),
        crate::units::Bytes(class.slot_bytes),
        args.backing,
        args.kind
    ));
    if let Some(note) = what.note(class.slot_bytes, args.batch) {
        show::say(&note);
    }
    for note in producer.notes() {
        show::say(note);
    }
}

/// What became of rows that were to be published.
enum Sent {
    Published,
    /// A signal ended the wait for a slot.
    Stopped,
    TooLarge(LoanError),
}

/// A feed that runs.
struct Feed<'a, F: Feeds> {
    what: &'a F,
    args: Args,
    stop: Stop,
    producer: Producer,
    pipeline: Batches<F::Data>,
    lines: Lines,
    progress: Progress,
    before: forebay::ProducerStats,
    done: Done,
    dead_letters: u64,
    /// No slot became free in time.
    gave_up: bool,
    /// Skipped lines told so far.
    told: usize,
    start: Instant,
    resumed: bool,
    /// Behind what is published.
    place: Place,
    /// The part that it began with, until that batch is done: another one that is cut meanwhile takes the place of it there.
    begun: Option<Part>,
    keeper: Option<Keeper>,
    skips: Option<Arc<Skips>>,
}

impl<'a, F: Feeds> Feed<'a, F> {
    fn new(what: &'a F, args: Args, stop: Stop, producer: Producer, begun: Begun<F>) -> Self {
        let Begun { pipeline, place, keeper, skips } = begun;
        let progress = Progress::new(args.shown(), F::TOKENS, pipeline.input_bytes());
        let before = producer.stats();
        Self {
            what,
            args,
            stop,
            producer,
            pipeline,
            lines: Lines::default(),
            progress,
            before,
            done: Done::default(),
            dead_letters: 0,
            gave_up: false,
            told: 0,
            start: Instant::now(),
            resumed: !place.is_start(),
            begun: place.part,
            place,
            keeper,
            skips,
        }
    }

    /// Publishes everything, drains, closes, and tells how it went.
    fn finish(mut self) -> Result<(), Failure> {
        let published = self.publish_all();
        let kept = self.keep(true);
        let published = published.and(kept).and(self.check_skips());
        let elapsed = self.start.elapsed();
        let complete = published.is_ok() && self.pipeline.report().complete;
        self.tell_skipped();
        if let Err(failure) = &published {
            self.progress.pause(|| show::say(&failure.text));
        } else if !complete && !self.can_wait() {
            self.progress.pause(|| show::say(STOPPING));
        } else if complete && self.pipeline.report().items == 0 && !self.resumed {
            self.progress.pause(|| show::say(&format!("there was no {} to make a row of", F::UNIT)));
        }
        let drained = if !complete && self.can_wait() { Ok(false) } else { self.drain(complete) };
        self.progress.finish();
        let mut summary = Summary {
            ring: self.args.ring(F::NAME).to_owned(),
            text: F::TOKENS,
            report: self.pipeline.report().clone(),
            done: self.done,
            messages: 0,
            payload_bytes: 0,
            dropped: 0,
            dead_letters: self.dead_letters,
            full_waits: 0,
            outstanding: 0,
            elapsed,
            resumed: self.resumed,
        };
        summary.count(&self.before, &self.producer.stats());
        let json = self.args.json;
        let finished = complete && drained == Ok(true);
        let removed = self.keeper.as_ref().filter(|_| finished).map_or(Ok(()), Keeper::remove);
        self.close(finished);
        show::put(&if json { summary.json() } else { summary.table() })?;
        let mut wrong: Vec<String> = drained.err().into_iter().chain(removed.err().map(|e| e.text)).collect();
        if summary.dead_letters > 0 {
            wrong.push(format!("{} given up, see above", count(summary.dead_letters, "message")));
        }
        let wrong = wrong.join("; ");
        match published {
            // What went wrong was told when it did.
            Err(failure) => Err(Failure { text: wrong, ..failure }),
            Ok(()) if wrong.is_empty() => Ok(()),
            Ok(()) => Err(Failure::failed(wrong)),
        }
    }

    fn publish_all(&mut self) -> Result<(), Failure> {
        while let Some(batch) = self.pipeline.next() {
            self.publish(&batch.map_err(ingest)?)?;
            self.tell_skipped();
            self.keep(false)?;
            self.check_skips()?;
            self.progress.update(self.pipeline.report());
            if self.stop.asked() {
                break;
            }
        }
        Ok(())
    }

    /// Publishes one batch, in one message if there is room for it.
    fn publish(&mut self, batch: &Batch<F::Data>) -> Result<(), Failure> {
        let all = batch.rows();
        let part = self.parts().find(|part| Self::is_of(part, batch));
        let begun = self.begun.filter(|part| !Self::is_of(part, batch));
        let done = part.map_or(0, |part| usize::try_from(part.rows()).unwrap_or(all).min(all));
        // The next ones to publish are the last.
        let mut left: Vec<Range<usize>> = (done < all).then_some(done..all).into_iter().collect();
        while let Some(rows) = left.pop() {
            match self.send(batch, &rows)? {
                Sent::Published => {}
                Sent::Stopped => return Ok(()),
                Sent::TooLarge(e) if self.args.on_error == OnError::Fail => {
                    return Err(Failure::failed(self.what.too_large(&e, batch, &self.pipeline)));
                }
                Sent::TooLarge(e) if rows.len() == 1 => self.skip_row(batch, rows.start, &e),
                Sent::TooLarge(_) => {
                    let middle = rows.start + rows.len() / 2;
                    left.push(middle..rows.end);
                    left.push(rows.start..middle);
                }
            }
        }
        // Its last rows may have been left out, without a message to say so.
        self.place = self.behind(batch, all);
        self.begun = begun;
        Ok(())
    }

    /// What is done of batches that are not.
    fn parts(&self) -> impl Iterator<Item = Part> + use<F> {
        [self.place.part, self.begun].into_iter().flatten()
    }

    /// Whether a part is of this batch, whichever way the run that cut it was ordered.
    fn is_of(part: &Part, batch: &Batch<F::Data>) -> bool {
        part.begins_at(&batch.follows) || part.begins_at(&batch.first)
    }

    /// Where the feed stands once so many rows of a batch are done.
    fn behind(&self, batch: &Batch<F::Data>, rows: usize) -> Place {
        if rows == batch.rows() {
            let part = self.parts().find(|part| !Self::is_of(part, batch));
            return Place { checkpoint: batch.checkpoint(), part };
        }
        let checkpoint = self.place.checkpoint.clone();
        // In order that is known, and tells the end of a pass from the beginning of the next.
        let first = if self.args.ordered { batch.follows } else { batch.first };
        Place { checkpoint, part: Some(Part::new(first, rows)) }
    }

    /// Writes rows of a batch in place and publishes them. A signal that comes while it waits for a slot ends the wait;
    /// they are then not published, and the position that travels with the last message is before them.
    fn send(&mut self, batch: &Batch<F::Data>, rows: &Range<usize>) -> Result<Sent, Failure> {
        let tensors = self.what.tensors(batch, rows);
        let fields: Vec<FieldSpec<'_>> = tensors.iter().map(Tensor::spec).collect();
        let timeout = self.args.full_timeout();
        let mut room = self.make_room(&fields, timeout);
        if let Err(LoanError::Full { dead: 1.., .. }) = room {
            // Letters keep their slots until they are told.
            self.tell_dead_letters();
            room = self.make_room(&fields, timeout);
        }
        match room {
            Ok(()) => {}
            Err(LoanError::Interrupted { .. }) => return Ok(Sent::Stopped),
            Err(e @ LoanError::TooLarge { .. }) => return Ok(Sent::TooLarge(e)),
            Err(e) => {
                self.gave_up = matches!(e, LoanError::Full { .. });
                return Err(Failure::failed(e));
            }
        }
        let place = self.behind(batch, rows.end);
        let mut loan = self.producer.try_loan(&fields).map_err(Failure::failed)?;
        self.what.write(batch, rows, &mut loan)?;
        loan.set_correlation_id(batch.first_item + rows.start as u64);
        loan.set_user(&place.encode()).map_err(Failure::failed)?;
        let slot = loan.slot();
        let sequence = loan.publish().map_err(Failure::failed)?;
        self.place = place;
        self.lines.note(slot, sequence, &batch.lines[rows.clone()]);
        self.tell_dead_letters();
        let (tokens, padded) = self.what.tokens(batch, rows);
        self.done.rows += rows.len() as u64;
        self.done.tokens += tokens;
        self.done.padded_tokens += padded;
        Ok(Sent::Published)
    }

    /// Waits until there is a slot for a message of these fields.
    fn make_room(&mut self, fields: &[FieldSpec<'_>], timeout: Option<Duration>) -> Result<(), LoanError> {
        let (stop, progress) = (&self.stop, &mut self.progress);
        let (keeper, place) = (&mut self.keeper, &self.place);
        let mut interrupted = || {
            progress.waiting();
            if let Some(keeper) = keeper.as_mut() {
                // It may wait long. What goes wrong is told when the wait is over, if it still does.
                let _ = keeper.save(place, false);
            }
            stop.asked()
        };
        self.producer.loan_within(fields, timeout, &mut interrupted).map(drop)
    }

    fn tell_dead_letters(&mut self) {
        for letter in self.producer.take_dead_letters() {
            self.dead_letters += 1;
            let text = self.lines.describe(&letter, F::UNIT, |file| self.pipeline.name(file).to_owned());
            self.progress.pause(|| show::say(&text));
        }
    }

    /// Writes the place to the file of `--position` if there is one and it is time; with `now` in any case.
    fn keep(&mut self, now: bool) -> Result<(), Failure> {
        self.keeper.as_mut().map_or(Ok(()), |keeper| keeper.save(&self.place, now))
    }

    fn check_skips(&self) -> Result<(), Failure> {
        self.skips.as_ref().map_or(Ok(()), |skips| skips.check())
    }

    /// Leaves out a row that no slot has room for.
    fn skip_row(&mut self, batch: &Batch<F::Data>, row: usize, error: &LoanError) {
        self.done.too_large += 1;
        let line = batch.lines[row];
        let name = self.pipeline.name(line.file);
        let reason = format!("{error}. On the command line: --slot-bytes");
        if let Some(skips) = &self.skips {
            skips.write(name, line.line, TOO_LARGE, &reason);
        }
        if self.done.too_large <= Skipped::KEPT as u64 {
            self.progress.pause(|| show::say(&format!("skipped {name} {} {}: {reason}", F::UNIT, line.line)));
        }
    }

    fn tell_skipped(&mut self) {
        let first = self.pipeline.report().skipped.first();
        for line in &first[self.told..] {
            let name = self.pipeline.name(line.file);
            self.progress.pause(|| show::say(&format!("skipped {name} {} {}: {}", F::UNIT, line.line, line.reason)));
        }
        self.told = first.len();
    }

    /// Whether what is published can stay as it is: nobody is there or came in time to receive it, and the next feed
    /// finds it. After an error of a line somebody may still come.
    fn can_wait(&self) -> bool {
        let kept = self.args.backing == Backing::Posix && self.args.kind == Kind::Queue;
        kept && self.producer.consumers() == 0 && (self.stop.asked() || self.gave_up)
    }

    /// Waits until consumers are through with what is published. After a signal or an error that has a limit; a signal
    /// that comes meanwhile gives what is left the same time. False if it can stay as it is.
    fn drain(&mut self, complete: bool) -> Result<bool, String> {
        let mut waiting = !complete;
        let mut deadline = (!complete).then(|| Instant::now() + self.args.drain_timeout);
        loop {
            if deadline.is_none() && self.stop.asked() {
                self.progress.pause(|| show::say(STOPPING));
                deadline = Some(Instant::now() + self.args.drain_timeout);
            }
            if self.stop.asked() && self.can_wait() {
                return Ok(false);
            }
            let left = deadline.map_or(ROUND, |deadline| deadline.saturating_duration_since(Instant::now()).min(ROUND));
            let limited = deadline.is_some();
            let stop = self.stop.clone();
            let drained = self.producer.drain_within(Some(left), &mut || !limited && stop.asked());
            self.tell_dead_letters();
            match drained {
                Ok(()) => return Ok(true),
                Err(WaitError::Interrupted) => {}
                Err(WaitError::Timeout { what, .. }) => {
                    if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                        return Err(format!("{what}; gave up after --drain-timeout"));
                    }
                    if !std::mem::replace(&mut waiting, true) {
                        let attached = count(self.producer.consumers() as u64, "consumer");
                        let left = count(self.producer.stats().undelivered.into(), "message");
                        let text = format!("everything is published; {left} to be received, {attached} attached");
                        self.progress.pause(|| show::say(&text));
                    }
                }
                Err(e) => return Err(e.to_string()),
            }
            self.progress.draining(self.producer.stats().undelivered);
        }
    }

    /// Closes the ring; an unfinished feed leaves it for the next one.
    fn close(self, finished: bool) {
        let Self { mut producer, args, keeper, .. } = self;
        if !finished && let Some(keeper) = keeper {
            show::say(&format!("the place in the input is in {}", keeper.path().display()));
        }
        let ring = args.ring(F::NAME);
        let stats = producer.stats();
        if finished || args.backing == Backing::Memfd || stats.published == 0 {
            producer.close();
            return;
        }
        producer.suspend();
        show::say(&format!(
            "ring {ring:?} stays, with {} not received and its place in the input: the same command goes on there, --fresh \
             starts over, `forebay clean` removes it",
            count(stats.undelivered.into(), "message")
        ));
    }
}
