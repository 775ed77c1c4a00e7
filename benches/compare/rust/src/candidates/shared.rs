//! The `shared_memory` crate with a flag that both sides spin on: what is written by hand in an afternoon. One place, so the
//! sender waits for every answer. Written in place.

use std::{
    hint::spin_loop,
    slice,
    sync::atomic::{AtomicU32, Ordering},
};

use shared_memory::{Shmem, ShmemConf};

use crate::{
    Failure,
    drive::{Receive, Send, stamp},
    plan::Plan,
};

/// Where the payload begins, after the flag and its line.
const PAYLOAD: usize = 128;

/// Its name in /dev/shm, where the pair's folder has the plain one.
fn id(plan: &Plan) -> String {
    format!("{}-flag", plan.name)
}

/// The mapping, from either side.
struct Place {
    memory: Shmem,
    bytes: usize,
}

impl Place {
    fn flag(&self) -> &AtomicU32 {
        // SAFETY: the mapping begins with the flag, is page-aligned and lives as long as `self`; both sides only use atomics.
        unsafe { AtomicU32::from_ptr(self.memory.as_ptr().cast()) }
    }

    fn wait(&self, value: u32) {
        while self.flag().load(Ordering::Acquire) != value {
            spin_loop();
        }
    }
}

/// Fills the place when it is empty.
pub(crate) struct Sender(Place);

impl Sender {
    pub(crate) fn new(plan: &Plan) -> Result<Self, Failure> {
        let memory = ShmemConf::new().os_id(id(plan)).size(PAYLOAD + plan.bytes).create()?;
        Ok(Self(Place { memory, bytes: plan.bytes }))
    }
}

impl Send for Sender {
    fn send(&mut self, first: u64, last: u64) -> Result<(), Failure> {
        self.0.wait(0);
        let at = self.0.memory.as_ptr().wrapping_add(PAYLOAD);
        // SAFETY: the mapping has that many bytes after the flag, and while the flag is 0 they are this side's alone.
        let bytes = unsafe { slice::from_raw_parts_mut(at, self.0.bytes) };
        stamp(bytes, first, last);
        self.0.flag().store(1, Ordering::Release);
        Ok(())
    }
}

/// Empties it.
pub(crate) struct Receiver(Place);

impl Receiver {
    pub(crate) fn new(plan: &Plan) -> Result<Self, Failure> {
        let memory = ShmemConf::new().os_id(id(plan)).open()?;
        Ok(Self(Place { memory, bytes: plan.bytes }))
    }
}

impl Receive for Receiver {
    fn receive(&mut self, look: &mut impl FnMut(&[u8])) -> Result<(), Failure> {
        self.0.wait(1);
        let at = self.0.memory.as_ptr().wrapping_add(PAYLOAD);
        // SAFETY: the mapping has that many bytes after the flag, and while the flag is 1 nobody writes them.
        look(unsafe { slice::from_raw_parts(at, self.0.bytes) });
        self.0.flag().store(0, Ordering::Release);
        Ok(())
    }
}
