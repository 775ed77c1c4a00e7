//! Native consumers of both kinds: attach, receive, hold, check, ack or give back, leave; killed anywhere on the way.

use std::time::Duration;

use forebay::{AckMode, AttachError, Consumer, Kind, Message, RecvError, Tensor};

use crate::{
    ledger::{Record, end, life, parts, ring, stage},
    plan::wait_policy,
    process::{self, now},
    states::State,
    victim::{FIELD, Victim, belongings, schema, torn, user},
};

/// Records kept free, for what is already held.
const RESERVE: u64 = 8;

/// A message that is held.
struct Held {
    /// Gone once only its memory is held.
    message: Option<Message>,
    tensor: Tensor,
    id: u64,
    record: usize,
}

impl Victim<'_> {
    fn is_queue(&self) -> bool {
        self.mix.kind == Kind::Queue
    }

    fn step(&mut self, queue: State, broadcast: State) {
        let state = if self.is_queue() { queue } else { broadcast };
        self.enter(state);
    }

    /// The life of a consumer.
    pub(crate) fn consume(&mut self) -> i32 {
        let before = self.fate.plain.then(belongings);
        let manual = self.dice.one_in(2);
        let mut consumer = match self.attach(manual) {
            Ok(Some(consumer)) => consumer,
            Ok(None) => return end::LEFT as i32,
            Err(what) => return self.fail(&what),
        };
        // Some stay for a few messages only, so that leaving is often in the middle of things.
        let patience = if self.trigger.aims_at(State::Leaving) || self.trigger.aims_at(State::MemberLeaving) {
            self.dice.below(12)
        } else {
            20 + self.dice.below(80)
        };
        let mut held = Vec::new();
        let result = self.work(&mut consumer, &mut held, if self.fate.keeper { u64::MAX } else { patience }, manual);
        if let Err(what) = result.and_then(|()| self.leave(consumer, held)) {
            return self.fail(&what);
        }
        let after = self.fate.plain.then(belongings);
        if after != before {
            let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
            let new = |was: &[String], is: &[String]| -> Vec<String> {
                is.iter().filter(|name| !was.contains(name)).cloned().collect()
            };
            let (files, maps) = (new(&before.0, &after.0), new(&before.1, &after.1));
            return self.fail(&format!("LEAK: {} files, were {}: {files:?}, {maps:?}", after.0.len(), before.0.len()));
        }
        end::LEFT as i32
    }

    fn attach(&mut self, manual: bool) -> Result<Option<Consumer>, String> {
        let start = now();
        self.step(State::Attaching, State::Joining);
        loop {
            let mut options = Consumer::options(self.mix.name)
                .dir(self.dir)
                .timeout(Some(Duration::from_secs(1)))
                .ack(if manual { AckMode::Manual } else { AckMode::Auto })
                .wait(wait_policy(&mut self.dice))
                .label("soak");
            if let Some(schema) = schema(self.mix) {
                options = options.schema(schema);
            }
            match options.attach() {
                Ok(consumer) => {
                    self.set(life::ADMITTED_AT, self.ring(ring::INTENT) + 1);
                    self.set(life::MEMBER, u64::from(consumer.index()) + 1);
                    self.set(life::ENTRY_NS, now() - start);
                    return Ok(Some(consumer));
                }
                // Whose place this one is to have may just have died, and a stopped producer answers late.
                Err(AttachError::Refused { reason, .. }) if reason.contains("places are taken") => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(AttachError::NotThere { .. } | AttachError::Silent { .. }) => {}
                Err(e) => return Err(format!("{e:?}")),
            }
            // Nobody waits for a ring that is over; a place is filled again if it is not.
            if self.finish() >= 1 {
                return Ok(None);
            }
        }
    }

    fn work(&mut self, consumer: &mut Consumer, held: &mut Vec<Held>, most: u64, manual: bool) -> Result<(), String> {
        let mut left = most;
        while left > 0 && self.get(life::RECORDS) < crate::ledger::RECORDS as u64 - RESERVE {
            self.step(State::Claiming, State::Receiving);
            let before = self.ring(ring::PUBLISHED);
            let message = match consumer.try_recv() {
                Ok(Some(message)) => message,
                Ok(None) => {
                    self.trigger.linger();
                    if self.finish() >= 2 {
                        return self.is_up_to(before);
                    }
                    self.step(State::Idle, State::MemberIdle);
                    match consumer.recv_timeout(Duration::from_millis(1 + self.dice.below(120))) {
                        Ok(message) => message,
                        Err(RecvError::Timeout { .. }) => {
                            self.is_up_to(before)?;
                            // The producer may be waiting for what is held here, and then nothing more comes.
                            for one in held.drain(..) {
                                self.settle(one, manual)?;
                            }
                            continue;
                        }
                        // Told apart from its own claims: what it gives back now somebody has to take.
                        Err(RecvError::PeerDied { .. }) if !held.is_empty() => {
                            for one in held.drain(..) {
                                self.settle(one, manual)?;
                            }
                            continue;
                        }
                        Err(e) => return self.at_end(consumer, &e, before),
                    }
                }
                Err(RecvError::PeerDied { .. }) if !held.is_empty() => {
                    for one in held.drain(..) {
                        self.settle(one, manual)?;
                    }
                    continue;
                }
                Err(e) => return self.at_end(consumer, &e, before),
            };
            held.push(self.note(message)?);
            self.trigger.linger();
            left = left.saturating_sub(1);
            self.step(State::Holding, State::MemberHolding);
            let wants = [State::Holding, State::MemberHolding].iter().any(|&state| self.trigger.aims_at(state));
            let most_ns = if wants || self.dice.one_in(16) { 2_000_000 } else { 20_000 };
            self.dawdle(most_ns);
            if self.fate.plain && !self.fate.keeper && self.dice.one_in(200) {
                self.fork_a_child(consumer, held)?;
            }
            // Usually one at a time; sometimes several, settled in any order.
            if held.len() >= 3 || !self.dice.one_in(4) {
                let which = self.dice.below(held.len() as u64) as usize;
                let one = held.swap_remove(which);
                self.settle(one, manual)?;
            }
        }
        Ok(())
    }

    /// A member was told that there is nothing: it has everything that was published before it asked.
    fn is_up_to(&self, before: u64) -> Result<(), String> {
        let last = self.get(life::LAST).max(self.get(life::ADMITTED_AT).saturating_sub(1));
        if self.mix.kind == Kind::Queue || before <= last {
            return Ok(());
        }
        Err(format!("MISSING: was told that there is nothing more after {last}, and {before} was published"))
    }

    fn at_end(&mut self, consumer: &Consumer, error: &RecvError, before: u64) -> Result<(), String> {
        self.is_up_to(before)?;
        match error {
            RecvError::Closed { .. } => {
                self.set(life::SAW_END, 1);
                Ok(())
            }
            RecvError::PeerDied { .. } if self.mix.needs_keeper() => {
                self.set(life::SAW_END, 2);
                Ok(())
            }
            e => Err(format!("{e:?} of {:?}, holding {:?}", consumer.stats(), consumer.held())),
        }
    }

    /// Notes a delivery and checks it.
    fn note(&mut self, message: Message) -> Result<Held, String> {
        let id = message.correlation_id();
        let (cell, nonce) = parts(id);
        let record = Record {
            cell,
            attempts: message.attempts().into(),
            slot: message.slot().into(),
            time: now(),
            stage: 0,
            nonce,
        };
        if self.is_queue() {
            let record = self.ledger.note(self.fate.life, record);
            self.accept(message, id, record)
        } else {
            let last = self.get(life::LAST);
            let (first, sequence) = (self.get(life::FIRST), message.sequence());
            if first == 0 {
                self.set(life::FIRST, cell);
            } else if cell != last + 1 {
                return Err(format!("GAP: received message {cell} (sequence {sequence}) after {last}"));
            }
            if message.attempts() != 0 {
                return Err(format!("message {cell} of a broadcast ring has {} attempts", message.attempts()));
            }
            self.set(life::LAST, cell);
            self.accept(message, id, 0)
        }
    }

    fn accept(&mut self, message: Message, id: u64, record: usize) -> Result<Held, String> {
        let (cell, _) = parts(id);
        let base = self.ring(ring::BASE);
        // A new instance may have begun since; then the sequence is of the old one and smaller than the cell.
        if message.sequence() > cell || base + message.sequence() > cell && self.ring(ring::BASE) == base {
            return Err(format!("message {cell} says it is sequence {} over base {base}", message.sequence()));
        }
        if message.user() != user(id) {
            return Err(format!("message {cell} has user data {:?} and not {:?}", message.user(), user(id)));
        }
        let tensor = message.tensor(FIELD).map_err(|e| format!("message {cell}: {e:?}"))?;
        let held = Held { message: Some(message), tensor, id, record };
        self.check(&held)?;
        self.set(life::RECEIVED, self.get(life::RECEIVED) + 1);
        Ok(held)
    }

    fn check(&mut self, held: &Held) -> Result<(), String> {
        let words = held.tensor.as_slice::<i64>().map_err(|e| format!("{e:?}"))?;
        if let Some(torn) = torn(words, held.id) {
            return Err(torn);
        }
        self.set(life::CHECKED, self.get(life::CHECKED) + words.len() as u64);
        Ok(())
    }

    fn advance(&self, held: &Held, stage: u64) {
        if self.mix.kind == Kind::Queue {
            self.ledger.advance(self.fate.life, held.record, stage);
        }
    }

    /// Is done with a message, in one of the ways there are.
    fn settle(&mut self, mut held: Held, manual: bool) -> Result<(), String> {
        self.check(&held)?;
        self.advance(&held, stage::CHECKED_AGAIN);
        if !self.is_queue() {
            self.enter(State::Settling);
            drop(held);
            self.trigger.linger();
            return Ok(());
        }
        let acks = self.trigger.aims_at(State::Acking) || self.trigger.aims_at(State::AckedHolding);
        let nacks = self.trigger.aims_at(State::Nacking);
        let Some(message) = held.message.take() else { return Ok(()) };
        if nacks || !acks && self.dice.one_in(12) {
            self.advance(&held, stage::NACKING);
            self.enter(State::Nacking);
            let nacked = message.nack();
            let (record, life) = (held.record, self.fate.life);
            drop(message);
            drop(held);
            self.ledger.advance(life, record, stage::NACKED | stage::RELEASED);
            self.trigger.linger();
            return if nacked { Ok(()) } else { Err("a nack of a held message says that it was acked".to_owned()) };
        }
        self.advance(&held, stage::ACKING);
        if manual || acks || self.dice.one_in(2) {
            self.enter(State::Acking);
            if !message.ack() {
                return Err("an ack of a held message says that it was nacked".to_owned());
            }
            self.advance(&held, stage::ACKED);
            self.trigger.linger();
            drop(message);
            self.enter(State::AckedHolding);
            let most_ns = if self.trigger.aims_at(State::AckedHolding) { 500_000 } else { 10_000 };
            self.dawdle(most_ns);
            self.check(&held)?;
            self.enter(State::Releasing);
            let (record, life) = (held.record, self.fate.life);
            drop(held);
            self.ledger.advance(life, record, stage::RELEASED);
        } else {
            // Acked as its last view dies.
            self.enter(State::Releasing);
            drop(message);
            let (record, life) = (held.record, self.fate.life);
            drop(held);
            self.ledger.advance(life, record, stage::ACKED | stage::RELEASED);
        }
        self.trigger.linger();
        Ok(())
    }

    fn leave(&mut self, mut consumer: Consumer, held: Vec<Held>) -> Result<(), String> {
        for one in &held {
            self.check(one)?;
            self.advance(one, stage::NACKING);
        }
        self.step(State::Leaving, State::MemberLeaving);
        consumer.close();
        let records: Vec<usize> = held.iter().map(|one| one.record).collect();
        drop(held);
        if self.is_queue() {
            for record in records {
                self.ledger.advance(self.fate.life, record, stage::NACKED | stage::RELEASED);
            }
        }
        self.trigger.linger();
        // From here on its index may be somebody else's.
        self.set(life::MEMBER, 0);
        drop(consumer);
        Ok(())
    }

    /// A child inherits everything and may use nothing: its death releases nothing, and its life pins nothing.
    fn fork_a_child(&mut self, consumer: &mut Consumer, held: &mut Vec<Held>) -> Result<(), String> {
        let stays = self.dice.one_in(2);
        let (ledger, life) = (self.ledger, self.fate.life);
        let child = process::fork(|| {
            process::watchdog(60);
            let answer = consumer.try_recv();
            if !matches!(answer, Err(RecvError::Forked { .. })) {
                ledger.fail(life, &format!("a forked child could receive: {answer:?}"));
            }
            for message in held.iter().filter_map(|one| one.message.as_ref()) {
                message.nack();
            }
            held.clear();
            consumer.close();
            if stays { process::pause() } else { 0 }
        })
        .map_err(|e| format!("fork: {e}"))?;
        if stays {
            self.set(life::CHILD, child as u64);
        }
        Ok(())
    }
}
