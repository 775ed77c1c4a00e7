//! Deaths: shots, what a stopped victim has, and what its end says.

use super::*;

impl Round<'_> {
    pub(super) fn shoot(&mut self) {
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

    pub(super) fn halt(&mut self, pid: i32, halt: Halt) {
        if let Some(live) = self.live.get_mut(&pid) {
            live.halt = Some(halt);
        }
        if let Some(live) = self.live.get(&pid) {
            self.signal(live, libc::SIGSTOP);
        }
    }

    /// Signals a victim; one of the Python zygote only once that has forked it.
    pub(super) fn signal(&self, live: &Live, signal: i32) {
        let pid = self.ledger.life(live.life, life::PID) as i32;
        if pid > 1 {
            process::kill(pid, signal);
        }
    }

    /// SIGKILL; the time is noted before.
    pub(super) fn kill(&mut self, pid: i32) {
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

    pub(super) fn reap(&mut self) {
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
        let spared = self.ledger.life(life, life::KILL) == 0;
        if live.keeper && spared && self.sites[live.ring].ends && self.ledger.life(life, life::SAW_END) != 2 {
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
    pub(super) fn testify(&mut self, pid: i32) {
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
}
