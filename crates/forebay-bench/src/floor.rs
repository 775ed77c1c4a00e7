//! What no ring can beat, measured with the same clock as everything else: one cache line, one futex wake, one memcpy.

use std::{
    hint::{black_box, spin_loop},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use forebay_os::{clock, futex, process};
use serde::Serialize;

use crate::{
    Effort,
    summary::{Summary, Times},
};

/// How long a consumer sleeps before it is woken: a wake costs more the longer its core was idle.
pub(crate) const NAP: Duration = Duration::from_micros(200);

/// A word with a line, and the line that the prefetcher takes with it, to itself.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line(AtomicU64);

/// What the hardware and the kernel take for their part.
#[derive(Debug, Clone, Serialize)]
pub struct Floors {
    /// One reading of the clock, ns. Every latency contains one.
    pub clock_ns: f64,
    /// A line written on one core and seen on the other, ns.
    pub cache_line: Summary,
    /// A thread asleep on a futex, woken from the other core, ns.
    pub futex: Summary,
    /// Copies into memory that is there already: bytes, GB/s.
    pub memcpy: Vec<(u64, f64)>,
}

impl Floors {
    /// Time for a copy of this many bytes, ns, from the nearest size that was measured.
    pub(crate) fn copy_ns(&self, bytes: u64) -> f64 {
        let nearest = self.memcpy.iter().min_by_key(|(size, _)| size.abs_diff(bytes));
        nearest.map_or(0.0, |&(_, rate)| bytes as f64 / rate)
    }
}

/// What reading the clock costs.
pub(crate) fn clock_ns() -> f64 {
    const READINGS: u32 = 20_000;
    let start = Instant::now();
    for _ in 0..READINGS {
        black_box(clock::monotonic_ns());
    }
    start.elapsed().as_nanos() as f64 / f64::from(READINGS)
}

/// One line, one way, between the two cores.
pub(crate) fn cache_line(pinned: Option<(usize, usize)>, effort: Effort) -> Summary {
    let (there, back) = (Line::default(), Line::default());
    let rounds = effort.messages.min(20_000);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            let _ = process::pin(pinned.map(|(_, cpu)| cpu));
            let mut times = Times::new();
            let mut last = 0;
            for round in 1..=rounds {
                let stamp = loop {
                    match there.0.load(Ordering::Acquire) {
                        stamp if stamp != last => break stamp,
                        _ => spin_loop(),
                    }
                };
                times.record(clock::monotonic_ns().saturating_sub(stamp));
                last = stamp;
                back.0.store(round, Ordering::Release);
            }
            times.summary()
        });
        let _ = process::pin(pinned.map(|(cpu, _)| cpu));
        for round in 1..=rounds {
            there.0.store(clock::monotonic_ns(), Ordering::Release);
            while back.0.load(Ordering::Acquire) != round {
                spin_loop();
            }
        }
        other.join().unwrap_or_default()
    })
}

/// A wake of a thread that has slept for [`NAP`].
pub(crate) fn futex_wake(pinned: Option<(usize, usize)>, effort: Effort) -> Summary {
    let (bell, stamp, back) = (AtomicU32::new(0), Line::default(), Line::default());
    let rounds = (effort.time.as_micros() / (2 * NAP.as_micros())).clamp(100, 2000) as u64;
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            let _ = process::pin(pinned.map(|(_, cpu)| cpu));
            let mut times = Times::new();
            for round in 1..=rounds {
                while bell.load(Ordering::Acquire) != round as u32 {
                    futex::wait(&bell, round as u32 - 1, None);
                }
                times.record(clock::monotonic_ns().saturating_sub(stamp.0.load(Ordering::Relaxed)));
                back.0.store(round, Ordering::Release);
            }
            times.summary()
        });
        let _ = process::pin(pinned.map(|(cpu, _)| cpu));
        for round in 1..=rounds {
            nap();
            stamp.0.store(clock::monotonic_ns(), Ordering::Relaxed);
            bell.store(round as u32, Ordering::Release);
            futex::wake(&bell, 1);
            while back.0.load(Ordering::Acquire) != round {
                spin_loop();
            }
        }
        other.join().unwrap_or_default()
    })
}

/// Keeps this core busy while the other side falls asleep.
pub(crate) fn nap() {
    let start = Instant::now();
    while start.elapsed() < NAP {
        spin_loop();
    }
}

/// GB/s of a copy of `bytes` into memory that was touched before.
pub(crate) fn memcpy(bytes: u64, effort: Effort) -> f64 {
    let size = usize::try_from(bytes).unwrap_or(usize::MAX).max(1);
    let (from, mut to) = (vec![1u8; size], vec![2u8; size]);
    let mut times = Times::new();
    let start = Instant::now();
    let mut copies = 0;
    while copies < 5 || copies < 100_000 && start.elapsed() < effort.time / 4 {
        copies += 1;
        let begin = clock::monotonic_ns();
        black_box(&mut to).copy_from_slice(black_box(&from));
        times.record(clock::monotonic_ns() - begin);
    }
    bytes as f64 / times.summary().p50.max(1) as f64
}
