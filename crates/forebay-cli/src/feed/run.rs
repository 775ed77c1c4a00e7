//! From the first line to the last message.
//!
//! # How it ends
//! - All lines are read: it waits until consumers are through with them, and the ring goes. A signal ends that wait.
//! - A signal, or an error: what is published is drained for at most `--drain-timeout`; on posix the ring stays, with the
//!   position in it, for the same command to go on.
//! - The position of an earlier feed cannot be used: that ring is left as it was found.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use forebay::{Backing, CreateError, DType, FieldSpec, Kind, LoanError, Producer, WaitError};
use forebay_ingest::{IngestError, Pipeline, Position, Source, TokenBatch, Tokenizer};

use super::{
    args::Args,
    lines::{IDS, Lines, MASK},
    progress::Progress,
    summary::{Done, Summary},
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
    // Everything that can be wrong with the arguments is found before there is a ring.
    let tokenizer = args.load_tokenizer()?;
    let source = Source::open(&args.inputs(), args.source_options()).map_err(Failure::usage)?;
    let options = args.producer_options(&tokenizer)?;
    let mut producer = options.create().map_err(created)?;
    announce(&args, &tokenizer, &producer);
    let source = match resume(&args, &producer, source) {
        Ok(source) => source,
        Err(failure) => {
            leave(producer);
            return Err(failure);
        }
    };
    let resumed = source.position() != Position::default() && source.position().items > 0;
    let pipeline = match Pipeline::start(source, Arc::new(tokenizer), args.pipeline_options(&stop)) {
        Ok(pipeline) => pipeline,
        Err(e) => {
            leave(producer);
            return Err(ingest(e));
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
    Feed::new(args, stop, producer, pipeline, resumed).finish()
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
        IngestError::BadLine { .. } => Failure::failed(format!("{error} (--on-error skip)")),
        _ => Failure::failed(error),
    }
}

/// Says what ring there is now.
fn announce(args: &Args, tokenizer: &Tokenizer, producer: &Producer) {
    let class = &producer.geometry().classes[0];
    show::say(&format!(
        "feeding ring {:?}: {} of {}, {} {}",
        args.ring,
        count(class.slots.into(), "slot"),
        crate::units::Bytes(class.slot_bytes),
        args.backing,
        args.kind
    ));
    if tokenizer.max_cols().is_none() {
        let rows = producer.schema().map_or(1, |schema| schema.fields()[0].max_dims()[0]).max(1);
        show::say(&format!(
            "this tokenizer sets no longest row: a slot holds {rows} rows of up to {} tokens; a longer line ends the feed. \
             --max-length truncates, --slot-bytes makes room",
            class.slot_bytes / (16 * rows)
        ));
    }
    for note in producer.notes() {
        show::say(note);
    }
}

/// The source, moved on to where an earlier feed stopped.
fn resume(args: &Args, producer: &Producer, source: Source) -> Result<Source, Failure> {
    let Some(takeover) = producer.takeover() else { return Ok(source) };
    let left = count(takeover.outstanding, "message");
    if takeover.last_user.is_empty() {
        show::say(&format!("took over ring {:?}, {left} not received yet; nothing tells where to go on", args.ring));
        return Ok(source);
    }
    let refused = |e: &dyn std::fmt::Display| {
        Failure::usage(format!(
            "ring {:?} was left by an earlier feed, which this one cannot go on from: {e}. On the command line that is \
             --fresh, which discards {left} not received yet",
            args.ring
        ))
    };
    let position = Position::decode(&takeover.last_user).map_err(|e| refused(&e))?;
    drop(source);
    let source = Source::resume(&args.inputs(), args.source_options(), &position).map_err(|e| refused(&e))?;
    show::say(&format!(
        "going on after line {} of {} ({} done before); {left} of the earlier feed not received yet",
        position.line,
        source.name(position.file),
        count(position.items, "row"),
    ));
    Ok(source)
}

/// A feed that runs.
struct Feed {
    args: Args,
    stop: Stop,
    producer: Producer,
    pipeline: Pipeline,
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
}

impl Feed {
    fn new(args: Args, stop: Stop, producer: Producer, pipeline: Pipeline, resumed: bool) -> Self {
        let progress = Progress::new(args.progress, args.no_progress, pipeline.input_bytes());
        let before = producer.stats();
        Self {
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
            resumed,
        }
    }

    /// Publishes everything, drains, closes, and tells how it went.
    fn finish(mut self) -> Result<(), Failure> {
        let published = self.publish_all();
        let elapsed = self.start.elapsed();
        let complete = published.is_ok() && self.pipeline.report().complete;
        self.tell_skipped();
        if let Err(failure) = &published {
            self.progress.pause(|| show::say(&failure.text));
        } else if !complete && !self.can_wait() {
            self.progress.pause(|| show::say(STOPPING));
        } else if complete && self.pipeline.report().items == 0 && !self.resumed {
            self.progress.pause(|| show::say("there was no line to make a row of"));
        }
        let drained = if !complete && self.can_wait() { Ok(false) } else { self.drain(complete) };
        self.progress.finish();
        let mut summary = Summary {
            ring: self.args.ring.clone(),
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
        self.close(complete && drained == Ok(true));
        show::put(&if json { summary.json() } else { summary.table() })?;
        let mut wrong: Vec<String> = drained.err().into_iter().collect();
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
            self.progress.update(self.pipeline.report());
            if self.stop.asked() {
                break;
            }
        }
        Ok(())
    }

    /// Writes one batch in place and publishes it. A signal that comes while it waits for a slot ends the wait; the batch
    /// is then not published, and the position that travels with the last message is before it.
    fn publish(&mut self, batch: &TokenBatch) -> Result<(), Failure> {
        let shape = [batch.rows() as u64, batch.cols() as u64];
        let fields = [FieldSpec::new(IDS, DType::I64, &shape), FieldSpec::new(MASK, DType::I64, &shape)];
        let timeout = self.args.full_timeout();
        let mut room = self.make_room(&fields, timeout);
        if let Err(LoanError::Full { dead: 1.., .. }) = room {
            // Letters keep their slots until they are told.
            self.tell_dead_letters();
            room = self.make_room(&fields, timeout);
        }
        match room {
            Ok(()) => {}
            Err(LoanError::Interrupted { .. }) => return Ok(()),
            Err(e @ LoanError::TooLarge { .. }) => return Err(too_large(&e, batch, &self.pipeline)),
            Err(e) => {
                self.gave_up = matches!(e, LoanError::Full { .. });
                return Err(Failure::failed(e));
            }
        }
        let mut loan = self.producer.try_loan(&fields).map_err(Failure::failed)?;
        let (ids, mask) = loan.tensors_mut::<i64, i64>(IDS, MASK).map_err(Failure::failed)?;
        batch.write_into(ids, mask).map_err(Failure::failed)?;
        loan.set_correlation_id(batch.first_item);
        loan.set_user(&batch.next.encode()).map_err(Failure::failed)?;
        let slot = loan.slot();
        let sequence = loan.publish().map_err(Failure::failed)?;
        self.lines.note(slot, sequence, batch);
        self.tell_dead_letters();
        self.done.rows += batch.rows() as u64;
        self.done.tokens += batch.tokens.token_count() as u64;
        self.done.padded_tokens += shape[0] * shape[1];
        Ok(())
    }

    /// Waits until there is a slot for a message of these fields.
    fn make_room(&mut self, fields: &[FieldSpec<'_>], timeout: Option<Duration>) -> Result<(), LoanError> {
        let (stop, progress) = (&self.stop, &mut self.progress);
        let mut interrupted = || {
            progress.waiting();
            stop.asked()
        };
        self.producer.loan_within(fields, timeout, &mut interrupted).map(drop)
    }

    fn tell_dead_letters(&mut self) {
        for letter in self.producer.take_dead_letters() {
            self.dead_letters += 1;
            let text = self.lines.describe(&letter, |file| self.pipeline.name(file).to_owned());
            self.progress.pause(|| show::say(&text));
        }
    }

    fn tell_skipped(&mut self) {
        let first = self.pipeline.report().skipped.first();
        for line in &first[self.told..] {
            let name = self.pipeline.name(line.file);
            self.progress.pause(|| show::say(&format!("skipped {name} line {}: {}", line.line, line.reason)));
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
        let Self { mut producer, args, .. } = self;
        let stats = producer.stats();
        if finished || args.backing == Backing::Memfd || stats.published == 0 {
            producer.close();
            return;
        }
        producer.suspend();
        show::say(&format!(
            "ring {:?} stays, with {} not received and its place in the text: the same command goes on there, --fresh \
             starts over, `forebay clean` removes it",
            args.ring,
            count(stats.undelivered.into(), "message")
        ));
    }
}

fn too_large(error: &LoanError, batch: &TokenBatch, pipeline: &Pipeline) -> Failure {
    let longest = batch.tokens.iter().zip(&batch.lines).max_by_key(|(row, _)| row.len());
    let line = longest.map_or(String::new(), |(row, id)| {
        format!("; its longest row has {} tokens ({} line {})", row.len(), pipeline.name(id.file), id.line)
    });
    Failure::failed(format!("{error}{line}. On the command line: --slot-bytes, --max-length or a smaller --batch"))
}
