//! Waiting for a handful of descriptors.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::{OsError, Result, clock};

/// What is waited for, or what happened, on one descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Events(u16);

impl Events {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// There is something to read, or to accept.
    pub const READ: Self = Self(1);
    /// There is room to write.
    pub const WRITE: Self = Self(2);
    /// The other end is gone or broken. Always reported, whether asked for or not.
    pub const HANGUP: Self = Self(4);

    /// Whether all of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether nothing is in this set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn to_poll(self) -> PollFlags {
        let mut flags = PollFlags::RDHUP;
        flags.set(PollFlags::IN, self.contains(Self::READ));
        flags.set(PollFlags::OUT, self.contains(Self::WRITE));
        flags
    }

    fn from_poll(flags: PollFlags) -> Self {
        let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR | PollFlags::NVAL;
        let mut events = Self::NONE;
        for (bits, event) in [(PollFlags::IN, Self::READ), (PollFlags::OUT, Self::WRITE), (gone, Self::HANGUP)] {
            if flags.intersects(bits) {
                events = events.with(event);
            }
        }
        events
    }
}

impl std::ops::BitOr for Events {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

/// Waits until one of `fds` is ready, at most for `timeout`, and says what happened on each.
///
/// All answers empty means the time is over or a signal came; the caller knows its own deadline.
///
/// # Errors
/// Out of memory in the kernel, or more descriptors than `ulimit -n`.
pub fn poll_fds(fds: &[(BorrowedFd<'_>, Events)], timeout: Option<Duration>) -> Result<Vec<Events>> {
    let mut list: Vec<PollFd<'_>> =
        fds.iter().map(|(fd, events)| PollFd::from_borrowed_fd(*fd, events.to_poll())).collect();
    poll(&mut list, timeout)?;
    Ok(list.iter().map(|p| Events::from_poll(p.revents())).collect())
}

/// Waits for one descriptor, without allocating. Empty means the time is over or a signal came.
///
/// # Errors
/// As [`poll_fds`].
pub fn poll_one(fd: BorrowedFd<'_>, events: Events, timeout: Option<Duration>) -> Result<Events> {
    let mut list = [PollFd::from_borrowed_fd(fd, events.to_poll())];
    poll(&mut list, timeout)?;
    Ok(Events::from_poll(list[0].revents()))
}

fn poll(list: &mut [PollFd<'_>], timeout: Option<Duration>) -> Result<()> {
    let timeout = timeout.map(clock::timespec);
    match rustix::event::poll(list, timeout.as_ref()) {
        Ok(_) => Ok(()),
        Err(Errno::INTR) => {
            for entry in list {
                entry.clear_revents();
            }
            Ok(())
        }
        Err(errno) => Err(OsError::new("poll", format!("{} descriptors", list.len()), errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn readiness_and_hang_up_are_told_apart() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let both = [(read.as_fd(), Events::READ), (write.as_fd(), Events::WRITE)];
        let found = poll_fds(&both, Some(Duration::ZERO)).unwrap();
        assert_eq!(found, [Events::NONE, Events::WRITE]);

        rustix::io::write(&write, b"x").unwrap();
        assert_eq!(poll_one(read.as_fd(), Events::READ, None).unwrap(), Events::READ);
        drop(write);
        let found = poll_one(read.as_fd(), Events::READ, None).unwrap();
        assert_eq!(found, Events::READ | Events::HANGUP);
    }
}
