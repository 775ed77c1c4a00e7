//! Sequenced-packet Unix sockets: whole messages, descriptors with them, a hang-up when a side dies.
//!
//! Sockets are CLOEXEC and non-blocking, and inert in a forked child (see [`crate::fork`]). This is
//! the control plane: nothing here is on the path of a message.
#![allow(unsafe_code, reason = "SO_PEERCRED, whose pid may be 0, which the safe wrapper does not expect")]

use std::io::{IoSlice, IoSliceMut};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::error::retry;
use crate::fork::{self, ControlFd};
use crate::poll::{Events, poll_one};
use crate::{Dir, OsError, Result, process};

/// Descriptors that one message can carry (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

/// The longest path in a socket address, in bytes.
const PATH_MAX: usize = 107;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Ends the temporary names of sockets that are being made; see [`Listener::bind`].
pub const TEMPORARY_SUFFIX: &str = ".tmp";

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// The other side of a connection, as the kernel vouches for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Its effective user when it connected or listened.
    pub uid: u32,
    /// Its effective group then.
    pub gid: u32,
    /// Its pid in our namespace, 0 if it is not visible from here. For people to read only.
    pub pid: u32,
}

/// Why a message was not sent or received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The other side closed or died. Retrying does not help.
    #[error("the connection is closed; its other side has left or died")]
    Hangup,
    /// Nothing came in time. Retrying is fine.
    #[error("nothing arrived on the connection in time; its other side is stopped or busy")]
    TimedOut,
    /// The other side does not read. Retrying may help.
    #[error("the connection is full; its other side does not read")]
    Full,
    /// A message was larger than expected or lost descriptors on its way. It is gone.
    #[error("a message did not fit: {found}; use the same version on both sides, or raise `ulimit -n`")]
    Truncated {
        /// What did not fit into what.
        found: String,
    },
    /// Anything else.
    #[error(transparent)]
    Os(#[from] OsError),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody listens there yet, or too many are waiting already. Retrying is what to do.
    #[error("nobody listens on {path} yet ({why}); start the other side or wait")]
    NotYet {
        /// The socket's path.
        path: PathBuf,
        /// Somebody has the socket, and does not accept now.
        owned: bool,
        /// What was found: no socket, a dead one, a full one.
        why: &'static str,
    },
    /// Anything else.
    #[error(transparent)]
    Os(#[from] OsError),
}

/// One received message.
#[derive(Debug)]
pub struct Received {
    /// The bytes of the buffer that it fills; never 0.
    pub len: usize,
    /// The descriptors that came with it, CLOEXEC. Claims: check what they are.
    pub fds: Vec<OwnedFd>,
}

/// The address of `file` in `dir`: the path where it fits, else a way through `/proc/self/fd`.
fn address(dir: &Dir, file: &str) -> Result<SocketAddrUnix> {
    dir.check_name(file)?;
    let path = dir.path().join(file);
    let built = if path.as_os_str().as_bytes().len() <= PATH_MAX {
        SocketAddrUnix::new(&path)
    } else {
        SocketAddrUnix::new(format!("/proc/self/fd/{}/{file}", dir.fd().as_raw_fd()))
    };
    built.map_err(|e| dir.error("socket address", file, e).with_hint("use a shorter name for the ring"))
}

fn new_socket() -> Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)
        .map_err(|e| OsError::new("socket", "a new connection", e))
}

/// A socket that others connect to.
#[derive(Debug)]
pub struct Listener {
    fd: ControlFd,
    dir: Dir,
    file: String,
    /// Device and inode of the name that was bound.
    identity: (u64, u64),
    unlink: bool,
}

