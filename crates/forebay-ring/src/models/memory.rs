//! Memory as models see it: the words that a small ring touches, a payload that is checked for races, and what happens
//! to its user between two accesses: it dies, or a membarrier of somebody else hits it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

#[cfg(loom)]
use loom::cell::UnsafeCell;

#[cfg(loom)]
use super::membarrier::Target;
use crate::{sync::AtomicU64, words::Words};

/// What befalls whoever uses a handle, just before one of its accesses.
#[derive(Clone, Debug)]
pub(super) enum Fate {
    /// It dies when so many accesses are over, counted from 0 over all handles that share this.
    Death(Arc<AtomicUsize>),
    /// A membarrier hits it.
    #[cfg(loom)]
    Barrier(Arc<Target>),
}

impl Fate {
    /// An end that is not set yet.
    pub(super) fn death() -> Self {
        Self::Death(Arc::new(AtomicUsize::new(usize::MAX)))
    }
}

/// Some words of an object, by their number in it. All are made before the threads start, as loom demands.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    words: Arc<Vec<(usize, AtomicU64)>>,
    /// What befalls who uses this handle; without it nothing does.
    fate: Option<Fate>,
}

/// What a thread unwinds with when its life is over.
struct Died;

impl Memory {
    /// The words of these numbers, all 0.
    pub(super) fn of(numbers: impl IntoIterator<Item = usize>) -> Self {
        let mut numbers: Vec<_> = numbers.into_iter().collect();
        numbers.sort_unstable();
        numbers.dedup();
        Self { words: Arc::new(numbers.into_iter().map(|n| (n, AtomicU64::new(0))).collect()), fate: None }
    }

    /// Another handle, whose user has this fate.
    pub(super) fn under(&self, fate: &Fate) -> Self {
        Self { words: Arc::clone(&self.words), fate: Some(fate.clone()) }
    }

    /// Who uses this handle, or one that shares its end, has this many accesses left.
    pub(super) fn dies_in(&self, accesses: usize) {
        let Some(Fate::Death(left)) = &self.fate else { panic!("only a mortal dies") };
        left.store(accesses, Relaxed);
    }
}

impl Words for Memory {
    fn word(&self, index: usize) -> &AtomicU64 {
        match &self.fate {
            Some(Fate::Death(left)) => match left.load(Relaxed) {
                0 => resume_unwind(Box::new(Died)),
                more => left.store(more - 1, Relaxed),
            },
            #[cfg(loom)]
            Some(Fate::Barrier(target)) => target.step(),
            None => {}
        }
        let at = self.words.binary_search_by_key(&index, |&(number, _)| number);
        &self.words[at.unwrap_or_else(|_| panic!("word {index} is not in this model"))].1
    }
}

/// Runs `live` until it ends (true) or its life does (false).
pub(super) fn until_death(live: impl FnOnce()) -> bool {
    match catch_unwind(AssertUnwindSafe(live)) {
        Ok(()) => true,
        Err(cause) if cause.is::<Died>() => false,
        Err(cause) => resume_unwind(cause),
    }
}

/// A slot's payload. Reading and writing it without an edge in between fails the model.
#[cfg(loom)]
#[derive(Debug, Default)]
pub(super) struct Payload(UnsafeCell<u64>);

#[cfg(loom)]
#[allow(unsafe_code, reason = "loom's cell is not Sync; that it is used as if it were is what models check")]
// SAFETY: loom checks each access of `with` and `with_mut` against all others and fails the model on a race, before the
// access takes place.
unsafe impl Sync for Payload {}

#[cfg(loom)]
impl Payload {
    pub(super) fn write(&self, value: u64) {
        #[allow(unsafe_code, reason = "how loom's cell is written")]
        self.0.with_mut(|at| {
            // SAFETY: `at` comes from a live cell, and loom has checked that no other access is concurrent.
            unsafe { *at = value }
        });
    }

    pub(super) fn read(&self) -> u64 {
        #[allow(unsafe_code, reason = "how loom's cell is read")]
        self.0.with(|at| {
            // SAFETY: `at` comes from a live cell, and loom has checked that no write is concurrent.
            unsafe { *at }
        })
    }
}
