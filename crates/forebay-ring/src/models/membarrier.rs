//! membarrier(2) as a model of E5, and the variant with a fence on both sides.
//!
//! The sleeper's call makes every other running thread execute a full barrier at some point between its start and its
//! end; the thread that is hit chooses neither when nor knows of it. Here the point is chosen from outside: before
//! access number `at` of the waker, for every `at` there is. The waker waits there until the call has begun, executes
//! the barrier, and lets the call end. So each run has the barrier at one place, and all runs together have it at all of
//! them, before the waker's first access and after its last included. The waker itself executes no fence: that is what
//! the compiler's fence in [`waker_fence`](crate::waker_fence) is for a processor.
//!
//! What this takes for granted is the kernel's promise, all that is before the barrier in one thread happens before all
//! that is after it in the other. What it shows is that this is enough.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use loom::sync::mpsc::{Receiver, Sender, channel};

use super::{memory::Fate, rig::check};
use crate::sync::{Ordering, fence};

/// How the two sides of E5 are ordered.
#[derive(Debug, Clone)]
pub(super) enum Barriers {
    /// A fence on each side.
    Fences,
    /// The sleeper calls membarrier, which hits the waker before this access; the flag says that it had so many.
    Membarrier(usize, Arc<AtomicBool>),
}

/// Runs a model of sleeping and waking with each kind of barriers, at each place.
pub(super) fn check_barriers(preemptions: usize, model: impl Fn(&Barriers) + Send + Sync + Clone + 'static) {
    let fences = model.clone();
    check(preemptions, move || fences(&Barriers::Fences));
    for at in 0.. {
        let within = Arc::new(AtomicBool::new(false));
        let barriers = Barriers::Membarrier(at, Arc::clone(&within));
        let model = model.clone();
        check(preemptions, move || model(&barriers));
        if !within.load(Relaxed) {
            assert!(at > 1, "the waker has no accesses");
            break;
        }
    }
}

/// The sleeper's half.
pub(super) struct Sleeper(Option<(Sender<()>, Receiver<()>)>);

/// The waker's half.
pub(super) struct Waker(Option<Arc<Target>>);

/// A thread that a membarrier can hit.
#[derive(Debug)]
pub(super) struct Target {
    left: AtomicUsize,
    within: Arc<AtomicBool>,
    call: Mutex<Option<(Receiver<()>, Sender<()>)>>,
}

impl Barriers {
    /// Both halves, for one run of a model.
    pub(super) fn halves(&self) -> (Sleeper, Waker) {
        let Self::Membarrier(at, within) = self else { return (Sleeper(None), Waker(None)) };
        let ((begin, begun), (end, ended)) = (channel(), channel());
        let (left, within) = (AtomicUsize::new(*at), Arc::clone(within));
        let target = Target { left, within, call: Mutex::new(Some((begun, end))) };
        (Sleeper(Some((begin, ended))), Waker(Some(Arc::new(target))))
    }
}

impl Sleeper {
    /// What a sleeper executes after it has set its mark.
    pub(super) fn barrier(&self) {
        fence(Ordering::SeqCst);
        if let Some((begin, ended)) = &self.0 {
            begin.send(()).expect("the waker is there");
            ended.recv().expect("the waker is there");
            fence(Ordering::SeqCst);
        }
    }

    /// A sleeper that does not sleep after all. That it calls membarrier all the same changes nothing for it.
    pub(super) fn stays_awake(&self) {
        self.barrier();
    }
}

impl Waker {
    /// What happens to who wakes: its handles must be under it.
    pub(super) fn fate(&self) -> Option<Fate> {
        self.0.clone().map(Fate::Barrier)
    }

    /// Whether this waker executes a fence of its own.
    pub(super) fn fences(&self) -> bool {
        self.0.is_none()
    }

    /// The waker's last access is over: a call that has not hit it yet does now.
    pub(super) fn ends(&self) {
        if let Some(target) = &self.0 {
            target.hit();
        }
    }
}

impl Target {
    /// Comes before each access.
    pub(super) fn step(&self) {
        match self.left.load(Relaxed) {
            0 => {
                self.within.store(true, Relaxed);
                self.hit();
            }
            more => self.left.store(more - 1, Relaxed),
        }
    }

    fn hit(&self) {
        let call = self.call.lock().expect("one thread uses it").take();
        if let Some((begun, end)) = call {
            begun.recv().expect("the sleeper is there");
            fence(Ordering::SeqCst);
            end.send(()).expect("the sleeper is there");
        }
    }
}
