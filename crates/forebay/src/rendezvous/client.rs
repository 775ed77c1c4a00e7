//! The consumer's side of the handshake.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use forebay_layout::{
    Backing, Defect, Kind, check_ring_name,
    control::{Control, FRAME_BYTES, FRAME_WORDS, Hello, Intent, Label, Welcome},
    header::{Header, MAJOR, Object, check_prefix},
};
use forebay_os::{
    Access, Barrier, Dir, EventFd, Held, Mapping, Probe, barrier, fork,
    object::{self, memfd},
    process,
    socket::{Conn, ConnectError, SocketError},
};
use forebay_ring::{Member, MemberId, Pool, ReadOnly, Reader, broadcast::BroadcastConsumer, queue::QueueConsumer};

use super::{
    locks::{PRODUCER_BYTE, member_byte},
    objects::{self, HeaderError},
    socket_file,
};
use crate::{
    consumer::{Consumer, ConsumerOptions, Core},
    error::AttachError,
    lease::{Attachment, Leases, Membership},
    segment::{Segment, Slots},
};

/// How long a connected producer may take to answer.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two looks for a socket that is not there yet.
const RETRY: Duration = Duration::from_millis(10);
/// Descriptors that come with a welcome at most.
const MAX_FDS: usize = 6;

/// Sends one control packet.
pub(crate) fn send(conn: &Conn, message: &Control, fds: &[std::os::fd::BorrowedFd<'_>]) -> Result<(), SocketError> {
    let mut bytes = [0; FRAME_BYTES];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(message.encode()) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    conn.send(&bytes, fds)
}

/// Reads a packet's bytes.
pub(crate) fn decode(bytes: &[u8]) -> Result<Control, Defect> {
    let whole: &[u8; FRAME_BYTES] = bytes
        .try_into()
        .map_err(|_| Defect::bounded("control.bytes", bytes.len() as u64, "packets of", FRAME_BYTES as u64))?;
    let mut frame = [0; FRAME_WORDS];
    for (word, chunk) in frame.iter_mut().zip(whole.chunks_exact(8)) {
        *word = u64::from_le_bytes(chunk.try_into().unwrap_or_default());
    }
    Control::decode(&frame)
}

/// A label cut to its limit, at a character's border.
pub(crate) fn label_of(text: &str) -> Label {
    let text = if text.is_empty() { process::comm_of(process::my_pid()).unwrap_or_default() } else { text.to_owned() };
    let mut label = Label::new();
    for c in text.chars().filter(|c| !c.is_control()) {
        if label.try_push(c).is_err() {
            break;
        }
    }
    label
}

/// What went wrong with one try.
enum TryError {
    /// Nobody listens yet.
    NotYet(String),
    Attach(AttachError),
}

impl From<AttachError> for TryError {
    fn from(e: AttachError) -> Self {
        Self::Attach(e)
    }
}

impl From<forebay_os::OsError> for TryError {
    fn from(e: forebay_os::OsError) -> Self {
        Self::Attach(AttachError::Os(e))
    }
}

/// Attaches; tries until the timeout while nobody listens.
pub(crate) fn attach(options: ConsumerOptions) -> Result<Consumer, AttachError> {
    attach_interruptible(options, &mut || false).map(|attached| attached.expect("nothing interrupts this"))
}

/// As [`attach`]; `None` once `interrupt`, asked about every 10 ms, says true.
pub(crate) fn attach_interruptible(
    options: ConsumerOptions,
    interrupt: &mut dyn FnMut() -> bool,
) -> Result<Option<Consumer>, AttachError> {
    let ring = options.ring.clone();
    check_ring_name(&ring).map_err(|source| AttachError::Name { ring: ring.clone(), source })?;
    let dir = Dir::open(options.dir.as_deref())?;
    let barrier = barrier::register();
    let start = Instant::now();
    loop {
        let why = match try_attach(&dir, &options, barrier) {
            Ok(consumer) => return Ok(Some(consumer)),
            Err(TryError::Attach(e)) => return Err(e),
            Err(TryError::NotYet(why)) => why,
        };
        if options.timeout.is_some_and(|timeout| start.elapsed() >= timeout) {
            let path = dir.path().join(socket_file(&ring)).display().to_string();
            return Err(AttachError::NotThere { ring, waited: start.elapsed(), path, found: why });
        }
        if interrupt() {
            return Ok(None);
        }
        std::thread::sleep(RETRY);
    }
}

fn hello(options: &ConsumerOptions, intent: Intent, barrier: Barrier) -> Result<Hello, AttachError> {
    let ring =
        check_ring_name(&options.ring).map_err(|source| AttachError::Name { ring: options.ring.clone(), source })?;
    Ok(Hello {
        intent,
        layout_major: MAJOR,
        membarrier: barrier == Barrier::Membarrier,
        pid: process::my_pid(),
        ring,
        label: label_of(&options.label),
    })
}

/// Receives one packet; `then` runs before any fork can happen, so that no child inherits its descriptors.
fn receive<R>(
    conn: &Conn,
    ring: &str,
    then: impl FnOnce(Result<Control, Defect>, Vec<OwnedFd>) -> R,
) -> Result<R, TryError> {
    let mut buffer = [0; FRAME_BYTES];
    let start = Instant::now();
    let deadline = start + HELLO_TIMEOUT;
    let received = loop {
        // Waited for outside of the section in which nobody forks; it may last a second.
        if !conn.wait_readable(Some(deadline))? {
            break Err(SocketError::TimedOut);
        }
        let _inside = fork::critical();
        match conn.try_recv(&mut buffer, MAX_FDS) {
            Ok(Some(received)) => break Ok(then(decode(&buffer[..received.len]), received.fds)),
            // Readable, and nothing was there: asked again, but not beyond the deadline.
            Ok(None) if Instant::now() >= deadline => break Err(SocketError::TimedOut),
            Ok(None) => {}
            Err(e) => break Err(e),
        }
    };
    match received {
        Ok(then) => Ok(then),
        Err(SocketError::Hangup) => Err(TryError::NotYet("a producer that hung up".to_owned())),
        Err(SocketError::TimedOut) => {
            Err(AttachError::Silent { ring: ring.to_owned(), waited: start.elapsed() }.into())
        }
        Err(SocketError::Os(e)) => Err(e.into()),
        Err(e) => Err(AttachError::Refused { ring: ring.to_owned(), reason: e.to_string() }.into()),
    }
}

fn unsent(ring: &str) -> impl Fn(SocketError) -> TryError + '_ {
    move |e| match e {
        SocketError::Os(e) => e.into(),
        SocketError::Hangup => TryError::NotYet("a producer that hung up".to_owned()),
        other => AttachError::Refused { ring: ring.to_owned(), reason: other.to_string() }.into(),
    }
}

