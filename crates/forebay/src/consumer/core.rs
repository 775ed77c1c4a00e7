//! The ring protocol of either kind, behind one face.

use forebay_layout::{Defect, entry::ENTRY_WORDS};
use forebay_ring::{
    Claim, Reader,
    broadcast::BroadcastConsumer,
    queue::{Next, QueueConsumer},
};

use crate::segment::Segment;

/// The consumer's side of the protocol.
#[derive(Debug)]
pub(crate) enum Core {
    Queue(QueueConsumer<Segment>),
    Broadcast(BroadcastConsumer<Segment>),
}

impl Core {
    pub(crate) fn next(&mut self, scan: bool, may_hold: impl Fn(usize) -> bool) -> Result<Next, Defect> {
        match self {
            Self::Queue(core) => core.next(scan, may_hold),
            Self::Broadcast(core) => core.next(scan, may_hold),
        }
    }

    pub(crate) fn may_have_next(&self) -> bool {
        match self {
            Self::Queue(core) => core.may_have_next(),
            Self::Broadcast(core) => core.may_have_next(),
        }
    }

    pub(crate) fn cursor(&self) -> u64 {
        match self {
            Self::Queue(core) => core.cursor(),
            Self::Broadcast(core) => core.cursor(),
        }
    }

    pub(crate) fn reader(&self) -> &Reader<Segment> {
        match self {
            Self::Queue(core) => core.reader(),
            Self::Broadcast(core) => core.reader(),
        }
    }

    pub(crate) fn leave(&mut self) {
        match self {
            // What a queue's consumer has not claimed is everybody's anyway.
            Self::Queue(_) => {}
            Self::Broadcast(core) => core.leave(),
        }
    }
}

/// Who takes most messages the short way. A trait, so that what is done with such a message is compiled for each kind.
pub(crate) trait InOrder {
    /// The next message, its entry copied into the room given for its slot, if that is simple.
    fn next_in_order<'a>(&mut self, room: impl FnOnce(u32) -> Option<&'a mut [u64; ENTRY_WORDS]>) -> Option<Claim>;
}

impl InOrder for QueueConsumer<Segment> {
    #[inline]
    fn next_in_order<'a>(&mut self, room: impl FnOnce(u32) -> Option<&'a mut [u64; ENTRY_WORDS]>) -> Option<Claim> {
        self.next_in_order(room)
    }
}

impl InOrder for BroadcastConsumer<Segment> {
    #[inline]
    fn next_in_order<'a>(&mut self, room: impl FnOnce(u32) -> Option<&'a mut [u64; ENTRY_WORDS]>) -> Option<Claim> {
        self.next_in_order(room)
    }
}
