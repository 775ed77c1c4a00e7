//! Pictures of a whole ring: the objects that appear and vanish one by one, the lock file, the socket. Everybody dies at
//! once: a copy of it all, under another folder's names, is given to a real successor and real consumers.

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::{fs::OpenOptionsExt, net::UnixListener},
    path::Path,
    time::Duration,
};

use forebay::{Consumer, Message, RecvError};
use forebay_testkit::{Place, audit};

use crate::{
    memory::Memory,
    oracle::Model,
    picture::{Fate, Fates, ensure},
    setup::{RING, Setup},
};

/// Everything a ring has outside of its processes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Whole {
    /// Objects in /dev/shm, by the part of the name that is the ring's.
    objects: BTreeMap<String, Vec<u8>>,
    /// Files of the folder; `None` for a socket.
    files: BTreeMap<String, Option<Vec<u8>>>,
}

impl Whole {
    /// What is in `place`.
    pub(crate) fn of(place: &Place) -> Self {
        let prefix = place.object(RING, "");
        let prefix = prefix.to_string_lossy().into_owned();
        let objects = place.objects().into_iter().filter_map(|path| {
            let name = path.to_string_lossy().strip_prefix(&prefix)?.to_owned();
            Some((name, fs::read(&path).ok()?))
        });
        let files = fs::read_dir(place.path()).into_iter().flatten().flatten().map(|entry| {
            let plain = entry.file_type().is_ok_and(|kind| kind.is_file());
            (entry.file_name().to_string_lossy().into_owned(), if plain { fs::read(entry.path()).ok() } else { None })
        });
        Self { objects: objects.collect(), files: files.collect() }
    }

    /// The same with the words of `picture`.
    pub(crate) fn with(mut self, memory: &Memory, picture: &[u64]) -> Self {
        for (part, words) in memory.parts(picture) {
            self.objects.insert(part.to_owned(), words.iter().flat_map(|word| word.to_le_bytes()).collect());
        }
        self
    }

    /// What there is, for people.
    pub(crate) fn describe(&self) -> String {
        let objects: Vec<_> =
            self.objects.iter().map(|(name, bytes)| format!("{name} ({} bytes)", bytes.len())).collect();
        let files: Vec<_> = self.files.keys().cloned().collect();
        format!("objects: {}; files: {}", objects.join(", "), files.join(", "))
    }

    pub(crate) fn hash(&self, seed: u64) -> u64 {
        let mut hasher = DefaultHasher::new();
        (seed, self).hash(&mut hasher);
        hasher.finish()
    }

    /// The same in another place, nobody's.
    fn copy_to(&self, place: &Place) -> std::io::Result<()> {
        for (name, bytes) in &self.objects {
            let path = place.object(RING, name);
            fs::File::options().write(true).create_new(true).mode(0o600).open(&path)?;
            fs::write(&path, bytes)?;
        }
        for (name, bytes) in &self.files {
            match bytes {
                Some(bytes) => {
                    fs::File::options().write(true).create_new(true).mode(0o600).open(place.path().join(name))?;
                    fs::write(place.path().join(name), bytes)?;
                }
                // Closed at once: whoever connects is refused, as with a dead producer's.
                None => drop(UnixListener::bind(place.path().join(name))?),
            }
        }
        Ok(())
    }
}

/// Gives a copy of `whole` to a successor. `fates` is what was published and is nobody's any more but the dead's.
pub(crate) fn audit(setup: &Setup, whole: &Whole, before: &Model, thrown_away: bool) -> Result<(), String> {
    let (descriptors, mappings) = (audit::descriptors(), audit::mappings());
    let place = Place::new();
    whole.copy_to(&place).map_err(|e| format!("the rig cannot copy the ring: {e}"))?;
    let result = succeed(setup, place.path(), before, thrown_away);
    let left: Vec<_> =
        fs::read_dir(place.path()).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
    let objects = place.objects();
    place.sweep();
    result?;
    ensure!(objects.is_empty() && left.is_empty(), "left behind: {objects:?} {left:?}");
    ensure!(audit::descriptors() == descriptors, "descriptors stay open: {:?}", audit::descriptors());
    ensure!(audit::mappings() == mappings, "mappings stay: {:?}", audit::mappings());
    Ok(())
}

