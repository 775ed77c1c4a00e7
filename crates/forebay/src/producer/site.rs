//! What the publishing thread and the control thread of a producer share.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
    },
    time::Duration,
};

use forebay_layout::{
    Kind,
    control::Hello,
    header::W_FENCES,
    member::{self as at, state},
};
use forebay_os::{Barrier, Dir, EventFd, ForkToken, OsError, barrier, clock, futex, process};
use forebay_ring::{Member, MemberId, Pool, Words, queue};

use crate::{
    error::Holder,
    rendezvous::{locks::Locks, objects::Objects},
    segment::Segment,
};

/// A change of membership that the publishing thread of a broadcast ring applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Join(u8, u16),
    Remove(u8),
}

/// A place handed out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seat {
    pub(crate) index: u8,
    pub(crate) incarnation: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Empty,
    Joining,
    Active,
    Leaving,
}

#[derive(Debug)]
pub(crate) struct Roster {
    places: Vec<Place>,
    changes: Vec<Change>,
}

/// A producer's ring, as both of its threads see it.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) ring: String,
    pub(crate) dir: Dir,
    pub(crate) objects: Objects,
    pub(crate) locks: Locks,
    pub(crate) epoch: u64,
    pub(crate) barrier: Barrier,
    pub(crate) token: ForkToken,
    pub(crate) stop: EventFd,
    /// The control thread is to end: looked at once a round, should the bell above not reach it.
    over: AtomicBool,
    pool: Option<Pool<Segment>>,
    parts: Vec<Member<Segment>>,
    roster: Mutex<Roster>,
    arrived: Condvar,
    /// Something in `roster.changes`, or a slot in `abandoned`.
    news: AtomicBool,
    abandoned: Box<[AtomicBool]>,
    /// Detached loans that live, and [`LEFT`].
    detached: AtomicU32,
    bells: Mutex<Vec<Option<Arc<EventFd>>>>,
    fences: AtomicBool,
    /// Broadcast: what this process tells its own publishing thread while that sleeps.
    pub(crate) own_bell: AtomicU64,
}

