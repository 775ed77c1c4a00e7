//! Reads one ring: a posix one through its objects, a memfd one through its producer. Nothing in it is trusted.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use forebay_layout::{
    Backing, Defect, Kind, MAX_CONSUMERS, check_ring_name,
    control::{Control, FRAME_BYTES, Hello, Intent, Label},
    header::{
        Header, LABEL_WORDS, MAJOR, Object, W_BYTES, W_DEAD, W_DROPPED, W_EPOCH, W_FULL_WAITS, W_LABEL, W_NUMA, W_PID,
        W_STARTED, W_STATE, check_prefix, state,
    },
};
use forebay_os::{
    Access, Dir, LockFile, Mapping, OsError, Probe,
    object::{self, memfd, shm},
    process,
    socket::{Conn, ConnectError, SocketError},
};
use forebay_ring::{Member, Pool, ReadOnly, Reader};

use super::{
    members,
    report::{ProducerReport, RingReport, RingState, RingView},
};
use crate::{
    rendezvous::{
        client, lock_file,
        locks::{PRODUCER_BYTE, member_byte},
        objects::{self, HeaderError},
        socket_file,
    },
    segment::Segment,
};

/// How long a producer may take to answer an observer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Descriptors that an observer gets at most: the ring, a probe for each member, an object for each member.
const MAX_FDS: usize = 1 + 2 * MAX_CONSUMERS;
/// How long to look again at a ring that is being made or replaced, and how long to wait in between.
const SETTLING: Duration = Duration::from_millis(20);
const AGAIN: Duration = Duration::from_millis(5);

/// What could be opened of a ring.
pub(super) struct Opened {
    pub(super) header: Header,
    pub(super) ring: Segment,
    pub(super) reader: Reader<Segment>,
    /// Queue.
    pub(super) pool: Option<Pool<Segment>>,
    /// One for each place.
    pub(super) parts: Vec<Member<Segment>>,
    probes: Vec<Probe>,
}

impl Opened {
    /// Whether the place of member `index` is held. What cannot be probed counts as held.
    pub(super) fn is_held(&self, index: u8) -> bool {
        let probe = self.probes.get(usize::from(index)).or(self.probes.first());
        probe.is_none_or(|probe| probe.is_locked(member_byte(index)).unwrap_or(true))
    }
}

/// Looks at one ring.
pub(super) fn report(dir: &Dir, name: &str) -> RingReport {
    let start = Instant::now();
    loop {
        let alive = is_producer_alive(dir, name);
        let view = open(dir, name, alive);
        if view.is_err() && alive && start.elapsed() < SETTLING {
            // It may be in the middle of being made.
            std::thread::sleep(AGAIN);
            continue;
        }
        let producer = match &view {
            Ok(opened) => ProducerReport { alive, ..producer_of(&opened.reader) },
            Err(_) => ProducerReport { alive, pid: 0, label: note(dir, name), started_unix_ns: 0 },
        };
        return RingReport { name: name.to_owned(), producer, view: view.map(|opened| view_of(&opened)) };
    }
}

fn is_producer_alive(dir: &Dir, name: &str) -> bool {
    let probe = LockFile::open_existing(dir, &lock_file(name)).and_then(|file| file.probe());
    match probe {
        Ok(probe) => probe.is_locked(PRODUCER_BYTE).unwrap_or(true),
        // Without its lock file a producer has lost its name; whatever it is, it does not keep others out.
        Err(e) => e.kind() != std::io::ErrorKind::NotFound,
    }
}

fn note(dir: &Dir, name: &str) -> String {
    let note = LockFile::open_existing(dir, &lock_file(name)).and_then(|file| file.read_note());
    plain(&String::from_utf8_lossy(&note.unwrap_or_default()))
}

/// Text without what would steer a terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

fn producer_of(reader: &Reader<Segment>) -> ProducerReport {
    let bytes: Vec<u8> = (0..LABEL_WORDS).flat_map(|i| reader.peek(W_LABEL + i).to_le_bytes()).collect();
    let len = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    ProducerReport {
        alive: false,
        pid: reader.peek(W_PID) as u32,
        label: plain(&String::from_utf8_lossy(&bytes[..len])),
        started_unix_ns: reader.peek(W_STARTED),
    }
}

