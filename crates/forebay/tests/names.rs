//! Whose objects a name in /dev/shm leads to: a producer takes over what its lock file guards, and nothing else.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use std::{fs, time::Duration};

use forebay::{Consumer, DType, FieldSpec, Producer, ProducerOptions};

const SOON: Duration = Duration::from_secs(20);

fn options(ring: &str, dir: &tempfile::TempDir) -> ProducerOptions {
    Producer::options(ring).dir(dir.path()).slots(4).slot_bytes(256)
}

fn publish(producer: &mut Producer, value: u64) {
    let mut loan = producer.loan(&[FieldSpec::new("x", DType::U64, &[4])]).unwrap();
    loan.tensor_mut::<u64>("x").unwrap().fill(value);
    loan.publish().unwrap();
}

fn receive(consumer: &mut Consumer) -> u64 {
    let tensor = consumer.recv_timeout(SOON).unwrap().tensor("x").unwrap();
    tensor.as_slice::<u64>().unwrap()[3]
}

fn lock_file(ring: &str, dir: &tempfile::TempDir) -> std::path::PathBuf {
    dir.path().join(format!("{ring}.lock"))
}

#[test]
fn a_ring_whose_lock_file_was_deleted_is_not_taken_over_while_its_producer_lives() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = options("swept", &dir).create().unwrap();
    let mut old = Consumer::options("swept").dir(dir.path()).attach().unwrap();
    publish(&mut first, 1);
    // As a cleaner of temporary files does.
    fs::remove_file(lock_file("swept", &dir)).unwrap();

    let mut second = options("swept", &dir).create().unwrap();
    assert!(second.takeover().is_none(), "{:?}", second.takeover());
    let mut new = Consumer::options("swept").dir(dir.path()).attach().unwrap();
    for value in 2..50 {
        publish(&mut second, 1000 + value);
        assert_eq!(receive(&mut new), 1000 + value);
        // Both go on, each in memory of its own.
        assert_eq!(receive(&mut old), value - 1);
        publish(&mut first, value);
    }
    assert_eq!(receive(&mut old), 49);
    // The end of the one that lost its name takes nothing from the one that has it.
    drop(old);
    first.discard();
    drop(Consumer::options("swept").dir(dir.path()).attach().unwrap());
    publish(&mut second, 7);
    drop(new);
    second.suspend();
    let third = options("swept", &dir).create().unwrap();
    assert_eq!(third.takeover().unwrap().outstanding, 1);
    third.discard();
}

#[test]
fn what_an_earlier_life_of_the_directory_left_is_no_predecessor() {
    let dir = tempfile::tempdir().unwrap();
    let mut left = options("earlier", &dir).create().unwrap();
    publish(&mut left, 1);
    left.suspend();
    // A directory that was removed and made again may get the same inode, and so the same names in /dev/shm.
    fs::remove_file(lock_file("earlier", &dir)).unwrap();
    let mut producer = options("earlier", &dir).create().unwrap();
    assert!(producer.takeover().is_none(), "{:?}", producer.takeover());
    let mut consumer = Consumer::options("earlier").dir(dir.path()).attach().unwrap();
    publish(&mut producer, 2);
    assert_eq!(receive(&mut consumer), 2);
    drop(consumer);
    producer.discard();
}

#[test]
fn a_socket_that_a_dead_producer_had_not_named_yet_goes_with_its_successor() {
    let dir = tempfile::tempdir().unwrap();
    let others = dir.path().join(".other.sock.00000001.tmp");
    let left = [".ring.sock.00000001.tmp", ".ring.sock.0badcafe.tmp"].map(|name| dir.path().join(name));
    for path in left.iter().chain([&others]) {
        drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    }
    let producer = Producer::options("ring").dir(dir.path()).slots(1).slot_bytes(64).create().unwrap();
    assert!(!left.iter().any(|path| path.exists()), "left behind by whoever died before");
    assert!(others.exists(), "another ring's producer may be in the middle of it");
    drop(producer);
}
