//! Work on the CPU pool, in the order in which it was asked for; that of one caller perhaps in several parts.
//!
//! No part waits for another one: a thread of rayon that waits takes up other work meanwhile, whoever it is for, on top of
//! what it waits for. The part that ends last hands over what came of all.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Instant,
};

use tokio::sync::oneshot;

use super::Core;
use crate::backend::Refusal;

enum Part<I, T> {
    Waiting(I),
    Begun,
    Done(T),
}

/// What one caller waits for. Each part that is to be done holds it.
struct Parts<I, T> {
    /// Empty once the caller left.
    parts: Mutex<Vec<Part<I, T>>>,
    done: oneshot::Sender<Vec<T>>,
}

impl<I, T> Parts<I, T> {
    fn lock(&self) -> MutexGuard<'_, Vec<Part<I, T>>> {
        // Nothing is left half done by a panic.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a part is about; `None` if nobody waits for it any more.
    fn begin(&self, index: usize) -> Option<I> {
        let mut parts = self.lock();
        let part = parts.get_mut(index)?;
        match std::mem::replace(part, Part::Begun) {
            Part::Waiting(input) => Some(input),
            other => {
                *part = other;
                None
            }
        }
    }

    fn end(&self, index: usize, result: T) {
        if let Some(part) = self.lock().get_mut(index) {
            *part = Part::Done(result);
        }
    }

    /// Hands over what came of all; nothing, if one of them was not done.
    fn hand_over(self) {
        let parts = self.parts.into_inner().unwrap_or_else(PoisonError::into_inner);
        let result = |part| match part {
            Part::Done(result) => Some(result),
            Part::Waiting(_) | Part::Begun => None,
        };
        if let Some(results) = parts.into_iter().map(result).collect() {
            // Its caller may have left meanwhile.
            let _ = self.done.send(results);
        }
    }
}

/// The caller's end. What is left in the queue when it leaves holds nothing that it brought: no limit counts that any more.
struct Waits<I, T>(Weak<Parts<I, T>>);

impl<I, T> Drop for Waits<I, T> {
    fn drop(&mut self) {
        if let Some(parts) = self.0.upgrade() {
            let left = std::mem::take(&mut *parts.lock());
            drop(left);
        }
    }
}

impl Core {
    /// Does `work` on the CPU pool, unless nobody waits for it any more when its turn comes. If it panics, that is the
    /// answer.
    pub(super) async fn on_the_pool<T: Send + 'static>(
        self: &Arc<Self>,
        deadline: Instant,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let mut done = self.each_on_the_pool(deadline, vec![work], |core, work| work(core)).await?;
        done.pop().ok_or_else(not_done)
    }

    /// The same with each of `inputs`, on all threads of the pool; what comes of them, in their order.
    pub(super) async fn each_on_the_pool<I: Send + 'static, T: Send + 'static>(
        self: &Arc<Self>,
        deadline: Instant,
        inputs: Vec<I>,
        work: impl Fn(&Self, I) -> T + Send + Sync + 'static,
    ) -> Result<Vec<T>, Refusal> {
        let count = inputs.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        let (done, results) = oneshot::channel();
        let waiting = inputs.into_iter().map(Part::Waiting).collect();
        let (parts, work) = (Arc::new(Parts { parts: Mutex::new(waiting), done }), Arc::new(work));
        let _waits = Waits(Arc::downgrade(&parts));
        // None is left here, so that one of them is the last.
        for (index, parts) in std::iter::repeat_n(parts, count).enumerate() {
            let (core, work) = (Arc::clone(self), Arc::clone(&work));
            self.pool.spawn_fifo(move || {
                let input = if deadline > Instant::now() { parts.begin(index) } else { None };
                if let Some(input) = input {
                    parts.end(index, work(&core, input));
                }
                // After a panic perhaps nobody is: then the sender is dropped without a word.
                if let Some(parts) = Arc::into_inner(parts) {
                    parts.hand_over();
                }
            });
        }
        match tokio::time::timeout_at(deadline.into(), results).await {
            Ok(Ok(results)) => Ok(results),
            Ok(Err(_)) if deadline > Instant::now() => Err(not_done()),
            Ok(Err(_)) | Err(_) => Err(Refusal::Deadline),
        }
    }
}

fn not_done() -> Refusal {
    let message = "the request could not be prepared: this is an error in forebay".to_owned();
    Refusal::Worker { kind: "Internal".to_owned(), message }
}
