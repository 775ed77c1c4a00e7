//! A seeded walk: operations of a producer and its consumers, each stepped; now and then somebody really dies in the
//! middle of one, and the others, and a successor, go on with what is left.

use std::{collections::BTreeMap, hash::Hasher, time::Instant};

use forebay_layout::{Kind, member};
use forebay_ring::MemberId;
use forebay_testkit::{Place, watchdog};

use crate::{
    actor, audit,
    board::{Answer, Mode, Order, Status},
    memory::{Copy, Memory},
    oracle::{Model, Who},
    picture::{self, Fate, Fates, Scene, Seat},
    place::{self, Whole},
    rig::Actor,
    setup::{RING, Random, Setup},
    tally::Tally,
};

/// Who the producer is, among those who do operations.
const PRODUCER: Who = u8::MAX;

struct Walk<'a> {
    seed: u64,
    scenario: u64,
    setup: Setup,
    random: Random,
    place: Place,
    memory: Option<Memory>,
    model: Model,
    actors: BTreeMap<Who, Actor>,
    copy: Option<Copy>,
    tally: &'a mut Tally,
    handle: u8,
    named: Who,
    deaths: u64,
    /// Steps that each operation took last, to die somewhere in it.
    lengths: BTreeMap<String, u64>,
    /// What was done, and is being done, for the report.
    done: Vec<String>,
    doing: String,
    until: Option<Instant>,
}

/// How much of what was done a report shows.
const SHOWN: usize = 12;

/// Without optimization a creation has millions of instructions: it is stepped in the long form alone.
const STEPS_CREATIONS: bool = !cfg!(debug_assertions);

/// Walks one scenario, up to a moment if one is given; what fails is in the tally.
pub(crate) fn walk(seed: u64, scenario: u64, until: Option<Instant>, tally: &mut Tally) {
    let setup = Setup::of(seed, scenario);
    let mut walk = Walk {
        seed,
        scenario,
        random: Random::new(seed ^ 0x5eed, scenario),
        setup,
        place: Place::new(),
        memory: None,
        model: Model::new(),
        actors: BTreeMap::new(),
        copy: None,
        tally,
        handle: 0,
        named: 0,
        deaths: 0,
        lengths: BTreeMap::new(),
        done: Vec::new(),
        doing: String::new(),
        until,
    };
    if let Err(why) = walk.run() {
        let before = walk.done[walk.done.len().saturating_sub(SHOWN)..].join("; ");
        let text = format!(
            "{}\n  {why}\n  ring: {}\n  before: {before}\n  again: forebay-crash --seed {seed} --scenario {scenario}",
            walk.doing,
            walk.setup.describe()
        );
        walk.actors.clear();
        walk.place.sweep();
        walk.tally.failed("scenario", text);
    }
    let deaths = walk.deaths;
    drop(walk);
    tally.walked(deaths);
}

type Result<T = ()> = std::result::Result<T, String>;

