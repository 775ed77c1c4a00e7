//! As many messages as go: how many a second, lossless.

use std::time::Instant;

use forebay_os::{clock, process};

use crate::{
    BenchError, failed,
    latency::{Case, Peer, Setting, finish},
    order::Order,
    peer::PATIENCE,
};

/// Slots of a ring that is filled as fast as it goes; fewer where that many would not be small.
fn slots(bytes: u64) -> u32 {
    let fit = (256 << 20) / bytes.max(1);
    fit.clamp(2, 64) as u32
}

/// Messages a second, as the consumers saw them.
pub(crate) fn measure(case: &Case, setting: &Setting<'_>) -> Result<f64, BenchError> {
    let _ = process::pin(setting.pinned.map(|(cpu, _)| cpu));
    let dir = tempfile::tempdir()?;
    let mut producer = case.producer(dir.path(), slots(case.bytes))?;
    let source = case.source();
    let order = Order { reply: None, ..case.order(dir.path(), setting) };
    let peers: Vec<Peer> =
        (0..case.consumers).map(|_| Peer::start(&order, setting.programs)).collect::<Result<_, _>>()?;
    producer.wait_for_consumers(case.consumers as usize, Some(PATIENCE)).map_err(|e| failed("waiting")(&e))?;
    let start = Instant::now();
    let mut sent = 0u64;
    while start.elapsed() < setting.effort.time {
        // The clock is looked at once in a while, so that it is not what is measured.
        for _ in 0..if case.bytes > 1 << 16 { 1 } else { 256 } {
            case.send(&mut producer, clock::monotonic_coarse_ns(), &source)?;
            sent += 1;
        }
    }
    finish(&mut producer, case)?;
    let (mut rate, mut received) = (0.0, 0);
    for peer in peers {
        let answer = peer.answer()?;
        received += answer.messages;
        rate += answer.messages.saturating_sub(1) as f64 / (answer.span_ns.max(1) as f64 / 1e9);
    }
    let expected = if case.kind == forebay::Kind::Queue { sent } else { sent * u64::from(case.consumers) };
    if received != expected {
        return Err(BenchError::Failed(format!("{sent} messages were sent, {received} arrived")));
    }
    producer.discard();
    // On a broadcast ring each consumer saw all of them.
    Ok(if case.kind == forebay::Kind::Queue { rate } else { rate / f64::from(case.consumers) })
}