fn succeed(setup: &Setup, dir: &Path, before: &Model, thrown_away: bool) -> Result<(), String> {
    let mut producer = setup.producer(dir).create().map_err(|e| format!("no successor: {e}"))?;
    let last = producer.takeover().map_or(0, |taken| taken.last_sequence);
    let kept = last == before.next - 1;
    ensure!(kept || thrown_away && last == 0, "the successor goes on after {last}, expected {}", before.next - 1);
    // Every place can be taken, all at a time.
    let attach = |_| setup.consumer(dir).reconnect(Duration::ZERO).attach();
    let consumers: Result<Vec<Consumer>, _> = (0..setup.max_consumers).map(attach).collect();
    let mut consumers = consumers.map_err(|e| format!("a member index is lost: {e}"))?;
    producer.wait_for_consumers(consumers.len(), Some(Duration::from_secs(20))).map_err(|e| e.to_string())?;
    // What the dead had comes back; each message once.
    let nobody = Model { members: BTreeMap::new(), ..before.clone() };
    let mut expected: Fates = nobody.mended(setup);
    expected.retain(|_, fate| matches!(fate, Fate::Waiting(_) | Fate::Dead(_)) && kept);
    let key = |sequence: u64| (crate::picture::ALL, sequence);
    while let Some(message) = next(&mut consumers[0])? {
        let (sequence, attempts) = (message.sequence(), message.attempts());
        let waiting = expected.remove(&key(sequence));
        ensure!(
            waiting == Some(Fate::Waiting(attempts)),
            "message {sequence} ({attempts}) comes, expected {waiting:?}"
        );
        crate::actor::check(setup, &message)?;
    }
    // A broadcast ring owes nobody anything before its next message.
    for consumer in &mut consumers[1..] {
        if let Some(message) = next(consumer)? {
            return Err(format!("message {} comes before anything was published", message.sequence()));
        }
    }
    for letter in producer.take_dead_letters() {
        let dead = expected.remove(&key(letter.sequence));
        ensure!(dead == Some(Fate::Dead(letter.attempts)), "dead letter {}, expected {dead:?}", letter.sequence);
    }
    ensure!(expected.is_empty(), "never delivered: {expected:?}");
    // Every slot goes round once more, with new sequences.
    let mut round = Vec::new();
    for i in 0..setup.slots {
        let loan = setup.with_specs(|specs| producer.try_loan(specs).map(forebay::Loan::detach));
        let mut loan = loan.map_err(|e| format!("a slot is lost: {e}"))?;
        let sequence = last + 1 + u64::from(i);
        crate::actor::write(setup, &mut loan, sequence).map_err(|e| e.to_string())?;
        let found = producer.publish(loan).map_err(|e| e.to_string())?;
        ensure!(found == sequence, "sequence {found} follows {last}");
        round.push(sequence);
    }
    // Nobody who took a dead member's place is taken for further than it is.
    let owed = producer.stats().undelivered;
    ensure!(owed == setup.slots, "{owed} of {} messages are counted as undelivered", setup.slots);
    receive(setup, &mut consumers, &round)?;
    drop(consumers);
    producer.discard();
    Ok(())
}

/// The messages of a round, each once on a queue, each to everybody on a broadcast ring.
fn receive(setup: &Setup, consumers: &mut [Consumer], round: &[u64]) -> Result<(), String> {
    let takers = if setup.kind == forebay::Kind::Queue { 1 } else { consumers.len() };
    for consumer in &mut consumers[..takers] {
        for &sequence in round {
            let message = next(consumer)?.ok_or(format!("message {sequence} does not come"))?;
            ensure!(message.sequence() == sequence, "message {} comes instead of {sequence}", message.sequence());
            crate::actor::check(setup, &message)?;
        }
        ensure!(next(consumer)?.is_none(), "there is one message too many");
    }
    Ok(())
}

fn next(consumer: &mut Consumer) -> Result<Option<Message>, String> {
    match consumer.try_recv() {
        Ok(message) => Ok(message),
        Err(RecvError::Quota { .. }) => Err("a message is held that was dropped".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}
