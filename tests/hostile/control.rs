//! The packets of the rendezvous socket: every word of each, in both directions, and packets that are too short, too long,
//! out of order or nobody's.

use std::time::Instant;

use forebay::{Backing, Kind, Producer};
use forebay_layout::{
    check_ring_name,
    control::{Control, FRAME_BYTES, FRAME_WORDS, Frame, Hello, Intent, Label, RefuseCode, Welcome},
    header::MAJOR,
};
use forebay_os::{Conn, Dir, SocketError};
use forebay_testkit::{Place, WATCHDOG, ledger::publish};

use crate::{
    impostor::{Impostor, Step},
    rig::{
        Book,
        Expect::{Either, Hint, Refused},
        Outcome, Row, row, span, tile, word,
    },
    stage::{attach, here, next},
};

pub(crate) fn bytes(frame: &Frame) -> Vec<u8> {
    frame.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(crate) fn frame(bytes: &[u8]) -> Option<Frame> {
    let mut frame = [0; FRAME_WORDS];
    if bytes.len() != FRAME_BYTES {
        return None;
    }
    for (word, chunk) in frame.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(chunk.try_into().unwrap());
    }
    Some(frame)
}

pub(crate) fn hello(ring: &str, intent: Intent) -> Control {
    Control::Hello(Hello {
        intent,
        layout_major: MAJOR,
        membarrier: true,
        pid: std::process::id(),
        ring: check_ring_name(ring).unwrap(),
        label: Label::from("liar").unwrap(),
    })
}

/// The server's next packet, or that it hung up.
pub(crate) fn answer(conn: &Conn) -> Result<(Control, Vec<std::os::fd::OwnedFd>), SocketError> {
    let mut buffer = [0; FRAME_BYTES];
    let received = conn.recv(&mut buffer, 253, Some(Instant::now() + WATCHDOG))?;
    Ok((Control::decode(&frame(&buffer[..received.len]).unwrap()).unwrap(), received.fds))
}

/// What a client that sent its lie is told.
fn told(conn: &Conn) -> Outcome {
    match answer(conn) {
        Ok((Control::Refuse(_, reason), _)) => Outcome::Refused(reason.to_string()),
        Ok(_) => Outcome::Harmless,
        Err(SocketError::Hangup) => Outcome::Dropped,
        Err(e) => Outcome::Damage(e.to_string()),
    }
}

/// An honest client gets in and gets a message.
pub(crate) fn serves(place: &Place, producer: &mut Producer) -> Result<(), String> {
    let ring = producer.ring().to_owned();
    let mut consumer = attach(place, &ring).attach().map_err(|e| e.to_string())?;
    if producer.geometry().kind == Kind::Broadcast {
        producer.wait_for_consumers(1, Some(WATCHDOG)).map_err(|e| e.to_string())?;
    }
    let sent = publish(producer, 8).map_err(|e| e.to_string())?;
    (next(&mut consumer).sequence() == sent).then_some(()).ok_or_else(|| "another message".to_owned())
}

fn kind_of_packet(rows: &mut Vec<Row>) {
    rows.extend([
        word(0, "control.magic", Refused(&["control.magic"])),
        // Another type that is none, or one that does not belong here.
        word(1, "control.type", Refused(&["control.", "hello.", "does not belong here", "welcome", "refuse."])),
    ]);
}

