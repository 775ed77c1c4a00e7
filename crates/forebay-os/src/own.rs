//! A descriptor that knows what it was when it became ours.
//!
//! A number is all that a program has of a descriptor, and anybody in it can close numbers: daemonizers close all they do not
//! know. The kernel hands the number out again, and what was our socket is then somebody's file. So whatever is written
//! to, asked or closed for us is looked at first: one `fstat`, a fifth of a microsecond.
//!
//! Event counters, timers and epoll sets share one inode; of these only the kind can be told.

use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};

use rustix::io::Errno;

use crate::error::retry;
use crate::{OsError, Result};

/// Device, inode and file type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity(u64, u64, u32);

impl Identity {
    fn of(fd: impl AsFd) -> std::result::Result<Self, Errno> {
        let stat = retry(|| rustix::fs::fstat(&fd))?;
        Ok(Self(stat.st_dev, stat.st_ino, stat.st_mode & libc::S_IFMT))
    }
}

/// A descriptor of ours, for as long as its number means what it meant.
#[derive(Debug)]
pub struct OwnFd {
    /// Taken only when this is consumed or dropped.
    fd: Option<OwnedFd>,
    /// `None` if it could not be told, which no valid descriptor is known for; it then counts as ours.
    identity: Option<Identity>,
}

impl OwnFd {
    /// Takes `fd` over.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self { identity: Identity::of(&fd).ok(), fd: Some(fd) }
    }

    /// Whether the number still means what it meant. What cannot be told counts as ours.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        match (Identity::of(self), self.identity) {
            (Err(Errno::BADF), _) => false,
            (Ok(found), Some(own)) => found == own,
            _ => true,
        }
    }

    /// The descriptor, to be used at once; `what` it is, for the error.
    ///
    /// # Errors
    /// Somebody closed it; its number is free, or somebody else's.
    pub fn get(&self, what: &str) -> Result<BorrowedFd<'_>> {
        if self.is_ours() {
            return Ok(self.as_fd());
        }
        let found = "its descriptor was closed by somebody else in this process";
        Err(OsError::check("fstat", what, found, "close only descriptors that you opened"))
    }

    /// The plain descriptor.
    #[must_use]
    pub fn into_fd(mut self) -> OwnedFd {
        self.fd.take().expect("a descriptor is taken once")
    }

    /// Lets the number go without looking at what it means: where it was replaced on purpose.
    pub(crate) fn close(mut self) {
        drop(self.fd.take());
    }
}

impl From<OwnedFd> for OwnFd {
    fn from(fd: OwnedFd) -> Self {
        Self::new(fd)
    }
}

impl AsFd for OwnFd {
    /// Not looked at: for waiting and mapping, where a wrong one does no harm.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("a descriptor is there until it is taken").as_fd()
    }
}

impl Drop for OwnFd {
    fn drop(&mut self) {
        let ours = self.fd.is_some() && self.is_ours();
        if let Some(fd) = self.fd.take().filter(|_| !ours) {
            // Closed already; the number is not ours to close.
            let _ = fd.into_raw_fd();
        }
    }
}
