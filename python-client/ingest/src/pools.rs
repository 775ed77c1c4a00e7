//! The pools behind `threads=`: one for each number asked for, kept, so that a call does not start threads.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use forebay_ingest::Pool;
use pyo3::PyResult;

use crate::errors::value_error;

/// The threads of one call.
pub(crate) enum Threads {
    /// The caller's own.
    Caller,
    /// One a core.
    Shared(&'static Pool),
    /// A number that was asked for.
    Own(Arc<Pool>),
}

impl Threads {
    /// Those of `threads=`: None is one a core, 1 the caller's.
    pub(crate) fn of(threads: Option<usize>) -> PyResult<Self> {
        static POOLS: LazyLock<Mutex<HashMap<usize, Arc<Pool>>>> = LazyLock::new(Mutex::default);
        match threads {
            None => Pool::shared().map(Self::Shared).map_err(value_error),
            Some(1) => Ok(Self::Caller),
            Some(count) => {
                let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(pool) = pools.get(&count) {
                    return Ok(Self::Own(Arc::clone(pool)));
                }
                let pool = Arc::new(Pool::new(count).map_err(value_error)?);
                pools.insert(count, Arc::clone(&pool));
                Ok(Self::Own(pool))
            }
        }
    }

    /// The pool, if it is not the caller's thread.
    pub(crate) fn pool(&self) -> Option<&Pool> {
        match self {
            Self::Caller => None,
            Self::Shared(pool) => Some(pool),
            Self::Own(pool) => Some(pool),
        }
    }

    /// Does `work` over so many elements: with the pool's help if it is worth waking.
    pub(crate) fn run<R>(&self, elements: usize, work: impl FnOnce() -> R) -> R {
        match self.pool() {
            Some(pool) if elements > WORTH_WAKING => pool.run(work),
            _ => work(),
        }
    }
}

/// Elements that one thread writes in about 100 µs.
const WORTH_WAKING: usize = 100_000;