fn connect(dir: &Dir, ring: &str) -> Result<Conn, TryError> {
    match Conn::connect(dir, &socket_file(ring)) {
        Ok(conn) => check_peer(dir, ring, conn),
        Err(ConnectError::NotYet { why, .. }) => Err(TryError::NotYet(why.to_owned())),
        Err(ConnectError::Os(e)) => Err(e.into()),
        Err(e) => Err(TryError::NotYet(e.to_string())),
    }
}

/// A producer of a user whom we do not trust is none of ours, whoever let it into the directory.
fn check_peer(dir: &Dir, ring: &str, conn: Conn) -> Result<Conn, TryError> {
    let uid = conn.peer()?.uid;
    if dir.trust().accepts(uid) {
        return Ok(conn);
    }
    let reason = format!("its producer runs as uid {uid}, which is not allowed here; run both sides as one user");
    Err(AttachError::Refused { ring: ring.to_owned(), reason }.into())
}

fn expect_welcome(ring: &str, message: Result<Control, Defect>) -> Result<Welcome, AttachError> {
    match message {
        Ok(Control::Welcome(welcome)) => Ok(welcome),
        Ok(Control::Refuse(_, reason)) => {
            Err(AttachError::Refused { ring: ring.to_owned(), reason: reason.as_str().to_owned() })
        }
        Ok(_) => {
            let source = Defect::new("control.type", 0, "a welcome or a refusal");
            Err(AttachError::Defect { ring: ring.to_owned(), source })
        }
        Err(source) => Err(AttachError::Defect { ring: ring.to_owned(), source }),
    }
}

/// What a welcome brought, with the lock already held by a mapping.
struct Welcomed {
    welcome: Welcome,
    ring: OwnedFd,
    data: OwnedFd,
    members: OwnedFd,
    liveness: Held,
    probe: Probe,
    bell: EventFd,
}

fn unpack(ring: &str, message: Result<Control, Defect>, fds: Vec<OwnedFd>) -> Result<Welcomed, AttachError> {
    let welcome = expect_welcome(ring, message)?;
    let count = fds.len() as u64;
    let Ok([ring_fd, data, members, lock, probe, bell]) = <[OwnedFd; 6]>::try_from(fds) else {
        let source = Defect::bounded("welcome.descriptors", count, "exactly", 6);
        return Err(AttachError::Defect { ring: ring.to_owned(), source });
    };
    let liveness = Held::hold(lock)?;
    let bell = EventFd::from_fd(bell)?;
    Ok(Welcomed { welcome, ring: ring_fd, data, members, liveness, probe: Probe::from_fd(probe), bell })
}

