//! Claims exclude each other, and the producer's taking back.

use super::rig::{Queue, check, spawn};
use crate::queue;

#[test]
fn two_consumers_never_share_a_message() {
    check(3, || {
        let ring = Queue::new(2);
        let mut producer = ring.producer();
        ring.send(&mut producer);
        let claims: Vec<_> = [0, 1]
            .map(|index| {
                let ring = ring.clone();
                let mut consumer = ring.consumer(index);
                spawn(move || ring.receive(&mut consumer, true).map(|claim| queue::finish(&ring.pool(), &claim)))
            })
            .map(|consumer| consumer.join().unwrap())
            .into_iter()
            .flatten()
            .collect();
        assert_eq!(claims.len(), 1, "exactly one has it");
    });
}

#[test]
fn a_claim_and_drop_oldest_never_share_a_message() {
    check(3, || {
        let ring = Queue::new(1);
        let (mut producer, mut consumer) = (ring.producer(), ring.consumer(0));
        ring.send(&mut producer);
        let sender = {
            let ring = ring.clone();
            spawn(move || {
                let dropped = producer.drop_oldest(0);
                dropped.map(|slot| ring.fill(&mut producer, slot))
            })
        };
        let claim = ring.receive(&mut consumer, true);
        let dropped = sender.join().unwrap();
        match claim {
            Some(claim) => assert_eq!(claim.sequence, if dropped.is_some() { 2 } else { 1 }),
            // Looked while it was being written again.
            None => assert_eq!(dropped, Some(2)),
        }
    });
}
