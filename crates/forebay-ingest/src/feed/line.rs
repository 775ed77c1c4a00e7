//! Lines of one byte stream, in bounded memory.
//!
//! A line ends at LF; one CR right before that LF belongs to the end. A last line without an end counts when it has at
//! least one byte. Nothing else ends a line (no lone CR, no U+2028), NULs are ordinary bytes, and a UTF-8 byte order
//! mark at the very start of a stream is not part of its first line. A line of more than `max_line_bytes` is read
//! past, piece by piece, and reported with its length; it is never held. This file neither opens anything nor knows
//! what a line means.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::position::fnv1a;

/// How much of an overlong line is held while it is read past.
const PIECE_BYTES: u64 = 64 << 10;
/// How many bytes before a position vouch for it.
pub(crate) const TAIL_BYTES: usize = 64;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What [`LineReader::next`] found.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Next {
    /// A line; its bytes are in the buffer.
    Line,
    /// A line of this many bytes, more than allowed; the buffer is empty.
    TooLong(u64),
    /// The stream has ended.
    End,
    /// The cancel flag was set while an overlong line was read past.
    Cancelled,
}

/// Cuts a stream into lines and knows where it stands.
#[derive(Debug)]
pub(crate) struct LineReader<R> {
    inner: R,
    max_line_bytes: usize,
    offset: u64,
    line: u64,
    tail: Tail,
    cancel: Arc<AtomicBool>,
}

impl<R: BufRead> LineReader<R> {
    /// Reads `inner`, of which `offset` bytes and `line` lines have been read, ending in `tail`.
    pub(crate) fn new(
        inner: R,
        max_line_bytes: usize,
        (offset, line, tail): (u64, u64, Tail),
        cancel: Arc<AtomicBool>,
    ) -> Self {
        Self { inner, max_line_bytes, offset, line, tail, cancel }
    }

    /// Puts the next line into `buffer`, without its end.
    pub(crate) fn next(&mut self, buffer: &mut Vec<u8>) -> io::Result<Next> {
        buffer.clear();
        let at_start = self.offset == 0;
        // More bytes than a line may have: its end, a byte order mark, or the proof that it is longer.
        let spare = 2 + if at_start { BYTE_ORDER_MARK.len() } else { 0 };
        let limit = (self.max_line_bytes + spare) as u64;
        let read = self.piece(limit, buffer)?;
        if read == 0 {
            return Ok(Next::End);
        }
        let ended = buffer.ends_with(b"\n");
        let mut length = read - end_of_line(buffer) as u64;
        if at_start && buffer.starts_with(BYTE_ORDER_MARK) {
            buffer.drain(..BYTE_ORDER_MARK.len());
            length -= BYTE_ORDER_MARK.len() as u64;
            if length == 0 && !ended {
                return Ok(Next::End);
            }
        }
        if !ended && read == limit {
            match self.read_past(length, buffer)? {
                Some(whole) => length = whole,
                None => return Ok(Next::Cancelled),
            }
        }
        self.line += 1;
        if length > self.max_line_bytes as u64 {
            buffer.clear();
            return Ok(Next::TooLong(length));
        }
        buffer.truncate(length as usize);
        Ok(Next::Line)
    }

    /// Reads to the end of the line that starts with the `length` bytes in `buffer`; the length of the whole line, or
    /// `None` if cancelled.
    fn read_past(&mut self, mut length: u64, buffer: &mut Vec<u8>) -> io::Result<Option<u64>> {
        loop {
            // ORDER none, Relaxed: the flag is the whole message.
            if self.cancel.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let ended_in_cr = buffer.ends_with(b"\r");
            buffer.clear();
            length += self.piece(PIECE_BYTES, buffer)?;
            match (end_of_line(buffer), buffer.len()) {
                (0, 0) => return Ok(Some(length)),
                (0, _) => {}
                (_, 1) if ended_in_cr => return Ok(Some(length - 2)),
                (end, _) => return Ok(Some(length - end as u64)),
            }
        }
    }

    fn piece(&mut self, limit: u64, buffer: &mut Vec<u8>) -> io::Result<u64> {
        let read = self.inner.by_ref().take(limit).read_until(b'\n', buffer)? as u64;
        self.offset += read;
        self.tail.push(buffer);
        Ok(read)
    }

    /// Bytes read so far.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Lines read so far.
    pub(crate) fn line(&self) -> u64 {
        self.line
    }

    /// Hash of the last bytes read.
    pub(crate) fn check(&self) -> u64 {
        self.tail.hash()
    }
}

/// Length of the line end that `line` ends in: 0, 1 (LF) or 2 (CR LF).
fn end_of_line(line: &[u8]) -> usize {
    match line {
        [.., b'\r', b'\n'] => 2,
        [.., b'\n'] => 1,
        _ => 0,
    }
}

