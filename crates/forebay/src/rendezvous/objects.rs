//! The memory objects of a ring: made, filled, sealed, opened again, removed.

use std::os::fd::{AsFd, OwnedFd};

use forebay_layout::{
    Backing, Kind, MAX_CLASSES, RingName,
    geometry::Geometry,
    header::{FIXED_WORDS, Header, MAGIC, Object, W_MAGIC, W_OBJECT, check_prefix},
    schema::{self, Schema},
};
use forebay_os::{
    Access, AllocateError, Dir, Mapping, OsError, clock,
    mapping::Mapping as Map,
    numa,
    object::{self, memfd, shm},
    own::OwnFd,
    process,
};
use forebay_ring::{AtomicU64, ReadOnly, Words};
use std::sync::atomic::Ordering;

use crate::{
    error::CreateError,
    segment::{Segment, Slots},
};

/// The name of an object of a posix ring. The directory's identity is part of it, so that two directories never meet in
/// `/dev/shm`.
pub(crate) fn object_name(dir: &Dir, ring: &str, object: &str) -> String {
    format!("{}{ring}.{object}", object_prefix(dir))
}

/// Starts the name of every object of a posix ring that belongs to `dir`.
pub(crate) fn object_prefix(dir: &Dir) -> String {
    format!("/forebay.{}.{:08x}.", process::uid(), dir.hash())
}

/// The names of all objects a ring of this geometry has.
pub(crate) fn parts(geometry: &Geometry) -> Vec<(Object, String)> {
    let mut parts = vec![(Object::Ring, "ring".to_owned()), (Object::Data, "data".to_owned())];
    match geometry.kind {
        Kind::Queue => parts.push((Object::Pool, "pool".to_owned())),
        Kind::Broadcast => {
            for index in 0..geometry.max_consumers {
                parts.push((Object::Member(index as u8), format!("m{index}")));
            }
        }
    }
    parts
}

/// A ring's objects, as its producer has them: mapped read-write, and descriptors to hand out.
#[derive(Debug)]
pub(crate) struct Objects {
    pub(crate) header: Header,
    pub(crate) ring: Segment,
    pub(crate) data: Slots,
    /// Queue.
    pub(crate) pool: Option<Segment>,
    /// Broadcast: one per member.
    pub(crate) members: Vec<Segment>,
    fds: Vec<(Object, Grant)>,
    pub(crate) notes: Vec<String>,
}

/// Descriptors of one object, with the rights a consumer gets.
#[derive(Debug)]
struct Grant {
    read: OwnFd,
    write: OwnFd,
}

/// How the mapped memory is to be treated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Care {
    pub(crate) prefault: bool,
    pub(crate) mlock: bool,
    pub(crate) huge_pages: bool,
    /// The NUMA node that new slots are taken from.
    pub(crate) node: Option<u32>,
}

fn no_memory(ring: &str, total: u64) -> impl Fn(AllocateError) -> CreateError + '_ {
    move |error| match error {
        AllocateError::NoSpace { free, where_, .. } => {
            CreateError::Memory { ring: ring.to_owned(), needed: total, free, place: where_.to_owned() }
        }
        AllocateError::Os(e) => CreateError::Os(e),
        other => {
            CreateError::Os(OsError::new("fallocate", "a ring's objects", std::io::Error::other(other.to_string())))
        }
    }
}

impl Objects {
    /// Makes all objects of a ring, every byte allocated, the magic stored last. `guard` notes the instance before the
    /// first of them exists.
    pub(crate) fn create(
        dir: &Dir,
        name: RingName,
        geometry: Geometry,
        schema: Option<&Schema>,
        care: Care,
        guard: impl FnOnce([u64; 2]) -> forebay_os::Result<()>,
    ) -> Result<Self, CreateError> {
        let ring = name.as_str();
        let defect = |source| CreateError::Geometry { ring: ring.to_owned(), source };
        let plan = geometry.plan().map_err(defect)?;
        let total = plan.total_bytes(geometry.max_consumers);
        let random = process::random_u128();
        let instance = [random as u64, (random >> 64) as u64];
        guard(instance)?;
        let header = Header { instance, minor: 0, created_unix_ns: clock::realtime_ns(), name, geometry, plan };
        let mut made = Made { dir, ring, names: Vec::new() };
        let (mut fds, mut notes) = (Vec::new(), Vec::new());
        for (object, part) in parts(&header.geometry) {
            let write = match header.geometry.backing {
                Backing::Posix => made.create(&part)?,
                Backing::Memfd => memfd::create(&format!("forebay.{ring}.{part}"), None)?,
            };
            let preference = match care.node.filter(|_| object == Object::Data).map(numa::Preference::set).transpose() {
                Ok(preference) => preference,
                Err(e) => {
                    notes.push(format!("slots from any NUMA node: {e}"));
                    None
                }
            };
            object::allocate(&write, size_of(&header, object)).map_err(no_memory(ring, total))?;
            drop(preference);
            fds.push((object, write));
        }
        let mut this =
            Self::assemble(header, fds, care, |part| shm::open(&object_name(dir, ring, part), Access::ReadOnly))?;
        this.notes.splice(..0, notes);
        this.fill(schema);
        this.seal()?;
        made.names.clear();
        Ok(this)
    }