impl Listener {
    /// Listens as `file` in `dir`, taking the name over from whoever had it.
    ///
    /// The socket is bound and listening under a temporary name (`.<file>.<random>.tmp`) before it
    /// is renamed, so that nobody ever finds one that refuses. A crash in between leaves the
    /// temporary name behind; [`TEMPORARY_SUFFIX`] tells whoever cleans.
    ///
    /// Dropping it closes it and leaves the name, unless [`unlink_on_drop`](Self::unlink_on_drop).
    ///
    /// # Errors
    /// The directory cannot be written, or the names are too long.
    pub fn bind(dir: &Dir, file: &str) -> Result<Self> {
        dir.check_name(file)?;
        let random = process::random_u128() as u32;
        let temporary = format!(".{file}.{random:08x}{TEMPORARY_SUFFIX}");
        let at = address(dir, &temporary)?;

        let inside = fork::critical();
        let fd = new_socket()?;
        rustix::net::bind(&fd, &at).map_err(|e| dir.error("bind", file, e))?;
        let ready = Self::publish(dir, file, &temporary, &fd);
        let identity = match ready {
            Ok(identity) => identity,
            Err(e) => {
                let _ = dir.remove(&temporary);
                return Err(e);
            }
        };
        let fd = ControlFd::new(fd, &inside);
        Ok(Self { fd, dir: dir.clone(), file: file.to_owned(), identity, unlink: false })
    }

