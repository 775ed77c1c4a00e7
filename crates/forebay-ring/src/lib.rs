//! The ring protocol of forebay on borrowed words: who may change which word, when, and what a death leaves behind.
//!
//! ```text
//!   slot_state.rs   the queue's slot word and its verbs           grant.rs     a broadcast member's word per slot
//!   publisher.rs    producer side of both kinds: shadow of the    reader.rs    consumer side of both kinds: entries
//!                   slots, descriptors, position entries                       and descriptors, copied and checked
//!   queue/          claim, ack, release, give back, recover       broadcast/   offer, hold, revoke, join, leave
//!   pool.rs, member.rs   named words of the shared objects        words.rs     the memory, whatever it is
//! ```
//!
//! # Invariants
//! I1 one word     A slot is what its one word says (queue: slot word; broadcast: the members' grant words). Positions,
//!                 counters and parked bits are hints and can be rebuilt.
//! I2 one hand     WRITING, FREE and first FULL are the producer's; CLAIMED and ACKED are their member's; DONE and DEAD
//!                 are the producer's to reuse. Everything a living owner may change, nobody else changes.
//! I3 shadow       The producer decides from its private shadow; a shared word only confirms an exact expected value.
//! I4 doubt        What a consumer reads is a claim: copied once, then checked as a copy. A breach is a `Defect`.
//! I5 death        Only a member that a probe shows dead, probed after its word was read, loses that very word.
//!
//! # Edges (each label stands at both ends in the code)
//! E1 commit    Producer stores FULL, Release → a claim loads it, Acquire: payload and descriptor arrive with it.
//! E2 release   The last reader stores DONE, Release → producer loads it, Acquire: reads are over before reuse.
//! E3 position  Entry words, then stamp, Release → consumer loads the stamp, Acquire. While an entry is rewritten its
//!              stamp is 0, separated by fences on both sides, so a torn copy is never taken for a whole one.
//! E4 return    Who gives a message back stores FULL(attempts + 1), Release, having acquired what the producer
//!              committed: the next claim sees payload and descriptor through it. Then it counts the return, Release →
//!              who loads the count, Acquire, finds the message by a scan.
//! E5 park      Sleeper: parked bit, barrier, look again. Waker: publish or release, (fence,) read the bit. If the
//!              sleeper's barrier is first, the waker sees the bit; if the waker's store is first, the second look
//!              sees it. With membarrier the sleeper's call supplies both barriers and the waker needs no fence. Who
//!              takes a mark sees how the sleeper sleeps; a sleeper that finds its mark taken sees why.
//! E6 join      Producer zeroes the sequence, stores the incarnation, Release, then the sequence → the member loads its
//!              incarnation, Acquire, then the sequence: never one of an earlier holder of the index.
//! E7 revoke    On a lossy broadcast ring hold and revoke are both CASes of one word: exactly one happens.
//! E8 life      A member holds its lock byte, then stores words with its name, Release → who reads its name, Acquire, and
//!              then probes the byte finds it held, or freed by that very life's death.
//!
//! # Death at any instruction
//! See `queue` and `broadcast`, each of which lists what is left and who mends it.
// Models share a cell between threads in a way that only loom can check; nothing else may.
#![cfg_attr(all(test, loom), deny(unsafe_code))]
#![cfg_attr(not(all(test, loom)), forbid(unsafe_code))]

pub mod broadcast;
mod grant;
mod member;
mod pool;
mod publisher;
pub mod queue;
mod reader;
mod slot_state;
mod sync;
mod words;

#[cfg(all(test, not(any(loom, shuttle))))]
mod hostile;
#[cfg(all(test, any(loom, shuttle)))]
mod models;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests_order;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests_sole;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests_takeover;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests_words;

pub use grant::{Grant, GrantState};
pub use member::{Member, MemberId};
pub use pool::Pool;
pub use publisher::{Counter, Draft, Outstanding, Publisher, Recovered};
pub use reader::{Claim, Reader};
pub use slot_state::{SlotState, SlotWord};
pub use sync::{AtomicU64, waker_fence};
pub use words::{ReadOnly, Words};
