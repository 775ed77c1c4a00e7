//! What can go wrong, one enum per operation. Each text says what happened, what was found and expected, what to do.

use std::time::Duration;

use forebay_layout::{Defect, NameError};
use forebay_os::OsError;

/// A lease that a consumer holds, for errors and for `forebay ls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldLease {
    /// Sequence of the message.
    pub sequence: u64,
    /// Its slot.
    pub slot: u32,
    /// Bytes of that slot.
    pub slot_bytes: u64,
    /// How long it is held.
    pub age: Duration,
}

/// Who holds how many slots, for errors and for `forebay ls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Member index.
    pub index: u8,
    /// Its pid in its own namespace.
    pub pid: u32,
    /// What it calls itself.
    pub label: String,
    /// Slots it holds, or (broadcast) has not read yet.
    pub slots: u32,
    /// Age of the oldest.
    pub oldest: Duration,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "consumer {} (pid {}", self.index, self.pid)?;
        if !self.label.is_empty() {
            write!(f, ", {}", self.label)?;
        }
        write!(f, ") holds {}", self.slots)?;
        if self.oldest > Duration::ZERO {
            write!(f, ", the oldest for {:.1?}", self.oldest)?;
        }
        Ok(())
    }
}

fn list<T: std::fmt::Display>(items: &[T], none: &str) -> String {
    if items.is_empty() {
        return none.to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn leases(held: &[HeldLease]) -> String {
    let show = |l: &HeldLease| format!("message {} in slot {} for {:.1?}", l.sequence, l.slot, l.age);
    held.iter().map(show).collect::<Vec<_>>().join("; ")
}

/// Why a ring could not be created or taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The name cannot be used.
    #[error("cannot create ring {ring:?}: {source}; use [a-z0-9][a-z0-9._-]{{0,63}}")]
    Name {
        /// The name given.
        ring: String,
        /// Why not.
        source: NameError,
    },
    /// A living producer has the name. Retry when it is gone.
    #[error("ring {ring:?} has a living producer: {holder}; stop it, or choose another name")]
    Taken {
        /// The ring.
        ring: String,
        /// What it wrote about itself: pid, command, start.
        holder: String,
    },
    /// A number is out of its range.
    #[error("cannot create ring {ring:?}: {source}")]
    Geometry {
        /// The ring.
        ring: String,
        /// Which number.
        source: Defect,
    },
    /// The options contradict each other.
    #[error("cannot create ring {ring:?}: {what}")]
    Options {
        /// The ring.
        ring: String,
        /// What, and what to do.
        what: String,
    },
    /// The memory is not there. Every byte is allocated now, so that nothing fails later.
    #[error(
        "ring {ring:?} needs {needed} bytes of {place}, {free} are free; use fewer or smaller slots, backing memfd \
         (not limited by /dev/shm), or a larger /dev/shm (docker: --shm-size, Kubernetes: emptyDir with medium Memory)"
    )]
    Memory {
        /// The ring.
        ring: String,
        /// Bytes it needs.
        needed: u64,
        /// Bytes there are.
        free: u64,
        /// Where.
        place: String,
    },
    /// Objects of a dead producer are there that differ from what was asked for.
    #[error(
        "ring {ring:?} was left by a dead producer with {difference}; create it the same way to take over what it \
         published, or pass `fresh` to discard that ({outstanding} messages)"
    )]
    Different {
        /// The ring.
        ring: String,
        /// Found and expected.
        difference: String,
        /// Messages that `fresh` discards.
        outstanding: u64,
    },
    /// Objects of a dead producer are there, with a word in them that nobody writes who keeps to the protocol. Taking
    /// them over could lose or repeat messages, so nothing was changed.
    #[error(
        "ring {ring:?} was left by a dead producer and cannot be taken over: {source}; a peer wrote over it. Pass `fresh` \
         to discard what is left ({outstanding} messages), or `forebay clean`"
    )]
    Damaged {
        /// The ring.
        ring: String,
        /// Which word, and of which slot.
        source: Defect,
        /// Messages that `fresh` discards, as far as that can be told.
        outstanding: u64,
    },
    /// The system said no.
    #[error(transparent)]
    Os(#[from] OsError),
}