/// In the count of detached loans: the producer is gone, and the ring's name goes with the last of them.
const LEFT: u32 = 1 << 31;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section here leaves the data whole at each step, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Site {
    pub(crate) fn new(ring: String, dir: Dir, objects: Objects, locks: Locks, epoch: u64, stop: EventFd) -> Self {
        let header = &objects.header;
        let seats = header.geometry.max_consumers as usize;
        let pool = objects.pool.clone().map(|words| Pool::new(words, &header.plan));
        let parts = match &pool {
            Some(pool) => (0..seats).map(|index| pool.member(&header.plan, index as u8)).collect(),
            None => objects.members.iter().map(|words| Member::in_object(words.clone(), &header.plan)).collect(),
        };
        let abandoned = (0..header.plan.slots).map(|_| AtomicBool::new(false)).collect();
        let this = Self {
            ring,
            dir,
            locks,
            epoch,
            barrier: barrier::register(),
            token: ForkToken::current(),
            stop,
            over: AtomicBool::new(false),
            pool,
            parts,
            roster: Mutex::new(Roster { places: vec![Place::Empty; seats], changes: Vec::new() }),
            arrived: Condvar::new(),
            news: AtomicBool::new(false),
            abandoned,
            detached: AtomicU32::new(0),
            bells: Mutex::new((0..seats).map(|_| None).collect()),
            fences: AtomicBool::new(objects.ring.word(W_FENCES).load(Ordering::Relaxed) != 0),
            own_bell: AtomicU64::new(0),
            objects,
        };
        if this.barrier == Barrier::Fence {
            this.require_fences();
        }
        this
    }

    /// Tells the control thread to end.
    pub(crate) fn end(&self) {
        // ORDER none, Relaxed: nothing is read because of it; joining the thread is what orders.
        self.over.store(true, Ordering::Relaxed);
        self.stop.signal();
    }

    /// Whether the control thread is to end.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    pub(crate) fn kind(&self) -> Kind {
        self.objects.header.geometry.kind
    }

    /// The pool of a queue.
    pub(crate) fn pool(&self) -> Option<&Pool<Segment>> {
        self.pool.as_ref()
    }

    pub(crate) fn part(&self, index: u8) -> &Member<Segment> {
        &self.parts[usize::from(index)]
    }

    fn max_attempts(&self) -> u32 {
        self.objects.header.geometry.max_attempts
    }

    /// Some peer has no membarrier: from now on every waker executes a fence.
    pub(crate) fn require_fences(&self) {
        self.fences.store(true, Ordering::Relaxed);
        self.objects.ring.word(W_FENCES).store(1, Ordering::Relaxed);
        // ORDER E5 park: after this every thread of a registered process sees the store before it publishes again.
        barrier::heavy(self.barrier);
    }

    /// What a waker does between its message and its look at who sleeps.
    pub(crate) fn waker_fence(&self) {
        forebay_ring::waker_fence(self.fences.load(Ordering::Relaxed));
    }

    // === waking ===

    /// Wakes member `index`, whose bell was rung, in the way it sleeps.
    pub(crate) fn wake(&self, index: u8) {
        let part = self.part(index);
        if part.peek(at::FLAGS) & at::flags::EVENTFD == 0 {
            futex::wake(futex::low_half(part.wake_word()), 1);
        } else if let Some(bell) = self.bell(index) {
            bell.signal();
        }
    }

    /// Member `index`'s bell. Taken out of the lock: a hostile member can make ringing it wait.
    fn bell(&self, index: u8) -> Option<Arc<EventFd>> {
        lock(&self.bells)[usize::from(index)].clone()
    }

    /// Wakes one sleeping consumer of a queue, the next after `turn`; returns whose turn it was.
    pub(crate) fn wake_one(&self, turn: u8) -> u8 {
        let Some(pool) = &self.pool else { return turn };
        match pool.pick_sleeper(turn, u32::MAX) {
            Some(index) => {
                self.part(index).ring_bell();
                self.wake(index);
                index
            }
            None => turn,
        }
    }

    /// Wakes everybody: the ring is closed or replaced.
    pub(crate) fn wake_all(&self) {
        self.waker_fence();
        for index in 0..self.parts.len() as u8 {
            self.part(index).ring_bell();
            futex::wake(futex::low_half(self.part(index).wake_word()), 1);
            if let Some(bell) = self.bell(index) {
                bell.signal();
            }
        }
    }

    /// Wakes this process's own publishing thread, if it sleeps.
    fn wake_publisher(&self) {
        match &self.pool {
            Some(pool) => {
                // ORDER SeqCst fence: the news are stored before the mark is looked at, whoever needs which barrier.
                fence(Ordering::SeqCst);
                if pool.call_producer() {
                    futex::wake(futex::low_half(pool.producer_wake_word()), 1);
                }
            }
            None => {
                self.own_bell.fetch_add(1, Ordering::Release);
                futex::wake(futex::low_half(&self.own_bell), 1);
            }
        }
    }

    // === membership ===

    pub(crate) fn keep_bell(&self, index: u8, bell: EventFd) {
        lock(&self.bells)[usize::from(index)] = Some(Arc::new(bell));
    }

    /// Finds an empty place: its lock byte is free, no slot word names it, and its part is zeroed. Its identity, which says
    /// what the last incarnation was, goes over into the new one by one store.
    pub(crate) fn find_seat(&self, hello: &Hello) -> Option<Seat> {
        let mut roster = lock(&self.roster);
        let index = (0..roster.places.len())
            .find(|&i| roster.places[i] == Place::Empty && !self.locks.is_held(i as u8) && self.is_unnamed(i as u8))?;
        let part = &self.parts[index];
        let incarnation = MemberId { index: index as u8, incarnation: part.identity().0 }.successor().incarnation;
        part.clear(self.kind() == Kind::Broadcast);
        part.store(at::PID, hello.pid.into());
        part.store(at::ATTACHED_UNIX_NS, clock::realtime_ns());
        for (i, chunk) in hello.label.as_bytes().chunks(8).take(at::LABEL_WORDS).enumerate() {
            part.store(at::LABEL + i, forebay_layout::header::pack(chunk));
        }
        part.set_identity(incarnation, state::JOINING);
        roster.places[index] = Place::Joining;
        Some(Seat { index: index as u8, incarnation })
    }

    fn is_unnamed(&self, index: u8) -> bool {
        let Some(pool) = &self.pool else { return true };
        // The byte is free, so whatever still names the index is a dead member's.
        let _ = queue::release_all_of(pool, self.max_attempts(), index);
        queue::held_by(pool, index).next().is_none()
    }

    /// A member said Ready and holds its byte.
    pub(crate) fn admitted(&self, index: u8) {
        let mut roster = lock(&self.roster);
        let (incarnation, _) = self.part(index).identity();
        self.part(index).set_identity(incarnation, state::ACTIVE);
        roster.places[usize::from(index)] = Place::Active;
        self.announce(&mut roster, Change::Join(index, incarnation));
    }

    /// Somebody who was given a place did not come to take it.
    pub(crate) fn dismiss(&self, index: u8) {
        let mut roster = lock(&self.roster);
        if roster.places[usize::from(index)] == Place::Joining {
            // If it does hold its byte after all, the probe finds out when it ends.
            roster.places[usize::from(index)] = Place::Leaving;
        }
        drop(roster);
        self.probe_members(false);
    }

    /// A member hung up: it leaves, or died.
    pub(crate) fn leaving(&self, index: u8) {
        let mut roster = lock(&self.roster);
        if roster.places[usize::from(index)] == Place::Active {
            roster.places[usize::from(index)] = Place::Leaving;
            let (incarnation, _) = self.part(index).identity();
            self.part(index).set_identity(incarnation, state::LEAVING);
        }
        drop(roster);
        // On a broadcast ring it is owed nothing from its last cursor on: a producer that waits for a slot may have one.
        self.wake_publisher();
        self.probe_members(false);
    }

    /// A member of a dead producer that lives on here, or one of ours whose connection broke, is heard again. False for
    /// one that is not known, or gone.
    pub(crate) fn returned(&self, index: u8, incarnation: u16) -> bool {
        let mut roster = lock(&self.roster);
        let Some(place) = roster.places.get_mut(usize::from(index)) else { return false };
        let (found, state) = self.part(index).identity();
        let stays = matches!(*place, Place::Active | Place::Leaving) && matches!(state, state::ACTIVE | state::LEAVING);
        if !stays || found != incarnation || !self.locks.is_held(index) {
            return false;
        }
        if *place == Place::Leaving {
            *place = Place::Active;
            self.part(index).set_identity(incarnation, state::ACTIVE);
            self.arrived.notify_all();
        }
        true
    }

    pub(crate) fn any_leaving(&self) -> bool {
        lock(&self.roster).places.contains(&Place::Leaving)
    }

    /// Probes who is leaving, or everybody; frees the places of the dead and mends what they left.
    pub(crate) fn probe_members(&self, all: bool) {
        let suspects: Vec<u8> = {
            let roster = lock(&self.roster);
            let suspect = |place: &Place| *place == Place::Leaving || all && *place == Place::Active;
            roster.places.iter().enumerate().filter(|(_, place)| suspect(place)).map(|(i, _)| i as u8).collect()
        };
        for index in suspects {
            if !self.locks.is_held(index) {
                self.vacate(index);
            }
        }
    }

    /// Frees the place of a dead member.
    fn vacate(&self, index: u8) {
        let mut roster = lock(&self.roster);
        // Asked again under the lock: since the caller's look another thread may have freed the place, and a new member,
        // whose byte is locked before it is active, may have it now.
        if self.locks.is_held(index) {
            return;
        }
        let place = &mut roster.places[usize::from(index)];
        if !matches!(*place, Place::Leaving | Place::Active) {
            return;
        }
        *place = Place::Empty;
        let (incarnation, _) = self.part(index).identity();
        self.part(index).set_identity(incarnation, state::EMPTY);
        lock(&self.bells)[usize::from(index)] = None;
        self.announce(&mut roster, Change::Remove(index));
        // Before a new member may have the place, and park in it.
        let was_parked = self.pool.as_ref().map(|pool| pool.unpark(index));
        drop(roster);
        if let Some(pool) = &self.pool {
            if was_parked == Some(false) {
                // It was awake, or a wake was spent on it that somebody else can use.
                self.wake_one(31);
            }
            self.mend_queue(pool);
        }
    }

    fn announce(&self, roster: &mut Roster, change: Change) {
        if self.kind() == Kind::Broadcast {
            roster.changes.push(change);
        }
        self.news.store(true, Ordering::Release);
        self.arrived.notify_all();
        self.wake_publisher();
    }

    /// Gives back what the dead hold, and wakes who can use it.
    pub(crate) fn mend_queue(&self, pool: &Pool<Segment>) {
        // A scribbled word of one slot must not keep the others from being mended; readers report it.
        let mended = queue::mend(pool, self.max_attempts(), |owner| self.locks.is_held(owner.index));
        if let Ok(mended) = mended
            && !mended.is_nothing()
        {
            self.waker_fence();
            for _ in 0..mended.returned {
                self.wake_one(31);
            }
            self.wake_publisher();
        }
    }

    /// Takes over the members of a dead producer: those who hold their bytes stay, the places of the others are free.
    /// Returns who stays.
    pub(crate) fn adopt_members(&self) -> Vec<(u8, u16)> {
        let mut roster = lock(&self.roster);
        let mut stay = Vec::new();
        for (i, part) in self.parts.iter().enumerate() {
            let (incarnation, found) = part.identity();
            match found {
                state::ACTIVE | state::LEAVING if self.locks.is_held(i as u8) => {
                    roster.places[i] = if found == state::ACTIVE { Place::Active } else { Place::Leaving };
                    stay.push((i as u8, incarnation));
                }
                state::EMPTY => {}
                // Joining, but never admitted: if it still holds its byte, the probe frees the place when it goes.
                state::JOINING if self.locks.is_held(i as u8) => roster.places[i] = Place::Leaving,
                _ => part.set_identity(incarnation, state::EMPTY),
            }
        }
        drop(roster);
        if let Some(pool) = &self.pool {
            pool.unpark_producer();
            self.mend_queue(pool);
        }
        stay
    }

    /// Places that somebody has, as bits: attached, coming, or gone with leases that have not ended.
    pub(crate) fn seated(&self) -> u32 {
        let roster = lock(&self.roster);
        roster.places.iter().enumerate().map(|(i, place)| u32::from(*place != Place::Empty) << i).sum()
    }

    /// Consumers that are attached.
    pub(crate) fn consumers(&self) -> usize {
        lock(&self.roster).places.iter().filter(|place| **place == Place::Active).count()
    }

    /// Waits until a consumer came or went, or the time is over.
    pub(crate) fn wait_for_change(&self, enough: impl Fn(usize) -> bool, timeout: Duration) {
        let roster = lock(&self.roster);
        let count = |roster: &Roster| roster.places.iter().filter(|place| **place == Place::Active).count();
        if !enough(count(&roster)) {
            // What woke us is looked at by the caller, spurious or not.
            drop(self.arrived.wait_timeout(roster, timeout));
        }
    }

    /// Whether [`take_news`](Self::take_news) may find something. Asked with each message.
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        // ORDER none, Relaxed: a hint; who takes the news acquires.
        self.news.load(Ordering::Relaxed)
    }

    /// The changes since the last call, and the slots whose detached loans were dropped.
    pub(crate) fn take_news(&self) -> (Vec<Change>, Vec<u32>) {
        // ORDER Acquire: what was announced before the flag is there; swapped first, so that later news set it again.
        self.news.swap(false, Ordering::Acquire);
        let changes = std::mem::take(&mut lock(&self.roster).changes);
        let dropped = (0..self.abandoned.len() as u32)
            .filter(|&slot| self.abandoned[slot as usize].swap(false, Ordering::Acquire))
            .collect();
        (changes, dropped)
    }

    /// A detached loan was dropped, on whatever thread.
    pub(crate) fn abandon(&self, slot: u32) {
        self.abandoned[slot as usize].store(true, Ordering::Release);
        self.news.store(true, Ordering::Release);
        self.wake_publisher();
    }

    /// A loan was detached.
    pub(crate) fn loan_detached(&self) {
        // ORDER none, Relaxed: only who counts down to zero acts.
        self.detached.fetch_add(1, Ordering::Relaxed);
    }

    /// A detached loan was published or dropped, on whatever thread: it writes nothing any more.
    pub(crate) fn loan_ended(&self) {
        // ORDER AcqRel: what was written through any of the loans comes before a successor may have the name.
        if self.detached.fetch_sub(1, Ordering::AcqRel) == LEFT | 1 {
            self.locks.release();
        }
    }

    /// Lets the name go for a successor, with the last detached loan if there is one: a successor gives its slot to
    /// others, and it can still write there.
    pub(crate) fn hand_over(&self) {
        // ORDER none, Relaxed: for a note. It is for the error that a successor gets, and written while nobody else can have
        // the lock, so never over a successor's own.
        if self.detached.load(Ordering::Relaxed) != 0 {
            let _ = self.locks.write_note(&format!("pid {} (closed, a detached loan lives)", process::my_pid()));
        }
        // ORDER AcqRel: as `loan_ended`. Of the two, the one whose change comes last releases.
        if self.detached.fetch_or(LEFT, Ordering::AcqRel) & !LEFT == 0 {
            self.locks.release();
        }
    }

    /// Descriptors through which an observer probes: the producer's and the members' bytes.
    pub(crate) fn observed_probes(&self) -> impl Iterator<Item = Result<OwnedFd, OsError>> + '_ {
        let own =
            self.objects.header.geometry.backing == forebay_layout::Backing::Memfd && self.kind() == Kind::Broadcast;
        let files = if own { self.parts.len() } else { 1 };
        (0..files).map(|index| self.locks.file(index as u8).probe_fd())
    }

    /// Who holds slots, or has not read them: for error texts.
    pub(crate) fn holders(&self, owed: impl Fn(u8) -> u32) -> Vec<Holder> {
        let now = clock::monotonic_ns();
        let slots = self.objects.header.plan.slots;
        self.parts
            .iter()
            .enumerate()
            .filter_map(|(i, part)| {
                let index = i as u8;
                let held = match &self.pool {
                    Some(pool) => queue::held_by(pool, index).count() as u32,
                    None => owed(index),
                };
                let oldest = (0..slots).map(|slot| part.since(slot)).filter(|&since| since != 0).min();
                (held > 0).then(|| Holder {
                    index,
                    pid: part.peek(at::PID) as u32,
                    label: label(part),
                    slots: held,
                    oldest: Duration::from_nanos(oldest.map_or(0, |since| now.saturating_sub(since))),
                })
            })
            .collect()
    }
}

