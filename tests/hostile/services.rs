//! A peer of a service that sends messages which no honest one sends: it has the ring that it should have, and writes what
//! it likes into its messages. Every byte of a header, and every word of an item's row.

use forebay::{
    Backing, Consumer, DType, FieldSpec, Producer,
    service::{Answer, AnswerKind, Client, Error, ITEMS_FIELD, Item, Meta, Server, TEXT_FIELD},
};
use forebay_testkit::{Place, WATCHDOG};

const BYTES: usize = 64;

/// A header as the documentation has it.
fn header(kind: u8, request: u64, items: u32) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes[..8].copy_from_slice(&[b'F', b'B', b'S', b'V', 1, 0, kind, 0]);
    bytes[8..16].copy_from_slice(&request.to_le_bytes());
    bytes[16..20].copy_from_slice(&items.to_le_bytes());
    bytes
}

/// A message to be sent by a liar.
#[derive(Clone)]
struct Lie {
    header: Vec<u8>,
    /// Name, dtype, shape, elements.
    fields: Vec<(&'static str, DType, Vec<u64>, Vec<u64>)>,
}

impl Lie {
    fn new(header: [u8; BYTES]) -> Self {
        Self { header: header.to_vec(), fields: Vec::new() }
    }

    fn with(mut self, name: &'static str, dtype: DType, shape: &[u64], elements: &[u64]) -> Self {
        self.fields.push((name, dtype, shape.to_vec(), elements.to_vec()));
        self
    }

    fn rows(self, rows: &[[u64; 2]]) -> Self {
        self.with(ITEMS_FIELD, DType::U64, &[rows.len() as u64, 2], rows.as_flattened())
    }

