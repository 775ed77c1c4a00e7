//! Who still lives: a lock on one byte of a small file, held by a mapping.
//!
//! The lock belongs to an *open file description* (OFD lock, Linux 3.15). Its holder maps a page of
//! that description and closes every descriptor of it: from then on the mapping alone keeps the
//! description, hence the lock, alive. So it ends exactly when the process's memory does, by
//! whatever death, by exec, or by dropping [`Held`]; it survives a process that closes all its
//! descriptors; it is not inherited by fork (DONTFORK); and it means the same across PID namespaces.
//!
//! # Rules
//! H1 Nobody ever unlocks (F_UNLCK): a lock ends with its description, and only so.
//! H2 Nobody probes by locking: [`Probe`] asks with F_OFD_GETLK on a description of its own.
//! H3 A description that holds a lock has no other descriptor outside [`crate::fork::critical`] than
//!    the one that is being passed on: open → lock → send → close, receive → map → close.
//!
//! # Costs
//! A probe is one system call, 0.8 µs. A lock is one page of address space and no memory.
#![allow(unsafe_code, reason = "the page that holds a lock is mapped and unmapped here")]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::OFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::error::retry;
use crate::object::memfd;
use crate::own::OwnFd;
use crate::{Dir, ForkToken, OsError, Result, fork, object, process};

/// The note for people fills the file up to here, zero-padded.
const NOTE_MAX: usize = 512;
/// How often a lock file is looked for that others keep removing.
const TRIES: u32 = 1000;
/// Behind it, the mark: which objects the file belongs to. It is written once and never passes through another value.
const MARK_AT: u64 = NOTE_MAX as u64;

/// A file whose bytes are locked by the living.
#[derive(Debug)]
pub struct LockFile {
    /// Never locked through: the base for reopening, and the way to the note.
    fd: OwnFd,
    identity: (u64, u64),
    /// Where to open it again if `/proc` cannot help; `None` for an anonymous one.
    place: Option<(Dir, String)>,
}

impl LockFile {
    /// Opens the file `name` in `dir`, or creates it.
    ///
    /// # Errors
    /// It is not a plain file of ours, or cannot be made.
    pub fn create_or_open(dir: &Dir, name: &str) -> Result<Self> {
        let mut tries = 0..TRIES;
        let fd = loop {
            match dir.open_file(name, true, OFlags::RDWR) {
                // Somebody removed it between our finding it and our opening it. If it is the directory that is gone,
                // the answer is the same for ever.
                Err(e) if e.kind() == io::ErrorKind::NotFound && tries.next().is_some() => {}
                other => break other?,
            }
        };
        Self::of(fd, Some((dir.clone(), name.to_owned())))
    }

    /// Opens the file `name` in `dir` if it exists, to look at it.
    ///
    /// # Errors
    /// There is none (`kind()` is `NotFound`), or it is not a plain file of ours.
    pub fn open_existing(dir: &Dir, name: &str) -> Result<Self> {
        let fd = dir.open_file(name, false, OFlags::RDWR)?;
        Self::of(fd, Some((dir.clone(), name.to_owned())))
    }

    /// A file without a name, reached by descriptors alone.
    ///
    /// # Errors
    /// No descriptor left.
    pub fn anonymous() -> Result<Self> {
        Self::of(memfd::create("forebay-locks", None)?, None)
    }

    fn of(fd: OwnedFd, place: Option<(Dir, String)>) -> Result<Self> {
        let identity = identity(&fd)?;
        Ok(Self { fd: OwnFd::new(fd), identity, place })
    }

    /// Takes the lock on `byte` with a fresh description; `None` if somebody holds it.
    ///
    /// The descriptor returned *is* the lock until [`Held::hold`] has it, here or in the process it
    /// is sent to. Keep [`crate::fork::critical`] from this call until it is closed here (H3).
    ///
    /// # Errors
    /// The file cannot be opened again, or the kernel is out of locks (`ENOLCK`).
    pub fn try_lock(&self, byte: u64) -> Result<Option<OwnedFd>> {
        let fresh = self.reopen(OFlags::RDWR)?;
        let lock = range(byte)?;
        let answer = loop {
            match fcntl(&fresh, FcntlArg::F_OFD_SETLK(&lock)) {
                Err(nix::errno::Errno::EINTR) => {}
                other => break other,
            }
        };
        match answer {
            Ok(_) => Ok(Some(fresh)),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Ok(None),
            Err(e) => Err(OsError::new("fcntl(F_OFD_SETLK)", self.what(byte), e)),
        }
    }

