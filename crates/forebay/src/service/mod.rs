//! Request and response over rings: one [`Client`] asks, one [`Server`] answers (or as many ranks of one as a
//! tensor-parallel model has).
//!
//! ```no_run
//! use forebay::{DType, FieldSpec, service::{AnswerKind, Client, Item, Meta, Server}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // One process asks …
//! let mut client = Client::options("double.0.1").slots(4).create()?;
//! client.accept_within(&mut || false)?;
//! let mut loan = client.request(&[FieldSpec::new("x", DType::F32, &[2, 8])], &[Item::new(1), Item::new(2)])?;
//! loan.tensor_mut::<f32>("x")?.fill(1.0);
//! let id = loan.publish(&Meta::default())?;
//! let answer = client.recv()?;
//! assert_eq!((answer.kind(), answer.request()), (AnswerKind::Result, id));
//!
//! // … another one answers.
//! let mut server = Server::options("double.0.1").attach()?;
//! server.ready("my framework 1.0")?;
//! let request = server.recv()?;
//! let mut loan = server.answer(&request, &[FieldSpec::new("y", DType::F32, &[2, 8])])?;
//! for (y, x) in loan.tensor_mut::<f32>("y")?.iter_mut().zip(request.message().as_slice::<f32>("x")?) {
//!     *y = 2.0 * x;
//! }
//! loan.publish()?;
//! # Ok(()) }
//! ```
//!
//! A service is three rings: `NAME.q` (requests) and `NAME.c` (cancellations), which the client makes, and `NAME.a`
//! (answers), which the server of rank 0 makes. It lives as long as both ends: the death of either ends it for the
//! other, so no successor ever sees a request that was not meant for it. A new one takes a new name. On the wire:
//! `docs/service.md`.
//!
//! ```text
//!   client.rs   asks                    server.rs   answers             header.rs   64 bytes that each message begins with
//!   asking.rs   a request to write      request.rs  a request, read     error.rs    what can go wrong
//!   answer.rs   an answer, read         reply.rs    an answer to write  control.rs  what a server knows of cancellations
//! ```

mod answer;
mod asking;
mod client;
mod control;
mod error;
mod header;
mod reply;
mod request;
mod server;

pub use answer::{Answer, AnswerItem, AnswerKind, Readiness};
pub use asking::{DetachedRequest, RequestLoan};
pub use client::{Client, ClientOptions};
pub use error::{ServiceError, ServiceError as Error};
pub use reply::{AnswerLoan, DetachedAnswer, PartItem};
pub use request::Request;
pub use server::{Server, ServerOptions};

use std::hash::{BuildHasherDefault, Hasher};

/// Items of a request or answer that there is room for beside the slot's own bytes, unless told otherwise.
pub const DEFAULT_MAX_ITEMS: u32 = 1024;
/// Bytes of texts that an answer has room for, beside the slot's own bytes.
pub const TEXT_BYTES: u64 = 4096;
/// The field that has a row for each item, in requests and answers.
pub const ITEMS_FIELD: &str = "forebay.items";
/// The field of an answer that has its texts.
pub const TEXT_FIELD: &str = "forebay.text";

/// One row of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Item {
    /// Its number, unique among the items that its client waits for.
    pub id: u64,
    /// When nobody needs its answer any more: CLOCK_MONOTONIC in ns, 0 for never.
    pub deadline_ns: u64,
}

impl Item {
    /// An item without a deadline.
    #[must_use]
    pub const fn new(id: u64) -> Self {
        Self { id, deadline_ns: 0 }
    }

    /// An item that nobody needs after `deadline_ns` ([`now_ns`] and more).
    #[must_use]
    pub const fn until(id: u64, deadline_ns: u64) -> Self {
        Self { id, deadline_ns }
    }
}

/// How it went with one item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum ItemStatus {
    /// Its row is its result.
    #[default]
    Ok = 0,
    /// It failed; there is a text, and its row means nothing.
    Error = 1,
    /// It was cancelled, or its deadline passed; its row means nothing.
    Cancelled = 2,
}

/// A place in a W3C trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trace {
    /// The trace's id; all zero means none.
    pub trace_id: [u8; 16],
    /// The span's id.
    pub span_id: [u8; 8],
    /// The trace's flags: bit 0 says that it is recorded.
    pub flags: u8,
}

/// What a request says of itself as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meta {
    /// When nobody needs any of it any more: CLOCK_MONOTONIC in ns, 0 for never.
    pub deadline_ns: u64,
    /// The span that the server's work belongs to.
    pub trace: Option<Trace>,
}

/// When the server computed: CLOCK_MONOTONIC in ns, 0 if it did not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// Its computation began.
    pub start_ns: u64,
    /// Its computation ended.
    pub end_ns: u64,
}

/// CLOCK_MONOTONIC in ns: what deadlines and [`Timings`] are counted in, the same in all processes of a host.
#[must_use]
pub fn now_ns() -> u64 {
    forebay_os::clock::monotonic_ns()
}

fn requests_ring(service: &str) -> String {
    format!("{service}.q")
}

fn control_ring(service: &str) -> String {
    format!("{service}.c")
}

fn answers_ring(service: &str) -> String {
    format!("{service}.a")
}

/// The rings by which the ranks of a Python worker agree. They are theirs; a client only removes what dead ones left.
fn rank_rings(service: &str, ranks: u32) -> impl Iterator<Item = String> {
    (0..ranks).map(move |rank| format!("{service}.r{rank}")).chain([format!("{service}.l")])
}

/// Hashes the ids of this process's own requests and items.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u64(&mut self, id: u64) {
        // The odd number next to 2^64 divided by the golden ratio; the rotation puts what it mixed best where tables look.
        self.0 = (self.0 ^ id).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

type IdMap<V> = std::collections::HashMap<u64, V, BuildHasherDefault<IdHasher>>;
type IdSet = std::collections::HashSet<u64, BuildHasherDefault<IdHasher>>;
