//! Long histories of a broadcast ring under shuttle: members die anywhere, leave and come again under the same index,
//! producers die anywhere and are followed by another. See `long` for what this shows.

use std::sync::{Arc, Mutex as StdMutex};

use forebay_layout::{
    Kind,
    header::{W_STATE, state},
    member as at,
};
use shuttle::thread;

use super::{
    long_rig::{Site, draft, explore, once_in, span_of_life},
    memory::{Fate, Memory, until_death},
    small::MEMBERS,
};
use crate::{
    Claim, Member, MemberId, Publisher,
    broadcast::{BroadcastConsumer, BroadcastProducer, settle},
    queue::Next,
    sync::{AtomicU64, Ordering},
    waker_fence,
    words::Words as _,
};

const MESSAGES: u64 = 50;
/// Lives of a member that may end early, and of the producer; the last ones live on.
const LIVES: u16 = 4;

/// What the publishing thread is told of members.
#[derive(Clone, Copy)]
enum Change {
    Admit(u8, u16),
    Remove(u8),
}

/// Who is there, and what the producer has not been told yet.
#[derive(Default)]
struct Roster {
    lives: [Option<u16>; MEMBERS],
    changes: Vec<Change>,
}

/// A broadcast ring.
#[derive(Clone)]
struct Ring {
    site: Arc<Site>,
    parts: [Memory; MEMBERS],
    roster: Arc<StdMutex<Roster>>,
    news: Arc<AtomicU64>,
    lossy: bool,
}

impl Ring {
    fn new(lossy: bool) -> Self {
        let site = Site::new(Kind::Broadcast);
        let words = at::SINCE + 2 * site.plan.slots as usize;
        let parts = [(); MEMBERS].map(|()| Memory::of(site.plan.member_word..site.plan.member_word + words));
        Self { site, parts, roster: Arc::default(), news: Arc::new(AtomicU64::new(0)), lossy }
    }

    fn part(&self, index: u8) -> Member<Memory> {
        Member::in_object(self.parts[usize::from(index)].clone(), &self.site.plan)
    }

    fn tell(&self, index: u8, life: Option<u16>) {
        {
            let mut roster = self.roster.lock().expect("nobody panics here");
            roster.lives[usize::from(index)] = life;
            roster.changes.push(life.map_or(Change::Remove(index), |life| Change::Admit(index, life)));
        }
        self.news.fetch_add(1, Ordering::Release);
        self.site.wake_producer();
    }

    /// What the producer sleeps on: it goes on when any of these changes.
    fn wake_words(&self) -> u64 {
        let words = (0..MEMBERS as u8).map(|index| self.part(index).producer_wake_word().load(Ordering::Acquire));
        words.sum::<u64>() + (self.news.load(Ordering::Acquire) << 32)
    }
}

/// A member in one of its lives.
struct Life<'a> {
    ring: &'a Ring,
    index: u8,
    member: BroadcastConsumer<Memory>,
    /// What was published when it asked to be let in.
    published: u64,
    received: u64,
    from: u64,
}

impl Life<'_> {
    fn look(&mut self, scan: bool) -> Option<Claim> {
        match self.member.next(scan, |_| true).expect("nobody lies here") {
            Next::Claimed(claim) => Some(claim),
            _ => None,
        }
    }

    fn settle(&self, claim: &Claim) {
        self.ring.site.read(claim);
        if settle(self.member.part(), self.member.reader(), claim.slot, claim.generation, true) {
            self.ring.site.wake_producer();
        }
    }

    fn deal_with(&mut self, claim: Claim, kept: &mut Option<Claim>) {
        self.ring.site.receive(&claim);
        if self.received == 0 {
            self.from = claim.sequence - self.member.missed();
            assert!(self.from > self.published, "it starts at {}, before it came", self.from);
        }
        self.received += 1;
        let due = self.from + self.received + self.member.missed();
        assert_eq!(claim.sequence + 1, due, "neither received nor missed, or out of order");
        assert!(self.ring.lossy || self.member.missed() == 0);
        if once_in(2) && kept.is_none() { *kept = Some(claim) } else { self.settle(&claim) }
    }

    /// Receives until the ring is closed, or it has had enough.
    fn live(&mut self, may_leave: bool) {
        let mut kept = None;
        loop {
            let closed = self.member.reader().is_closed();
            if let Some(claim) = self.look(false).or_else(|| self.look(true)) {
                self.deal_with(claim, &mut kept);
                if may_leave && once_in(10) {
                    self.member.leave();
                    kept.take().iter().for_each(|claim| self.settle(claim));
                    return;
                }
                continue;
            }
            if let Some(claim) = kept.take() {
                self.settle(&claim);
                continue;
            }
            if closed {
                let end = self.from + self.received + self.member.missed();
                assert!(self.received == 0 || end == MESSAGES + 1, "it is owed more: {end}");
                return;
            }
            let slice = self.ring.site.slice();
            let part = self.ring.part(self.index);
            let seen = part.wake_word().load(Ordering::Acquire);
            self.member.part().set_parked(true);
            let found = self.look(false);
            if found.is_none() && !self.member.reader().is_closed() {
                self.ring.site.sleep(self.index, slice, || part.wake_word().load(Ordering::Acquire) == seen);
            }
            self.member.part().set_parked(false);
            found.into_iter().for_each(|claim| self.deal_with(claim, &mut kept));
        }
    }
}