/// The rows of a hello. Its fields are those of the struct: a new one does not compile here.
fn hello_rows(intent: Intent) -> Vec<Row> {
    let Control::Hello(Hello { intent: _, layout_major: _, membarrier: _, pid: _, ring: _, label: _ }) =
        hello("x", intent)
    else {
        unreachable!("that is what it makes")
    };
    // Nobody is known that could rejoin, whatever else it says.
    let rejoins = matches!(intent, Intent::Rejoin { .. });
    let (member, any) = if rejoins {
        (Refused(&["does not know", "hello.index"]), Refused(&["does not know", "hello.label"]))
    } else {
        (Refused(&["hello.member"]), Either(&["hello.label"]))
    };
    let mut rows = vec![
        word(2, "hello.intent", Either(&["hello.intent", "hello.member", "does not know"])),
        span(3..5, "hello.instance", member),
        row(5..6, 0..32, "hello.index", member),
        row(5..6, 32..64, "hello.incarnation", member),
        row(6..7, 0..16, "hello.layout_major", Refused(&["the producer writes layout"])),
        row(6..7, 16..17, "hello.membarrier", any),
        row(6..7, 17..64, "hello.version.rest", Refused(&["hello.version"])),
        row(7..8, 0..32, "hello.pid", any),
        row(7..8, 32..64, "hello.pid.rest", Refused(&["hello.pid"])),
        span(8..16, "hello.ring", Refused(&["hello.ring", "this is ring"])),
        span(16..24, "hello.label", any),
        span(24..FRAME_WORDS, "hello.rest", Refused(&["control.rest"])),
    ];
    kind_of_packet(&mut rows);
    tile(&rows, 0..FRAME_WORDS);
    rows
}

fn bare_rows(rest: &'static str) -> Vec<Row> {
    let mut rows = vec![span(2..FRAME_WORDS, rest, Refused(&["control.rest"]))];
    kind_of_packet(&mut rows);
    tile(&rows, 0..FRAME_WORDS);
    rows
}

fn packet_book(book: &mut Book, rows: &[Row], truth: &Frame, mut tell: impl FnMut(&Frame) -> Outcome) {
    book.all(
        rows,
        |word| truth[word],
        |word, lie| {
            let mut frame = *truth;
            frame[word] = lie;
            tell(&frame)
        },
    );
}

#[test]
fn no_word_of_a_hello_that_lies_is_believed() {
    for (kind, backing) in [(Kind::Queue, Backing::Posix), (Kind::Broadcast, Backing::Memfd)] {
        let place = Place::new();
        let mut producer = here(&place, "hello").kind(kind).backing(backing).max_consumers(32).create().unwrap();
        let dir = Dir::open(Some(place.path())).unwrap();
        let mut book = Book::new(&format!("hello to a {backing} {kind}"));
        let rejoin = Intent::Rejoin { instance: [1, 2], index: 0, incarnation: 1 };
        for intent in [Intent::Attach, Intent::Observe, rejoin] {
            let truth = hello("hello", intent).encode();
            packet_book(&mut book, &hello_rows(intent), &truth, |frame| {
                let conn = Conn::connect(&dir, "hello.sock").unwrap();
                conn.send(&bytes(frame), &[]).unwrap();
                told(&conn)
            });
        }
        book.close();
        serves(&place, &mut producer).unwrap();
        producer.discard();
    }
}

#[test]
fn no_word_of_ready_or_leave_that_lies_is_believed() {
    let place = Place::new();
    let mut producer = here(&place, "ready").max_consumers(32).create().unwrap();
    let dir = Dir::open(Some(place.path())).unwrap();
    let mut book = Book::new("ready and leave");
    let welcomed = || {
        let conn = Conn::connect(&dir, "ready.sock").unwrap();
        conn.send(&bytes(&hello("ready", Intent::Attach).encode()), &[]).unwrap();
        let (welcome, fds) = answer(&conn).unwrap();
        assert!(matches!(welcome, Control::Welcome(_)) && fds.len() == 6);
        (conn, fds)
    };
    packet_book(&mut book, &bare_rows("ready.rest"), &Control::Ready.encode(), |frame| {
        let (conn, fds) = welcomed();
        conn.send(&bytes(frame), &[]).unwrap();
        let outcome = told(&conn);
        drop(fds);
        outcome
    });
    packet_book(&mut book, &bare_rows("leave.rest"), &Control::Leave.encode(), |frame| {
        let (conn, fds) = welcomed();
        conn.send(&bytes(&Control::Ready.encode()), &[]).unwrap();
        assert!(matches!(answer(&conn), Ok((Control::Admitted, _))));
        conn.send(&bytes(frame), &[]).unwrap();
        let outcome = told(&conn);
        drop(fds);
        outcome
    });
    book.close();
    serves(&place, &mut producer).unwrap();
    producer.discard();
}

