//! Packets of the rendezvous socket: decoded, sent to a producer that lives, and sent to a consumer that attaches.

use std::{
    cell::RefCell,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use arrayvec::ArrayString;
use forebay::{Consumer, DType, Kind, Producer, WhenFull};
use forebay_layout::{
    check_ring_name,
    control::{Control, FRAME_BYTES, FRAME_WORDS, Frame, Hello, Intent, Label, RefuseCode, Welcome},
};
use forebay_os::{
    Dir, EventFd, LockFile,
    object::memfd,
    socket::{Conn, SocketError},
};
use forebay_testkit::Place;

use crate::{
    bytes::Bytes,
    server::{Answer, RING, SOON, Server, deadline, packet},
};

/// The target `control`.
pub fn run(data: &[u8]) {
    let mut input = Bytes::new(data);
    match input.byte() % 4 {
        0 => decode(input.rest()),
        1 | 2 => LIVING.with_borrow_mut(|living| living.talk(input)),
        _ => ROGUE.with_borrow(|rogue| lure(rogue, input)),
    }
}

/// A packet of any words: refused, or one that encodes to itself.
fn decode(bytes: &[u8]) {
    let mut frame: Frame = [0; FRAME_WORDS];
    for (word, chunk) in frame.iter_mut().zip(bytes.chunks(8)) {
        let mut whole = [0; 8];
        whole[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_le_bytes(whole);
    }
    match Control::decode(&frame) {
        Ok(message) => assert_eq!(message.encode(), frame, "{message:?} has two encodings"),
        Err(defect) => assert!(!defect.to_string().is_empty()),
    }
}

/// A real packet of which some words are others, or any bytes.
fn next_packet(input: &mut Bytes<'_>, instance: [u64; 2]) -> Vec<u8> {
    let kind = input.byte();
    let index = u32::from(kind >> 4 & 3);
    let hello = |intent| {
        Control::Hello(Hello {
            intent,
            layout_major: 1,
            membarrier: kind & 0x80 == 0,
            pid: 1,
            ring: check_ring_name(RING).unwrap(),
            label: Label::from("fuzz").unwrap(),
        })
    };
    let message = match kind & 15 {
        0 | 1 => hello(Intent::Attach),
        2 => hello(Intent::Rejoin { instance, index, incarnation: 1 }),
        3 => hello(Intent::Observe),
        4 | 5 => Control::Ready,
        6 => Control::Leave,
        7 => Control::Admitted,
        8 => Control::Refuse(RefuseCode::Full, ArrayString::from("no").unwrap()),
        9..12 => Control::Welcome(Welcome {
            instance,
            epoch: 1,
            index,
            incarnation: 1,
            lock_byte: u64::from(index) + 1,
            producer_byte: 0,
        }),
        _ => {
            let len = usize::from(input.half()) % (FRAME_BYTES + 16);
            return input.take(len).to_vec();
        }
    };
    let mut bytes = packet(&message);
    for _ in 0..input.below(4) {
        let at = input.below(FRAME_WORDS) * 8;
        let old = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        bytes[at..at + 8].copy_from_slice(&input.value(old).to_le_bytes());
    }
    bytes
}

/// Descriptors of kinds that do not belong there.
fn junk(input: &mut Bytes<'_>) -> Vec<OwnedFd> {
    (0..input.below(9))
        .map(|_| match input.byte() % 5 {
            0 => EventFd::new().unwrap().as_fd().try_clone_to_owned().unwrap(),
            1 => LockFile::anonymous().unwrap().try_lock(1).unwrap().unwrap(),
            2 => Conn::pair().unwrap().0.as_fd().try_clone_to_owned().unwrap(),
            3 => std::fs::File::open("/dev/null").unwrap().into(),
            _ => {
                let fd = memfd::create("fuzz", None).unwrap();
                std::fs::File::from(fd.try_clone().unwrap()).set_len(u64::from(input.half()) * 8).unwrap();
                fd
            }
        })
        .collect()
}

// === a producer that lives ===

thread_local! {
    static LIVING: RefCell<Living> = RefCell::new(Living::start());
}

/// A producer with one honest consumer on each kind of ring, and whoever comes.
struct Living {
    place: Place,
    rings: [(Producer, Consumer); 2],
    sent: u64,
}

impl Living {
    fn start() -> Self {
        let place = Place::new();
        let rings = [("fuzz", Kind::Queue), ("other", Kind::Broadcast)].map(|(ring, kind)| {
            let producer = Producer::options(ring)
                .dir(place.path())
                .kind(kind)
                .backing(forebay::Backing::Memfd)
                .when_full(WhenFull::DropOldest)
                .slots(4)
                .slot_bytes(64)
                .max_consumers(4)
                .create()
                .unwrap();
            let consumer = Consumer::options(ring).dir(place.path()).attach().unwrap();
            (producer, consumer)
        });
        Self { place, rings, sent: 0 }
    }

    /// Says up to four packets. Each is answered, or the connection is closed: never silence.
    fn talk(&mut self, mut input: Bytes<'_>) {
        let dir = Dir::open(Some(self.place.path())).unwrap();
        let ring = ["fuzz.sock", "other.sock"][input.below(2)];
        let conn = Conn::connect(&dir, ring).unwrap();
        let mut kept = Vec::new();
        for _ in 0..4 {
            let bytes = next_packet(&mut input, [0; 2]);
            let fds = if input.byte() & 7 == 0 { junk(&mut input) } else { Vec::new() };
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
            if bytes.is_empty() || conn.send(&bytes, &fds).is_err() {
                break;
            }
            match conn.recv(&mut [0; FRAME_BYTES], 80, deadline()) {
                Ok(received) => kept.push(received),
                Err(SocketError::Hangup) => break,
                Err(SocketError::Os(e)) if e.kind() == std::io::ErrorKind::ConnectionReset => break,
                Err(e) => panic!("no answer and no end: {e}"),
            }
            if input.is_empty() {
                break;
            }
        }
        drop((conn, kept));
        self.works();
    }

    /// Whoever was honest notices nothing.
    fn works(&mut self) {
        for (producer, consumer) in &mut self.rings {
            self.sent += 1;
            let bytes = self.sent.to_le_bytes();
            producer.send(&[("x", DType::U64, &[1], &bytes)]).unwrap();
            let message = consumer.recv_timeout(SOON).unwrap();
            assert_eq!(message.tensor_at(0).unwrap().as_bytes(), bytes);
        }
    }
}

// === a consumer that attaches ===

thread_local! {
    static ROGUE: RefCell<Server> = RefCell::new(Server::start());
}

/// A consumer connects and hears anything; it ends with an error, soon.
fn lure(rogue: &Server, mut input: Bytes<'_>) {
    let mut answers: Vec<Answer> = Vec::new();
    for _ in 0..3 {
        let instance = [input.word(), 0];
        answers.push((next_packet(&mut input, instance), junk(&mut input)));
    }
    let options = Consumer::options(RING).dir(rogue.place.path()).timeout(Some(Duration::ZERO)).prefault(false);
    let attached = rogue.with(answers, || options.attach().map(drop));
    assert!(attached.is_err(), "attached to nothing");
}
