//! Who goes next, with whom and where: a state machine without I/O, clock or threads.
//!
//! ```text
//!   push ──▶ waiting: High  ─┐                          ┌─▶ worker: batches and items that it has
//!            waiting: Normal ├─ assign: pick + worker ──┤
//!            waiting: Low   ─┘                          └─▶ worker
//!     ▲ put_back   │ expire, cancel                           release, remove_worker
//! ```
//!
//! # Invariants
//! I1 once       An item is in one place: waiting, or in the batch that [`assign`](Schedule::assign) gave.
//! I2 caps       A batch has at most `max_items` items; with more than one of them it is also within `max_tokens` (padded)
//!               and `max_bytes`, and its items are of one group.
//! I3 no wait    While a worker has nothing to do, nothing waits (unless `window` says so).
//! I4 no hunger  The oldest item of the highest class is in the next batch, whatever its length.
//! I5 ahead      A worker that is busy is given a batch ahead only if that batch is full and no larger than its share: it
//!               could not become better by waiting.
//! I6 share      No batch is larger than the part of everything, waiting or running, that each worker would have if all
//!               had as much; with `continuous`, no worker is given more than that. With a `window`, which is there for
//!               larger batches, nothing is shared.
//!
//! Callers pass the time; equal calls give equal answers. A call costs O(log n), `assign` also the sorting of at most
//! four batches' worth of items.

mod pick;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    time::{Duration, Instant},
};

use self::pick::Picked;
use crate::backend::Priority;

const CLASSES: usize = 3;

/// What batches and the queue may hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Items of a batch; of a worker, where it is fed continuously.
    pub max_items: usize,
    /// Padded tokens of a batch.
    pub max_tokens: usize,
    /// Bytes of a batch.
    pub max_bytes: u64,
    /// Bytes that one padded token takes in a batch.
    pub token_bytes: u64,
    /// Widths are rounded up to a multiple of this.
    pub pad_to_multiple_of: usize,
    /// Upper ends of length buckets, growing.
    pub buckets: Vec<usize>,
    /// How long a batch that is not full waits for more.
    pub window: Duration,
    /// Batches that a busy worker is given ahead.
    pub prefetch: usize,
    /// Whether workers take new items at any time, as long as they have fewer than `max_items`: generating models.
    pub continuous: bool,
    /// How long an item may wait.
    pub queue_timeout: Duration,
    /// Items that may wait.
    pub max_waiting: usize,
}

/// What an item takes in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Its length in tokens; 0 where items have none.
    pub tokens: usize,
    /// Its bytes, beside those of its tokens.
    pub bytes: u64,
    /// Only items of one group can be in a batch: those whose tensors have the same dims.
    pub group: u64,
}

/// The items of one call in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    class: usize,
    items: Range<u64>,
}

/// The queue has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full {
    /// Items that wait.
    pub waiting: usize,
}

/// Why an item left the queue without a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// It waited too long.
    Queue {
        /// How long.
        waited: Duration,
    },
    /// Its caller waits no longer.
    Deadline,
}

/// An item in the queue.
#[derive(Debug)]
pub struct Waiting<T> {
    class: usize,
    number: u64,
    since: Instant,
    deadline: Instant,
    expires: Instant,
    size: Size,
    /// What it stands for.
    pub load: T,
}

impl<T> Waiting<T> {
    /// Since when it waits.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// When its caller stops waiting.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What it takes.
    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }
}

/// Items for a worker.
#[derive(Debug)]
pub struct Batch<T> {
    /// Its number.
    pub id: u64,
    /// Who is to have it.
    pub worker: u64,
    /// Its items, by age.
    pub items: Vec<Waiting<T>>,
    /// Tokens of its longest, rounded up.
    pub width: usize,
}

#[derive(Debug)]
struct Worker {
    key: u64,
    batches: usize,
    items: usize,
    /// Given nothing new: it is to leave.
    closed: bool,
    /// Given nothing new until there is room again.
    blocked: bool,
}

