//! forebay: a queue with one consumer, which polls. Written in place.

use forebay::{Consumer, DType, FieldSpec, Producer, Schema, WaitPolicy};

use crate::{
    Failure,
    drive::{Receive, Send, stamp},
    plan::Plan,
};

const RING: &str = "compare";
const FIELD: &str = "x";

/// The producer of a ring of its own.
pub(crate) struct Sender {
    producer: Producer,
    words: u64,
}

impl Sender {
    pub(crate) fn new(plan: &Plan) -> Result<Self, Failure> {
        // Words, so that Python receives an array of them.
        let words = plan.bytes as u64 / 8;
        let schema = Schema::builder(RING, 1, 0).field(FIELD, DType::I64, &[words]).build()?;
        let options = Producer::options(RING).dir(&plan.dir).schema(schema);
        let producer = options.slots(plan.slots as u32).max_consumers(1).create()?;
        Ok(Self { producer, words })
    }
}

impl Send for Sender {
    fn start(&mut self) -> Result<(), Failure> {
        Ok(self.producer.wait_for_consumers(1, None)?)
    }

    fn send(&mut self, first: u64, last: u64) -> Result<(), Failure> {
        let mut loan = self.producer.loan(&[FieldSpec::new(FIELD, DType::I64, &[self.words])])?;
        if let Some(bytes) = loan.bytes_mut(0) {
            stamp(bytes, first, last);
        }
        loan.publish()?;
        Ok(())
    }

    fn finish(self) -> Result<(), Failure> {
        self.producer.discard();
        Ok(())
    }
}

/// Its consumer.
pub(crate) struct Receiver(Consumer);

impl Receiver {
    pub(crate) fn new(plan: &Plan) -> Result<Self, Failure> {
        Ok(Self(Consumer::options(RING).dir(&plan.dir).wait(WaitPolicy::Spin).attach()?))
    }
}

impl Receive for Receiver {
    fn receive(&mut self, look: &mut impl FnMut(&[u8])) -> Result<(), Failure> {
        let message = self.0.recv()?;
        look(message.bytes(0).ok_or("a message without a tensor")?);
        Ok(())
    }
}
