//! Somebody really dies in the middle of an operation.

use forebay_layout::{Kind, member};
use forebay_ring::MemberId;
use forebay_testkit::watchdog;

use super::{PRODUCER, Result, Walk, steps::operation};
use crate::{
    board::{Mode, Order},
    oracle::{Model, Who},
    picture::{self, Fates},
};

impl Walk<'_> {
    /// A producer dies as it creates a ring, or takes one over; what it leaves is for the next.
    pub(super) fn die_in_create(&mut self) -> Result {
        let most = 1 + self.random.below(self.lengths.get("create").copied().unwrap_or(30_000));
        self.doing = format!("a producer dies within {most} steps of its creation");
        let mut actor = self.start()?;
        let mode = if self.memory.is_some() { Mode::Words } else { Mode::Count };
        actor.obey(Order::Create, mode, most, |_, _| Ok(()))?;
        actor.kill();
        self.deaths += 1;
        if self.memory.is_some() {
            let may = [self.model.fates.clone(), self.model.mended(&self.setup)];
            let everybody = self.model.seats(None);
            self.audit(&self.memory().picture(), &may, self.model.next, &everybody, "death")?;
            self.model.fates = self.found()?;
        }
        Ok(())
    }

    /// Somebody is killed in the middle of an operation; who is left goes on from there.
    pub(super) fn die_in(&mut self, who: Who, order: Order) -> Result {
        let length = self.lengths.get(&operation(order, self.setup.kind)).copied().unwrap_or(800);
        let most = 1 + self.random.below(length);
        self.doing = format!("{} dies within {most} steps of {order:?}", self.name(who));
        let may = self.model.may(&self.setup, who, order)?;
        let mut actor = self.actors.remove(&who).ok_or("no such actor")?;
        let lived = actor.obey(order, Mode::Words, most, |_, _| Ok(()));
        actor.kill();
        lived?;
        self.deaths += 1;
        let dying = (who != PRODUCER).then_some(who);
        let survivors = self.model.seats(dying);
        let picture = self.memory().picture();
        if !self.actors.contains_key(&PRODUCER) {
            // Else the producer's control thread is mending already.
            self.audit(&picture, &may, self.model.next, &survivors, "death")?;
        }
        match self.model.members.get(&who).map(|member| member.id) {
            Some(id) => {
                self.gone(who);
                self.settled(id);
                if self.actors.contains_key(&PRODUCER) && self.setup.kind == Kind::Queue {
                    // The producer's control thread has mended what was left.
                    let mended: Vec<Fates> = may
                        .into_iter()
                        .map(|fates| Model { fates, ..self.model.clone() }.mended(&self.setup))
                        .collect();
                    let picture = self.memory().picture();
                    let everybody = self.model.seats(None);
                    self.audit(&picture, &mended, self.model.next, &everybody, "death")?;
                }
            }
            None => {
                self.model.orphan();
                let seats = self.model.seats(None);
                let scene = self.scene(&may, self.model.next, &seats, false);
                let next = picture::next(&scene, &self.memory().copy(&picture, None))?;
                self.model.next = next;
            }
        }
        self.model.fates = self.found()?;
        self.done.push(format!("{}: left {:?}", self.doing, self.model.fates));
        Ok(())
    }

    /// A member is no more; the producer, if there is one, notices.
    pub(super) fn gone(&mut self, who: Who) {
        let Some(member) = self.model.members.remove(&who) else { return };
        let index = member.id.index;
        self.model.fates.retain(|key, _| key.0 != index);
    }

    /// Waits until the producer's control thread has done what the end of a member asks of it.
    pub(super) fn settled(&self, id: MemberId) {
        if self.actors.contains_key(&PRODUCER) {
            watchdog::until("the producer noticing the end of a member", || {
                let named = self.words_of(id);
                self.identity(id.index) & 0xff == member::state::EMPTY && !named
            });
        }
    }
}
