//! What it costs to come and go: create a ring, attach to it, leave it.
//!
//! These happen once in a process's life; they are measured so that a slow one is noticed, not to be made fast.

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use forebay::{Consumer, Kind, Producer};
use forebay_benches::Pair;

fn attach(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let options = || Producer::options("come-and-go").dir(dir.path()).slots(4).slot_bytes(4096);
    let producer = options().create().expect("room for the ring");
    c.bench_function("rust/attach/queue", |b| {
        b.iter_custom(|iters| {
            let mut total = Duration::ZERO;
            for _ in 0..iters {
                let start = Instant::now();
                let consumer = Consumer::options("come-and-go").dir(dir.path()).attach().expect("a living producer");
                total += start.elapsed();
                drop(consumer);
            }
            total
        });
    });
    producer.discard();
    c.bench_function("rust/create/queue", |b| {
        b.iter_custom(|iters| {
            let mut total = Duration::ZERO;
            for _ in 0..iters {
                let start = Instant::now();
                let producer = options().create().expect("room for the ring");
                total += start.elapsed();
                producer.discard();
            }
            total
        });
    });
    Pair::new(Kind::Queue, 64).check();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20);
    targets = attach
}
criterion_main!(benches);
