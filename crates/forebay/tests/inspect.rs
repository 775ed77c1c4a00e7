//! Looking at rings that lie: every word of them, one after the other.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
};

use forebay::{Backing, Consumer, DType, FieldSpec, Kind, Producer, inspect};

fn producer(dir: &std::path::Path, kind: Kind, backing: Backing) -> Producer {
    let options = Producer::options("ring").dir(dir).kind(kind).backing(backing).slots(3).slot_bytes(64);
    options.max_consumers(2).label("inspected").create().unwrap()
}

fn consumer(dir: &std::path::Path) -> Consumer {
    Consumer::options("ring").dir(dir).label("reader").attach().unwrap()
}

fn publish(producer: &mut Producer) {
    let mut loan = producer.loan(&[FieldSpec::new("x", DType::I64, &[2])]).unwrap();
    loan.tensor_mut::<i64>("x").unwrap().fill(1);
    loan.publish().unwrap();
}

/// The objects of the ring, by the paths that cleaning would remove once its producer is gone.
fn objects(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let hash = forebay_os::Dir::open(Some(dir)).unwrap().hash();
    let part = format!(".{hash:08x}.ring.");
    let all = std::fs::read_dir("/dev/shm").unwrap().flatten().map(|entry| entry.path());
    all.filter(|path| path.to_str().is_some_and(|path| path.contains(&part) && !path.ends_with(".data"))).collect()
}

fn scribble(file: &File, word: u64, value: u64) -> [u8; 8] {
    let mut old = [0; 8];
    file.read_exact_at(&mut old, word * 8).unwrap();
    file.write_all_at(&value.to_le_bytes(), word * 8).unwrap();
    old
}

#[test]
fn no_word_of_a_ring_makes_a_look_at_it_panic() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        let dir = tempfile::tempdir().unwrap();
        let mut producer = producer(dir.path(), kind, Backing::Posix);
        let mut reader = consumer(dir.path());
        publish(&mut producer);
        let held = reader.recv().unwrap();
        // Looked at when nobody lives, so that a defect is not taken for a ring in the making and looked at again.
        drop((held, reader));
        let mut reader = consumer(dir.path());
        publish(&mut producer);
        std::mem::forget(reader.recv().unwrap());
        let objects = objects(dir.path());
        assert_eq!(objects.len(), if kind == Kind::Queue { 2 } else { 3 });
        let mut refused = 0;
        for path in &objects {
            let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
            let words = file.metadata().unwrap().len() / 8;
            // The header whole, of the rest every third word: each look takes time.
            for word in (0..64).chain((64..words).step_by(3)) {
                for value in [u64::MAX, 0, 0x0102_0304_0506_0708] {
                    let old = scribble(&file, word, value);
                    let rings = inspect::list(Some(dir.path())).unwrap();
                    refused += u32::from(rings[0].view.is_err());
                    file.write_all_at(&old, word * 8).unwrap();
                }
            }
        }
        assert!(refused >= 40, "{refused} looks were refused");
        let rings = inspect::list(Some(dir.path())).unwrap();
        let view = rings[0].view.as_ref().unwrap();
        assert_eq!((view.head, view.consumers.len()), (3, 1), "{view:?}");
        // What waits for a consumer would stay.
        producer.discard();
    }
}

#[test]
fn a_report_tells_what_is_held_and_what_waits() {
    for (kind, backing) in [
        (Kind::Queue, Backing::Posix),
        (Kind::Queue, Backing::Memfd),
        (Kind::Broadcast, Backing::Posix),
        (Kind::Broadcast, Backing::Memfd),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut producer = producer(dir.path(), kind, backing);
        let (mut first, second) = (consumer(dir.path()), consumer(dir.path()));
        publish(&mut producer);
        publish(&mut producer);
        let held = first.recv().unwrap();

        let rings = inspect::list(Some(dir.path())).unwrap();
        let ring = &rings[0];
        assert_eq!((ring.name.as_str(), rings.len()), ("ring", 1));
        assert!(ring.producer.alive && ring.producer.label == "inspected", "{ring:?}");
        assert_eq!(ring.producer.pid, std::process::id());
        let view = ring.view.as_ref().unwrap();
        assert_eq!((view.kind, view.backing, view.schema.clone(), view.head), (kind, backing, None, 3));
        assert_eq!(view.consumers.len(), 2, "{view:?}");
        let [reader, other] = &view.consumers[..] else { unreachable!() };
        assert!(reader.alive && reader.state == "active" && reader.label == "reader", "{reader:?}");
        assert_eq!((reader.received, other.received), (1, 0));
        assert_eq!((reader.held.len(), other.held.len()), (1, 0), "{view:?}");
        assert_eq!((reader.held[0].sequence, reader.held[0].slot), (held.sequence(), held.slot()));
        let slots = &view.slots;
        assert_eq!((slots.claimed, slots.full), (1, 1), "{slots:?}");
        assert_eq!(slots.free + slots.done, 1);
        if kind == Kind::Broadcast {
            assert_eq!((reader.behind, other.behind), (1, 2), "{view:?}");
            assert_eq!(view.depth, 2);
        } else {
            assert_eq!(view.depth, 1);
        }
        let cleaned = inspect::clean(Some(dir.path())).unwrap();
        assert!(cleaned.removed.is_empty() && cleaned.kept.len() == 1, "{cleaned:?}");
        drop((held, first, second));
        producer.discard();
        assert_eq!(inspect::list(Some(dir.path())).unwrap(), []);
    }
}

