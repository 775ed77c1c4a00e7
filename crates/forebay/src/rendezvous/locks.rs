//! Which lock byte stands for whom.
//!
//! Beside the socket lies one lock file per ring. Byte 0 is the producer's and, with it, the right to the name. On every
//! ring but a memfd broadcast one the members' bytes follow in the same file. There each member has an anonymous file of
//! its own, so that no member can lock or probe another's.
//!
//! The named file also says which instance of the objects it guards: names in /dev/shm outlive a deleted lock file, and
//! the lock on a new one says nothing about who uses what the names lead to.

use std::sync::{Mutex, PoisonError};

use forebay_layout::{Backing, Kind, MAX_CONSUMERS, geometry::Geometry};
use forebay_os::{Dir, Held, LockFile, Probe, Result, fork};

use super::lock_file;

/// The producer's byte in every lock file.
pub(crate) const PRODUCER_BYTE: u64 = 0;

/// Member `index`'s byte in the file it is given.
pub(crate) fn member_byte(index: u8) -> u64 {
    1 + u64::from(index)
}

/// The lock files of a ring, as its producer has them.
#[derive(Debug)]
pub(crate) struct Locks {
    named: LockFile,
    /// Files that the members' bytes lie in, each with the producer's byte locked too; empty if that is the named one.
    own: Vec<LockFile>,
    /// One file for the members of a memfd queue.
    probes: Vec<Probe>,
    /// The producer's locks: the name's first. Released by [`release`](Self::release), or with this.
    held: Mutex<Vec<Held>>,
}

/// The name is taken: what its holder wrote about itself.
pub(crate) struct Taken(pub(crate) String);

impl Locks {
    /// Takes the name of `ring`, or says who has it.
    pub(crate) fn take(dir: &Dir, ring: &str) -> Result<std::result::Result<(LockFile, Held), Taken>> {
        loop {
            let file = LockFile::create_or_open(dir, &lock_file(ring))?;
            let held = {
                let _inside = fork::critical();
                match file.try_lock(PRODUCER_BYTE)? {
                    Some(fd) => Held::hold(fd)?,
                    None => {
                        let note = String::from_utf8_lossy(&file.read_note()?).into_owned();
                        return Ok(Err(Taken(if note.is_empty() { "it just started".to_owned() } else { note })));
                    }
                }
            };
            // Somebody cleaned between our opening and our locking: what we hold has no name any more.
            if file.is_current(dir, &lock_file(ring))? {
                return Ok(Ok((file, held)));
            }
        }
    }

    /// The locks of a ring of this geometry, whose name was taken. With an error the name's lock comes back.
    pub(crate) fn new(
        named: LockFile,
        name: Held,
        geometry: &Geometry,
    ) -> std::result::Result<Self, (forebay_os::OsError, Held)> {
        match Self::others(&named, geometry) {
            Ok((own, mut held, probes)) => {
                held.insert(0, name);
                Ok(Self { named, own, probes, held: Mutex::new(held) })
            }
            Err(e) => Err((e, name)),
        }
    }

    /// The files without a name, the producer's locks in them, and the probes of the members' bytes.
    fn others(named: &LockFile, geometry: &Geometry) -> Result<(Vec<LockFile>, Vec<Held>, Vec<Probe>)> {
        let files = match (geometry.backing, geometry.kind) {
            (Backing::Posix, _) => 0,
            (Backing::Memfd, Kind::Queue) => 1,
            (Backing::Memfd, Kind::Broadcast) => geometry.max_consumers as usize,
        };
        let (mut own, mut held) = (Vec::with_capacity(files), Vec::with_capacity(files + 1));
        for _ in 0..files {
            let file = LockFile::anonymous()?;
            let _inside = fork::critical();
            let fd = file.try_lock(PRODUCER_BYTE)?.ok_or_else(|| {
                let nobody = std::io::Error::from(std::io::ErrorKind::WouldBlock);
                forebay_os::OsError::new("fcntl(F_OFD_SETLK)", "a new lock file", nobody)
            })?;
            held.push(Held::hold(fd)?);
            own.push(file);
        }
        let probes = if own.is_empty() {
            vec![named.probe()?]
        } else {
            own.iter().map(LockFile::probe).collect::<Result<_>>()?
        };
        Ok((own, held, probes))
    }

    /// The file that member `index`'s byte lies in.
    pub(crate) fn file(&self, index: u8) -> &LockFile {
        match self.own.len() {
            0 => &self.named,
            1 => &self.own[0],
            _ => &self.own[usize::from(index)],
        }
    }

    /// Whether member `index`'s byte is held. An error counts as held: only certain death frees anything.
    pub(crate) fn is_held(&self, index: u8) -> bool {
        let probe = self.probes.get(usize::from(index)).or(self.probes.first());
        usize::from(index) < MAX_CONSUMERS
            && probe.is_none_or(|probe| probe.is_locked(member_byte(index)).unwrap_or(true))
    }

    /// Lets the name go, and with it what says that the producer lives. Views of its memory may live on.
    pub(crate) fn release(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The instance of the objects that the named file guards, if it ever guarded any. Objects of another instance are of
    /// an earlier life of the directory, or of a producer whose lock file was deleted: not ours to take over.
    pub(crate) fn instance(&self) -> Result<Option<[u64; 2]>> {
        self.named.read_mark()
    }

    /// Says which instance is about to be made under the name.
    pub(crate) fn guard(&self, instance: [u64; 2]) -> Result<()> {
        self.named.write_mark(instance)
    }

    /// Whether the name still leads to our file. If somebody deleted it, it is another's by now, or nobody's.
    pub(crate) fn is_current(&self, dir: &Dir, ring: &str) -> bool {
        self.named.is_current(dir, &lock_file(ring)).unwrap_or(false)
    }

    /// Writes who holds the name, for others' error texts.
    pub(crate) fn write_note(&self, note: &str) -> Result<()> {
        self.named.write_note(note.as_bytes())
    }
}
