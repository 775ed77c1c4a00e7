//! Which measurements a run makes: without any wish, those that answer "how fast is it here" in less than a minute.

use forebay::{Kind, WaitPolicy};

use crate::{
    latency::Case,
    order::{Direction, Read, Write},
};

/// What the user wants to know; empty lists stand for the default.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// Payload sizes, bytes.
    pub sizes: Vec<u64>,
    /// How the consumer waits.
    pub waits: Vec<WaitPolicy>,
    /// Who hands to whom.
    pub directions: Vec<Direction>,
    /// Kinds of ring.
    pub kinds: Vec<Kind>,
    /// Numbers of consumers.
    pub consumers: Vec<u32>,
    /// Whether payloads are copied in.
    pub writes: Vec<Write>,
    /// Whether consumers read every byte.
    pub reads: Vec<Read>,
}

/// What a run without wishes measures.
const SIZES: [u64; 5] = [64, 4 << 10, 64 << 10, 1 << 20, 16 << 20];

impl Wishes {
    /// The latencies to measure.
    pub(crate) fn latencies(&self, python: bool) -> Vec<Case> {
        let base = Case {
            direction: Direction::Native,
            kind: Kind::Queue,
            consumers: 1,
            bytes: 64,
            wait: WaitPolicy::Spin,
            write: Write::InPlace,
            read: Read::None,
        };
        let cases = if self.is_default() { default(base) } else { self.cross(base) };
        cases.into_iter().filter(|case| python || case.direction == Direction::Native).collect()
    }

    /// The rates to measure.
    pub(crate) fn rates(&self, python: bool) -> Vec<Case> {
        let mut cases: Vec<Case> = self.latencies(python);
        if self.is_default() {
            cases.retain(|case| {
                let small = case.bytes == 64 && case.write == Write::InPlace;
                let large = case.bytes >= 1 << 20 && case.write == Write::Copy;
                case.wait == WaitPolicy::Spin && (small || large)
            });
        }
        // A rate is of a busy ring: nobody sleeps, and a peer that waits for replies has none.
        cases.retain(|case| case.direction != Direction::FromPython);
        for case in &mut cases {
            case.wait = WaitPolicy::Spin;
        }
        cases.dedup();
        cases
    }

    /// Sizes whose memcpy is measured.
    pub(crate) fn copied_sizes(&self, python: bool) -> Vec<u64> {
        let mut sizes: Vec<u64> =
            self.latencies(python).iter().filter(|case| case.write == Write::Copy).map(|case| case.bytes).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    fn is_default(&self) -> bool {
        self.sizes.is_empty()
            && self.waits.is_empty()
            && self.directions.is_empty()
            && self.kinds.is_empty()
            && self.consumers.is_empty()
            && self.writes.is_empty()
            && self.reads.is_empty()
    }

    /// Every combination of what is wished, with the default where nothing is.
    fn cross(&self, base: Case) -> Vec<Case> {
        fn or<T: Clone>(list: &[T], one: T) -> Vec<T> {
            if list.is_empty() { vec![one] } else { list.to_vec() }
        }
        let sizes = if self.sizes.is_empty() { SIZES.to_vec() } else { self.sizes.clone() };
        let mut cases = Vec::new();
        for direction in or(&self.directions, base.direction) {
            for kind in or(&self.kinds, base.kind) {
                for consumers in or(&self.consumers, base.consumers) {
                    for wait in or(&self.waits, base.wait) {
                        for write in or(&self.writes, base.write) {
                            for read in or(&self.reads, base.read) {
                                cases.extend(sizes.iter().map(|&bytes| Case {
                                    direction,
                                    kind,
                                    consumers,
                                    bytes,
                                    wait,
                                    write,
                                    read,
                                }));
                            }
                        }
                    }
                }
            }
        }
        cases
    }
}

fn default(base: Case) -> Vec<Case> {
    let mut cases: Vec<Case> = SIZES.iter().map(|&bytes| Case { bytes, ..base }).collect();
    cases.extend([64 << 10, 1 << 20, 16 << 20].map(|bytes| Case { bytes, write: Write::Copy, ..base }));
    cases.push(Case { bytes: 1 << 20, write: Write::Copy, read: Read::All, ..base });
    for wait in [WaitPolicy::Adaptive, WaitPolicy::Block] {
        cases.extend([64, 1 << 20].map(|bytes| Case { bytes, wait, ..base }));
    }
    cases.push(Case { kind: Kind::Broadcast, ..base });
    for direction in [Direction::Numpy, Direction::Torch] {
        cases.extend([64, 1 << 20].map(|bytes| Case { bytes, direction, ..base }));
    }
    cases.push(Case { direction: Direction::Torch, wait: WaitPolicy::Block, ..base });
    cases.push(Case { direction: Direction::FromPython, ..base });
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_wishes_every_question_is_answered_once() {
        let wishes = Wishes::default();
        let cases = wishes.latencies(true);
        for (i, case) in cases.iter().enumerate() {
            assert!(!cases[i + 1..].contains(case), "{case:?} is measured twice");
        }
        for direction in [Direction::Native, Direction::Numpy, Direction::Torch, Direction::FromPython] {
            assert!(cases.iter().any(|case| case.direction == direction));
        }
        assert!(wishes.latencies(false).iter().all(|case| case.direction == Direction::Native));
        assert!(wishes.rates(true).iter().all(|case| case.wait == WaitPolicy::Spin));
        assert_eq!(wishes.copied_sizes(true), [64 << 10, 1 << 20, 16 << 20]);
    }

    #[test]
    fn wishes_are_combined() {
        let wishes = Wishes {
            sizes: vec![64, 128],
            waits: vec![WaitPolicy::Spin, WaitPolicy::Block],
            consumers: vec![1, 2, 4],
            ..Wishes::default()
        };
        assert_eq!(wishes.latencies(false).len(), 2 * 2 * 3);
    }
}