/// Why there is no loan.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoanError {
    /// No slot is large enough, ever.
    #[error(
        "a message of {needed} bytes does not fit {ring:?}, whose largest slot has {largest}; create it with larger slot_bytes"
    )]
    TooLarge {
        /// The ring.
        ring: String,
        /// Bytes of the message, each tensor rounded up to 64.
        needed: u64,
        /// Bytes of the largest slot.
        largest: u64,
    },
    /// The fields are not those of the schema, or cannot be.
    #[error("cannot loan a slot of {ring:?}: {what}")]
    Fields {
        /// The ring.
        ring: String,
        /// What, found and expected.
        what: String,
    },
    /// No slot became free in time (`waited` is 0 if it was not to wait). Retrying helps once a consumer releases.
    #[error(
        "no free slot in {ring:?} after {waited:.1?}: of {slots}, {full} wait to be received, {loaned} are on loan, {dead} hold \
         dead letters{}; {}; release tensors, start more consumers, or raise slots",
        if *dead > 0 { " (take_dead_letters hands them over)" } else { "" },
        list(holders, "no consumer holds any")
    )]
    Full {
        /// The ring.
        ring: String,
        /// How long it waited.
        waited: Duration,
        /// Slots that are large enough.
        slots: u32,
        /// Published and not claimed.
        full: u32,
        /// On loan to this producer.
        loaned: u32,
        /// Holding dead letters.
        dead: u32,
        /// Who holds the others.
        holders: Vec<Holder>,
    },
    /// All slots are on loan to this very producer: waiting could not help.
    #[error(
        "all {loaned} slots of {ring:?} that are large enough are on loan to this producer; publish or drop a loan first"
    )]
    OwnLoans {
        /// The ring.
        ring: String,
        /// How many.
        loaned: u32,
    },
    /// The caller's interrupt asked to stop waiting.
    #[error("interrupted while waiting for a free slot of {ring:?}")]
    Interrupted {
        /// The ring.
        ring: String,
    },
    /// The producer was closed.
    #[error("the producer of {ring:?} is closed; create another one")]
    Closed {
        /// The ring.
        ring: String,
    },
    /// This process is a forked child of the one that created the producer.
    #[error("this producer of {ring:?} belongs to the parent process; create one after the fork")]
    Forked {
        /// The ring.
        ring: String,
    },
    /// The system said no.
    #[error(transparent)]
    Os(#[from] OsError),
}

/// Why a loan could not be published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The user data is too long.
    #[error("{found} bytes of user data, at most {limit} travel with a message; put the rest into a tensor")]
    UserBytes {
        /// Bytes given.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Another request with that item was published since this one was begun.
    #[error("item {item} is in a request without an answer; give each item its own id")]
    ItemTaken {
        /// The item.
        item: u64,
    },
    /// The loan is another producer's.
    #[error("this loan is of another producer; publish it with the producer that made it")]
    NotOurs,
    /// The producer was closed.
    #[error("the producer is closed; create another one")]
    Closed,
    /// This process is a forked child of the one that created the producer.
    #[error("this producer belongs to the parent process; create one after the fork")]
    Forked,
}

/// Why a tensor of a loan or message cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// There is no such field.
    #[error("no field {name:?}; there is {fields}")]
    NoField {
        /// The name or index asked for.
        name: String,
        /// The fields there are.
        fields: String,
    },
    /// The element type is another one.
    #[error("field {name:?} holds {found}, asked for as {expected}")]
    DType {
        /// The field.
        name: String,
        /// Its dtype.
        found: &'static str,
        /// The dtypes that the Rust type stands for.
        expected: String,
    },
    /// The slot may only be read.
    #[error("field {name:?} is read-only; copy it, or create the ring with `writable` (queue only)")]
    ReadOnly {
        /// The field.
        name: String,
    },
}

