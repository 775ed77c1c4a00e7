//! One keep-alive connection: a request goes out, an answer comes in.

use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Instant,
};

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// A status code, and whether the body held what it must.
    Status(u16, bool),
    /// The connection broke.
    Broken,
}

/// A connection, and the request under way on it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    /// Which request is under way, how much of it is sent, and when it fell due.
    pub(crate) under_way: Option<(usize, usize, Instant)>,
    received: Vec<u8>,
}

/// Whole requests, head and body, one for each file of `path` or for `path` itself.
pub(crate) fn requests(path: &Path, start: &str, content_type: &str) -> Result<Vec<Vec<u8>>, String> {
    let said = |path: &Path, error: io::Error| format!("cannot read {}: {error}", path.display());
    let mut files: Vec<PathBuf> = vec![path.to_owned()];
    if path.is_dir() {
        let entries = fs::read_dir(path).map_err(|error| said(path, error))?;
        files = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
        files.sort();
    }
    if files.is_empty() {
        return Err(format!("{} holds no file, expected at least one body", path.display()));
    }
    let whole = |file: PathBuf| {
        let body = fs::read(&file).map_err(|error| said(&file, error))?;
        let head = format!("{start}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n", body.len());
        Ok([head.into_bytes(), body].concat())
    };
    files.into_iter().map(whole).collect()
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, under_way: None, received: Vec::with_capacity(16 << 10) })
    }

    /// Begins request `index`, which fell due at `due`.
    pub(crate) fn begin(&mut self, index: usize, due: Instant) {
        self.under_way = Some((index, 0, due));
        self.received.clear();
    }

    /// Sends what the socket takes. True when the whole request is on its way.
    pub(crate) fn send(&mut self, requests: &[Vec<u8>]) -> io::Result<bool> {
        let Some((index, sent, _)) = &mut self.under_way else { return Ok(true) };
        while *sent < requests[*index].len() {
            match self.stream.write(&requests[*index][*sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(more) => *sent += more,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Reads what there is. The answer's status, and whether the server goes on with this connection, once it is whole.
    pub(crate) fn receive(&mut self, expect: Option<&[u8]>) -> io::Result<Option<(Outcome, bool)>> {
        let mut chunk = [0; 16 << 10];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(more) => {
                    self.received.extend_from_slice(&chunk[..more]);
                    if let Some(whole) = whole(&self.received, expect)? {
                        return Ok(Some(whole));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Status and fate of the connection, once head and body are complete.
fn whole(received: &[u8], expect: Option<&[u8]>) -> io::Result<Option<(Outcome, bool)>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(received).map_err(io::Error::other)?;
    let httparse::Status::Complete(head) = parsed else { return Ok(None) };
    let header = |name: &str| {
        let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok()).map(str::trim)
    };
    let body = &received[head..];
    if let Some(length) = header("content-length") {
        let length: usize = length.parse().map_err(io::Error::other)?;
        if body.len() < length {
            return Ok(None);
        }
    } else if !(header("transfer-encoding") == Some("chunked") && body.ends_with(b"0\r\n\r\n")) {
        // Neither: it ends with the connection, which nothing that is compared here does.
        return Ok(None);
    }
    let kept = !header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let right = expect.is_none_or(|want| body.windows(want.len().max(1)).any(|window| window == want));
    Ok(Some((Outcome::Status(response.code.unwrap_or(0), right), kept)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_length_is_there() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(whole(&answer[..answer.len() - 1], None).ok().flatten(), None);
        assert_eq!(whole(answer, Some(b"ell")).ok().flatten(), Some((Outcome::Status(200, true), true)));
        assert_eq!(whole(answer, Some(b"bye")).ok().flatten(), Some((Outcome::Status(200, false), true)));
    }

    #[test]
    fn chunks_and_closing_are_understood() {
        let answer = b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nno\r\n0\r\n\r\n";
        assert_eq!(whole(&answer[..answer.len() - 2], None).ok().flatten(), None);
        assert_eq!(whole(answer, None).ok().flatten(), Some((Outcome::Status(503, true), false)));
    }
}
