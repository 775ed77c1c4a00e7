//! What a producer can be told.

use std::{path::PathBuf, time::Duration};

use forebay_layout::{
    Backing, Kind, MAX_FIELDS, WhenFull,
    geometry::{Geometry, SlotClass},
    schema::{self, Schema},
};

use super::{Producer, create};
use crate::{
    error::CreateError,
    options::{
        DEFAULT_FULL_TIMEOUT, DEFAULT_MAX_ATTEMPTS, DEFAULT_MAX_CONSUMERS, DEFAULT_SLOT_BYTES, DEFAULT_SLOTS,
        DeadLetters, Numa, WaitPolicy,
    },
};

/// How to create a ring, or take it over; [`create`](Self::create) does it.
#[derive(Debug, Clone)]
#[must_use = "nothing is created until create is called"]
pub struct ProducerOptions {
    pub(crate) ring: String,
    pub(crate) dir: Option<PathBuf>,
    pub(crate) schema: Option<Schema>,
    pub(crate) slots: u32,
    pub(crate) slot_bytes: Option<u64>,
    pub(crate) classes: Vec<SlotClass>,
    pub(crate) kind: Kind,
    pub(crate) backing: Backing,
    pub(crate) when_full: WhenFull,
    pub(crate) full_timeout: Option<Duration>,
    pub(crate) max_consumers: u32,
    pub(crate) max_attempts: u32,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) quota: u32,
    pub(crate) wait: WaitPolicy,
    pub(crate) writable: bool,
    pub(crate) prefault: bool,
    pub(crate) mlock: bool,
    pub(crate) huge_pages: bool,
    pub(crate) numa: Option<Numa>,
    pub(crate) timestamps: bool,
    pub(crate) fresh: bool,
    pub(crate) label: String,
}

impl ProducerOptions {
    pub(crate) fn new(ring: &str) -> Self {
        Self {
            ring: ring.to_owned(),
            dir: None,
            schema: None,
            slots: DEFAULT_SLOTS,
            slot_bytes: None,
            classes: Vec::new(),
            kind: Kind::Queue,
            backing: Backing::Posix,
            when_full: WhenFull::Block,
            full_timeout: Some(DEFAULT_FULL_TIMEOUT),
            max_consumers: DEFAULT_MAX_CONSUMERS,
            max_attempts: DEFAULT_MAX_ATTEMPTS,
            dead_letters: DeadLetters::Keep,
            quota: 0,
            wait: WaitPolicy::Adaptive,
            writable: false,
            prefault: true,
            mlock: false,
            huge_pages: false,
            numa: None,
            timestamps: false,
            fresh: false,
            label: String::new(),
        }
    }

    /// Where to listen. Default `$FOREBAY_DIR`, `$XDG_RUNTIME_DIR/forebay` or `/tmp/forebay-<uid>`.
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// The fields of every message. Without one each message names its own.
    pub fn schema(mut self, schema: Schema) -> Self {
        self.schema = Some(schema);
        self
    }

    /// How many slots. Default 16.
    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    /// Bytes of a slot: the largest message. Default: what the schema's bounds need, else 1 MiB.
    pub fn slot_bytes(mut self, slot_bytes: u64) -> Self {
        self.slot_bytes = Some(slot_bytes);
        self
    }

    /// Several sizes of slots instead, by growing `slot_bytes`: a message takes the smallest that fits and has room.
    pub fn classes(mut self, classes: &[SlotClass]) -> Self {
        self.classes = classes.to_vec();
        self
    }

    /// Who gets a message. Default: one consumer ([`Kind::Queue`]).
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Where the memory comes from. Default posix.
    pub fn backing(mut self, backing: Backing) -> Self {
        self.backing = backing;
        self
    }

    /// What happens when no slot is free. Default: wait.
    pub fn when_full(mut self, when_full: WhenFull) -> Self {
        self.when_full = when_full;
        self
    }