/// What a member calls itself.
pub(crate) fn label<W: Words>(part: &Member<W>) -> String {
    let bytes: Vec<u8> = (0..at::LABEL_WORDS).flat_map(|i| part.peek(at::LABEL + i).to_le_bytes()).collect();
    let len = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use forebay_layout::Kind;

    use crate::{Consumer, DType, FieldSpec, Producer};

    /// Went wrong: the two threads of a producer both saw a member dead, the first gave its place to another, and the
    /// second took that from the living one.
    #[test]
    fn a_place_that_was_found_dead_is_not_taken_from_who_lives_in_it_by_now() {
        for kind in [Kind::Queue, Kind::Broadcast] {
            let dir = tempfile::tempdir().unwrap();
            let mut producer = Producer::options("places").dir(dir.path()).kind(kind).slots(2).create().unwrap();
            let mut consumer = Consumer::options("places").dir(dir.path()).attach().unwrap();
            producer.wait_for_consumers(1, Some(Duration::from_secs(20))).unwrap();
            // What the thread that was late goes on with.
            producer.site.vacate(consumer.index());
            assert_eq!(producer.consumers(), 1, "{kind}");
            producer.loan(&[FieldSpec::new("x", DType::U8, &[1])]).unwrap().publish().unwrap();
            assert_eq!(producer.stats().undelivered, 1, "{kind}");
            consumer.recv_timeout(Duration::from_secs(20)).unwrap();
        }
    }
}
