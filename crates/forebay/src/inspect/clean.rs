//! Removes what no living process holds.
//!
//! # Why it never takes anything from the living
//! C1 Who has a ring's producer byte has its name. Cleaning takes that byte first, so no producer starts meanwhile.
//! C2 A member of a posix ring holds its byte in the same file. One that is held keeps everything. No new member can
//!    come while nobody listens, and nobody does while we have the name. Whose lock file was deleted holds bytes in a file
//!    that nobody finds: who still listens at the ring's socket lives, whatever the lock file of that name says.
//! C3 The lock file goes last, while its byte is ours. Who opened it before finds, after locking it, that it has no name
//!    any more, and begins again.

use std::path::Path;

use forebay_layout::MAX_CONSUMERS;
use forebay_os::{
    Access, Dir, LockFile, Result, object, process,
    socket::{Conn, ConnectError},
};

use super::{look, names};
use crate::rendezvous::{
    lock_file,
    locks::{Locks, PRODUCER_BYTE, Taken, member_byte},
    objects, socket_file, temporary_of,
};
use forebay_os::object::shm;

/// What cleaning did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cleaned {
    /// What was removed.
    pub removed: Vec<Removed>,
    /// Rings that were left as they are.
    pub kept: Vec<Kept>,
}

/// Something that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removed {
    /// The ring it belonged to.
    pub ring: String,
    /// Where it was: the path of an object, a socket, a lock file.
    pub what: String,
    /// The memory it took; 0 for files.
    pub bytes: u64,
    /// Why nobody needs it.
    pub why: String,
}

/// A ring that was left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kept {
    /// The ring.
    pub ring: String,
    /// Who holds it, or what went wrong.
    pub why: String,
}

/// Removes the objects, sockets and lock files of all rings that no living process holds: neither a producer nor, on
/// posix, a consumer. Messages that nobody received go with them. Living rings are not touched.
///
/// # Errors
/// The directory cannot be used or read. What cannot be removed is among the [`kept`](Cleaned::kept).
pub fn clean(dir: Option<&Path>) -> Result<Cleaned> {
    run(dir, true)
}

/// What [`clean`] would remove now.
///
/// # Errors
/// As [`clean`].
pub fn would_clean(dir: Option<&Path>) -> Result<Cleaned> {
    run(dir, false)
}

fn run(dir: Option<&Path>, really: bool) -> Result<Cleaned> {
    let dir = Dir::open(dir)?;
    let mut cleaned = Cleaned::default();
    for ring in names(&dir)? {
        match one(&dir, &ring, really, &mut cleaned.removed) {
            Ok(None) => {}
            Ok(Some(why)) => cleaned.kept.push(Kept { ring, why }),
            Err(e) => cleaned.kept.push(Kept { ring, why: e.to_string() }),
        }
    }
    Ok(cleaned)
}

/// Removes what dead processes left of these rings. What cannot be removed stays for [`clean`].
pub(crate) fn tidy(dir: Option<&Path>, rings: &[String]) {
    if let Ok(dir) = Dir::open(dir) {
        let is_there = |file: String| dir.path().join(file).exists();
        for ring in rings.iter().filter(|ring| is_there(lock_file(ring)) || is_there(socket_file(ring))) {
            let _ = one(&dir, ring, true, &mut Vec::new());
        }
    }
}

/// Cleans one ring, or says who holds it.
fn one(dir: &Dir, ring: &str, really: bool, removed: &mut Vec<Removed>) -> Result<Option<String>> {
    // First only looking, so that a living ring's producer byte is never taken, not even for a moment.
    if let Some(holder) = holder(dir, ring)? {
        return Ok(Some(holder));
    }
    let why = why(dir, ring);
    if !really {
        removed.extend(found(dir, ring, &why)?.into_iter().map(|(_, item)| item));
        return Ok(None);
    }
    let (file, held) = match Locks::take(dir, ring)? {
        Ok(taken) => taken,
        Err(Taken(holder)) => return Ok(Some(format!("its producer lives: {}", look::plain(&holder)))),
    };
    file.write_note(format!("pid {} (forebay clean)", process::my_pid()).as_bytes())?;
    if let Some(holder) = members(&file)? {
        return Ok(Some(holder));
    }
    // Looked at again: between our two looks it may have been taken over and left anew.
    for (place, item) in found(dir, ring, &why)? {
        match place {
            Place::Object(name) => shm::unlink(&name)?,
            Place::File(file) if file == lock_file(ring) => continue,
            Place::File(file) => dir.remove(&file)?,
        }
        removed.push(item);
    }
    dir.remove(&lock_file(ring))?;
    removed.push(Removed { ring: ring.to_owned(), what: shown(dir, &lock_file(ring)), bytes: 0, why });
    drop(held);
    Ok(None)
}

