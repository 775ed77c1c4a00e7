//! One shared mapping of a memory object.
//!
//! A [`Mapping`] hands out its address and length and nothing else: how bytes become references is
//! decided above, in one place. It is private to its process: a forked child finds a wall instead
//! (see [`crate::fork`]), and dropping the handle there does nothing.
#![allow(unsafe_code, reason = "memory advice that memmap2 leaves to its callers, and touching pages")]

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::mm::Advice as RawAdvice;

use crate::{Access, ForkToken, OsError, Result, fork, host, object, process};

/// A shared mapping of the first bytes of a memory object. Unmapped when dropped.
pub struct Mapping {
    raw: ManuallyDrop<MmapRaw>,
    base: NonNull<u8>,
    access: Access,
    token: ForkToken,
}

impl Mapping {
    /// Maps the first `len` bytes of the object behind `fd`, which may be closed afterwards.
    ///
    /// Not inherited by forked children. Not populated; see [`populate`](Self::populate).
    ///
    /// # Errors
    /// The object is shorter than `len` (touching the rest would be SIGBUS), `len` is 0 or no
    /// multiple of the object's huge pages, the descriptor does not allow `access` (`EACCES`), the
    /// object is sealed against writing (`EPERM`), or there is no address space left.
    pub fn map(fd: BorrowedFd<'_>, len: usize, access: Access) -> Result<Self> {
        let what = || format!("a memory object of {len} bytes");
        let found = object::object_len(fd)?;
        if len == 0 || found < len as u64 {
            return Err(OsError::check(
                "mmap",
                what(),
                format!("its length is {found} bytes, {len} are to be mapped"),
                "the object is cut short or another version's; recreate the ring",
            ));
        }
        if object::is_huge(fd)? {
            let page = rustix::fs::fstatfs(fd).map_or(0, |fs| fs.f_bsize.unsigned_abs());
            if page != 0 && !(len as u64).is_multiple_of(page) {
                return Err(OsError::check(
                    "mmap",
                    what(),
                    format!("it lies on huge pages of {page} bytes, and {len} is no multiple"),
                    "round the length up to whole huge pages",
                ));
            }
        }
        let token = ForkToken::current();
        let mut options = MmapOptions::new();
        options.len(len);
        // Mapped, marked and registered in one section: a fork in between would let the child share
        // the pages (before DONTFORK) or leave it a hole (before the registration).
        let inside = fork::critical();
        let raw = match access {
            Access::ReadOnly => options.map_raw_read_only(fd.as_raw_fd()),
            Access::ReadWrite => options.map_raw(fd.as_raw_fd()),
        };
        let raw = raw.map_err(|e| OsError::new("mmap", what(), e))?;
        raw.advise(Advice::DontFork).map_err(|e| OsError::new("madvise(DONTFORK)", what(), e))?;
        let Some(base) = NonNull::new(raw.as_mut_ptr()) else {
            return Err(OsError::check("mmap", what(), "mapped at address 0", ""));
        };
        // The child's handler maps over this address by number.
        let _ = base.as_ptr().expose_provenance();
        fork::register_hole(base.cast(), len, &inside)?;
        Ok(Self { raw: ManuallyDrop::new(raw), base, access, token })
    }

    /// The first byte. Valid for [`len`](Self::len) bytes until the mapping is dropped, and for
    /// writing only with [`Access::ReadWrite`].
    #[must_use]
    #[inline]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The mapped bytes; never 0.
    #[must_use]
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// What may be done through it.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// The life of the process that mapped it.
    #[must_use]
    pub fn token(&self) -> ForkToken {
        self.token
    }

    /// Whether this is a forked child of the process that mapped it: nothing is here any more.
    #[must_use]
    #[inline]
    pub fn is_stale(&self) -> bool {
        self.token.is_stale()
    }

    /// Leaves the bytes out of core dumps. True if the kernel agreed.
    pub fn dont_dump(&self) -> bool {
        !self.is_stale() && self.raw.advise(Advice::DontDump).is_ok()
    }

