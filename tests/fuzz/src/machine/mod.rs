//! The ring protocol as a machine: sequences of operations of a producer and up to three members, any of whom may die
//! before any access to shared memory, against an account of every message that was published.
//!
//! Nothing lost, nothing twice, nothing torn: the account knows of each message who has it, who may get it next, and
//! with which payload. What a death in the middle of an operation leaves is read from the one word that decides, as
//! whoever mends it does.

mod broadcast;
mod queue;

use std::cell::Cell;

use forebay_layout::{
    Backing, DType, Kind, WhenFull,
    descriptor::TensorMeta,
    geometry::{Geometry, SlotClass},
};
use forebay_ring::Draft;

use crate::bytes::Bytes;

const STEPS: u32 = 400;
const MEMBERS: usize = 3;

/// The target `machine`.
pub fn run(data: &[u8]) {
    let mut input = Bytes::new(data);
    let bits = input.byte();
    if bits & 1 == 0 {
        queue::run(bits >> 1, input);
    } else {
        broadcast::run(bits >> 1, input);
    }
}

fn geometry(kind: Kind, bits: u8) -> Geometry {
    let small = SlotClass { slots: 1 + u32::from(bits & 3), slot_bytes: 64 };
    let large = SlotClass { slots: 1, slot_bytes: 128 };
    Geometry {
        kind,
        backing: Backing::Posix,
        when_full: if bits & 4 == 0 { WhenFull::Block } else { WhenFull::DropOldest },
        writable: false,
        max_consumers: if bits & 8 == 0 { MEMBERS as u32 } else { 1 },
        max_attempts: u32::from(bits >> 4 & 3),
        quota: 0,
        max_fields: 1,
        schema_bytes: 0,
        classes: if bits & 0x40 == 0 { [small].into_iter().collect() } else { [small, large].into_iter().collect() },
    }
}

/// What lies in the slots: the number of the loan that wrote it, several times over.
struct Payload(Vec<[Cell<u64>; 4]>);

impl Payload {
    fn new(slots: u32) -> Self {
        Self((0..slots).map(|_| Default::default()).collect())
    }

    fn write(&self, slot: u32, id: u64) {
        self.0[slot as usize].iter().for_each(|word| word.set(id));
    }

    /// Panics if it is not that of loan `id`.
    fn check(&self, slot: u32, id: u64) {
        let found = self.0[slot as usize].each_ref().map(Cell::get);
        assert_eq!(found, [id; 4], "slot {slot} is torn, or of another message");
    }
}

/// Publishes as the library does: one tensor, the loan's number as correlation id and user data.
fn with_draft<R>(id: u64, publish: impl FnOnce(&Draft<'_>) -> R) -> R {
    let field = [TensorMeta::new(DType::U8, &[8], 0).unwrap()];
    let user = id.to_le_bytes();
    publish(&Draft { correlation_id: id, payload_bytes: 64, fields: &field, user: &user, ..Draft::default() })
}
