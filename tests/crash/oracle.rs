//! What must be true after each operation, if operations happen one after the other and nobody dies in the middle: the
//! sequential twin of the ring. It never looks at the shared memory; the audit compares the two.

use std::collections::{BTreeMap, BTreeSet};

use forebay::Kind;
use forebay_ring::MemberId;

use crate::{
    board::{Answer, Order, Status},
    picture::{ALL, Fate, Fates, Seat},
    setup::Setup,
};

/// A consumer, as the walk names it.
pub(crate) type Who = u8;

/// What is known of a living member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Membership {
    pub(crate) id: MemberId,
    /// Broadcast: the sequence it goes on with; 0 until it received one.
    pub(crate) cursor: u64,
    /// Its leases, by handle: the sequence, and whether it was acked.
    pub(crate) held: BTreeMap<u8, (u64, bool)>,
}

/// The ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) fates: Fates,
    pub(crate) next: u64,
    pub(crate) members: BTreeMap<Who, Membership>,
    pub(crate) loans: BTreeSet<u8>,
    /// Dead letters that the producer was handed: their slots are its to use, once it needs them or asks for more.
    pub(crate) handed: BTreeSet<u64>,
}

/// What an operation did: the stages that each message may have been seen in, and where it ended.
#[derive(Debug)]
pub(crate) struct Effect {
    pub(crate) stages: Vec<Fates>,
    pub(crate) after: Model,
}

impl Model {
    pub(crate) fn new() -> Self {
        let (loans, handed) = (BTreeSet::new(), BTreeSet::new());
        Self { fates: Fates::new(), next: 1, members: BTreeMap::new(), loans, handed }
    }

    /// The producer is no more; what it alone knew is gone.
    pub(crate) fn orphan(&mut self) {
        self.loans.clear();
        self.handed.clear();
    }

    /// Those who live on if `dying` does not.
    pub(crate) fn seats(&self, dying: Option<Who>) -> Vec<Seat> {
        let living = self.members.iter().filter(|(who, _)| Some(**who) != dying);
        living.map(|(_, member)| Seat { id: member.id, cursor: member.cursor }).collect()
    }

    /// A message given back once more.
    fn given_back(setup: &Setup, attempts: u8) -> Fate {
        let attempts = attempts.saturating_add(1);
        let spent = setup.max_attempts != 0 && u32::from(attempts) >= setup.max_attempts;
        if spent { Fate::Dead(attempts) } else { Fate::Waiting(attempts) }
    }

    /// As it is once somebody has mended what those left that are no members any more.
    pub(crate) fn mended(&self, setup: &Setup) -> Fates {
        let lives = |owner: MemberId| self.members.values().any(|member| member.id == owner);
        let mend = |(&key, &fate)| match fate {
            Fate::Held(owner, attempts) if !lives(owner) => Some((key, Self::given_back(setup, attempts))),
            Fate::Acked(owner) if !lives(owner) => None,
            other => Some((key, other)),
        };
        self.fates.iter().filter_map(mend).collect()
    }

    fn key(&self, setup: &Setup, who: Who, sequence: u64) -> Result<(u8, u64), String> {
        let member = self.members.get(&who).ok_or("no such member")?;
        Ok((if setup.kind == Kind::Queue { ALL } else { member.id.index }, sequence))
    }

    /// The message that drop-oldest takes: the oldest that nobody has.
    fn oldest(&self) -> Option<u64> {
        let has = |sequence: u64| {
            let mut fates = self.fates.iter().filter(move |((_, other), _)| *other == sequence);
            fates.any(|(_, fate)| !matches!(fate, Fate::Waiting(_) | Fate::Owed))
        };
        self.sequences().into_iter().find(|&sequence| !has(sequence))
    }

    /// Sequences that occupy a slot.
    fn sequences(&self) -> BTreeSet<u64> {
        self.fates.keys().map(|&(_, sequence)| sequence).collect()
    }

