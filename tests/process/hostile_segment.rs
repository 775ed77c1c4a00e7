//! Something else lies under a ring's name: half a ring, another version's, garbage, somebody else's.

use std::{
    fs,
    os::unix::fs::{FileExt, OpenOptionsExt, symlink},
};

use forebay::{AttachError, CreateError};
use forebay_layout::header::{W_MAGIC, W_VERSION};
use forebay_testkit::{Place, WATCHDOG, ledger::publish};

use crate::stage::{attach, here, next, producer};

/// A dead producer's ring with three messages.
fn left(place: &Place, ring: &str) {
    let mut feeder = producer(place, ring, "");
    feeder.ask("publish 3", "published 3");
    feeder.kill();
}

fn poke(place: &Place, ring: &str, part: &str, word: usize, value: u64) {
    let file = fs::OpenOptions::new().write(true).open(place.object(ring, part)).unwrap();
    file.write_all_at(&value.to_le_bytes(), word as u64 * 8).unwrap();
}

/// A ring of this name works from its first message on.
fn works(place: &Place, ring: &str, fresh: bool) {
    let mut producer = here(place, ring).fresh(fresh).create().unwrap();
    assert_eq!(producer.takeover(), None);
    let mut reader = attach(place, ring).attach().unwrap();
    publish(&mut producer, 8).unwrap();
    assert_eq!(next(&mut reader).sequence(), 1);
    producer.drain(Some(WATCHDOG)).unwrap();
}

#[test]
fn half_a_ring_of_a_producer_that_died_while_it_made_it_is_made_anew() {
    let place = Place::new();
    left(&place, "half");
    poke(&place, "half", "ring", W_MAGIC, 0);
    works(&place, "half", false);
    // Only the first object, and not even allocated.
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(place.object("half", "ring")).unwrap();
    works(&place, "half", false);
    // Killed while it removed them.
    left(&place, "half");
    fs::remove_file(place.object("half", "pool")).unwrap();
    works(&place, "half", false);
}

/// Went wrong: the ring of another version was taken for garbage and removed with everything in it.
#[test]
fn a_ring_of_another_version_is_refused_and_left_as_it_is() {
    for (word, value, told) in [(W_VERSION, 2, "version"), (W_VERSION + 2, 1, "incompatible")] {
        let place = Place::new();
        left(&place, "newer");
        let before = fs::read(place.object("newer", "data")).unwrap();
        poke(&place, "newer", "ring", word, value);
        let error = here(&place, "newer").create().unwrap_err();
        assert!(matches!(error, CreateError::Different { .. }), "{error}");
        assert!(error.to_string().contains(told) && error.to_string().contains("fresh"), "{error}");
        assert_eq!(fs::read(place.object("newer", "data")).unwrap(), before);
        works(&place, "newer", true);
    }
}

#[test]
fn a_truncated_ring_is_refused_with_the_bytes_found_and_expected() {
    for part in ["ring", "data", "pool"] {
        let place = Place::new();
        left(&place, "short");
        let file = fs::OpenOptions::new().write(true).open(place.object("short", part)).unwrap();
        file.set_len(8192).unwrap();
        let error = here(&place, "short").create().unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("fresh"), "{error}");
        assert_eq!(place.objects().len(), 3);
        works(&place, "short", true);
    }
}

#[test]
fn garbage_in_every_word_of_the_header_is_refused_or_made_anew_but_never_believed() {
    let place = Place::new();
    left(&place, "words");
    let good = fs::read(place.object("words", "ring")).unwrap();
    for word in 0..40 {
        for value in [0, 1, u64::MAX, 0x0101_0101_0101_0101] {
            if u64::from_le_bytes(good[word * 8..word * 8 + 8].try_into().unwrap()) == value {
                continue;
            }
            // Compatible features, the time, and what a later minor version may add.
            let harmless = [5, 7].contains(&word) || (16..32).contains(&word);
            poke(&place, "words", "ring", word, value);
            match here(&place, "words").create() {
                Ok(producer) => {
                    assert!(harmless || producer.takeover().is_none(), "word {word} = {value:#x} was believed");
                    producer.discard();
                }
                Err(CreateError::Different { .. }) => {}
                Err(e) => panic!("word {word} = {value:#x}: {e}"),
            }
            place.sweep();
            left(&place, "words");
        }
    }
    place.sweep();
}

#[test]
fn a_symbolic_link_or_somebody_elses_object_under_the_name_is_not_touched() {
    let place = Place::new();
    let target = place.path().join("precious");
    fs::write(&target, "precious").unwrap();
    symlink(&target, place.object("link", "ring")).unwrap();
    let error = here(&place, "link").create();
    assert!(error.is_err(), "{error:?}");
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    place.sweep();

    left(&place, "owner");
    let object = place.object("owner", "ring");
    if std::os::unix::fs::chown(&object, Some(65534), None).is_err() {
        eprintln!("skipped: this needs the right to give files away (run it as root)");
        place.sweep();
        return;
    }
    let error = here(&place, "owner").create().unwrap_err().to_string();
    assert!(error.contains("65534"), "{error}");
    place.sweep();
}

#[test]
fn attaching_to_a_truncated_ring_is_an_error_and_no_fault() {
    for part in ["ring", "data", "pool"] {
        let place = Place::new();
        let holder = producer(&place, "cut", "");
        // The producer is stopped before it could touch a page that is gone; its control thread answers first.
        let file = fs::OpenOptions::new().write(true).open(place.object("cut", part)).unwrap();
        if part == "data" {
            file.set_len(4096).unwrap();
            let error = attach(&place, "cut").attach().unwrap_err();
            assert!(matches!(error, AttachError::Os(_) | AttachError::Defect { .. }), "{error}");
            assert!(error.to_string().contains("4096"), "{error}");
        }
        drop(holder);
        place.sweep();
    }
}
