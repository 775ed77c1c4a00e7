//! What `make fuzz` runs: one function a target, from bytes to a panic or none.
//!
//! ```text
//!   schema     bytes → schema → bytes; names; element types
//!   control    packets of the rendezvous socket, decoded, and sent to a living producer and to a living consumer
//!   attach     a ring's objects with words that lie: attached to, looked at, taken over, through the crate `forebay`
//!   image      the ring protocol on memory in which a peer changes words at any moment
//!   machine    the ring protocol, sequences of operations and deaths, against an account of every message
//!   table      JSON lines as features, and schemas of tables
//!   feed       the lines of `forebay feed`: cut, decoded, tokenized, resumed
//!   text       tokenizer files, texts and ids of any kind
//!   service    messages of a service whose other end lies: answers to a real client, requests to a real server
//!   http       requests of any kind to the sidecar's HTTP, over real sockets, with a model that is not there
//!   jpeg, png, webp    files of a format, decoded and resized, alone and in a batch
//!   recipe     configurations of image processors
//!   shard      tar archives of images, read and resumed
//! ```
//!
//! The functions live in a library so that two things run the same: the fuzzing engine (`fuzz_targets/`, feature
//! `engine`, `ci/fuzz.sh`) and an ordinary test that replays `corpus/` on the stable compiler. The code under test is the
//! published crates as they are: nothing in them knows that it is fuzzed.
//!
//! A target may panic only where the product is wrong. An input means something whatever its bytes are.
#![allow(clippy::unwrap_used, reason = "a fuzz target fails by panicking")]

pub mod attach;
mod bytes;
pub mod control;
pub mod feed;
pub mod http;
pub mod image;
pub mod images;
pub mod machine;
mod memory;
pub mod schema;
mod server;
pub mod service;
pub mod table;
pub mod text;

/// A target's function.
pub type Body = fn(&[u8]);

/// Every target by its name, which is that of its folder in `corpus/`.
pub const TARGETS: [(&str, Body); 15] = [
    ("attach", attach::run),
    ("control", control::run),
    ("feed", feed::run),
    ("http", http::run),
    ("image", image::run),
    ("jpeg", images::jpeg),
    ("machine", machine::run),
    ("png", images::png),
    ("recipe", images::recipe),
    ("schema", schema::run),
    ("service", service::run),
    ("shard", images::shard),
    ("webp", images::webp),
    ("table", table::run),
    ("text", text::run),
];
