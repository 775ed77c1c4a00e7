//! Memory objects: named ones that survive their creator, anonymous ones that can be sealed, and
//! the allocation of every byte of them.
//!
//! Nothing here maps an object; see [`crate::mapping`].

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::error::retry;
use crate::{OsError, Result, host};

/// What a descriptor or a mapping may do with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Look only; writing through such a mapping is SIGSEGV.
    ReadOnly,
    /// Look and write.
    ReadWrite,
}

/// POSIX shared memory: objects with a name under `/dev/shm`, living until unlinked.
///
/// The paths are opened directly instead of through `shm_open`, so that O_NOFOLLOW and O_NONBLOCK
/// hold with every C library (a planted FIFO would block an open without the latter for ever).
pub mod shm {
    use super::{Access, AsFd, Errno, FileType, Mode, OFlags, OsError, OwnedFd, Result, host, retry};
    use crate::Trust;

    const FOLDER: &str = "/dev/shm";
    /// The longest file name of tmpfs, in bytes.
    const NAME_MAX: usize = 255;

    /// Creates the object `name` (with its leading `/`), empty, readable and writable for us.
    ///
    /// Its permission bits are exactly `mode`, whatever the umask says.
    ///
    /// # Errors
    /// The name exists (`kind()` is `AlreadyExists`), is not valid, or `/dev/shm` cannot be written.
    pub fn create(name: &str, mode: u32) -> Result<OwnedFd> {
        let path = path_of(name)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Nobody else gets in between creation and fchmod: the mode starts at the owner's own.
        let fd = retry(|| rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR))
            .map_err(|e| error("shm_open", name, e))?;
        if let Err(e) = rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode & 0o666)) {
            // The object is ours (O_EXCL): do not leave a half-made one behind.
            let _ = unlink(name);
            return Err(error("fchmod", name, e));
        }
        Ok(fd)
    }

    /// Opens the object `name` if it is a plain file of this user that nobody else may write.
    ///
    /// # Errors
    /// There is none (`kind()` is `NotFound`), or it is not what we would have made.
    pub fn open(name: &str, access: Access) -> Result<OwnedFd> {
        open_trusting(name, access, &Trust::default())
    }

    /// As [`open`], accepting the owners and the mode of `trust`.
    ///
    /// # Errors
    /// As [`open`].
    pub fn open_trusting(name: &str, access: Access, trust: &Trust) -> Result<OwnedFd> {
        let path = path_of(name)?;
        let rights = match access {
            Access::ReadOnly => OFlags::RDONLY,
            Access::ReadWrite => OFlags::RDWR,
        };
        let flags = rights | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = retry(|| rustix::fs::open(&path, flags, Mode::empty())).map_err(|e| error("shm_open", name, e))?;
        let stat = rustix::fs::fstat(fd.as_fd()).map_err(|e| error("fstat", name, e))?;
        let found = FileType::from_raw_mode(stat.st_mode);
        if found != FileType::RegularFile {
            return Err(OsError::check(
                "shm_open",
                quoted(name),
                format!("it is a {found:?}, expected a plain file"),
                format!("somebody planted it; remove {path}"),
            ));
        }
        trust.check("shm_open", &quoted(name), &stat)?;
        Ok(fd)
    }

    /// Removes the name; the memory goes when the last descriptor and mapping of it are gone.
    ///
    /// # Errors
    /// It exists and cannot be removed. A name that does not exist is no error.
    pub fn unlink(name: &str) -> Result<()> {
        match rustix::fs::unlink(path_of(name)?) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(error("shm_unlink", name, e)),
        }
    }

    /// The names (with their leading `/`) of all objects that begin with `prefix`, sorted.
    ///
    /// # Errors
    /// `/dev/shm` cannot be read.
    pub fn list(prefix: &str) -> Result<Vec<String>> {
        let failed = |e| OsError::new("readdir", FOLDER, e);
        let mut names = Vec::new();
        let folder = loop {
            match std::fs::read_dir(FOLDER) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                other => break other.map_err(failed)?,
            }
        };
        for entry in folder {
            let file = entry.map_err(failed)?.file_name();
            // A name that is not UTF-8 is not one of ours.
            let Some(file) = file.to_str() else { continue };
            let name = format!("/{file}");
            if name.starts_with(prefix) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// The bytes that `/dev/shm` has left, if it is mounted.
    #[must_use]
    pub fn free_bytes() -> Option<u64> {
        host::shm_free()
    }

    fn path_of(name: &str) -> Result<String> {
        let file = name.strip_prefix('/').unwrap_or("");
        let bad = file.is_empty() || file == "." || file == ".." || file.len() > NAME_MAX || file.contains(['/', '\0']);
        if bad {
            return Err(OsError::check(
                "shm_open",
                quoted(name),
                "not a valid object name",
                format!("use '/' and then 1 to {NAME_MAX} bytes without '/'"),
            ));
        }
        Ok(format!("{FOLDER}/{file}"))
    }

    fn quoted(name: &str) -> String {
        format!("shared memory object {name:?}")
    }

    fn error(call: &'static str, name: &str, errno: Errno) -> OsError {
        let error = OsError::new(call, quoted(name), errno);
        match errno {
            Errno::ACCESS | Errno::PERM => error.with_hint("run both sides as one user"),
            Errno::LOOP => error.with_hint("the name is a symbolic link that somebody planted; remove it"),
            Errno::NOSPC => error.with_hint("/dev/shm is full; remove objects or enlarge it"),
            _ => error,
        }
    }
}