fn view_of(opened: &Opened) -> RingView {
    let (header, reader) = (&opened.header, &opened.reader);
    let geometry = &header.geometry;
    let found = members::look(opened);
    let schema = match objects::read_schema(&ReadOnly::new(opened.ring.clone()), header) {
        Ok(schema) => schema.map(|schema| schema.to_string()),
        Err(defect) => Some(format!("unreadable: {defect}")),
    };
    RingView {
        kind: geometry.kind,
        backing: geometry.backing,
        when_full: geometry.when_full,
        writable: geometry.writable,
        schema,
        instance: format!("{:016x}{:016x}", header.instance[1], header.instance[0]),
        epoch: reader.peek(W_EPOCH),
        state: match reader.peek(W_STATE) {
            state::OPEN => RingState::Open,
            state::CLOSED => RingState::Closed,
            state::REPLACED => RingState::Replaced,
            other => RingState::Unknown(other),
        },
        created_unix_ns: header.created_unix_ns,
        max_consumers: geometry.max_consumers,
        max_attempts: geometry.max_attempts,
        classes: geometry.classes.to_vec(),
        memory_bytes: header.plan.total_bytes(geometry.max_consumers),
        numa_node: u32::try_from(reader.peek(W_NUMA)).ok().and_then(|word| word.checked_sub(1)),
        slots: found.slots,
        depth: found.depth,
        head: reader.head(),
        dropped: reader.peek(W_DROPPED),
        dead_letters: reader.peek(W_DEAD),
        bytes: reader.peek(W_BYTES),
        full_waits: reader.peek(W_FULL_WAITS),
        consumers: found.consumers,
    }
}

// === opening ===

fn open(dir: &Dir, name: &str, alive: bool) -> Result<Opened, String> {
    match shm::open(&objects::object_name(dir, name, "ring"), Access::ReadOnly) {
        Ok(fd) => open_named(dir, name, fd),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && alive => observe(dir, name),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err("nothing left but files of a producer that is gone; `forebay clean` removes them".to_owned())
        }
        Err(e) => Err(e.to_string()),
    }
}

/// A posix ring: its objects have names, and its members' bytes lie in the named lock file.
fn open_named(dir: &Dir, name: &str, fd: OwnedFd) -> Result<Opened, String> {
    let (header, _) = checked(name, read(&fd))?;
    let mut fds = Vec::new();
    for (object, part) in objects::parts(&header.geometry).into_iter().skip(1) {
        let fd = shm::open(&objects::object_name(dir, name, &part), Access::ReadOnly).map_err(|e| e.to_string())?;
        if object == Object::Data {
            check_len(&fd, &header, object)?;
        } else {
            fds.push(fd);
        }
    }
    let probes = match LockFile::open_existing(dir, &lock_file(name)).and_then(|file| file.probe()) {
        Ok(probe) => vec![probe],
        // Nobody can hold a byte of a file that is not there. An empty one answers so.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            vec![LockFile::anonymous().and_then(|file| file.probe()).map_err(|e| e.to_string())?]
        }
        Err(e) => return Err(e.to_string()),
    };
    assemble(name, fd, fds, probes)
}

/// A ring without names: its producer hands out descriptors to look at.
fn observe(dir: &Dir, name: &str) -> Result<Opened, String> {
    let conn = Conn::connect(dir, &socket_file(name)).map_err(|e| match e {
        ConnectError::NotYet { why, .. } => format!("its producer lives, and is not to be reached: {why}"),
        other => other.to_string(),
    })?;
    let ring = check_ring_name(name).map_err(|e| e.to_string())?;
    let label = Label::from("forebay inspect").unwrap_or_default();
    // An observer never sleeps on a word of the ring, so nobody needs fences because of it.
    let hello =
        Hello { intent: Intent::Observe, layout_major: MAJOR, membarrier: true, pid: process::my_pid(), ring, label };
    let sent = client::send(&conn, &Control::Hello(hello), &[]);
    sent.map_err(|e| e.to_string())?;
    let mut buffer = [0; FRAME_BYTES];
    let received = conn.recv_with(&mut buffer, MAX_FDS, Some(Instant::now() + PATIENCE), |received| received);
    let received = received.map_err(|e| match e {
        SocketError::TimedOut => {
            "its producer is connected but silent: it is stopped, or a forked child holds its socket".to_owned()
        }
        other => other.to_string(),
    })?;
    let welcome = match client::decode(&buffer[..received.len]) {
        Ok(Control::Welcome(welcome)) => welcome,
        Ok(Control::Refuse(_, reason)) => return Err(format!("its producer refused: {}", plain(&reason))),
        Ok(_) => return Err("its producer answered something that is no welcome".to_owned()),
        Err(defect) => return Err(defect.to_string()),
    };
    let mut fds = received.fds.into_iter();
    let ring_fd = fds.next().ok_or("its producer sent no descriptor")?;
    let (header, _) = checked(name, read(&ring_fd))?;
    if header.instance != welcome.instance {
        return Err("its welcome belongs to another instance".to_owned());
    }
    let geometry = &header.geometry;
    let own = geometry.backing == Backing::Memfd && geometry.kind == Kind::Broadcast;
    let probes = if own { geometry.max_consumers as usize } else { 1 };
    let probes: Vec<Probe> = fds.by_ref().take(probes).map(Probe::from_fd).collect();
    assemble(name, ring_fd, fds.collect(), probes)
}