    /// Makes the bound socket reachable under its name; returns what the name then leads to.
    fn publish(dir: &Dir, file: &str, temporary: &str, fd: &OwnedFd) -> Result<(u64, u64)> {
        let mode = Mode::from_raw_mode(dir.trust().file_mode());
        rustix::fs::chmodat(dir.fd(), temporary, mode, AtFlags::empty()).map_err(|e| dir.error("chmod", file, e))?;
        rustix::net::listen(fd, BACKLOG).map_err(|e| dir.error("listen", file, e))?;
        let stat = rustix::fs::statat(dir.fd(), temporary, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| dir.error("stat", file, e))?;
        rustix::fs::renameat(dir.fd(), temporary, dir.fd(), file).map_err(|e| dir.error("rename", file, e))?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Whether dropping it also removes the name, provided that it still leads here.
    pub fn unlink_on_drop(&mut self, yes: bool) {
        self.unlink = yes;
    }

    /// Whether the name still leads to this socket and not to a successor's.
    ///
    /// # Errors
    /// The directory cannot be searched.
    pub fn is_current(&self) -> Result<bool> {
        let found = self.dir.stat(&self.file)?;
        Ok(found.is_some_and(|s| (s.st_dev, s.st_ino) == self.identity))
    }

    /// The next connection that waits, if there is one.
    ///
    /// # Errors
    /// No descriptor left: the connection keeps waiting, so do not ask again at once.
    pub fn accept(&self) -> Result<Option<Conn>> {
        loop {
            let inside = fork::critical();
            match rustix::net::accept_with(self.fd.get("a socket")?, FLAGS) {
                Ok(fd) => return Ok(Some(Conn::of(fd, &inside))),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(e) => return Err(self.dir.error("accept", &self.file, e)),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // A forked child holds an inert descriptor, and the name is its parent's.
        if self.fd.is_stale() {
            return;
        }
        if self.unlink && self.is_current().unwrap_or(false) {
            let _ = self.dir.remove(&self.file);
        }
    }
}

/// One connection.
#[derive(Debug)]
pub struct Conn {
    fd: ControlFd,
}

impl Conn {
    fn of(fd: OwnedFd, inside: &fork::Critical) -> Self {
        Self { fd: ControlFd::new(fd, inside) }
    }

    /// Connects to the socket `file` in `dir`, without waiting.
    ///
    /// # Errors
    /// [`ConnectError::NotYet`] if there is none, nobody listens on it, or its queue is full.
    pub fn connect(dir: &Dir, file: &str) -> Result<Self, ConnectError> {
        let at = address(dir, file)?;
        let inside = fork::critical();
        let fd = new_socket()?;
        let (owned, why) = match retry(|| rustix::net::connect(&fd, &at)) {
            Ok(()) => return Ok(Self::of(fd, &inside)),
            Err(Errno::NOENT) => (false, "no socket of that name"),
            Err(Errno::CONNREFUSED) => (false, "a socket whose owner is gone"),
            Err(Errno::AGAIN) => (true, "its owner does not accept; stopped, or too many are waiting"),
            Err(e) => {
                let error = dir.error("connect", file, e);
                return Err(ConnectError::Os(match e {
                    Errno::ACCESS | Errno::PERM => error.with_hint("run both sides as one user"),
                    Errno::PROTOTYPE => error.with_hint("another program's socket is there; remove it"),
                    _ => error,
                }));
            }
        };
        Err(ConnectError::NotYet { path: dir.path().join(file), owned, why })
    }

    /// Two connected ends in this process.
    ///
    /// # Errors
    /// No descriptor left.
    pub fn pair() -> Result<(Self, Self)> {
        let inside = fork::critical();
        let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)
            .map_err(|e| OsError::new("socketpair", "a new connection", e))?;
        Ok((Self::of(a, &inside), Self::of(b, &inside)))
    }

    /// A connection that was inherited or received. It must be of this type and is made non-blocking.
    ///
    /// # Errors
    /// It is not a socket.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let what = "an inherited connection";
        let kind = rustix::net::sockopt::socket_type(&fd).map_err(|e| OsError::new("getsockopt", what, e))?;
        if kind != SocketType::SEQPACKET {
            let found = format!("its type is {kind:?}, expected SEQPACKET");
            return Err(OsError::check("getsockopt", what, found, "pass a sequenced-packet socket"));
        }
        rustix::io::ioctl_fionbio(&fd, true).map_err(|e| OsError::new("ioctl", what, e))?;
        let inside = fork::critical();
        Ok(Self::of(fd, &inside))
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// None is known for a connected socket.
    pub fn peer(&self) -> Result<Peer> {
        let fd = self.fd.get("a connection")?;
        let mut found = MaybeUninit::<libc::ucred>::zeroed();
        let mut len = mem::size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: the descriptor is open, the buffer has `len` writable bytes, and `len` is ours.
        let rc = unsafe {
            libc::getsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                found.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        if rc != 0 {
            let source = std::io::Error::last_os_error();
            return Err(OsError::new("getsockopt(SO_PEERCRED)", "a connection", source));
        }
        // SAFETY: zeroed before and at most filled since; three integers have no invalid pattern.
        let found = unsafe { found.assume_init() };
        Ok(Peer { uid: found.uid, gid: found.gid, pid: u32::try_from(found.pid).unwrap_or(0) })
    }

    /// Sends one message with descriptors, whole or not at all, without waiting.
    ///
    /// # Errors
    /// [`SocketError::Full`] if the other side does not read, [`SocketError::Hangup`] if it is gone.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), SocketError> {
        let what = || format!("a message of {} bytes and {} descriptors", bytes.len(), fds.len());
        if bytes.is_empty() || fds.len() > MAX_FDS {
            let hint = format!("send at least one byte and at most {MAX_FDS} descriptors");
            return Err(OsError::check("sendmsg", what(), "not a valid message", hint).into());
        }
        let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            // The buffer is made for MAX_FDS, which was checked.
            let pushed = control.push(SendAncillaryMessage::ScmRights(fds));
            assert!(pushed, "room for {MAX_FDS} descriptors");
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let parts = [IoSlice::new(bytes)];
        let fd = self.fd.get("a connection")?;
        match retry(|| rustix::net::sendmsg(fd, &parts, &mut control, flags)) {
            Ok(_) => Ok(()),
            Err(Errno::AGAIN) => Err(SocketError::Full),
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => Err(SocketError::Hangup),
            Err(e) => Err(OsError::new("sendmsg", what(), e).into()),
        }
    }

    /// Waits for a message or the end of the connection, until `deadline`; `None` waits without end.
    ///
    /// True means that [`try_recv`](Self::try_recv) has an answer other than "nothing yet".
    ///
    /// # Errors
    /// Out of memory in the kernel.
    pub fn wait_readable(&self, deadline: Option<Instant>) -> Result<bool> {
        loop {
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            if !poll_one(self.as_fd(), Events::READ, left)?.is_empty() {
                return Ok(true);
            }
            if left == Some(Duration::ZERO) {
                return Ok(false);
            }
        }
    }

    /// Receives one message, waiting for it until `deadline`; `None` waits without end.
    ///
    /// Descriptors among it are inherited by a child forked from now on; where that must not
    /// happen, use [`recv_with`](Self::recv_with).
    ///
    /// # Errors
    /// [`SocketError::TimedOut`], [`SocketError::Hangup`] when everything sent was received, or
    /// [`SocketError::Truncated`] if the message has more than `buf` or `max_fds` can take.
    pub fn recv(&self, buf: &mut [u8], max_fds: usize, deadline: Option<Instant>) -> Result<Received, SocketError> {
        self.recv_with(buf, max_fds, deadline, |received| received)
    }

    /// As [`recv`](Self::recv), with `then` run before any fork can happen: for receive → map → close.
    ///
    /// The waiting is outside that section. `then` must not wait for anything.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn recv_with<R>(
        &self,
        buf: &mut [u8],
        max_fds: usize,
        deadline: Option<Instant>,
        then: impl FnOnce(Received) -> R,
    ) -> Result<R, SocketError> {
        loop {
            if !self.wait_readable(deadline)? {
                return Err(SocketError::TimedOut);
            }
            let inside = fork::critical();
            if let Some(received) = self.try_recv(buf, max_fds)? {
                return Ok(then(received));
            }
            drop(inside);
            // Readable, and nothing was there: asked again, but not beyond the deadline.
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(SocketError::TimedOut);
            }
        }
    }