    /// What `order` may have done by the time it is cut off, without an answer.
    pub(crate) fn may(&self, setup: &Setup, who: Who, order: Order) -> Result<Vec<Fates>, String> {
        let mut stages = vec![self.fates.clone()];
        let mut also = |change: &dyn Fn(&mut Fates)| {
            let mut stage = self.fates.clone();
            change(&mut stage);
            stages.push(stage);
        };
        match order {
            Order::Publish(_) => also(&|fates| self.publish(setup, fates)),
            Order::Loan(_) | Order::WaitLoan(_) | Order::LoanAndDrop | Order::TakeLetters => {
                also(&|fates| self.bury(fates));
                if let Some(oldest) = self.oldest().filter(|_| setup.is_lossy()) {
                    also(&|fates| fates.retain(|key, _| key.1 != oldest));
                }
            }
            Order::Recv(_) | Order::Wait(_) if setup.kind == Kind::Queue => {
                let me = self.members[&who].id;
                let mended = self.mended(setup);
                for from in [self.fates.clone(), mended.clone()] {
                    let claim = |(key, fate)| match fate {
                        Fate::Waiting(attempts) => (key, Fate::Held(me, attempts)),
                        other => (key, other),
                    };
                    stages.push(from.into_iter().map(claim).collect());
                }
                stages.push(mended);
            }
            Order::Ack(which) | Order::Nack(which) | Order::Release(which) if setup.kind == Kind::Queue => {
                let done = Answer { status: Status::Done, results: Vec::new(), text: String::new() };
                stages.extend(self.effect(setup, who, order, &done)?.stages);
                let _ = which;
            }
            _ => stages.push(self.mended(setup)),
        }
        Ok(stages)
    }

    fn publish(&self, setup: &Setup, fates: &mut Fates) {
        match setup.kind {
            Kind::Queue => drop(fates.insert((ALL, self.next), Fate::Waiting(0))),
            Kind::Broadcast => {
                fates.extend(self.members.values().map(|member| ((member.id.index, self.next), Fate::Owed)));
            }
        }
    }

    /// What `order` did, by its answer.
    ///
    /// # Errors
    /// The answer is not one that a correct ring gives.
    pub(crate) fn effect(&self, setup: &Setup, who: Who, order: Order, answer: &Answer) -> Result<Effect, String> {
        let mut after = self.clone();
        let mut stages = vec![self.fates.clone()];
        let wrong = |what: String| Err(format!("{order:?} answered {:?} {:?}: {what}", answer.status, answer.results));
        if answer.status == Status::Fault {
            return wrong(answer.text.clone());
        }
        match order {
            Order::Create => {
                after.fates = self.mended(setup);
                if answer.results[0] != self.next - 1 {
                    return wrong(format!("the last message published was {}", self.next - 1));
                }
            }
            Order::Attach | Order::Leave | Order::Discard | Order::Close | Order::Suspend | Order::Tend => {}
            Order::Loan(which) | Order::WaitLoan(which) => {
                self.loan(setup, answer, &mut after)?;
                if answer.status == Status::Done {
                    after.loans.insert(which);
                }
            }
            Order::LoanAndDrop => self.loan(setup, answer, &mut after)?,
            Order::Publish(which) => {
                after.loans.remove(&which);
                self.publish(setup, &mut after.fates);
                after.next += 1;
                if answer.results != [self.next] {
                    return wrong(format!("the next sequence is {}", self.next));
                }
            }
            Order::Abandon(which) => drop(after.loans.remove(&which)),
            Order::TakeLetters => self.take_letters(&answer.results, &mut after)?,
            Order::Recv(which) | Order::Wait(which) => {
                stages.push(self.mended(setup));
                self.recv(setup, who, which, answer, &mut after)?;
            }
            Order::Ack(which) | Order::Nack(which) | Order::Release(which) => {
                let member = after.members.get_mut(&who).ok_or("no such member")?;
                let (sequence, _) = *member.held.get(&which).ok_or("no such lease")?;
                let me = member.id;
                if order == Order::Ack(which) {
                    member.held.insert(which, (sequence, true));
                } else {
                    member.held.remove(&which);
                }
                let key = self.key(setup, who, sequence)?;
                match (order, self.fates.get(&key)) {
                    (Order::Ack(_), Some(Fate::Held(..))) => drop(after.fates.insert(key, Fate::Acked(me))),
                    (Order::Ack(_), _) => {}
                    (Order::Nack(_), Some(&Fate::Held(_, attempts))) => {
                        after.fates.insert(key, Self::given_back(setup, attempts));
                    }
                    _ => drop(after.fates.remove(&key)),
                }
            }
        }
        stages.push(after.fates.clone());
        Ok(Effect { stages, after })
    }

