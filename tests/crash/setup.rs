//! The ring of a seed, and what its messages contain: everything follows from the seed and the sequence, so that the
//! audit needs no record of what was sent.

use std::{path::Path, time::Duration};

use forebay::{
    AckMode, Consumer, ConsumerOptions, DType, FieldSpec, Kind, Producer, ProducerOptions, Schema, WaitPolicy, WhenFull,
};

/// The ring's name.
pub(crate) const RING: &str = "crash";
/// Elements of a tensor at most.
pub(crate) const MOST: u64 = 4;

/// A small generator (splitmix64): the same numbers from the same seed, everywhere.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64, scenario: u64) -> Self {
        Self(mix(seed, scenario))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0, 0)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len() as u64) as usize]
    }
}

pub(crate) fn mix(a: u64, b: u64) -> u64 {
    let mut x = a ^ b.wrapping_mul(0xd6e8_feb8_6659_fd93);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// The ring of one scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) kind: Kind,
    pub(crate) when_full: WhenFull,
    pub(crate) slots: u32,
    pub(crate) max_consumers: u32,
    pub(crate) max_attempts: u32,
    pub(crate) fields: u64,
    pub(crate) schemaless: bool,
    pub(crate) user: bool,
    pub(crate) timestamps: bool,
    pub(crate) membarrier: bool,
    pub(crate) wait: WaitPolicy,
    /// Consumers sleep in an epoll: a look that finds nothing leaves their mark.
    pub(crate) epoll: bool,
    /// How long the walk is.
    pub(crate) operations: u64,
}

impl Setup {
    pub(crate) fn of(seed: u64, scenario: u64) -> Self {
        let mut random = Random::new(seed, scenario);
        // The rarer kinds are spread evenly over the scenarios instead of drawn.
        let kind = if scenario % 5 < 3 { Kind::Queue } else { Kind::Broadcast };
        let schemaless = random.one_in(4);
        Self {
            seed: mix(seed, scenario),
            kind,
            when_full: random.pick(&[WhenFull::Block, WhenFull::Fail, WhenFull::DropOldest]),
            slots: random.pick(&[1, 2, 2, 3, 4, 6]),
            max_consumers: random.pick(&[1, 2, 2, 3]),
            max_attempts: random.pick(&[0, 1, 2, 3]),
            fields: random.pick(&[1, 1, 2, 3, 5, 8, 8]),
            schemaless,
            user: random.one_in(2),
            timestamps: random.one_in(4),
            membarrier: scenario % 4 != 3,
            wait: random.pick(&[WaitPolicy::Adaptive, WaitPolicy::Block]),
            epoll: random.one_in(3),
            operations: random.pick(&[150, 500, 1500]),
        }
    }

    pub(crate) fn is_lossy(&self) -> bool {
        self.when_full == WhenFull::DropOldest
    }

    /// In words, for people.
    pub(crate) fn describe(&self) -> String {
        let Self { kind, when_full, slots, max_consumers, max_attempts, fields, .. } = self;
        let barrier = if self.membarrier { "membarrier" } else { "fence" };
        format!(
            "{kind} {when_full} slots={slots} consumers<={max_consumers} attempts={max_attempts} fields={fields} \
             schemaless={} user={} wait={} epoll={} {barrier}",
            self.schemaless, self.user, self.wait, self.epoll
        )
    }

    fn schema(&self) -> Schema {
        let mut builder = Schema::builder("crash", 1, 0);
        for field in 0..self.fields {
            builder = builder.field(&name(field), DType::U64, &[MOST]);
        }
        builder.build().unwrap()
    }

    pub(crate) fn producer(&self, dir: &Path) -> ProducerOptions {
        let options = Producer::options(RING)
            .dir(dir)
            .kind(self.kind)
            .when_full(self.when_full)
            .slots(self.slots)
            .slot_bytes(64 * self.fields)
            .max_consumers(self.max_consumers)
            .max_attempts(self.max_attempts)
            .timestamps(self.timestamps)
            .wait(self.wait)
            .label("crash");
        if self.schemaless { options } else { options.schema(self.schema()) }
    }

    pub(crate) fn consumer(&self, dir: &Path) -> ConsumerOptions {
        let options = Consumer::options(RING).dir(dir).timeout(Some(Duration::from_secs(20))).wait(self.wait);
        options.ack(AckMode::Auto).label("crash")
    }

    /// The shape of every tensor of message `sequence`; as large as can be if it is not known yet.
    pub(crate) fn dim(&self, sequence: Option<u64>, field: u64) -> u64 {
        sequence.map_or(MOST, |sequence| 1 + mix(self.seed ^ sequence, field) % MOST)
    }

    pub(crate) fn with_specs<R>(&self, then: impl FnOnce(&[FieldSpec<'_>]) -> R) -> R {
        let names: Vec<String> = (0..self.fields).map(name).collect();
        let specs: Vec<_> = names.iter().map(|name| FieldSpec::new(name, DType::U64, &[MOST])).collect();
        then(&specs)
    }

    pub(crate) fn correlation(&self, sequence: u64) -> u64 {
        mix(self.seed, sequence)
    }

    pub(crate) fn user_data(&self, sequence: u64) -> Vec<u8> {
        if !self.user {
            return Vec::new();
        }
        let repeat = 1 + sequence % 3;
        (0..repeat).flat_map(|i| mix(self.seed ^ sequence, 99 + i).to_le_bytes()).chain([sequence as u8]).collect()
    }

    pub(crate) fn word(&self, sequence: u64, field: u64, index: u64) -> u64 {
        mix(self.correlation(sequence), field << 32 | index)
    }
}

/// The name of a field.
pub(crate) fn name(field: u64) -> String {
    format!("field{field}")
}
