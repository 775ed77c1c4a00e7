//! The header of every message of a service: the first 64 bytes of its user data. Little-endian, offsets in bytes.
//!
//! ```text
//!    0 u32  mark "FBSV"            8 u64  request id; 0 in Ready and Part
//!    4 u16  version, 1            16 u32  items: rows of the batch, or of the part; in Cancel the ids that follow
//!    6 u8   kind                  20 u32  0
//!    7 u8   flags, 0
//!
//!   Request (1)                   Ready (16), Result (17), Part (18), Failed (19)
//!   24 u64  deadline, 0 none      24 u64  forward began    32 u64  forward ended; 0 if not said
//!   32 16B  W3C trace id          40 u32  bytes of the exception's type (Failed), first in the text
//!   48  8B  W3C span id           44 u32  bytes of the text after it (Failed, Ready)
//!   56 u8   W3C trace flags       48 u32  pid (Ready)      52 u32  ranks (Ready)
//!   57  7B  0                     56  8B  0
//!
//!   Cancel (2): 24 40B 0
//! ```
//!
//! Times are CLOCK_MONOTONIC in ns. What is written as 0 must be 0: a later version may give it a meaning.

use forebay_layout::Defect;

use super::{Meta, Timings, Trace, error::Bad};

/// The version that this build writes and reads.
pub(super) const VERSION: u16 = 1;
/// Bytes of a header.
pub(super) const BYTES: usize = 64;
const MARK: u32 = u32::from_le_bytes(*b"FBSV");

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Request = 1,
    Cancel = 2,
    Ready = 16,
    Result = 17,
    Part = 18,
    Failed = 19,
}

/// A header, whatever its kind; what a kind lacks is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) request: u64,
    pub(super) items: u32,
    pub(super) meta: Meta,
    pub(super) timings: Timings,
    pub(super) type_bytes: u32,
    pub(super) text_bytes: u32,
    pub(super) pid: u32,
    pub(super) ranks: u32,
}

impl Header {
    pub(super) fn new(kind: Kind, request: u64, items: usize) -> Self {
        Self {
            kind,
            request,
            // A message has far fewer rows: each takes 16 bytes of a slot.
            items: u32::try_from(items).unwrap_or(u32::MAX),
            meta: Meta::default(),
            timings: Timings::default(),
            type_bytes: 0,
            text_bytes: 0,
            pid: 0,
            ranks: 0,
        }
    }

