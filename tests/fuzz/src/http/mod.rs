//! Requests of any kind to the real HTTP front over real sockets, with a model behind it that is not there.
//!
//! An input says which model, then route, method, headers and body, or it is what is written to a connection as it is.
//! Each request is answered, with a status below 500 unless the model did something, in a shape that is checked; the model
//! is asked only what it takes; and afterwards the server lives and has room for a request.
//!
//! Client and servers are tasks of one thread, so that an input does the same each time.

mod check;
mod client;
mod fake;
mod request;

use std::{
    cell::RefCell,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use forebay_serve::{Config, backend::Takes, http, metrics::Metrics, trace::Tracer};
use tokio::{
    runtime::{Builder, Runtime},
    time,
};

use self::{
    client::{Connection, Response},
    fake::{Fake, Seen},
    request::Request,
};
use crate::{bytes::Bytes, server::SOON};

/// The key of the model that asks for one.
const KEY: &str = "key";
/// How long an answer, and all of an input, may take: less than the engine's own patience.
const PATIENCE: Duration = Duration::from_secs(8);

thread_local! {
    // Never dropped: a runtime cannot be while its thread ends.
    static STAGE: &'static Stage = Box::leak(Box::new(Stage::new()));
}

/// The target `http`.
pub fn run(data: &[u8]) {
    STAGE.with(|stage| stage.play(Bytes::new(data)));
}

struct Stage {
    runtime: Runtime,
    fronts: Vec<Front>,
}

/// A server and a connection to it that is used again.
struct Front {
    address: SocketAddr,
    seen: Arc<Seen>,
    key: bool,
    /// A body of `/predict` that is right.
    right: &'static str,
    kept: RefCell<Option<Connection>>,
}

/// What items are, how many tensors, whether it generates, whether it asks for a key; a body that is right.
const MODELS: [(Takes, usize, bool, bool, &str); 6] = [
    (Takes::Texts, 1, false, false, r#"{"inputs": "abc"}"#),
    (Takes::Texts, 1, true, false, r#"{"inputs": ["abc", ["d", "e"]]}"#),
    (Takes::Images, 1, false, false, r#"{"inputs": ["/9j/"]}"#),
    (Takes::Tensors, 1, false, false, r#"{"inputs": [[[1, 2.5], [3, -4]]]}"#),
    (Takes::Tensors, 3, false, false, r#"{"inputs": {"x": [[[1, 2]]], "m": [[true, false]], "k": [3]}}"#),
    (Takes::Rows, 1, false, true, r#"{"inputs": {"a": 1}}"#),
];

impl Stage {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let fronts = MODELS.into_iter().map(|model| Front::start(&runtime, model)).collect();
        Self { runtime, fronts }
    }

    fn play(&self, mut input: Bytes<'_>) {
        let how = input.byte();
        let front = &self.fronts[usize::from(how & 7) % self.fronts.len()];
        let story = async {
            match how >> 3 & 7 {
                body @ 0..=3 => front.request(Request::new(body, input)).await,
                4 | 5 => front.raw(input.rest()).await,
                6 => front.leave(input.rest()).await,
                _ => front.request(Request::new(0, input)).await,
            }
            front.check_that_it_is_well().await;
        };
        let ended = self.runtime.block_on(async { time::timeout(PATIENCE, story).await });
        assert!(ended.is_ok(), "no end within {PATIENCE:?}");
    }
}

impl Front {
    fn start(
        runtime: &Runtime,
        (takes, inputs, generates, key, right): (Takes, usize, bool, bool, &'static str),
    ) -> Self {
        let keys = if key { format!("[{KEY:?}]") } else { "[]".to_owned() };
        let flags = [
            ("server.listen", "127.0.0.1:0"),
            ("model.name", "fake"),
            ("model.input.type", "tensors"),
            ("model.input.tensors", r#"[{ name = "x", dtype = "float32", shape = [3] }]"#),
            ("worker.command", "none"),
            ("log.requests", "false"),
            ("auth.keys", &keys),
            // One that is not given back, and there is room for none.
            ("limits.in_flight", "1"),
            ("limits.body_bytes", "2048"),
        ];
        let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let config = Config::load(None, [], &flags).unwrap();
        let fake = Fake::new(takes, inputs, generates);
        let seen = Arc::clone(&fake.seen);
        let listener = runtime.block_on(http::bind(&config)).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            let metrics = Metrics::new();
            let tracer = Tracer::new(&config, &metrics);
            http::serve_on(listener, &config, Arc::new(fake), metrics, tracer, std::future::pending()).await
        });
        Self { address, seen, key, right, kept: RefCell::default() }
    }

    /// Asks over the connection that is kept, and checks the answer.
    async fn request(&self, request: Request) {
        // The key is the input's affair now and then; without one it would see little else than refusals.
        let has_key = request.headers.iter().any(|(name, _)| *name == "authorization");
        let request = if self.key && !has_key { request.with_key(KEY) } else { request };
        let response = self.ask(&request).await;
        let doing = response.header("x-request-id").and_then(|id| self.seen.take(id));
        check::check(&request, &response, doing);
    }

    async fn ask(&self, request: &Request) -> Response {
        let bytes = request.bytes();
        let head_only = request.method == "HEAD";
        let kept = self.kept.take();
        let mut response = None;
        let mut connection = match kept {
            Some(mut kept) => {
                kept.send(&bytes).await;
                response = kept.response(head_only).await;
                kept
            }
            None => Connection::open(self.address).await,
        };
        // A server may close a connection between two requests; not without an answer to the first.
        let response = match response {
            Some(response) => response,
            None => {
                connection = Connection::open(self.address).await;
                connection.send(&bytes).await;
                connection.response(head_only).await.expect("an answer")
            }
        };
        if response.header("connection") != Some("close") {
            self.kept.replace(Some(connection));
        }
        response
    }

    /// Writes bytes as they are, and reads what comes: nothing, or answers.
    async fn raw(&self, bytes: &[u8]) {
        let mut connection = Connection::open(self.address).await;
        connection.send(bytes).await;
        let said = connection.finish().await;
        let Some(first) = client::head(&mut &said[..]).await else { return };
        let doing = first.header("x-request-id").and_then(|id| self.seen.take(id));
        check::check_status(first.status, doing, true);
    }

    /// Writes bytes as they are, and is gone.
    async fn leave(&self, bytes: &[u8]) {
        Connection::open(self.address).await.send(bytes).await;
    }

    /// It lives, and there is room for a request that is right.
    async fn check_that_it_is_well(&self) {
        let live = Request::get("/livez");
        let live = self.ask(&live).await;
        assert_eq!((live.status, live.body.as_slice()), (200, b"live\n".as_slice()));
        let start = Instant::now();
        loop {
            let request = Request::json("/predict", self.right);
            let response = self.ask(&if self.key { request.with_key(KEY) } else { request }).await;
            match response.status {
                200 => return,
                // What was left by the last one is on its way out.
                429 if start.elapsed() < SOON / 2 => time::sleep(Duration::from_millis(1)).await,
                status => panic!("{status}: {}", String::from_utf8_lossy(&response.body)),
            }
        }
    }
}