/// Anonymous memory objects: no name, nothing left behind, and seals that bind every peer.
pub mod memfd {
    use std::os::fd::{AsFd, AsRawFd, OwnedFd};

    use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
    use rustix::io::Errno;

    use crate::error::retry;
    use crate::{OsError, Result};

    /// What nobody can do to an object any more.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Seals(u32);

    impl Seals {
        /// No seal.
        pub const NONE: Self = Self(0);
        /// No more seals.
        pub const SEAL: Self = Self(SealFlags::SEAL.bits());
        /// Its length cannot shrink: no peer can cause SIGBUS in another.
        pub const SHRINK: Self = Self(SealFlags::SHRINK.bits());
        /// Its length cannot grow.
        pub const GROW: Self = Self(SealFlags::GROW.bits());
        /// Nobody can write it, and no writable mapping exists.
        pub const WRITE: Self = Self(SealFlags::WRITE.bits());
        /// Nobody can write it except through the writable mappings that exist already.
        pub const FUTURE_WRITE: Self = Self(SealFlags::FUTURE_WRITE.bits());
        /// Nobody can make it executable. Set at creation where the kernel knows it.
        pub const EXEC: Self = Self(SealFlags::EXEC.bits());

        /// Whether all of `other` is set here.
        #[must_use]
        pub const fn contains(self, other: Self) -> bool {
            self.0 & other.0 == other.0
        }
    }

    impl std::ops::BitOr for Seals {
        type Output = Self;

        fn bitor(self, other: Self) -> Self {
            Self(self.0 | other.0)
        }
    }

    /// Creates an empty object; `name` is for people looking at `/proc/PID/maps`.
    ///
    /// `huge` asks for huge pages of that many bytes: its length must then be a multiple of it.
    ///
    /// # Errors
    /// No descriptor left, or the kernel has no pages of that size (`ENODEV`, `EINVAL`).
    pub fn create(name: &str, huge: Option<u64>) -> Result<OwnedFd> {
        let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        if let Some(size) = huge {
            let hint = "see `ls /sys/kernel/mm/hugepages`";
            if !size.is_power_of_two() {
                let found = format!("{size} is not a size of huge pages");
                return Err(OsError::check("memfd_create", what(name), found, hint));
            }
            // The size is its logarithm, in the upper six bits (MFD_HUGE_SHIFT).
            let log = size.trailing_zeros() << 26;
            flags |= MemfdFlags::HUGETLB | MemfdFlags::from_bits_retain(log);
        }
        // Linux 6.3 can refuse memory without this flag (vm.memfd_noexec=2), older ones the flag.
        let made = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
            other => other,
        };
        made.map_err(|e| {
            let error = OsError::new("memfd_create", what(name), e);
            match huge {
                Some(size) => error.with_hint(format!("this host offers no huge pages of {size} bytes")),
                None => error,
            }
        })
    }

    /// Adds seals. They bind everybody, ourselves included, and never come off.
    ///
    /// # Errors
    /// Sealed against seals, or [`Seals::WRITE`] while a writable mapping exists (`EBUSY`).
    pub fn seal(fd: impl AsFd, seals: Seals) -> Result<()> {
        rustix::fs::fcntl_add_seals(fd, SealFlags::from_bits_retain(seals.0))
            .map_err(|e| OsError::new("fcntl(F_ADD_SEALS)", "an anonymous memory object", e))
    }

    /// The seals that are set. Read them on what a peer sent, before mapping it.
    ///
    /// # Errors
    /// The descriptor is not one that has seals (`EINVAL`).
    pub fn seals(fd: impl AsFd) -> Result<Seals> {
        let found =
            rustix::fs::fcntl_get_seals(fd).map_err(|e| OsError::new("fcntl(F_GET_SEALS)", "a memory object", e))?;
        Ok(Seals(found.bits()))
    }

    /// The same object behind a new descriptor that can only read.
    ///
    /// It keeps an honest peer from mapping it writable by mistake; against others seal
    /// [`Seals::FUTURE_WRITE`], because they can reopen it as we do here.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn reopen_read_only(fd: impl AsFd) -> Result<OwnedFd> {
        reopen(fd, OFlags::RDONLY)
    }

    /// A new open file description of the same object, by way of `/proc/self/fd`.
    pub(crate) fn reopen(fd: impl AsFd, access: OFlags) -> Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
        retry(|| rustix::fs::open(&path, access | OFlags::CLOEXEC, Mode::empty()))
            .map_err(|e| OsError::new("open", path.as_str(), e).with_hint("/proc must be mounted"))
    }

    fn what(name: &str) -> String {
        format!("anonymous memory object {name:?}")
    }
}