    /// Maps what was made or found.
    fn assemble(
        header: Header,
        fds: Vec<(Object, OwnedFd)>,
        care: Care,
        reopen: impl Fn(&str) -> forebay_os::Result<OwnedFd>,
    ) -> Result<Self, CreateError> {
        let mut notes = Vec::new();
        let (mut ring, mut data, mut pool, mut members) = (None, None, None, Vec::new());
        let mut granted = Vec::new();
        for ((object, write), (_, part)) in fds.into_iter().zip(parts(&header.geometry)) {
            let bytes = size_of(&header, object);
            let mapping = Map::map(write.as_fd(), bytes as usize, Access::ReadWrite)?;
            treat(&mapping, object, care, &mut notes)?;
            let read = match header.geometry.backing {
                Backing::Posix => reopen(&part)?,
                Backing::Memfd => memfd::reopen_read_only(&write)?,
            };
            match object {
                Object::Ring => ring = Some(Segment::new(mapping)),
                Object::Data => data = Some(Slots::new(mapping, &header.plan, true)),
                Object::Pool => pool = Some(Segment::new(mapping)),
                Object::Member(_) => members.push(Segment::new(mapping)),
            }
            granted.push((object, Grant { read: read.into(), write: write.into() }));
        }
        let (Some(ring), Some(data)) = (ring, data) else { unreachable!("every ring has a ring and a data object") };
        Ok(Self { header, ring, data, pool, members, fds: granted, notes })
    }

    /// Writes headers and schema; magics last, the ring object's last of all.
    fn fill(&mut self, schema: Option<&Schema>) {
        let set = |segment: &Segment, index: usize, value: u64| {
            // ORDER none, Relaxed: nobody else has these objects yet; the magic is the store that counts.
            segment.word(index).store(value, Ordering::Relaxed);
        };
        let instance = self.header.instance;
        let mut others: Vec<(Object, &Segment)> = Vec::new();
        if let Some(pool) = &self.pool {
            others.push((Object::Pool, pool));
        }
        others.extend(self.members.iter().enumerate().map(|(i, segment)| (Object::Member(i as u8), segment)));
        for (object, segment) in others {
            set(segment, W_OBJECT, object.word());
            set(segment, 2, instance[0]);
            set(segment, 3, instance[1]);
            set(segment, W_MAGIC, MAGIC);
        }
        for (i, word) in self.header.encode().into_iter().enumerate().skip(1) {
            set(&self.ring, i, word);
        }
        if let Some(schema) = schema {
            let mut bytes = [0; schema::MAX_BYTES];
            let len = schema.encode(&mut bytes);
            for (i, chunk) in bytes[..len].chunks(8).enumerate() {
                set(&self.ring, self.header.plan.schema_word + i, forebay_layout::header::pack(chunk));
            }
        }
        for (i, word) in self.header.encode_classes().into_iter().enumerate() {
            set(&self.ring, self.header.plan.class_word + i, word);
        }
        // ORDER Release: whoever sees the magic sees a whole header.
        self.ring.word(W_MAGIC).store(MAGIC, Ordering::Release);
    }

    fn seal(&self) -> Result<(), CreateError> {
        use memfd::Seals;
        if self.header.geometry.backing == Backing::Memfd {
            for (object, grant) in &self.fds {
                let read_only = match object {
                    Object::Ring => true,
                    Object::Data => !self.header.geometry.writable,
                    _ => false,
                };
                let seals = Seals::SHRINK | Seals::GROW;
                memfd::seal(&grant.write, if read_only { seals | Seals::FUTURE_WRITE } else { seals })?;
            }
        }
        Ok(())
    }

