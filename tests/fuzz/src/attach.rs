//! The objects of a ring with words that lie, as each of those meets them who open a ring: a consumer that attaches
//! and receives, somebody who looks, a producer that takes over.
//!
//! An input starts with how (path, kind, what becomes of the lengths), then says which words of real objects are
//! others: all of the ring object, its head, or single ones. After attaching, more of them change.

use std::{
    fs,
    io::Write,
    os::{fd::OwnedFd, unix::fs::FileExt, unix::fs::OpenOptionsExt},
    time::Duration,
};

use forebay::{AckMode, Consumer, CreateError, DType, Kind, Message, Producer, ProducerOptions, Schema};
use forebay_layout::control::{Control, Welcome};
use forebay_os::{Access, Dir, EventFd, LockFile, object::shm};
use forebay_testkit::Place;

use crate::{
    bytes::Bytes,
    server::{RING, Server, packet},
};

/// Bytes of the largest raw ring object.
const LARGEST: usize = 64 << 10;

thread_local! {
    static STAGE: Stage = Stage::new();
}

/// The target `attach`.
pub fn run(data: &[u8]) {
    STAGE.with(|stage| stage.play(Bytes::new(data)));
}

/// The objects of a real ring, in which messages wait: part name and bytes.
type Image = Vec<(String, Vec<u8>)>;

struct Stage {
    server: Server,
    images: [Image; 3],
}

/// A ring of the three there are.
fn options(place: &Place, which: usize) -> ProducerOptions {
    let options = Producer::options(RING).dir(place.path()).slots(3).slot_bytes(600).max_consumers(2).prefault(false);
    match which {
        0 => options,
        1 => options.schema(schema()),
        _ => options.kind(Kind::Broadcast),
    }
}

fn schema() -> Schema {
    Schema::builder("fuzz", 1, 0).field("ids", DType::I64, &[8]).field("mask", DType::U8, &[8]).build().unwrap()
}

/// What a producer leaves behind that dies with two messages published, one of them received.
fn image(which: usize) -> Image {
    let place = Place::new();
    let mut producer = options(&place, which).create().unwrap();
    let mut consumer = Consumer::options(RING).dir(place.path()).attach().unwrap();
    for _ in 0..2 {
        let mut ids = [0; 64];
        ids[0] = 7;
        producer.send(&[("ids", DType::I64, &[8], &ids), ("mask", DType::U8, &[8], &[1; 8])]).unwrap();
    }
    let held = consumer.recv().unwrap();
    producer.suspend();
    let part = |path: &std::path::Path| path.extension().unwrap().to_string_lossy().into_owned();
    let image = place.objects().iter().map(|path| (part(path), fs::read(path).unwrap())).collect();
    drop((held, consumer));
    place.sweep();
    image
}

impl Stage {
    fn new() -> Self {
        Self { server: Server::start(), images: [0, 1, 2].map(image) }
    }

    fn play(&self, mut input: Bytes<'_>) {
        let how = input.byte();
        let which = usize::from(how >> 2 & 3).min(2);
        let mut objects = self.images[which].clone();
        cut(&mut objects, input.byte());
        let later = match how >> 4 & 3 {
            0 => {
                ring_of(&mut objects).splice(.., input.rest().iter().copied().take(LARGEST));
                Bytes::new(&[])
            }
            1 => {
                let ring = ring_of(&mut objects);
                let words = usize::from(input.byte());
                let head = input.take(words * 8);
                let len = head.len().min(ring.len());
                ring[..len].copy_from_slice(&head[..len]);
                input
            }
            _ => {
                for _ in 0..input.below(16) {
                    lie(&mut objects, &mut input);
                }
                input
            }
        };
        let place = &self.server.place;
        for (part, bytes) in &objects {
            let mut file = fs::OpenOptions::new();
            let path = place.object(RING, part);
            let mut file = file.create(true).write(true).truncate(true).mode(0o600).open(path).unwrap();
            file.write_all(bytes).unwrap();
        }
        match how & 3 {
            0 => self.look(),
            1 => self.take_over(which),
            _ => self.attach(which, how, objects, later),
        }
        place.sweep();
    }

    fn look(&self) {
        let path = self.server.place.path();
        for report in forebay::inspect::list(Some(path)).unwrap() {
            match report.view {
                Ok(view) => {
                    let slots: u32 = view.classes.iter().map(|class| class.slots).sum();
                    assert!(view.depth <= slots.into(), "more messages than slots");
                    assert!(view.consumers.len() <= forebay::MAX_CONSUMERS);
                }
                Err(why) => assert!(!why.is_empty()),
            }
        }
    }

    /// A successor: the ring that it takes over works, or it says what is wrong and leaves everything as it is.
    fn take_over(&self, which: usize) {
        let place = &self.server.place;
        match options(place, which).create() {
            Ok(mut producer) => {
                if let Some(takeover) = producer.takeover() {
                    assert!(takeover.last_user.len() <= forebay::MAX_USER_BYTES);
                }
                let _ = producer.try_loan(&[]).map(|loan| loan.publish());
                producer.discard();
            }
            Err(CreateError::Different { .. }) => {}
            Err(e) => panic!("{e}"),
        }
        // The lock file, and what an unfinished ring was replaced by.
        let dir = Dir::open(Some(place.path())).unwrap();
        dir.remove(&format!("{RING}.lock")).unwrap();
    }