impl Walk<'_> {
    fn run(&mut self) -> Result {
        if self.random.one_in(4) {
            self.die_in_create()?;
        }
        self.start_producer()?;
        let consumers = if self.random.one_in(8) { 0 } else { self.setup.max_consumers };
        for _ in 0..consumers {
            self.attach()?;
        }
        for _ in 0..self.setup.operations {
            if self.until.is_some_and(|until| Instant::now() >= until) {
                break;
            }
            let (who, order) = self.choose();
            match order {
                Order::Create if self.random.one_in(3) => self.die_in_create()?,
                Order::Create => self.start_producer()?,
                Order::Attach => self.attach()?,
                Order::Leave => self.leave(who)?,
                _ if self.random.one_in(40) && self.deaths < 12 => self.die_in(who, order)?,
                _ => self.step(who, order).map(drop)?,
            }
        }
        self.end()
    }

    /// An operation that somebody can do now.
    fn choose(&mut self) -> (Who, Order) {
        self.handle = self.handle.wrapping_add(1);
        let handle = self.handle;
        let producer = self.actors.contains_key(&PRODUCER);
        let consumers: Vec<Who> = self.model.members.keys().copied().collect();
        let loans: Vec<u8> = self.model.loans.iter().copied().collect();
        loop {
            let dice = self.random.below(100);
            if producer && (dice < 45 || consumers.is_empty() && dice < 90) {
                let order = match self.random.below(40) {
                    0 => Order::LoanAndDrop,
                    1 => Order::WaitLoan(handle),
                    2..=3 => Order::TakeLetters,
                    4 if !loans.is_empty() => Order::Abandon(self.random.pick(&loans)),
                    5..=34 if !loans.is_empty() => Order::Publish(self.random.pick(&loans)),
                    _ => Order::Loan(handle),
                };
                return (PRODUCER, order);
            }
            if dice < 90 && !consumers.is_empty() {
                let who = self.random.pick(&consumers);
                let held: Vec<(u8, bool)> =
                    self.model.members[&who].held.iter().map(|(&which, &(_, acked))| (which, acked)).collect();
                let order = match self.random.below(20) {
                    0..=1 => Order::Wait(handle),
                    2 if held.is_empty() => Order::Leave,
                    3..=12 if !held.is_empty() => {
                        let (which, acked) = self.random.pick(&held);
                        match self.random.below(4) {
                            0 if !acked => Order::Ack(which),
                            1..=2 if !acked => Order::Nack(which),
                            _ => Order::Release(which),
                        }
                    }
                    _ => Order::Recv(handle),
                };
                return (who, order);
            }
            if producer && (consumers.len() as u32) < self.setup.max_consumers {
                return (PRODUCER, Order::Attach);
            }
            if !producer && self.random.one_in(3) {
                return (PRODUCER, Order::Create);
            }
        }
    }

    /// What the names of the ring's objects start with.
    fn prefix(&self) -> String {
        self.place.object(RING, "").display().to_string()
    }

    fn start(&self) -> Result<Actor> {
        let mut env = vec![("FOREBAY_SLICE_MS", "1")];
        if !self.setup.membarrier {
            env.push(("FOREBAY_NO_MEMBARRIER", "1"));
        }
        let (seed, scenario) = (self.seed, self.scenario);
        let prefix = self.prefix();
        Actor::start(|board| actor::arguments(board, self.place.path(), &prefix, seed, scenario), &env)
    }

    /// The first producer, or a successor.
    fn start_producer(&mut self) -> Result {
        let actor = self.start()?;
        self.actors.insert(PRODUCER, actor);
        self.model.orphan();
        if STEPS_CREATIONS && self.memory.is_some() && self.random.one_in(6) {
            return self.step(PRODUCER, Order::Create).map(drop);
        }
        self.step_whole(Order::Create)?;
        self.memory = Some(Memory::open(&self.prefix()));
        if self.setup.kind == Kind::Queue {
            self.model.fates = self.found()?;
        }
        Ok(())
    }

    /// A producer dies as it creates a ring, or takes one over; what it leaves is for the next.
    fn die_in_create(&mut self) -> Result {
        let most = 1 + self.random.below(self.lengths.get("create").copied().unwrap_or(30_000));
        self.doing = format!("a producer dies within {most} steps of its creation");
        let mut actor = self.start()?;
        let mode = if self.memory.is_some() { Mode::Words } else { Mode::Count };
        actor.obey(Order::Create, mode, most, |_, _| Ok(()))?;
        actor.kill();
        self.deaths += 1;
        if self.memory.is_some() {
            let may = [self.model.fates.clone(), self.model.mended(&self.setup)];
            let everybody = self.model.seats(None);
            self.audit(&self.memory().picture(), &may, self.model.next, &everybody, "death")?;
            self.model.fates = self.found()?;
        }
        Ok(())
    }

    /// Steps the making or the end of a ring, and gives copies of all that there is on the way to real successors.
    fn step_whole(&mut self, order: Order) -> Result {
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

    fn attach(&mut self) -> Result {
        let who = self.named;
        self.named += 1;
        let mut actor = self.start()?;
        self.doing = format!("{} attaches", self.name(who));
        let answer = actor.obey(Order::Attach, Mode::Free, 0, |_, _| Ok(()))?.ok_or("it died")?;
        self.actors.insert(who, actor);
        if answer.status == Status::Fault {
            return Err(answer.text);
        }
        let index = answer.results[0] as u8;
        let incarnation = (self.identity(index) >> 8) as u16;
        let id = MemberId { index, incarnation };
        let membership = crate::oracle::Membership { id, cursor: 0, held: BTreeMap::new() };
        self.model.members.insert(who, membership);
        Ok(())
    }

    fn leave(&mut self, who: Who) -> Result {
        self.step(who, Order::Leave)?;
        self.gone(who);
        if let Some(actor) = self.actors.remove(&who) {
            actor.kill();
        }
        Ok(())
    }

    /// A member is no more; the producer, if there is one, notices.
    fn gone(&mut self, who: Who) {
        let Some(member) = self.model.members.remove(&who) else { return };
        let index = member.id.index;
        self.model.fates.retain(|key, _| key.0 != index);
    }

    /// Waits until the producer's control thread has done what the end of a member asks of it.
    fn settled(&self, id: MemberId) {
        if self.actors.contains_key(&PRODUCER) {
            watchdog::until("the producer noticing the end of a member", || {
                let named = self.words_of(id);
                self.identity(id.index) & 0xff == member::state::EMPTY && !named
            });
        }
    }

    fn memory(&self) -> &Memory {
        self.memory.as_ref().unwrap()
    }

    fn identity(&self, index: u8) -> u64 {
        let (picture, plan) = (self.memory().picture(), &self.memory().header.plan);
        let ring = (plan.ring_bytes / 8) as usize;
        let part = match self.setup.kind {
            Kind::Queue => plan.member_word + plan.member_words * usize::from(index),
            Kind::Broadcast => (plan.member_bytes / 8) as usize * usize::from(index) + plan.member_word,
        };
        picture[ring + part + member::IDENTITY]
    }

    /// Whether a slot word names a member.
    fn words_of(&self, id: MemberId) -> bool {
        let named = |fate: &Fate| matches!(*fate, Fate::Held(owner, _) | Fate::Acked(owner) if owner == id);
        self.setup.kind == Kind::Queue && self.found().is_ok_and(|found| found.values().any(named))
    }

    /// Where each message stands by the shared words now.
    fn found(&self) -> Result<Fates> {
        let seats = self.model.seats(None);
        let scene = self.scene(&[], self.model.next, &seats, false);
        picture::found(&scene, &self.memory().copy(&self.memory().picture(), None))
    }

    fn scene<'s>(&'s self, stages: &'s [Fates], next: u64, living: &'s [Seat], successor_first: bool) -> Scene<'s> {
        let memory = self.memory();
        Scene { setup: &self.setup, header: &memory.header, memory, stages, next, living, successor_first }
    }

    /// Steps one operation from its first instruction to its last, and audits every picture of it.
    fn step(&mut self, who: Who, order: Order) -> Result<Answer> {
        self.doing = format!("{} does {order:?}", self.name(who));
        let mut actor = self.actors.remove(&who).ok_or("no such actor")?;
        let base = self.memory().picture();
        // The ring is mapped in the middle of a creation: that is stepped. So is a part of all others.
        let mode = if order == Order::Create || self.random.one_in(60) { Mode::Words } else { Mode::Stores };
        let answer = actor.obey(order, mode, 0, |_, _| Ok(()));
        let (shots, steps) = actor.shots();
        self.actors.insert(who, actor);
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
        let next = self.model.next;
        let mut picture = base;
        for shot in &shots {
            for &(at, word) in &shot.changes {
                picture[at as usize] = word;
            }
            if !self.tally.is_new(&operation, hash(self.setup.seed, &picture)) {
                continue;
            }
            self.audit(&picture, &effect.stages, next, &survivors, &operation).map_err(|why| {
                let place = self.actors.get(&who).map(|actor| actor.place_of(shot.ip)).unwrap_or_default();
                format!("crash after {} {} of {steps}, before {place}:\n  {why}", mode.unit(), shot.step)
            })?;
        }
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

    fn audit(&mut self, picture: &[u64], stages: &[Fates], next: u64, survivors: &[Seat], operation: &str) -> Result {
        let mut spare = self.copy.take();
        let mut result = Ok(());
        let mut audits = 0;
        for (living, successor_first) in [(survivors, false), (survivors, true), (&[][..], true)] {
            let copy = self.memory().copy(picture, spare.take());
            let scene = self.scene(stages, next, living, successor_first);
            let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| audit::audit(&scene, &copy)));
            let found = found.unwrap_or_else(|_| Err("recovery panicked".to_owned()));
            audits += 1;
            let how = match (living.is_empty(), successor_first) {
                (_, false) => "peers first, then a successor",
                (false, true) => "a successor first, then peers",
                (true, true) => "everybody dead",
            };
            result = result.and(found.map_err(|why| format!("{why}\n  ({how})")));
            spare = Some(copy);
        }
        self.copy = spare;
        self.tally.audited(operation, audits);
        result
    }

    /// Somebody is killed in the middle of an operation; who is left goes on from there.
    fn die_in(&mut self, who: Who, order: Order) -> Result {
        let length = self.lengths.get(&operation(order, self.setup.kind)).copied().unwrap_or(800);
        let most = 1 + self.random.below(length);
        self.doing = format!("{} dies within {most} steps of {order:?}", self.name(who));
        let may = self.model.may(&self.setup, who, order)?;
        let mut actor = self.actors.remove(&who).ok_or("no such actor")?;
        let lived = actor.obey(order, Mode::Words, most, |_, _| Ok(()));
        actor.kill();
        lived?;
        self.deaths += 1;
        let dying = (who != PRODUCER).then_some(who);
        let survivors = self.model.seats(dying);
        let picture = self.memory().picture();
        if !self.actors.contains_key(&PRODUCER) {
            // Else the producer's control thread is mending already.
            self.audit(&picture, &may, self.model.next, &survivors, "death")?;
        }
        match self.model.members.get(&who).map(|member| member.id) {
            Some(id) => {
                self.gone(who);
                self.settled(id);
                if self.actors.contains_key(&PRODUCER) && self.setup.kind == Kind::Queue {
                    // The producer's control thread has mended what was left.
                    let mended: Vec<Fates> = may
                        .into_iter()
                        .map(|fates| Model { fates, ..self.model.clone() }.mended(&self.setup))
                        .collect();
                    let picture = self.memory().picture();
                    let everybody = self.model.seats(None);
                    self.audit(&picture, &mended, self.model.next, &everybody, "death")?;
                }
            }
            None => {
                self.model.orphan();
                let seats = self.model.seats(None);
                let scene = self.scene(&may, self.model.next, &seats, false);
                let next = picture::next(&scene, &self.memory().copy(&picture, None))?;
                self.model.next = next;
            }
        }
        self.model.fates = self.found()?;
        self.done.push(format!("{}: left {:?}", self.doing, self.model.fates));
        Ok(())
    }

    fn name(&self, who: Who) -> String {
        if who == PRODUCER { "the producer".to_owned() } else { format!("consumer {who}") }
    }

    /// Everything is received for real, everybody leaves, nothing stays.
    fn end(&mut self) -> Result {
        if !self.actors.contains_key(&PRODUCER) {
            self.start_producer()?;
        }
        if self.model.members.is_empty() && self.setup.kind == Kind::Queue {
            self.attach()?;
        }
        let members: Vec<Who> = self.model.members.keys().copied().collect();
        for _ in 0..=self.setup.max_attempts {
            for &who in &members {
                for (which, _) in self.model.members[&who].held.clone() {
                    self.step(who, Order::Release(which))?;
                }
                loop {
                    self.handle = self.handle.wrapping_add(1);
                    let answer = self.step(who, Order::Recv(self.handle))?;
                    if answer.status != Status::Done {
                        break;
                    }
                    self.step(who, Order::Release(self.handle))?;
                }
            }
        }
        // Handed out by the first, out of their slots with the second.
        self.step(PRODUCER, Order::TakeLetters)?;
        self.step(PRODUCER, Order::TakeLetters)?;
        if !self.model.fates.is_empty() {
            return Err(format!("after all was received there is left {:?}", self.model.fates));
        }
        for who in members {
            self.leave(who)?;
        }
        // No member index is lost: all can be taken at a time, whoever died before.
        for _ in 0..self.setup.max_consumers {
            self.attach()?;
        }
        let members: Vec<Who> = self.model.members.keys().copied().collect();
        for who in members {
            self.leave(who)?;
        }
        for loan in self.model.loans.clone() {
            self.step(PRODUCER, Order::Abandon(loan))?;
        }
        if self.random.one_in(2) {
            self.come_back()?;
        }
        let order = self.random.pick(&[Order::Discard, Order::Close]);
        self.step_whole(order)?;
        self.end_producer();
        let left = self.place.objects();
        if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}")) }
    }

    fn end_producer(&mut self) {
        if let Some(producer) = self.actors.remove(&PRODUCER) {
            producer.kill();
        }
    }

    /// The producer goes, with messages that wait for consumers to come, and a successor hands them out.
    fn come_back(&mut self) -> Result {
        let waits = self.setup.kind == Kind::Queue;
        if waits {
            self.step(PRODUCER, Order::Loan(0))?;
            self.step(PRODUCER, Order::Publish(0))?;
        }
        let order = if waits { self.random.pick(&[Order::Close, Order::Suspend]) } else { Order::Suspend };
        self.step_whole(order)?;
        self.end_producer();
        self.start_producer()?;
        if waits {
            self.attach()?;
            let who = *self.model.members.keys().next().ok_or("no member")?;
            self.step(who, Order::Recv(0))?;
            self.step(who, Order::Release(0))?;
            self.leave(who)?;
        }
        Ok(())
    }
}

/// What the table calls an operation.
fn operation(order: Order, kind: Kind) -> String {
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
    };
    format!("{kind}/{name}")
}

fn hash(seed: u64, picture: &[u64]) -> u64 {
    let mut hasher = std::collections::hash_map::DefaultHasher::new();
    hasher.write_u64(seed);
    for &word in picture {
        hasher.write_u64(word);
    }
    hasher.finish()
}
