//! Reads the book of a round when everybody is gone, and says what does not add up. Exact: nothing is allowed for.
//!
//! Of a queue, for every message:
//!
//! - A1 it was published (its publish returned, a successor was told of it, or it was delivered), or it never shows up;
//! - A2 the attempts of its deliveries are 0, 1, 2 … without one coming twice; one that nobody noted was taken by a victim
//!   that died before it could note it;
//! - A3 each delivery ended in an ack, or in a nack or the death of its holder, which is before the next delivery;
//! - A4 it ends acked or as a dead letter handed to a producer, never both, never neither;
//! - A5 where the holder was looked at before it died, what it had is what happened.
//!
//! Over the ring: attempts = nacks + deaths of noted holders + deaths of unnoted ones, and each of the last is another
//! death, of somebody who was about to take a message, before the next delivery.
//!
//! Of a broadcast ring: each member received every message from its first on without a gap, and whenever it was told that
//! there is none, it had received all that were published before it asked (both it looks at itself, `consumer.rs`); its
//! first is not after the one that was published next when it was admitted.

use std::collections::{BTreeMap, HashMap};

use forebay::Kind;

use crate::{
    ledger::{Ledger, Record, cell, end, life, ring, stage},
    plan::Mix,
    states::{Role, State},
    supervisor::Witness,
    tally::Tally,
};

/// How many findings of one kind are printed.
const SHOWN: usize = 12;

#[derive(Debug, Clone, Copy)]
struct Delivery {
    life: usize,
    record: Record,
}

/// A victim that died while it may have been taking a message that it could not note any more.
#[derive(Debug, Clone, Copy)]
struct Taker {
    at: u64,
}

struct Book<'a> {
    ledger: &'a Ledger,
    mix: &'a Mix,
    ring: usize,
    deliveries: BTreeMap<u64, Vec<Delivery>>,
    takers: Vec<Taker>,
    /// (cell, attempts) → what was seen of it before its holder was killed.
    witnesses: HashMap<(u64, u64), Witness>,
    /// Deliveries that nobody noted: (the latest it can have been, cell, attempts).
    unnoted: Vec<(u64, u64, u64)>,
    /// Attempts, as the last delivery or the dead letter of each message says.
    spent: u64,
    found: Vec<String>,
}

/// Checks one round.
pub(crate) fn audit(ledger: &Ledger, mixes: &[Mix], lives: usize, witnesses: &[Witness], tally: &mut Tally) {
    for (ring, mix) in mixes.iter().enumerate() {
        let found = match mix.kind {
            Kind::Queue => Book::new(ledger, mix, ring, lives, witnesses).audit(tally),
            Kind::Broadcast => members(ledger, mix, ring, lives, tally),
        };
        let more = found.len().saturating_sub(SHOWN);
        tally.failures.extend(found.into_iter().take(SHOWN));
        if more > 0 {
            tally.failures.push(format!("{}: and {more} more", mix.name));
        }
    }
    for each in 0..lives {
        tally.words += ledger.life(each, life::CHECKED);
    }
}

fn who(ledger: &Ledger, life: usize) -> (usize, Role) {
    let who = ledger.life(life, life::WHO);
    ((who & 0xff) as usize, Role::from_word(who >> 8 & 0xff))
}

fn killed(ledger: &Ledger, life: usize) -> bool {
    ledger.life(life, life::END) == end::KILLED
}

impl<'a> Book<'a> {
    fn new(ledger: &'a Ledger, mix: &'a Mix, ring: usize, lives: usize, witnesses: &[Witness]) -> Self {
        let mut this = Self {
            ledger,
            mix,
            ring,
            deliveries: BTreeMap::new(),
            takers: Vec::new(),
            witnesses: HashMap::new(),
            unnoted: Vec::new(),
            spent: 0,
            found: Vec::new(),
        };
        for life in 0..lives {
            if who(ledger, life) != (ring, Role::Consumer) {
                continue;
            }
            for record in ledger.records(life) {
                this.deliveries.entry(record.cell).or_default().push(Delivery { life, record });
            }
            let died_in = State::from_word(ledger.life(life, life::DIED_IN));
            if killed(ledger, life) && matches!(died_in, State::Claiming | State::Idle) {
                this.takers.push(Taker { at: ledger.killed_at(life) });
            }
        }
        for list in this.deliveries.values_mut() {
            list.sort_by_key(|delivery| (delivery.record.attempts, delivery.record.time));
        }
        for witness in witnesses.iter().filter(|witness| witness.ring == ring) {
            let key = (witness.cell, witness.attempts);
            if let Some(other) = this.witnesses.insert(key, *witness) {
                this.found.push(format!(
                    "{}: message {} at attempt {} was held by life {} and by life {}",
                    mix.name, witness.cell, witness.attempts, other.life, witness.life
                ));
            }
        }
        this
    }

