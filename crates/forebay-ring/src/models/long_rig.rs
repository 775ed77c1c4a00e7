//! What a long history runs on: a ring with payload, futexes without slices, and a ledger outside of the transport.
//!
//! A sleeper sleeps until it is woken or somebody has died: that is all that the end of a slice stands for. A wake that
//! is lost while everybody lives is a deadlock, which shuttle reports.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex as StdMutex, MutexGuard as StdGuard},
    time::Instant,
};

use forebay_layout::{Kind, geometry::Plan};
use shuttle::{
    Config, MaxSteps, Runner,
    rand::{Rng as _, thread_rng},
    scheduler::{PctScheduler, RandomScheduler, Scheduler},
    sync::{Condvar, Mutex},
};

use super::{
    figures,
    memory::{Fate, Memory},
    small::{self, MEMBERS},
};
use crate::{
    Claim, Draft, MemberId, Outstanding, Pool, ReadOnly, Reader, SlotState, SlotWord,
    queue::held_by,
    sync::{AtomicU64, Ordering},
};

/// Slots of a ring here.
pub(super) const SLOTS: u32 = 4;
/// Words of a payload.
const PAYLOAD: usize = 3;

/// Runs `model` under as many random schedules as `SHUTTLE_ITERATIONS` says (100 by default), and as many again that
/// change the thread of highest priority at three places.
pub(super) fn explore(model: impl Fn() + Send + Sync + Clone + 'static) {
    let iterations = std::env::var("SHUTTLE_ITERATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    run("random", RandomScheduler::new(iterations), model.clone());
    run("PCT, 3 changes", PctScheduler::new(3, iterations), model);
}

fn run(kind: &str, scheduler: impl Scheduler + 'static, model: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    config.stack_size = 1 << 18;
    config.max_steps = MaxSteps::FailAfter(4_000_000);
    config.silence_warnings = true;
    let start = Instant::now();
    let runs = Runner::new(scheduler, config).run(model);
    figures::report(kind, runs as u64, start);
}

/// True once in `n` times.
pub(super) fn once_in(n: u32) -> bool {
    thread_rng().gen_range(0..n) == 0
}

/// How many accesses a life has left: mostly far more than it needs for a few messages, often few.
pub(super) fn span_of_life() -> usize {
    if once_in(2) { thread_rng().gen_range(0..60) } else { thread_rng().gen_range(60..2000) }
}

/// A futex: the compare and the sleep are one step to who wakes.
#[derive(Default)]
pub(super) struct Futex {
    lock: Mutex<()>,
    woken: Condvar,
}

impl Futex {
    fn wait(&self, still: impl Fn() -> bool) {
        let mut guard = self.lock.lock().expect("nobody panics here");
        while still() {
            guard = self.woken.wait(guard).expect("nobody panics here");
        }
    }

    pub(super) fn wake(&self) {
        drop(self.lock.lock().expect("nobody panics here"));
        self.woken.notify_all();
    }
}

/// What both kinds of rings have.
pub(super) struct Site {
    pub(super) plan: Plan,
    pub(super) ring: Memory,
    payload: Vec<[AtomicU64; PAYLOAD]>,
    /// Lock bytes of the members; freed by death.
    bytes: [AtomicU64; MEMBERS],
    futexes: [Futex; MEMBERS],
    producer_futex: Futex,
    slices: AtomicU64,
    ledger: StdMutex<Ledger>,
    pub(super) places: Mutex<()>,
}

impl Site {
    pub(super) fn new(kind: Kind) -> Arc<Self> {
        let plan = small::plan(kind, SLOTS, u64::from(SLOTS));
        let ring = Memory::of(small::ring(&plan, kind));
        let zeros = || [(); PAYLOAD].map(|()| AtomicU64::new(0));
        Arc::new(Self {
            ring,
            payload: (0..plan.slots).map(|_| zeros()).collect(),
            bytes: [(); MEMBERS].map(|()| AtomicU64::new(0)),
            futexes: Default::default(),
            producer_futex: Futex::default(),
            slices: AtomicU64::new(0),
            ledger: StdMutex::default(),
            places: Mutex::new(()),
            plan,
        })
    }

    pub(super) fn ledger(&self) -> StdGuard<'_, Ledger> {
        self.ledger.lock().expect("it was right until now")
    }

    pub(super) fn reader(&self, ring: Memory) -> Reader<Memory> {
        Reader::new(ReadOnly::new(ring), self.plan.clone(), 1)
    }

    pub(super) fn is_alive(&self, index: u8) -> bool {
        self.bytes[usize::from(index)].load(Ordering::Acquire) != 0
    }

    pub(super) fn is_born(&self, index: u8) {
        self.bytes[usize::from(index)].store(1, Ordering::Release);
    }

    pub(super) fn is_dead(&self, index: u8) {
        self.bytes[usize::from(index)].store(0, Ordering::Release);
        self.end_slices();
    }

    /// Everybody's slice ends.
    pub(super) fn end_slices(&self) {
        self.slices.fetch_add(1, Ordering::AcqRel);
        self.futexes.iter().for_each(Futex::wake);
        self.producer_futex.wake();
    }

    /// Slices that are over.
    pub(super) fn slice(&self) -> u64 {
        self.slices.load(Ordering::Acquire)
    }

    /// Sleeps while `still`, until the slice that began with `slice` ends.
    pub(super) fn sleep(&self, index: u8, slice: u64, still: impl Fn() -> bool) {
        self.futexes[usize::from(index)].wait(|| still() && self.slice() == slice);
    }

    pub(super) fn producer_sleeps(&self, slice: u64, still: impl Fn() -> bool) {
        self.producer_futex.wait(|| still() && self.slice() == slice);
    }

    pub(super) fn wake(&self, index: u8) {
        self.futexes[usize::from(index)].wake();
    }

    pub(super) fn wake_producer(&self) {
        self.producer_futex.wake();
    }

    pub(super) fn write(&self, slot: u32, sequence: u64) {
        for (i, word) in self.payload[slot as usize].iter().enumerate() {
            word.store(sequence * 10 + i as u64, Ordering::Relaxed);
        }
    }

    /// Reads a message and checks that it is the one that was published, whole.
    pub(super) fn read(&self, claim: &Claim) {
        for (i, word) in self.payload[claim.slot as usize].iter().enumerate() {
            assert_eq!(word.load(Ordering::Relaxed), claim.sequence * 10 + i as u64, "torn, or of another message");
        }
    }

    /// As [`read`](Self::read), with its descriptor.
    pub(super) fn receive(&self, claim: &Claim) {
        let head = self.reader(self.ring.clone()).head_of(claim).expect("nobody lies here");
        assert_eq!(head.correlation_id, draft(claim.sequence).correlation_id, "the descriptor is of another message");
        self.read(claim);
    }
}