    /// Opens what a dead producer left, if it left a whole ring. The caller holds the producer's lock.
    pub(crate) fn open(dir: &Dir, ring: &str, care: Care) -> Result<Found, CreateError> {
        let open = |part: &str| shm::open(&object_name(dir, ring, part), Access::ReadWrite);
        let fd = match open("ring") {
            Ok(fd) => fd,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(e) => return Err(e.into()),
        };
        let header = match read_header(&fd) {
            Ok((header, _)) if header.name.as_str() == ring => header,
            Ok((header, _)) => return Ok(Found::Foreign(format!("the header of ring {:?}", header.name.as_str()))),
            Err(HeaderError::Os(e)) => return Err(e.into()),
            Err(HeaderError::Defect(defect)) => {
                let unfinished = defect.field == "magic" && defect.found == 0 || object::object_len(&fd)? == 0;
                return Ok(if unfinished { Found::Unfinished } else { Found::Foreign(defect.to_string()) });
            }
        };
        let mut fds = vec![(Object::Ring, fd)];
        for (object, part) in parts(&header.geometry).into_iter().skip(1) {
            let fd = match open(&part) {
                Ok(fd) => fd,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    // Made before the magic, removed with it: what is missing was on its way out.
                    return Ok(Found::Unfinished);
                }
                Err(e) => return Err(e.into()),
            };
            let (found, needed) = (object::object_len(&fd)?, size_of(&header, object));
            if found < needed {
                return Ok(Found::Foreign(format!("an object {part:?} of {found} bytes instead of {needed}")));
            }
            fds.push((object, fd));
        }
        let this =
            Self::assemble(header, fds, care, |part| shm::open(&object_name(dir, ring, part), Access::ReadOnly))?;
        for (object, segment) in this
            .pool
            .iter()
            .map(|pool| (Object::Pool, pool))
            .chain(this.members.iter().enumerate().map(|(i, segment)| (Object::Member(i as u8), segment)))
        {
            if check_prefix(&prefix(segment), object, Some(this.header.instance)).is_err() {
                // Parts of two rings: both were being removed or made when their producers died.
                return Ok(Found::Unfinished);
            }
        }
        let schema = match read_schema(&ReadOnly::new(this.ring.clone()), &this.header) {
            Ok(schema) => schema,
            Err(defect) => return Ok(Found::Foreign(defect.to_string())),
        };
        Ok(Found::Ring(Box::new((this, schema))))
    }

    /// The descriptor of an object that a consumer gets.
    ///
    /// # Errors
    /// Somebody in this process closed it.
    ///
    /// # Panics
    /// If a ring of this geometry has no such object.
    pub(crate) fn grant(&self, wanted: Object, write: bool) -> forebay_os::Result<std::os::fd::BorrowedFd<'_>> {
        let found = self.fds.iter().find(|(object, _)| *object == wanted);
        let (_, grant) = found.unwrap_or_else(|| unreachable!("no {wanted:?} in a ring of this geometry"));
        if write { &grant.write } else { &grant.read }.get("an object of the ring")
    }

    /// The descriptors an observer gets besides the ring's: those of the members' words, to read.
    pub(crate) fn observed(&self) -> impl Iterator<Item = std::os::fd::BorrowedFd<'_>> {
        self.fds
            .iter()
            .filter(|(object, _)| matches!(object, Object::Pool | Object::Member(_)))
            .filter_map(|(_, grant)| grant.read.get("an object of the ring").ok())
    }
}

/// What lies under a ring's name.
pub(crate) enum Found {
    /// Nothing.
    Nothing,
    /// Parts of a ring whose producer died while it made or removed it: no consumer can have anything of it.
    Unfinished,
    /// Something that this build did not leave there, or not like that: another version's ring, a truncated one.
    Foreign(String),
    /// A ring that can be taken over.
    Ring(Box<(Objects, Option<Schema>)>),
}

/// Removes the objects of a ring that were made so far, if making the next one fails.
struct Made<'a> {
    dir: &'a Dir,
    ring: &'a str,
    names: Vec<String>,
}

impl Made<'_> {
    fn create(&mut self, part: &str) -> forebay_os::Result<OwnedFd> {
        let name = object_name(self.dir, self.ring, part);
        let fd = shm::create(&name, 0o600)?;
        self.names.push(name);
        Ok(fd)
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        for name in &self.names {
            // An error here would hide the one that brought us here.
            let _ = shm::unlink(name);
        }
    }
}

/// Removes the objects of this very ring, which takes no descriptor: none may be left.
pub(crate) fn unlink_own(dir: &Dir, header: &Header) -> forebay_os::Result<()> {
    let parts = parts(&header.geometry);
    let gone = parts.iter().map(|(_, part)| shm::unlink(&object_name(dir, header.name.as_str(), part)));
    // All are tried, whatever becomes of the others.
    gone.fold(Ok(()), Result::and)
}