const SHM: &str = "/dev/shm";

/// Where something of a ring is. Its path does not tell: the directory may lie under /dev/shm too.
enum Place {
    /// An object of that name.
    Object(String),
    /// A file of the directory.
    File(String),
}

fn shown(dir: &Dir, file: &str) -> String {
    dir.path().join(file).display().to_string()
}

/// Who holds a ring, if anybody does.
fn holder(dir: &Dir, ring: &str) -> Result<Option<String>> {
    match locker(dir, ring)? {
        Some(holder) => Ok(Some(holder)),
        None => listener(dir, ring),
    }
}

/// Whoever listens at a ring's socket though nobody holds its lock file.
fn listener(dir: &Dir, ring: &str) -> Result<Option<String>> {
    match Conn::connect(dir, &socket_file(ring)) {
        // No socket, or one whose owner is gone.
        Err(ConnectError::NotYet { owned: false, .. }) => Ok(None),
        Ok(_) | Err(ConnectError::NotYet { .. }) => {
            Ok(Some("its producer lives, though its lock file was deleted; end it first".to_owned()))
        }
        Err(ConnectError::Os(e)) => Err(e),
        Err(e) => Ok(Some(e.to_string())),
    }
}

/// Who holds a byte of a ring's lock file.
fn locker(dir: &Dir, ring: &str) -> Result<Option<String>> {
    let file = match LockFile::open_existing(dir, &lock_file(ring)) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    if file.probe()?.is_locked(PRODUCER_BYTE)? {
        let note = look::plain(&String::from_utf8_lossy(&file.read_note()?));
        return Ok(Some(if note.is_empty() {
            "its producer lives".to_owned()
        } else {
            format!("its producer lives: {note}")
        }));
    }
    members(&file)
}

/// Which members hold their bytes.
fn members(file: &LockFile) -> Result<Option<String>> {
    let probe = file.probe()?;
    let mut living = 0;
    for index in 0..MAX_CONSUMERS {
        living += u32::from(probe.is_locked(member_byte(index as u8))?);
    }
    let many = if living == 1 { "" } else { "s" };
    Ok((living > 0).then(|| format!("its producer is gone, {living} living consumer{many} may still read it")))
}

/// Why nobody needs a ring that nobody holds.
fn why(dir: &Dir, ring: &str) -> String {
    let report = look::report(dir, ring);
    let producer = match (report.producer.pid, report.producer.label.as_str()) {
        (0, "") => "its producer is gone".to_owned(),
        (0, note) => format!("its producer is gone: {note}"),
        (pid, label) => format!("its producer is gone: pid {pid} ({label})"),
    };
    match report.view.map(|view| view.slots.full + view.slots.claimed) {
        Ok(0) | Err(_) => producer,
        Ok(1) => format!("{producer}; 1 message in it was not received"),
        Ok(left) => format!("{producer}; {left} messages in it were not received"),
    }
}

/// Everything of a ring that is there.
fn found(dir: &Dir, ring: &str, why: &str) -> Result<Vec<(Place, Removed)>> {
    let mut found = Vec::new();
    let mut add = |place: Place, bytes: u64| {
        let what = match &place {
            Place::Object(name) => format!("{SHM}{name}"),
            Place::File(file) => shown(dir, file),
        };
        found.push((place, Removed { ring: ring.to_owned(), what, bytes, why: why.to_owned() }));
    };
    for name in objects::names_of(dir, ring)? {
        let bytes = shm::open(&name, Access::ReadOnly).and_then(|fd| object::object_len(&fd)).unwrap_or(0);
        add(Place::Object(name), bytes);
    }
    for file in dir.list("")? {
        if file == socket_file(ring) || file == lock_file(ring) || temporary_of(&file) == Some(ring) {
            add(Place::File(file), 0);
        }
    }
    Ok(found)
}
