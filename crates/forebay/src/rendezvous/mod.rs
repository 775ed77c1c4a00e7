//! How two processes meet: the objects of a ring, their locks, and the socket over which they are handed out. Never on
//! the path of a message.

pub(crate) mod client;
pub(crate) mod locks;
pub(crate) mod objects;
pub(crate) mod server;

use forebay_os::{Dir, Result, socket::TEMPORARY_SUFFIX};

/// The rendezvous socket of a ring, in its directory.
pub(crate) fn socket_file(ring: &str) -> String {
    format!("{ring}{SOCKET_SUFFIX}")
}

/// The lock file of a ring, in its directory.
pub(crate) fn lock_file(ring: &str) -> String {
    format!("{ring}{LOCK_SUFFIX}")
}

/// Ends the name of every rendezvous socket.
pub(crate) const SOCKET_SUFFIX: &str = ".sock";

/// Ends the name of every lock file.
pub(crate) const LOCK_SUFFIX: &str = ".lock";

/// The ring whose socket was being made under this temporary name.
pub(crate) fn temporary_of(file: &str) -> Option<&str> {
    let inner = file.strip_prefix('.')?.strip_suffix(TEMPORARY_SUFFIX)?;
    inner.rsplit_once('.')?.0.strip_suffix(SOCKET_SUFFIX)
}

/// Removes what producers of `ring` left that died before they gave their socket its name. Only for who holds the
/// ring's lock: then none of them lives.
pub(crate) fn remove_temporaries(dir: &Dir, ring: &str) -> Result<()> {
    for file in dir.list(TEMPORARY_SUFFIX)? {
        if temporary_of(&file) == Some(ring) {
            dir.remove(&file)?;
        }
    }
    Ok(())
}
