//! What is told about a ring. All of it is a copy and may be stale at once.

use std::time::Duration;

use forebay_layout::{Backing, Kind, WhenFull, geometry::SlotClass};

/// A ring, as far as it could be looked at.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RingReport {
    /// Its name.
    pub name: String,
    /// Who publishes, or did.
    pub producer: ProducerReport,
    /// What is in it, or why that cannot be told.
    pub view: Result<RingView, String>,
}

/// The producer of a ring.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProducerReport {
    /// Whether a living process holds the ring's name. Everything else here is what a producer wrote about itself.
    pub alive: bool,
    /// Its pid in its own namespace, 0 if unknown.
    pub pid: u32,
    /// What it calls itself.
    pub label: String,
    /// When it opened the ring, nanoseconds since the Unix epoch, 0 if unknown.
    pub started_unix_ns: u64,
}

/// What a ring's producer said last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RingState {
    /// It is, or was when it died, publishing.
    Open,
    /// Nothing more comes until a successor takes over.
    Closed,
    /// Discarded for a new ring of the same name.
    Replaced,
    /// Not a state.
    Unknown(u64),
}

impl std::fmt::Display for RingState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Open => f.pad("open"),
            Self::Closed => f.pad("closed"),
            Self::Replaced => f.pad("replaced"),
            Self::Unknown(word) => write!(f, "unknown ({word})"),
        }
    }
}

/// What is in a ring.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RingView {
    /// Who gets a message.
    pub kind: Kind,
    /// Where the memory comes from.
    pub backing: Backing,
    /// What happens when no slot is free.
    pub when_full: WhenFull,
    /// Whether consumers may write the slots they lease.
    pub writable: bool,
    /// The schema, as text; `None` if each message names its own fields.
    pub schema: Option<String>,
    /// The number that all objects of this ring carry, as 32 hex digits.
    pub instance: String,
    /// The producer's life number.
    pub epoch: u64,
    /// What the producer said last.
    pub state: RingState,
    /// When the ring was created, nanoseconds since the Unix epoch.
    pub created_unix_ns: u64,
    /// Consumers that may be attached at a time.
    pub max_consumers: u32,
    /// Deliveries before a message is a dead letter; 0 for never.
    pub max_attempts: u32,
    /// Sizes of slots.
    pub classes: Vec<SlotClass>,
    /// Bytes of shared memory, all objects together.
    pub memory_bytes: u64,
    /// The NUMA node that the slots lie on, if the producer was asked for one.
    pub numa_node: Option<u32>,
    /// Slots by what they are.
    pub slots: SlotCounts,
    /// Messages published and taken by nobody; on broadcast, that some consumer has not read.
    pub depth: u64,
    /// The sequence that is published next; one less were published.
    pub head: u64,
    /// Messages dropped.
    pub dropped: u64,
    /// Messages that became dead letters.
    pub dead_letters: u64,
    /// Payload bytes published.
    pub bytes: u64,
    /// Times the producer had to wait for a slot.
    pub full_waits: u64,
    /// Who is attached, or died and was not mended yet.
    pub consumers: Vec<ConsumerReport>,
}

/// Slots by what they are. On broadcast rings a message counts as claimed while anybody holds it, as full while anybody
/// has still to read it, and as done after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SlotCounts {
    /// Never used, or emptied.
    pub free: u32,
    /// On loan to the producer.
    pub writing: u32,
    /// Published, taken by nobody.
    pub full: u32,
    /// Held by a consumer, not acked.
    pub claimed: u32,
    /// Held by a consumer, acked.
    pub acked: u32,
    /// Released; the producer's to use again.
    pub done: u32,
    /// Holding a dead letter that the producer has not taken.
    pub dead: u32,
    /// With a word that no process writes that keeps to the protocol.
    pub unreadable: u32,
}

/// A consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerReport {
    /// Its place in the ring.
    pub index: u8,
    /// Which life of that place.
    pub incarnation: u16,
    /// Whether a living process holds that place. Everything else is what was written about it.
    pub alive: bool,
    /// `joining`, `active`, `leaving` or `empty` (gone, but slots still name it).
    pub state: &'static str,
    /// Its pid in its own namespace.
    pub pid: u32,
    /// What it calls itself.
    pub label: String,
    /// When it attached, nanoseconds since the Unix epoch.
    pub attached_unix_ns: u64,
    /// Messages it received.
    pub received: u64,
    /// Messages it acked (queue).
    pub acked: u64,
    /// Messages it gave back (queue).
    pub nacked: u64,
    /// Messages that were taken away before it read them (broadcast, drop-oldest).
    pub missed: u64,
    /// Messages it has still to read (broadcast).
    pub behind: u64,
    /// What it holds.
    pub held: Vec<HeldSlot>,
}

/// A slot that a consumer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeldSlot {
    /// The slot.
    pub slot: u32,
    /// Sequence of the message.
    pub sequence: u64,
    /// Whether it was acked and only its memory is still used (queue).
    pub acked: bool,
    /// How long it is held.
    pub since: Duration,
}
