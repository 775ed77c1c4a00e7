//! A peer that writes whatever it likes wherever it may: errors are fine, wrong values are its doing; a panic, a fault or
//! a hang of the others is not.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use forebay::{Consumer, Kind, LoanError, WhenFull};
use forebay_testkit::{Place, ledger, watchdog::within};

use crate::stage::{attach, here};

/// How long each one scribbles: 1.2 s, or a tenth of `FOREBAY_SOAK_S`.
fn span() -> Duration {
    let seconds: Option<u64> = std::env::var("FOREBAY_SOAK_S").ok().and_then(|s| s.parse().ok());
    Duration::from_millis(seconds.map_or(1200, |s| s * 100))
}

/// Whether the control thread of a ring of this process lives: a panic would have ended it.
fn is_served(ring: &str) -> bool {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    tasks.map(name).any(|name| name.trim_end() == format!("forebay-{ring}"))
}

/// Overwrites words of `objects` at random until told to stop; says where it started from.
fn scribble(objects: &[PathBuf], seed: u64, stop: &AtomicBool) {
    let files: Vec<_> = objects
        .iter()
        .map(|path| {
            let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
            let words = file.metadata().unwrap().len() / 8;
            (file, words)
        })
        .collect();
    let mut dice = seed | 1;
    let mut roll = |n: u64| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice % n
    };
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..64 {
            let (file, words) = &files[roll(files.len() as u64) as usize];
            // Not the prefix, which is only read at attach: what is looked at all the time.
            let at = 8 * (4 + roll(words - 4));
            let mut old = [0; 8];
            file.read_exact_at(&mut old, at).unwrap();
            let old = u64::from_le_bytes(old);
            let new = match roll(6) {
                0 => 0,
                1 => u64::MAX,
                2 => old ^ 1 << roll(64),
                3 => old.wrapping_add(roll(3)).wrapping_sub(1),
                4 => roll(1 << 40) << 24 | roll(8),
                _ => roll(40),
            };
            file.write_all_at(&new.to_le_bytes(), at).unwrap();
        }
        thread::yield_now();
    }
}

/// Receives what it can; attaches anew when its handle is poisoned.
fn receive(place: &std::path::Path, ring: &str, stop: &AtomicBool) {
    let options = || Consumer::options(ring).dir(place).timeout(Some(Duration::ZERO)).reconnect(Duration::ZERO);
    let mut consumer: Option<Consumer> = None;
    let mut kept = std::collections::VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        let Some(own) = &mut consumer else {
            consumer = options().attach().ok();
            continue;
        };
        match own.recv_timeout(Duration::from_millis(1)) {
            Ok(message) => {
                // What it says is anybody's guess; reading it is not a fault.
                if let Some(tensor) = message.tensor_at(0) {
                    std::hint::black_box(tensor.as_bytes().iter().map(|&byte| u64::from(byte)).sum::<u64>());
                }
                let _ = (message.user().len(), message.held_for(), message.attempts(), own.held().len());
                if message.sequence() % 3 == 0 {
                    message.nack();
                }
                kept.push_back(message);
                if kept.len() > 3 {
                    kept.pop_front();
                }
            }
            Err(forebay::RecvError::Timeout { .. } | forebay::RecvError::Quota { .. }) => kept.clear(),
            Err(_) => consumer = None,
        }
    }
}

fn survives(ring: &'static str, kind: Kind, when_full: WhenFull, parts: &[&str]) {
    let place = Place::new();
    let options = here(&place, ring).kind(kind).when_full(when_full).max_consumers(2);
    let mut producer = options.full_timeout(Some(Duration::from_millis(2))).create().unwrap();
    drop(attach(&place, ring).attach().unwrap());
    let objects: Vec<PathBuf> = parts.iter().map(|part| place.object(ring, part)).collect();
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64);
    eprintln!("scribble seed {seed}");
    let stop = Arc::new(AtomicBool::new(false));
    let path = place.path().to_owned();
    let mut helpers = Vec::new();
    helpers.push(thread::spawn({
        let stop = Arc::clone(&stop);
        move || scribble(&objects, seed, &stop)
    }));
    for _ in 0..2 {
        let (path, stop) = (path.clone(), Arc::clone(&stop));
        helpers.push(thread::spawn(move || receive(&path, ring, &stop)));
    }
    let (start, span) = (Instant::now(), span());
    within("a scribbled ring's calls returning", move || {
        let mut published = 0_u64;
        while start.elapsed() < span {
            let spec = [forebay::FieldSpec::new(ledger::FIELD, forebay::DType::U64, &[64])];
            match producer.loan(&spec) {
                Ok(mut loan) => {
                    ledger::fill(loan.tensor_mut(ledger::FIELD).unwrap(), published);
                    let _ = loan.set_user(b"scribble");
                    loan.publish().unwrap();
                    published += 1;
                }
                Err(LoanError::Full { .. }) => {}
                Err(e) => panic!("{e}"),
            }
            if published.is_multiple_of(50) {
                let _ = (producer.take_dead_letters().len(), producer.stats(), producer.consumers());
                let _ = producer.drain(Some(Duration::from_millis(1)));
                let _ = forebay::Producer::options(ring).dir(&path).create();
            }
        }
        stop.store(true, Ordering::Relaxed);
        for helper in helpers {
            helper.join().unwrap();
        }
        assert!(is_served(ring), "the control thread is gone");
        producer.discard();
    });
    place.sweep();
}

#[test]
fn a_queue_survives_a_member_that_scribbles_over_the_pool() {
    survives("scr-a", Kind::Queue, WhenFull::Block, &["pool"]);
}

#[test]
fn a_lossy_queue_survives_a_member_that_scribbles_over_the_pool() {
    survives("scr-b", Kind::Queue, WhenFull::DropOldest, &["pool"]);
}

#[test]
fn a_broadcast_ring_survives_members_that_scribble_over_their_parts() {
    survives("scr-c", Kind::Broadcast, WhenFull::Block, &["m0", "m1"]);
    survives("scr-d", Kind::Broadcast, WhenFull::DropOldest, &["m0", "m1"]);
}

#[test]
fn consumers_survive_a_producer_that_scribbles_over_the_ring() {
    survives("scr-e", Kind::Queue, WhenFull::Block, &["ring"]);
    survives("scr-f", Kind::Broadcast, WhenFull::DropOldest, &["ring", "m1"]);
}
