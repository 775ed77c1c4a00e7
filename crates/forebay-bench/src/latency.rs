//! One message in flight: what its hand-over takes, from before the loan to the tensor in the other process, and what a
//! request and its response take together.

use std::{
    io::Read as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use forebay::{Consumer, DType, FieldSpec, Kind, Producer, RecvError, WaitPolicy};
use forebay_os::{clock, process};

use crate::{
    BenchError, Effort, Programs, failed, floor,
    order::{Answer, Direction, FIELD, Order, Read, Write},
    peer::{PATIENCE, reply, schema, take},
    summary::{Summary, Times},
};

/// Messages that are counted at least, however long they take.
const FEWEST: u64 = 20;

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) direction: Direction,
    pub(crate) kind: Kind,
    pub(crate) consumers: u32,
    pub(crate) bytes: u64,
    pub(crate) wait: WaitPolicy,
    pub(crate) write: Write,
    pub(crate) read: Read,
}

/// Where and how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting<'a> {
    pub(crate) programs: &'a Programs,
    pub(crate) pinned: Option<(usize, usize)>,
    pub(crate) effort: Effort,
}

impl Case {
    /// Slots of a ring that is measured one message at a time: enough that none is waited for.
    fn slots(&self) -> u32 {
        if self.bytes >= 64 << 20 { 2 } else { 4 }
    }

    /// The first messages are not counted: they warm caches, predictors and an interpreter.
    fn warm(&self) -> u64 {
        if self.bytes > 1 << 20 { 8 } else { 200 }
    }

    pub(crate) fn order(&self, dir: &Path, setting: &Setting<'_>) -> Order {
        Order {
            dir: dir.to_owned(),
            ring: "there".to_owned(),
            reply: None,
            receives: true,
            direction: self.direction,
            wait: self.wait.name().to_owned(),
            write: self.write,
            read: self.read,
            bytes: self.bytes,
            warm: self.warm(),
            messages: setting.effort.messages,
            nap_ns: if self.sleeps() { floor::NAP.as_nanos() as u64 } else { 0 },
            cpu: setting.pinned.map(|(_, cpu)| cpu),
        }
    }

    pub(crate) fn producer(&self, dir: &Path, slots: u32) -> Result<Producer, BenchError> {
        let options = Producer::options("there").dir(dir).kind(self.kind).slots(slots);
        let options = options.schema(schema(self.bytes)?).max_consumers(self.consumers);
        options.create().map_err(|e| failed("the ring to measure")(&e))
    }

    /// Whether the consumer is asleep when the message comes.
    pub(crate) fn sleeps(&self) -> bool {
        self.wait == WaitPolicy::Block
    }

    /// Puts one message into the ring. `source` is what a copy is made from.
    pub(crate) fn send(&self, producer: &mut Producer, stamp: u64, source: &[u8]) -> Result<(), BenchError> {
        let shape = [self.bytes];
        let fields = [FieldSpec::new(FIELD, DType::U8, &shape)];
        let mut loan = producer.loan(&fields).map_err(|e| failed("a loan")(&e))?;
        if self.write == Write::Copy
            && let Some(to) = loan.bytes_mut(0)
        {
            to.copy_from_slice(source);
        }
        loan.set_correlation_id(stamp);
        loan.publish().map_err(|e| failed("publishing")(&e)).map(drop)
    }

    /// What copies are made from.
    pub(crate) fn source(&self) -> Vec<u8> {
        if self.write == Write::Copy { vec![7; self.bytes as usize] } else { Vec::new() }
    }
}

/// A peer process; killed if it is not waited for.
pub(crate) struct Peer(Child);

impl Peer {
    pub(crate) fn start(order: &Order, programs: &Programs) -> Result<Self, BenchError> {
        let order_text = serde_json::to_string(order).map_err(|e| failed("an order")(&e))?;
        let mut command = match (&programs.python, order.direction) {
            (_, Direction::Native) => {
                let mut words = programs.native.iter();
                let mut command = Command::new(words.next().map_or("", String::as_str));
                command.args(words);
                command
            }
            (Some(python), _) => {
                let mut command = Command::new(python);
                command.args(["-m", "forebay._bench"]);
                command
            }
            (None, _) => return Err(BenchError::Failed("no Python that imports forebay".to_owned())),
        };
        Ok(Self(command.arg(order_text).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?))
    }