/// Why an object did not get its memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AllocateError {
    /// There is not enough of it. Retrying helps once somebody has given memory back.
    #[error(
        "no space for a memory object: {needed} bytes needed, {free} free in {where_}; {}",
        ways_out(.where_)
    )]
    NoSpace {
        /// The bytes the object still needed.
        needed: u64,
        /// The bytes there were when we looked; other processes take some meanwhile.
        free: u64,
        /// What ran out, in words.
        where_: &'static str,
    },
    /// Anything else.
    #[error(transparent)]
    Os(#[from] OsError),
}

const TMPFS: &str = "the object's file system (/dev/shm)";
const HUGE: &str = "the pool of huge pages";
const CGROUP: &str = "the memory limit of this cgroup";
const HOST: &str = "this host's memory and swap";

fn ways_out(place: &str) -> &'static str {
    match place {
        TMPFS => {
            "use fewer or smaller slots, the memfd backing, or a larger /dev/shm \
             (docker --shm-size, `mount -o remount,size=…`)"
        }
        HUGE => "reserve more (vm.nr_hugepages) or do without huge pages",
        CGROUP => "use fewer or smaller slots, or raise the container's memory limit",
        _ => "use fewer or smaller slots, or free memory",
    }
}

/// `f_type` of an object on huge pages.
pub(crate) const HUGETLBFS_MAGIC: u32 = 0x9584_58f6;

/// The most that one `fallocate` is asked for: small enough to be done between two signals of a
/// profiler, large enough not to matter (about 20 ms).
const CHUNK_MAX: u64 = 32 << 20;
/// The least it is asked for while signals keep interrupting it.
const CHUNK_MIN: u64 = 256 << 10;

/// Gives the object its length and every byte of memory now.
///
/// After success no access inside `len` can find the memory missing (SIGBUS), as long as nobody
/// truncates the object or punches holes. After an error the object is empty again, if it was
/// before. An object that has its length already is only filled up.
///
/// # Errors
/// [`AllocateError::NoSpace`] with the numbers. Memory limits are compared first, because the
/// kernel's answer to a breach of those is not an error but the OOM killer.
pub fn allocate(fd: impl AsFd, len: u64) -> Result<(), AllocateError> {
    let fd = fd.as_fd();
    let what = || format!("a memory object of {len} bytes");
    let stat = rustix::fs::fstat(fd).map_err(|e| OsError::new("fstat", what(), e))?;
    let before = u64::try_from(stat.st_size).unwrap_or(0);
    if before > len {
        return Err(AllocateError::Os(OsError::check(
            "allocate",
            what(),
            format!("it has {before} bytes already, and shrinking would be SIGBUS in its users"),
            "create another object",
        )));
    }
    let needed = len.saturating_sub(allocated(&stat));
    let place = place_of(fd, needed)?;

    retry(|| rustix::fs::ftruncate(fd, len)).map_err(|e| OsError::new("ftruncate", what(), e))?;
    let filled = fill(fd, len);
    if filled.is_err() && before == 0 {
        // Give back what was filled so far: a ring that does not fit must not eat the rest either.
        let _ = retry(|| rustix::fs::ftruncate(fd, 0));
    }
    filled.map_err(|errno| match errno {
        Errno::NOSPC | Errno::NOMEM | Errno::DQUOT => {
            let free = free_of(fd).unwrap_or(0);
            AllocateError::NoSpace { needed, free, where_: place }
        }
        other => AllocateError::Os(OsError::new("fallocate", what(), other)),
    })
}

