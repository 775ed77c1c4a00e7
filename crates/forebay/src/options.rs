//! What producers and consumers can be told, with the defaults that Rust, Python and the command line share.

use std::{fmt, str::FromStr, time::Duration};

use forebay_layout::UnknownName;

/// Slots of a ring, unless told otherwise.
pub const DEFAULT_SLOTS: u32 = 16;
/// Bytes of a slot if neither they nor a bounded schema are given: 1 MiB.
pub const DEFAULT_SLOT_BYTES: u64 = 1 << 20;
/// Consumers that may be attached at a time.
pub const DEFAULT_MAX_CONSUMERS: u32 = 8;
/// Deliveries before a message becomes a dead letter.
pub const DEFAULT_MAX_ATTEMPTS: u32 = 3;
/// How long a producer waits for a slot before it says who holds them all.
pub const DEFAULT_FULL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long attaching waits for the ring to appear.
pub const DEFAULT_ATTACH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a consumer of a posix ring waits for the successor of a dead producer.
pub const DEFAULT_RECONNECT: Duration = Duration::from_secs(30);
/// How long `recv` without a timeout waits when this consumer itself holds all it may.
pub const QUOTA_PATIENCE: Duration = Duration::from_secs(1);

/// A NUMA node to take a ring's slots from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Numa {
    /// The node of this number.
    Node(u32),
    /// The node that a GPU is attached to: its number in the order of `nvidia-smi`.
    Gpu(u32),
    /// The node that a PCI device is attached to, by its bus id: `0000:3b:00.0`.
    Device(String),
}

impl fmt::Display for Numa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "{node}"),
            Self::Gpu(number) => write!(f, "gpu:{number}"),
            Self::Device(bus_id) => write!(f, "gpu:{bus_id}"),
        }
    }
}

impl FromStr for Numa {
    type Err = String;

    /// `0`, `gpu:0`, `gpu:0000:3b:00.0`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || format!("{text:?} names no NUMA node; expected a node (0), gpu:N or gpu:<PCI bus id>");
        match text.strip_prefix("gpu:") {
            None => text.parse().map(Self::Node).map_err(|_| unknown()),
            Some(gpu) if gpu.contains(':') => Ok(Self::Device(gpu.to_owned())),
            Some(gpu) => gpu.parse().map(Self::Gpu).map_err(|_| unknown()),
        }
    }
}

/// How a side waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WaitPolicy {
    /// Looks without end; lowest latency, one core busy.
    Spin,
    /// Looks for about as long as a wake costs, then sleeps.
    #[default]
    Adaptive,
    /// Sleeps at once.
    Block,
}

impl WaitPolicy {
    /// The name, the same in Rust, Python and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Spin => "spin",
            Self::Adaptive => "adaptive",
            Self::Block => "block",
        }
    }
}

impl fmt::Display for WaitPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for WaitPolicy {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        [Self::Spin, Self::Adaptive, Self::Block]
            .into_iter()
            .find(|policy| policy.name() == name)
            .ok_or(UnknownName { what: "wait policy", expected: "spin, adaptive, block" })
    }
}

/// What becomes of messages that were delivered as often as allowed and never acked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DeadLetters {
    /// They stay in their slots until the producer was handed them: none is lost, whoever dies. A producer that never takes
    /// them runs out of slots.
    #[default]
    Keep,
    /// They are counted, and their slots used again when no other is free.
    Discard,
}

impl DeadLetters {
    /// The name, the same in Rust, Python and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Discard => "discard",
        }
    }
}

impl fmt::Display for DeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DeadLetters {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        [Self::Keep, Self::Discard]
            .into_iter()
            .find(|choice| choice.name() == name)
            .ok_or(UnknownName { what: "choice for dead letters", expected: "keep, discard" })
    }
}

/// When a message counts as dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AckMode {
    /// When its lease ends: the message and every tensor of it are dropped.
    #[default]
    Auto,
    /// When `ack` is called; a message dropped without it comes back.
    Manual,
}

impl AckMode {
    /// The name, the same in Rust, Python and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Manual => "manual",
        }
    }
}

impl fmt::Display for AckMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for AckMode {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        [Self::Auto, Self::Manual]
            .into_iter()
            .find(|mode| mode.name() == name)
            .ok_or(UnknownName { what: "ack mode", expected: "auto, manual" })
    }
}