    /// Receives the message that is there, if one is, without waiting.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), except for the timeout.
    pub fn try_recv(&self, buf: &mut [u8], max_fds: usize) -> Result<Option<Received>, SocketError> {
        let max_fds = max_fds.min(MAX_FDS);
        // Made before anything is received: what we hold then is not lost to a failed allocation.
        let mut fds = Vec::with_capacity(MAX_FDS);
        let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let room = rustix::cmsg_space!(ScmRights(max_fds)).min(space.len());
        let room = if max_fds == 0 { 0 } else { room };
        let capacity = buf.len();
        let mut control = RecvAncillaryBuffer::new(&mut space[..room]);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let mut parts = [IoSliceMut::new(buf)];
        let fd = self.fd.get("a connection")?;
        let answer = retry(|| rustix::net::recvmsg(fd, &mut parts, &mut control, flags));
        let answer = match answer {
            Ok(answer) => answer,
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::CONNRESET | Errno::NOTCONN | Errno::PIPE) => return Err(SocketError::Hangup),
            Err(e) => return Err(OsError::new("recvmsg", "a connection", e).into()),
        };
        // Owned at once: whatever is wrong with the message, its descriptors are closed.
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        let found = if answer.flags.contains(ReturnFlags::TRUNC) {
            Some(format!("it has more than {capacity} bytes"))
        } else if answer.flags.contains(ReturnFlags::CTRUNC) {
            Some(format!("it has more than {max_fds} descriptors, or this process has none left"))
        } else if fds.len() > max_fds {
            Some(format!("it has {} descriptors, at most {max_fds} are expected", fds.len()))
        } else {
            None
        };
        if let Some(found) = found {
            return Err(SocketError::Truncated { found });
        }
        if answer.bytes == 0 {
            // We never send an empty message, so this is the end.
            return Err(SocketError::Hangup);
        }
        Ok(Some(Received { len: answer.bytes, fds }))
    }

    /// Whether the other side is gone. What it sent before can still be received.
    #[must_use]
    pub fn is_hung_up(&self) -> bool {
        // In a forked child there is no other side, nor behind a descriptor that somebody closed.
        self.fd.is_stale()
            || !self.fd.is_ours()
            || poll_one(self.as_fd(), Events::NONE, Some(Duration::ZERO))
                .is_ok_and(|events| events.contains(Events::HANGUP))
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Conn> for OwnedFd {
    fn from(conn: Conn) -> Self {
        conn.fd.into_fd()
    }
}
