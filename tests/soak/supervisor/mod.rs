//! One round: starts victims, shoots them, wakes them, looks at what the dead leave, and fills their places.
//!
//! ```text
//!   births.rs  who comes next         deaths.rs  shots, and what an end says
//!   sleep.rs   who is stopped         wounds.rs  what the dead leave, until it is mended
//! ```

mod births;
mod deaths;
mod sleep;
mod wounds;

use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, Instant},
};

use forebay::{Backing, Kind};
use forebay_ring::SlotState;

use crate::{
    ledger::{LIVES, Ledger, RECORDS, end, life, ring, stage, there},
    plan::{Aim, Mix},
    process::{self, Change, Dice, Namespaces, now},
    python::Python,
    states::{Role, State},
    tally::Tally,
    victim::{Fate, Victim},
    watch::Watch,
};

const MS: u64 = 1_000_000;
/// How long the end of a round may take.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long a forked child outlives its parent: far longer than mending what that held may take.
const ORPHAN_NS: u64 = 3_000 * MS;
/// Every so many consumers run in a PID namespace of their own.
const NAMESPACED: u64 = 40;

/// A claim that a stopped victim was seen to have just before it was killed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Witness {
    pub(crate) ring: usize,
    pub(crate) life: usize,
    pub(crate) cell: u64,
    pub(crate) attempts: u64,
    pub(crate) acked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Halt {
    /// To be looked at and killed.
    Witness,
    /// To sleep until then, and then perhaps to be killed.
    Sleep { until: u64, dies: bool },
}

#[derive(Debug)]
struct Live {
    life: usize,
    ring: usize,
    seat: usize,
    role: Role,
    pid: i32,
    python: bool,
    keeper: bool,
    witness: bool,
    /// When it is killed from outside, if it still lives.
    deadline: u64,
    halt: Option<Halt>,
    shot: bool,
    /// Python: the state in which it is to be shot as soon as it is seen in it.
    aim: Option<u64>,
    /// Broadcast: from where on it was owed, just before it was killed.
    joined: Option<(u8, (u64, u64))>,
}

/// Something a dead victim left, watched until it is mended.
#[derive(Debug)]
struct Wound {
    ring: usize,
    since: u64,
    producer: Option<usize>,
    /// A forked child of the dead that lives on.
    child: i32,
    what: Left,
}

#[derive(Debug)]
enum Left {
    Claim { slot: u32, raw: u64 },
    Membership { index: u8, joined: (u64, u64) },
}

/// A ring's places: 0 is the producer's.
#[derive(Debug)]
struct Site {
    mix: Mix,
    seats: Vec<Option<i32>>,
    watch: Option<(u64, Watch)>,
    /// A memfd ring's producer was killed: nobody new comes until its end was seen.
    ends: bool,
    /// When its producer was last stopped or changed.
    disturbed: u64,
}

/// Where rounds take place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stage<'a> {
    pub(crate) ledger: &'a Ledger,
    pub(crate) dir: &'a Path,
    pub(crate) namespaces: Option<&'a Namespaces>,
    /// Births a second at most.
    pub(crate) rate: f64,
}

/// One round.
pub(crate) struct Round<'a> {
    ledger: &'a Ledger,
    dir: &'a Path,
    tally: &'a mut Tally,
    dice: Dice,
    sites: Vec<Site>,
    lives: usize,
    live: HashMap<i32, Live>,
    wounds: Vec<Wound>,
    orphans: Vec<(i32, u64)>,
    pub(crate) witnesses: Vec<Witness>,
    namespaces: Option<&'a Namespaces>,
    python: Option<&'a mut Python>,
    finishing: bool,
    /// Births allowed by now.
    births: f64,
    rate: f64,
}

impl<'a> Round<'a> {
    pub(crate) fn new(
        stage: Stage<'a>,
        tally: &'a mut Tally,
        dice: Dice,
        mixes: Vec<Mix>,
        python: Option<&'a mut Python>,
    ) -> Self {
        let Stage { ledger, dir, namespaces, rate } = stage;
        let site = |mix: Mix| Site { seats: vec![None; 1 + mix.seats], mix, watch: None, ends: false, disturbed: 0 };
        Self {
            ledger,
            dir,
            tally,
            dice,
            sites: mixes.into_iter().map(site).collect(),
            lives: 0,
            live: HashMap::new(),
            wounds: Vec::new(),
            orphans: Vec::new(),
            witnesses: Vec::new(),
            namespaces,
            python,
            finishing: false,
            births: 0.0,
            rate,
        }
    }

    pub(crate) fn lives(&self) -> usize {
        self.lives
    }