/// The rows of a welcome; as in [`hello_rows`], a new field does not compile here.
fn welcome_rows(welcome: &Welcome) -> Vec<Row> {
    let Welcome { instance: _, epoch: _, index: _, incarnation: _, lock_byte: _, producer_byte: _ } = welcome;
    let mut rows = vec![
        span(2..4, "welcome.instance", Refused(&["instance"])),
        // Which life it is, is compared with what the ring says later: another one is a successor to be greeted.
        word(4, "welcome.epoch", Either(&["welcome.epoch"])),
        row(5..6, 0..32, "welcome.index", Refused(&["welcome.index", "welcome.lock_byte", "object", "lock"])),
        row(5..6, 32..64, "welcome.incarnation", Either(&["welcome.incarnation"])),
        word(6, "welcome.lock_byte", Refused(&["welcome.lock_byte"])),
        word(7, "welcome.producer_byte", Refused(&["welcome.producer_byte", "welcome.lock_byte"])),
        span(8..FRAME_WORDS, "welcome.rest", Refused(&["control.rest"])),
    ];
    kind_of_packet(&mut rows);
    tile(&rows, 0..FRAME_WORDS);
    rows
}

#[test]
fn no_word_of_a_welcome_that_lies_is_believed() {
    for (kind, backing) in [(Kind::Queue, Backing::Posix), (Kind::Broadcast, Backing::Memfd)] {
        let impostor = Impostor::new(|place| here(place, "welcome").kind(kind).backing(backing).create().unwrap());
        let welcome = impostor.welcome();
        let Control::Welcome(fields) = &welcome else { panic!("{welcome:?}") };
        let mut book = Book::new(&format!("welcome of a {backing} {kind}"));
        // Who attaches gets another incarnation each time: the lie is told about the packet that came.
        for row in welcome_rows(fields) {
            for word in crate::rig::chosen(&row) {
                let truth = welcome.encode()[word];
                for lie in crate::rig::lies(&row, truth, 0x1234_5678_9abc_def1) {
                    book.lie(row.name, &format!("{lie:#x} (word {word})"), row.expect, || {
                        impostor.attach(Step::Welcome, |frame, _| frame[word] = lie)
                    });
                }
            }
        }
        book.close();
        impostor.end();
    }
}

/// Who only looks needs of a welcome whose ring it is, and takes the rest for hints.
#[test]
fn no_word_of_a_welcome_that_lies_is_believed_by_who_only_looks() {
    for kind in [Kind::Queue, Kind::Broadcast] {
        let impostor = Impostor::new(|place| here(place, "seen").kind(kind).backing(Backing::Memfd).create().unwrap());
        let welcome = impostor.welcome();
        let Control::Welcome(fields) = &welcome else { panic!("{welcome:?}") };
        let mut book = Book::new(&format!("welcome of a memfd {kind}, to look"));
        for mut row in welcome_rows(fields) {
            row.expect = match row.expect {
                Refused(names) if ["instance", "control.rest"].contains(&names[0]) => {
                    Refused(&["instance", "control."])
                }
                Refused(_) | Either(_) => {
                    Either(&["welcome", "control.", "hello.", "refuse.", "refused", "no welcome", "does not belong"])
                }
                Hint => Hint,
            };
            for word in crate::rig::chosen(&row) {
                let truth = welcome.encode()[word];
                for lie in crate::rig::lies(&row, truth, 0x1234_5678_9abc_def1) {
                    book.lie(row.name, &format!("{lie:#x} (word {word})"), row.expect, || {
                        impostor.look(|frame, _| frame[word] = lie)
                    });
                }
            }
        }
        for (what, make) in crate::descriptors::things() {
            for i in [0, 1, 2] {
                let expect = Either(&["object", "ring", "seal", "length", "mmap", "failed"]);
                book.lie("welcome.descriptors", &format!("{what} as number {i}"), expect, || {
                    impostor.look(|_, fds| fds[i] = make())
                });
            }
        }
        for count in [0, 1, 2, 30] {
            book.lie(
                "welcome.descriptors",
                &count.to_string(),
                Refused(&["descriptor", "objects of its members"]),
                || {
                    impostor.look(|_, fds| {
                        fds.truncate(count);
                        while fds.len() < count {
                            fds.push(std::fs::File::open("/dev/null").unwrap().into());
                        }
                    })
                },
            );
        }
        book.close();
        impostor.end();
    }
}

