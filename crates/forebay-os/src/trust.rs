//! Whose files are taken for ours, and how open they may be.

use rustix::fs::Stat;

use crate::{OsError, Result, process};

/// The owners and the widest mode that a shared file may have before it is refused.
///
/// The default trusts this process's own effective user and nobody else to write. Rings are made and
/// found with it; a wider one is for programs that use this crate by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// Owners accepted besides the effective user of this process.
    pub uids: Vec<u32>,
    /// The permission bits that an object may have at most, and is created with.
    pub mode: u32,
}

impl Default for Trust {
    fn default() -> Self {
        Self { uids: Vec::new(), mode: 0o700 }
    }
}

impl Trust {
    /// Whether files of `uid` are accepted.
    #[must_use]
    pub fn accepts(&self, uid: u32) -> bool {
        uid == process::uid() || self.uids.contains(&uid)
    }

    /// The permission bits for a plain file: `mode` without the bits to execute.
    #[must_use]
    pub fn file_mode(&self) -> u32 {
        self.mode & 0o666
    }

    /// Refuses an owner that is not trusted and write permission for people who should have none.
    ///
    /// Only the write bits are compared: who may merely read a directory or a file of ours is the
    /// umask's affair, who may write it is ours.
    pub(crate) fn check(&self, call: &'static str, what: &str, stat: &Stat) -> Result<()> {
        if !self.accepts(stat.st_uid) {
            return Err(OsError::check(
                call,
                what,
                format!("it belongs to uid {}, this process runs as uid {}", stat.st_uid, process::uid()),
                "remove it, or run both sides as one user",
            ));
        }
        let excess = stat.st_mode & 0o022 & !self.mode;
        if excess != 0 {
            return Err(OsError::check(
                call,
                what,
                format!(
                    "mode is {:04o}, others than the owner may write it; expected at most {:04o}",
                    stat.st_mode & 0o7777,
                    self.mode
                ),
                "run `chmod go-w` on it",
            ));
        }
        Ok(())
    }
}
