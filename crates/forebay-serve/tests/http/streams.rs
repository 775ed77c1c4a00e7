//! Streams that fail or that nobody reads, and a reload that nobody waits for.

use std::{
    env,
    net::SocketAddr,
    pin::Pin,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    task::{Context, Poll},
    thread,
    time::Instant,
};

use forebay_serve::{
    backend::{Answer, Backend, Boxed, Call, Health, ModelInfo, Part, Parts, Refusal, Status, Takes, TokenizedText},
    config::{LogConfig, LogFormat},
    http, logs,
    metrics::Metrics,
    trace::Tracer,
};
use futures_core::Stream;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

use crate::{
    client::{Connection, Server, WATCHDOG, config, wait_for},
    fake::{Fake, model},
};

/// What was done with it.
#[derive(Default)]
struct Seen {
    /// Streams that were let go of.
    dropped: AtomicUsize,
    /// Reloads that began, and that ended.
    began: AtomicUsize,
    reloaded: AtomicUsize,
}

/// A model whose streams have a part ready at any time, and whose reload waits until it is told to go on.
struct Eager {
    fake: Fake,
    seen: Arc<Seen>,
    go: watch::Receiver<bool>,
}

impl Backend for Eager {
    fn model(&self) -> &ModelInfo {
        self.fake.model()
    }

    fn infer(&self, call: Call) -> Boxed<Result<Answer, Refusal>> {
        self.fake.infer(call)
    }

    fn generate(&self, _call: Call) -> Boxed<Result<Parts, Refusal>> {
        let parts = Endless(Arc::clone(&self.seen));
        Box::pin(async move { Ok(Box::pin(parts) as Parts) })
    }

    fn tokenize(
        &self,
        texts: Vec<String>,
        special_tokens: bool,
        deadline: Instant,
    ) -> Boxed<Option<Result<Vec<TokenizedText>, Refusal>>> {
        self.fake.tokenize(texts, special_tokens, deadline)
    }

    fn health(&self) -> Health {
        self.fake.health()
    }

    fn status(&self) -> Status {
        self.fake.status()
    }

    fn reload(&self) -> Boxed<Result<(), String>> {
        let (seen, mut go) = (Arc::clone(&self.seen), self.go.clone());
        Box::pin(async move {
            seen.began.fetch_add(1, SeqCst);
            let _ = go.wait_for(|go| *go).await;
            seen.reloaded.fetch_add(1, SeqCst);
            Ok(())
        })
    }
}

struct Endless(Arc<Seen>);

impl Stream for Endless {
    type Item = Result<Part, Refusal>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(Some(Ok(Part { item: 0, tokens: vec![7], text: "x".repeat(16 << 10), finished: None })))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, SeqCst);
    }
}

/// A server in front of an [`Eager`] one.
struct Running {
    address: SocketAddr,
    seen: Arc<Seen>,
    go: watch::Sender<bool>,
}

impl Running {
    fn metrics(&self) -> String {
        Connection::open(self.address).ask("GET", "/metrics", &[], b"").text().to_owned()
    }
}

fn generating() -> ModelInfo {
    ModelInfo { generates: true, ..model(Takes::Texts) }
}

fn with_server(test: impl FnOnce(&Running)) {
    let (go, going) = watch::channel(false);
    let seen = Arc::<Seen>::default();
    let backend = Eager { fake: Fake::new(generating(), going.clone()), seen: Arc::clone(&seen), go: going };
    let (stop, stopped) = oneshot::channel::<()>();
    let (tell, told) = mpsc::channel();
    let server = thread::spawn(move || {
        let config = config(&[("server.drain_s", "0")]);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = http::bind(&config).await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            let stopped = async { drop(stopped.await) };
            let metrics = Metrics::new();
            http::serve_on(listener, &config, Arc::new(backend), metrics, Tracer::off(), stopped).await.unwrap();
        });
    });
    let address = told.recv_timeout(WATCHDOG).unwrap();
    test(&Running { address, seen, go });
    drop(stop);
    server.join().unwrap();
}

