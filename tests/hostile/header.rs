//! The ring object's first page, its class table and its schema: read by whoever attaches, looks, or takes over.

use std::time::Duration;

use forebay::{AttachError, CreateError, Kind};
use forebay_layout::schema;
use forebay_testkit::{Place, audit, ledger::publish};

use crate::{
    rig::{Book, Expect::Refused, Outcome, Row, span},
    stage::{attach, here, producer},
    tables::{Reader, class_table, header_page},
    words::{Corpse, Object},
};

pub(crate) fn attached(error: &AttachError) -> Outcome {
    match error {
        AttachError::NotThere { .. } => Outcome::Dropped,
        other => Outcome::Refused(other.to_string()),
    }
}

/// Attaches, and takes one message if there is one.
fn consumer(place: &Place, ring: &str) -> Outcome {
    match attach(place, ring).timeout(Some(Duration::ZERO)).attach() {
        Ok(_) => Outcome::Harmless,
        Err(e) => attached(&e),
    }
}

fn observer(place: &Place, ring: &str) -> Outcome {
    let found = forebay::inspect::list(Some(place.path())).unwrap();
    match found.into_iter().find(|report| report.name == ring).unwrap().view {
        Ok(_) => Outcome::Harmless,
        Err(why) => Outcome::Refused(why),
    }
}

fn successor(place: &Place, ring: &str) -> Outcome {
    match here(place, ring).create() {
        Ok(mut producer) => {
            let anew = producer.takeover().is_none();
            let published = publish(&mut producer, 8).is_ok();
            producer.discard();
            match (anew, published) {
                (_, false) => Outcome::Damage("the successor cannot publish".to_owned()),
                (true, _) => Outcome::Refused("made anew".to_owned()),
                _ => Outcome::Harmless,
            }
        }
        Err(e @ (CreateError::Different { .. } | CreateError::Damaged { .. })) => Outcome::Refused(e.to_string()),
        Err(e) => Outcome::Damage(e.to_string()),
    }
}

/// The rows of a schema, word by word, its last one with the padding that nobody reads.
fn schema_rows(at: usize, bytes: usize) -> Vec<Row> {
    let names = &["schema", "name", "field", "max_fields"];
    let mut rows = vec![span(at..at + bytes / 8, "schema", Refused(names))];
    if !bytes.is_multiple_of(8) {
        let bits = (bytes % 8 * 8) as u32;
        rows.push(Row { bits: 0..bits, ..span(at + bytes / 8..at + bytes / 8 + 1, "schema", Refused(names)) });
    }
    rows
}

#[test]
fn no_word_of_a_header_that_lies_is_believed_by_who_attaches() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        let place = Place::new();
        let producer = here(&place, "head").kind(kind).create().unwrap();
        let ring = Object::named(&place, "head", "ring");
        let mut book = Book::new(&format!("{kind} header, before attach"));
        book.all(
            &header_page(Reader::Consumer, kind),
            |word| ring.get(word),
            |word, lie| {
                let truth = ring.get(word);
                ring.set(word, lie);
                let outcome = consumer(&place, "head");
                ring.set(word, truth);
                outcome
            },
        );
        book.close();
        producer.discard();
    }
}

#[test]
fn no_word_of_class_table_or_schema_that_lies_is_believed() {
    let place = Place::new();
    let producer = here(&place, "table").create().unwrap();
    let ring = Object::named(&place, "table", "ring");
    let header = audit::header(&place.object("table", "ring"));
    let mut rows = class_table(header.plan.class_word);
    let schema_bytes = header.geometry.schema_bytes as usize;
    assert!(schema_bytes > 12 && schema_bytes < schema::MAX_BYTES);
    rows.extend(schema_rows(header.plan.schema_word, schema_bytes));
    let mut book = Book::new("class table and schema, before attach");
    let expected = forebay_testkit::ledger::schema();
    book.all(
        &rows,
        |word| ring.get(word),
        |word, lie| {
            let truth = ring.get(word);
            ring.set(word, lie);
            // As somebody who knows the schema: other names and dims are other schemas, and differ.
            let options = attach(&place, "table").schema(expected.clone()).timeout(Some(Duration::ZERO));
            let outcome = match options.attach() {
                Ok(_) => Outcome::Harmless,
                Err(e) => attached(&e),
            };
            ring.set(word, truth);
            outcome
        },
    );
    book.close();
    producer.discard();
}

#[test]
fn no_word_of_a_header_that_lies_is_believed_by_who_only_looks() {
    let place = Place::new();
    let producer = here(&place, "looked").create().unwrap();
    let ring = Object::named(&place, "looked", "ring");
    let mut book = Book::new("header, before a look");
    book.all(
        &header_page(Reader::Observer, Kind::Queue),
        |word| ring.get(word),
        |word, lie| {
            let truth = ring.get(word);
            ring.set(word, lie);
            let outcome = observer(&place, "looked");
            ring.set(word, truth);
            outcome
        },
    );
    book.close();
    producer.discard();
}

#[test]
fn no_word_of_a_header_that_lies_is_believed_by_who_takes_over() {
    let place = Place::new();
    let mut feeder = producer(&place, "heir", "");
    feeder.ask("publish 3", "published 3");
    feeder.kill();
    let corpse = Corpse::of(&place, "heir");
    let truth = Object::named(&place, "heir", "ring").all();
    let mut book = Book::new("header, before a takeover");
    book.all(
        &header_page(Reader::Successor, Kind::Queue),
        |word| truth[word],
        |word, lie| {
            corpse.lay_out(&place, |part, bytes| {
                if part == "ring" {
                    bytes[word * 8..word * 8 + 8].copy_from_slice(&lie.to_le_bytes());
                }
            });
            successor(&place, "heir")
        },
    );
    book.close();
    place.sweep();
}