/// Removes every object under a ring's name, whatever it is. Returns their names. The caller holds the producer's lock.
pub(crate) fn unlink_all(dir: &Dir, ring: &str) -> forebay_os::Result<Vec<String>> {
    let names = names_of(dir, ring)?;
    for name in &names {
        shm::unlink(name)?;
    }
    Ok(names)
}

/// The names of every object under a ring's name, whatever it is.
pub(crate) fn names_of(dir: &Dir, ring: &str) -> forebay_os::Result<Vec<String>> {
    let prefix = format!("{}{ring}.", object_prefix(dir));
    let mut names = shm::list(&prefix)?;
    // "a.b" is a ring name too: only what follows the last dot is the object's.
    names.retain(|name| !name[prefix.len()..].contains('.'));
    Ok(names)
}

fn treat(mapping: &Mapping, object: Object, care: Care, notes: &mut Vec<String>) -> Result<(), CreateError> {
    if object == Object::Data {
        mapping.dont_dump();
    }
    if care.huge_pages
        && object == Object::Data
        && let Err(e) = mapping.advise_huge()
    {
        notes.push(format!("no huge pages: {e}"));
    }
    if care.prefault {
        mapping.populate()?;
    }
    if care.mlock
        && let Err(e) = mapping.lock()
    {
        notes.push(format!("not locked in memory: {e}"));
    }
    Ok(())
}

pub(crate) fn size_of(header: &Header, object: Object) -> u64 {
    match object {
        Object::Ring => header.plan.ring_bytes,
        Object::Data => header.plan.data_bytes,
        Object::Pool => header.plan.pool_bytes,
        Object::Member(_) => header.plan.member_bytes,
    }
}

fn prefix(segment: &Segment) -> [u64; 4] {
    // ORDER Acquire on the magic: the other words were stored before it.
    let magic = segment.word(0).load(Ordering::Acquire);
    let at = |i: usize| segment.word(i).load(Ordering::Relaxed);
    [magic, at(1), at(2), at(3)]
}

/// Why a header could not be read.
pub(crate) enum HeaderError {
    Os(OsError),
    Defect(forebay_layout::Defect),
}

impl From<OsError> for HeaderError {
    fn from(e: OsError) -> Self {
        Self::Os(e)
    }
}

impl From<forebay_layout::Defect> for HeaderError {
    fn from(e: forebay_layout::Defect) -> Self {
        Self::Defect(e)
    }
}

/// Maps the ring object to read and checks its header. Never touches a byte beyond the object's own length.
pub(crate) fn read_header(fd: impl AsFd) -> Result<(Header, Segment), HeaderError> {
    let len = object::object_len(&fd)?;
    if len < 4096 {
        return Err(forebay_layout::Defect::bounded("ring object", len, "at least", 4096).into());
    }
    let len = usize::try_from(len & !7).unwrap_or(usize::MAX & !7);
    let segment = Segment::new(Mapping::map(fd.as_fd(), len, Access::ReadOnly)?);
    let mut words = [0; FIXED_WORDS];
    // ORDER Acquire: the magic is stored last, so the words read after it are whole.
    words[0] = segment.word(W_MAGIC).load(Ordering::Acquire);
    let read = |word: &AtomicU64| word.load(Ordering::Relaxed);
    for (i, word) in words.iter_mut().enumerate().skip(1) {
        *word = read(segment.word(i));
    }
    let header = Header::decode(&words, len as u64, |at| {
        let end = at.checked_add(4 * MAX_CLASSES)?;
        if end > len / 8 {
            return None;
        }
        let mut table = [0; 4 * MAX_CLASSES];
        for (i, word) in table.iter_mut().enumerate() {
            *word = read(segment.word(at + i));
        }
        Some(table)
    })?;
    Ok((header, segment))
}

/// Reads the schema of a ring whose header was checked.
pub(crate) fn read_schema(ring: &ReadOnly<Segment>, header: &Header) -> Result<Option<Schema>, forebay_layout::Defect> {
    let len = header.geometry.schema_bytes as usize;
    if len == 0 {
        return Ok(None);
    }
    let words = len.div_ceil(8);
    let mut bytes: Vec<u8> = (0..words).flat_map(|i| ring.peek(header.plan.schema_word + i).to_le_bytes()).collect();
    bytes.truncate(len);
    let schema = Schema::decode(&bytes)?;
    let fields = schema.fields().len() as u64;
    if fields != u64::from(header.geometry.max_fields) {
        let found = header.geometry.max_fields.into();
        return Err(forebay_layout::Defect::bounded("max_fields", found, "the schema's number of fields,", fields));
    }
    Ok(Some(schema))
}
