//! Something else lies under a ring's name: half a ring, another version's, garbage, somebody else's.

use std::{
    fs,
    os::unix::fs::{FileExt, OpenOptionsExt, symlink},
};

use forebay::{AttachError, CreateError};
use forebay_layout::header::{W_MAGIC, W_VERSION};
use forebay_testkit::{Place, WATCHDOG, ledger::publish};

use crate::{
    rig::Dice,
    stage::{attach, here, next, producer},
    words::Corpse,
};

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

/// The slots alone: where a peer on posix cuts what the producer itself keeps writing, the producer dies of it, which
/// `docs/trust.md` says.
#[test]
fn attaching_to_a_ring_whose_slots_were_cut_off_is_an_error_and_no_fault() {
    let place = Place::new();
    let holder = producer(&place, "cut", "");
    let file = fs::OpenOptions::new().write(true).open(place.object("cut", "data")).unwrap();
    file.set_len(4096).unwrap();
    let error = attach(&place, "cut").attach().unwrap_err();
    assert!(matches!(error, AttachError::Os(_) | AttachError::Defect { .. }), "{error}");
    assert!(error.to_string().contains("4096"), "{error}");
    drop(holder);
}

#[test]
fn a_successor_takes_over_or_refuses_whatever_a_dead_producer_left_and_never_panics() {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64);
    eprintln!("takeover seed {seed}");
    let mut dice = Dice::new(seed);
    let soon = std::time::Duration::from_millis(2);
    for kind in [forebay::Kind::Queue, forebay::Kind::Broadcast] {
        let place = Place::new();
        let mut feeder = producer(&place, "odd", &format!("kind={kind} max_consumers=2"));
        feeder.ask("publish 5", "published 5");
        feeder.kill();
        let corpse = Corpse::of(&place, "odd");
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..150 {
            corpse.lay_out(&place, |part, bytes| {
                // The header's fixed words have a test of their own.
                for _ in 0..if part == "data" { 0 } else { dice.below(40) } {
                    let at = 40 * 8 + 8 * dice.below(bytes.len() as u64 / 8 - 40) as usize;
                    let old = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
                    let new = match dice.below(5) {
                        0 => 0,
                        1 => u64::MAX,
                        2 => old ^ 1 << dice.below(64),
                        3 => old.wrapping_add(dice.below(5)),
                        _ => dice.below(1 << 20),
                    };
                    bytes[at..at + 8].copy_from_slice(&new.to_le_bytes());
                }
            });
            let options = here(&place, "odd").kind(kind).max_consumers(2).full_timeout(Some(soon));
            let mut successor = match options.create() {
                Ok(successor) => successor,
                Err(CreateError::Different { .. } | CreateError::Damaged { .. }) => {
                    refused += 1;
                    continue;
                }
                Err(e) => panic!("{e}"),
            };
            taken += u32::from(successor.takeover().is_some());
            let mut reader = attach(&place, "odd").timeout(Some(soon)).attach().ok();
            for _ in 0..12 {
                let next = successor.stats().published + 1;
                if let Ok(id) = publish(&mut successor, 8) {
                    assert_eq!(id, next);
                }
                // Its messages may be odd, its handle poisoned; that is said and not suffered.
                let _ = reader.as_mut().map(|reader| reader.recv_timeout(soon));
            }
            let _ = successor.drain(Some(soon));
            let _ = successor.take_dead_letters();
            drop(reader);
            successor.discard();
        }
        assert!(taken > 0 && refused > 0, "{taken} taken over, {refused} refused");
        place.sweep();
    }
}
