//! The thread of an attachment that ends leases when nobody receives: asleep while nothing is in flight.

use std::{sync::Arc, sync::atomic::Ordering, thread, time::Duration};

use forebay_os::{OsError, futex, signals};

use super::{CudaError, side::Shared};

/// Between two looks at what is in flight, at first and at most. Who receives looks sooner.
const FIRST: Duration = Duration::from_micros(100);
const LONGEST: Duration = Duration::from_micros(500);
/// How often it looks for something new before it sleeps for good: to wake it costs more than to copy a small message.
const LINGER: u32 = 10;

/// Starts the thread. It ends after the attachment, having unregistered its memory.
pub(super) fn start(shared: Arc<Shared>) -> Result<(), CudaError> {
    let thread = thread::Builder::new().name("forebay-cuda".to_owned()).stack_size(256 << 10);
    let started = thread.spawn(move || {
        // A thread that cannot block signals still reaps; they would only be delivered here.
        let _ = signals::block_all_signals_on_this_thread();
        run(&shared);
    });
    started.map(drop).map_err(|e| OsError::new("clone", "the thread that follows copies", e).into())
}

fn run(shared: &Arc<Shared>) {
    // It captures nothing itself, and what it asks is no concern of captures elsewhere (pytorch#104487).
    shared.api.aside_for_good();
    // Once and for all: to go back to another device after each look would make a context there.
    shared.settle();
    let (mut pause, mut idle) = (FIRST, LINGER);
    loop {
        let seen = shared.bell.load(Ordering::SeqCst);
        let left = shared.reap();
        if left == 0 && shared.gone.load(Ordering::SeqCst) {
            break;
        }
        if left == 0 && idle >= LINGER {
            shared.asleep.store(true, Ordering::SeqCst);
            futex::wait(&shared.bell, seen, None);
            shared.asleep.store(false, Ordering::SeqCst);
            (pause, idle) = (FIRST, 0);
            continue;
        }
        idle = if left == 0 { idle + 1 } else { 0 };
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST);
        if shared.bell.load(Ordering::SeqCst) != seen {
            pause = FIRST;
        }
    }
    shared.unregister();
}