    /// How long [`Producer::loan`] waits for a slot; `None` waits without end. Default 60 s.
    pub fn full_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.full_timeout = timeout;
        self
    }

    /// Consumers attached at a time, 1 to 32. Default 8. With 1, a claim is a plain store.
    pub fn max_consumers(mut self, max_consumers: u32) -> Self {
        self.max_consumers = max_consumers;
        self
    }

    /// Deliveries before a message becomes a dead letter; 0 means never. Default 3.
    pub fn max_attempts(mut self, max_attempts: u32) -> Self {
        self.max_attempts = max_attempts;
        self
    }

    /// What becomes of messages that were given up. Default: they wait for
    /// [`take_dead_letters`](crate::Producer::take_dead_letters).
    pub fn dead_letters(mut self, dead_letters: DeadLetters) -> Self {
        self.dead_letters = dead_letters;
        self
    }

    /// Leases a consumer may hold in one size class; 0, the default, is its slots − 1.
    pub fn quota(mut self, quota: u32) -> Self {
        self.quota = quota;
        self
    }

    /// How to wait for a slot. Default adaptive.
    pub fn wait(mut self, wait: WaitPolicy) -> Self {
        self.wait = wait;
        self
    }

    /// Whether consumers may write the slots they lease (queue only). Default false.
    pub fn writable(mut self, writable: bool) -> Self {
        self.writable = writable;
        self
    }

    /// Whether to map every page before the first message. Default true.
    pub fn prefault(mut self, prefault: bool) -> Self {
        self.prefault = prefault;
        self
    }

    /// Whether to lock the pages in memory; if that is refused the producer has a note of it.
    pub fn mlock(mut self, mlock: bool) -> Self {
        self.mlock = mlock;
        self
    }

    /// Whether to ask for huge pages; if they are refused the producer has a note of it.
    pub fn huge_pages(mut self, huge_pages: bool) -> Self {
        self.huge_pages = huge_pages;
        self
    }

    /// The NUMA node to take the slots from: near the GPU that reads them, or the cores. As long as it has memory; what came
    /// of it the producer's notes say, and `forebay ls`. What a dead producer left stays where it is.
    pub fn numa(mut self, numa: Numa) -> Self {
        self.numa = Some(numa);
        self
    }

    /// Whether each message carries the time of its publishing (about 20 ns). Default false.
    pub fn timestamps(mut self, timestamps: bool) -> Self {
        self.timestamps = timestamps;
        self
    }

    /// Whether to discard what a dead producer of this name left, instead of taking it over. Default false.
    pub fn fresh(mut self, fresh: bool) -> Self {
        self.fresh = fresh;
        self
    }

    /// What `forebay ls` and error texts call this producer, cut to 64 bytes. Default: the command's name.
    pub fn label(mut self, label: &str) -> Self {
        label.clone_into(&mut self.label);
        self
    }

    /// Creates the ring with every byte allocated, or takes over the one a dead producer left.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn create(self) -> Result<Producer, CreateError> {
        create::create(self)
    }

    /// What the ring is made from.
    pub(crate) fn geometry(&self) -> Result<Geometry, CreateError> {
        let options = |what: &str| CreateError::Options { ring: self.ring.clone(), what: what.to_owned() };
        let needed = self.schema.as_ref().map(Schema::max_bytes);
        let mut classes = self.classes.clone();
        if classes.is_empty() {
            let slot_bytes = self.slot_bytes.or(needed.flatten().map(|bytes| bytes.max(64)));
            classes.push(SlotClass { slots: self.slots, slot_bytes: slot_bytes.unwrap_or(DEFAULT_SLOT_BYTES) });
        } else if self.slot_bytes.is_some() {
            return Err(options("slot_bytes and classes were both given; give one of them"));
        }
        let largest = classes.last().map_or(0, |class| class.slot_bytes);
        if let Some(Some(needed)) = needed
            && needed > largest
        {
            let what = format!(
                "its schema allows messages of {needed} bytes, its largest slot has {largest}; raise slot_bytes or \
                 lower the schema's bounds"
            );
            return Err(options(&what));
        }
        let mut bytes = [0; schema::MAX_BYTES];
        let schema_bytes = self.schema.as_ref().map_or(0, |schema| schema.encode(&mut bytes));
        let mut list = arrayvec::ArrayVec::new();
        for class in classes {
            list.try_push(class).map_err(|_| options("more than 8 size classes; give at most 8"))?;
        }
        let fields = self.schema.as_ref().map_or(MAX_FIELDS, |schema| schema.fields().len());
        Ok(Geometry {
            kind: self.kind,
            backing: self.backing,
            when_full: self.when_full,
            writable: self.writable,
            max_consumers: self.max_consumers,
            max_attempts: self.max_attempts,
            quota: self.quota,
            max_fields: fields as u32,
            schema_bytes: schema_bytes as u32,
            classes: list,
        })
    }
}
