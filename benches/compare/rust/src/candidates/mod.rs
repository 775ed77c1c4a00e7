//! One candidate each, set up as its own documentation advises.

pub(crate) mod forebay;
pub(crate) mod grpc;
pub(crate) mod iceoryx;
pub(crate) mod minimal;
pub(crate) mod ringfire;
pub(crate) mod shared;