#[test]
fn a_stream_that_nobody_reads_ends_at_its_deadline() {
    with_server(|server| {
        let mut connection = Connection::open(server.address);
        let body = r#"{"inputs": "x"}"#;
        let head = "POST /generate_stream HTTP/1.1\r\nhost: x\r\nx-request-timeout-ms: 1000\r\n";
        connection.send(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes());
        assert_eq!(connection.head().status, 200);
        // The sockets are full of its parts, more are ready, and nobody asks for them.
        wait_for("its parts are let go of", || server.seen.dropped.load(SeqCst) == 1);
        let free = "forebay_in_flight_requests 0.0";
        wait_for("its place is free", || server.metrics().contains(free));
        let started = Instant::now();
        let mut last = Vec::new();
        loop {
            let chunk = connection.chunk();
            if chunk.is_empty() {
                break;
            }
            assert!(started.elapsed() < WATCHDOG, "it goes on");
            last = chunk;
        }
        let last = String::from_utf8(last).unwrap();
        assert!(last.starts_with("event: error\ndata: ") && last.contains(r#""type":"deadline""#), "{last}");
        let text = server.metrics();
        assert!(text.contains("forebay_rejections_total{reason=\"deadline\"} 1\n"), "{text}");
    });
}

#[test]
fn what_fails_within_a_stream_is_counted_by_its_reason() {
    let server = Server::with(generating(), &[]);
    assert!(server.post("/generate_stream", r#"{"inputs": "so dies"}"#).text().contains("worker_died"));
    assert!(!server.post("/generate_stream", r#"{"inputs": "to be"}"#).text().contains("error"));
    let answer = server.get("/metrics");
    for line in [
        "forebay_requests_total{route=\"/generate_stream\",code=\"200\"} 2",
        "forebay_rejections_total{reason=\"worker_died\"} 1",
    ] {
        assert!(answer.text().lines().any(|found| found == line), "{line} is not in\n{}", answer.text());
    }
    assert_eq!(answer.text().matches("forebay_rejections_total{").count(), 1, "{}", answer.text());
}

/// Set in the second process of the test of the log.
const LOGGING: &str = "FOREBAY_TEST_LOGGING_STREAMS";

#[test]
fn a_stream_that_fails_leaves_a_line_that_says_why() {
    if env::var_os(LOGGING).is_some() {
        let _guard = logs::init(&LogConfig { format: LogFormat::Json, ..LogConfig::default() }).unwrap();
        let server = Server::with(generating(), &[("log.requests", "true")]);
        for (id, text) in [("good", "to be"), ("bad", "so dies")] {
            let body = format!("{{\"inputs\": {text:?}}}");
            server.open().ask("POST", "/generate_stream", &[("x-request-id", id)], body.as_bytes());
        }
        return;
    }
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "streams::a_stream_that_fails_leaves_a_line_that_says_why"]);
    let output = command.env(LOGGING, "1").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let failed: Vec<_> = lines.iter().filter(|line| line["message"] == "stream failed").collect();
    let [failed] = failed[..] else { panic!("{text}") };
    let found = ["id", "path", "why", "text"].map(|key| failed[key].clone());
    let text = "the worker died while it had the request";
    assert_eq!(found, [json!("bad"), json!("/generate_stream"), json!("worker_died"), json!(text)]);
}

#[test]
fn a_reload_goes_on_when_its_client_leaves() {
    with_server(|server| {
        let mut connection = Connection::open(server.address);
        connection.send(b"POST /admin/reload HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
        wait_for("it began", || server.seen.began.load(SeqCst) == 1);
        drop(connection);
        let left = "forebay_requests_total{route=\"/admin/reload\",code=\"499\"} 1";
        wait_for("its request is dropped", || server.metrics().contains(left));
        server.go.send(true).unwrap();
        wait_for("it is done", || server.seen.reloaded.load(SeqCst) == 1);
    });
}
