//! Kills at random for a while, with a book outside the transport: nothing is lost, torn, replayed or leaked.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use forebay_testkit::{Actor, Place, audit, child::number, ledger::Ledger, watchdog::until};

use crate::stage::BINARY;

/// How long each soak kills: 6 s, or `FOREBAY_SOAK_S`.
fn span() -> Duration {
    let seconds = std::env::var("FOREBAY_SOAK_S").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(6))
}

/// A small generator: the soak is another one each time, and says which.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64);
        eprintln!("soak seed {seed}");
        Self(seed | 1)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

struct Soak<'a> {
    place: &'a Place,
    options: String,
    feeder: Actor,
    workers: Vec<(u32, Actor)>,
    /// What each worker said, by the order in which it was started.
    said: BTreeMap<u32, Vec<u64>>,
    started: u32,
    kills: u64,
}

impl<'a> Soak<'a> {
    fn new(place: &'a Place, options: &str, workers: u32) -> Self {
        let feeder = Actor::start(BINARY, place, "producer", "soak", options, &[]);
        let mut this = Self {
            place,
            options: options.to_owned(),
            feeder,
            workers: Vec::new(),
            said: BTreeMap::new(),
            started: 0,
            kills: 0,
        };
        this.feeder.expect("ready");
        for _ in 0..workers {
            this.add_worker();
        }
        this.feeder.ask(&format!("wait {workers}"), "ok");
        this.feeder.tell("stream 128");
        this
    }

    fn add_worker(&mut self) {
        let wait = ["adaptive", "block", "spin"][self.started as usize % 3];
        let mut worker = Actor::start(BINARY, self.place, "consumer", "soak", &format!("lazy=true wait={wait}"), &[]);
        worker.expect("ready");
        // A victim's place is free once the producer has noticed, and that may be dead itself.
        until("a place", || {
            worker.tell("attach");
            worker.line().starts_with("attached")
        });
        worker.tell(if self.started % 4 == 3 { "lurk" } else { "work" });
        self.workers.push((self.started, worker));
        self.started += 1;
    }

    fn kill_worker(&mut self, index: usize) {
        let (name, mut worker) = self.workers.swap_remove(index);
        worker.kill();
        self.kills += 1;
        let lines = worker.rest();
        self.note(name, lines);
    }

    fn note(&mut self, worker: u32, lines: Vec<String>) {
        let said = self.said.entry(worker).or_default();
        for line in lines {
            if let Some(rest) = line.strip_prefix("msg ") {
                said.push(rest.split(' ').next().unwrap().parse().unwrap());
            } else {
                assert_eq!(line, "end Closed", "worker {worker}");
            }
        }
    }

    /// kill -9 of the producer; returns what it said last.
    fn restart_feeder(&mut self) {
        self.feeder.kill();
        let said = self.feeder.rest().iter().filter_map(|line| line.strip_prefix("seq ")?.parse().ok()).max();
        self.feeder = Actor::start(BINARY, self.place, "producer", "soak", &self.options, &[]);
        let found = self.feeder.expect("ready");
        assert!(number(&found, "last") >= said.unwrap_or(0), "{said:?} was published, its successor found {found}");
        self.feeder.tell("stream 128");
    }

    /// Ends it in good order; returns how many messages there were.
    fn finish(&mut self, by_successor: bool) -> u64 {
        if by_successor {
            self.feeder.kill();
            self.feeder = Actor::start(BINARY, self.place, "producer", "soak", &self.options, &[]);
            self.feeder.expect("ready");
        } else {
            self.feeder.tell("pause");
            while self.feeder.line() != "paused" {}
        }
        let total = number(&self.feeder.ask("stats", "stats"), "published");
        self.feeder.ask("drain", "ok");
        if self.options.contains("kind=queue") {
            audit::assert_all_free(&if self.options.contains("memfd") {
                audit::memfd_slots(self.feeder.pid(), "soak")
            } else {
                audit::posix_slots(self.place, "soak")
            });
        }
        self.feeder.ask("close", "closed");
        for (name, mut worker) in std::mem::take(&mut self.workers) {
            let mut lines = Vec::new();
            while lines.last().is_none_or(|line: &String| line != "end Closed") {
                lines.push(worker.line());
            }
            self.note(name, lines);
        }
        total
    }

    fn run(&mut self, feeder_too: bool) -> u64 {
        let mut dice = Dice::new();
        let start = Instant::now();
        while start.elapsed() < span() {
            // Not a wait for anything: it decides at which instruction the next one dies.
            std::thread::sleep(Duration::from_millis(5 + dice.below(60)));
            match dice.below(8) {
                0 | 1 if feeder_too => self.restart_feeder(),
                2 => {
                    // Stopped for longer than any slice, then going on as if nothing had happened.
                    let victim = dice.below(self.workers.len() as u64) as usize;
                    self.workers[victim].1.stop();
                    std::thread::sleep(Duration::from_millis(80));
                    self.workers[victim].1.signal(libc::SIGCONT);
                }
                _ => {
                    let victim = dice.below(self.workers.len() as u64) as usize;
                    self.kill_worker(victim);
                    self.add_worker();
                }
            }
        }
        self.finish(feeder_too)
    }
}

fn queue(options: &str, workers: u32, feeder_too: bool) {
    let place = Place::new();
    let options = format!("kind=queue max_attempts=0 slots=16 slot_bytes=1024 schema=none {options}");
    let mut soak = Soak::new(&place, &options, workers);
    let total = soak.run(feeder_too);
    let mut ledger = Ledger::default();
    for id in soak.said.values().flatten() {
        ledger.delivered(*id);
    }
    assert_eq!(ledger.missing(total), Vec::<u64>::new(), "of {total} after {} kills", soak.kills);
    assert!(ledger.last() <= total);
    let twice: u64 = (1..=total).map(|id| u64::from(ledger.deliveries(id) - 1)).sum();
    assert!(twice <= soak.kills, "{twice} deliveries too many by {} kills", soak.kills);
}

fn broadcast(options: &str, feeder_too: bool) {
    let place = Place::new();
    let options = format!("kind=broadcast slots=16 slot_bytes=1024 schema=none {options}");
    let mut soak = Soak::new(&place, &options, 3);
    let total = soak.run(feeder_too);
    assert!(total > 0);
    for (worker, said) in &soak.said {
        for pair in said.windows(2) {
            assert_eq!(pair[1], pair[0] + 1, "worker {worker} has a gap");
        }
        assert!(said.last().is_none_or(|&last| last <= total));
    }
    // Those that were alive at the end saw the end.
    assert!(soak.said.values().any(|said| said.last() == Some(&total)));
}

#[test]
fn a_posix_queue_under_kills_of_both_sides_delivers_everything_and_twice_only_what_a_victim_held() {
    queue("", 3, true);
}

#[test]
fn a_memfd_queue_under_kills_of_consumers_delivers_everything() {
    queue("backing=memfd wait=block", 3, false);
}

#[test]
fn a_queue_of_one_consumer_that_claims_by_a_plain_store_survives_kills_of_both_sides() {
    queue("max_consumers=1", 1, true);
}

#[test]
fn a_broadcast_ring_under_kills_of_both_sides_leaves_no_gap_in_what_anybody_sees() {
    broadcast("", true);
}

#[test]
fn a_memfd_broadcast_ring_under_kills_of_members_leaves_no_gap_in_what_anybody_sees() {
    broadcast("backing=memfd wait=block", false);
}
