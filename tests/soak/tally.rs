//! The figures of a run, over all its rounds.

use std::{collections::BTreeMap, time::Duration};

use crate::states::{Role, State};

/// Times, kept whole: a few million at most.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<u64>);

impl Times {
    fn add(&mut self, ns: u64) {
        self.0.push(ns);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The value that `share` of them do not exceed, in ns; 0 if there is none.
    pub(crate) fn quantile(&self, share: f64) -> u64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = ((sorted.len() as f64 * share).ceil() as usize).max(1) - 1;
        sorted.get(at).copied().unwrap_or(0)
    }
}

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) failures: Vec<String>,
    pub(crate) rounds: u64,
    /// How long victims were shot at.
    pub(crate) killing: Duration,
    pub(crate) births: u64,
    pub(crate) left: u64,
    pub(crate) forked: u64,
    pub(crate) namespaced: u64,
    pub(crate) stops: u64,
    pub(crate) longest_stop: Duration,
    kills: BTreeMap<(u8, bool), u64>,
    /// Recovery while the ring's producer ran; and without one.
    pub(crate) led: Times,
    pub(crate) leaderless: Times,
    /// The slowest of the former, and where it was.
    pub(crate) slowest: Option<(u64, String)>,
    entries: BTreeMap<(u8, bool), Times>,
    // From the audit.
    pub(crate) published: u64,
    pub(crate) unpublished: u64,
    pub(crate) deliveries: u64,
    pub(crate) members_received: u64,
    pub(crate) acked: u64,
    pub(crate) letters: u64,
    pub(crate) letters_again: u64,
    pub(crate) redelivered: u64,
    pub(crate) by_nack: u64,
    pub(crate) by_death: u64,
    pub(crate) by_unnoted: u64,
    pub(crate) witnessed: u64,
    pub(crate) settled_by_absence: u64,
    pub(crate) words: u64,
    pub(crate) missing: u64,
    pub(crate) torn: u64,
    pub(crate) leaks: u64,
}

impl Tally {
    pub(crate) fn killed(&mut self, state: State, python: bool) {
        *self.kills.entry((state as u8, python)).or_default() += 1;
    }

    pub(crate) fn kills_of(&self, state: State, python: bool) -> u64 {
        self.kills.get(&(state as u8, python)).copied().unwrap_or(0)
    }

    /// All kills of one language.
    pub(crate) fn kills(&self, python: bool) -> u64 {
        self.kills.iter().filter(|((_, of), _)| *of == python).map(|(_, n)| n).sum()
    }

    pub(crate) fn recovered(&mut self, ns: u64, led: bool, what: &str) {
        if led && self.slowest.as_ref().is_none_or(|(slowest, _)| *slowest < ns) {
            self.slowest = Some((ns, what.to_owned()));
        }
        if led { self.led.add(ns) } else { self.leaderless.add(ns) }
    }

    pub(crate) fn stopped(&mut self, ns: u64) {
        self.stops += 1;
        self.longest_stop = self.longest_stop.max(Duration::from_nanos(ns));
    }

    /// A victim took this long to attach or to create.
    pub(crate) fn entry(&mut self, role: Role, python: bool, ns: u64) {
        if ns > 0 {
            self.entries.entry((role as u8, python)).or_default().add(ns);
        }
    }

    pub(crate) fn entries(&self, role: Role, python: bool) -> Option<&Times> {
        self.entries.get(&(role as u8, python))
    }
}
