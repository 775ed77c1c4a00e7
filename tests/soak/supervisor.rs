//! One round: starts victims, shoots them, wakes them, looks at what the dead leave, and fills their places.

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

    // === births ===

    fn fill(&mut self) {
        for ring in 0..self.sites.len() {
            let ready = self.ledger.ring(ring, ring::BASELINE) != 0;
            let finish = self.ledger.ring(ring, ring::FINISH);
            let closed = self.ledger.ring(ring, ring::CLOSED) == 1;
            for seat in 0..self.sites[ring].seats.len() {
                let site = &self.sites[ring];
                let wanted = match seat {
                    _ if closed || site.seats[seat].is_some() || site.ends => false,
                    0 => true,
                    _ => ready && finish < 2,
                };
                if wanted && self.births >= 1.0 && self.lives < LIVES {
                    self.births -= 1.0;
                    self.bear(ring, seat);
                }
            }
            let site = &mut self.sites[ring];
            if site.ends && site.seats.iter().all(Option::is_none) {
                site.ends = false;
            }
        }
    }

    fn bear(&mut self, ring: usize, seat: usize) {
        let life = self.lives;
        self.lives += 1;
        let mix = self.sites[ring].mix.clone();
        let role = if seat == 0 { Role::Producer } else { mix.role_of_consumers() };
        // The first and the last producer of a round are native: they count what a ring needs.
        let there = self.ledger.ring(ring, ring::THERE) == there::YES && !self.finishing;
        let python = if seat == 0 { mix.python_producer && there } else { mix.python_consumers };
        let keeper = seat == 1 && mix.needs_keeper();
        // A memfd ring's producer takes the ring with it: it is killed when somebody is there to see its end.
        let spared = keeper || seat == 0 && (!mix.kill_producer || mix.needs_keeper()) || self.finishing;
        let namespaced = !spared && !python && seat > 0 && self.namespaces.is_some() && self.dice.one_in(NAMESPACED);
        let witness = mix.witness && role == Role::Consumer;
        let aim =
            (!spared && !namespaced && !self.dice.one_in(6)).then(|| self.aim(&mix, role, witness, python)).flatten();
        let seed = self.dice.next();
        let fate = Fate { life, ring, seed, aim, keeper: keeper || spared && seat == 0, plain: !namespaced };
        let born = now();
        self.ledger.set_life(life, life::WHO, ring as u64 | (role as u64) << 8 | u64::from(python) << 16);
        self.ledger.set_life(life, life::BORN, born);
        let pid =
            if python { self.bear_python(&mix, role, &fate) } else { self.bear_native(&mix, role, fate, namespaced) };
        let Some(pid) = pid else { return };
        self.tally.births += 1;
        self.tally.namespaced += u64::from(namespaced);
        let longest = if python { 800 * MS } else { 150 * MS };
        let deadline = match aim {
            _ if spared => u64::MAX,
            Some(_) => born + longest,
            None => born + self.dice.scale_free(MS / 3, longest),
        };
        // The keeper of a memfd ring lives on; its producer is killed now and then.
        let deadline = if mix.needs_keeper() && seat == 0 && !self.finishing {
            born + 20 * MS + self.dice.below(300 * MS)
        } else {
            deadline
        };
        if !python {
            self.ledger.set_life(life, life::PID, pid as u64);
        }
        self.sites[ring].seats[seat] = Some(pid);
        if seat == 0 {
            self.sites[ring].disturbed = born;
        }
        let live = Live {
            life,
            ring,
            seat,
            role,
            pid,
            python,
            keeper,
            witness,
            deadline,
            halt: None,
            shot: false,
            aim: aim.filter(|_| python).map(|aim| aim.state as u64),
            joined: None,
        };
        self.live.insert(pid, live);
    }

    /// A state of this role to die in: often the one that fewest died in so far.
    fn aim(&mut self, mix: &Mix, role: Role, witness: bool, python: bool) -> Option<Aim> {
        let states: Vec<State> =
            State::ALL.iter().copied().filter(|&state| state.role() == Some(role) && mix.has(state)).collect();
        let state = if self.dice.one_in(2) {
            states.iter().copied().min_by_key(|&state| self.tally.kills_of(state, python))?
        } else {
            states[self.dice.below(states.len() as u64) as usize]
        };
        let once = matches!(
            state,
            State::Attaching
                | State::Joining
                | State::Creating
                | State::TakingOver
                | State::Closing
                | State::Leaving
                | State::MemberLeaving
        );
        Some(Aim { state, entries: if once { 1 } else { 1 + self.dice.below(6) }, witness })
    }

    fn bear_native(&mut self, mix: &Mix, role: Role, fate: Fate, namespaced: bool) -> Option<i32> {
        let (ledger, dir) = (self.ledger, self.dir);
        if let Some(namespaces) = self.namespaces.filter(|_| namespaced) {
            namespaces.enter();
        }
        let sites = &mut self.sites;
        let pid = process::fork(|| {
            process::die_with_parent();
            process::unblock_child_signal();
            // What the supervisor looks at is not the victim's.
            for site in sites {
                site.watch = None;
            }
            let mut victim = Victim::new(ledger, mix, dir, fate);
            match role {
                Role::Producer => victim.produce(),
                _ => victim.consume(),
            }
        });
        if let Some(namespaces) = self.namespaces.filter(|_| namespaced) {
            namespaces.leave();
        }
        match pid {
            Ok(pid) => Some(pid),
            Err(e) => {
                self.tally.failures.push(format!("the rig cannot fork: {e}"));
                None
            }
        }
    }

    fn bear_python(&mut self, mix: &Mix, role: Role, fate: &Fate) -> Option<i32> {
        let python = self.python.as_mut()?;
        match python.bear(self.dir, mix, role, fate) {
            // Until its pid is known, a number that no process has.
            Ok(()) => Some(-1 - fate.life as i32),
            Err(e) => {
                self.tally.failures.push(format!("the Python zygote: {e}"));
                None
            }
        }
    }

    // === deaths ===

    fn shoot(&mut self) {
        let now = now();
        let is_due = |live: &Live| {
            live.deadline <= now || live.aim.is_some_and(|aim| self.ledger.life(live.life, life::STATE) == aim)
        };
        let idle = |live: &&Live| !live.shot && live.halt.is_none() && self.ledger.life(live.life, life::PID) != 0;
        let due: Vec<i32> = self.live.values().filter(idle).filter(|l| is_due(l)).map(|l| l.pid).collect();
        for pid in due {
            let live = &self.live[&pid];
            if self.sites[live.ring].mix.needs_keeper() && live.seat == 0 && !self.may_end(live.ring) {
                continue;
            }
            if live.witness {
                self.halt(pid, Halt::Witness);
            } else {
                self.kill(pid);
            }
        }
    }

    /// Whether a memfd ring's keeper is attached and has room for all that may still come.
    fn may_end(&self, ring: usize) -> bool {
        let keeper = self.live.values().find(|live| live.ring == ring && live.keeper);
        keeper.is_some_and(|live| {
            let life = live.life;
            live.halt.is_none()
                && self.ledger.life(life, life::RECEIVED) > 0
                && self.ledger.life(life, life::RECORDS) + 80 < RECORDS as u64
        })
    }

    fn halt(&mut self, pid: i32, halt: Halt) {
        if let Some(live) = self.live.get_mut(&pid) {
            live.halt = Some(halt);
        }
        if let Some(live) = self.live.get(&pid) {
            self.signal(live, libc::SIGSTOP);
        }
    }

    /// Signals a victim; one of the Python zygote only once that has forked it.
    fn signal(&self, live: &Live, signal: i32) {
        let pid = self.ledger.life(live.life, life::PID) as i32;
        if pid > 1 {
            process::kill(pid, signal);
        }
    }

    /// SIGKILL; the time is noted before.
    fn kill(&mut self, pid: i32) {
        let joined = self.joined(pid);
        let Some(live) = self.live.get_mut(&pid) else { return };
        live.shot = true;
        live.joined = joined;
        let (ring, seat) = (live.ring, live.seat);
        self.ledger.set_life(live.life, life::KILL, now());
        self.signal(&self.live[&pid], libc::SIGKILL);
        if self.sites[ring].mix.needs_keeper() && seat == 0 && !self.finishing {
            self.sites[ring].ends = true;
            for other in self.live.values_mut().filter(|other| other.ring == ring) {
                other.deadline = if other.keeper { u64::MAX } else { other.deadline };
            }
        }
    }

    fn joined(&mut self, pid: i32) -> Option<(u8, (u64, u64))> {
        let live = self.live.get(&pid)?;
        let member = self.ledger.life(live.life, life::MEMBER);
        if live.role != Role::Member || member == 0 || self.ledger.life(live.life, life::LAST) == 0 {
            return None;
        }
        let index = (member - 1) as u8;
        let ring = live.ring;
        let found = watch(self.ledger, self.dir, &self.live, &mut self.sites, ring)?.joined(index).ok()?;
        (found.0 != 0).then_some((index, found))
    }

    fn reap(&mut self) {
        while let Some((pid, change)) = process::next_change() {
            self.changed(pid, change);
        }
        let Some(python) = &self.python else { return };
        if let Some(e) = python.failure() {
            self.tally.failures.push(e);
        }
        let ended: Vec<(i32, u64)> = self
            .live
            .values()
            .filter(|live| live.python)
            .map(|live| (live.pid, self.ledger.life(live.life, life::STATUS)))
            .filter(|(_, status)| *status != 0)
            .collect();
        for (pid, status) in ended {
            let status = status as u32 as i32;
            let change = if libc::WIFSIGNALED(status) {
                Change::Killed(libc::WTERMSIG(status))
            } else {
                Change::Left(libc::WEXITSTATUS(status))
            };
            self.changed(pid, change);
        }
    }

    fn changed(&mut self, pid: i32, change: Change) {
        if change == Change::Stopped {
            return self.stopped(pid);
        }
        let Some(live) = self.live.remove(&pid) else {
            // An orphan of a victim.
            self.orphans.retain(|&(orphan, _)| orphan != pid);
            return;
        };
        self.sites[live.ring].seats[live.seat] = None;
        if live.seat == 0 {
            self.sites[live.ring].disturbed = now();
        }
        let life = live.life;
        self.ledger.set_life(life, life::REAPED, now());
        let child = self.ledger.life(life, life::CHILD) as i32;
        if child > 1 {
            self.orphans.push((child, now() + ORPHAN_NS));
            self.tally.forked += 1;
        }
        let ended = match change {
            Change::Killed(libc::SIGKILL) => end::KILLED,
            Change::Left(code) if code as u64 == end::LEFT => end::LEFT,
            _ => end::FAILED,
        };
        self.ledger.set_life(life, life::END, ended);
        if ended == end::KILLED {
            let state = State::from_word(self.ledger.life(life, life::STATE));
            self.ledger.set_life(life, life::DIED_IN, state as u64);
            self.tally.killed(state, live.python);
            self.find_wounds(&live);
        } else if ended == end::FAILED || self.ledger.failure(life).is_some() {
            let why = self.ledger.failure(life).unwrap_or_else(|| format!("ended by {change:?}"));
            self.tally.failures.push(format!("life {life} (pid {pid}, {}): {why}", live.role.text()));
        } else {
            self.tally.left += 1;
        }
        if live.keeper && self.sites[live.ring].ends && self.ledger.life(life, life::SAW_END) != 2 {
            self.tally.failures.push(format!("LOST: the keeper (life {life}) did not see its ring's end"));
        }
        self.tally.entry(live.role, live.python, self.ledger.life(life, life::ENTRY_NS));
    }

    /// A victim has stopped: to be looked at and killed, or to sleep.
    fn stopped(&mut self, pid: i32) {
        // One that stops itself and is stopped as well stops twice.
        let Some(live) = self.live.get_mut(&pid).filter(|live| !live.shot) else { return };
        match live.halt {
            Some(Halt::Sleep { .. }) => {}
            // It stopped itself in the state that it was to die in.
            None | Some(Halt::Witness) => {
                live.halt = Some(Halt::Witness);
                self.testify(pid);
                self.kill(pid);
            }
        }
    }

    /// Notes which claims a stopped victim has: nobody else changes the words of a living owner.
    fn testify(&mut self, pid: i32) {
        let live = &self.live[&pid];
        let (life, ring) = (live.life, live.ring);
        let member = self.ledger.life(life, life::MEMBER);
        if live.role != Role::Consumer || !live.witness || member == 0 {
            return;
        }
        let claims = watch(self.ledger, self.dir, &self.live, &mut self.sites, ring)
            .ok_or_else(|| "its objects cannot be opened".to_owned())
            .and_then(|watch| watch.claims((member - 1) as u8));
        let base = self.ledger.ring(ring, ring::BASE);
        match claims {
            Ok(claims) => {
                for claim in claims {
                    let acked = claim.state == SlotState::Acked;
                    let (cell, attempts) = (base + claim.sequence, claim.attempts.into());
                    self.witnesses.push(Witness { ring, life, cell, attempts, acked });
                }
            }
            Err(e) => self.tally.failures.push(format!("the rig cannot look at {}: {e}", self.sites[ring].mix.name)),
        }
    }

    // === what the dead leave ===

    fn find_wounds(&mut self, dead: &Live) {
        let (life, ring) = (dead.life, dead.ring);
        let since = self.ledger.killed_at(life);
        let producer = self.undisturbed(ring, since);
        let child = self.ledger.life(life, life::CHILD) as i32;
        if let Some((index, joined)) = dead.joined {
            self.wounds.push(Wound { ring, since, producer, child, what: Left::Membership { index, joined } });
            return;
        }
        let member = self.ledger.life(life, life::MEMBER);
        if dead.role != Role::Consumer || member == 0 {
            return;
        }
        let base = self.ledger.ring(ring, ring::BASE);
        let over = stage::NACKED | stage::RELEASED;
        let held: Vec<_> = self.ledger.records(life).filter(|r| r.stage & over == 0 && r.cell > base).collect();
        for record in held {
            let Some(watch) = watch(self.ledger, self.dir, &self.live, &mut self.sites, ring) else { return };
            let claims = watch.claims((member - 1) as u8).unwrap_or_default();
            // Attempts tell its claim from that of a later member of the same index.
            let named = claims.iter().find(|c| {
                c.slot == record.slot as u32
                    && base + c.sequence == record.cell
                    && u64::from(c.attempts) == record.attempts
            });
            match named {
                Some(claim) => {
                    let what = Left::Claim { slot: claim.slot, raw: claim.raw };
                    self.wounds.push(Wound { ring, since, producer, child, what });
                }
                // Mended before this process could look: it took no longer than until now. Of a Python victim it hears late.
                None if record.stage & stage::ACKING == 0 && !dead.python => self.mended(since, producer, ring),
                None => {}
            }
        }
    }

    /// The ring's producer, if it has run since `since`.
    fn undisturbed(&self, ring: usize, since: u64) -> Option<usize> {
        let pid = self.sites[ring].seats[0]?;
        let live = self.live.get(&pid)?;
        let entered = self.ledger.life(live.life, life::ENTRY_NS) != 0;
        (entered && live.halt.is_none() && !live.shot && self.sites[ring].disturbed < since).then_some(live.life)
    }

    fn mended(&mut self, since: u64, producer: Option<usize>, ring: usize) {
        let ns = now().saturating_sub(since);
        let led = producer.is_some() && producer == self.undisturbed(ring, since);
        self.tally.recovered(ns, led, self.sites[ring].mix.name);
    }

    fn look_at_wounds(&mut self) {
        let wounds = std::mem::take(&mut self.wounds);
        for wound in wounds {
            let healed = match watch(self.ledger, self.dir, &self.live, &mut self.sites, wound.ring) {
                None => None,
                Some(watch) => Some(match wound.what {
                    Left::Claim { slot, raw } => watch.slot_word(slot).is_ok_and(|found| found != raw),
                    Left::Membership { index, joined } => watch.joined(index).is_ok_and(|found| found != joined),
                }),
            };
            match healed {
                Some(true) => self.mended(wound.since, wound.producer, wound.ring),
                Some(false) => self.wounds.push(wound),
                // The ring is gone, and what was held with it.
                None => {}
            }
        }
    }

    fn bury_orphans(&mut self) {
        let now = now();
        let mut pinned = Vec::new();
        for (pid, at) in &mut self.orphans {
            if *at <= now || self.finishing && *at < u64::MAX {
                // What its parent held is long mended if its producer lived all the time.
                let held = |wound: &&Wound| wound.child == *pid && wound.producer.is_some() && *at <= now;
                pinned.extend(self.wounds.iter().filter(held).map(|wound| (wound.ring, wound.since, wound.producer)));
                process::kill(*pid, libc::SIGKILL);
                *at = u64::MAX;
            }
        }
        for (ring, since, producer) in pinned {
            if self.undisturbed(ring, since) == producer {
                let name = self.sites[ring].mix.name;
                self.tally.failures.push(format!("PINNED: {name}: a forked child keeps what its dead parent held"));
            }
        }
    }

    // === sleep ===

    fn stop_somebody(&mut self, left: Duration) {
        let time = now();
        let awake: Vec<(i32, bool)> = self
            .live
            .values()
            .filter_map(|live| match live.halt {
                Some(Halt::Sleep { until, dies }) if until <= time && !live.shot => Some((live.pid, dies)),
                _ => None,
            })
            .collect();
        for (pid, dies) in awake {
            if dies {
                self.testify(pid);
                self.kill(pid);
            } else {
                self.wake(pid);
            }
        }
        // Some tens a second fall asleep.
        if !self.dice.one_in(60) || self.live.is_empty() {
            return;
        }
        let pids: Vec<i32> = self.live.keys().copied().collect();
        let pid = pids[self.dice.below(pids.len() as u64) as usize];
        let live = &self.live[&pid];
        let ring = live.ring;
        let sleeping = |live: &Live| matches!(live.halt, Some(Halt::Sleep { .. }));
        let site = &self.sites[ring];
        let taken = self.live.values().filter(|other| other.ring == ring && sleeping(other)).count();
        if live.halt.is_some() || live.shot || live.keeper || live.python || taken > 0 || site.ends {
            return;
        }
        let longest = if live.seat == 0 { Duration::from_millis(300) } else { site.mix.longest_stop };
        let longest = longest.min(left.saturating_sub(Duration::from_millis(500))).as_nanos() as u64;
        if longest < 5 * MS {
            return;
        }
        let span = if self.dice.one_in(20) { longest } else { self.dice.scale_free(5 * MS, longest) };
        let ends = live.seat == 0 && site.mix.needs_keeper();
        let dies = live.deadline != u64::MAX && !ends && self.dice.one_in(4);
        if live.seat == 0 {
            self.sites[ring].disturbed = u64::MAX;
        }
        self.halt(pid, Halt::Sleep { until: time + span, dies });
        self.tally.stopped(span);
    }

    fn wake(&mut self, pid: i32) {
        let Some(live) = self.live.get_mut(&pid) else { return };
        if let Some(Halt::Sleep { .. }) = live.halt {
            live.halt = None;
            if live.deadline != u64::MAX {
                live.deadline = now() + 30 * MS;
            }
            if live.seat == 0 {
                self.sites[live.ring].disturbed = now();
            }
            self.signal(&self.live[&pid], libc::SIGCONT);
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
