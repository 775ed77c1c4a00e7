//! The private directory in which producers and consumers find each other.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::error::retry;
use crate::own::OwnFd;
use crate::{OsError, Result, Trust, process};

/// Names the directory outright.
pub const ENV_DIR: &str = "FOREBAY_DIR";

/// A directory that was found to be ours, held open. Cheap to clone.
///
/// All names are looked up in the open directory, so replacing the path afterwards changes nothing.
#[derive(Debug, Clone)]
pub struct Dir {
    fd: Arc<OwnFd>,
    path: Arc<Path>,
    identity: (u64, u64),
    trust: Arc<Trust>,
}

impl Dir {
    /// Opens the directory, creating its last component with mode 0700 if there is none.
    ///
    /// It is the first that is set of: `explicit`, `$FOREBAY_DIR`, `$XDG_RUNTIME_DIR/forebay` (if
    /// that runtime directory exists and is ours), `/tmp/forebay-<uid>`.
    ///
    /// # Errors
    /// It is a symbolic link, not a directory, another user's, or writable for others; the text says
    /// which and how to mend it.
    pub fn open(explicit: Option<&Path>) -> Result<Self> {
        Self::open_trusting(explicit, Trust::default())
    }

    /// As [`open`](Self::open), accepting the owners and the mode of `trust`, and created with it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_trusting(explicit: Option<&Path>, trust: Trust) -> Result<Self> {
        let chosen = match explicit {
            Some(path) => path.to_path_buf(),
            None => default_path(),
        };
        let shown = format!("directory {}", chosen.display());
        // A relative path must not change its meaning when the program changes its directory.
        let path = std::path::absolute(&chosen).map_err(|e| OsError::new("getcwd", shown.as_str(), e))?;
        let mode = Mode::from_raw_mode(trust.mode & 0o777);
        let made = match rustix::fs::mkdir(&path, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(failed("mkdir", &shown, &path, e)),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            retry(|| rustix::fs::open(&path, flags, Mode::empty())).map_err(|e| failed("open", &shown, &path, e))?;
        if made {
            // After mkdir rather than by it: the umask has no say in what an operator allowed.
            rustix::fs::fchmod(&fd, mode).map_err(|e| failed("chmod", &shown, &path, e))?;
        }
        let stat = rustix::fs::fstat(&fd).map_err(|e| failed("fstat", &shown, &path, e))?;
        trust.check("open", &shown, &stat)?;
        Ok(Self {
            fd: Arc::new(OwnFd::new(fd)),
            path: path.into(),
            identity: (stat.st_dev, stat.st_ino),
            trust: Arc::new(trust),
        })
    }