    /// A probe of this file.
    ///
    /// # Errors
    /// The file cannot be opened again.
    pub fn probe(&self) -> Result<Probe> {
        Ok(Probe::from_fd(self.probe_fd()?))
    }

    /// A descriptor for a peer's [`Probe`]: read-only, of a description that never holds a lock.
    ///
    /// # Errors
    /// The file cannot be opened again.
    pub fn probe_fd(&self) -> Result<OwnedFd> {
        self.reopen(OFlags::RDONLY)
    }

    /// Whether the name in `dir` still leads to this file: after locking, a `false` means that the
    /// file was removed meanwhile and the lock is worth nothing; open again.
    ///
    /// # Errors
    /// The directory cannot be searched.
    pub fn is_current(&self, dir: &Dir, name: &str) -> Result<bool> {
        let found = dir.stat(name)?;
        Ok(found.is_some_and(|s| (s.st_dev, s.st_ino) == self.identity))
    }

    /// Leaves a short text about the holder for people, at most 512 bytes of it.
    ///
    /// # Errors
    /// The file system is full.
    pub fn write_note(&self, note: &[u8]) -> Result<()> {
        let mut padded = [0; NOTE_MAX];
        for (to, from) in padded.iter_mut().zip(note) {
            *to = *from;
        }
        self.write(&padded, 0)
    }

    /// The text that the last holder left, possibly half of it: for people, never for decisions.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read_note(&self) -> Result<Vec<u8>> {
        let mut note = vec![0; NOTE_MAX];
        let got = self.read(&mut note, 0)?;
        note.truncate(got);
        let len = note.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        note.truncate(len);
        Ok(note)
    }

    /// Says which objects this file guards. Only the holder of a lock that stands for all of it, before they exist.
    ///
    /// # Errors
    /// The file system is full.
    pub fn write_mark(&self, mark: [u64; 2]) -> Result<()> {
        let bytes: Vec<u8> = mark.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.write(&bytes, MARK_AT)
    }

    /// Which objects this file guards; `None` if nobody said so.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read_mark(&self) -> Result<Option<[u64; 2]>> {
        let mut bytes = [0; 16];
        let whole = self.read(&mut bytes, MARK_AT)? == bytes.len();
        let mark = u128::from_le_bytes(bytes);
        Ok((whole && mark != 0).then_some([mark as u64, (mark >> 64) as u64]))
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        let fd = self.fd.get("a lock file")?;
        retry(|| rustix::io::pwrite(fd, bytes, at)).map_err(|e| OsError::new("write", "a lock file", e))?;
        Ok(())
    }

    fn read(&self, bytes: &mut [u8], at: u64) -> Result<usize> {
        let fd = self.fd.get("a lock file")?;
        retry(|| rustix::io::pread(fd, &mut *bytes, at)).map_err(|e| OsError::new("read", "a lock file", e))
    }

    /// Device and inode of the file.
    #[must_use]
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// A new description of the same file, checked to be the same.
    fn reopen(&self, access: OFlags) -> Result<OwnedFd> {
        let fresh = match (memfd::reopen(&self.fd, access), &self.place) {
            (Ok(fresh), _) => fresh,
            (Err(_), Some((dir, name))) => dir.open_file(name, false, access)?,
            (Err(e), None) => return Err(e),
        };
        if identity(&fresh)? != self.identity {
            return Err(OsError::check(
                "open",
                "a lock file",
                "its name leads to another file by now",
                "try again: its owner has been replaced",
            ));
        }
        Ok(fresh)
    }

    fn what(&self, byte: u64) -> String {
        match &self.place {
            Some((dir, name)) => format!("byte {byte} of {}", dir.shown(name)),
            None => format!("byte {byte} of an anonymous lock file"),
        }
    }
}

impl AsFd for LockFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Device and inode of a lock file.
fn identity(fd: impl AsFd) -> Result<(u64, u64)> {
    object::identity(fd).map_err(|e| OsError { what: "a lock file".to_owned(), ..e })
}

/// One byte, exclusively. `l_pid` must be 0 for every OFD call, or it is EINVAL.
fn range(byte: u64) -> Result<libc::flock> {
    let start = i64::try_from(byte).map_err(|_| {
        let found = format!("there is no byte {byte}");
        OsError::check("fcntl", "a lock file", found, "use a smaller member index")
    })?;
    Ok(libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: 1,
        l_pid: 0,
    })
}

/// A look at the locks of a file that never sets one.
#[derive(Debug)]
pub struct Probe {
    fd: OwnFd,
}

