//! A peer that writes whatever it likes wherever it may, as fast as it can, while the others work: errors are fine, wrong
//! values are its doing; a panic, a fault or a call that does not return is not.
//!
//! It writes through a mapping of its own, on a thread of this process or from another one (this program again, told by
//! its environment to be [`the_scribbler`]).

#![allow(unsafe_code, reason = "the scribbler writes to memory that nobody gave it")]

use std::{
    fs,
    ops::Range,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use forebay::{Consumer, DType, FieldSpec, Kind, LoanError, Producer, RecvError, WhenFull};
use forebay_layout::header::Header;
use forebay_os::{Access, Mapping};
use forebay_testkit::{Place, WATCHDOG, audit, ledger};

use crate::{
    rig::{Dice, LIMIT, count_panics, figures},
    stage::{attach, here},
};

/// How long each one scribbles: 0.7 s, or `SCRIBBLE_S`.
fn span() -> Duration {
    let seconds: Option<f64> = std::env::var("SCRIBBLE_S").ok().and_then(|s| s.parse().ok());
    Duration::from_secs_f64(seconds.unwrap_or(0.7))
}

// === the scribbler ===

/// Words of a mapped object.
struct Canvas(Mapping, Range<usize>);

impl Canvas {
    fn open(path: &Path, words: Range<usize>) -> Self {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let len = file.metadata().unwrap().len() as usize;
        assert!(words.start < words.end && words.end * 8 <= len);
        Self(Mapping::map(file.as_fd(), len, Access::ReadWrite).unwrap(), words)
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(self.1.contains(&index));
        // SAFETY: inside the mapping, whose length was compared with the range when it was made.
        let word = unsafe { self.0.base().cast::<AtomicU64>().add(index) };
        // SAFETY: aligned, alive as long as the mapping, and only ever accessed as an atomic; every pattern is a value.
        unsafe { word.as_ref() }
    }
}

/// Overwrites words of the canvases at random until told to stop. Returns how many.
fn scribble(canvases: &[Canvas], seed: u64, stop: impl Fn() -> bool) -> u64 {
    let mut dice = Dice::new(seed);
    let mut written = 0;
    while !stop() {
        for _ in 0..256 {
            let canvas = &canvases[dice.below(canvases.len() as u64) as usize];
            let at = canvas.1.start + dice.below(canvas.1.len() as u64) as usize;
            let word = canvas.word(at);
            let old = word.load(Relaxed);
            let new = match dice.below(7) {
                0 => 0,
                1 => u64::MAX,
                2 => old ^ 1 << dice.below(64),
                3 => old.wrapping_add(dice.below(3)).wrapping_sub(1),
                // A slot word, or a place, of a generation that may be.
                4 => dice.below(8) << 32 | dice.below(1 << 8),
                5 => dice.below(40),
                _ => dice.next(),
            };
            word.store(new, Relaxed);
            written += 1;
        }
        // Two processors are few for all that goes on here: the others are to get on as well.
        thread::yield_now();
    }
    written
}

/// Not a test: what the other process runs. `PATH:FROM:TO` of each canvas stand in its environment.
#[test]
#[ignore = "started by the other tests, as another process"]
fn the_scribbler() {
    let Ok(told) = std::env::var("FOREBAY_SCRIBBLER") else { return };
    let canvas = |told: &str| {
        let mut parts = told.split(':');
        let path = parts.next().unwrap().to_owned();
        let mut number = || parts.next().unwrap().parse().unwrap();
        Canvas::open(Path::new(&path), number()..number())
    };
    let canvases: Vec<Canvas> = told.split(',').map(canvas).collect();
    // Until it is killed; not much longer than that if nobody is left to do it.
    let end = Instant::now() + span() + 2 * WATCHDOG;
    scribble(&canvases, u64::from(std::process::id()), || Instant::now() > end);
}

/// Killed when dropped.
struct Process(Child);

impl Process {
    fn start(targets: &[(PathBuf, Range<usize>)]) -> Self {
        let told: Vec<String> =
            targets.iter().map(|(path, words)| format!("{}:{}:{}", path.display(), words.start, words.end)).collect();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "scribble::the_scribbler", "--ignored"]).env("FOREBAY_SCRIBBLER", told.join(","));
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// === its victims ===

/// What the victims did, and how long their longest call took.
#[derive(Debug, Default)]
struct Tally {
    received: AtomicU64,
    errors: AtomicU64,
    longest: Mutex<(Duration, &'static str)>,
}

impl Tally {
    fn time<R>(&self, what: &'static str, call: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = call();
        let took = start.elapsed();
        let mut longest = self.longest.lock().unwrap();
        if took > longest.0 {
            *longest = (took, what);
        }
        result
    }
}

/// Receives what it can; attaches anew when its handle is poisoned.
fn receive(place: &Path, ring: &str, tally: &Tally, stop: &AtomicBool) {
    let options = || Consumer::options(ring).dir(place).timeout(Some(Duration::ZERO)).reconnect(Duration::ZERO);
    let mut consumer: Option<Consumer> = None;
    let mut kept = std::collections::VecDeque::new();
    while !stop.load(Relaxed) {
        let Some(own) = &mut consumer else {
            consumer = tally.time("attach", || options().attach().ok());
            continue;
        };
        match tally.time("recv", || own.recv_timeout(Duration::from_millis(1))) {
            Ok(message) => {
                tally.received.fetch_add(1, Relaxed);
                // What it says is anybody's guess; where it lies is not.
                if let Err(what) = crate::messages::read(own, &message) {
                    panic!("{what}");
                }
                let _ = (message.attempts(), own.held().len());
                if message.sequence() % 3 == 0 {
                    message.nack();
                }
                kept.push_back(message);
                if kept.len() > 3 {
                    tally.time("release", || kept.pop_front());
                }
            }
            Err(RecvError::Timeout { .. } | RecvError::Quota { .. }) => kept.clear(),
            Err(_) => {
                tally.errors.fetch_add(1, Relaxed);
                consumer = None;
            }
        }
    }
}

/// Publishes as long as `span` lasts, and asks everything that can be asked. Returns how many it published.
fn publish(producer: &mut Producer, path: &Path, tally: &Tally, span: Duration) -> u64 {
    let (start, ring) = (Instant::now(), producer.ring().to_owned());
    let mut published = 0_u64;
    let spec = [FieldSpec::new(ledger::FIELD, DType::U64, &[64])];
    while start.elapsed() < span {
        let mut full = false;
        match tally.time("loan", || producer.loan(&spec)) {
            Ok(mut loan) => {
                ledger::fill(loan.tensor_mut(ledger::FIELD).unwrap(), published);
                loan.set_user(b"scribble").unwrap();
                tally.time("publish", || loan.publish()).unwrap();
                published += 1;
            }
            Err(LoanError::Full { .. }) => full = true,
            Err(e) => panic!("{e}"),
        }
        if full {
            // Dead letters keep their slots until they were handed out, and others asked for.
            tally.time("dead letters", || producer.take_dead_letters());
        }
        if published.is_multiple_of(50) {
            tally.time("dead letters", || producer.take_dead_letters());
            tally.time("stats", || (producer.stats(), producer.consumers()));
            let _ = tally.time("drain", || producer.drain(Some(Duration::from_millis(1))));
            // It is refused, because the name is taken.
            assert!(tally.time("create", || Producer::options(&ring).dir(path).create()).is_err());
            let _ = tally.time("look", || forebay::inspect::list(Some(path)).unwrap());
        }
    }
    published
}

/// Whether the control thread of a ring of this process lives: a panic would have ended it.
fn is_served(ring: &str) -> bool {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    tasks.map(name).any(|name| name.trim_end() == format!("forebay-{ring}"))
}

/// Who scribbles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hand {
    Thread,
    Process,
}

/// Where: words of some objects.
type Where = fn(&Header) -> Vec<(&'static str, Range<usize>)>;

fn survives(ring: &'static str, kind: Kind, when_full: WhenFull, hand: Hand, what: &str, targets: Where) {
    let panics = count_panics();
    let place = Place::new();
    let options = here(&place, ring).kind(kind).when_full(when_full).max_consumers(3);
    let mut producer = options.full_timeout(Some(Duration::from_millis(2))).create().unwrap();
    drop(attach(&place, ring).attach().unwrap());
    let header = audit::header(&place.object(ring, "ring"));
    let targets: Vec<(PathBuf, Range<usize>)> =
        targets(&header).into_iter().map(|(part, words)| (place.object(ring, part), words)).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let tally = Arc::new(Tally::default());
    let path = place.path().to_owned();
    let span = span();
    let process = (hand == Hand::Process).then(|| Process::start(&targets));
    let mut helpers = Vec::new();
    if hand == Hand::Thread {
        let stop = Arc::clone(&stop);
        helpers.push(thread::spawn(move || {
            let canvases: Vec<Canvas> = targets.iter().map(|(path, words)| Canvas::open(path, words.clone())).collect();
            scribble(&canvases, u64::from(std::process::id()), || stop.load(Relaxed))
        }));
    }
    for _ in 0..2 {
        let (path, stop, tally) = (path.clone(), Arc::clone(&stop), Arc::clone(&tally));
        helpers.push(thread::spawn(move || {
            receive(&path, ring, &tally, &stop);
            0
        }));
    }
    // A call that does not return would hang this test: somebody else waits for it.
    let (done, wait) = mpsc::channel();
    let worker = {
        let (path, stop, tally) = (path.clone(), Arc::clone(&stop), Arc::clone(&tally));
        thread::spawn(move || {
            let published = publish(&mut producer, &path, &tally, span);
            stop.store(true, Relaxed);
            let written: u64 = helpers.into_iter().map(|helper| helper.join().unwrap()).sum();
            let served = is_served(ring);
            producer.discard();
            let _ = done.send((published, written, served));
        })
    };
    let (published, written, served) = match wait.recv_timeout(span + WATCHDOG) {
        Ok(found) => found,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what}: a call does not return: {tally:?}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => std::panic::resume_unwind(worker.join().unwrap_err()),
    };
    worker.join().unwrap();
    drop(process);
    let longest = *tally.longest.lock().unwrap();
    let by = match hand {
        Hand::Thread => format!("by a thread, {written} words:"),
        Hand::Process => "by a process:".to_owned(),
    };
    figures(&format!(
        "scribble {what:<26} {by:<32} {published} published, {} received, {} handles \
         poisoned; longest call {:.0?} ({})",
        tally.received.load(Relaxed),
        tally.errors.load(Relaxed),
        longest.0,
        longest.1,
    ));
    assert!(served, "the control thread is gone");
    assert_eq!(count_panics(), panics, "a thread panicked");
    assert!(longest.0 < LIMIT, "{} took {:?}", longest.1, longest.0);
    place.sweep();
}

fn end(bytes: u64) -> usize {
    bytes as usize / 8
}

/// All of the pool behind the prefix, which is read at attach alone.
const POOL: Where = |header| vec![("pool", 4..end(header.plan.pool_bytes))];
const QUEUE_WORDS: Where = |header| vec![("pool", header.plan.slot_word..header.plan.member_word)];
const MEMBERS: Where = |header| vec![("pool", 4..512), ("pool", header.plan.member_word..end(header.plan.pool_bytes))];
const PARTS: Where =
    |header| ["m0", "m1"].map(|part| (part, header.plan.member_word..end(header.plan.member_bytes))).to_vec();
const GRANTS: Where = |header| {
    let grants = header.plan.member_word + forebay_layout::member::SINCE + header.plan.slots as usize;
    ["m0", "m1"].map(|part| (part, grants..grants + header.plan.slots as usize)).to_vec()
};
const RING: Where = |header| vec![("ring", forebay_layout::header::W_EPOCH..end(header.plan.ring_bytes))];
const POSITIONS: Where = |header| vec![("ring", header.plan.position_word..header.plan.descriptor_word)];

#[test]
fn a_queue_survives_a_member_that_scribbles_over_the_pool() {
    survives("scr-a", Kind::Queue, WhenFull::Block, Hand::Thread, "queue, pool", POOL);
    survives("scr-b", Kind::Queue, WhenFull::DropOldest, Hand::Process, "lossy queue, pool", POOL);
}

#[test]
fn a_queue_survives_a_member_that_scribbles_over_the_slot_words() {
    survives("scr-c", Kind::Queue, WhenFull::DropOldest, Hand::Thread, "lossy queue, slot words", QUEUE_WORDS);
    survives("scr-d", Kind::Queue, WhenFull::Block, Hand::Process, "queue, slot words", QUEUE_WORDS);
}

#[test]
fn a_queue_survives_a_member_that_scribbles_over_the_members() {
    survives("scr-e", Kind::Queue, WhenFull::Block, Hand::Process, "queue, members", MEMBERS);
}

#[test]
fn a_broadcast_ring_survives_members_that_scribble_over_their_parts() {
    survives("scr-f", Kind::Broadcast, WhenFull::Block, Hand::Thread, "broadcast, parts", PARTS);
    survives("scr-g", Kind::Broadcast, WhenFull::DropOldest, Hand::Process, "lossy broadcast, parts", PARTS);
    survives("scr-h", Kind::Broadcast, WhenFull::DropOldest, Hand::Thread, "lossy broadcast, grants", GRANTS);
}

#[test]
fn consumers_survive_a_producer_that_scribbles_over_the_ring() {
    survives("scr-i", Kind::Queue, WhenFull::Block, Hand::Thread, "queue, ring", RING);
    survives("scr-j", Kind::Broadcast, WhenFull::DropOldest, Hand::Process, "lossy broadcast, ring", RING);
    survives("scr-k", Kind::Queue, WhenFull::Block, Hand::Process, "queue, positions", POSITIONS);
}
