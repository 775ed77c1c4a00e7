//! A producer that lies about its messages: position entries, descriptors, slot words, and the words of its header that
//! change. The victim is a consumer that attached before and receives after.

use std::time::Duration;

use forebay::{Consumer, DType, Kind, Producer, RecvError, WhenFull};
use forebay_layout::{MAX_FIELDS, descriptor::HEAD_WORDS, entry::ENTRY_WORDS, header::Header, pool::SLOT_WORD_STRIDE};
use forebay_testkit::{Place, audit, ledger::publish};

use crate::{
    rig::{Book, Expect, Outcome, Row, attach_at_last, span},
    stage::{attach, here},
    tables,
    words::Object,
};

/// Reads a message to its last byte; says what is wrong if a tensor of it lies where it must not.
pub(crate) fn read(consumer: &Consumer, message: &forebay::Message) -> Result<(), String> {
    let range = consumer.data_range();
    for index in 0..message.len() {
        let tensor = message.tensor_at(index).ok_or("a tensor that is not there")?;
        let start = tensor.as_ptr().as_ptr() as usize;
        let bytes = tensor.shape().iter().product::<u64>() * tensor.dtype().size() as u64;
        if start < range.start || start + tensor.nbytes() as usize > range.end || bytes != tensor.nbytes() {
            return Err(format!("tensor {index} at {start:#x} of {} bytes, outside {range:#x?}", tensor.nbytes()));
        }
        std::hint::black_box(tensor.as_bytes().iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)));
    }
    std::hint::black_box((message.user().to_vec(), message.names().map(str::len).sum::<usize>(), message.held_for()));
    Ok(())
}

/// Receives whatever comes in a few milliseconds.
pub(crate) fn receive(consumer: &mut Consumer) -> Outcome {
    for _ in 0..3 {
        match consumer.recv_timeout(Duration::from_millis(1)) {
            Ok(message) => {
                if let Err(what) = read(consumer, &message) {
                    return Outcome::Damage(what);
                }
            }
            Err(e) => return received(&e),
        }
    }
    Outcome::Harmless
}

pub(crate) fn received(error: &RecvError) -> Outcome {
    match error {
        RecvError::Timeout { .. } | RecvError::Quota { .. } => Outcome::Harmless,
        RecvError::Closed { .. } | RecvError::PeerDied { .. } | RecvError::Replaced { .. } => Outcome::Dropped,
        RecvError::Poisoned { .. } | RecvError::Os(_) => Outcome::Refused(error.to_string()),
        other => Outcome::Damage(other.to_string()),
    }
}

/// Whether messages name their own fields, and have two and user data, so that only the descriptor says it all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Whole,
    Described,
}

struct Scene {
    place: Place,
    kind: Kind,
    when_full: WhenFull,
    shape: Shape,
    /// The message's position entry is gone, as after a producer's death: a scan finds it, by its descriptor.
    lost: bool,
}

const RING: &str = "liar";

impl Scene {
    fn new(kind: Kind, when_full: WhenFull, shape: Shape) -> Self {
        Self { place: Place::new(), kind, when_full, shape, lost: false }
    }

    fn producer(&self) -> Producer {
        let base = match self.shape {
            Shape::Whole => here(&self.place, RING),
            Shape::Described => Producer::options(RING).dir(self.place.path()).slot_bytes(4096),
        };
        base.slots(4).max_consumers(2).kind(self.kind).when_full(self.when_full).full_timeout(None).create().unwrap()
    }

    fn publish(&self, producer: &mut Producer) {
        match self.shape {
            Shape::Whole => drop(publish(producer, 8).unwrap()),
            Shape::Described => {
                let fields = [("a", DType::U64, [3u64]), ("bcd", DType::F32, [5])];
                let specs = fields.map(|(name, dtype, _)| (name, dtype));
                let specs: Vec<_> = specs
                    .iter()
                    .zip(&fields)
                    .map(|((n, d), (.., dims))| forebay::FieldSpec::new(n, *d, dims))
                    .collect();
                let mut loan = producer.loan(&specs).unwrap();
                loan.set_user(b"lying").unwrap();
                loan.publish().unwrap();
            }
        }
    }

    fn header(&self) -> Header {
        let producer = self.producer();
        self.header_of(&producer)
    }

    fn header_of(&self, _living: &Producer) -> Header {
        audit::header(&self.place.object(RING, "ring"))
    }

    /// A ring of its own for each lie: one message is published, a word of `part` changed, and then received.
    fn tell(&self, part: &str, word: usize, lie: u64) -> Outcome {
        let mut producer = self.producer();
        let mut consumer = attach_at_last(&attach(&self.place, RING));
        producer.wait_for_consumers(1, None).unwrap();
        self.publish(&mut producer);
        if self.lost {
            Object::named(&self.place, RING, "ring").set(entry(&self.header_of(&producer)), 0);
        }
        Object::named(&self.place, RING, part).set(word, lie);
        let outcome = receive(&mut consumer);
        drop(consumer);
        producer.discard();
        outcome
    }