    pub(super) fn encode(&self) -> [u8; BYTES] {
        let mut out = [0; BYTES];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MARK.to_le_bytes());
        put(4, &VERSION.to_le_bytes());
        put(6, &[self.kind as u8, 0]);
        put(8, &self.request.to_le_bytes());
        put(16, &self.items.to_le_bytes());
        match self.kind {
            Kind::Cancel => {}
            Kind::Request => {
                let trace = self.meta.trace.unwrap_or_default();
                put(24, &self.meta.deadline_ns.to_le_bytes());
                put(32, &trace.trace_id);
                put(48, &trace.span_id);
                put(56, &[trace.flags]);
            }
            Kind::Ready | Kind::Result | Kind::Part | Kind::Failed => {
                put(24, &self.timings.start_ns.to_le_bytes());
                put(32, &self.timings.end_ns.to_le_bytes());
                put(40, &self.type_bytes.to_le_bytes());
                put(44, &self.text_bytes.to_le_bytes());
                put(48, &self.pid.to_le_bytes());
                put(52, &self.ranks.to_le_bytes());
            }
        }
        out
    }

    /// Reads a copy of a header.
    pub(super) fn decode(user: &[u8]) -> Result<Self, Bad> {
        let bytes = user.first_chunk::<BYTES>().ok_or(Defect::bounded(
            "service.header.bytes",
            user.len() as u64,
            "at least",
            BYTES as u64,
        ))?;
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if u32_at(0) != MARK {
            return Err(Defect::new("service.header.mark", u32_at(0).into(), "FBSV, a message of a service").into());
        }
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        if version != VERSION {
            return Err(Bad::Version(version));
        }
        let kind = match bytes[6] {
            1 => Kind::Request,
            2 => Kind::Cancel,
            16 => Kind::Ready,
            17 => Kind::Result,
            18 => Kind::Part,
            19 => Kind::Failed,
            other => return Err(Defect::new("service.header.kind", other.into(), "1, 2 or 16 to 19").into()),
        };
        let zero = |from: usize, to: usize| bytes[from..to].iter().all(|&byte| byte == 0);
        let reserved = match kind {
            Kind::Cancel => zero(24, 64),
            Kind::Request => zero(57, 64),
            Kind::Ready | Kind::Result | Kind::Part | Kind::Failed => zero(56, 64),
        };
        if bytes[7] != 0 || !zero(20, 24) || !reserved {
            return Err(Defect::new("service.header.reserved", 1, "0").into());
        }
        let mut header = Self::new(kind, u64_at(8), 0);
        header.items = u32_at(16);
        match kind {
            Kind::Cancel => {}
            Kind::Request => {
                let mut trace = Trace { flags: bytes[56], ..Trace::default() };
                trace.trace_id.copy_from_slice(&bytes[32..48]);
                trace.span_id.copy_from_slice(&bytes[48..56]);
                header.meta.deadline_ns = u64_at(24);
                header.meta.trace = (trace.trace_id != [0; 16]).then_some(trace);
            }
            Kind::Ready | Kind::Result | Kind::Part | Kind::Failed => {
                header.timings = Timings { start_ns: u64_at(24), end_ns: u64_at(32) };
                (header.type_bytes, header.text_bytes) = (u32_at(40), u32_at(44));
                (header.pid, header.ranks) = (u32_at(48), u32_at(52));
            }
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_lies_as_the_documentation_says() {
        let mut header = Header::new(Kind::Request, 0x0102_0304_0506_0708, 3);
        let trace = Trace { trace_id: [0xaa; 16], span_id: [0xbb; 8], flags: 1 };
        header.meta = Meta { deadline_ns: 9, trace: Some(trace) };
        let mut expected =
            Vec::from(*b"FBSV\x01\x00\x01\x00\x08\x07\x06\x05\x04\x03\x02\x01\x03\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0");
        expected.extend([0xaa; 16]);
        expected.extend([0xbb; 8]);
        expected.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(header.encode()[..], expected[..]);
        assert_eq!(Header::decode(&expected), Ok(header));
    }

    #[test]
    fn an_answer_lies_as_the_documentation_says() {
        let mut header = Header::new(Kind::Failed, 7, 0);
        header.timings = Timings { start_ns: 1, end_ns: 2 };
        (header.type_bytes, header.text_bytes, header.pid, header.ranks) = (3, 4, 5, 6);
        let bytes = header.encode();
        assert_eq!(bytes[6], 19);
        for (at, value) in [(8, 7), (24, 1), (32, 2), (40, 3), (44, 4), (48, 5), (52, 6)] {
            assert_eq!(bytes[at], value, "offset {at}");
        }
        assert_eq!(bytes.iter().map(|&byte| u32::from(byte)).filter(|&byte| byte != 0).count(), 4 + 1 + 1 + 7);
        assert_eq!(Header::decode(&bytes), Ok(header));
    }

    #[test]
    fn every_kind_comes_back_as_it_was() {
        for kind in [Kind::Request, Kind::Cancel, Kind::Ready, Kind::Result, Kind::Part, Kind::Failed] {
            let header = Header::new(kind, 1 << 40, 12);
            assert_eq!(Header::decode(&header.encode()), Ok(header));
        }
    }

    #[test]
    fn what_is_no_header_is_refused_by_name() {
        let good = Header::new(Kind::Request, 1, 1).encode();
        let with = |at: usize, value: u8| {
            let mut bytes = good;
            bytes[at] = value;
            Header::decode(&bytes)
        };
        assert_eq!(with(4, 2), Err(Bad::Version(2)));
        assert_eq!(with(5, 1), Err(Bad::Version(257)));
        for (at, field) in [(0, "mark"), (6, "kind"), (7, "reserved"), (20, "reserved"), (60, "reserved")] {
            match with(at, 9) {
                Err(Bad::Defect(defect)) => assert!(defect.field.contains(field), "{defect}"),
                found => panic!("{found:?}"),
            }
        }
        for len in 0..BYTES {
            assert!(matches!(Header::decode(&good[..len]), Err(Bad::Defect(_))));
        }
    }
}
