//! Consumers come, go and die, and what the producer's control thread writes on that is stepped: its main thread stands
//! still meanwhile (`Order::Tend`), so that each store of the process is the control thread's.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use forebay_layout::{
    Kind,
    control::FRAME_BYTES,
    member::{self, state},
};
use forebay_os::{Dir, socket::Conn};
use forebay_ring::MemberId;
use forebay_testkit::watchdog::WATCHDOG;

use super::{PRODUCER, Result, Walk, steps::Pictures};
use crate::{
    board::{Answer, Mode, Order, Shot, Status},
    oracle::{Membership, Model, Who},
    picture::{Fates, Seat},
    place::{self, Whole},
    rig::Actor,
    setup::RING,
};

/// One picture in so many is also given to a real successor and real consumers.
const REAL: u64 = 6;

/// What a producer's control thread did.
pub(super) struct Tended {
    producer: Actor,
    lives: bool,
    base: Vec<u64>,
    shots: Vec<Shot>,
    pub(super) stores: u64,
}

impl Walk<'_> {
    /// A consumer comes.
    pub(super) fn attach(&mut self) -> Result {
        let who = self.named;
        self.named += 1;
        self.doing = format!("{} attaches", self.name(who));
        let mut actor = self.start()?;
        let (tended, answer) = self.tend(0, |_, _| actor.obey(Order::Attach, Mode::Free, 0, |_, _| Ok(())))?;
        self.lengths.insert(self.called("attach"), tended.stores);
        let fates = [self.model.fates.clone()];
        self.audit_tended(&tended, "attach", &fates, true)?;
        self.resume(tended);
        self.attached(who, actor, &answer.ok_or("it died")?)?;
        self.audit_rest("attach", &fates)
    }

    /// A producer dies in the middle of letting a consumer in, which then finds the successor.
    pub(super) fn die_in_admission(&mut self) -> Result {
        let who = self.named;
        self.named += 1;
        let length = self.lengths.get(&self.called("attach")).copied().unwrap_or(80);
        let most = 1 + self.random.below(length);
        self.doing = format!("the producer dies within {most} stores of letting {} in", self.name(who));
        let mut actor = self.start()?;
        let (tended, ()) = self.tend(most, |_, producer| {
            actor.begin(Order::Attach, Mode::Free, 0)?;
            actor.either(producer)
        })?;
        let fates = [self.model.fates.clone()];
        self.audit_tended(&tended, "attach", &fates, true)?;
        if !self.resume(tended) {
            self.succeed()?;
        }
        let answer = actor.answer(|_, _| Ok(()))?.ok_or("it died")?;
        self.attached(who, actor, &answer)?;
        // The place that it had at the dead producer, if it came to that, is free again.
        self.settle(None)?;
        self.done.push(format!("{}: it is {:?}", self.doing, self.model.members[&who].id));
        let fates = [self.model.fates.clone()];
        self.audit_rest("attach", &fates)
    }

    /// A consumer dies while it attaches, or just after: its place comes back.
    pub(super) fn die_in_attach(&mut self) -> Result {
        let key = format!("{} itself", self.called("attach"));
        // Once to its end, to know how long that is.
        let most = self.lengths.get(&key).map_or(u64::MAX, |&length| 1 + self.random.below(length));
        self.doing = format!("a consumer dies within {most} instructions of attaching");
        let mut actor = self.start()?;
        let (tended, ()) = self.tend(0, |walk, producer| {
            let answer = actor.obey(Order::Attach, Mode::Count, most, |_, _| Ok(()))?;
            if answer.is_some() {
                walk.lengths.insert(key, actor.shots().1);
            }
            actor.kill();
            walk.settle(Some(producer))
        })?;
        self.deaths += 1;
        let fates = [self.model.fates.clone()];
        self.audit_tended(&tended, "mend", &fates, false)?;
        self.resume(tended);
        self.done.push(self.doing.clone());
        self.audit_rest("mend", &fates)
    }

    /// A consumer leaves. Either it is stepped, or what the producer does about it.
    pub(super) fn leave(&mut self, who: Who) -> Result {
        if !self.actors.contains_key(&PRODUCER) || self.random.one_in(2) {
            self.step(who, Order::Leave)?;
            self.gone(who);
            if let Some(actor) = self.actors.remove(&who) {
                actor.kill();
            }
            return self.settle(None);
        }
        self.doing = format!("{} leaves", self.name(who));
        let mut actor = self.actors.remove(&who).ok_or("no such consumer")?;
        self.gone(who);
        let (tended, answer) = self.tend(0, |walk, producer| {
            let answer = actor.obey(Order::Leave, Mode::Free, 0, |_, _| Ok(()))?;
            actor.kill();
            walk.settle(Some(producer)).map(|()| answer)
        })?;
        let fates = [self.model.fates.clone()];
        self.audit_tended(&tended, "mend", &fates, false)?;
        self.resume(tended);
        self.done.push(format!("{}: {:?}", self.doing, answer.map(|answer| answer.status)));
        self.audit_rest("mend", &fates)
    }

    /// What the table calls something that the control thread does.
    fn called(&self, what: &str) -> String {
        format!("{}/{what}", self.setup.kind)
    }

    /// Has the producer's control thread stepped through `then`, to its death after `most` stores unless that is 0. Whoever
    /// calls it audits what it did, and puts the producer back with [`resume`](Self::resume).
    pub(super) fn tend<R>(
        &mut self,
        most: u64,
        then: impl FnOnce(&mut Self, &Actor) -> Result<R>,
    ) -> Result<(Tended, R)> {
        let mut producer = self.actors.remove(&PRODUCER).ok_or("no producer")?;
        let base = self.memory().picture();
        producer.tend(most)?;
        let result = then(self, &producer)?;
        let lives = producer.untend()?;
        let (shots, stores) = producer.shots();
        Ok((Tended { producer, lives, base, shots, stores }, result))
    }

    /// The producer goes on, or is gone: then false.
    pub(super) fn resume(&mut self, tended: Tended) -> bool {
        let Tended { producer, lives, .. } = tended;
        if lives {
            self.actors.insert(PRODUCER, producer);
        } else {
            producer.kill();
            self.deaths += 1;
            self.model.orphan();
        }
        lives
    }

    /// Audits each picture that the control thread made. `admits`: a member that is none of the model's is the one that it
    /// lets in, and may live.
    pub(super) fn audit_tended(&mut self, tended: &Tended, what: &str, stages: &[Fates], admits: bool) -> Result {
        let operation = self.called(what);
        self.tally.ran(&operation, false, tended.stores);
        let survivors = self.model.seats(None);
        let all = Pictures { base: &tended.base, shots: &tended.shots, stages, survivors: &survivors };
        let before = Model { fates: stages[0].clone(), ..self.model.clone() };
        let place = |ip| tended.producer.place_of(ip);
        self.audit_pictures(&operation, all, place, |walk, picture| {
            if let Some(newcomer) = walk.newcomer(picture).filter(|_| admits) {
                let living: Vec<Seat> = survivors.iter().copied().chain([newcomer]).collect();
                let ways = [(&living[..], false), (&living[..], true)];
                walk.audit_ways(picture, stages, walk.model.next, &ways, &operation)?;
            }
            if walk.random.one_in(REAL) {
                let whole = Whole::of(&walk.place).with(walk.memory(), picture);
                walk.tally.audited(&operation, 1);
                let found = place::audit(&walk.setup, &whole, &before, false);
                found.map_err(|why| format!("{why}\n  (everybody dead, a real successor)"))?;
            }
            Ok(())
        })
    }

    /// What is there once the operation is over.
    pub(super) fn audit_rest(&mut self, what: &str, fates: &[Fates]) -> Result {
        let (now, everybody) = (self.memory().picture(), self.model.seats(None));
        self.audit(&now, fates, self.model.next, &everybody, &self.called(what))
            .map_err(|why| format!("after its end: {why}"))
    }

    /// The member of a picture that has been let in, and is none of the model's.
    fn newcomer(&self, picture: &[u64]) -> Option<Seat> {
        (0..self.setup.max_consumers as u8).find_map(|index| {
            let identity = self.identity_in(picture, index);
            let id = MemberId { index, incarnation: (identity >> 8) as u16 };
            let known = self.model.members.values().any(|member| member.id == id);
            (identity & 0xff == state::ACTIVE && !known).then_some(Seat { id, cursor: 0 })
        })
    }

    fn attached(&mut self, who: Who, actor: Actor, answer: &Answer) -> Result {
        self.actors.insert(who, actor);
        if answer.status == Status::Fault {
            return Err(answer.text.clone());
        }
        let index = answer.results[0] as u8;
        let incarnation = (self.identity_in(&self.memory().picture(), index) >> 8) as u16;
        let id = MemberId { index, incarnation };
        self.model.members.insert(who, Membership { id, cursor: 0, held: BTreeMap::new() });
        Ok(())
    }

    /// The identity word of a place.
    fn identity_in(&self, picture: &[u64], index: u8) -> u64 {
        let plan = &self.memory().header.plan;
        let ring = (plan.ring_bytes / 8) as usize;
        let part = match self.setup.kind {
            Kind::Queue => plan.member_word + plan.member_words * usize::from(index),
            Kind::Broadcast => (plan.member_bytes / 8) as usize * usize::from(index) + plan.member_word,
        };
        picture[ring + part + member::IDENTITY]
    }

    /// Waits until the control thread has done all that the end of members asks of it: all places that are nobody's are
    /// empty, and it has answered somebody since. Not if the producer is dead.
    pub(super) fn settle(&self, tended: Option<&Actor>) -> Result {
        let Some(producer) = tended.or_else(|| self.actors.get(&PRODUCER)) else { return Ok(()) };
        let taken = |index: &u8| self.model.members.values().any(|member| member.id.index == *index);
        let nobodys: Vec<u8> = (0..self.setup.max_consumers as u8).filter(|index| !taken(index)).collect();
        let settled = || {
            let picture = self.memory().picture();
            nobodys.iter().all(|&index| self.identity_in(&picture, index) & 0xff == state::EMPTY)
        };
        let start = Instant::now();
        while start.elapsed() < WATCHDOG {
            // Whoever knocked before is heard before; and after each that it heard it looks for the dead. If it is killed
            // meanwhile, the kernel may close its sockets before its pipe.
            let knocked = self.knock().and_then(|()| if settled() { self.knock().map(|()| true) } else { Ok(false) });
            if knocked == Ok(true) || producer.is_dead()? {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(format!("one of the places {nobodys:?}, which nobody has any more, does not come back in {WATCHDOG:?}"))
    }

    /// Says something to the producer's control thread that is no greeting, and waits until it is refused.
    fn knock(&self) -> Result {
        let dir = Dir::open(Some(self.place.path())).map_err(|e| e.to_string())?;
        let conn = Conn::connect(&dir, &format!("{RING}.sock")).map_err(|e| e.to_string())?;
        conn.send(b"knock", &[]).map_err(|e| e.to_string())?;
        let deadline = Instant::now() + WATCHDOG;
        conn.recv(&mut [0; FRAME_BYTES], 0, Some(deadline)).map(drop).map_err(|e| e.to_string())
    }
}
