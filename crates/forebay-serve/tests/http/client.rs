//! A server in this process, and clients that can misbehave: what they write are bytes on a socket.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Command, Output},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use forebay_serve::{
    Config,
    backend::{ModelInfo, Takes},
    http,
    metrics::Metrics,
    trace::Tracer,
};
use serde_json::Value;
use tokio::sync::{oneshot, watch};

use crate::fake::{Fake, Seen, model};

/// Longer than anything takes here; a test that waits this long has failed.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(20);

/// A running server; stops with its drain when dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Seen>,
    pub(crate) metrics: Arc<Metrics>,
    /// Lets calls with the text "hang" go on.
    pub(crate) go: watch::Sender<bool>,
    shutdown: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

pub(crate) fn config(flags: &[(&str, &str)]) -> Config {
    let base = [
        ("server.listen", "127.0.0.1:0"),
        ("model.name", "fake"),
        ("model.input.type", "tensors"),
        ("model.input.tensors", r#"[{ name = "x", dtype = "float32", shape = [3] }]"#),
        ("worker.command", "none"),
        ("log.requests", "false"),
    ];
    let flags: Vec<_> = base.iter().chain(flags).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Config::load(None, [], &flags).unwrap()
}

impl Server {
    pub(crate) fn start(takes: Takes) -> Self {
        Self::with(model(takes), &[])
    }

    pub(crate) fn with(model: ModelInfo, flags: &[(&str, &str)]) -> Self {
        let config = config(flags);
        let (go, going) = watch::channel(false);
        let fake = Fake::new(model, going);
        let (seen, metrics) = (Arc::clone(&fake.seen), Metrics::new());
        let (shutdown, stop) = oneshot::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let counted = Arc::clone(&metrics);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = http::bind(&config).await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                let tracer = Tracer::new(&config, &counted);
                let stop = async { drop(stop.await) };
                http::serve_on(listener, &config, Arc::new(fake), counted, tracer, stop).await.unwrap();
            });
        });
        let address = told.recv_timeout(WATCHDOG).unwrap();
        Self { address, seen, metrics, go, shutdown: Some(shutdown), thread: Some(thread) }
    }

    pub(crate) fn open(&self) -> Connection {
        Connection::open(self.address)
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        self.open().ask("GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Response {
        self.open().ask("POST", path, &[], body.as_bytes())
    }

    /// Begins the drain.
    pub(crate) fn stop(&mut self) {
        if let Some(shutdown) = self.shutdown.take() {
            let _ = shutdown.send(());
        }
    }

    /// Waits for its end.
    pub(crate) fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            wait_for("the server ends", || thread.is_finished());
            thread.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.go.send(true);
        self.stop();
        if !thread::panicking() {
            self.join();
        }
    }
}

/// Set in a process that runs one test alone.
const ALONE: &str = "FOREBAY_TEST_ALONE";

/// Whether this is a process that runs one test alone.
pub(crate) fn is_alone() -> bool {
    env::var_os(ALONE).is_some()
}

/// Runs `test` in a process of its own, where its log, its memory and its descriptors are nobody else's.
pub(crate) fn run_alone(test: &str) -> Output {
    let output = Command::new(env::current_exe().unwrap()).args(["--exact", test]).env(ALONE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Bytes of memory that this process had at most.
pub(crate) fn peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Waits until `done`, which must happen.
pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < WATCHDOG, "{what}: not within {WATCHDOG:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) struct Connection {
    pub(crate) stream: BufReader<TcpStream>,
}

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The error, checked to have the one shape there is; status, type, field and message.
    pub(crate) fn problem(&self) -> (u16, String, String, String) {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        let whole = self.json();
        // Of the protocol v2 `error` is a text, and the rest is beside it.
        let (error, message) =
            if whole["error"].is_string() { (&whole, "error") } else { (&whole["error"], "message") };
        assert_eq!(error["request_id"].as_str(), self.header("x-request-id"));
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        (self.status, text("type"), text("field"), text(message))
    }
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(WATCHDOG)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    pub(crate) fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| *name == "host") {
            head.push_str("host: test\r\n");
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !headers.iter().any(|(name, _)| *name == "content-length") && (method == "POST" || !body.is_empty()) {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        self.send(&[head.as_bytes(), body].concat());
        self.response(method == "HEAD")
    }

    /// The head of a response.
    pub(crate) fn head(&mut self) -> Response {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("no status line: {line:?}")).parse().unwrap();
        let mut headers = Vec::new();
        loop {
            line.clear();
            self.stream.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Response { status, headers, body: Vec::new() }
    }

    /// The status of what is no HTTP, or `None` if the connection was closed without a word.
    pub(crate) fn refused(&mut self) -> Option<u16> {
        match self.stream.fill_buf() {
            Ok([]) => None,
            Ok(_) => Some(self.head().status),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// One chunk of a chunked body; empty at its end.
    pub(crate) fn chunk(&mut self) -> Vec<u8> {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        let length = usize::from_str_radix(line.trim_end(), 16).unwrap();
        let mut chunk = vec![0; length + 2];
        self.stream.read_exact(&mut chunk).unwrap();
        chunk.truncate(length);
        chunk
    }

    pub(crate) fn response(&mut self, head_only: bool) -> Response {
        let mut response = self.head();
        if head_only {
            return response;
        }
        if let Some(length) = response.header("content-length") {
            response.body = vec![0; length.parse().unwrap()];
            self.stream.read_exact(&mut response.body).unwrap();
        } else if response.header("transfer-encoding").is_some() {
            loop {
                let chunk = self.chunk();
                if chunk.is_empty() {
                    break;
                }
                response.body.extend(chunk);
            }
        }
        response
    }

    /// Whether the server closed it, with nothing more to read.
    pub(crate) fn closed(&mut self) -> bool {
        match self.stream.read(&mut [0]) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}