#[derive(Debug)]
struct Flight {
    worker: u64,
    items: usize,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Schedule<T> {
    limits: Limits,
    classes: [BTreeMap<u64, Waiting<T>>; CLASSES],
    expiries: BTreeSet<(Instant, usize, u64)>,
    next_item: u64,
    next_batch: u64,
    workers: Vec<Worker>,
    flights: HashMap<u64, Flight>,
    /// When a batch that waits for more of its kind goes anyway.
    window_ends: Option<Instant>,
}

impl<T> Schedule<T> {
    /// With nothing in it.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            classes: [BTreeMap::new(), BTreeMap::new(), BTreeMap::new()],
            expiries: BTreeSet::new(),
            next_item: 0,
            next_batch: 0,
            workers: Vec::new(),
            flights: HashMap::new(),
            window_ends: None,
        }
    }

    /// What batches and the queue may hold.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Puts the items of a call into the queue: all, or none.
    ///
    /// # Errors
    /// [`Full`] if they are more than may wait now. An empty queue takes any number.
    pub fn push(
        &mut self,
        now: Instant,
        priority: Priority,
        deadline: Instant,
        items: impl ExactSizeIterator<Item = (Size, T)>,
    ) -> Result<Ticket, Full> {
        let waiting = self.waiting();
        if waiting > 0 && waiting + items.len() > self.limits.max_waiting {
            return Err(Full { waiting });
        }
        let class = priority as usize;
        let first = self.next_item;
        for (size, load) in items {
            let number = self.next_item;
            self.next_item += 1;
            self.insert(Waiting { class, number, since: now, deadline, expires: now, size, load });
        }
        Ok(Ticket { class, items: first..self.next_item })
    }

    /// Items of a batch that could not be handed over wait on, as if they had never left.
    pub fn put_back(&mut self, items: impl IntoIterator<Item = Waiting<T>>) {
        items.into_iter().for_each(|item| self.insert(item));
    }

    /// Items whose worker died wait anew, before those that came later.
    pub fn begin_anew(&mut self, now: Instant, items: impl IntoIterator<Item = Waiting<T>>) {
        self.put_back(items.into_iter().map(|item| Waiting { since: now, ..item }));
    }

    fn insert(&mut self, mut item: Waiting<T>) {
        item.expires = item.deadline.min(item.since + self.limits.queue_timeout);
        self.expiries.insert((item.expires, item.class, item.number));
        self.classes[item.class].insert(item.number, item);
    }

    fn take(&mut self, class: usize, number: u64) -> Option<Waiting<T>> {
        let item = self.classes[class].remove(&number)?;
        self.expiries.remove(&(item.expires, class, number));
        Some(item)
    }

    /// Takes the items of a call that still wait out of the queue.
    pub fn cancel(&mut self, ticket: &Ticket) -> Vec<T> {
        let numbers: Vec<u64> = self.classes[ticket.class].range(ticket.items.clone()).map(|(&n, _)| n).collect();
        numbers.into_iter().filter_map(|number| self.take(ticket.class, number)).map(|item| item.load).collect()
    }

    /// Takes the items out of the queue that have waited too long.
    pub fn expire(&mut self, now: Instant) -> Vec<(Expired, T)> {
        let mut expired = Vec::new();
        while let Some(&(at, class, number)) = self.expiries.first() {
            if at > now {
                break;
            }
            let Some(item) = self.take(class, number) else {
                self.expiries.pop_first();
                continue;
            };
            let why = if item.deadline <= now {
                Expired::Deadline
            } else {
                Expired::Queue { waited: now.saturating_duration_since(item.since) }
            };
            expired.push((why, item.load));
        }
        expired
    }

    /// When [`expire`](Self::expire) and [`assign`](Self::assign) are to be called, if nothing happens before.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let expiry = self.expiries.first().map(|&(at, ..)| at);
        expiry.into_iter().chain(self.window_ends).min()
    }

    /// A batch for a worker, if there are items and somebody to have them. To be called until there is none.
    pub fn assign(&mut self, now: Instant) -> Option<Batch<T>> {
        self.window_ends = None;
        if self.waiting() == 0 {
            return None;
        }
        let at = self.least_loaded()?;
        let (key, busy, items) = {
            let worker = &self.workers[at];
            (worker.key, worker.batches > 0, worker.items)
        };
        let room = if self.limits.continuous { self.limits.max_items - items } else { self.limits.max_items };
        let picked = pick::pick(&self.limits, &self.classes, room)?;
        let share = if self.limits.window.is_zero() { self.share() } else { usize::MAX };
        if busy && !self.limits.continuous && (!picked.full || picked.items.len() > share) {
            return None;
        }
        if !picked.full && !self.limits.window.is_zero() {
            let ends = picked.oldest + self.limits.window;
            if now < ends {
                self.window_ends = Some(ends);
                return None;
            }
        }
        let has = if self.limits.continuous { items } else { 0 };
        let room = share.saturating_sub(has).max(1);
        let picked = if picked.items.len() > room { pick::pick(&self.limits, &self.classes, room)? } else { picked };
        Some(self.give(at, key, picked))
    }

    /// The part of everything that waits and runs that each worker would have if all had as much.
    fn share(&self) -> usize {
        let open = || self.workers.iter().filter(|worker| !worker.closed && !worker.blocked);
        let items = self.waiting() + open().map(|worker| worker.items).sum::<usize>();
        items.div_ceil(open().count().max(1))
    }

    fn give(&mut self, at: usize, key: u64, picked: Picked) -> Batch<T> {
        let items: Vec<_> = picked.items.iter().filter_map(|&(class, number)| self.take(class, number)).collect();
        let id = self.next_batch;
        self.next_batch += 1;
        self.workers[at].batches += 1;
        self.workers[at].items += items.len();
        self.flights.insert(id, Flight { worker: key, items: items.len() });
        Batch { id, worker: key, items, width: picked.width }
    }

    /// The worker that has least to do of those that may be given more.
    fn least_loaded(&self) -> Option<usize> {
        let limits = &self.limits;
        let may = |worker: &Worker| {
            let room =
                if limits.continuous { worker.items < limits.max_items } else { worker.batches <= limits.prefetch };
            room && !worker.closed && !worker.blocked
        };
        let workers = self.workers.iter().enumerate().filter(|(_, worker)| may(worker));
        workers.min_by_key(|(_, worker)| (worker.batches.min(1), worker.items, worker.batches)).map(|(at, _)| at)
    }

    /// `items` of a batch are answered; with the last of them it ends.
    pub fn release(&mut self, batch: u64, items: usize) {
        let Some(flight) = self.flights.get_mut(&batch) else { return };
        let items = items.min(flight.items);
        flight.items -= items;
        let (ended, key) = (flight.items == 0, flight.worker);
        if ended {
            self.flights.remove(&batch);
        }
        if let Some(worker) = self.workers.iter_mut().find(|worker| worker.key == key) {
            worker.items -= items;
            worker.batches -= usize::from(ended);
        }
    }

    /// A worker that can be given batches from now on.
    pub fn add_worker(&mut self, key: u64) {
        self.workers.push(Worker { key, batches: 0, items: 0, closed: false, blocked: false });
    }

    /// A worker is given nothing new; what it has, it finishes.
    pub fn close_worker(&mut self, key: u64) {
        self.worker(key, |worker| worker.closed = true);
    }

    /// Whether a worker has no room for now, though it has nothing to do.
    pub fn block_worker(&mut self, key: u64, blocked: bool) {
        self.worker(key, |worker| worker.blocked = blocked);
    }

    /// A worker is gone. Its batches are forgotten here; whoever has their items puts them back or gives them up.
    pub fn remove_worker(&mut self, key: u64) {
        self.workers.retain(|worker| worker.key != key);
        self.flights.retain(|_, flight| flight.worker != key);
    }

    fn worker(&mut self, key: u64, change: impl FnOnce(&mut Worker)) {
        if let Some(worker) = self.workers.iter_mut().find(|worker| worker.key == key) {
            change(worker);
        }
    }

    /// Batches and items that a worker has.
    #[must_use]
    pub fn load_of(&self, key: u64) -> (usize, usize) {
        let worker = self.workers.iter().find(|worker| worker.key == key);
        worker.map_or((0, 0), |worker| (worker.batches, worker.items))
    }

    /// Items that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.classes.iter().map(BTreeMap::len).sum()
    }

    /// Items that workers have.
    #[must_use]
    pub fn running(&self) -> usize {
        self.workers.iter().map(|worker| worker.items).sum()
    }

    /// Since when the oldest item waits.
    #[must_use]
    pub fn oldest(&self) -> Option<Instant> {
        self.classes.iter().filter_map(|class| class.values().next()).map(|item| item.since).min()
    }
}
