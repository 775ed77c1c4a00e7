//! Consumers that lie: to their producer, and to each other. The pool of a queue, the parts of its members, and the
//! objects of the members of a broadcast ring.

use std::time::Duration;

use forebay::{Backing, Consumer, Kind, LoanError, Producer, WhenFull};
use forebay_testkit::{
    Place, WATCHDOG, audit,
    ledger::{self, publish},
};

use crate::{
    messages::receive,
    rig::{Book, Outcome, Row, attach_at_last, span, word},
    stage::{attach, here},
    tables,
    words::Object,
};

const SOON: Duration = Duration::from_millis(2);

/// Everything a producer does, once. Errors that a full ring gives are fine.
fn exercise(producer: &mut Producer) -> Result<(), String> {
    for _ in 0..3 {
        match publish(producer, 8) {
            Ok(_) | Err(LoanError::Full { .. }) => {}
            Err(e) => return Err(format!("publish: {e}")),
        }
    }
    let _ = (producer.take_dead_letters().len(), producer.stats(), producer.consumers());
    let _ = producer.drain(Some(Duration::from_millis(1)));
    Ok(())
}

fn producer(place: &Place, ring: &str, kind: Kind, backing: Backing, when_full: WhenFull) -> Producer {
    let options = here(place, ring).slots(4).max_consumers(2).kind(kind).backing(backing).when_full(when_full);
    options.full_timeout(Some(SOON)).create().unwrap()
}

fn pair(place: &Place, ring: &str, producer: &mut Producer) -> (Consumer, Consumer) {
    let consumers = (attach_at_last(&attach(place, ring)), attach_at_last(&attach(place, ring)));
    producer.wait_for_consumers(2, Some(WATCHDOG)).unwrap();
    consumers
}

/// A queue with a message claimed by each of two members and one waiting; `lie` is told by member 1 in the pool. The
/// victims are the producer, member 0, and who attaches next.
fn queue(place: &Place, when_full: WhenFull, tell: impl FnOnce(&Object)) -> Outcome {
    let mut producer = producer(place, "pool", Kind::Queue, Backing::Posix, when_full);
    let (mut honest, mut liar) = pair(place, "pool", &mut producer);
    for _ in 0..3 {
        publish(&mut producer, 8).unwrap();
    }
    let held = (honest.recv_timeout(WATCHDOG).unwrap(), liar.recv_timeout(WATCHDOG).unwrap());
    tell(&Object::named(place, "pool", "pool"));
    let made = exercise(&mut producer);
    let outcome = receive(&mut honest);
    drop(held);
    drop(liar);
    let next = match attach(place, "pool").timeout(Some(Duration::ZERO)).attach() {
        Ok(mut next) => receive(&mut next),
        Err(e) => crate::header::attached(&e),
    };
    let again = exercise(&mut producer);
    drop(honest);
    producer.discard();
    match (made.and(again), outcome, next) {
        (Err(what), ..) => Outcome::Damage(what),
        (_, Outcome::Harmless, next) => next,
        (_, found, _) => found,
    }
}

fn queue_truth(place: &Place) -> (Vec<u64>, forebay_layout::header::Header) {
    let mut truth = None;
    let outcome = queue(place, WhenFull::Block, |pool| {
        truth = Some((pool.all(), audit::header(&place.object("pool", "ring"))));
    });
    assert_eq!(outcome, Outcome::Harmless);
    truth.unwrap()
}

#[test]
fn no_word_of_a_pool_that_a_member_lies_in_stops_the_others() {
    let place = Place::new();
    let (truth, header) = queue_truth(&place);
    let plan = &header.plan;
    let mut rows: Vec<Row> = tables::pool_page();
    for slot in 0..plan.slots as usize {
        rows.extend(tables::slot_word(plan.slot_word + slot * forebay_layout::pool::SLOT_WORD_STRIDE));
    }
    for index in 0..2 {
        rows.extend(tables::member_part(plan.member_word + index * plan.member_words, plan, false));
    }
    for when_full in [WhenFull::Block, WhenFull::DropOldest] {
        let mut book = Book::new(&format!("pool of a queue ({when_full}), by a member"));
        book.all(&rows, |word| truth[word], |word, lie| queue(&place, when_full, |pool| pool.set(word, lie)));
        book.close();
    }
}