    /// The absolute path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open directory.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whom it was opened for.
    #[must_use]
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// A number that is the same for everybody who sees this directory, under whatever path
    /// (FNV-1a of device and inode).
    #[must_use]
    pub fn hash(&self) -> u32 {
        let (device, inode) = self.identity;
        let mut hash = 0x811c_9dc5_u32;
        for byte in device.to_le_bytes().into_iter().chain(inode.to_le_bytes()) {
            hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
        hash
    }

    /// The names of all files that end with `suffix`, sorted.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self, suffix: &str) -> Result<Vec<String>> {
        let failed = |e| self.error("readdir", suffix, e);
        let mut names = Vec::new();
        // `read_from` opens the directory anew, so that callers do not share a position.
        let fd = self.get()?;
        for entry in retry(|| rustix::fs::Dir::read_from(fd)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if let Ok(name) = entry.file_name().to_str()
                && name != "."
                && name != ".."
                && name.ends_with(suffix)
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Removes a file. One that does not exist is no error.
    ///
    /// # Errors
    /// It exists and cannot be removed, or the name is not one.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.check_name(name)?;
        match rustix::fs::unlinkat(self.get()?, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(self.error("unlink", name, e)),
        }
    }

    /// Opens a file in it, never through a link; `create` makes it with the mode of the trust.
    pub(crate) fn open_file(&self, name: &str, create: bool, flags: OFlags) -> Result<OwnedFd> {
        self.check_name(name)?;
        let mode = Mode::from_raw_mode(self.trust.file_mode());
        let fd = self.get()?;
        let open = |flags| retry(|| rustix::fs::openat(fd, name, flags, mode));
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        if create {
            match open(flags | OFlags::CREATE | OFlags::EXCL) {
                Ok(fd) => {
                    // The umask has no say in what an operator allowed.
                    if let Err(e) = rustix::fs::fchmod(&fd, mode) {
                        // Made by us just now (O_EXCL), and of no use to anybody.
                        let _ = self.remove(name);
                        return Err(self.error("chmod", name, e));
                    }
                    return Ok(fd);
                }
                Err(Errno::EXIST) => {}
                Err(e) => return Err(self.error("open", name, e)),
            }
        }
        let fd = open(flags).map_err(|e| self.error("open", name, e))?;
        let stat = rustix::fs::fstat(&fd).map_err(|e| self.error("fstat", name, e))?;
        let found = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        if found != rustix::fs::FileType::RegularFile {
            return Err(OsError::check(
                "open",
                self.shown(name),
                format!("it is a {found:?}, expected a plain file"),
                "remove it",
            ));
        }
        self.trust.check("open", &self.shown(name), &stat)?;
        Ok(fd)
    }

    /// What is at `name` now, without following a link; `None` if nothing is.
    pub(crate) fn stat(&self, name: &str) -> Result<Option<Stat>> {
        self.check_name(name)?;
        match rustix::fs::statat(self.get()?, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(self.error("stat", name, e)),
        }
    }

    fn get(&self) -> Result<BorrowedFd<'_>> {
        self.fd.get(&format!("directory {}", self.path.display()))
    }

    /// Refuses what is not one plain component.
    pub(crate) fn check_name(&self, name: &str) -> Result<()> {
        let bad = name.is_empty() || name == "." || name == ".." || name.len() > 255 || name.contains(['/', '\0']);
        if bad {
            let hint = "use 1 to 255 bytes without '/'";
            return Err(OsError::check("open", self.shown(name), "not a file name", hint));
        }
        Ok(())
    }

    pub(crate) fn shown(&self, name: &str) -> String {
        format!("{}", self.path.join(name).display())
    }

    pub(crate) fn error(&self, call: &'static str, name: &str, errno: Errno) -> OsError {
        OsError::new(call, self.shown(name), errno)
    }
}

fn failed(call: &'static str, shown: &str, path: &Path, errno: Errno) -> OsError {
    let error = OsError::new(call, shown, errno);
    let hint = match errno {
        // O_NOFOLLOW with O_DIRECTORY answers ENOTDIR for a link, ELOOP without.
        Errno::NOTDIR | Errno::LOOP => "it must be a directory itself, no link to one; remove it".to_owned(),
        Errno::NOENT => {
            let parent = path.parent().unwrap_or(path);
            format!("create {} first, or set {ENV_DIR} to another place", parent.display())
        }
        Errno::ACCESS | Errno::PERM | Errno::ROFS => format!("set {ENV_DIR} to a place of your own"),
        _ => return error,
    };
    error.with_hint(hint)
}

/// The directory when nobody named one.
fn default_path() -> PathBuf {
    if let Some(path) = env_path(ENV_DIR) {
        return path;
    }
    if let Some(runtime) = env_path("XDG_RUNTIME_DIR")
        && runtime.is_absolute()
        // After `su`, the variable may still name another user's: then it is not for us.
        && rustix::fs::stat(&runtime).is_ok_and(|s| s.st_uid == process::uid())
    {
        return runtime.join("forebay");
    }
    PathBuf::from(format!("/tmp/forebay-{}", process::uid()))
}

/// A variable that is set and not empty.
fn env_path(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name)?;
    (!value.as_bytes().is_empty()).then(|| PathBuf::from(value))
}