    pub(crate) fn mixes(&self) -> Vec<Mix> {
        self.sites.iter().map(|site| site.mix.clone()).collect()
    }

    /// Kills for `span`, then lets everything come to its end. What went wrong with the rig or a victim, if something did.
    pub(crate) fn run(&mut self, span: Duration) -> Vec<String> {
        let start = Instant::now();
        let mut last = Instant::now();
        while start.elapsed() < span && self.lives + 256 < LIVES && self.tally.failures.is_empty() {
            self.births = (self.births + self.rate * last.elapsed().as_secs_f64()).min(64.0);
            last = Instant::now();
            self.turn(span.saturating_sub(start.elapsed()));
        }
        self.tally.killing += start.elapsed();
        self.finish();
        std::mem::take(&mut self.tally.failures)
    }

    fn turn(&mut self, left: Duration) {
        self.reap();
        self.fill();
        self.shoot();
        self.stop_somebody(left);
        self.look_at_wounds();
        self.bury_orphans();
        process::wait_for_child(Duration::from_micros(250));
    }

    fn finish(&mut self) {
        self.finishing = true;
        let start = Instant::now();
        for pid in self.live.keys().copied().collect::<Vec<_>>() {
            self.wake(pid);
        }
        for ring in 0..self.sites.len() {
            self.ledger.set_ring(ring, ring::FINISH, self.ledger.ring(ring, ring::FINISH).max(1));
        }
        let failed = !self.tally.failures.is_empty();
        loop {
            self.births = 64.0;
            self.reap();
            if !failed && self.tally.failures.is_empty() {
                self.fill();
            }
            self.look_at_wounds();
            self.bury_orphans();
            let over = self.live.is_empty() && self.orphans.is_empty();
            if over && (failed || !self.tally.failures.is_empty() || self.all_closed()) {
                break;
            }
            if start.elapsed() > PATIENCE || (failed || !self.tally.failures.is_empty()) && !over {
                if self.tally.failures.is_empty() {
                    let stuck = self.describe();
                    self.tally.failures.push(format!("HANG: the round does not end: {stuck}"));
                }
                self.kill_all();
                break;
            }
            process::wait_for_child(Duration::from_millis(1));
        }
        self.wounds.clear();
        for site in &mut self.sites {
            site.watch = None;
        }
    }

    fn all_closed(&self) -> bool {
        (0..self.sites.len()).all(|ring| self.ledger.ring(ring, ring::CLOSED) == 1)
    }

    fn describe(&self) -> String {
        let mut list: Vec<String> = self
            .live
            .values()
            .map(|live| {
                let state = State::from_word(self.ledger.life(live.life, life::STATE));
                format!(
                    "{} {} (life {}, pid {}) {}",
                    self.sites[live.ring].mix.name,
                    live.role.text(),
                    live.life,
                    live.pid,
                    state.text()
                )
            })
            .collect();
        list.sort();
        let open = (0..self.sites.len()).filter(|&ring| self.ledger.ring(ring, ring::CLOSED) == 0);
        let open: Vec<&str> = open.map(|ring| self.sites[ring].mix.name).collect();
        format!("open {open:?}; {}", list.join("; "))
    }

    /// After a failure nothing is waited for.
    fn kill_all(&mut self) {
        for live in self.live.values() {
            self.ledger.set_life(live.life, life::KILL, now());
            self.signal(live, libc::SIGKILL);
        }
        for &(pid, _) in &self.orphans {
            process::kill(pid, libc::SIGKILL);
        }
        let start = Instant::now();
        while !self.live.is_empty() && start.elapsed() < Duration::from_secs(10) {
            self.reap();
            process::wait_for_child(Duration::from_millis(1));
        }
    }
}

/// The present instance of a ring, to look at.
fn watch<'s>(
    ledger: &Ledger,
    dir: &Path,
    live: &HashMap<i32, Live>,
    sites: &'s mut [Site],
    ring: usize,
) -> Option<&'s Watch> {
    let site = &mut sites[ring];
    let instance = ledger.ring(ring, ring::INSTANCES);
    if site.watch.as_ref().is_none_or(|(of, _)| *of != instance) {
        site.watch = None;
        let producer = site.seats[0].unwrap_or(0);
        if site.mix.backing == Backing::Memfd && !live.contains_key(&producer) {
            return None;
        }
        site.watch = Watch::open(&site.mix, dir, producer as u32).ok().map(|watch| (instance, watch));
    }
    debug_assert!(site.mix.kind == Kind::Queue || site.mix.kind == Kind::Broadcast);
    site.watch.as_ref().map(|(_, watch)| watch)
}