/// Went wrong: a member that wrote FULL over the word of a slot which another one holds made that one lease it again. On a
/// writable ring it then had two exclusive views of the same bytes.
#[test]
fn a_slot_that_is_held_is_not_leased_a_second_time() {
    let place = Place::new();
    let mut producer = here(&place, "twice").slots(4).writable(true).create().unwrap();
    let mut victim = attach(&place, "twice").writable(true).attach().unwrap();
    let sent = publish(&mut producer, 8).unwrap();
    let held = victim.recv_timeout(WATCHDOG).unwrap();
    let plan = audit::header(&place.object("twice", "ring")).plan;
    let pool = Object::named(&place, "twice", "pool");
    let word = plan.slot_word + held.slot() as usize * forebay_layout::pool::SLOT_WORD_STRIDE;
    let full = forebay_ring::SlotWord::full((pool.get(word) >> 32) as u32, 0);
    pool.set(word, full.raw());
    // A given back message is looked for.
    pool.set(forebay_layout::pool::RETURNS, 77);
    let error = victim.recv_timeout(WATCHDOG).unwrap_err();
    assert!(error.to_string().contains("one that this consumer does not hold already"), "{error}");
    ledger::check_message(&held);
    assert_eq!(held.sequence(), sent);
    drop((held, victim));
    producer.discard();
}

/// A memfd broadcast ring with two members, of which the second lies in its own object; it has received one of three
/// messages. The first one gets every message whole, whatever the second says, unless the ring waits for that.
fn broadcast(place: &Place, when_full: WhenFull, tell: impl FnOnce(&Object)) -> Outcome {
    let mut producer = producer(place, "fan", Kind::Broadcast, Backing::Memfd, when_full);
    let (mut honest, mut liar) = pair(place, "fan", &mut producer);
    assert_eq!((honest.index(), liar.index()), (0, 1));
    for _ in 0..3 {
        publish(&mut producer, 8).unwrap();
    }
    let held = liar.recv_timeout(WATCHDOG).unwrap();
    tell(&Object::anonymous("fan", "m1"));
    let mut made = exercise(&mut producer);
    let last = producer.stats().published;
    // What the producer published, the honest one gets: none lost, none twice, every word right.
    let mut seen = 0;
    while let Ok(message) = honest.recv_timeout(SOON) {
        ledger::check_message(&message);
        if message.sequence() != seen + 1 && when_full == WhenFull::Block {
            made = Err(format!("message {} after {seen}", message.sequence()));
        }
        seen = message.sequence();
    }
    if seen != last {
        made = Err(format!("message {last} was published, {seen} was the last that came"));
    }
    // The liar's own handle may be poisoned by what it wrote.
    let own = receive(&mut liar);
    drop(held);
    drop(liar);
    // Once it has gone, nothing it wrote is of any consequence.
    let next = attach(place, "fan").timeout(Some(Duration::ZERO)).attach().map(drop).map_err(|e| e.to_string());
    let after = (1..=6).try_for_each(|_| {
        producer.loan_timeout(&spec(), WATCHDOG).map(drop).map_err(|e| e.to_string())?;
        let sent = publish(&mut producer, 8).map_err(|e| e.to_string())?;
        let message = honest.recv_timeout(WATCHDOG).map_err(|e| e.to_string())?;
        (message.sequence() == sent).then_some(()).ok_or(format!("{} instead of {sent}", message.sequence()))
    });
    drop(honest);
    producer.discard();
    match (made, after, next) {
        (Err(what), ..) | (_, Err(what), _) => Outcome::Damage(what),
        (.., Err(what)) => Outcome::Refused(what),
        _ => own,
    }
}

fn spec() -> [forebay::FieldSpec<'static>; 1] {
    [forebay::FieldSpec::new(ledger::FIELD, forebay::DType::U64, &[8])]
}

#[test]
fn no_word_that_a_broadcast_member_lies_in_harms_its_producer_or_another_member() {
    let place = Place::new();
    let mut truth = None;
    let plan = {
        let _posix = producer(&place, "plan", Kind::Broadcast, Backing::Posix, WhenFull::Block);
        audit::header(&place.object("plan", "ring")).plan
    };
    assert_eq!(broadcast(&place, WhenFull::Block, |part| truth = Some(part.all())), Outcome::Harmless);
    let truth = truth.unwrap();
    use crate::rig::Expect::{Hint, Refused};
    let mut rows = vec![
        word(0, "member.magic", Refused(&["magic"])),
        word(1, "member.object", Refused(&["object"])),
        span(2..4, "member.instance", Refused(&["instance"])),
        span(4..plan.member_word, "member.unread", Hint),
    ];
    rows.extend(tables::member_part(plan.member_word, &plan, true));
    crate::rig::tile(&rows, 0..plan.member_word + forebay_layout::member::SINCE + 2 * plan.slots as usize);
    for when_full in [WhenFull::Block, WhenFull::DropOldest] {
        let mut book = Book::new(&format!("object of a broadcast member ({when_full})"));
        book.all(&rows, |word| truth[word], |word, lie| broadcast(&place, when_full, |part| part.set(word, lie)));
        book.close();
    }
}
