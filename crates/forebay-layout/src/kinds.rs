//! The few words that a ring is described with: kind, backing, what happens when it is full.

use core::{fmt, str::FromStr};

/// No value has this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownName {
    /// What was to be named.
    pub what: &'static str,
    /// The names there are.
    pub expected: &'static str,
}

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown {}; expected one of {}", self.what, self.expected)
    }
}

impl core::error::Error for UnknownName {}

macro_rules! named {
    ($(#[$doc:meta])* $name:ident, $what:literal, $expected:literal: $($(#[$vdoc:meta])* $variant:ident = $code:literal $text:literal,)*) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant = $code,)* }

        impl $name {
            /// The code on the wire.
            #[must_use]
            pub const fn code(self) -> u8 { self as u8 }

            /// The value with this code, if there is one.
            #[must_use]
            pub const fn from_code(code: u64) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }

            /// The name, the same in Rust, Python and on the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.pad(self.name()) }
        }

        impl FromStr for $name {
            type Err = UnknownName;
            fn from_str(name: &str) -> Result<Self, Self::Err> {
                match name {
                    $($text => Ok(Self::$variant),)*
                    _ => Err(UnknownName { what: $what, expected: $expected }),
                }
            }
        }
    };
}

named! {
    /// Who gets a message.
    Kind, "kind", "queue, broadcast":
    /// Each message goes to exactly one consumer, and comes back if that consumer dies.
    Queue = 1 "queue",
    /// Every consumer sees every message.
    Broadcast = 2 "broadcast",
}

named! {
    /// Where the memory comes from.
    Backing, "backing", "posix, memfd":
    /// `shm_open`: survives a restart of the producer; for peers that trust each other not to truncate.
    Posix = 1 "posix",
    /// Sealed `memfd`: no name, nothing left behind, cannot be truncated by a peer.
    Memfd = 2 "memfd",
}

named! {
    /// What a producer does when no slot is free.
    WhenFull, "when-full policy", "block, fail, drop-oldest":
    /// Wait until a slot is released, up to the timeout.
    Block = 1 "block",
    /// Fail at once.
    Fail = 2 "fail",
    /// Take the slot of the oldest message that nobody has claimed; it is counted as dropped.
    DropOldest = 3 "drop-oldest",
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn names_and_codes_lead_back_to_the_same_value() {
        for kind in [Kind::Queue, Kind::Broadcast] {
            assert_eq!((kind.name().parse(), Kind::from_code(kind.code().into())), (Ok(kind), Some(kind)));
        }
        assert_eq!(WhenFull::from_code(4), None);
        assert_eq!(WhenFull::DropOldest.to_string(), "drop-oldest");
        let unknown = "ring".parse::<Backing>().unwrap_err();
        assert_eq!(unknown.to_string(), "unknown backing; expected one of posix, memfd");
    }
}