fn try_attach(dir: &Dir, options: &ConsumerOptions, barrier: Barrier) -> Result<Consumer, TryError> {
    let ring = options.ring.as_str();
    let conn = connect(dir, ring)?;
    let hello = hello(options, Intent::Attach, barrier)?;
    send(&conn, &Control::Hello(hello), &[]).map_err(unsent(ring))?;
    // From the receipt of the lock's descriptor until it is mapped and closed, nobody forks.
    let welcomed = receive(&conn, ring, |message, fds| unpack(ring, message, fds))??;
    let defect = |source| AttachError::Defect { ring: ring.to_owned(), source };
    let welcome = welcomed.welcome;

    let unread = |e: HeaderError| match e {
        HeaderError::Os(e) => TryError::from(e),
        HeaderError::Defect(source) => defect(source).into(),
    };
    let (header, segment) = objects::read_header(&welcomed.ring).map_err(unread)?;
    check_identity(ring, &header, &welcome).map_err(defect)?;
    let queue = header.geometry.kind == Kind::Queue;
    let object = if queue { Object::Pool } else { Object::Member(welcome.index as u8) };
    check_different([&welcomed.ring, &welcomed.data, &welcomed.members]).map_err(unread)?;
    for (fd, object) in [(&welcomed.ring, Object::Ring), (&welcomed.data, Object::Data), (&welcomed.members, object)] {
        check_object(fd, &header, object).map_err(unread)?;
    }
    if !welcomed.probe.is_locked(welcome.lock_byte)? {
        let source = Defect::new("lock", welcome.lock_byte, "the byte that the producer locked for us");
        return Err(defect(source).into());
    }
    let ring_words = ReadOnly::new(segment.clone());
    let schema = objects::read_schema(&ring_words, &header).map_err(defect)?;
    check_schema(options, schema.as_ref())?;
    if options.writable && !header.geometry.writable {
        return Err(AttachError::NotWritable { ring: ring.to_owned() }.into());
    }

    let access = if options.writable { Access::ReadWrite } else { Access::ReadOnly };
    let data = Mapping::map(welcomed.data.as_fd(), header.plan.data_bytes as usize, access)?;
    data.dont_dump();
    let members =
        Mapping::map(welcomed.members.as_fd(), objects::size_of(&header, object) as usize, Access::ReadWrite)?;
    let members = Segment::new(members);
    check_members(&members, object, &header).map_err(defect)?;
    let words = [segment, members.clone()];

    let me = MemberId { index: welcome.index as u8, incarnation: welcome.incarnation as u16 };
    let reader = Reader::new(ring_words, header.plan.clone(), header.geometry.max_fields);
    let pool = queue.then(|| Pool::new(members.clone(), &header.plan));
    let part = match &pool {
        Some(pool) => pool.member(&header.plan, me.index),
        None => Member::in_object(members, &header.plan),
    };
    let core = match &pool {
        // The consumer's own handle; leases use the attachment's.
        Some(pool) => {
            Core::Queue(QueueConsumer::new(reader.clone(), pool.clone(), me, header.geometry.claims_by_store()))
        }
        None => Core::Broadcast(BroadcastConsumer::new(reader.clone(), part.clone(), me, header.geometry.is_lossy())),
    };
    let data = Slots::new(data, &header.plan, options.writable);
    let leases = Leases::new(Membership {
        ring: ring.to_owned(),
        geometry: header.geometry,
        quota: options.quota,
        schema,
        instance: header.instance,
        me,
        reader,
        pool,
        part,
        data,
        probe: welcomed.probe,
        producer_byte: welcome.producer_byte,
        _liveness: welcomed.liveness,
    });
    finish(&conn, ring)?;
    let consumer = Consumer::assemble(leases, core, options.clone(), barrier, conn, welcomed.bell, welcome.epoch);
    if options.prefault {
        // Only now: of a large ring it takes longer than a producer waits for a Ready. If it fails, the consumer leaves.
        for segment in words {
            segment.mapping().populate()?;
        }
        consumer.populate()?;
    }
    Ok(consumer)
}

/// Says that everything is mapped and locked, and waits until the producer counts us in.
fn finish(conn: &Conn, ring: &str) -> Result<(), TryError> {
    send(conn, &Control::Ready, &[]).map_err(unsent(ring))?;
    receive(conn, ring, |message, _| match message {
        Ok(Control::Admitted) => Ok(()),
        // A second welcome is no admission.
        Ok(Control::Welcome(_)) => expect_welcome(ring, Ok(Control::Ready)).map(drop),
        other => expect_welcome(ring, other).map(drop),
    })?
    .map_err(TryError::from)
}