    /// What stands in the words of `part` of such a ring.
    fn truth(&self, part: &str) -> Vec<u64> {
        let mut producer = self.producer();
        let consumer = attach_at_last(&attach(&self.place, RING));
        producer.wait_for_consumers(1, None).unwrap();
        self.publish(&mut producer);
        let truth = Object::named(&self.place, RING, part).all();
        drop(consumer);
        producer.discard();
        truth
    }

    fn book(&self, subject: &str, part: &str, rows: &[Row]) {
        let policy = if self.when_full == WhenFull::DropOldest { "lossy " } else { "" };
        let mut book = Book::new(&format!("{policy}{} {subject}, after attach", self.kind));
        let truth = self.truth(part);
        book.all(rows, |word| truth[word], |word, lie| self.tell(part, word, lie));
        book.close();
    }

    /// The part that has the slot words.
    fn pool(&self) -> &'static str {
        if self.kind == Kind::Queue { "pool" } else { "ring" }
    }
}

/// Message 1 lies in slot 0.
fn entry(header: &Header) -> usize {
    header.plan.position_word + ENTRY_WORDS
}

/// Both kinds, and the lossy ones.
const KINDS: [(Kind, WhenFull); 4] = [
    (Kind::Queue, WhenFull::Block),
    (Kind::Queue, WhenFull::DropOldest),
    (Kind::Broadcast, WhenFull::Block),
    (Kind::Broadcast, WhenFull::DropOldest),
];

#[test]
fn no_word_of_a_position_entry_that_lies_is_believed() {
    for (kind, when_full) in KINDS {
        let scene = Scene::new(kind, when_full, Shape::Whole);
        let header = scene.header();
        scene.book("position entry", "ring", &tables::whole_entry(entry(&header)));
        // Nobody needs this one's descriptor but for its sequence, which a scan looks at.
        let first = header.plan.descriptor_word;
        let rows = [
            span(first..first + 1, "descriptor.sequence", Expect::Either(&["descriptor.sequence"])),
            span(first + 1..first + HEAD_WORDS, "descriptor", Expect::Hint),
        ];
        scene.book("descriptor beside it", "ring", &rows);
    }
}

#[test]
fn no_word_of_a_descriptor_that_lies_is_believed() {
    for (kind, when_full) in KINDS {
        let mut scene = Scene::new(kind, when_full, Shape::Described);
        let header = scene.header();
        assert_eq!(header.geometry.max_fields as usize, MAX_FIELDS);
        scene.book("entry of two tensors", "ring", &tables::hint_entry(entry(&header)));
        let rows = tables::descriptor(header.plan.descriptor_word, 2, MAX_FIELDS);
        // The entry says what the descriptor's head says, and is read in its stead.
        let fields: Vec<_> = rows.iter().filter(|row| row.name.starts_with("field.")).cloned().collect();
        scene.book("fields of a descriptor", "ring", &fields);
        scene.lost = true;
        scene.book("descriptor without an entry", "ring", &rows);
    }
}

#[test]
fn no_slot_word_that_lies_is_believed() {
    for (kind, when_full) in KINDS {
        for shape in [Shape::Whole, Shape::Described] {
            let scene = Scene::new(kind, when_full, shape);
            let plan = scene.header().plan;
            let mut rows = tables::slot_word(plan.slot_word);
            // The words between two slot words are nobody's.
            let next = plan.slot_word + SLOT_WORD_STRIDE;
            rows.push(span(plan.slot_word + 1..next, "slot_word.unread", Expect::Hint));
            rows.extend(tables::slot_word(next));
            scene.book(&format!("slot words, {shape:?}"), scene.pool(), &rows);
        }
    }
}

#[test]
fn the_producer_s_words_of_a_header_are_hints() {
    for (kind, when_full) in KINDS {
        let scene = Scene::new(kind, when_full, Shape::Whole);
        scene.book("producer's words", "ring", &tables::producer_lines(Expect::Hint));
    }
}

#[test]
fn join_words_that_lie_lead_to_no_message_that_is_not_owed() {
    let scene = Scene::new(Kind::Broadcast, WhenFull::Block, Shape::Whole);
    let plan = scene.header().plan;
    let own = plan.join_word;
    let rows = [
        span(own..own + 1, "join.sequence", Expect::Either(&["position.stamp"])),
        span(own + 1..own + 2, "join.incarnation", Expect::Hint),
        span(own + 2..own + 64, "join.others", Expect::Hint),
    ];
    scene.book("join table", "ring", &rows);
}
