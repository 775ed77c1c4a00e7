//! Native producers: create or take over, loan, write, publish, take dead letters, suspend or close; killed anywhere.

use std::time::Duration;

use forebay::{Backing, DType, DeadLetter, FieldSpec, Kind, Loan, LoanError, Producer, WaitError};

use crate::{
    ledger::{CELLS, cell, correlation, end, life, parts, ring, there},
    plan::wait_policy,
    process::now,
    states::State,
    victim::{FIELD, Victim, belongings, fill, schema, torn, user},
};

/// How long the end of a round may take.
const PATIENCE: Duration = Duration::from_secs(20);

impl Victim<'_> {
    /// The life of a producer.
    pub(crate) fn produce(&mut self) -> i32 {
        match self.try_produce() {
            Ok(()) => end::LEFT as i32,
            Err(what) => self.fail(&what),
        }
    }

    fn options(&mut self) -> forebay::ProducerOptions {
        let mix = self.mix;
        let mut options = Producer::options(mix.name)
            .dir(self.dir)
            .kind(mix.kind)
            .backing(mix.backing)
            .slots(mix.slots)
            .slot_bytes(mix.words * 8)
            .max_consumers(mix.max_consumers)
            .max_attempts(mix.max_attempts)
            .wait(wait_policy(&mut self.dice))
            .label("soak");
        if let Some(schema) = schema(mix) {
            options = options.schema(schema);
        }
        options
    }

    /// Files and mappings that this process has since then.
    fn grown(&self, before: &(usize, usize)) -> (u64, u64) {
        let (files, maps) = belongings();
        (files.len().saturating_sub(before.0) as u64, maps.len().saturating_sub(before.1) as u64)
    }

    fn create(&mut self, before: &(usize, usize)) -> Result<Producer, String> {
        let there = if self.mix.backing == Backing::Memfd { there::NOT } else { self.ring(ring::THERE) };
        if there == there::NOT {
            // Whatever was published before is settled or gone with its memfds: sequences start anew.
            self.set_ring(ring::BASE, self.ring(ring::INTENT));
        }
        let options = self.options();
        let start = now();
        self.enter(if there == there::YES { State::TakingOver } else { State::Creating });
        let producer = options.create().map_err(|e| format!("{e:?}"))?;
        self.set(life::ENTRY_NS, now() - start);
        match producer.takeover() {
            None if there == there::YES => return Err("LOST: the ring that a predecessor left is gone".to_owned()),
            None => {
                self.set_ring(ring::BASE, self.ring(ring::INTENT));
                self.set_ring(ring::INSTANCES, self.ring(ring::INSTANCES) + 1);
            }
            Some(found) if there == there::GOING && found.last_sequence == 0 => {
                self.set_ring(ring::BASE, self.ring(ring::INTENT));
            }
            Some(found) => self.check_takeover(found.last_sequence, &found.last_user)?,
        }
        self.set_ring(ring::THERE, there::YES);
        let (files, maps) = self.grown(before);
        if self.ring(ring::BASELINE) == 0 {
            self.set_ring(ring::BASELINE, files | maps << 32);
        }
        Ok(producer)
    }

    /// What a successor is told must be what was published: the last noted, or the one that its predecessor died over.
    fn check_takeover(&mut self, last: u64, last_user: &[u8]) -> Result<(), String> {
        let base = self.ring(ring::BASE);
        let (published, intent) = (self.ring(ring::PUBLISHED).max(base), self.ring(ring::INTENT).max(base));
        let found = base + last;
        if found < published || found > intent {
            return Err(format!(
                "LOST: took over up to message {found}, but {published} was published ({intent} begun)"
            ));
        }
        if last > 0 {
            let nonce = self.ledger.cell(self.fate.ring, found, cell::INTENT);
            let expected = user(correlation(found, nonce));
            if last_user != expected {
                return Err(format!("took over user data {last_user:?} of message {found} and not {expected:?}"));
            }
            if found > published {
                self.published(found, nonce);
            }
        }
        Ok(())
    }

    fn published(&self, at: u64, nonce: u64) {
        let ring = self.fate.ring;
        self.ledger.set_cell(ring, at, cell::TIME, now());
        self.ledger.set_cell(ring, at, cell::PUBLISHED, nonce);
        self.set_ring(ring::PUBLISHED, at);
    }

    fn try_produce(&mut self) -> Result<(), String> {
        let (files, maps) = belongings();
        let before = (files.len(), maps.len());
        let mut producer = self.create(&before)?;
        let ends = self.mix.backing == Backing::Posix;
        let mut left = match (self.mix.churn, self.trigger.aims_at(State::Closing)) {
            (true, _) => self.dice.below(4),
            (false, true) => self.dice.below(10),
            (false, false) if self.fate.keeper || !ends => u64::MAX,
            _ => 50 + self.dice.below(2000),
        };
        while self.finish() == 0 && left > 0 {
            if self.has_letters() && self.dice.one_in(2) {
                self.take_letters(&mut producer)?;
            }
            if self.ring(ring::INTENT) + 2 >= CELLS as u64 {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            self.publish_one(&mut producer)?;
            left -= 1;
            // Nobody holds a broadcast ring up that has no member; its messages would fill the book.
            if self.mix.kind == Kind::Broadcast {
                let alone = producer.consumers() == 0;
                self.dawdle(if alone { 3_000_000 } else { 100_000 });
            }
        }
        if self.finish() > 0 {
            return self.finish_round(producer, &before);
        }
        if self.mix.churn {
            self.drain(&mut producer)?;
            self.set_ring(ring::THERE, there::GOING);
            self.enter(State::Closing);
            producer.close();
            self.set_ring(ring::THERE, there::NOT);
        } else {
            // What is not received stays, and so does what was handed to nobody yet.
            self.enter(State::Closing);
            producer.suspend();
        }
        self.trigger.linger();
        Ok(())
    }

    fn has_letters(&self) -> bool {
        self.mix.kind == Kind::Queue && self.mix.max_attempts > 0
    }

    fn publish_one(&mut self, producer: &mut Producer) -> Result<(), String> {
        let shape = [1 + self.dice.below(self.mix.words)];
        let spec = [FieldSpec::new(FIELD, DType::I64, &shape)];
        let next = self.ring(ring::BASE) + producer.stats().published + 1;
        self.enter(State::Loaning);
        let mut loan = producer.try_loan(&spec).map(Loan::detach);
        self.trigger.linger();
        if let Err(LoanError::Full { .. }) = loan {
            if self.has_letters() {
                self.take_letters(producer)?;
            }
            self.enter(State::Waiting);
            let wait = Duration::from_millis(1 + self.dice.below(60));
            loan = producer.loan_timeout(&spec, wait).map(Loan::detach);
        }
        let mut loan = match loan {
            Ok(loan) => loan,
            Err(LoanError::Full { .. }) => return Ok(()),
            Err(e) => return Err(format!("{e:?}")),
        };
        let nonce = (self.fate.life as u64 + 1) << 12 | self.dice.below(1 << 12);
        let id = correlation(next, nonce);
        self.enter(State::Writing);
        let to = loan.tensor_mut::<i64>(FIELD).map_err(|e| format!("{e:?}"))?;
        fill(to, id);
        loan.set_correlation_id(id);
        loan.set_user(&user(id)).map_err(|e| format!("{e:?}"))?;
        self.trigger.linger();
        if self.trigger.aims_at(State::Abandoning) || self.dice.one_in(64) {
            self.enter(State::Abandoning);
            drop(loan);
            self.trigger.linger();
            return Ok(());
        }
        self.ledger.set_cell(self.fate.ring, next, cell::INTENT, nonce);
        self.set_ring(ring::INTENT, next);
        self.enter(State::Publishing);
        let sequence = producer.publish(loan).map_err(|e| format!("{e:?}"))?;
        if self.ring(ring::BASE) + sequence != next {
            return Err(format!("published sequence {sequence} as message {next}"));
        }
        if self.ledger.cell(self.fate.ring, next, cell::PUBLISHED) != 0 {
            return Err(format!("REUSED: message {next} was published before"));
        }
        self.published(next, nonce);
        self.trigger.linger();
        Ok(())
    }

    fn take_letters(&mut self, producer: &mut Producer) -> Result<(), String> {
        self.enter(State::Burying);
        for letter in producer.take_dead_letters() {
            self.note_letter(&letter)?;
        }
        self.trigger.linger();
        Ok(())
    }

    /// A dead letter must be the message that was published, whole, after as many deliveries as are allowed.
    fn note_letter(&self, letter: &DeadLetter) -> Result<(), String> {
        let id = letter.correlation_id;
        let (at, nonce) = parts(id);
        let ring = self.fate.ring;
        let wrong = |what: &str| Err(format!("dead letter {at}: {what}: {letter:?}"));
        if self.ring(ring::BASE) + letter.sequence != at {
            return wrong("its sequence is another");
        }
        if self.ledger.cell(ring, at, cell::INTENT) != nonce {
            return wrong("it was never published like that");
        }
        if u32::from(letter.attempts) != self.mix.max_attempts {
            return wrong("its attempts are not those allowed");
        }
        if letter.user != user(id) {
            return wrong("its user data are others");
        }
        let Some(tensor) = letter.tensors.first().filter(|_| letter.tensors.len() == 1) else {
            return wrong("it has not one tensor");
        };
        let words: Vec<i64> =
            tensor.bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes"))).collect();
        if let Some(torn) = torn(&words, id) {
            return wrong(&torn);
        }
        // Handed out once more only by the successor of one that died with it.
        let before = self.ledger.cell(ring, at, cell::LETTER);
        if before != 0 {
            let last = (before & 0xff_ffff) as usize - 1;
            if last == self.fate.life || self.ledger.life(last, life::END) != end::KILLED {
                return wrong("it was handed out before, to a producer that did not die");
            }
        }
        let count = (before >> 24) + 1;
        self.ledger.set_cell(ring, at, cell::LETTER, (self.fate.life as u64 + 1) | count << 24);
        Ok(())
    }

    fn drain(&mut self, producer: &mut Producer) -> Result<(), String> {
        let start = now();
        loop {
            self.enter(State::Waiting);
            match producer.drain(Some(Duration::from_millis(50))) {
                Ok(()) => break,
                Err(WaitError::Timeout { .. }) if now() - start < 2 * PATIENCE.as_nanos() as u64 => {}
                Err(e) => return Err(format!("not drained: {e:?}; {:?}", producer.stats())),
            }
            if self.has_letters() {
                self.take_letters(producer)?;
            }
        }
        if self.has_letters() {
            self.take_letters(producer)?;
        }
        Ok(())
    }

    /// The end of the round: everything received, every consumer gone, nothing left behind.
    fn finish_round(&mut self, mut producer: Producer, before: &(usize, usize)) -> Result<(), String> {
        self.drain(&mut producer)?;
        if self.has_letters() {
            // Those handed out last are buried now.
            self.take_letters(&mut producer)?;
        }
        self.set_ring(ring::FINISH, 2);
        let baseline = self.ring(ring::BASELINE);
        let (files, maps) = (baseline & 0xffff_ffff, baseline >> 32);
        let start = now();
        loop {
            let stats = producer.stats();
            let through = (stats.outstanding, stats.undelivered, stats.loaned) == (0, 0, 0);
            if producer.consumers() == 0 && through && self.grown(before) == (files, maps) {
                break;
            }
            if now() - start > PATIENCE.as_nanos() as u64 {
                return Err(format!(
                    "LEAK: {} consumers, {stats:?} after draining, {files} files and {maps} mappings became {:?}: {:?}",
                    producer.consumers(),
                    self.grown(before),
                    belongings()
                ));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        if self.mix.kind == Kind::Queue {
            let slots = crate::watch::Watch::open(self.mix, self.dir, std::process::id())?.slot_words()?;
            let idle = |word: &forebay_ring::SlotWord| {
                matches!(word.state(), forebay_ring::SlotState::Free | forebay_ring::SlotState::Done)
            };
            if !slots.iter().all(idle) {
                return Err(format!("LEAK: slots {slots:?}"));
            }
        }
        self.enter(State::Closing);
        producer.close();
        self.set_ring(ring::THERE, there::NOT);
        self.set_ring(ring::CLOSED, 1);
        Ok(())
    }
}