/// Bytes that the object has memory for already.
fn allocated(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)
}

/// Compares `needed` with all that limits it, and says where a later ENOSPC would come from.
fn place_of(fd: impl AsFd, needed: u64) -> Result<&'static str, AllocateError> {
    let huge = is_huge(&fd)?;
    let place = if huge { HUGE } else { TMPFS };
    // Huge pages are a pool of their own, which the kernel answers for with an error.
    let limits = if huge {
        [(place, free_of(&fd)), (CGROUP, None), (HOST, None)]
    } else {
        [(place, free_of(&fd)), (CGROUP, host::cgroup_memory_available()), (HOST, host::memory_available())]
    };
    for (where_, free) in limits {
        if let Some(free) = free
            && free < needed
        {
            return Err(AllocateError::NoSpace { needed, free, where_ });
        }
    }
    Ok(place)
}

/// The bytes left in the object's file system; `None` where it has no size of its own.
fn free_of(fd: impl AsFd) -> Option<u64> {
    let fs = rustix::fs::fstatfs(fd).ok()?;
    // The kernel's internal mount, where memfds live, has no size, nor has `mount -o size=0`.
    if fs.f_blocks == 0 {
        return None;
    }
    host::bytes(fs.f_bavail, fs.f_bsize)
}

pub(crate) fn is_huge(fd: impl AsFd) -> Result<bool> {
    let fs = rustix::fs::fstatfs(fd).map_err(|e| OsError::new("fstatfs", "a memory object", e))?;
    Ok(fs.f_type as u32 == HUGETLBFS_MAGIC)
}

/// `fallocate` of `0..len` in pieces. The kernel undoes an interrupted piece, so a piece that is
/// interrupted is made smaller until it fits between two signals.
fn fill(fd: impl AsFd, len: u64) -> rustix::io::Result<()> {
    let mut done = 0;
    let huge = is_huge(&fd).unwrap_or(false);
    // Huge pages are not to be cut: the kernel wants whole ones.
    let mut chunk = if huge { len } else { CHUNK_MAX };
    while done < len {
        let piece = chunk.min(len - done);
        match rustix::fs::fallocate(&fd, FallocateFlags::empty(), done, piece) {
            Ok(()) => {
                done += piece;
                if !huge {
                    chunk = chunk.saturating_mul(2).min(CHUNK_MAX);
                }
            }
            Err(Errno::INTR) if huge => {}
            Err(Errno::INTR) => chunk = (chunk / 2).max(CHUNK_MIN),
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

/// The length of an object, in bytes.
///
/// # Errors
/// None is known for a valid descriptor.
pub fn object_len(fd: impl AsFd) -> Result<u64> {
    let stat = rustix::fs::fstat(fd).map_err(|e| OsError::new("fstat", "a memory object", e))?;
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}

/// The bytes that an object has memory for. Less than its length means that it has holes, which take memory when they
/// are read.
///
/// # Errors
/// None is known for a valid descriptor.
pub fn allocated_len(fd: impl AsFd) -> Result<u64> {
    let stat = rustix::fs::fstat(fd).map_err(|e| OsError::new("fstat", "a memory object", e))?;
    Ok(allocated(&stat))
}

/// The owner and the permission bits of an object.
///
/// # Errors
/// None is known for a valid descriptor.
pub fn owner(fd: impl AsFd) -> Result<(u32, u32)> {
    let stat = rustix::fs::fstat(fd).map_err(|e| OsError::new("fstat", "a memory object", e))?;
    Ok((stat.st_uid, stat.st_mode & 0o7777))
}

/// Device and inode: two descriptors with the same pair are the same object.
///
/// # Errors
/// None is known for a valid descriptor.
pub fn identity(fd: impl AsFd) -> Result<(u64, u64)> {
    let stat = rustix::fs::fstat(fd).map_err(|e| OsError::new("fstat", "a memory object", e))?;
    Ok((stat.st_dev, stat.st_ino))
}
