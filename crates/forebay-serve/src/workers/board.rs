//! What is known of each worker, for health checks and the status page.

use std::{
    fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    backend::{Health, WorkerStatus},
    engine::{Core, Link},
};

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum State {
    #[default]
    Starting,
    Ready,
    Draining,
    BackingOff,
    /// It died too often; it is started again now and then.
    Failed,
    /// Being started again after that.
    Retrying,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::BackingOff => "backing off",
            Self::Failed | Self::Retrying => "failed",
        }
    }

    /// What it is while it is started.
    pub(super) fn starting(self) -> Self {
        match self {
            Self::Failed | Self::Retrying => Self::Retrying,
            _ => Self::Starting,
        }
    }
}

/// One worker.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) state: State,
    link: Option<Arc<Link>>,
    pids: Vec<u32>,
    pub(super) starting_pids: Vec<u32>,
    pub(super) restarts: u64,
    pub(super) last_exit: Option<String>,
}

impl Slot {
    /// It has no process any more.
    pub(super) fn gone(&mut self, state: State) {
        self.state = state;
        self.link = None;
        self.pids.clear();
        self.starting_pids.clear();
    }
}

/// All workers.
#[derive(Debug, Default)]
pub(crate) struct Board(Mutex<Vec<Slot>>);

impl Board {
    fn lock(&self) -> MutexGuard<'_, Vec<Slot>> {
        // Nothing is left half done by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, count: usize) {
        *self.lock() = (0..count).map(|_| Slot::default()).collect();
    }

    pub(super) fn change(&self, index: usize, change: impl FnOnce(&mut Slot)) {
        if let Some(slot) = self.lock().get_mut(index) {
            change(slot);
        }
    }

    pub(super) fn ready(&self, index: usize, link: &Arc<Link>, pids: &[u32]) {
        self.change(index, |slot| {
            slot.state = State::Ready;
            slot.link = Some(Arc::clone(link));
            slot.pids = pids.to_vec();
            slot.starting_pids.clear();
        });
    }

    /// Ready once one worker is that has not been at the same work for longer than `patience`.
    pub(crate) fn health(&self, patience: Duration) -> Health {
        let (mut ready, mut why) = (Vec::new(), Vec::new());
        for (index, slot) in self.lock().iter().enumerate() {
            match &slot.link {
                Some(link) if slot.state == State::Ready => ready.push((index, Arc::clone(link))),
                _ => {
                    let last = slot.last_exit.as_ref().map_or_else(String::new, |last| format!(" (last: {last})"));
                    why.push(format!("worker {index} is {}{last}", slot.state.name()));
                }
            }
        }
        let now = Instant::now();
        for (index, link) in ready {
            match link.stuck_for(now).filter(|stuck| *stuck > patience) {
                Some(stuck) => {
                    why.push(format!("worker {index} stands still: no answer for {:.1} s", stuck.as_secs_f64()))
                }
                None => return Health::Ready,
            }
        }
        Health::NotReady(why.join("; "))
    }

    /// Why no worker will be ready soon, if all of them failed.
    pub(crate) fn failed(&self) -> Option<String> {
        let slots = self.lock();
        let failed = |slot: &Slot| matches!(slot.state, State::Failed | State::Retrying);
        let all = !slots.is_empty() && slots.iter().all(failed);
        all.then(|| {
            let last = slots.iter().find_map(|slot| slot.last_exit.clone());
            format!("the workers keep ending ({}); see the log", last.unwrap_or_default())
        })
    }

    pub(crate) fn status(&self, core: &Core) -> Vec<WorkerStatus> {
        let links: Vec<Option<Arc<Link>>> = self.lock().iter().map(|slot| slot.link.clone()).collect();
        let loads: Vec<(usize, usize)> = {
            let schedule = core.schedule();
            links.iter().map(|link| link.as_ref().map_or((0, 0), |link| schedule.load_of(link.key))).collect()
        };
        let rings: Vec<((u32, u32), f64)> = links
            .iter()
            .map(|link| link.as_ref().map_or(((0, 0), 0.0), |link| (link.slots(), link.oldest_answer_s())))
            .collect();
        let slots = self.lock();
        let one = |(index, slot): (usize, &Slot)| {
            let pids: Vec<u32> = slot.pids.iter().chain(&slot.starting_pids).copied().collect();
            let (batches, items) = loads.get(index).copied().unwrap_or_default();
            let (ring, oldest_lease_s) = rings.get(index).copied().unwrap_or_default();
            WorkerStatus {
                index,
                state: slot.state.name().to_owned(),
                rss_bytes: pids.iter().map(|&pid| rss(pid)).sum(),
                pids,
                restarts: slot.restarts,
                batches,
                items,
                slots: ring,
                oldest_lease_s,
                last_exit: slot.last_exit.clone(),
            }
        };
        slots.iter().enumerate().map(one).collect()
    }
}

/// Resident memory of a process, 0 if it is gone.
fn rss(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: u64 = text.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
