//! A seeded walk: operations of a producer and its consumers, each stepped; now and then somebody really dies in the
//! middle of one, and the others, and a successor, go on with what is left.

mod deaths;
mod ends;
mod steps;
mod tend;

use std::{collections::BTreeMap, time::Instant};

use forebay_layout::Kind;
use forebay_testkit::Place;

use crate::{
    actor,
    board::{Mode, Order},
    memory::{Copy, Memory},
    oracle::{Model, Who},
    picture::{self, Fates, Scene, Seat},
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

/// Processes that are killed on purpose in one walk, at most.
const DEATHS: u64 = 12;

/// How much of what was done a report shows.
const SHOWN: usize = 12;

/// Without optimization a creation or an attaching has millions of instructions: they are stepped in the long form alone.
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
                Order::Attach => self.come()?,
                Order::Leave if self.random.one_in(4) && self.deaths < DEATHS => self.die_in(who, order)?,
                Order::Leave => self.leave(who)?,
                _ if self.random.one_in(40) && self.deaths < DEATHS => self.die_in(who, order)?,
                _ => self.step(who, order).map(drop)?,
            }
            // A place is often taken again before the producer's main thread has done anything about who had it.
            let left = who != PRODUCER && !self.model.members.contains_key(&who);
            if left && self.actors.contains_key(&PRODUCER) && self.random.one_in(2) {
                self.come()?;
            }
        }
        self.end()
    }

    /// A consumer comes; now and then somebody dies of it.
    fn come(&mut self) -> Result {
        match self.random.below(6) {
            0 if self.deaths < DEATHS => self.die_in_admission(),
            1 if STEPS_CREATIONS && self.deaths < DEATHS => self.die_in_attach(),
            _ => self.attach(),
        }
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

    /// A successor whose taking over is not stepped: somebody else is attaching meanwhile.
    fn succeed(&mut self) -> Result {
        let mut actor = self.start()?;
        let answer = actor.obey(Order::Create, Mode::Free, 0, |_, _| Ok(()))?.ok_or("it died")?;
        self.actors.insert(PRODUCER, actor);
        self.model = self.model.effect(&self.setup, PRODUCER, Order::Create, &answer)?.after;
        Ok(())
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

    fn memory(&self) -> &Memory {
        self.memory.as_ref().unwrap()
    }

    /// Where each message stands by the shared words now.
    fn found(&self) -> Result<Fates> {
        self.found_in(&self.memory().picture())
    }

    fn found_in(&self, picture: &[u64]) -> Result<Fates> {
        let seats = self.model.seats(None);
        let scene = self.scene(&[], self.model.next, &seats, false);
        picture::found(&scene, &self.memory().copy(picture, None))
    }

    fn scene<'s>(&'s self, stages: &'s [Fates], next: u64, living: &'s [Seat], successor_first: bool) -> Scene<'s> {
        let memory = self.memory();
        Scene { setup: &self.setup, header: &memory.header, memory, stages, next, living, successor_first }
    }

    fn name(&self, who: Who) -> String {
        if who == PRODUCER { "the producer".to_owned() } else { format!("consumer {who}") }
    }
}
