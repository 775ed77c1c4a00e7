//! The other process. Receives and replies, or only receives; stamps and times as `latency.rs` and `throughput.rs` do.

use std::{hint::black_box, time::Duration};

use forebay::{Consumer, DType, FieldSpec, Message, Producer, Schema, WaitPolicy};
use forebay_os::{clock, process};

use crate::{
    BenchError, failed,
    order::{Answer, FIELD, Order, Read},
    summary::Times,
};

/// Nobody waits longer for the other side: it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Does what `order` (JSON) says and returns what is to be printed: the answer, one line of JSON.
///
/// # Errors
/// The order is not one, or the other side is not there.
pub fn peer(order: &str) -> Result<String, BenchError> {
    let order: Order = serde_json::from_str(order).map_err(|e| failed("not an order for a peer")(&e))?;
    let _ = process::pin(order.cpu);
    let answer = receive(&order)?;
    serde_json::to_string(&answer).map_err(|e| failed("cannot say what was measured")(&e))
}

/// What every ring of a measurement carries: one tensor of at most so many bytes.
pub(crate) fn schema(bytes: u64) -> Result<Schema, BenchError> {
    let schema = Schema::builder("bench", 1, 0).field(FIELD, DType::U8, &[bytes]).build();
    schema.map_err(|e| failed("a schema")(&e))
}

/// The ring of replies: small, and always received by polling.
pub(crate) fn reply_ring(order: &Order) -> Result<Option<Producer>, BenchError> {
    let make = |name: &String| {
        let options = Producer::options(name).dir(&order.dir).schema(schema(8)?).slots(8).max_consumers(1);
        options.create().map_err(|e| failed("the ring of replies")(&e))
    };
    order.reply.as_ref().map(make).transpose()
}

/// Publishes a message of one small tensor that carries `id`.
pub(crate) fn reply(producer: &mut Producer, id: u64) -> Result<(), BenchError> {
    let fields = [FieldSpec::new(FIELD, DType::U8, &[8])];
    let mut loan = producer.loan(&fields).map_err(|e| failed("a reply")(&e))?;
    loan.set_correlation_id(id);
    loan.publish().map_err(|e| failed("a reply")(&e)).map(drop)
}

/// Takes the tensor out of a message and, if it is told to, reads all of it.
pub(crate) fn take(message: &Message, read: Read) {
    let bytes = message.bytes(0).unwrap_or_default();
    if read == Read::All {
        // Words, so that the memory is the limit and not the loop.
        let (words, _) = bytes.as_chunks::<8>();
        black_box(words.iter().fold(0u64, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word))));
    }
    black_box(bytes);
}

fn receive(order: &Order) -> Result<Answer, BenchError> {
    let wait: WaitPolicy = order.wait.parse().map_err(|e| failed("a wait policy")(&e))?;
    let mut back = reply_ring(order)?;
    let options = Consumer::options(&order.ring).dir(&order.dir).wait(wait);
    let mut consumer = options.attach().map_err(|e| failed("attaching")(&e))?;
    let mut times = Times::new();
    let (mut messages, mut first, mut last) = (0, 0, 0);
    loop {
        let message = consumer.recv_timeout(PATIENCE).map_err(|e| failed("receiving")(&e))?;
        take(&message, order.read);
        let stamp = message.correlation_id();
        if stamp == 0 {
            break;
        }
        match &mut back {
            Some(back) => {
                let taken = clock::monotonic_ns().saturating_sub(stamp);
                if messages >= order.warm {
                    times.record(taken);
                }
                drop(message);
                reply(back, stamp)?;
            }
            None => {
                drop(message);
                last = clock::monotonic_ns();
                first = if first == 0 { last } else { first };
            }
        }
        messages += 1;
    }
    if let Some(back) = back {
        back.discard();
    }
    Ok(Answer { times: times.buckets(), messages, span_ns: last - first })
}