/// A member: one life after the other at the same index.
fn member(ring: &Ring, index: u8) {
    let mut me = MemberId { index, incarnation: 1 };
    loop {
        let last = me.incarnation > LIVES;
        let mut published = 0;
        // The first lives were there before the producer.
        if me.incarnation > 1 {
            ring.site.is_born(index);
            ring.part(index).clear(true);
            published = ring.site.ledger().known();
            ring.tell(index, Some(me.incarnation));
        }
        let fate = Fate::death();
        let (memory, part) = (ring.site.ring.under(&fate), ring.parts[usize::from(index)].under(&fate));
        memory.dies_in(if last { usize::MAX } else { span_of_life() });
        let mut closed = false;
        let lived = until_death(|| {
            let part = Member::in_object(part, &ring.site.plan);
            let member = BroadcastConsumer::new(ring.site.reader(memory), part, me, ring.lossy);
            let mut life = Life { ring, index, member, published, received: 0, from: 0 };
            life.live(!last);
            closed = life.member.reader().is_closed();
        });
        ring.site.is_dead(index);
        ring.tell(index, None);
        if !lived {
            ring.site.ledger().kills += 1;
        }
        if closed {
            return;
        }
        me = me.successor();
    }
}

/// The producer in one of its lives.
struct Source<'a> {
    ring: &'a Ring,
    producer: BroadcastProducer<Memory>,
    fate: Fate,
}

impl Source<'_> {
    fn part(&self, index: u8) -> Member<Memory> {
        Member::in_object(self.ring.parts[usize::from(index)].under(&self.fate), &self.ring.site.plan)
    }

    /// Lets members in and takes their places back, as it was told.
    fn apply(&mut self) {
        let changes = std::mem::take(&mut self.ring.roster.lock().expect("nobody panics here").changes);
        for change in changes {
            match change {
                Change::Admit(index, life) => {
                    let part = self.part(index);
                    self.producer.admit(index, life, part);
                }
                Change::Remove(index) => self.producer.remove(index),
            }
        }
    }

    /// A slot to write, if there is one.
    fn look(&mut self) -> Option<u32> {
        self.apply();
        self.producer.acquire(0).or_else(|| if self.ring.lossy { self.producer.drop_oldest(0) } else { None })
    }

    fn wait(&mut self) -> u32 {
        loop {
            let slice = self.ring.site.slice();
            let seen = self.ring.wake_words();
            self.producer.set_parked(true);
            let found = self.look();
            if found.is_none() {
                self.ring.site.producer_sleeps(slice, || self.ring.wake_words() == seen);
            }
            self.producer.set_parked(false);
            if let Some(slot) = found {
                return slot;
            }
        }
    }

    fn live(&mut self) {
        while self.producer.publisher().next_sequence() <= MESSAGES {
            let slot = self.look().unwrap_or_else(|| self.wait());
            let sequence = self.producer.publisher().next_sequence();
            self.ring.site.write(slot, sequence);
            if once_in(16) {
                self.producer.abandon(slot);
                continue;
            }
            self.ring.site.ledger().begins(sequence);
            assert_eq!(self.producer.publish(slot, &draft(sequence)), sequence);
            self.ring.site.ledger().committed(sequence);
            waker_fence(true);
            let woken = self.producer.ring_bells();
            (0..MEMBERS as u8).filter(|index| woken & 1 << index != 0).for_each(|index| self.ring.site.wake(index));
        }
    }
}

/// One producer after the other.
fn producer(ring: &Ring) {
    for epoch in 1.. {
        let last = epoch > u64::from(LIVES);
        let fate = Fate::death();
        let memory = ring.site.ring.under(&fate);
        memory.dies_in(if last { usize::MAX } else { span_of_life() * 4 });
        let lived = until_death(|| {
            let plan = ring.site.plan.clone();
            let (publisher, lives) = if epoch == 1 {
                (Publisher::new(memory.clone(), memory.clone(), plan, epoch), [None; MEMBERS])
            } else {
                let taken = Publisher::take_over(memory.clone(), memory.clone(), plan, epoch);
                let (publisher, recovered) = taken.expect("nobody lies here");
                ring.site.ledger().took_over(recovered.last_sequence);
                let mut roster = ring.roster.lock().expect("nobody panics here");
                roster.changes.clear();
                (publisher, roster.lives)
            };
            let mut source = Source { ring, producer: BroadcastProducer::new(publisher, memory), fate };
            for (index, life) in (0u8..).zip(lives) {
                if let Some(life) = life {
                    let part = source.part(index);
                    source.producer.readmit(index, life, part);
                }
            }
            source.live();
        });
        if lived {
            break;
        }
        ring.site.ledger().kills += 1;
        ring.site.end_slices();
    }
    // ORDER E1 commit, Release: as the producer closes; it rings every bell, parked or not.
    ring.site.ring.word(W_STATE).store(state::CLOSED, Ordering::Release);
    waker_fence(true);
    for index in 0..MEMBERS as u8 {
        ring.part(index).ring_bell();
        ring.site.wake(index);
    }
}

fn history(lossy: bool) {
    let ring = Ring::new(lossy);
    for index in 0..MEMBERS as u8 {
        ring.site.is_born(index);
        ring.tell(index, Some(1));
    }
    let members: Vec<_> = (0..MEMBERS as u8)
        .map(|index| {
            let ring = ring.clone();
            thread::spawn(move || member(&ring, index))
        })
        .collect();
    producer(&ring);
    for member in members {
        member.join().expect("it panicked");
    }
    ring.site.ledger().is_published(MESSAGES);
}

#[test]
fn a_lossless_broadcast_ring() {
    explore(|| history(false));
}

#[test]
fn a_lossy_broadcast_ring() {
    explore(|| history(true));
}
