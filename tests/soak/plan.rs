//! Which rings run side by side, and how a victim is to die.

use std::time::Duration;

use forebay::{Backing, Kind, WaitPolicy};

use crate::{
    process::{Dice, Timer, now, spin_until},
    states::{Role, State},
};

/// A ring of a round.
#[derive(Debug, Clone)]
pub(crate) struct Mix {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) backing: Backing,
    pub(crate) max_attempts: u32,
    pub(crate) max_consumers: u32,
    pub(crate) slots: u32,
    /// Words of the largest message.
    pub(crate) words: u64,
    /// Consumers kept running.
    pub(crate) seats: usize,
    pub(crate) schema: bool,
    /// Its producer is killed, too. On a memfd ring only while a keeper is attached that is not.
    pub(crate) kill_producer: bool,
    /// Every victim is looked at, stopped, before it is killed: which claims it has is known and not concluded.
    pub(crate) witness: bool,
    /// Producers make the ring, publish a little, drain it and remove it, again and again.
    pub(crate) churn: bool,
    /// The longest a victim is stopped.
    pub(crate) longest_stop: Duration,
    /// Who is Python.
    pub(crate) python_producer: bool,
    pub(crate) python_consumers: bool,
}

impl Mix {
    pub(crate) fn role_of_consumers(&self) -> Role {
        if self.kind == Kind::Queue { Role::Consumer } else { Role::Member }
    }

    /// Whether a victim of this ring ever comes to `state`.
    pub(crate) fn has(&self, state: State) -> bool {
        match state {
            State::Born => false,
            State::Burying => self.kind == Kind::Queue && self.max_attempts > 0,
            State::TakingOver => self.backing == Backing::Posix,
            State::Creating => self.backing == Backing::Memfd || self.churn,
            State::Closing => self.backing == Backing::Posix,
            state => state.role() == Some(Role::Producer) || state.role() == Some(self.role_of_consumers()),
        }
    }

    /// A memfd ring whose producer is killed now and then needs somebody who sees its end.
    pub(crate) fn needs_keeper(&self) -> bool {
        self.backing == Backing::Memfd && self.kill_producer
    }
}

/// The rings of round `round`, other ones each time, the same for the same seed.
pub(crate) fn mixes(dice: &mut Dice, python: bool, longest_stop: Duration) -> Vec<Mix> {
    let base = |name, kind, backing| Mix {
        name,
        kind,
        backing,
        max_attempts: 0,
        max_consumers: 8,
        slots: 8,
        words: 96,
        seats: 3,
        schema: false,
        kill_producer: backing == Backing::Posix,
        witness: false,
        churn: false,
        longest_stop,
        python_producer: false,
        python_consumers: false,
    };
    use Backing::{Memfd, Posix};
    use Kind::{Broadcast, Queue};
    let short = longest_stop.min(Duration::from_millis(400));
    let mut mixes = vec![
        Mix { schema: true, ..base("queue-posix", Queue, Posix) },
        Mix { max_attempts: 3, witness: true, ..base("queue-posix-3", Queue, Posix) },
        Mix { max_consumers: 1, seats: 1, slots: 4, ..base("queue-posix-store", Queue, Posix) },
        Mix { kill_producer: true, ..base("queue-memfd", Queue, Memfd) },
        Mix { max_attempts: 3, schema: true, ..base("queue-memfd-3", Queue, Memfd) },
        Mix { witness: true, ..base("queue-memfd-witness", Queue, Memfd) },
        Mix { longest_stop: short, ..base("broadcast-posix", Broadcast, Posix) },
        Mix { schema: true, ..base("broadcast-memfd", Broadcast, Memfd) },
        Mix { kill_producer: true, longest_stop: short, ..base("broadcast-memfd-2", Broadcast, Memfd) },
        Mix { churn: true, seats: 1, slots: 4, ..base("queue-churn", Queue, Posix) },
    ];
    if python {
        let rings = [
            Mix { python_consumers: true, schema: true, words: 4096, ..base("python-queue", Queue, Posix) },
            Mix { python_consumers: true, max_attempts: 3, ..base("python-memfd", Queue, Memfd) },
            Mix {
                python_consumers: true,
                python_producer: true,
                longest_stop: short,
                seats: 2,
                ..base("python-broadcast", Broadcast, Posix)
            },
            Mix { python_producer: true, seats: 2, ..base("python-producer", Queue, Posix) },
        ];
        mixes.extend(rings);
    }
    for mix in &mut mixes {
        mix.slots = mix.slots.max(4) * (1 + dice.below(2) as u32);
        mix.words = mix.words.min(8 << dice.below(10)).max(8);
    }
    mixes
}

/// How one of the waits is done in a life.
pub(crate) fn wait_policy(dice: &mut Dice) -> WaitPolicy {
    // Spinning would take the cores from those that die.
    if dice.one_in(2) { WaitPolicy::Block } else { WaitPolicy::Adaptive }
}

/// Where a victim is to die.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Aim {
    pub(crate) state: State,
    /// At which entry into the state.
    pub(crate) entries: u64,
    /// It stops itself instead, to be looked at and killed.
    pub(crate) witness: bool,
}

/// Kills its own process at a random moment around a step of it: a timer of the kernel, armed when the step begins.
#[derive(Debug)]
pub(crate) struct Trigger {
    aim: Option<Aim>,
    timer: Option<Timer>,
    dice: Dice,
    armed: Option<State>,
}

impl Trigger {
    pub(crate) fn new(aim: Option<Aim>, seed: u64) -> Self {
        let signal = |aim: Aim| if aim.witness { libc::SIGSTOP } else { libc::SIGKILL };
        // Without a timer the supervisor kills it, as it kills everybody after a while.
        let timer = aim.and_then(|aim| Timer::new(signal(aim)).ok());
        Self { aim, timer, dice: Dice::new(seed), armed: None }
    }

    pub(crate) fn aims_at(&self, state: State) -> bool {
        self.aim.is_some_and(|aim| aim.state == state)
    }

    /// The victim enters `state`; `kill_at` notes when it is going to be killed.
    pub(crate) fn enter(&mut self, state: State, kill_at: impl FnOnce(u64)) {
        self.armed = None;
        let Some(aim) = &mut self.aim else { return };
        if aim.state != state {
            return;
        }
        aim.entries = aim.entries.saturating_sub(1);
        if aim.entries > 0 {
            return;
        }
        let witness = aim.witness;
        self.aim = None;
        let Some(timer) = &self.timer else { return };
        let start = now();
        let delay = if state.span_ns() > 50_000 {
            self.dice.scale_free(500, state.span_ns())
        } else {
            2_000 + self.dice.below(state.span_ns())
        };
        if !witness {
            kill_at(start + delay);
        }
        timer.arm(start + delay);
        self.armed = Some(state);
        if state.span_ns() <= 50_000 {
            // So that the step itself lies before, at and after the shot.
            spin_until(start + self.dice.below(delay + delay / 2));
        }
    }

    /// The step is over; if the shot was meant for it, it comes now.
    pub(crate) fn linger(&mut self) {
        if self.armed.take().is_some_and(|state| state.span_ns() <= 50_000) {
            spin_until(now() + 500_000);
        }
    }
}
