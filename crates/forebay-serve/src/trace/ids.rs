//! Ids of traces and spans, and the header `traceparent` (W3C Trace Context).

use std::{
    cell::Cell,
    hash::{BuildHasher, RandomState},
};

use crate::backend::TraceContext;

thread_local! {
    // Seeded with the randomness that the standard library's hash maps get from the system.
    static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(std::thread::current().id()));
}

/// Random enough for ids: SplitMix64, one sequence a thread. Not for secrets.
pub(crate) fn random() -> u64 {
    STATE.with(|state| {
        let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(next);
        let mixed = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}

/// From 0 to 1.
pub(super) fn share() -> f64 {
    (random() >> 11) as f64 / (1u64 << 53) as f64
}

pub(super) fn trace_id() -> [u8; 16] {
    ((u128::from(random()) << 64) | u128::from(random() | 1)).to_be_bytes()
}

pub(super) fn span_id() -> [u8; 8] {
    // Ids of zeros are not valid.
    (random() | 1).to_be_bytes()
}

/// The place in a trace that a header `traceparent` names; `None` if it is not one.
#[must_use]
pub fn parse_traceparent(header: &str) -> Option<TraceContext> {
    let bytes = header.trim().as_bytes();
    let version = hex::<1>(bytes.get(..2)?)?[0];
    // Later versions may be longer, this one may not; 255 is none.
    let dashes = bytes.len() >= 55 && [2, 35, 52].iter().all(|at| bytes[*at] == b'-');
    let longer = bytes.len() > 55 && (version == 0 || bytes[55] != b'-');
    if !dashes || longer || version == 255 {
        return None;
    }
    let (trace_id, span_id) = (hex::<16>(&bytes[3..35])?, hex::<8>(&bytes[36..52])?);
    let sampled = hex::<1>(&bytes[53..55])?[0] & 1 == 1;
    (trace_id != [0; 16] && span_id != [0; 8]).then_some(TraceContext { trace_id, span_id, sampled })
}

/// The header `traceparent` that names this place in a trace.
#[must_use]
pub fn traceparent(context: &TraceContext) -> String {
    let (trace, span) = (u128::from_be_bytes(context.trace_id), u64::from_be_bytes(context.span_id));
    format!("00-{trace:032x}-{span:016x}-{:02x}", u8::from(context.sampled))
}

fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    // Upper case is not allowed there.
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_leads_back_to_itself() {
        let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = parse_traceparent(header).unwrap();
        assert!(context.sampled);
        assert_eq!(traceparent(&context), header);
        assert!(!parse_traceparent(&header.replace("-01", "-00")).unwrap().sampled);
        assert!(parse_traceparent(&format!("cc{}-what-will-be", &header[2..])).is_some());
    }

    #[test]
    fn what_is_no_traceparent_is_none() {
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
        ] {
            assert_eq!(parse_traceparent(bad), None, "{bad}");
        }
    }

    #[test]
    fn ids_are_not_the_same_twice() {
        let ids: std::collections::BTreeSet<_> = (0..1000).map(|_| span_id()).collect();
        assert_eq!(ids.len(), 1000);
        assert!((0..1000).map(|_| share()).all(|share| (0.0..1.0).contains(&share)));
    }
}
