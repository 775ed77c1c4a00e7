//! Models of the protocol. loom runs most of them in every order of steps, and with every value, that the memory model
//! allows; shuttle runs long histories in many orders.
//!
//! ```text
//!   claim commit give_back in_order join position release revoke     one file per edge of the crate's doc, or nearly
//!   park membarrier                                         E5, with fences and with the sleeper's membarrier
//!   crash handover                                          the producer dies, its successor too
//!   death leave asleep                                      consumers, menders, sleepers and wakers die
//!   long long_broadcast                                     shuttle
//!   memory small rig long_rig figures                       what they run on
//! ```
//!
//! Under loom a ring has two slots and two position entries, so that everything wraps within three messages; the payload
//! is a cell whose accesses loom checks for races, so that a release which no longer carries the reads before it fails
//! although every word is an atomic. What a model leaves out stands in `docs/protocol.md`; `ci/mutants.sh` shows for
//! each ordering which model needs it.
//!
//! ```text
//!   ci/model.sh [FILTER]      runs them, sums up what was explored
//!   LOOM_MAX_PREEMPTIONS=4    looks at more switches between threads than a model asks for by itself
//!   LOOM_LOG=trace            prints the steps of a failure
//!   SHUTTLE_ITERATIONS=10000  schedules of each kind for each long history
//! ```

#![allow(clippy::unwrap_used, reason = "a thread of a model that panicked has failed it")]

#[cfg(loom)]
mod asleep;
#[cfg(loom)]
mod claim;
#[cfg(loom)]
mod commit;
#[cfg(loom)]
mod crash;
#[cfg(loom)]
mod death;
mod figures;
#[cfg(loom)]
mod give_back;
#[cfg(loom)]
mod handover;
#[cfg(loom)]
mod in_order;
#[cfg(loom)]
mod join;
#[cfg(loom)]
mod leave;
#[cfg(all(shuttle, not(loom)))]
mod long;
#[cfg(all(shuttle, not(loom)))]
mod long_broadcast;
#[cfg(all(shuttle, not(loom)))]
mod long_rig;
#[cfg(loom)]
mod membarrier;
mod memory;
#[cfg(loom)]
mod park;
#[cfg(loom)]
mod position;
#[cfg(loom)]
mod release;
#[cfg(loom)]
mod revoke;
#[cfg(loom)]
mod rig;
mod small;
