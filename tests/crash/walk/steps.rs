//! One operation, stepped, and every picture of it audited.

use std::hash::Hasher;

use forebay_layout::Kind;

use super::{PRODUCER, Result, STEPS_CREATIONS, Walk};
use crate::{
    audit,
    board::{Answer, Mode, Order, Shot},
    oracle::Who,
    picture::{Fates, Seat},
    place::{self, Whole},
};

/// The pictures of an operation, and what they must say.
pub(super) struct Pictures<'a> {
    /// The one before it.
    pub(super) base: &'a [u64],
    pub(super) shots: &'a [Shot],
    /// What may be found in each.
    pub(super) stages: &'a [Fates],
    /// Who lives on if the process dies that made them.
    pub(super) survivors: &'a [Seat],
}

impl Walk<'_> {
    /// Steps the making or the end of a ring, and gives copies of all that there is on the way to real successors.
    pub(super) fn step_whole(&mut self, order: Order) -> Result {
        let name = if self.memory.is_some() { operation(order, self.setup.kind) } else { "create".to_owned() };
        let name = format!("{}/whole", name.trim_end_matches("/whole"));
        self.doing = format!("the producer does {order:?}");
        let mut actor = self.actors.remove(&PRODUCER).ok_or("no producer")?;
        let mut last = Whole::of(&self.place);
        let kept =
            matches!(order, Order::Create | Order::Suspend) || !self.model.fates.is_empty() && order != Order::Discard;
        // A hundred thousand instructions each: a part of them is stepped.
        let mode = if STEPS_CREATIONS && self.random.one_in(8) { Mode::Whole } else { Mode::Free };
        let (random, tally) = (&mut self.random, &mut *self.tally);
        let (place, setup, model) = (&self.place, &self.setup, &self.model);
        let mut wrong = None;
        let answer = actor.obey(order, mode, 0, |step, ip| {
            let whole = Whole::of(place);
            // A real ring is made for each picture; a part of them, another one each time, is enough.
            if whole != last && random.one_in(6) && tally.is_new(&name, whole.hash(setup.seed)) {
                tally.audited(&name, 1);
                let audited = place::audit(setup, &whole, model, !kept);
                if let Err(why) = audited {
                    wrong = Some((ip, format!("crash of all after step {step}: {why}\n  {}", whole.describe())));
                    return Err("see below".to_owned());
                }
            }
            last = whole;
            Ok(())
        });
        if let Some((ip, why)) = wrong {
            return Err(format!("before {}: {why}", actor.place_of(ip)));
        }
        let answer = answer?.ok_or("it died")?;
        if mode == Mode::Whole {
            let (_, steps) = actor.shots();
            self.tally.ran(&name, true, steps);
            if order == Order::Create {
                self.lengths.insert("create".to_owned(), steps);
            }
        }
        self.actors.insert(PRODUCER, actor);
        self.model = self.model.effect(&self.setup, PRODUCER, order, &answer)?.after;
        Ok(())
    }

    /// Steps one operation from its first instruction to its last, and audits every picture of it.
    pub(super) fn step(&mut self, who: Who, order: Order) -> Result<Answer> {
        self.doing = format!("{} does {order:?}", self.name(who));
        let mut actor = self.actors.remove(&who).ok_or("no such actor")?;
        let base = self.memory().picture();
        // The ring is mapped in the middle of a creation: that is stepped. So is a part of all others.
        let mode = if order == Order::Create || self.random.one_in(60) { Mode::Words } else { Mode::Stores };
        let answer = actor.obey(order, mode, 0, |_, _| Ok(()));
        let (shots, steps) = actor.shots();
        let answer = answer?.ok_or("it died")?;
        if mode == Mode::Words {
            self.lengths.insert(operation(order, self.setup.kind), steps);
        }
        let now = self.memory().picture();
        let effect = self.model.effect(&self.setup, who, order, &answer)?;
        let operation = operation(order, self.setup.kind);
        self.tally.ran(&operation, mode == Mode::Words, steps);
        let dying = (who != PRODUCER).then_some(who);
        let survivors = self.model.seats(dying);
        let all = Pictures { base: &base, shots: &shots, stages: &effect.stages, survivors: &survivors };
        let place = |ip| actor.place_of(ip);
        self.audit_pictures(&operation, all, place, |_, _| Ok(()))
            .map_err(|why| format!("{why}\n  (counted in {}s, of {steps})", mode.unit()))?;
        self.actors.insert(who, actor);
        // What the operation left, once it is over, is exactly what its twin says.
        let everybody = effect.after.seats((order == Order::Leave).then_some(who));
        let last = std::slice::from_ref(&effect.after.fates);
        // Whether somebody who looks for a message mends the dead on the way is for the operation to choose.
        let stages = match order {
            Order::Create | Order::Recv(_) | Order::Wait(_) => &effect.stages[..],
            _ => last,
        };
        self.audit(&now, stages, effect.after.next, &everybody, &operation)
            .map_err(|why| format!("after its end: {why}"))?;
        self.model = effect.after;
        self.done.push(format!("{}: {:?} {:?}", self.doing, answer.status, answer.results));
        if matches!(order, Order::Recv(_) | Order::Wait(_) | Order::Create) && self.setup.kind == Kind::Queue {
            self.model.fates = self.found()?;
        }
        Ok(answer)
    }

    /// Audits each picture of an operation that is a new one, and whatever else `also` looks at.
    pub(super) fn audit_pictures(
        &mut self,
        operation: &str,
        all: Pictures<'_>,
        place: impl Fn(u64) -> String,
        mut also: impl FnMut(&mut Self, &[u64]) -> Result,
    ) -> Result {
        let next = self.model.next;
        let mut picture = all.base.to_vec();
        for shot in all.shots {
            shot.apply(&mut picture);
            if !self.tally.is_new(operation, hash(self.setup.seed, &picture)) {
                continue;
            }
            self.audit(&picture, all.stages, next, all.survivors, operation)
                .and_then(|()| also(self, &picture))
                .map_err(|why| format!("crash after step {}, before {}:\n  {why}", shot.step, place(shot.ip)))?;
        }
        Ok(())
    }

    /// Audits a picture in three ways: the survivors mend and drain, then a successor comes; the successor first; nobody
    /// survives.
    pub(super) fn audit(
        &mut self,
        picture: &[u64],
        stages: &[Fates],
        next: u64,
        survivors: &[Seat],
        operation: &str,
    ) -> Result {
        let ways = [(survivors, false), (survivors, true), (&[][..], true)];
        self.audit_ways(picture, stages, next, &ways, operation)
    }

    /// Audits a picture: who lives on, and whether a successor comes first.
    pub(super) fn audit_ways(
        &mut self,
        picture: &[u64],
        stages: &[Fates],
        next: u64,
        ways: &[(&[Seat], bool)],
        operation: &str,
    ) -> Result {
        let mut spare = self.copy.take();
        let mut result = Ok(());
        for &(living, successor_first) in ways {
            let copy = self.memory().copy(picture, spare.take());
            let scene = self.scene(stages, next, living, successor_first);
            let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| audit::audit(&scene, &copy)));
            let found = found.unwrap_or_else(|_| Err("recovery panicked".to_owned()));
            let how = match (living.is_empty(), successor_first) {
                (_, false) => "peers first, then a successor",
                (false, true) => "a successor first, then peers",
                (true, true) => "everybody dead",
            };
            result = result.and(found.map_err(|why| format!("{why}\n  ({how})")));
            spare = Some(copy);
        }
        self.copy = spare;
        self.tally.audited(operation, ways.len() as u64);
        result
    }
}

/// What the table calls an operation.
pub(super) fn operation(order: Order, kind: Kind) -> String {
    let name = match order {
        Order::Create => "takeover",
        Order::Attach => "attach",
        Order::Loan(_) => "loan",
        Order::WaitLoan(_) => "loan_waiting",
        Order::LoanAndDrop => "loan_and_drop",
        Order::Publish(_) => "publish",
        Order::Abandon(_) => "abandon",
        Order::TakeLetters => "take_letters",
        Order::Recv(_) => "recv",
        Order::Wait(_) => "recv_waiting",
        Order::Ack(_) => "ack",
        Order::Nack(_) => "nack",
        Order::Release(_) => "release",
        Order::Leave => "leave",
        Order::Discard => "discard",
        Order::Close => "close",
        Order::Suspend => "suspend",
        Order::Tend => "tend",
    };
    format!("{kind}/{name}")
}

pub(super) fn hash(seed: u64, picture: &[u64]) -> u64 {
    let mut hasher = std::collections::hash_map::DefaultHasher::new();
    hasher.write_u64(seed);
    for &word in picture {
        hasher.write_u64(word);
    }
    hasher.finish()
}