    /// Enters every page into this process's page table now, for writing if it is writable.
    ///
    /// Takes 45 (read) to 255 (write) µs per MiB of pages that exist already. Changes no byte.
    ///
    /// # Errors
    /// The object has lost its memory or its length (`EFAULT`, `EHWPOISON`), there is none left
    /// (`ENOMEM`), or this is a forked child.
    pub fn populate(&self) -> Result<()> {
        self.refuse_child("madvise(POPULATE)")?;
        let advice = match self.access {
            Access::ReadOnly => Advice::PopulateRead,
            Access::ReadWrite => Advice::PopulateWrite,
        };
        loop {
            match self.raw.advise(advice) {
                Ok(()) => return Ok(()),
                Err(e) => match e.raw_os_error() {
                    Some(libc::EINTR | libc::EAGAIN) => {}
                    // Before Linux 5.14.
                    Some(libc::EINVAL) => {
                        self.touch();
                        return Ok(());
                    }
                    Some(libc::EFAULT) => {
                        let hint = "the object was truncated or lost pages; recreate the ring";
                        return Err(OsError::new("madvise(POPULATE)", self.what(), e).with_hint(hint));
                    }
                    _ => return Err(OsError::new("madvise(POPULATE)", self.what(), e)),
                },
            }
        }
    }

    /// [`populate`](Self::populate) page by page, for kernels that cannot do it in one call.
    ///
    /// Writing means adding 0 atomically: peers may use the bytes at the same time.
    fn touch(&self) {
        for offset in (0..self.len()).step_by(process::page_size()) {
            // SAFETY: `offset < len`, so the pointer stays inside the mapping that `self` owns.
            let at = unsafe { self.base.add(offset) };
            // SAFETY: inside the mapping (above), of alignment 1, mapped at least for reading, and
            // not referred to as anything but atomics or raw memory: peers write it at any time.
            let byte = unsafe { at.cast::<AtomicU8>().as_ref() };
            // ORDER none, Relaxed: no value is used.
            match self.access {
                Access::ReadOnly => drop(std::hint::black_box(byte.load(Ordering::Relaxed))),
                Access::ReadWrite => drop(byte.fetch_or(0, Ordering::Relaxed)),
            }
        }
    }

    /// Keeps the bytes from being swapped out.
    ///
    /// # Errors
    /// More than `ulimit -l` allows, or this is a forked child. The text names the limit.
    pub fn lock(&self) -> Result<()> {
        self.refuse_child("mlock")?;
        self.raw.lock().map_err(|e| {
            let limit = match host::memlock_limit() {
                Some(bytes) => format!("raise `ulimit -l` (now {bytes} bytes) or do without mlock"),
                None => "free memory or do without mlock".to_owned(),
            };
            OsError::new("mlock", self.what(), e).with_hint(limit)
        })
    }

    /// Asks for transparent huge pages. Worth it before the object gets its memory.
    ///
    /// # Errors
    /// The kernel has none, or this is a forked child.
    pub fn advise_huge(&self) -> Result<()> {
        self.refuse_child("madvise(HUGEPAGE)")?;
        let at = self.base.cast().as_ptr();
        // SAFETY: exactly the mapping that `self` owns; the advice changes no byte.
        unsafe { rustix::mm::madvise(at, self.len(), RawAdvice::LinuxHugepage) }
            .map_err(|e| OsError::new("madvise(HUGEPAGE)", self.what(), e))
    }

    fn what(&self) -> String {
        format!("a mapping of {} bytes", self.len())
    }

    fn refuse_child(&self, call: &'static str) -> Result<()> {
        if !self.is_stale() {
            return Ok(());
        }
        Err(OsError::check(
            call,
            self.what(),
            "this is a forked child; the mapping belongs to its parent",
            "attach anew in the child",
        ))
    }
}

