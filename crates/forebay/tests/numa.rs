//! Slots on a NUMA node: taken from there, shown, or said why not.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use forebay::{Backing, CreateError, Numa, Producer, inspect};
use forebay_os::numa;

fn create(dir: &tempfile::TempDir, wish: Numa, backing: Backing) -> Result<Producer, CreateError> {
    Producer::options("near").dir(dir.path()).slots(4).slot_bytes(1 << 16).backing(backing).numa(wish).create()
}

#[test]
fn slots_are_taken_from_a_node_and_whoever_looks_sees_which() {
    let node = *numa::nodes().last().unwrap();
    for backing in [Backing::Posix, Backing::Memfd] {
        let dir = tempfile::tempdir().unwrap();
        let producer = create(&dir, Numa::Node(node), backing).unwrap();
        let rings = inspect::list(Some(dir.path())).unwrap();
        let shown = rings[0].view.as_ref().unwrap().numa_node;
        // A container may forbid it, or the node be full; then it says so.
        let notes = producer.notes().join("; ");
        assert!(shown == Some(node) || notes.contains("NUMA node"), "shown {shown:?}, notes {notes:?}");
        if numa::nodes().len() == 1 && !notes.contains("forbids") {
            assert_eq!((shown, notes.as_str()), (Some(node), ""));
        }
    }
}

#[test]
fn a_ring_without_a_wish_shows_none() {
    let dir = tempfile::tempdir().unwrap();
    let _producer = Producer::options("anywhere").dir(dir.path()).slots(2).slot_bytes(64).create().unwrap();
    assert_eq!(inspect::list(Some(dir.path())).unwrap()[0].view.as_ref().unwrap().numa_node, None);
}

#[test]
fn what_is_not_there_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for (wish, says) in [
        ("4711", "there is no NUMA node 4711 with memory"),
        ("gpu:4711", "there is no gpu:4711"),
        ("gpu:ffff:ff:1f.0", "there is no PCI device ffff:ff:1f.0"),
    ] {
        let error = create(&dir, wish.parse().unwrap(), Backing::Posix).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    assert!(inspect::list(Some(dir.path())).unwrap().is_empty());
}

#[test]
fn wishes_are_spelt_in_three_ways() {
    for (text, wish) in
        [("0", Numa::Node(0)), ("gpu:1", Numa::Gpu(1)), ("gpu:0000:3b:00.0", Numa::Device("0000:3b:00.0".to_owned()))]
    {
        assert_eq!((text.parse(), wish.to_string().as_str()), (Ok(wish), text));
    }
    for text in ["", "gpu", "gpu:", "gpu:x", "-1", "node0"] {
        assert!(text.parse::<Numa>().unwrap_err().contains("expected a node"), "{text}");
    }
}
