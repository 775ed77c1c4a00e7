//! Births: who comes next, where it is to die, and the fork.

use super::*;

impl Round<'_> {
    pub(super) fn fill(&mut self) {
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
}