fn check_identity(ring: &str, header: &Header, welcome: &Welcome) -> Result<(), Defect> {
    if header.instance != welcome.instance {
        return Err(Defect::bounded("instance", header.instance[0], "the one of the welcome,", welcome.instance[0]));
    }
    if header.name.as_str() != ring {
        return Err(Defect::new("name", header.name.len() as u64, "the name of the ring that was asked for"));
    }
    if welcome.index >= header.geometry.max_consumers {
        let most = header.geometry.max_consumers.into();
        return Err(Defect::bounded("welcome.index", welcome.index.into(), "below max_consumers,", most));
    }
    if welcome.incarnation == 0 || welcome.incarnation > u16::MAX.into() {
        return Err(Defect::new("welcome.incarnation", welcome.incarnation.into(), "1 to 65535"));
    }
    if welcome.lock_byte != member_byte(welcome.index as u8) {
        return Err(Defect::new("welcome.lock_byte", welcome.lock_byte, "1 + the member's index"));
    }
    if welcome.producer_byte != PRODUCER_BYTE {
        return Err(Defect::bounded("welcome.producer_byte", welcome.producer_byte, "byte", PRODUCER_BYTE));
    }
    if welcome.epoch == 0 {
        return Err(Defect::new("welcome.epoch", 0, "at least 1"));
    }
    Ok(())
}

/// What is written as words must not also be handed out as bytes.
fn check_different([ring, data, members]: [&OwnedFd; 3]) -> Result<(), HeaderError> {
    let [ring, data, members] = [object::identity(ring)?, object::identity(data)?, object::identity(members)?];
    if ring == data || data == members || members == ring {
        return Err(Defect::bounded("welcome.descriptors", 2, "different objects, of which there are", 3).into());
    }
    Ok(())
}

/// On a memfd ring nobody needs to trust its producer not to cut an object, or not to have filled it: it can be seen.
fn check_object(fd: &OwnedFd, header: &Header, object: Object) -> Result<(), HeaderError> {
    if header.geometry.backing != Backing::Memfd {
        return Ok(());
    }
    if !memfd::seals(fd)?.contains(memfd::Seals::SHRINK) {
        return Err(
            Defect::bounded("seals", 0, "every object sealed against shrinking, as number", object.word()).into()
        );
    }
    let (found, needed) = (object::allocated_len(fd)?, objects::size_of(header, object));
    if found < needed {
        // Reading a hole takes memory, a page at a time, for as long as there is some.
        return Err(Defect::bounded("allocated bytes", found, "an object without holes, of", needed).into());
    }
    Ok(())
}

fn check_members(segment: &Segment, object: Object, header: &Header) -> Result<(), Defect> {
    let words = ReadOnly::new(segment.clone());
    check_prefix(&std::array::from_fn(|i| words.peek(i)), object, Some(header.instance))
}

fn check_schema(options: &ConsumerOptions, found: Option<&forebay_layout::schema::Schema>) -> Result<(), AttachError> {
    let Some(expected) = &options.schema else { return Ok(()) };
    let diff = match found {
        Some(found) => expected.mismatch(found).map(|diff| diff.to_string()),
        None => Some(format!("- schema {expected}\n+ no schema: each message names its own fields\n")),
    };
    match diff {
        Some(diff) => Err(AttachError::Schema { ring: options.ring.clone(), diff }),
        None => Ok(()),
    }
}

/// Greets the successor of a dead producer as the member it already has. Waits at most a second.
pub(crate) fn rejoin(attachment: &Attachment, options: &ConsumerOptions) -> Result<(Conn, EventFd), AttachError> {
    let ring = attachment.ring.as_str();
    let flat = |e| match e {
        TryError::Attach(e) => e,
        TryError::NotYet(found) => {
            AttachError::NotThere { ring: ring.to_owned(), waited: Duration::ZERO, path: socket_file(ring), found }
        }
    };
    let dir = Dir::open(options.dir.as_deref())?;
    let conn = connect(&dir, ring).map_err(flat)?;
    let intent = Intent::Rejoin {
        instance: attachment.instance,
        index: attachment.me.index.into(),
        incarnation: attachment.me.incarnation.into(),
    };
    let hello = hello(options, intent, barrier::register())?;
    send(&conn, &Control::Hello(hello), &[]).map_err(unsent(ring)).map_err(flat)?;
    let bell = receive(&conn, ring, |message, mut fds| {
        expect_welcome(ring, message)?;
        let source = Defect::bounded("welcome.descriptors", fds.len() as u64, "exactly", 1);
        match (fds.pop(), fds.is_empty()) {
            (Some(fd), true) => Ok(EventFd::from_fd(fd)?),
            _ => Err(AttachError::Defect { ring: ring.to_owned(), source }),
        }
    })
    .map_err(flat)??;
    Ok((conn, bell))
}
