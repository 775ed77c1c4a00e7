//! Messages of a service whose other end says whatever it is told to: answers, to a real client; requests and
//! cancellations, to a real server.
//!
//! An input says how the service is made, then what happens one after the other. A message starts as one that is right
//! for what is open now; then some of it becomes something else: words of the header, of the items' rows and of texts,
//! fields, their names, types and dims. Or it is any bytes from the start. What the real end makes of it is held against
//! an account of what is open; in the end every slot is free, and a well-formed exchange works.

mod answers;
mod requests;

use std::{
    thread,
    time::{Duration, Instant},
};

use forebay::{
    ANY, Backing, Consumer, DType, DeadLetters, FieldSpec, Kind, Loan, LoanError, Message, Producer, ProducerOptions,
    Schema,
    service::{Error, ITEMS_FIELD, TEXT_FIELD},
};
use forebay_testkit::Place;

use crate::{bytes::Bytes, server::SOON};

/// The service's name.
const SERVICE: &str = "fuzz";
/// Slots of each ring.
const SLOTS: u32 = 4;
/// What one input may do.
const MOST_STEPS: usize = 16;
/// Ids of the exchange at the end, which an input's own never are by themselves.
const LAST_ITEM: u64 = 1 << 40;

thread_local! {
    static PLACE: Place = Place::new();
}

/// The target `service`.
pub fn run(data: &[u8]) {
    let mut input = Bytes::new(data);
    let how = How::new(input.byte());
    PLACE.with(
        |place| if how.requests { requests::play(place, &how, input) } else { answers::play(place, &how, input) },
    );
}

/// How the service of an input is made.
struct How {
    /// Whether the liar asks, or answers.
    requests: bool,
    ranks: u32,
    schema: Fields,
}

/// Which fields the ring of the liar says that its messages have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fields {
    /// Each message names its own.
    Any,
    /// Those that the service's own end would have given it.
    Right,
    /// The items' field is missing.
    NoItems,
    /// The items' field has another type.
    OtherItems,
}

impl How {
    fn new(byte: u8) -> Self {
        use Fields::{Any, NoItems, OtherItems, Right};
        let schema = [Any, Any, Any, Any, Right, NoItems, OtherItems];
        Self {
            requests: byte & 1 == 1,
            ranks: 1 + u32::from(byte >> 1 & 1),
            schema: schema[usize::from(byte >> 2) % schema.len()],
        }
    }
}

impl Fields {
    /// The schema; answers have texts.
    fn schema(self, which: &str) -> Option<Schema> {
        let builder = Schema::builder("fuzz", 1, 0).field("x", DType::F32, &[8, 2]);
        let builder = match self {
            Self::Any => return None,
            Self::Right => builder.field(ITEMS_FIELD, DType::U64, &[ANY, 2]),
            Self::NoItems => builder,
            Self::OtherItems => builder.field(ITEMS_FIELD, DType::I64, &[ANY, 2]),
        };
        let builder = if which == "a" { builder.field(TEXT_FIELD, DType::U8, &[256]) } else { builder };
        Some(builder.build().unwrap())
    }

    /// Whether a message can be right at all.
    fn can_be_right(self) -> bool {
        matches!(self, Self::Any | Self::Right)
    }
}

/// The name of one of the service's rings.
fn ring(which: &str) -> String {
    format!("{SERVICE}.{which}")
}

/// A ring of the liar's.
fn liars_ring(place: &Place, which: &str, schema: Fields, kind: Kind) -> Producer {
    let options: ProducerOptions = Producer::options(&ring(which))
        .dir(place.path())
        .kind(kind)
        .slots(SLOTS)
        .slot_bytes(1024)
        .quota(SLOTS)
        // Of a broadcast ring these are the ranks of the service.
        .max_consumers(if kind == Kind::Broadcast { 2 } else { 8 })
        .max_attempts(1)
        .dead_letters(DeadLetters::Discard)
        .backing(Backing::Memfd)
        .prefault(false);
    let options = schema.schema(which).into_iter().fold(options, ProducerOptions::schema);
    options.create().unwrap()
}