pub(super) fn draft(sequence: u64) -> Draft<'static> {
    Draft { correlation_id: 7 * sequence, payload_bytes: 24, ..Draft::default() }
}

/// A queue.
#[derive(Clone)]
pub(super) struct Queue {
    pub(super) site: Arc<Site>,
    pub(super) words: Memory,
    pub(super) max_attempts: u32,
}

impl Queue {
    pub(super) fn new(max_attempts: u32) -> Self {
        let site = Site::new(Kind::Queue);
        Self { words: Memory::of(small::pool_words(&site.plan)), site, max_attempts }
    }

    /// The handles of somebody who dies when `accesses` are over.
    pub(super) fn mortal(&self, accesses: usize) -> (Memory, Memory) {
        let fate = Fate::death();
        let (ring, words) = (self.site.ring.under(&fate), self.words.under(&fate));
        words.dies_in(accesses);
        (ring, words)
    }

    pub(super) fn pool(&self, words: Memory) -> Pool<Memory> {
        Pool::new(words, &self.site.plan)
    }

    /// Wakes one consumer that sleeps.
    pub(super) fn wake_one(&self, pool: &Pool<Memory>, after: u8) {
        if let Some(index) = pool.pick_sleeper(after, u32::MAX) {
            pool.member(&self.site.plan, index).ring_bell();
            self.site.wake(index);
        }
    }

    /// Sleeps on the wake word, which is compared by who does not die: the kernel.
    pub(super) fn sleep(&self, index: u8, slice: u64, seen: u64) {
        let part = self.pool(self.words.clone()).member(&self.site.plan, index);
        self.site.sleep(index, slice, || part.wake_word().load(Ordering::Acquire) == seen);
    }

    /// As [`sleep`](Self::sleep).
    pub(super) fn producer_sleeps(&self, slice: u64, seen: u64) {
        let pool = self.pool(self.words.clone());
        self.site.producer_sleeps(slice, || pool.producer_wake_word().load(Ordering::Acquire) == seen);
    }

    /// The message that the producer took back with `slot`.
    pub(super) fn dropped(&self, before: &[Outstanding], slot: u32) {
        let Outstanding::Published(sequence) = before[slot as usize] else { panic!("it was not published") };
        self.site.ledger().dropped(sequence);
    }

    /// What `member`, which is dead, left behind goes into the ledger: its slot words say what they are.
    pub(super) fn post_mortem(&self, member: MemberId) {
        let pool = self.pool(self.words.clone());
        let reader = self.site.reader(self.site.ring.clone());
        let left: Vec<_> = held_by(&pool, member.index)
            .map(|(slot, word)| {
                (reader.peek(self.site.plan.descriptor_word + slot as usize * self.site.plan.descriptor_words), word)
            })
            .collect();
        let mut ledger = self.site.ledger();
        for &(sequence, word) in &left {
            ledger.died_with(sequence, member, word);
        }
        ledger.died(member, &left.iter().map(|&(sequence, _)| sequence).collect::<Vec<_>>());
    }
}

