//! Two releases meet: an older one and a newer one, on either side, in the socket and in the memory.

use std::time::Duration;

use forebay::{AttachError, CreateError};
use forebay_layout::{
    control::{Control, FRAME_MAGIC, Hello, Intent},
    header::{MAJOR, MINOR, W_RESERVED, W_VERSION},
};
use forebay_os::{Conn, Dir};
use forebay_testkit::{Place, ledger::publish};

use crate::{
    control::{answer, bytes, hello},
    stage::{attach, here, next, producer},
    words::{Corpse, Object},
};

const COMPATIBLE: usize = W_VERSION + 1;
const INCOMPATIBLE: usize = W_VERSION + 2;

/// A ring as the next minor version may leave it: features that may be ignored, and words that mean nothing to us.
fn make_newer(set: impl Fn(usize, u64)) {
    set(W_VERSION, u64::from(MAJOR) | (u64::from(MINOR) + 1) << 16);
    set(COMPATIBLE, u64::MAX);
    for word in W_RESERVED..W_RESERVED + 16 {
        set(word, 0x0123_4567_89ab_cdef);
    }
}

#[test]
fn a_client_of_another_layout_is_told_which_side_to_update() {
    let place = Place::new();
    let producer = here(&place, "skew").create().unwrap();
    let dir = Dir::open(Some(place.path())).unwrap();
    for theirs in [MAJOR - 1, MAJOR + 1, u16::MAX] {
        for intent in [Intent::Attach, Intent::Observe] {
            let Control::Hello(own) = hello("skew", intent) else { unreachable!("a hello") };
            let conn = Conn::connect(&dir, "skew.sock").unwrap();
            conn.send(&bytes(&Control::Hello(Hello { layout_major: theirs, ..own }).encode()), &[]).unwrap();
            let (said, fds) = answer(&conn).unwrap();
            let Control::Refuse(_, why) = said else { panic!("{said:?}") };
            let told = format!("writes layout {MAJOR}, this client reads {theirs}; update the older side");
            assert!(why.contains(&told) && fds.is_empty(), "{why}");
        }
    }
    // Another version of the packets themselves.
    let mut frame = hello("skew", Intent::Attach).encode();
    frame[0] = FRAME_MAGIC + (1 << 56);
    let conn = Conn::connect(&dir, "skew.sock").unwrap();
    conn.send(&bytes(&frame), &[]).unwrap();
    assert!(matches!(answer(&conn).unwrap().0, Control::Refuse(_, why) if why.contains("control.magic")));
    producer.discard();
}

#[test]
fn a_ring_of_another_layout_or_with_unknown_demands_is_refused_by_name_and_with_what_to_do() {
    let place = Place::new();
    let producer = here(&place, "skew").create().unwrap();
    let ring = Object::named(&place, "skew", "ring");
    for (word, value, told) in [
        (W_VERSION, 0, "version is 0, expected layout major version 1"),
        (W_VERSION, 2, "version is 2, expected layout major version 1"),
        (INCOMPATIBLE, 1, "incompatible is 1"),
        (INCOMPATIBLE, 1 << 63, "incompatible is"),
    ] {
        let truth = ring.get(word);
        ring.set(word, value);
        let error = attach(&place, "skew").timeout(Some(Duration::ZERO)).attach().unwrap_err();
        ring.set(word, truth);
        assert!(matches!(error, AttachError::Defect { .. }), "{error}");
        assert!(error.to_string().contains(told) && error.to_string().contains("the same forebay release"), "{error}");
    }
    producer.discard();
}

#[test]
fn a_ring_of_the_next_minor_version_is_used_and_taken_over() {
    let place = Place::new();
    let mut producer_now = here(&place, "minor").create().unwrap();
    let ring = Object::named(&place, "minor", "ring");
    make_newer(|word, value| ring.set(word, value));
    let mut reader = attach(&place, "minor").attach().unwrap();
    publish(&mut producer_now, 8).unwrap();
    next(&mut reader);
    assert!(forebay::inspect::list(Some(place.path())).unwrap().iter().all(|report| report.view.is_ok()));
    drop(reader);
    producer_now.discard();

    let mut feeder = producer(&place, "minor", "");
    feeder.ask("publish 3", "published 3");
    feeder.kill();
    let corpse = Corpse::of(&place, "minor");
    corpse.lay_out(&place, |part, bytes| {
        if part == "ring" {
            let bytes = std::cell::RefCell::new(bytes);
            make_newer(|word, value| bytes.borrow_mut()[word * 8..word * 8 + 8].copy_from_slice(&value.to_le_bytes()));
        }
    });
    let heir = here(&place, "minor").create().unwrap();
    assert_eq!(heir.takeover().map(|found| found.outstanding), Some(3));
    heir.discard();

    // An incompatible one is left for who understands it.
    corpse.lay_out(&place, |part, bytes| {
        if part == "ring" {
            bytes[INCOMPATIBLE * 8] = 1;
        }
    });
    let error = here(&place, "minor").create().unwrap_err();
    assert!(matches!(error, CreateError::Different { .. }), "{error}");
    assert_eq!(place.objects().len(), 3);
    place.sweep();
}
