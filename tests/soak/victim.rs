//! What all native victims share: their page of the ledger, their state word, their dice.

use std::path::Path;

use forebay::{DType, Schema};

use crate::{
    ledger::{Ledger, end, life, parts, payload, ring},
    plan::{Aim, Mix, Trigger},
    process::{Dice, now},
    states::State,
};

/// The field of every message.
pub(crate) const FIELD: &str = "words";

/// How a victim's life is to go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fate {
    pub(crate) life: usize,
    pub(crate) ring: usize,
    pub(crate) seed: u64,
    pub(crate) aim: Option<Aim>,
    /// Stays until the ring ends.
    pub(crate) keeper: bool,
    /// May fork, and shoot itself: it is not process 1 of a namespace.
    pub(crate) plain: bool,
}

/// A victim, in its own process.
#[derive(Debug)]
pub(crate) struct Victim<'a> {
    pub(crate) ledger: &'a Ledger,
    pub(crate) mix: &'a Mix,
    pub(crate) dir: &'a Path,
    pub(crate) fate: Fate,
    pub(crate) dice: Dice,
    pub(crate) trigger: Trigger,
}

impl<'a> Victim<'a> {
    pub(crate) fn new(ledger: &'a Ledger, mix: &'a Mix, dir: &'a Path, fate: Fate) -> Self {
        let aim = fate.aim.filter(|_| fate.plain && !fate.keeper);
        Self { ledger, mix, dir, fate, dice: Dice::new(fate.seed), trigger: Trigger::new(aim, fate.seed ^ 0x5eed) }
    }

    /// Says what it does from now on, and may be shot from now on.
    pub(crate) fn enter(&mut self, state: State) {
        let (ledger, life) = (self.ledger, self.fate.life);
        ledger.set_life(life, life::STATE, state as u64);
        self.trigger.enter(state, |at| ledger.set_life(life, life::TIMER, at));
    }

    pub(crate) fn set(&self, word: usize, value: u64) {
        self.ledger.set_life(self.fate.life, word, value);
    }

    pub(crate) fn get(&self, word: usize) -> u64 {
        self.ledger.life(self.fate.life, word)
    }

    pub(crate) fn ring(&self, word: usize) -> u64 {
        self.ledger.ring(self.fate.ring, word)
    }

    pub(crate) fn set_ring(&self, word: usize, value: u64) {
        self.ledger.set_ring(self.fate.ring, word, value);
    }

    /// The end of the round has come so far.
    pub(crate) fn finish(&self) -> u64 {
        self.ring(ring::FINISH)
    }

    /// Something is wrong: says so and leaves. Nobody goes on after that.
    pub(crate) fn fail(&self, what: &str) -> i32 {
        self.ledger.fail(self.fate.life, &format!("{} in {}: {what}", self.mix.name, self.state().text()));
        end::FAILED as i32
    }

    pub(crate) fn state(&self) -> State {
        State::from_word(self.get(life::STATE))
    }

    /// Waits a random little while, up to `most_ns`, mostly much less.
    pub(crate) fn dawdle(&mut self, most_ns: u64) {
        let ns = self.dice.scale_free(200, most_ns);
        if ns < 20_000 {
            crate::process::spin_until(now() + ns);
        } else {
            std::thread::sleep(std::time::Duration::from_nanos(ns));
        }
    }
}

/// The schema of rings that have one.
pub(crate) fn schema(mix: &Mix) -> Option<Schema> {
    let build = || Schema::builder("soak", 1, 0).field(FIELD, DType::I64, &[mix.words]).build();
    mix.schema.then(|| build().expect("a schema of one field"))
}

/// Writes a message.
pub(crate) fn fill(words: &mut [i64], id: u64) {
    for (index, to) in words.iter_mut().enumerate() {
        *to = payload(id, index as u64) as i64;
    }
}

/// The first word that is not the message's.
pub(crate) fn torn(words: &[i64], id: u64) -> Option<String> {
    let wrong = words.iter().enumerate().find(|&(index, &word)| word as u64 != payload(id, index as u64));
    wrong.map(|(index, word)| {
        let (cell, nonce) = parts(id);
        format!(
            "TORN: word {index} of message {cell} ({nonce:#x}) is {word:#x} and not {:#x}",
            payload(id, index as u64)
        )
    })
}

/// User data of a message: some have it, and a successor is to find it.
pub(crate) fn user(id: u64) -> Vec<u8> {
    if parts(id).1.is_multiple_of(4) { id.to_le_bytes().to_vec() } else { Vec::new() }
}

/// Descriptors and mappings of this process that can be forebay's.
pub(crate) fn belongings() -> (Vec<String>, Vec<String>) {
    (forebay_testkit::audit::descriptors(), forebay_testkit::audit::mappings())
}