    pub(crate) fn answer(mut self) -> Result<Answer, BenchError> {
        let mut text = String::new();
        if let Some(out) = &mut self.0.stdout {
            out.read_to_string(&mut text)?;
        }
        let status = self.0.wait()?;
        if !status.success() {
            return Err(BenchError::Failed(format!("the other process ended with {status}")));
        }
        serde_json::from_str(&text).map_err(|e| failed("what the other process said")(&e))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Errors: it has ended already, as it should.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a latency measurement gave: one way, and there and back.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Latency {
    pub(crate) one_way: Summary,
    pub(crate) round_trip: Summary,
}

/// Measures `case`.
pub(crate) fn measure(case: &Case, setting: &Setting<'_>) -> Result<Latency, BenchError> {
    let _ = process::pin(setting.pinned.map(|(cpu, _)| cpu));
    let dir = tempfile::tempdir()?;
    if case.direction == Direction::FromPython {
        return from_peer(case, setting, dir.path());
    }
    let mut producer = case.producer(dir.path(), case.slots())?;
    let source = case.source();
    let mut peers = Vec::new();
    let mut backs = Vec::new();
    for index in 0..case.consumers {
        let reply = format!("back{index}");
        let order = Order { reply: Some(reply.clone()), ..case.order(dir.path(), setting) };
        peers.push(Peer::start(&order, setting.programs)?);
        let options = Consumer::options(&reply).dir(dir.path()).wait(WaitPolicy::Spin).timeout(Some(PATIENCE));
        backs.push(options.attach().map_err(|e| failed("the other process did not come")(&e))?);
    }
    producer.wait_for_consumers(case.consumers as usize, Some(PATIENCE)).map_err(|e| failed("waiting")(&e))?;

    let mut times = Times::new();
    let mut start = Instant::now();
    let (warm, mut sent) = (case.warm(), 0);
    while sent < warm + FEWEST || sent < warm + setting.effort.messages && start.elapsed() < setting.effort.time {
        if sent == warm {
            start = Instant::now();
        }
        if case.sleeps() {
            floor::nap();
        }
        let stamp = clock::monotonic_ns();
        case.send(&mut producer, stamp, &source)?;
        await_replies(case.kind, &mut backs, stamp)?;
        if sent >= warm {
            times.record(clock::monotonic_ns() - stamp);
        }
        sent += 1;
    }
    finish(&mut producer, case)?;
    let mut one_way = Times::new();
    for peer in peers {
        one_way.add(&peer.answer()?.times);
    }
    producer.discard();
    Ok(Latency { one_way: one_way.summary(), round_trip: times.summary() })
}

/// Queue: one of the consumers answers. Broadcast: all of them.
fn await_replies(kind: Kind, backs: &mut [Consumer], stamp: u64) -> Result<(), BenchError> {
    let mut missing = if kind == Kind::Queue { 1 } else { backs.len() };
    let start = Instant::now();
    while missing > 0 {
        for back in &mut *backs {
            match back.try_recv() {
                Ok(Some(message)) if message.correlation_id() == stamp => missing -= 1,
                Ok(Some(message)) => {
                    return Err(failed("a reply to something else")(&message.correlation_id()));
                }
                Ok(None) => {}
                Err(e) => return Err(failed("a reply")(&e)),
            }
        }
        if start.elapsed() > PATIENCE {
            return Err(BenchError::Failed("no reply in 30 s".to_owned()));
        }
    }
    Ok(())
}

/// Tells each consumer that nothing more comes: a message of no bytes, with the number 0.
pub(crate) fn finish(producer: &mut Producer, case: &Case) -> Result<(), BenchError> {
    let ends = if case.kind == Kind::Queue { case.consumers } else { 1 };
    for _ in 0..ends {
        let loan = producer.loan(&[FieldSpec::new(FIELD, DType::U8, &[0])]).map_err(|e| failed("the end")(&e))?;
        loan.publish().map_err(|e| failed("the end")(&e))?;
        // One each: who has it asks for no other.
        if case.kind == Kind::Queue {
            producer.drain(Some(PATIENCE)).map_err(|e| failed("the end")(&e))?;
        }
    }
    Ok(())
}

/// The peer sends, this process receives.
fn from_peer(case: &Case, setting: &Setting<'_>, dir: &Path) -> Result<Latency, BenchError> {
    let order = Order { receives: false, reply: Some("back0".to_owned()), ..case.order(dir, setting) };
    let mut back = crate::peer::reply_ring(&order)?;
    let peer = Peer::start(&order, setting.programs)?;
    let options = Consumer::options("there").dir(dir).wait(case.wait).timeout(Some(PATIENCE));
    let mut consumer = options.attach().map_err(|e| failed("the other process did not come")(&e))?;
    let (mut times, mut received) = (Times::new(), 0);
    loop {
        let message = match consumer.recv_timeout(PATIENCE) {
            Ok(message) => message,
            Err(RecvError::Closed { .. }) => break,
            Err(e) => return Err(failed("receiving")(&e)),
        };
        take(&message, case.read);
        let stamp = message.correlation_id();
        let taken = clock::monotonic_ns().saturating_sub(stamp);
        if received >= case.warm() {
            times.record(taken);
        }
        received += 1;
        drop(message);
        if let Some(back) = &mut back {
            reply(back, stamp)?;
        }
    }
    let round_trip = {
        let mut times = Times::new();
        times.add(&peer.answer()?.times);
        times.summary()
    };
    Ok(Latency { one_way: times.summary(), round_trip })
}