fn attach(place: &Place, which: &str) -> Consumer {
    let options = Consumer::options(&ring(which)).dir(place.path()).timeout(Some(SOON)).reconnect(Duration::ZERO);
    options.prefault(false).attach().unwrap()
}

/// The message that waits there.
fn next(consumer: &mut Consumer) -> Message {
    consumer.try_recv().unwrap().expect("a message was published")
}

/// Receives what nobody will any more, so that its slots are free.
fn receive_the_rest(place: &Place, which: &str) {
    let mut consumer = attach(place, which);
    while consumer.try_recv().unwrap().is_some() {}
}

/// Every slot can be loaned: none is held. What a member that left still had is mended by another thread, soon.
fn check_that_all_is_free(ring: &mut Producer) {
    let start = Instant::now();
    loop {
        let loan = |_| Draft::default().loan(ring).map(Loan::detach);
        match (0..SLOTS).map(loan).collect::<Result<Vec<_>, _>>() {
            Ok(_) => return,
            Err(LoanError::Full { .. }) if start.elapsed() < SOON / 2 => thread::sleep(Duration::from_micros(100)),
            Err(e) => panic!("{e}"),
        }
    }
}

/// The text of what cannot be read; it names the field, or both versions.
fn is_named(error: &Error) -> bool {
    let text = error.to_string();
    match error {
        Error::Defect { source, .. } => source.field.starts_with("service.") && text.contains(source.field),
        Error::Version { found, expected, .. } => {
            found != expected && text.contains(&found.to_string()) && text.contains(&expected.to_string())
        }
        _ => false,
    }
}

/// Looks at all of a message.
fn read(message: &Message) {
    for index in 0..message.len() {
        let bytes = message.bytes(index).unwrap();
        assert_eq!(Some(bytes.len() as u64), message.meta(index).map(|meta| meta.nbytes));
        std::hint::black_box(bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)));
    }
}

/// A field of a message that is not written yet.
#[derive(Debug, Clone)]
struct Field {
    name: &'static str,
    dtype: DType,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

impl Field {
    fn new(name: &'static str, dtype: DType, shape: &[u64], bytes: impl Into<Vec<u8>>) -> Self {
        Self { name, dtype, shape: shape.to_vec(), bytes: bytes.into() }
    }

    fn of_words(name: &'static str, shape: &[u64], words: impl IntoIterator<Item = u64>) -> Self {
        Self::new(name, DType::U64, shape, words.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<_>>())
    }
}

/// A message that is not written yet.
#[derive(Debug, Clone, Default)]
struct Draft {
    user: Vec<u8>,
    fields: Vec<Field>,
}

/// Names that fields get.
const NAMES: [&str; 6] = ["x", "y", ITEMS_FIELD, TEXT_FIELD, "forebay.item", "z"];
const DTYPES: [DType; 6] = [DType::U64, DType::U8, DType::F32, DType::I64, DType::Bool, DType::C128];

impl Draft {
    /// A header as the documentation draws it, and no field.
    fn new(kind: u8, request: u64, items: usize) -> Self {
        let mut user = vec![0; 64];
        user[..4].copy_from_slice(b"FBSV");
        user[4] = 1;
        user[6] = kind;
        user[8..16].copy_from_slice(&request.to_le_bytes());
        user[16..20].copy_from_slice(&(items as u32).to_le_bytes());
        Self { user, fields: Vec::new() }
    }

    fn with(mut self, field: Field) -> Self {
        self.fields.push(field);
        self
    }

