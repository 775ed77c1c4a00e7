//! What a dead producer left and a peer has scribbled over: who is refused has changed nothing, and is told the way out.

use std::fs;

use forebay::{CreateError, Kind};
use forebay_layout::pool::SLOT_WORD_STRIDE;
use forebay_testkit::{Place, WATCHDOG, audit, ledger::publish};

use crate::{
    stage::{attach, here, next, producer},
    words::Object,
};

/// A dead producer's ring with three messages, and one that it was writing.
fn left(place: &Place, ring: &str, kind: Kind) {
    let mut feeder = producer(place, ring, &format!("kind={kind}"));
    feeder.ask("publish 3", "published 3");
    feeder.ask("loan", "loan slot=3");
    feeder.kill();
}

/// Went wrong: before it was refused, a producer of another geometry had freed the slot that was being written, and filled
/// in entries.
#[test]
fn a_producer_that_wants_another_ring_is_refused_before_it_has_touched_anything() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        let place = Place::new();
        left(&place, "touched", kind);
        // Of these a takeover would make something: a position that is missing.
        let header = audit::header(&place.object("touched", "ring"));
        Object::named(&place, "touched", "ring").set(header.plan.position_word + 2 * 16, 0);
        let all = || -> Vec<Vec<u8>> { place.objects().iter().map(|path| fs::read(path).unwrap()).collect() };
        let before = all();
        let other = [
            here(&place, "touched").kind(kind).slots(16),
            here(&place, "touched").kind(kind).max_attempts(7),
            here(&place, "touched").kind(kind).schema(
                forebay::Schema::builder("another", 1, 0).field("x", forebay::DType::U8, &[8]).build().unwrap(),
            ),
        ];
        for options in other {
            let error = options.create().unwrap_err();
            let CreateError::Different { outstanding, .. } = error else { panic!("{error}") };
            assert_eq!(outstanding, 3);
        }
        assert!(before == all(), "it was refused, and has changed something");
        let heir = here(&place, "touched").kind(kind).create().unwrap();
        assert_eq!(heir.takeover().map(|found| found.outstanding), Some(3));
        heir.discard();
    }
}

#[test]
fn a_slot_word_that_nobody_writes_is_named_with_its_slot_and_the_way_out() {
    let place = Place::new();
    left(&place, "nonsense", Kind::Queue);
    let plan = audit::header(&place.object("nonsense", "ring")).plan;
    let pool = Object::named(&place, "nonsense", "pool");
    let word = plan.slot_word + SLOT_WORD_STRIDE;
    let truth = pool.get(word);
    pool.set(word, truth | 7);
    let before = pool.all();
    let error = here(&place, "nonsense").create().unwrap_err();
    assert!(matches!(error, CreateError::Damaged { outstanding: 2, .. }), "{error:?}");
    for told in ["slot_word.state is 7", "in slot 1", "fresh", "forebay clean", "2 messages"] {
        assert!(error.to_string().contains(told), "{told:?} is not in {error}");
    }
    assert_eq!(pool.all(), before, "it was refused, and has changed something");
    // Its messages are still there for who mends the word.
    pool.set(word, truth);
    let heir = here(&place, "nonsense").create().unwrap();
    assert_eq!(heir.takeover().map(|found| found.outstanding), Some(3));
    drop(heir);
    place.sweep();

    left(&place, "nonsense", Kind::Queue);
    Object::named(&place, "nonsense", "pool").set(word, 7);
    let mut fresh = here(&place, "nonsense").fresh(true).create().unwrap();
    let mut reader = attach(&place, "nonsense").attach().unwrap();
    publish(&mut fresh, 8).unwrap();
    next(&mut reader);
    fresh.drain(Some(WATCHDOG)).unwrap();
    fresh.discard();

    left(&place, "nonsense", Kind::Queue);
    Object::named(&place, "nonsense", "pool").set(word, 7);
    let cleaned = forebay::inspect::clean(Some(place.path())).unwrap();
    assert!(cleaned.kept.is_empty(), "{cleaned:?}");
    here(&place, "nonsense").create().unwrap().discard();
}
