//! Queue: each message goes to exactly one consumer, and comes back if that consumer dies.
//!
//! # Death at any instruction
//!
//! | who dies, where | what is left | who mends it |
//! |---|---|---|
//! | producer, before the commit | WRITING | its successor: FREE; nobody ever saw the message |
//! | producer, after the commit, before the entry | FULL without an entry | consumers' scan; the successor fills the entry |
//! | consumer, before the claim | FULL | nothing to mend |
//! | consumer, holding a claim | CLAIMED | any member or the producer: FULL(attempts + 1), or DEAD |
//! | consumer, acked and reading | ACKED | any member or the producer: DONE |
//! | consumer, asleep | a parked bit | whoever recovers it; or one wasted wake |
//! | anybody, while recovering | some words mended, some not | the next to recover: each CAS stands alone |
//!
//! # Costs
//! One CAS a message per consumer group (a plain store with `max_consumers = 1`). A redelivered message comes after
//! messages that were published later.

mod consumer;
mod lease;
mod producer;
mod recover;

pub use consumer::{Next, QueueConsumer};
pub use lease::{ack, finish, give_back};
pub use producer::{Acquired, QueueProducer};
pub use recover::{Mended, held_by, is_drained, mend, release_all_of};