    /// The slots of letters that were handed out are used again.
    fn bury(&self, fates: &mut Fates) {
        fates.retain(|key, _| !self.handed.contains(&key.1));
    }

    /// Dead letters come all at once, each exactly once to each producer.
    fn take_letters(&self, results: &[u64], after: &mut Model) -> Result<(), String> {
        self.bury(&mut after.fates);
        let mut found: Vec<(u64, u64)> = results.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        found.sort_unstable();
        let dead = after.fates.iter().filter_map(|(&(_, sequence), fate)| match fate {
            Fate::Dead(attempts) => Some((sequence, u64::from(*attempts))),
            _ => None,
        });
        let expected: Vec<_> = dead.collect();
        if found != expected {
            return Err(format!("the producer got the dead letters {found:?}, expected {expected:?}"));
        }
        after.handed = found.into_iter().map(|(sequence, _)| sequence).collect();
        Ok(())
    }

    fn loan(&self, setup: &Setup, answer: &Answer, after: &mut Model) -> Result<(), String> {
        let dropped = *answer.results.first().ok_or("a loan that does not say what was dropped")?;
        let room = |model: &Model| setup.slots as usize - model.sequences().len() - model.loans.len();
        if room(after) == 0 {
            self.bury(&mut after.fates);
            after.handed.clear();
        }
        let oldest = after.oldest().filter(|_| setup.is_lossy());
        let expected = match (room(after), oldest) {
            (0, None) => (Status::Nothing, 0),
            (0, Some(oldest)) => {
                after.fates.retain(|key, _| key.1 != oldest);
                (Status::Done, 1)
            }
            _ => (Status::Done, 0),
        };
        if (answer.status, dropped) != expected {
            return Err(format!("a loan gave {:?} and dropped {dropped}, expected {expected:?}", answer.status));
        }
        Ok(())
    }

    fn recv(&self, setup: &Setup, who: Who, which: u8, answer: &Answer, after: &mut Model) -> Result<(), String> {
        let me = self.members.get(&who).ok_or("no such member")?;
        let mine = |key: &(u8, u64)| key.0 == ALL || key.0 == me.id.index;
        let mended = self.mended(setup);
        let ready = |fates: &Fates| -> Vec<(u64, u8)> {
            let message = |(key, fate): (&(u8, u64), &Fate)| match fate {
                Fate::Waiting(attempts) if mine(key) => Some((key.1, *attempts)),
                Fate::Owed if mine(key) => Some((key.1, 0)),
                _ => None,
            };
            fates.iter().filter_map(message).collect()
        };
        let (before, at_most) = (ready(&self.fates), ready(&mended));
        let held = me.held.len() as u32;
        match (answer.status, &answer.results[..]) {
            (Status::Done, &[sequence, attempts]) => {
                let found = (sequence, attempts as u8);
                if !before.contains(&found) && !at_most.contains(&found) {
                    return Err(format!("{found:?} was received, there are {at_most:?}"));
                }
                let first = before.iter().find(|(_, attempts)| *attempts == 0);
                if attempts == 0 && first != Some(&found) {
                    return Err(format!("{found:?} was received before {first:?}"));
                }
                if mended != self.fates && !before.contains(&found) {
                    after.fates = mended;
                }
                let fate = if setup.kind == Kind::Queue { Fate::Held(me.id, found.1) } else { Fate::Taken };
                after.fates.insert(self.key(setup, who, sequence)?, fate);
                let me = after.members.get_mut(&who).ok_or("no such member")?;
                me.cursor = me.cursor.max(sequence + 1);
                me.held.insert(which, (sequence, false));
                Ok(())
            }
            (Status::Nothing, []) if before.is_empty() => Ok(()),
            (Status::Quota, []) if held >= setup.slots.saturating_sub(1).max(1) => Ok(()),
            _ => Err(format!("{:?} was answered, there are {before:?}, {held} held", answer.status)),
        }
    }
}