/// Why a consumer could not attach.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The name cannot be used.
    #[error("cannot attach to {ring:?}: {source}")]
    Name {
        /// The name given.
        ring: String,
        /// Why not.
        source: NameError,
    },
    /// No producer appeared in time. Retrying helps once one does.
    #[error(
        "no ring {ring:?} after {waited:.1?}: looked for {path}, {found}; start its producer, or set FOREBAY_DIR to where it listens"
    )]
    NotThere {
        /// The ring.
        ring: String,
        /// How long it waited.
        waited: Duration,
        /// The socket's path.
        path: String,
        /// What was found there.
        found: String,
    },
    /// A producer accepted the connection and does not answer.
    #[error(
        "{ring:?} is connected but silent for {waited:.1?}: its producer is stopped, or a forked child holds its \
         socket; look at it with `forebay ls`"
    )]
    Silent {
        /// The ring.
        ring: String,
        /// How long it waited.
        waited: Duration,
    },
    /// The producer said no.
    #[error("{ring:?} refused: {reason}")]
    Refused {
        /// The ring.
        ring: String,
        /// Its reason.
        reason: String,
    },
    /// The ring's schema is not what this side expects.
    #[error("{ring:?} has another schema (- expected, + found):\n{diff}")]
    Schema {
        /// The ring.
        ring: String,
        /// Line by line.
        diff: String,
    },
    /// What the producer sent is not a ring this build reads.
    #[error("cannot attach to {ring:?}: {source}; use the same forebay release on both sides")]
    Defect {
        /// The ring.
        ring: String,
        /// Which value.
        source: Defect,
    },
    /// `writable` was asked for on a ring that is not.
    #[error("{ring:?} is not writable; create it with `writable` (queue only), or attach to read")]
    NotWritable {
        /// The ring.
        ring: String,
    },
    /// The system said no.
    #[error(transparent)]
    Os(#[from] OsError),
}

/// Why no message was received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// Nothing came in time; calling again is fine.
    #[error("no message from {ring:?} in {waited:.1?}{note}")]
    Timeout {
        /// The ring.
        ring: String,
        /// How long it waited.
        waited: Duration,
        /// What is known about the producer, if it is not just quiet.
        note: String,
    },
    /// The producer closed, and everything it published was received.
    #[error("{ring:?} is closed: its producer finished and everything it published was received")]
    Closed {
        /// The ring.
        ring: String,
    },
    /// The producer died; everything it had published came first.
    #[error("the producer of {ring:?} died; everything it had published was received. Restart it{note}")]
    PeerDied {
        /// The ring.
        ring: String,
        /// What waiting for a successor means here.
        note: String,
    },
    /// A new producer discarded the ring and made another one of the same name; attach again.
    #[error("{ring:?} was replaced by a new ring of the same name; attach again")]
    Replaced {
        /// The ring.
        ring: String,
    },
    /// This consumer holds all the slots it may; it must release some.
    #[error(
        "this consumer of {ring:?} holds {} of the {quota} messages it may: {}; drop tensors it no longer needs, \
         keep .copy() of them, or raise slots", held.len(), leases(held)
    )]
    Quota {
        /// The ring.
        ring: String,
        /// Leases it may hold in that class.
        quota: u32,
        /// What it holds.
        held: Vec<HeldLease>,
    },
    /// A peer wrote something that cannot be; this handle is of no use any more.
    #[error("{ring:?} is poisoned: {source}; detach, recreate the ring, and look at the peer that wrote it")]
    Poisoned {
        /// The ring.
        ring: String,
        /// Which value.
        source: Defect,
    },
    /// The consumer was closed.
    #[error("this consumer of {ring:?} is closed; attach again")]
    Detached {
        /// The ring.
        ring: String,
    },
    /// This process is a forked child of the one that attached.
    #[error("this consumer of {ring:?} belongs to the parent process; attach after the fork")]
    Forked {
        /// The ring.
        ring: String,
    },
    /// The system said no.
    #[error(transparent)]
    Os(#[from] OsError),
}

/// Why something was not reached in time.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// Not in time.
    #[error("{what} after {waited:.1?}")]
    Timeout {
        /// Found and expected.
        what: String,
        /// How long it waited.
        waited: Duration,
    },
    /// The caller's interrupt asked to stop waiting.
    #[error("interrupted while waiting")]
    Interrupted,
    /// This process is a forked child of the one that created the producer.
    #[error("this producer belongs to the parent process; create one after the fork")]
    Forked,
    /// The system said no.
    #[error(transparent)]
    Os(#[from] OsError),
}
