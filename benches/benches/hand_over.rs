//! What one message costs on each side when nobody has to wait: loan and publish, a look at an empty and at a full
//! ring, and the release.
//!
//! Both ends run in one thread, so no cache line travels: these are instruction costs. What a hand-over between two
//! processes costs is measured end to end, not here.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use forebay::Kind;
use forebay_benches::{Pair, RUN};

/// Which part of the hand-over is timed.
#[derive(Clone, Copy)]
enum Part {
    Publish,
    Receive,
    Release,
}

/// Hands over `iters` messages in runs, each part of a run on its own, and adds up the time of `part`.
fn time(pair: &mut Pair, part: Part, iters: u64) -> Duration {
    let mut total = Duration::ZERO;
    let mut held = Vec::with_capacity(usize::try_from(RUN).unwrap_or(0));
    let mut left = iters;
    while left > 0 {
        let run = left.min(RUN);
        let start = Instant::now();
        for _ in 0..run {
            pair.publish(1);
        }
        let published = Instant::now();
        for _ in 0..run {
            held.push(pair.receive());
        }
        let received = Instant::now();
        held.clear();
        let released = Instant::now();
        total += match part {
            Part::Publish => published - start,
            Part::Receive => received - published,
            Part::Release => released - received,
        };
        left -= run;
    }
    total
}

fn hand_over(c: &mut Criterion) {
    for (kind, name) in [(Kind::Queue, "queue"), (Kind::Broadcast, "broadcast")] {
        for bytes in [64, 1 << 20] {
            let mut pair = Pair::new(kind, bytes);
            pair.check();
            let parts = [(Part::Publish, "loan_publish"), (Part::Receive, "try_recv_full"), (Part::Release, "release")];
            for (part, label) in parts {
                c.bench_with_input(BenchmarkId::new(format!("rust/{label}/{name}"), bytes), &part, |b, part| {
                    b.iter_custom(|iters| time(&mut pair, *part, iters));
                });
            }
        }
        let mut pair = Pair::new(kind, 64);
        pair.check();
        c.bench_function(&format!("rust/try_recv_empty/{name}"), |b| {
            b.iter(|| assert!(pair.consumer.try_recv().expect("a healthy ring").is_none()));
        });
    }
}

/// From a message to its elements: finding the field by name, and the cast alone.
fn view(c: &mut Criterion) {
    let mut pair = Pair::new(Kind::Queue, 4096);
    pair.check();
    pair.publish(7);
    let message = pair.receive();
    c.bench_function("rust/tensor_by_name", |b| b.iter(|| message.tensor(black_box("x")).expect("the field").nbytes()));
    let tensor = message.tensor("x").expect("the field");
    c.bench_function("rust/as_slice", |b| b.iter(|| black_box(&tensor).as_slice::<u8>().expect("bytes").len()));
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(50);
    targets = hand_over, view
}
criterion_main!(benches);
