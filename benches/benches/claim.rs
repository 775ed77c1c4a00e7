//! Consumers that share a queue: what a message costs when others claim from the same ring, and releases that do not
//! come in the order of publishing.

use std::{
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use forebay::{Consumer, DType, FieldSpec, Kind, Producer};
use forebay_benches::{Pair, RUN};

/// Messages in the ring when the consumers start.
const FILLED: u32 = 4096;

/// Takes what there is: how long that took, and how many messages it was.
fn empty(member: &mut Consumer, start: &Barrier) -> (Duration, u32) {
    start.wait();
    let (begun, mut taken) = (Instant::now(), 0);
    while member.try_recv().expect("a healthy ring").is_some() {
        taken += 1;
    }
    (begun.elapsed(), taken)
}

/// Fills a ring and lets `consumers` threads empty it at once. The time until the last of them finds nothing, for as many
/// rounds as `iters` messages take.
fn compete(consumers: u32, iters: u64) -> Duration {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let options = Producer::options("compete").dir(dir.path()).slots(FILLED).slot_bytes(64).max_consumers(consumers);
    let mut producer = options.create().expect("room for the ring");
    let options = Consumer::options("compete").dir(dir.path());
    let mut members: Vec<_> = (0..consumers).map(|_| options.clone().attach().expect("a living producer")).collect();
    let rounds = iters.div_ceil(FILLED.into());
    let mut total = Duration::ZERO;
    for _ in 0..rounds {
        for _ in 0..FILLED {
            let fields = [FieldSpec::new("x", DType::U8, &[64])];
            producer.loan(&fields).expect("a free slot").publish().expect("a publishable loan");
        }
        let start = Barrier::new(consumers as usize);
        let ended: Vec<_> = thread::scope(|scope| {
            let start = &start;
            let run = |member| scope.spawn(move || empty(member, start));
            let running: Vec<_> = members.iter_mut().map(run).collect();
            running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert_eq!(ended.iter().map(|(_, taken)| taken).sum::<u32>(), FILLED, "each message is claimed once");
        total += ended.iter().map(|(time, _)| *time).max().unwrap_or_default();
    }
    total.mul_f64(iters as f64 / (rounds * u64::from(FILLED)) as f64)
}

fn claim(c: &mut Criterion) {
    for consumers in [1, 2] {
        c.bench_with_input(BenchmarkId::new("rust/drain_queue/consumers", consumers), &consumers, |b, &consumers| {
            b.iter_custom(|iters| compete(consumers, iters));
        });
    }
}

/// The time of `iters` releases, in the order in which the messages were published or in another.
fn release_in(order: impl Fn(usize) -> usize, iters: u64) -> Duration {
    let mut pair = Pair::new(Kind::Queue, 64);
    let mut total = Duration::ZERO;
    for _ in 0..iters.div_ceil(RUN) {
        for _ in 0..RUN {
            pair.publish(1);
        }
        let mut held: Vec<_> = (0..RUN).map(|_| Some(pair.receive())).collect();
        let start = Instant::now();
        for i in 0..held.len() {
            drop(held[order(i)].take());
        }
        total += start.elapsed();
        assert!(held.iter().all(Option::is_none), "every message was released");
    }
    total.mul_f64(iters as f64 / (iters.div_ceil(RUN) * RUN) as f64)
}

fn release(c: &mut Criterion) {
    let run = RUN as usize;
    c.bench_function("rust/release/in_order", |b| b.iter_custom(|iters| release_in(|i| i, iters)));
    c.bench_function("rust/release/reversed", |b| b.iter_custom(|iters| release_in(|i| run - 1 - i, iters)));
    // An odd stride visits each of a power of two once.
    c.bench_function("rust/release/scattered", |b| b.iter_custom(|iters| release_in(|i| i * 13 % run, iters)));
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20);
    targets = claim, release
}
criterion_main!(benches);
