//! Wounds: what the dead leave, watched until somebody has mended it.

use super::*;

impl Round<'_> {
    pub(super) fn find_wounds(&mut self, dead: &Live) {
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

    pub(super) fn look_at_wounds(&mut self) {
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

    pub(super) fn bury_orphans(&mut self) {
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
}