impl Probe {
    /// A probe through `fd`, from [`LockFile::probe_fd`] here or in another process.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd: OwnFd::new(fd) }
    }

    /// Whether a living process holds `byte`.
    ///
    /// # Errors
    /// The descriptor is not one of a file that can be locked. Take that for "unknown", never for
    /// "dead".
    pub fn is_locked(&self, byte: u64) -> Result<bool> {
        let mut lock = range(byte)?;
        // Somebody else's file has no locks, which would say that everybody is dead.
        let fd = self.fd.get("a lock file")?;
        loop {
            match fcntl(fd, FcntlArg::F_OFD_GETLK(&mut lock)) {
                Ok(_) => return Ok(i32::from(lock.l_type) != libc::F_UNLCK),
                Err(nix::errno::Errno::EINTR) => {}
                Err(e) => {
                    let what = format!("byte {byte} of a lock file");
                    return Err(OsError::new("fcntl(F_OFD_GETLK)", what, e));
                }
            }
        }
    }

    /// Device and inode of the file that it looks at.
    ///
    /// # Errors
    /// None is known for a valid descriptor.
    pub fn identity(&self) -> Result<(u64, u64)> {
        identity(&self.fd)
    }
}

impl AsFd for Probe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A lock held by a mapping: it ends when this is dropped or the process ends, and not before.
#[derive(Debug)]
pub struct Held {
    page: NonNull<c_void>,
    len: usize,
    token: ForkToken,
}

impl Held {
    /// Moves the lock that `fd` holds into a mapping and closes `fd`.
    ///
    /// If `fd` holds no lock, neither does this: ask a [`Probe`] whether the byte is locked before
    /// relying on it.
    ///
    /// # Errors
    /// The descriptor cannot be mapped; it is closed all the same, and its lock gone.
    pub fn hold(fd: OwnedFd) -> Result<Self> {
        let token = ForkToken::current();
        let len = process::page_size();
        let flags = MapFlags::SHARED;
        // No child may get the descriptor before it is closed, nor the mapping before DONTFORK.
        let _inside = fork::critical();
        // Declared after the guard, so that on every way out it is closed before the guard goes.
        let fd = fd;
        // SAFETY: a new mapping at an address of the kernel's choice changes no other memory, and
        // nobody can read or write through this one.
        let page = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, ProtFlags::empty(), flags, &fd, 0) };
        let page = page.map_err(|e| OsError::new("mmap", "a page of a lock file", e))?;
        let Some(page) = NonNull::new(page) else {
            return Err(OsError::check("mmap", "a page of a lock file", "mapped at address 0", ""));
        };
        let held = Self { page, len, token };
        // SAFETY: exactly the page mapped above; nothing ever accesses it.
        unsafe { rustix::mm::madvise(page.as_ptr(), len, Advice::LinuxDontFork) }
            .map_err(|e| OsError::new("madvise(DONTFORK)", "a page of a lock file", e))?;
        drop(fd);
        Ok(held)
    }
}

// SAFETY: the page is never accessed; mapping and unmapping concern the whole process.
unsafe impl Send for Held {}
// SAFETY: as for Send; there is no method on a shared reference.
unsafe impl Sync for Held {}

impl Drop for Held {
    fn drop(&mut self) {
        // In a forked child there is no such page (DONTFORK), perhaps somebody else's by now.
        if self.token.is_stale() {
            return;
        }
        // SAFETY: mapped by `hold`, unmapped here and nowhere else, and never accessed.
        let _ = unsafe { rustix::mm::munmap(self.page.as_ptr(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forked_child_drops_its_copy_without_unmapping_what_is_there_now() {
        let file = LockFile::anonymous().unwrap();
        let held = Held::hold(file.try_lock(0).unwrap().unwrap()).unwrap();
        let (page, len) = (held.page.as_ptr(), held.len);
        let mut held = Some(held);
        // SAFETY: the child makes system calls only and leaves by _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            // SAFETY: replaces nothing, by its flags.
            let own = unsafe { libc::mmap(page, len, libc::PROT_READ, flags, -1, 0) };
            drop(held.take());
            // SAFETY: asks about a range and fails if it is not mapped.
            let still = unsafe { libc::msync(page, len, libc::MS_ASYNC) } == 0;
            // SAFETY: leaves without the parent's exit handlers.
            unsafe { libc::_exit(if own == page && still { 0 } else { 1 }) };
        }
        let mut status = -1;
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!(status, 0);
        assert!(file.probe().unwrap().is_locked(0).unwrap());
    }
}
