//! Somebody really dies in the middle of an operation.

use super::{PRODUCER, Result, Walk, steps::operation};
use crate::{
    board::{Mode, Order},
    oracle::{Model, Who},
    picture::{self, Fates},
    rig::Actor,
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
        self.deaths += 1;
        let actor = self.actors.remove(&who).ok_or("no such actor")?;
        if who == PRODUCER {
            self.producer_dies(actor, order, most, &may)?;
        } else {
            self.gone(who);
            self.consumer_dies(actor, order, most, &may)?;
        }
        self.model.fates = self.found()?;
        self.done.push(format!("{}: left {:?}", self.doing, self.model.fates));
        Ok(())
    }

    fn producer_dies(&mut self, actor: Actor, order: Order, most: u64, may: &[Fates]) -> Result {
        let picture = self.killed(actor, order, most)?;
        let survivors = self.model.seats(None);
        self.audit(&picture, may, self.model.next, &survivors, "death")?;
        self.model.orphan();
        let scene = self.scene(may, self.model.next, &survivors, false);
        self.model.next = picture::next(&scene, &self.memory().copy(&picture, None))?;
        Ok(())
    }

    /// If there is a producer, its control thread mends; now and then it dies of it.
    fn consumer_dies(&mut self, actor: Actor, order: Order, most: u64, may: &[Fates]) -> Result {
        let survivors = self.model.seats(None);
        if !self.actors.contains_key(&PRODUCER) {
            let left = self.killed(actor, order, most)?;
            return self.audit(&left, may, self.model.next, &survivors, "death");
        }
        let length = self.lengths.get("mend").copied().unwrap_or(8);
        let producers = if self.random.one_in(4) { 1 + self.random.below(length) } else { 0 };
        let (tended, left) = self.tend(producers, |walk, producer| {
            let left = walk.killed(actor, order, most)?;
            walk.settle(Some(producer)).map(|()| left)
        })?;
        self.audit(&left, may, self.model.next, &survivors, "death")?;
        let left = self.found_in(&left)?;
        let mended = Model { fates: left.clone(), ..self.model.clone() }.mended(&self.setup);
        let stages = [left, mended];
        self.audit_tended(&tended, "mend", &stages, false)?;
        let stores = tended.stores;
        if self.resume(tended) {
            self.lengths.insert("mend".to_owned(), stores);
            return self.audit_rest("mend", &stages[1..]);
        }
        self.audit_rest("mend", &stages)
    }

    /// Kills a process in the middle of an operation: what it left, by its own log, whatever others have done since.
    fn killed(&self, mut actor: Actor, order: Order, most: u64) -> Result<Vec<u64>> {
        let mut left = self.memory().picture();
        let lived = actor.obey(order, Mode::Words, most, |_, _| Ok(()));
        for shot in actor.shots().0 {
            shot.apply(&mut left);
        }
        actor.kill();
        lived.map(|_| left)
    }

    /// A member is no more; the producer, if there is one, notices.
    pub(super) fn gone(&mut self, who: Who) {
        let Some(member) = self.model.members.remove(&who) else { return };
        let index = member.id.index;
        self.model.fates.retain(|key, _| key.0 != index);
    }
}
