//! Segments of released layouts, kept as files: today's code takes them over and hands out what they hold.
//!
//! `FOREBAY_WRITE_GOLDEN=1 cargo test -p forebay --test golden` writes those of the current layout; a released layout's
//! files never change.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use std::{fs, os::unix::fs::FileExt, path::PathBuf, time::Duration};

use forebay::{Consumer, DType, FieldSpec, Kind, Producer, ProducerOptions, Schema};

const SOON: Duration = Duration::from_secs(20);

/// Both tests run at once: each finds its own files by its ring's name.
fn ring(kind: Kind) -> String {
    format!("golden-{kind}")
}

fn options(kind: Kind, dir: &tempfile::TempDir) -> ProducerOptions {
    let schema = Schema::builder("golden", 1, 0).field("ids", DType::I64, &[2, 4]).field("flag", DType::Bool, &[]);
    Producer::options(&ring(kind))
        .dir(dir.path())
        .kind(kind)
        .schema(schema.build().unwrap())
        .slots(4)
        .slot_bytes(256)
        .max_consumers(2)
}

/// The objects of the ring in this directory: part name → file in /dev/shm.
fn objects(own: &[String]) -> Vec<(String, PathBuf)> {
    let part = |name: &String| name.rsplit('.').next().unwrap().to_owned();
    own.iter().map(|name| (part(name), PathBuf::from("/dev/shm").join(name))).collect()
}

fn shm_files(kind: Kind) -> Vec<String> {
    let names = fs::read_dir("/dev/shm").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("forebay.") && name.contains(&format!(".{}.", ring(kind)))).collect()
}

fn publish(producer: &mut Producer, value: i64) {
    let specs = [FieldSpec::new("ids", DType::I64, &[1, 4]), FieldSpec::new("flag", DType::Bool, &[])];
    let mut loan = producer.loan(&specs).unwrap();
    loan.tensor_mut::<i64>("ids").unwrap().copy_from_slice(&[value, -value, i64::MAX, i64::MIN]);
    loan.tensor_mut::<u8>("flag").unwrap()[0] = 1;
    loan.set_correlation_id(value as u64);
    loan.set_user(format!("line {value}").as_bytes()).unwrap();
    loan.publish().unwrap();
}

/// A ring with three messages, as a producer that died would leave it: its objects stay because nobody received them.
fn leave_a_ring(kind: Kind, dir: &tempfile::TempDir) -> Vec<(String, PathBuf)> {
    let before = shm_files(kind);
    let mut producer = options(kind, dir).create().unwrap();
    let made: Vec<String> = shm_files(kind).into_iter().filter(|name| !before.contains(name)).collect();
    let files = objects(&made);
    for value in 1..=3 {
        publish(&mut producer, value);
    }
    let copies: Vec<(PathBuf, Vec<u8>)> =
        files.iter().map(|(_, path)| (path.clone(), fs::read(path).unwrap())).collect();
    producer.suspend();
    for (path, bytes) in copies {
        fs::write(&path, bytes).unwrap();
    }
    files
}

fn golden(kind: Kind) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("v1-{kind}"));
    let dir = tempfile::tempdir().unwrap();
    let files = leave_a_ring(kind, &dir);
    if std::env::var_os("FOREBAY_WRITE_GOLDEN").is_some() {
        fs::create_dir_all(&folder).unwrap();
        for (part, path) in &files {
            fs::copy(path, folder.join(part)).unwrap();
        }
    }
    for (part, path) in &files {
        let bytes = fs::read(folder.join(part)).unwrap();
        assert_eq!(bytes.len() as u64, fs::metadata(path).unwrap().len(), "{part} has another size today");
        if part == "ring" {
            // The lock file guards this instance: words 2 and 3 of the header.
            let lock =
                fs::OpenOptions::new().write(true).open(dir.path().join(format!("{}.lock", ring(kind)))).unwrap();
            lock.write_all_at(&bytes[16..32], 512).unwrap();
        }
        fs::write(path, bytes).unwrap();
    }
    let mut producer = options(kind, &dir).create().unwrap();
    let takeover = producer.takeover().unwrap().clone();
    assert_eq!((takeover.last_sequence, &takeover.last_user[..], takeover.outstanding), (3, &b"line 3"[..], 3));
    let mut consumer = Consumer::options(&ring(kind)).dir(dir.path()).attach().unwrap();
    producer.wait_for_consumers(1, Some(SOON)).unwrap();
    publish(&mut producer, 4);
    // A late joiner of a broadcast ring starts at the next publish.
    let first = if kind == Kind::Queue { 1 } else { 4 };
    for value in first..=4 {
        let message = consumer.recv_timeout(SOON).unwrap();
        assert_eq!((message.sequence(), message.correlation_id()), (value as u64, value as u64));
        assert_eq!(message.user(), format!("line {value}").as_bytes());
        let ids = message.tensor("ids").unwrap();
        assert_eq!(ids.shape(), [1, 4]);
        assert_eq!(ids.as_slice::<i64>().unwrap(), [value, -value, i64::MAX, i64::MIN]);
        assert_eq!(message.tensor("flag").unwrap().as_bytes(), [1]);
    }
    drop(consumer);
    producer.discard();
}

#[test]
fn a_queue_of_layout_1_is_taken_over_with_everything_it_holds() {
    golden(Kind::Queue);
}

#[test]
fn a_broadcast_ring_of_layout_1_is_taken_over() {
    golden(Kind::Broadcast);
}