    fn send(&self, ring: &mut Producer) {
        let specs: Vec<_> =
            self.fields.iter().map(|(name, dtype, shape, _)| FieldSpec::new(name, *dtype, shape)).collect();
        let mut loan = ring.try_loan(&specs).unwrap();
        for (index, (.., elements)) in self.fields.iter().enumerate() {
            let bytes: Vec<u8> = elements.iter().flat_map(|element| element.to_le_bytes()).collect();
            let room = loan.bytes_mut(index).unwrap();
            let len = room.len().min(bytes.len());
            room[..len].copy_from_slice(&bytes[..len]);
        }
        loan.set_user(&self.header).unwrap();
        loan.publish().unwrap();
    }
}

/// A client with one open request of items 7 and 8, and the ring that its lying server answers on.
fn deceived_client() -> (Place, Client, Producer, (Consumer, Consumer)) {
    let place = Place::new();
    let mut client = Client::options("s").dir(place.path()).slots(4).slot_bytes(4096).create().unwrap();
    let attach = |ring| Consumer::options(ring).dir(place.path()).attach().unwrap();
    let seats = (attach("s.c"), attach("s.q"));
    let answers = Producer::options("s.a").dir(place.path()).backing(Backing::Memfd).slots(8).slot_bytes(4096);
    let answers = answers.create().unwrap();
    assert!(client.accept_within(&mut || false).unwrap());
    let loan = client.request(&[FieldSpec::new("x", DType::U8, &[2])], &[Item::new(7), Item::new(8)]).unwrap();
    assert_eq!(loan.publish(&Meta::default()).unwrap(), 1);
    (place, client, answers, seats)
}

fn good_result() -> Lie {
    Lie::new(header(17, 1, 2)).with("y", DType::U64, &[2], &[1, 2]).rows(&[[7, 1 << 8], [8, 1 << 8]])
}

fn told(lie: &Lie) -> Result<Answer, Error> {
    let (_place, mut client, mut answers, _seats) = deceived_client();
    lie.send(&mut answers);
    let found = client.recv_timeout(WATCHDOG);
    if let Err(e) = &found {
        let again = client.try_answer().unwrap_err();
        assert_eq!(again.to_string(), e.to_string(), "it stays of no use");
        assert!(!client.is_alive());
    }
    found
}

#[test]
fn an_answer_as_the_documentation_says_is_read() {
    let answer = told(&good_result()).unwrap();
    assert_eq!((answer.kind(), answer.request(), answer.items().len()), (AnswerKind::Result, 1, 2));
    let mut ready = header(16, 0, 0);
    ready[44] = 5;
    let ready = Lie::new(ready).with(TEXT_FIELD, DType::U8, &[8], &[u64::from_le_bytes(*b"hello   ")]);
    assert_eq!(told(&ready).unwrap().readiness().unwrap().text, "hello");
}

#[test]
fn an_answer_that_lies_is_an_error_that_names_the_field() {
    let text = |lie: Lie, bytes: u64| lie.with(TEXT_FIELD, DType::U8, &[bytes], &[]);
    let word = |status: u64, last: u64, len: u64, from: u64| status | last << 8 | len << 16 | from << 32;
    let mut failed_with_text = header(19, 1, 0);
    failed_with_text[40] = 9;
    let mut overflowing = header(19, 1, 0);
    overflowing[40..48].fill(0xff);
    let two = |a: [u64; 2], b: [u64; 2]| Lie::new(header(17, 1, 2)).rows(&[a, b]);
    let cases: Vec<(&str, Lie)> = vec![
        ("kind", Lie { header: header(1, 1, 2).to_vec(), ..good_result() }),
        ("kind", Lie { header: header(2, 1, 2).to_vec(), ..good_result() }),
        ("request", Lie { header: header(17, 2, 2).to_vec(), ..good_result() }),
        ("request", Lie::new(header(19, 9, 0))),
        ("items", Lie { header: header(17, 1, 1).to_vec(), ..good_result() }),
        ("items", Lie { header: header(17, 1, u32::MAX).to_vec(), ..good_result() }),
        ("items", Lie::new(header(17, 1, 2)).with("y", DType::U64, &[2], &[])),
        ("items", Lie::new(header(17, 1, 2)).with(ITEMS_FIELD, DType::F64, &[2, 2], &[7, 0, 8, 0])),
        ("items", two([8, 1 << 8], [7, 1 << 8])),
        ("items", Lie::new(header(17, 1, 1)).rows(&[[7, 1 << 8]])),
        ("items", two([7, 1 << 8], [7, 1 << 8])),
        ("item is 9", two([7, 1 << 8], [9, 1 << 8])),
        ("status", two([7, word(3, 1, 0, 0)], [8, 1 << 8])),
        ("last", two([7, word(0, 2, 0, 0)], [8, 1 << 8])),
        ("text", two([7, word(1, 1, 1, 0)], [8, 1 << 8])),
        ("text", text(two([7, word(1, 1, 5, 4)], [8, 1 << 8]), 8)),
        ("text", text(two([7, word(1, 1, 0xffff, 0xffff_ffff)], [8, 1 << 8]), 8)),
        ("rows", good_result().with("z", DType::U64, &[3], &[])),
        ("rows", good_result().with("z", DType::U64, &[], &[])),
        ("text_bytes", text(Lie::new(failed_with_text), 8)),
        ("text_bytes", text(Lie::new(overflowing), 8)),
        ("text_bytes", Lie::new(failed_with_text).with(TEXT_FIELD, DType::I8, &[64], &[])),
        ("item is 9", Lie::new(header(18, 0, 1)).rows(&[[9, 0]])),
        ("item is 7", Lie::new(header(18, 0, 2)).rows(&[[7, 1 << 8], [7, 0]])),
    ];
    for (index, (word, lie)) in cases.into_iter().enumerate() {
        match told(&lie) {
            Err(e @ Error::Defect { .. }) => assert!(e.to_string().contains(word), "case {index}: {e}"),
            found => panic!("case {index}, {word}: {found:?}"),
        }
    }
}

#[test]
fn every_byte_of_an_answers_header_may_lie() {
    for at in 0..BYTES {
        for value in [1, 0x7f, 0xff] {
            let mut lie = good_result();
            lie.header[at] ^= value;
            match told(&lie) {
                Err(Error::Version { found, expected: 1, .. }) => assert!(matches!(at, 4 | 5) && found != 1),
                // The times say nothing that could be wrong, nor do a pid and ranks that nobody asks about; 17 becomes 16,
                // a server that is ready.
                Ok(_) => {
                    assert!((24..40).contains(&at) || (48..56).contains(&at) || (at, value) == (6, 1), "byte {at}")
                }
                Err(Error::Defect { .. }) => {}
                Err(e) => panic!("byte {at}: {e}"),
            }
        }
    }
    for len in [0, 1, 63] {
        let mut lie = good_result();
        lie.header.truncate(len);
        assert!(matches!(told(&lie), Err(Error::Defect { .. })));
    }
}

#[test]
fn a_text_that_is_none_is_shown_up_to_where_it_is() {
    let mut bytes = header(19, 1, 0);
    (bytes[40], bytes[44]) = (2, 4);
    let lie = Lie::new(bytes).with(
        TEXT_FIELD,
        DType::U8,
        &[8],
        &[u64::from_le_bytes([b'o', b'k', b'a', 0xff, b'b', b'c', 0, 0])],
    );
    assert_eq!(told(&lie).unwrap().failure(), Some(("ok", "a")));
}

/// A server, and the rings that its lying client made.
fn deceived_server() -> (Place, Server, Producer, Producer) {
    let place = Place::new();
    let ring = |name, bytes| {
        let options = Producer::options(name).dir(place.path()).backing(Backing::Memfd).slots(8);
        options.slot_bytes(bytes).create().unwrap()
    };
    let (requests, control) = (ring("s.q", 4096), ring("s.c", 1 << 18));
    let server = Server::options("s").dir(place.path()).answer_slot_bytes(4096).attach().unwrap();
    (place, server, requests, control)
}

fn good_request() -> Lie {
    Lie::new(header(1, 1, 2)).with("x", DType::U64, &[2], &[1, 2]).rows(&[[7, 0], [8, 0]])
}

#[test]
fn a_request_that_lies_is_an_error_that_names_the_field() {
    let cases: Vec<(&str, Lie)> = vec![
        ("kind", Lie { header: header(17, 1, 2).to_vec(), ..good_request() }),
        ("items", Lie { header: header(1, 1, 3).to_vec(), ..good_request() }),
        ("items", Lie { header: header(1, 1, u32::MAX).to_vec(), ..good_request() }),
        ("items", Lie::new(header(1, 1, 0)).with(ITEMS_FIELD, DType::U64, &[0, 2], &[])),
        ("items", Lie::new(header(1, 1, 2)).with("x", DType::U64, &[2], &[])),
        ("items", Lie::new(header(1, 1, 2)).with(ITEMS_FIELD, DType::I64, &[2, 2], &[])),
        ("items", Lie::new(header(1, 1, 2)).with(ITEMS_FIELD, DType::U64, &[4], &[])),
        ("rows", good_request().with("z", DType::U8, &[3], &[])),
        ("item is 7", Lie::new(header(1, 1, 2)).rows(&[[7, 0], [7, 0]])),
    ];
    for (index, (word, lie)) in cases.into_iter().enumerate() {
        let (_place, mut server, mut requests, _control) = deceived_server();
        lie.send(&mut requests);
        for _ in 0..2 {
            match server.recv() {
                Err(e @ Error::Defect { .. }) => assert!(e.to_string().contains(word), "case {index}: {e}"),
                found => panic!("case {index}, {word}: {found:?}"),
            }
        }
    }
    let (_place, mut server, mut requests, _control) = deceived_server();
    good_request().send(&mut requests);
    good_request().send(&mut requests);
    assert_eq!(server.recv().unwrap().items().len(), 2);
    let twice = server.recv().unwrap_err();
    assert!(matches!(&twice, Error::Defect { .. }), "{twice}");
    let (_place, mut server, mut requests, _control) = deceived_server();
    let mut newer = good_request();
    newer.header[4] = 9;
    newer.send(&mut requests);
    let found = server.recv().unwrap_err();
    assert!(matches!(&found, Error::Version { found: 9, expected: 1, .. }));
    assert!(found.to_string().contains("header version 9, this build reads 1"), "{found}");
}

#[test]
fn a_cancellation_that_lies_ends_the_service_and_one_too_many_is_forgotten() {
    let ids = |request, ids: &[u64]| {
        Lie::new(header(2, request, ids.len() as u32)).with(ITEMS_FIELD, DType::U64, &[ids.len() as u64], ids)
    };
    let wrong = [
        Lie { header: header(2, 1, 9).to_vec(), ..ids(1, &[7]) },
        Lie { header: header(1, 1, 1).to_vec(), ..ids(1, &[7]) },
        Lie { header: b"short".to_vec(), ..ids(1, &[7]) },
        Lie::new(header(2, 1, 1)),
    ];
    for lie in &wrong {
        let (_place, mut server, mut requests, mut control) = deceived_server();
        good_request().send(&mut requests);
        let request = server.recv().unwrap();
        lie.send(&mut control);
        assert!(request.cancelled(0), "such a client is not worked for");
    }
    let (_place, mut server, mut requests, mut control) = deceived_server();
    good_request().send(&mut requests);
    let request = server.recv().unwrap();
    // Of others' items, of requests that never were, and of more than anybody keeps.
    ids(1, &[9, 10]).send(&mut control);
    ids(0, &[7]).send(&mut control);
    assert!(!request.cancelled(0) && !request.cancelled(1));
    let many: Vec<u64> = (0..20_000).collect();
    for round in 0..20u64 {
        ids(1_000 + round, &many.iter().map(|id| id + round * 20_000 + 100).collect::<Vec<_>>()).send(&mut control);
        assert!(!request.cancelled(0));
    }
    ids(1, &[8]).send(&mut control);
    assert!(!request.cancelled(0) && request.cancelled(1));
}