#[test]
fn no_word_of_an_admission_or_refusal_that_lies_is_believed() {
    let impostor = Impostor::new(|place| here(place, "admit").create().unwrap());
    let mut book = Book::new("admitted and refuse");
    packet_book(&mut book, &bare_rows("admitted.rest"), &Control::Admitted.encode(), |lie| {
        impostor.attach(Step::Admitted, |frame, _| *frame = *lie)
    });
    let codes = [
        RefuseCode::Version,
        RefuseCode::User,
        RefuseCode::Full,
        RefuseCode::Ring,
        RefuseCode::Stranger,
        RefuseCode::Failed,
    ];
    for code in codes {
        let mut truth = Control::Refuse(code, Default::default()).encode();
        truth[3] = u64::from_le_bytes(*b"said no\x1b");
        let mut rows = vec![
            word(2, "refuse.code", Either(&["refuse.code", "said no"])),
            span(3..53, "refuse.text", Either(&["refuse.text", "said no", "refused"])),
            span(53..FRAME_WORDS, "refuse.rest", Refused(&["control.rest"])),
        ];
        kind_of_packet(&mut rows);
        tile(&rows, 0..FRAME_WORDS);
        packet_book(&mut book, &rows, &truth, |lie| {
            impostor.attach(Step::Welcome, |frame, fds| {
                *frame = *lie;
                fds.clear();
            })
        });
    }
    book.close();
    impostor.end();
}

#[test]
fn packets_that_are_no_packets_are_answered_or_dropped_and_the_others_served() {
    let place = Place::new();
    let mut producer = here(&place, "garbage").create().unwrap();
    let dir = Dir::open(Some(place.path())).unwrap();
    let mut book = Book::new("frames that are none");
    let good = bytes(&hello("garbage", Intent::Attach).encode());
    let long = [good.clone(), good.clone()].concat();
    let huge = vec![0xa5; 100_000];
    let whole: [(&str, &[u8]); 7] = [
        ("1 byte", &good[..1]),
        ("8 bytes", &good[..8]),
        ("511 bytes", &good[..511]),
        ("513 bytes", &long[..513]),
        ("1024 bytes", &long),
        ("100,000 bytes", &huge),
        ("512 bytes of garbage", &huge[..512]),
    ];
    for (what, sent) in whole {
        book.lie("frame length", what, Either(&["control.bytes", "control.magic"]), || {
            let conn = Conn::connect(&dir, "garbage.sock").unwrap();
            conn.send(sent, &[]).unwrap();
            match told(&conn) {
                Outcome::Harmless => Outcome::Damage("it was taken for a hello".to_owned()),
                other => other,
            }
        });
    }
    // Packets of the right form at the wrong time.
    let early = [Control::Ready, Control::Leave, Control::Admitted];
    for packet in early {
        book.lie("frame order", &format!("{packet:?} first"), Refused(&["does not belong here"]), || {
            let conn = Conn::connect(&dir, "garbage.sock").unwrap();
            conn.send(&bytes(&packet.encode()), &[]).unwrap();
            told(&conn)
        });
    }
    for packet in [hello("garbage", Intent::Attach), Control::Leave, Control::Admitted] {
        book.lie("frame order", "another than ready", Refused(&["does not belong here"]), || {
            let conn = Conn::connect(&dir, "garbage.sock").unwrap();
            conn.send(&good, &[]).unwrap();
            let _fds = answer(&conn).unwrap();
            conn.send(&bytes(&packet.encode()), &[]).unwrap();
            told(&conn)
        });
    }
    book.lie("frame flood", "a thousand leaves", Either(&["does not belong here"]), || {
        let conn = Conn::connect(&dir, "garbage.sock").unwrap();
        for _ in 0..1000 {
            match conn.send(&bytes(&Control::Leave.encode()), &[]) {
                Ok(()) => {}
                Err(SocketError::Full | SocketError::Hangup) => break,
                Err(e) => return Outcome::Damage(e.to_string()),
            }
        }
        told(&conn)
    });
    book.lie("frame descriptors", "a hello with three", Hint, || {
        use std::os::fd::AsFd;
        let null = std::fs::File::open("/dev/null").unwrap();
        let conn = Conn::connect(&dir, "garbage.sock").unwrap();
        conn.send(&good, &[null.as_fd(); 3]).unwrap();
        match told(&conn) {
            Outcome::Harmless => Outcome::Damage("it was taken for a hello".to_owned()),
            other => other,
        }
    });
    book.close();
    serves(&place, &mut producer).unwrap();
    producer.discard();
}

