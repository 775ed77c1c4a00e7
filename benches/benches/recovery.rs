//! What a death costs who is left: a look at the slots of a ring, of which a dead consumer held all, half or none.
//!
//! The words lie on the heap, as nobody else touches them here; finding out that somebody is dead (a lock byte is probed)
//! is left out.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use forebay_layout::{
    Backing, Kind, WhenFull,
    geometry::{Geometry, Plan, SlotClass},
    pool::SLOT_WORD_STRIDE,
};
use forebay_ring::{AtomicU64, MemberId, Pool, SlotWord, Words, queue};

#[derive(Debug, Clone)]
struct Heap(Arc<[AtomicU64]>);

impl Words for Heap {
    fn word(&self, index: usize) -> &AtomicU64 {
        &self.0[index]
    }
}

fn plan(slots: u32) -> Plan {
    let geometry = Geometry {
        kind: Kind::Queue,
        backing: Backing::Posix,
        when_full: WhenFull::Block,
        max_attempts: 0,
        quota: 0,
        max_consumers: 2,
        max_fields: 1,
        writable: false,
        schema_bytes: 0,
        classes: [SlotClass { slots, slot_bytes: 64 }].into_iter().collect(),
    };
    geometry.plan().expect("a legal ring")
}

/// The time to mend a ring of `slots` of which every `share`-th (0: none) was held by a dead consumer.
fn mend(slots: u32, share: u32, iters: u64) -> Duration {
    let plan = plan(slots);
    let heap = Heap((0..plan.pool_bytes / 8).map(|_| AtomicU64::new(0)).collect());
    let pool = Pool::new(heap.clone(), &plan);
    let dead = MemberId { index: 1, incarnation: 1 };
    let mut total = Duration::ZERO;
    for _ in 0..iters {
        let held = |slot: u32| share != 0 && slot.is_multiple_of(share);
        for slot in 0..slots {
            let full = SlotWord::full(1, 0);
            let word = if held(slot) { full.claimed_by(dead) } else { full };
            heap.word(plan.slot_word + slot as usize * SLOT_WORD_STRIDE).store(word.raw(), Ordering::Relaxed);
        }
        let start = Instant::now();
        let mended = queue::mend(&pool, 0, |_| false).expect("words that a peer writes");
        total += start.elapsed();
        assert_eq!(mended.returned, (0..slots).filter(|&slot| held(slot)).count() as u32);
    }
    total
}

fn recovery(c: &mut Criterion) {
    for slots in [16, 1024, 65_536] {
        for (share, name) in [(1, "all"), (2, "half"), (0, "none")] {
            c.bench_with_input(BenchmarkId::new(format!("ring/mend/{name}_of"), slots), &slots, |b, &slots| {
                b.iter_custom(|iters| mend(slots, share, iters));
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20);
    targets = recovery
}
criterion_main!(benches);
