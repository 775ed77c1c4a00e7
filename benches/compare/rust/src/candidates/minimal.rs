//! The floor: the least that hands a message over, with no safety at all. `floor.c` reads the same ring for Python.
//!
//! ```text
//!   0x000   head: u64            messages that were released      written by the receiver
//!   0x080   entry[64]            128 bytes each
//!             0x00  number + 1   stored last: the commit          written by the sender
//!             0x08  payload of up to 64 bytes                     (larger ones: slot, number modulo slots)
//!   0x2080  slots × stride       payloads of more than 64 bytes
//! ```
//! The receiver's position is looked at only when the ring may be full. Nobody notices a death, checks a length or keeps a
//! message: it is gone when the next one is asked for.

use std::{
    fs::File,
    hint::spin_loop,
    slice,
    sync::atomic::{AtomicU64, Ordering},
};

use memmap2::{MmapOptions, MmapRaw};

use crate::{
    Failure,
    drive::{Receive, Send, stamp},
    plan::Plan,
};

const ENTRY: usize = 128;
const ENTRIES: usize = 64;
const INLINE: usize = 64;
const SLOTS_AT: usize = ENTRY + ENTRIES * ENTRY;

struct Ring {
    map: MmapRaw,
    bytes: usize,
    slots: u64,
    stride: usize,
}

impl Ring {
    fn open(plan: &Plan, create: bool) -> Result<Self, Failure> {
        let path = plan.dir.join("minimal");
        let file = File::options().read(true).write(true).create(create).truncate(false).open(path)?;
        // Not a multiple of a page: neighbouring slots would fall into the same sets of the caches.
        let stride = plan.bytes.next_multiple_of(64) + 64;
        let slots = plan.slots.min(ENTRIES);
        let length = SLOTS_AT + if plan.bytes > INLINE { slots * stride } else { 0 };
        if create {
            file.set_len(length as u64)?;
        }
        let map = MmapOptions::new().len(length).populate().map_raw(&file)?;
        Ok(Self { map, bytes: plan.bytes, slots: slots as u64, stride })
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: all offsets used are of words inside the mapping, 8-aligned, and both sides use them as atomics.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().wrapping_add(offset).cast()) }
    }

    fn entry(&self, number: u64) -> usize {
        ENTRY + (number % ENTRIES as u64) as usize * ENTRY
    }

    fn payload(&self, number: u64) -> *mut u8 {
        let offset = if self.bytes <= INLINE {
            self.entry(number) + 8
        } else {
            SLOTS_AT + (number % self.slots) as usize * self.stride
        };
        self.map.as_mut_ptr().wrapping_add(offset)
    }
}

/// Writes entries.
pub(crate) struct Sender {
    ring: Ring,
    number: u64,
    /// What the receiver had released when it was last looked at.
    head: u64,
}

impl Sender {
    pub(crate) fn new(plan: &Plan) -> Result<Self, Failure> {
        Ok(Self { ring: Ring::open(plan, true)?, number: 0, head: 0 })
    }
}

impl Send for Sender {
    fn send(&mut self, first: u64, last: u64) -> Result<(), Failure> {
        while self.number - self.head == self.ring.slots {
            spin_loop();
            self.head = self.ring.word(0).load(Ordering::Acquire);
        }
        // SAFETY: the payload lies in the mapping, and until the number is stored it is this side's alone.
        let bytes = unsafe { slice::from_raw_parts_mut(self.ring.payload(self.number), self.ring.bytes) };
        stamp(bytes, first, last);
        let commit = self.ring.word(self.ring.entry(self.number));
        self.number += 1;
        commit.store(self.number, Ordering::Release);
        Ok(())
    }
}

/// Reads them.
pub(crate) struct Receiver {
    ring: Ring,
    number: u64,
}

impl Receiver {
    pub(crate) fn new(plan: &Plan) -> Result<Self, Failure> {
        Ok(Self { ring: Ring::open(plan, false)?, number: 0 })
    }
}

impl Receive for Receiver {
    fn receive(&mut self, look: &mut impl FnMut(&[u8])) -> Result<(), Failure> {
        let entry = self.ring.word(self.ring.entry(self.number));
        while entry.load(Ordering::Acquire) != self.number + 1 {
            spin_loop();
        }
        // SAFETY: the payload lies in the mapping, and until the head is stored nobody writes it.
        look(unsafe { slice::from_raw_parts(self.ring.payload(self.number), self.ring.bytes) });
        self.number += 1;
        self.ring.word(0).store(self.number, Ordering::Release);
        Ok(())
    }
}
