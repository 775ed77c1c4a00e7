//! Looking at rings from outside, cleaning up after the dead, and asking the host what it allows.
//!
//! ```text
//!   report.rs   what is told about a ring          look.rs     reading one, living or dead, trusting nothing
//!   members.rs  who holds what                     clean.rs    removing what nobody holds
//!   doctor.rs   what the host has, what that costs, how to mend it
//! ```
//!
//! May: read words and locks, connect as an observer. May not: become a member, change a word of a ring, or touch what a
//! living process holds. Everything read from a ring is copied once and checked; a ring that lies is reported with what
//! it lies about.
//!
//! ```
//! for ring in forebay::inspect::list(None)? {
//!     match &ring.view {
//!         Ok(view) => println!("{}: {} messages wait, {} consumers", ring.name, view.depth, view.consumers.len()),
//!         Err(why) => println!("{}: {why}", ring.name),
//!     }
//! }
//! # Ok::<(), forebay::OsError>(())
//! ```

mod clean;
mod doctor;
mod look;
mod members;
mod report;

use std::{collections::BTreeSet, path::Path};

use forebay_layout::check_ring_name;
use forebay_os::{Dir, Result, object::shm};

pub(crate) use clean::tidy;
pub use clean::{Cleaned, Kept, Removed, clean, would_clean};
pub use doctor::{Check, Severity, doctor};
pub use report::{ConsumerReport, HeldSlot, ProducerReport, RingReport, RingState, RingView, SlotCounts};

use crate::rendezvous::{LOCK_SUFFIX, SOCKET_SUFFIX, objects, temporary_of};

/// Every ring of a directory, by name, with or without a living producer. `None` is the default directory, as for
/// [`ProducerOptions::dir`](crate::ProducerOptions::dir).
///
/// A snapshot, stale at once. Takes well under a millisecond a ring, and up to a second for a memfd ring whose producer
/// is stopped.
///
/// # Errors
/// The directory cannot be used or read. What is wrong with a single ring is in its report.
pub fn list(dir: Option<&Path>) -> Result<Vec<RingReport>> {
    let dir = Dir::open(dir)?;
    Ok(names(&dir)?.iter().map(|name| look::report(&dir, name)).collect())
}

/// The names of which something is there: an object, a socket, a lock file.
fn names(dir: &Dir) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    let mut add = |name: &str| {
        if check_ring_name(name).is_ok() {
            names.insert(name.to_owned());
        }
    };
    for file in dir.list("")? {
        if let Some(ring) = file.strip_suffix(SOCKET_SUFFIX).or_else(|| file.strip_suffix(LOCK_SUFFIX)) {
            add(ring);
        } else if let Some(ring) = temporary_of(&file) {
            add(ring);
        }
    }
    let prefix = objects::object_prefix(dir);
    for object in shm::list(&prefix)? {
        // "a.b" is a ring name too: the object's own is behind the last dot.
        if let Some((ring, _)) = object[prefix.len()..].rsplit_once('.') {
            add(ring);
        }
    }
    Ok(names)
}