type Read = (Header, Segment);

fn read(fd: &OwnedFd) -> Result<Read, HeaderError> {
    objects::read_header(fd)
}

fn checked(name: &str, found: Result<Read, HeaderError>) -> Result<Read, String> {
    match found {
        Ok((header, _)) if header.name.as_str() != name => {
            Err(format!("its header is that of ring {:?}", header.name.as_str()))
        }
        Ok(found) => Ok(found),
        Err(HeaderError::Os(e)) => Err(e.to_string()),
        Err(HeaderError::Defect(defect)) => Err(format!("not a ring: {defect}")),
    }
}

/// The length of what is behind `fd`, which must be enough; with memfd it must also be sealed, or it could be cut while
/// we read it.
fn check_len(fd: &OwnedFd, header: &Header, object: Object) -> Result<u64, String> {
    let text = |e: OsError| e.to_string();
    let (found, needed) = (object::object_len(fd).map_err(text)?, objects::size_of(header, object));
    if found < needed {
        return Err(format!("its {object:?} object has {found} bytes, its header says {needed}"));
    }
    if header.geometry.backing == Backing::Memfd && !memfd::seals(fd).map_err(text)?.contains(memfd::Seals::SHRINK) {
        return Err(format!("its {object:?} object is not sealed, so it may be cut at any time"));
    }
    Ok(needed)
}

fn assemble(name: &str, ring_fd: OwnedFd, fds: Vec<OwnedFd>, probes: Vec<Probe>) -> Result<Opened, String> {
    let (header, ring) = checked(name, read(&ring_fd))?;
    check_len(&ring_fd, &header, Object::Ring)?;
    let wanted: Vec<Object> = objects::parts(&header.geometry)
        .into_iter()
        .map(|(object, _)| object)
        .filter(|object| matches!(object, Object::Pool | Object::Member(_)))
        .collect();
    if wanted.len() != fds.len() || probes.is_empty() {
        return Err(format!("{} objects of its members came, expected {}", fds.len(), wanted.len()));
    }
    let mut segments = Vec::new();
    for (object, fd) in wanted.into_iter().zip(fds) {
        let bytes = check_len(&fd, &header, object)?;
        let mapping = Mapping::map(fd.as_fd(), bytes as usize, Access::ReadOnly).map_err(|e| e.to_string())?;
        let segment = Segment::new(mapping);
        let words = ReadOnly::new(segment.clone());
        let prefix = std::array::from_fn(|i| words.peek(i));
        check_prefix(&prefix, object, Some(header.instance))
            .map_err(|defect: Defect| format!("not a ring: {defect}"))?;
        segments.push(segment);
    }
    let (plan, geometry) = (&header.plan, &header.geometry);
    let pool = (geometry.kind == Kind::Queue).then(|| Pool::new(segments[0].clone(), plan));
    let parts = match &pool {
        Some(pool) => (0..geometry.max_consumers).map(|index| pool.member(plan, index as u8)).collect(),
        None => segments.iter().map(|segment| Member::in_object(segment.clone(), plan)).collect(),
    };
    let reader = Reader::new(ReadOnly::new(ring.clone()), plan.clone(), geometry.max_fields);
    Ok(Opened { header, ring, reader, pool, parts, probes })
}