/// Where a message is, as those who handle it say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    #[default]
    Ring,
    Held(MemberId),
    /// About to be given back, or given back.
    Returning(MemberId),
    Acked,
    Letter,
    Dropped,
}

#[derive(Debug, Default)]
struct Entry {
    place: Place,
    returns: u32,
}

/// The truth about a queue, kept outside of it.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: BTreeMap<u64, Entry>,
    /// Highest sequence whose publish was begun, and that which is known to be committed.
    begun: u64,
    published: u64,
    pub(super) kills: u64,
}

impl Ledger {
    pub(super) fn begins(&mut self, sequence: u64) {
        assert_eq!(sequence, self.published + 1, "a sequence is used twice, or left out");
        self.begun = sequence;
        self.entries.entry(sequence).or_default();
    }

    pub(super) fn committed(&mut self, sequence: u64) {
        self.published = sequence;
    }

    /// What a successor found to be the last message.
    pub(super) fn took_over(&mut self, last: u64) {
        assert!(last == self.published || last == self.begun, "{last} of {} to {}", self.published, self.begun);
        let received = self.entries.iter().filter(|(_, e)| e.place != Place::Ring).map(|(&s, _)| s).max();
        assert!(received.is_none_or(|received| received <= last), "received, and now it was never published");
        self.published = last;
        self.begun = last;
        self.entries.retain(|&sequence, _| sequence <= last);
    }

    fn entry(&mut self, sequence: u64) -> &mut Entry {
        self.entries.get_mut(&sequence).unwrap_or_else(|| panic!("{sequence} was never published"))
    }

    pub(super) fn received(&mut self, claim: &Claim, by: MemberId) {
        let entry = self.entry(claim.sequence);
        assert!(matches!(entry.place, Place::Ring | Place::Returning(_)), "{entry:?}, and received once more");
        assert_eq!(u32::from(claim.attempts), entry.returns, "of {}: {entry:?}", claim.sequence);
        entry.place = Place::Held(by);
    }

    pub(super) fn acked(&mut self, sequence: u64, by: MemberId) {
        let entry = self.entry(sequence);
        assert!(matches!(entry.place, Place::Held(owner) if owner == by), "{entry:?}");
        entry.place = Place::Acked;
    }

    pub(super) fn gives_back(&mut self, sequence: u64, by: MemberId) {
        let entry = self.entry(sequence);
        assert!(matches!(entry.place, Place::Held(owner) if owner == by), "{entry:?}");
        entry.place = Place::Returning(by);
        entry.returns += 1;
    }

    /// `member` died, and this word names it.
    fn died_with(&mut self, sequence: u64, member: MemberId, word: SlotWord) {
        let entry = self.entry(sequence);
        if word.state() != SlotState::Claimed {
            entry.place = Place::Acked;
            return;
        }
        // It may have counted this return, and died before the store that makes it true: now the mending is it.
        let (counted, returns) = (entry.place == Place::Returning(member), u32::from(word.attempts()) + 1);
        assert!(entry.returns + 1 == returns || counted && entry.returns == returns, "{entry:?}, and it is {word:?}");
        assert_ne!(entry.place, Place::Acked, "acked, and it comes back");
        *entry = Entry { place: Place::Returning(member), returns };
    }

    /// What a dead member held, and no word names any more, was finished as it died.
    fn died(&mut self, member: MemberId, left: &[u64]) {
        self.kills += 1;
        for (sequence, entry) in &mut self.entries {
            if entry.place == Place::Held(member) && !left.contains(sequence) {
                entry.place = Place::Acked;
            }
        }
    }

    /// A dead letter was copied; once more, if the one who did died before it was buried.
    pub(super) fn letter(&mut self, sequence: u64, max_attempts: u32) {
        let entry = self.entry(sequence);
        assert!(matches!(entry.place, Place::Returning(_) | Place::Letter), "{entry:?}, and a dead letter");
        assert_eq!(entry.returns, max_attempts, "given up too early or too late");
        entry.place = Place::Letter;
    }

    pub(super) fn dropped(&mut self, sequence: u64) {
        let entry = self.entry(sequence);
        assert!(matches!(entry.place, Place::Ring | Place::Returning(_)), "{entry:?}, and dropped");
        entry.place = Place::Dropped;
    }

    /// The highest sequence that is known to be committed.
    pub(super) fn known(&self) -> u64 {
        self.published
    }

    /// The end: everything was published.
    pub(super) fn is_published(&self, messages: u64) {
        figures::count_deaths(self.kills);
        assert_eq!(self.published, messages);
    }

    /// The end of a queue: everything was published, and is accounted for.
    pub(super) fn is_settled(&self, messages: u64) {
        self.is_published(messages);
        for (sequence, entry) in &self.entries {
            assert!(
                matches!(entry.place, Place::Acked | Place::Letter | Place::Dropped),
                "{sequence} is lost: {entry:?}"
            );
        }
    }
}
