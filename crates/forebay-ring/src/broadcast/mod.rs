//! Broadcast: every member sees every message.
//!
//! The producer alone decides who is offered what: a member is owed sequence q of slot s, generation g, if and only if
//! `join ≤ q < left`, its grant word for s does not say DONE(g) or REVOKED(g), and its lock byte is held. Nothing is
//! written to offer a message: the old grant word is the offer. A slot is reusable when nobody is owed it.
//!
//! # Death at any instruction
//!
//! | who dies, where | what is left | who mends it |
//! |---|---|---|
//! | producer, before the commit | WRITING in the ring object | its successor |
//! | producer, after the commit, before the entry | FULL without an entry | members' scan; the successor |
//! | producer, while revoking | some members REVOKED, some not | the successor: to the others it is still owed |
//! | member, anywhere | grant words that never settle | the producer: removes it once its lock byte is free |
//! | member, after `left` | grants of what it still reads | it settles them itself, or the producer as above |
//!
//! # Costs
//! One load per member and slot reused. A lossless ring goes at the pace of its slowest member; a lossy one (drop-oldest)
//! costs each member one CAS a message.

mod consumer;
mod producer;

pub use consumer::{BroadcastConsumer, settle};
pub use producer::BroadcastProducer;
