//! ringfire: its lossless ring for 64-byte records, copied in and out; for more, its blob ring, written and viewed in place in
//! an arena. The blob ring overwrites what was not read; so that none is missing, the producer asks for its headroom first.

use std::hint::spin_loop;

use ringfire::{
    BlobConsumer, BlobProducer, BlobProducerBuilder, BusySpin, FlowControl, RingConsumer, RingProducer,
    RingProducerBuilder,
};

use crate::{
    Failure,
    drive::{Receive, Send, stamp},
    plan::Plan,
};

/// Slots, as in its own example of a lossless ring.
const CAPACITY: u64 = 4096;

type Record = [u8; 64];

fn path(plan: &Plan) -> std::path::PathBuf {
    plan.dir.join("ringfire")
}

/// The producer of records.
pub(crate) struct Sender(RingProducer<Record>, Record);

impl Sender {
    pub(crate) fn new(plan: &Plan) -> Result<Self, Failure> {
        let builder = RingProducerBuilder::new(CAPACITY).flow_control(FlowControl::LosslessBackpressure);
        Ok(Self(builder.build(path(plan))?, [7; 64]))
    }
}

impl Send for Sender {
    fn send(&mut self, first: u64, last: u64) -> Result<(), Failure> {
        stamp(&mut self.1, first, last);
        self.0.push(&self.1);
        Ok(())
    }
}

/// The consumer of records.
pub(crate) struct Receiver(RingConsumer<Record>, BusySpin);

impl Receiver {
    pub(crate) fn new(plan: &Plan) -> Result<Self, Failure> {
        Ok(Self(RingConsumer::attach(path(plan))?, BusySpin::new()))
    }
}

impl Receive for Receiver {
    fn receive(&mut self, look: &mut impl FnMut(&[u8])) -> Result<(), Failure> {
        let record = self.0.recv_blocking(&mut self.1);
        look(&record);
        Ok(())
    }
}

/// The producer of blobs.
pub(crate) struct BlobSender {
    producer: BlobProducer<()>,
    bytes: usize,
}

impl BlobSender {
    pub(crate) fn new(plan: &Plan) -> Result<Self, Failure> {
        let slots = plan.slots.next_power_of_two();
        // One blob more than there are slots, so that the arena is never what laps the reader.
        let arena = ((slots + 1) * (plan.bytes + 64)).next_power_of_two();
        let producer = BlobProducerBuilder::new(slots as u64, arena).build(path(plan))?;
        Ok(Self { producer, bytes: plan.bytes })
    }
}

impl Send for BlobSender {
    fn send(&mut self, first: u64, last: u64) -> Result<(), Failure> {
        while self.producer.headroom() == 0 {
            spin_loop();
        }
        self.producer.push_with(&(), self.bytes, |bytes| stamp(bytes, first, last))?;
        Ok(())
    }
}

/// The consumer of blobs.
pub(crate) struct BlobReceiver(BlobConsumer<()>);

impl BlobReceiver {
    pub(crate) fn new(plan: &Plan) -> Result<Self, Failure> {
        Ok(Self(BlobConsumer::attach(path(plan))?))
    }
}

impl Receive for BlobReceiver {
    fn receive(&mut self, look: &mut impl FnMut(&[u8])) -> Result<(), Failure> {
        while self.0.view(|(), bytes| look(bytes))?.is_none() {
            spin_loop();
        }
        Ok(())
    }
}
