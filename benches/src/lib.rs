//! What the benchmarks share: a ring in a folder of its own, and how to fill and empty it.
//!
//! May: create rings, publish, check. May not: measure anything, or be depended on by anything but benchmarks.

use forebay::{Consumer, DType, FieldSpec, Kind, Message, Producer};

/// Slots of a ring that is measured; messages are handed over in runs of half as many, so that neither side waits.
pub const SLOTS: u32 = 64;
/// Messages in one run.
pub const RUN: u64 = SLOTS as u64 / 2;

/// One producer and one attached consumer in one process, in a folder that goes with them.
#[derive(Debug)]
pub struct Pair {
    /// The producing end.
    pub producer: Producer,
    /// The consuming end.
    pub consumer: Consumer,
    elements: u64,
    _dir: tempfile::TempDir,
}

impl Pair {
    /// A ring of `kind` whose messages are one tensor of `elements` bytes.
    ///
    /// # Panics
    /// If the host has no room for it: there is nothing to measure then.
    pub fn new(kind: Kind, elements: u64) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let options = Producer::options("bench").dir(dir.path()).kind(kind).slots(SLOTS);
        let mut producer = options.slot_bytes(elements.max(64)).create().expect("room for the ring");
        let consumer = Consumer::options("bench").dir(dir.path()).attach().expect("a producer that answers");
        producer.wait_for_consumers(1, None).expect("a consumer that stays");
        Self { producer, consumer, elements, _dir: dir }
    }

    /// Publishes one message without touching more of its payload than the first byte.
    ///
    /// # Panics
    /// If the ring is full for the full timeout, which a run of at most [`RUN`] messages cannot make it.
    pub fn publish(&mut self, value: u8) {
        let shape = [self.elements];
        let fields = [FieldSpec::new("x", DType::U8, &shape)];
        let mut loan = self.producer.loan(&fields).expect("a free slot");
        loan.tensor_mut::<u8>("x").expect("the field just named")[0] = value;
        loan.publish().expect("a publishable loan");
    }

    /// Receives a message that is there.
    ///
    /// # Panics
    /// If none is there.
    pub fn receive(&mut self) -> Message {
        self.consumer.try_recv().expect("a healthy ring").expect("a message that was published before")
    }

    /// Hands one message over and checks that what arrives is what was written.
    ///
    /// # Panics
    /// If it is not.
    pub fn check(&mut self) {
        self.publish(0x5a);
        let message = self.receive();
        let tensor = message.tensor("x").expect("the field that was written");
        assert_eq!(tensor.as_slice::<u8>().expect("bytes")[0], 0x5a, "the ring does not hand over what was written");
        assert_eq!(tensor.nbytes(), self.elements);
    }
}