#[test]
fn cleaning_takes_all_of_a_ring_and_nothing_of_its_namesakes() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["a", "a.b", "a.b.c"];
    let create = |name: &str| Producer::options(name).dir(dir.path()).slots(2).slot_bytes(64).create().unwrap();
    let [a, mut b, c] = names.map(create);
    publish(&mut b);
    // Kept, because its message waits for a consumer.
    drop(b);
    let cleaned = inspect::clean(Some(dir.path())).unwrap();
    assert!(cleaned.removed.iter().all(|item| item.ring == "a.b"), "{cleaned:?}");
    assert_eq!(cleaned.removed.len(), 4, "{cleaned:?}");
    assert!(cleaned.removed.iter().all(|item| item.why.contains("1 message in it was not received")), "{cleaned:?}");
    let left: Vec<String> = inspect::list(Some(dir.path())).unwrap().into_iter().map(|ring| ring.name).collect();
    assert_eq!(left, ["a", "a.b.c"]);
    drop((a, c));
    assert_eq!(inspect::list(Some(dir.path())).unwrap(), []);
}

/// Went wrong: no lock file said that nobody lives.
#[test]
fn a_living_ring_whose_lock_file_was_deleted_is_kept() {
    for backing in [Backing::Posix, Backing::Memfd] {
        let dir = tempfile::tempdir().unwrap();
        let mut living = producer(dir.path(), Kind::Queue, backing);
        for again in [false, true] {
            // Removed by who cleans /tmp; the second time somebody made it anew.
            std::fs::remove_file(dir.path().join("ring.lock")).unwrap();
            if again {
                forebay_os::LockFile::create_or_open(&forebay_os::Dir::open(Some(dir.path())).unwrap(), "ring.lock")
                    .unwrap();
            }
            let [would, did] = [inspect::would_clean(Some(dir.path())), inspect::clean(Some(dir.path()))];
            for cleaned in [would.unwrap(), did.unwrap()] {
                assert_eq!((cleaned.removed.len(), cleaned.kept.len()), (0, 1), "{cleaned:?}");
                assert!(cleaned.kept[0].why.contains("lock file was deleted"), "{cleaned:?}");
            }
            let mut reader = consumer(dir.path());
            publish(&mut living);
            reader.recv().unwrap();
            if !again {
                std::fs::write(dir.path().join("ring.lock"), "").unwrap();
            }
        }
        living.discard();
        // What nobody listens at any more goes.
        let cleaned = inspect::clean(Some(dir.path())).unwrap();
        assert!(cleaned.kept.is_empty(), "{cleaned:?}");
        assert_eq!(inspect::list(Some(dir.path())).unwrap(), []);
    }
}

/// Went wrong: the paths of lock file and socket were taken for objects' names.
#[test]
fn cleaning_a_directory_under_dev_shm_takes_files_for_files() {
    let dir = tempfile::Builder::new().prefix("forebay-test-").tempdir_in("/dev/shm").unwrap();
    let mut left = producer(dir.path(), Kind::Queue, Backing::Posix);
    publish(&mut left);
    // Kept, because its message waits for a consumer.
    drop(left);
    let would = inspect::would_clean(Some(dir.path())).unwrap();
    let cleaned = inspect::clean(Some(dir.path())).unwrap();
    assert!(cleaned.kept.is_empty(), "{cleaned:?}");
    assert_eq!((cleaned.removed.len(), would.removed.len()), (4, 4), "{cleaned:?}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(objects(dir.path()).is_empty());
}
