//! How a walk ends: everything is received for real, everybody leaves, nothing stays.

use forebay_layout::Kind;

use super::{PRODUCER, Result, Walk};
use crate::{
    board::{Order, Status},
    oracle::Who,
};

impl Walk<'_> {
    /// Everything is received for real, everybody leaves, nothing stays.
    pub(super) fn end(&mut self) -> Result {
        if !self.actors.contains_key(&PRODUCER) {
            self.start_producer()?;
        }
        if self.model.members.is_empty() && self.setup.kind == Kind::Queue {
            self.attach()?;
        }
        let members: Vec<Who> = self.model.members.keys().copied().collect();
        for _ in 0..=self.setup.max_attempts {
            for &who in &members {
                for (which, _) in self.model.members[&who].held.clone() {
                    self.step(who, Order::Release(which))?;
                }
                loop {
                    self.handle = self.handle.wrapping_add(1);
                    let answer = self.step(who, Order::Recv(self.handle))?;
                    if answer.status != Status::Done {
                        break;
                    }
                    self.step(who, Order::Release(self.handle))?;
                }
            }
        }
        // Handed out by the first, out of their slots with the second.
        self.step(PRODUCER, Order::TakeLetters)?;
        self.step(PRODUCER, Order::TakeLetters)?;
        if !self.model.fates.is_empty() {
            return Err(format!("after all was received there is left {:?}", self.model.fates));
        }
        for who in members {
            self.leave(who)?;
        }
        // No member index is lost: all can be taken at a time, whoever died before.
        for _ in 0..self.setup.max_consumers {
            self.attach()?;
        }
        let members: Vec<Who> = self.model.members.keys().copied().collect();
        for who in members {
            self.leave(who)?;
        }
        for loan in self.model.loans.clone() {
            self.step(PRODUCER, Order::Abandon(loan))?;
        }
        if self.random.one_in(2) {
            self.come_back()?;
        }
        let order = self.random.pick(&[Order::Discard, Order::Close]);
        self.step_whole(order)?;
        self.end_producer();
        let left = self.place.objects();
        if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}")) }
    }

    pub(super) fn end_producer(&mut self) {
        if let Some(producer) = self.actors.remove(&PRODUCER) {
            producer.kill();
        }
    }

    /// The producer goes, with messages that wait for consumers to come, and a successor hands them out.
    fn come_back(&mut self) -> Result {
        let waits = self.setup.kind == Kind::Queue;
        if waits {
            self.step(PRODUCER, Order::Loan(0))?;
            self.step(PRODUCER, Order::Publish(0))?;
        }
        let order = if waits { self.random.pick(&[Order::Close, Order::Suspend]) } else { Order::Suspend };
        self.step_whole(order)?;
        self.end_producer();
        self.start_producer()?;
        if waits {
            self.attach()?;
            let who = *self.model.members.keys().next().ok_or("no member")?;
            self.step(who, Order::Recv(0))?;
            self.step(who, Order::Release(0))?;
            self.leave(who)?;
        }
        Ok(())
    }
}