/// The last bytes of what was read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    /// Appends `more` and forgets what is older than [`TAIL_BYTES`].
    pub(crate) fn push(&mut self, more: &[u8]) {
        if more.len() >= TAIL_BYTES {
            self.bytes.clear();
        } else {
            let keep = TAIL_BYTES - more.len();
            let drop = self.bytes.len().saturating_sub(keep);
            self.bytes.drain(..drop);
        }
        self.bytes.extend_from_slice(&more[more.len().saturating_sub(TAIL_BYTES)..]);
    }

    /// Hash of the bytes held.
    pub(crate) fn hash(&self) -> u64 {
        fnv1a(&self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::BufReader;

    /// Every line of `bytes`: its content, or the length of one that is too long.
    fn lines(bytes: &[u8], max: usize, buffered: usize) -> Vec<Result<Vec<u8>, u64>> {
        let inner = BufReader::with_capacity(buffered, bytes);
        let mut reader = LineReader::new(inner, max, (0, 0, Tail::default()), Arc::default());
        let (mut buffer, mut found) = (Vec::new(), Vec::new());
        loop {
            match reader.next(&mut buffer).unwrap() {
                Next::Line => found.push(Ok(buffer.clone())),
                Next::TooLong(length) => {
                    assert!(buffer.is_empty());
                    found.push(Err(length));
                }
                Next::End => break,
                Next::Cancelled => unreachable!("nobody cancels"),
            }
            assert!(buffer.capacity() <= 4 * max + 2 * PIECE_BYTES as usize, "unbounded buffer");
        }
        assert_eq!(reader.offset(), bytes.len() as u64);
        assert_eq!(reader.line(), found.len() as u64);
        let tail = &bytes[bytes.len().saturating_sub(TAIL_BYTES)..];
        assert_eq!(reader.check(), fnv1a(tail));
        found
    }

    /// The same by the plainest means.
    fn reference(bytes: &[u8], max: usize) -> Vec<Result<Vec<u8>, u64>> {
        let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
        let mut pieces: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
        let last = pieces.pop().unwrap();
        let mut found: Vec<&[u8]> = pieces.into_iter().map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect();
        if !last.is_empty() {
            found.push(last);
        }
        found
            .into_iter()
            .map(|line| if line.len() > max { Err(line.len() as u64) } else { Ok(line.to_vec()) })
            .collect()
    }

    #[test]
    fn line_ends_are_cut_and_nothing_else_is() {
        let text = b"a\r\n\nb\rc\n\0\n\xe2\x80\xa8 d\r\r\nlast\r";
        let expected: [&[u8]; 6] = [b"a", b"", b"b\rc", b"\0", b"\xe2\x80\xa8 d\r", b"last\r"];
        let found: Vec<_> = lines(text, 100, 8).into_iter().map(Result::unwrap).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn an_empty_stream_has_no_line() {
        assert_eq!(lines(b"", 10, 8), []);
        assert_eq!(lines(b"\n", 10, 8), [Ok(vec![])]);
        // A mark alone was once taken for an empty line.
        assert_eq!(lines(BYTE_ORDER_MARK, 10, 8), []);
    }

    #[test]
    fn the_limit_is_exact() {
        for end in [&b""[..], b"\n", b"\r\n"] {
            assert_eq!(lines(&[b"12345", end].concat(), 5, 8), [Ok(b"12345".to_vec())]);
            assert_eq!(lines(&[b"123456", end].concat(), 5, 8), [Err(6)]);
        }
    }

    #[test]
    fn an_overlong_line_is_measured_and_the_next_one_is_whole() {
        let long = 3 * PIECE_BYTES + 17;
        let text = [&vec![b'x'; long as usize][..], b"\r\nnext\n"].concat();
        assert_eq!(lines(&text, 100, 4096), [Err(long), Ok(b"next".to_vec())]);
    }

    #[test]
    fn an_overlong_line_ends_when_cancelled() {
        let cancel = Arc::new(AtomicBool::new(true));
        let endless = BufReader::new(io::repeat(b'x'));
        let mut reader = LineReader::new(endless, 100, (0, 0, Tail::default()), cancel);
        assert_eq!(reader.next(&mut Vec::new()).unwrap(), Next::Cancelled);
    }

    proptest! {
        #[test]
        fn lines_are_those_of_the_reference(
            mark: bool,
            bytes in proptest::collection::vec(
                prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'a'), Just(b'a'), Just(b'a'), any::<u8>()],
                0..200,
            ),
            max in 1usize..20,
            buffered in 1usize..40,
        ) {
            let bytes = [if mark { BYTE_ORDER_MARK } else { b"" }, &bytes].concat();
            prop_assert_eq!(lines(&bytes, max, buffered), reference(&bytes, max));
        }
    }
}