    fn attach(&self, which: usize, how: u8, mut objects: Image, mut later: Bytes<'_>) {
        let place = &self.server.place;
        let dir = Dir::open(Some(place.path())).unwrap();
        let open = |part: &str, access| {
            let path = place.object(RING, part);
            shm::open(&format!("/{}", path.file_name().unwrap().to_string_lossy()), access).unwrap()
        };
        let members = if which == 2 { "m1" } else { "pool" };
        let writable = how & 0x40 != 0;
        let data = if writable { Access::ReadWrite } else { Access::ReadOnly };
        let file = LockFile::anonymous().unwrap();
        let fds: Vec<OwnedFd> = vec![
            open("ring", Access::ReadOnly),
            open("data", data),
            open(members, Access::ReadWrite),
            file.try_lock(2).unwrap().unwrap(),
            file.probe_fd().unwrap(),
            bell(),
        ];
        let ring = objects.iter().position(|(part, _)| part == "ring").unwrap();
        objects.swap(0, ring);
        let word = |i: usize| {
            let bytes = objects[0].1.get(i * 8..i * 8 + 8);
            bytes.map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
        };
        let welcome = Control::Welcome(Welcome {
            instance: [word(2), word(3)],
            epoch: 1,
            index: 1,
            incarnation: 1,
            lock_byte: 2,
            producer_byte: 0,
        });
        let answers = vec![(packet(&welcome), fds), (packet(&Control::Admitted), Vec::new())];
        let options = Consumer::options(RING)
            .dir(dir.path())
            .timeout(Some(Duration::ZERO))
            .reconnect(Duration::ZERO)
            .prefault(how & 0x80 != 0)
            .writable(writable)
            .ack(AckMode::Auto);
        self.server.with(answers, || {
            let Ok(mut consumer) = options.attach() else { return };
            receive(&mut consumer);
            for _ in 0..8 {
                if later.is_empty() {
                    break;
                }
                self.lie_in_place(&mut objects, &mut later);
                receive(&mut consumer);
            }
            consumer.close();
        });
    }

    /// As [`lie`], in the object that others have mapped.
    fn lie_in_place(&self, objects: &mut Image, input: &mut Bytes<'_>) {
        if let Some((part, at, value)) = lie(objects, input) {
            let path = self.server.place.object(RING, &part);
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.write_all_at(&value.to_le_bytes(), at as u64).unwrap();
        }
    }
}

fn bell() -> OwnedFd {
    use std::os::fd::AsFd;
    EventFd::new().unwrap().as_fd().try_clone_to_owned().unwrap()
}

fn ring_of(objects: &mut Image) -> &mut Vec<u8> {
    &mut objects.iter_mut().find(|(part, _)| part == "ring").unwrap().1
}

/// Makes one object shorter or longer.
fn cut(objects: &mut Image, how: u8) {
    let count = objects.len();
    let (_, bytes) = &mut objects[usize::from(how >> 3) % count];
    let len = bytes.len();
    match how & 7 {
        1 => bytes.truncate(len - 1),
        2 => bytes.truncate(len - 8),
        3 => bytes.truncate(4096),
        4 => bytes.truncate(0),
        5 => bytes.resize(len + 4096, 0),
        _ => {}
    }
}

/// Changes one word: which object, where, to what. Offsets near the start are likelier, because headers are there.
fn lie(objects: &mut Image, input: &mut Bytes<'_>) -> Option<(String, usize, u64)> {
    let count = objects.len();
    let (part, bytes) = &mut objects[input.below(count)];
    let word = usize::from(if input.byte() & 1 == 0 { input.byte().into() } else { input.half() });
    let words = bytes.len() / 8;
    if words == 0 {
        return None;
    }
    let at = word % words * 8;
    let old = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let value = input.value(old);
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    Some((part.clone(), at, value))
}

/// Receives until there is nothing or something is wrong, and reads all of it.
fn receive(consumer: &mut Consumer) {
    for _ in 0..8 {
        match consumer.try_recv() {
            Ok(Some(message)) => read(&message, consumer.data_range()),
            Ok(None) | Err(_) => break,
        }
    }
    let _ = (consumer.stats(), consumer.held());
}

fn read(message: &Message, mapped: std::ops::Range<usize>) {
    let _ = (message.user().len(), message.timestamp_ns(), message.payload_bytes(), message.correlation_id());
    for index in 0..message.len() {
        let tensor = message.tensor_at(index).unwrap();
        let bytes = tensor.as_bytes();
        let start = bytes.as_ptr() as usize;
        assert!(bytes.is_empty() || mapped.start <= start && start + bytes.len() <= mapped.end);
        std::hint::black_box(bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)));
        let _ = (tensor.as_slice::<i64>().is_ok(), message.name(index).map(str::len));
    }
}