    /// Stores a number of the header.
    fn put(&mut self, at: usize, number: u32) {
        self.user[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }

    /// Any user data, and perhaps a field.
    fn of_bytes(input: &mut Bytes<'_>) -> Self {
        let len = usize::from(input.half()) % 260;
        let mut draft = Self { user: input.take(len).to_vec(), fields: Vec::new() };
        if input.byte() & 1 == 1 {
            draft.fields.push(any_field(input));
        }
        draft
    }

    /// Makes something else of a part of it.
    fn lie(&mut self, input: &mut Bytes<'_>) {
        let what = input.byte() % 12;
        if what < 5 {
            return self.lie_in_the_header(input, what);
        }
        if what == 5 {
            return self.fields.push(any_field(input));
        }
        if self.fields.is_empty() {
            return;
        }
        let place = input.below(self.fields.len());
        let field = &mut self.fields[place];
        match what {
            6..=8 => change_a_word(&mut field.bytes, input),
            9 => field.name = NAMES[input.below(NAMES.len())],
            10 => {
                let dim = u64::from(input.byte() % 12);
                match input.below(9) {
                    8 => drop(field.shape.pop()),
                    at if at < field.shape.len() => field.shape[at] = dim,
                    _ => field.shape.push(dim),
                }
            }
            _ => match input.below(DTYPES.len() + 1) {
                0 => drop(self.fields.remove(place)),
                at => field.dtype = DTYPES[at - 1],
            },
        }
    }

    fn lie_in_the_header(&mut self, input: &mut Bytes<'_>, what: u8) {
        match what {
            0 => self.user.truncate(usize::from(input.byte())),
            1 => self.user.resize(self.user.len().max(input.byte().into()), 0),
            2 if !self.user.is_empty() => {
                let at = input.below(self.user.len());
                self.user[at] = input.byte();
            }
            _ => change_a_word(&mut self.user, input),
        }
    }

    /// A slot with the fields' bytes in it. Of a ring with a schema they become what that says, because its messages
    /// cannot be others: what it does not know is left out, what is missing is one element.
    fn loan<'p>(&self, ring: &'p mut Producer) -> Result<Loan<'p>, LoanError> {
        let own = |field: &forebay::Field| {
            let rank = field.max_dims().len();
            let fits = |own: &&Field| own.name == field.name.as_str() && own.shape.len() == rank;
            let found = self.fields.iter().find(fits);
            let shape = found.map_or_else(|| vec![1; rank], |own| own.shape.clone());
            let name = NAMES.into_iter().find(|name| *name == field.name.as_str()).unwrap_or_default();
            Field::new(name, field.dtype, &shape, found.map_or_else(Vec::new, |own| own.bytes.clone()))
        };
        let fields: Vec<Field> = match ring.schema() {
            Some(schema) => schema.fields().iter().map(own).collect(),
            None => self.fields.clone(),
        };
        let specs: Vec<_> = fields.iter().map(|field| FieldSpec::new(field.name, field.dtype, &field.shape)).collect();
        let mut loan = ring.try_loan(&specs)?;
        for (index, field) in fields.iter().enumerate() {
            let to = loan.bytes_mut(index).unwrap();
            let len = to.len().min(field.bytes.len());
            to[..len].copy_from_slice(&field.bytes[..len]);
            // What lies there of an earlier message would make an input mean something else each time.
            to[len..].fill(0);
        }
        Ok(loan)
    }

    /// Says it. False if there is no room, or no ring carries such a message.
    fn publish(&self, ring: &mut Producer) -> bool {
        let Ok(mut loan) = self.loan(ring) else { return false };
        let said = loan.set_user(&self.user).is_ok();
        said && loan.publish().is_ok()
    }
}

fn any_field(input: &mut Bytes<'_>) -> Field {
    let (name, dtype) = (NAMES[input.below(NAMES.len())], DTYPES[input.below(DTYPES.len())]);
    let shape: Vec<u64> = (0..input.below(4)).map(|_| u64::from(input.byte() % 12)).collect();
    let len = input.below(64);
    Field::new(name, dtype, &shape, input.take(len))
}

/// Changes a word: of eight bytes, or of the last few if there are fewer.
fn change_a_word(bytes: &mut [u8], input: &mut Bytes<'_>) {
    let (at, half) = (input.byte(), input.byte());
    let words = bytes.len().div_ceil(8);
    if words == 0 {
        return;
    }
    let start = usize::from(at) % words * 8 + usize::from(half & 1) * 4;
    let end = bytes.len().min(start + 8);
    let Some(word) = bytes.get_mut(start..end) else { return };
    let mut whole = [0; 8];
    whole[..word.len()].copy_from_slice(word);
    let value = input.value(u64::from_le_bytes(whole)).to_le_bytes();
    word.copy_from_slice(&value[..word.len()]);
}
