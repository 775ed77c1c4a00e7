//! The system calls that forebay needs, as safe types: shared memory, futexes, liveness locks, descriptor passing.
//!
//! # What is where
//!
//! | module | subject |
//! |---|---|
//! | [`object`] | memory objects: named ([`object::shm`]), anonymous ([`object::memfd`]), [`object::allocate`] |
//! | [`mapping`] | one shared mapping of an object, and what may be asked of its pages |
//! | [`numa`] | the node that memory comes from and lies on, and those of devices |
//! | [`own`] | a descriptor that is used only while its number means what it meant |
//! | [`fork`] | what a forked child finds: a stale token, PROT_NONE where mappings were, inert descriptors |
//! | [`liveness`] | locks that end when their holder dies, never before, and probes that only look |
//! | [`futex`], [`barrier`], [`event`], [`poll`] | waiting and waking |
//! | [`dir`], [`socket`] | the rendezvous: a private directory, sockets in it, descriptors passed over them |
//! | [`clock`], [`process`], [`host`], [`signals`] | small questions to the kernel |
//!
//! # What this crate never does
//!
//! It interprets no byte inside a mapping, takes no policy decision, logs nothing, and starts no
//! thread. Every operation either returns what the kernel said, as an [`OsError`] with the call, its
//! object and a way out, or a small enum where a caller has to branch.
//!
//! # Unsafe
//!
//! Denied here and allowed file by file, where a call needs it: `mapping`, `numa`, `fork`, `liveness`,
//! `futex`, `socket` and `signals`.
#![deny(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("forebay runs on Linux only: it needs memfd seals, futexes and open-file-description locks");
#[cfg(not(target_endian = "little"))]
compile_error!("forebay's shared layout is little-endian; this target is not");
#[cfg(not(target_pointer_width = "64"))]
compile_error!("forebay needs a 64-bit target: it maps rings larger than a 32-bit address space");

pub mod barrier;
pub mod clock;
pub mod dir;
mod error;
pub mod event;
pub mod fork;
pub mod futex;
pub mod host;
pub mod liveness;
pub mod mapping;
pub mod numa;
pub mod object;
pub mod own;
pub mod poll;
pub mod process;
pub mod signals;
pub mod socket;
mod trust;

pub use error::{OsError, Result};
pub use trust::Trust;

pub use barrier::Barrier;
pub use dir::Dir;
pub use event::{Epoll, EventFd, TimerFd};
pub use fork::ForkToken;
pub use liveness::{Held, LockFile, Probe};
pub use mapping::Mapping;
pub use object::{Access, AllocateError};
pub use socket::{Conn, ConnectError, Listener, Peer, Received, SocketError};
