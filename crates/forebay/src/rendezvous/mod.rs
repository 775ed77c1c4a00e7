//! How two processes meet: the objects of a ring, their locks, and the socket over which they are handed out. Never on
//! the path of a message.

pub(crate) mod client;
pub(crate) mod locks;
pub(crate) mod objects;
pub(crate) mod server;

/// The rendezvous socket of a ring, in its directory.
pub(crate) fn socket_file(ring: &str) -> String {
    format!("{ring}.sock")
}

/// The lock file of a ring, in its directory.
pub(crate) fn lock_file(ring: &str) -> String {
    format!("{ring}{LOCK_SUFFIX}")
}

/// Ends the name of every lock file.
pub(crate) const LOCK_SUFFIX: &str = ".lock";