/// A member is offered nothing before its byte is locked: who is not found alive would never be mended.
#[test]
fn who_says_ready_without_its_lock_is_no_member() {
    let place = Place::new();
    let mut producer = here(&place, "loose").create().unwrap();
    let dir = Dir::open(Some(place.path())).unwrap();
    let conn = Conn::connect(&dir, "loose.sock").unwrap();
    conn.send(&bytes(&hello("loose", Intent::Attach).encode()), &[]).unwrap();
    let (_, fds) = answer(&conn).unwrap();
    drop(fds);
    conn.send(&bytes(&Control::Ready.encode()), &[]).unwrap();
    let (said, _) = answer(&conn).unwrap();
    assert!(matches!(&said, Control::Refuse(_, why) if why.contains("lock byte is not held")), "{said:?}");
    assert_eq!(producer.consumers(), 0);
    serves(&place, &mut producer).unwrap();
    producer.discard();
}

/// Went wrong: whoever knew the instance could go on as another member; that one's eventfd was replaced, and it was taken
/// to be leaving when the impostor hung up.
#[test]
fn nobody_goes_on_as_a_member_that_is_connected() {
    for (kind, backing) in [(Kind::Queue, Backing::Posix), (Kind::Broadcast, Backing::Memfd)] {
        let place = Place::new();
        let mut producer = here(&place, "twin").kind(kind).backing(backing).create().unwrap();
        let mut victim = attach(&place, "twin").attach().unwrap();
        producer.wait_for_consumers(1, Some(WATCHDOG)).unwrap();
        let dir = Dir::open(Some(place.path())).unwrap();
        let ask = |intent| {
            let conn = Conn::connect(&dir, "twin.sock").unwrap();
            conn.send(&bytes(&hello("twin", intent).encode()), &[]).unwrap();
            answer(&conn).unwrap().0
        };
        let Control::Welcome(Welcome { instance, .. }) = ask(Intent::Observe) else { panic!("an observer is welcome") };
        for incarnation in 1..3 {
            let index = victim.index().into();
            let said = ask(Intent::Rejoin { instance, index, incarnation });
            assert!(matches!(said, Control::Refuse(RefuseCode::Stranger, _)), "{said:?}");
        }
        assert_eq!(producer.consumers(), 1);
        publish(&mut producer, 8).unwrap();
        next(&mut victim);
        producer.discard();
    }
}