    fn wrong(&mut self, cell: u64, what: &str) {
        let mut story = String::new();
        for delivery in self.deliveries.get(&cell).into_iter().flatten() {
            let Record { attempts, stage, time, .. } = delivery.record;
            let died_in = State::from_word(self.ledger.life(delivery.life, life::DIED_IN));
            story.push_str(&format!(
                "; attempt {attempts} by life {} at {time}, stage {stage:#b}, end {} ({}) at {}",
                delivery.life,
                self.ledger.life(delivery.life, life::END),
                died_in.text(),
                self.ledger.killed_at(delivery.life),
            ));
        }
        self.found.push(format!("{}: message {cell}: {what}{story}", self.mix.name));
    }

    fn audit(mut self, tally: &mut Tally) -> Vec<String> {
        let highest = self.ledger.ring(self.ring, ring::INTENT);
        if let Some((&last, _)) = self.deliveries.last_key_value()
            && last > highest
        {
            self.wrong(last, "was delivered and never published");
        }
        let before = tally.by_nack + tally.by_death;
        for at in 1..=highest {
            self.message(at, tally);
        }
        self.match_unnoted();
        let explained = tally.by_nack + tally.by_death - before + self.unnoted.len() as u64;
        if self.found.is_empty() && explained != self.spent {
            let (name, spent) = (self.mix.name, self.spent);
            self.found.push(format!("{name}: {spent} attempts were spent, {explained} are explained"));
        }
        tally.by_unnoted += self.unnoted.len() as u64;
        tally.witnessed += self.witnesses.len() as u64;
        self.found
    }

    fn message(&mut self, at: u64, tally: &mut Tally) {
        let nonce = self.ledger.cell(self.ring, at, cell::INTENT);
        let noted = self.ledger.cell(self.ring, at, cell::PUBLISHED);
        let letter = self.ledger.cell(self.ring, at, cell::LETTER);
        let deliveries = self.deliveries.get(&at).cloned().unwrap_or_default();
        // A1
        if noted == 0 && deliveries.is_empty() && letter == 0 {
            tally.unpublished += 1;
            return;
        }
        tally.published += 1;
        if noted != 0 && noted != nonce {
            return self.wrong(at, "REUSED: it was published twice");
        }
        if let Some(other) = deliveries.iter().find(|delivery| delivery.record.nonce != nonce) {
            let found = other.record.nonce;
            return self.wrong(at, &format!("REUSED: delivered as {found:#x}, published as {nonce:#x}"));
        }
        tally.deliveries += deliveries.len() as u64;
        // A2, A3
        let mut expected = 0;
        for (i, delivery) in deliveries.iter().enumerate() {
            let attempts = delivery.record.attempts;
            if attempts < expected {
                return self.wrong(at, &format!("TWICE: attempt {attempts} was delivered twice"));
            }
            for unnoted in expected..attempts {
                self.unnoted.push((delivery.record.time, at, unnoted));
                if let Err(what) = self.agrees(at, unnoted, false, true) {
                    return self.wrong(at, &what);
                }
            }
            expected = attempts + 1;
            let next = deliveries.get(i + 1).map(|next| next.record.time);
            if let Some(next) = next
                && let Err(what) = self.went_back(delivery, Some(next), tally)
            {
                return self.wrong(at, &what);
            }
        }
        tally.redelivered += expected.saturating_sub(1).min(deliveries.len() as u64);
        self.outcome(at, letter, &deliveries, expected, tally);
    }

    /// A4: how it ended.
    fn outcome(&mut self, at: u64, letter: u64, deliveries: &[Delivery], deliveries_noted: u64, tally: &mut Tally) {
        if letter != 0 {
            tally.letters += 1;
            self.spent += u64::from(self.mix.max_attempts);
            tally.letters_again += (letter >> 24) - 1;
            let most = u64::from(self.mix.max_attempts);
            for unnoted in deliveries_noted..most {
                // It was handed out before its receiver died, at the latest.
                self.unnoted.push((u64::MAX, at, unnoted));
                if let Err(what) = self.agrees(at, unnoted, false, true) {
                    return self.wrong(at, &what);
                }
            }
            if deliveries_noted > most {
                return self.wrong(at, "is a dead letter and was delivered more often than is allowed");
            }
            if let Some(last) = deliveries.last()
                && let Err(what) = self.went_back(last, None, tally)
            {
                self.wrong(at, &format!("is a dead letter, but {what}"));
            }
            return;
        }
        let Some(last) = deliveries.last() else {
            tally.missing += 1;
            return self.wrong(at, "MISSING: published, and never received");
        };
        let acked = last.record.stage & stage::ACKED != 0;
        // Its holder died over its ack: that nobody was given it again says that it counted.
        let silent = last.record.stage & stage::ACKING != 0 && killed(self.ledger, last.life);
        if !acked && !silent {
            tally.missing += 1;
            return self.wrong(at, "MISSING: given back or its holder died, and never received again");
        }
        tally.acked += 1;
        self.spent += last.record.attempts;
        tally.settled_by_absence += u64::from(!acked);
        if let Err(what) = self.agrees(at, last.record.attempts, true, false) {
            self.wrong(at, &what);
        }
    }

