//! Sleep: victims that are stopped for a while and must not be robbed.

use super::*;

impl Round<'_> {
    pub(super) fn stop_somebody(&mut self, left: Duration) {
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

    pub(super) fn wake(&mut self, pid: i32) {
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
