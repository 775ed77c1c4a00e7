//! The client's side of a connection: bytes out, and answers taken apart strictly.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Response {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// The head of the next answer that is final; `None` if the connection ended before a byte of it.
pub(super) async fn head(stream: &mut (impl AsyncBufRead + Unpin)) -> Option<Response> {
    loop {
        let line = line(stream).await?;
        let mut words = line.splitn(3, ' ');
        assert!(words.next().is_some_and(|version| version.starts_with("HTTP/1.")), "{line:?}");
        let status: u16 = words.next().and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{line:?}"));
        let mut headers = Vec::new();
        loop {
            let line = self::line(stream).await.expect("a head that ends");
            let Some((name, value)) = line.split_once(':') else {
                assert!(line.is_empty(), "{line:?}");
                break;
            };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        if status >= 200 {
            return Some(Response { status, headers, body: Vec::new() });
        }
    }
}

/// A line without its end; `None` if nothing comes any more.
async fn line(stream: &mut (impl AsyncBufRead + Unpin)) -> Option<String> {
    let mut line = Vec::new();
    // A connection that was reset is one that ended.
    stream.read_until(b'\n', &mut line).await.ok().filter(|read| *read > 0)?;
    let text = line.strip_suffix(b"\r\n").unwrap_or_else(|| panic!("{line:?}"));
    Some(text.iter().map(|&byte| char::from(byte)).collect())
}

pub(super) struct Connection(BufReader<TcpStream>);

impl Connection {
    pub(super) async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    /// Sends all of it, or as much as the other end takes before it closes.
    pub(super) async fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.get_mut().write_all(bytes).await;
    }

    /// Says that nothing more comes, and reads what does.
    pub(super) async fn finish(mut self) -> Vec<u8> {
        let _ = self.0.get_mut().shutdown().await;
        let mut all = Vec::new();
        let _ = self.0.read_to_end(&mut all).await;
        all
    }

    /// The next answer; `None` if the connection ended before it.
    pub(super) async fn response(&mut self, head_only: bool) -> Option<Response> {
        let mut response = head(&mut self.0).await?;
        if head_only {
            return Some(response);
        }
        if let Some(length) = response.header("content-length") {
            response.body = vec![0; length.parse().unwrap()];
            self.0.read_exact(&mut response.body).await.expect("as many bytes as it said");
        } else if response.header("transfer-encoding") == Some("chunked") {
            loop {
                let line = line(&mut self.0).await.expect("a chunk");
                let length = usize::from_str_radix(&line, 16).unwrap();
                let mut chunk = vec![0; length + 2];
                self.0.read_exact(&mut chunk).await.expect("a whole chunk");
                assert!(chunk.ends_with(b"\r\n"), "{chunk:?}");
                if length == 0 {
                    break;
                }
                response.body.extend_from_slice(&chunk[..length]);
            }
        } else {
            panic!("an answer without an end: {response:?}");
        }
        Some(response)
    }
}