    /// A3: a delivery that was not the last one ended by a nack, or by a death that is before what followed.
    fn went_back(&self, delivery: &Delivery, next: Option<u64>, tally: &mut Tally) -> Result<(), String> {
        let Record { stage: noted, attempts, cell: at, .. } = delivery.record;
        if noted & stage::ACKED != 0 {
            return Err(format!("AGAIN: it came back after life {} had acked it at attempt {attempts}", delivery.life));
        }
        let life = delivery.life;
        if noted & stage::NACKING != 0 {
            tally.by_nack += 1;
            return self.agrees(at, attempts, false, true);
        }
        if !killed(self.ledger, life) {
            return Err(format!("ROBBED: it came back though life {life}, which had it, did not die"));
        }
        let death = self.ledger.killed_at(life);
        if next.is_some_and(|next| next < death) {
            return Err(format!("ROBBED: it came back {} ns before life {life} was killed", death - next.unwrap_or(0)));
        }
        tally.by_death += 1;
        self.agrees(at, attempts, false, true)
    }

    /// A5: what was seen of a claim before its holder was killed. `acked` is what followed from it.
    fn agrees(&self, at: u64, attempts: u64, acked: bool, back: bool) -> Result<(), String> {
        match self.witnesses.get(&(at, attempts)) {
            Some(seen) if seen.acked && back => {
                Err(format!("AGAIN: life {} had acked attempt {attempts} when it was killed", seen.life))
            }
            Some(seen) if !seen.acked && acked => {
                Err(format!("MISSING: life {} had not acked attempt {attempts} when it was killed", seen.life))
            }
            _ => Ok(()),
        }
    }

    /// Every delivery that nobody noted is another victim's, which died about to take a message, before it came again. On
    /// a ring whose victims are looked at, it is exactly what was seen.
    fn match_unnoted(&mut self) {
        if self.mix.witness {
            let seen: Vec<(u64, u64)> = self.witnesses.keys().copied().collect();
            let unnoted: Vec<(u64, u64)> = self.unnoted.iter().map(|&(_, at, attempts)| (at, attempts)).collect();
            for &(at, attempts) in &unnoted {
                if !self.witnesses.contains_key(&(at, attempts)) {
                    self.wrong(at, &format!("attempt {attempts} is spent, and nobody was seen to have it"));
                }
            }
            for (at, attempts) in seen {
                let noted = self.deliveries.get(&at).into_iter().flatten().any(|d| d.record.attempts == attempts);
                if !noted && !unnoted.contains(&(at, attempts)) {
                    self.wrong(at, &format!("a victim died with attempt {attempts}, which then was not spent"));
                }
            }
            return;
        }
        let mut unnoted = self.unnoted.clone();
        unnoted.sort_unstable();
        let mut deaths: Vec<u64> = self.takers.iter().map(|taker| taker.at).collect();
        deaths.sort_unstable();
        // Hall: the n-th by its limit needs n deaths before that.
        for (n, &(limit, at, attempts)) in unnoted.iter().enumerate() {
            if deaths.partition_point(|&death| death < limit) <= n {
                self.wrong(at, &format!("attempt {attempts} is spent, and no victim died that can have had it"));
            }
        }
    }
}

/// Broadcast: the members' books.
fn members(ledger: &Ledger, mix: &Mix, ring: usize, lives: usize, tally: &mut Tally) -> Vec<String> {
    let mut found = Vec::new();
    let intent = ledger.ring(ring, ring::INTENT);
    for at in 1..=intent {
        if ledger.cell(ring, at, cell::PUBLISHED) != 0 { tally.published += 1 } else { tally.unpublished += 1 }
    }
    for each in 0..lives {
        if who(ledger, each) != (ring, Role::Member) {
            continue;
        }
        let (first, last) = (ledger.life(each, life::FIRST), ledger.life(each, life::LAST));
        let admitted_at = ledger.life(each, life::ADMITTED_AT);
        let mut wrong = |what: String| {
            tally.missing += 1;
            found.push(format!("{}: member of life {each}: {what} (it received {first} to {last})", mix.name));
        };
        if last > intent {
            wrong(format!("received {last}, but only {intent} were published"));
        }
        if first != 0 && first > admitted_at {
            wrong(format!("MISSING: was admitted when {} was under way", admitted_at - 1));
        }
        tally.members_received += ledger.life(each, life::RECEIVED);
    }
    found
}