// SAFETY: a mapping is an address range of the process, not of a thread. The methods call the
// kernel, which serialises, or touch pages atomically; the pointer that `base` returns is used
// under the unsafe contracts of whoever dereferences it.
unsafe impl Send for Mapping {}
// SAFETY: as for Send; no method changes a field.
unsafe impl Sync for Mapping {}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapping")
            .field("base", &self.base)
            .field("len", &self.len())
            .field("access", &self.access)
            .finish()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // In a forked child the range is a wall (or, after a raw clone, a hole that may be anybody's
        // by now): leave it alone, whatever it is.
        if self.is_stale() {
            return;
        }
        let inside = fork::critical();
        fork::unregister_hole(self.base.cast(), &inside);
        // SAFETY: dropped here and nowhere else; `self` is not used afterwards.
        unsafe { ManuallyDrop::drop(&mut self.raw) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::object::{allocate, memfd};

    fn object(len: u64) -> std::os::fd::OwnedFd {
        let fd = memfd::create("forebay-os-test", None).unwrap();
        allocate(&fd, len).unwrap();
        fd
    }

    /// The line of `/proc/self/smaps` that begins with `key`, for the mapping at `base`.
    fn smaps(base: NonNull<u8>, key: &str) -> String {
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", base.as_ptr() as usize);
        let mut lines = text.lines().skip_while(|l| !l.starts_with(&start));
        lines.find(|l| l.starts_with(key)).unwrap().to_owned()
    }

    #[test]
    fn two_mappings_of_one_object_show_the_same_bytes() {
        let fd = object(8192);
        let writer = Mapping::map(fd.as_fd(), 8192, Access::ReadWrite).unwrap();
        let reader = Mapping::map(fd.as_fd(), 8192, Access::ReadOnly).unwrap();
        drop(fd);
        // SAFETY: inside the mapping.
        let to = unsafe { writer.base().add(5000) };
        // SAFETY: inside the mapping.
        let from = unsafe { reader.base().add(5000) };
        // SAFETY: valid, writable, and of this test alone.
        unsafe { to.write_volatile(42) };
        // SAFETY: valid and readable.
        assert_eq!(unsafe { from.read_volatile() }, 42);
        assert_eq!((reader.len(), reader.access()), (8192, Access::ReadOnly));
    }

    #[test]
    fn an_object_that_is_too_short_is_refused_with_both_lengths() {
        let fd = object(4096);
        let error = Mapping::map(fd.as_fd(), 4097, Access::ReadOnly).unwrap_err().to_string();
        assert!(error.contains("4096 bytes") && error.contains("4097"), "{error}");
        assert!(Mapping::map(fd.as_fd(), 0, Access::ReadOnly).is_err());
    }

    #[test]
    fn populating_enters_all_pages_and_changes_no_byte() {
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let fd = object(1 << 20);
            rustix::io::pwrite(&fd, b"here", 8190).unwrap();
            for by_touch in [false, true] {
                let mapping = Mapping::map(fd.as_fd(), 1 << 20, access).unwrap();
                if by_touch {
                    mapping.touch();
                } else {
                    mapping.populate().unwrap();
                }
                let rss = smaps(mapping.base(), "Rss:");
                assert_eq!(rss.split_whitespace().nth(1), Some("1024"), "{access:?} {by_touch}: {rss}");
            }
            let mut back = [0; 4];
            rustix::io::pread(&fd, &mut back[..], 8190).unwrap();
            assert_eq!(&back, b"here");
        }
    }

    #[test]
    fn it_is_not_inherited_and_not_dumped() {
        let mapping = Mapping::map(object(4096).as_fd(), 4096, Access::ReadWrite).unwrap();
        assert!(mapping.dont_dump());
        let flags = smaps(mapping.base(), "VmFlags:");
        for flag in ["sh", "dc", "dd"] {
            assert!(flags.split_whitespace().any(|f| f == flag), "{flag}: {flags}");
        }
    }

    #[test]
    fn locking_more_than_allowed_names_the_limit_and_less_works() {
        let mapping = Mapping::map(object(4096).as_fd(), 4096, Access::ReadWrite).unwrap();
        match mapping.lock() {
            Ok(()) => {
                let locked = smaps(mapping.base(), "Locked:");
                assert_eq!(locked.split_whitespace().nth(1), Some("4"), "{locked}");
            }
            Err(e) => assert!(e.to_string().contains("ulimit -l"), "{e}"),
        }
    }

    #[test]
    fn a_dropped_mapping_leaves_room_for_the_next() {
        let fd = object(4096);
        // More often than there is room for mappings at one time (see `fork`).
        for _ in 0..10_000 {
            Mapping::map(fd.as_fd(), 4096, Access::ReadOnly).unwrap();
        }
    }
}
