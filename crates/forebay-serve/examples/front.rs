//! What HTTP alone costs: tiny JSON to `/predict` over keep-alive, answered by a model that does nothing.
//!
//! ```text
//! cargo run --release -p forebay-serve --example front -- [connections] [seconds]
//! ```
//!
//! The server is one thread. Printed are requests a second, and that thread's processor time for each request, which
//! says more than the rate where the machine has other work.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement: it prints, and ends where it cannot go on"
)]

use std::{
    env, fmt,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use forebay::DType;
use forebay_serve::{
    Config,
    backend::{
        Answer, Backend, Boxed, Call, Health, ModelInfo, Parts, Refusal, Row, Rows, Status, Takes, TensorInfo, Timings,
        TokenizedText,
    },
    http,
    metrics::Metrics,
    trace::Tracer,
};
use rustix::time::{ClockId, clock_gettime};

/// Eight floats, always the same.
struct Eight([u8; 32]);

impl fmt::Debug for Eight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Eight")
    }
}

impl Rows for Eight {
    fn tensors(&self) -> usize {
        1
    }

    fn tensor(&self, _tensor: usize) -> (&str, DType, &[u64]) {
        ("y", DType::F32, &[8])
    }

    fn bytes(&self, _tensor: usize, _row: usize) -> &[u8] {
        &self.0
    }
}

struct Nothing(ModelInfo, Arc<dyn Rows>);

impl Backend for Nothing {
    fn model(&self) -> &ModelInfo {
        &self.0
    }

    fn infer(&self, _call: Call) -> Boxed<Result<Answer, Refusal>> {
        let row = Row { rows: Arc::clone(&self.1), row: 0 };
        Box::pin(async { Ok(Answer { items: vec![Ok(row)], timings: Timings::default() }) })
    }

    fn generate(&self, _call: Call) -> Boxed<Result<Parts, Refusal>> {
        Box::pin(async { Err(Refusal::Unsupported("it does nothing".to_owned())) })
    }

    fn tokenize(&self, _: Vec<String>, _: bool, _: Instant) -> Boxed<Option<Result<Vec<TokenizedText>, Refusal>>> {
        Box::pin(std::future::ready(None))
    }

    fn health(&self) -> Health {
        Health::Ready
    }

    fn status(&self) -> Status {
        Status::default()
    }

    fn reload(&self) -> Boxed<Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

fn config() -> Config {
    let flags = [
        ("server.listen", "127.0.0.1:0"),
        ("model.name", "nothing"),
        ("model.input.type", "tensors"),
        ("model.input.tensors", r#"[{ name = "x", dtype = "float32", shape = [8] }]"#),
        ("worker.command", "none"),
    ];
    Config::load(None, [], &flags.map(|(key, value)| (key.to_owned(), value.to_owned()))).unwrap()
}

fn seconds_of_this_thread() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn serve(tell: mpsc::Sender<SocketAddr>, stop: tokio::sync::oneshot::Receiver<()>) -> f64 {
    let config = config();
    let shape = |dims: &[Option<u64>]| dims.to_vec();
    let tensor = |name: &str| TensorInfo { name: name.to_owned(), dtype: DType::F32, shape: shape(&[Some(8)]) };
    let model = ModelInfo {
        name: "nothing".to_owned(),
        version: "1".to_owned(),
        takes: Takes::Tensors,
        inputs: vec![tensor("x")],
        outputs: vec![tensor("y")],
        parameters: Vec::new(),
        generates: false,
        max_items: 256,
        max_tokens: None,
    };
    let mut eight = [0; 32];
    for (i, bytes) in eight.chunks_exact_mut(4).enumerate() {
        bytes.copy_from_slice(&(1.0 / (i as f32 + 3.0)).to_le_bytes());
    }
    let backend = Arc::new(Nothing(model, Arc::new(Eight(eight))));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = http::bind(&config).await.unwrap();
        tell.send(listener.local_addr().unwrap()).unwrap();
        let stop = async { drop(stop.await) };
        http::serve_on(listener, &config, backend, Metrics::new(), Tracer::off(), stop).await.unwrap();
    });
    seconds_of_this_thread()
}

fn ask(address: SocketAddr, ended: &AtomicBool, answered: &AtomicU64) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let body = r#"{"inputs":[0.5,1.25,-3,4,5.5,6,7,8]}"#;
    let request = format!(
        "POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut buffer = [0; 4096];
    while !ended.load(Relaxed) {
        stream.write_all(request.as_bytes()).unwrap();
        let n = stream.read(&mut buffer).unwrap();
        assert!(buffer[..n].starts_with(b"HTTP/1.1 200") && buffer[..n].ends_with(b"]}}"));
        answered.fetch_add(1, Relaxed);
    }
}

fn main() {
    let mut arguments = env::args().skip(1).map(|text| text.parse::<u64>().unwrap());
    let (connections, seconds) = (arguments.next().unwrap_or(16), arguments.next().unwrap_or(5));
    let (tell, told) = mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let server = thread::spawn(move || serve(tell, stopped));
    let address = told.recv().unwrap();
    let (ended, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let start = Instant::now();
    let clients: Vec<_> = (0..connections)
        .map(|_| {
            let (ended, answered) = (Arc::clone(&ended), Arc::clone(&answered));
            thread::spawn(move || ask(address, &ended, &answered))
        })
        .collect();
    thread::sleep(Duration::from_secs(seconds));
    ended.store(true, Relaxed);
    for client in clients {
        client.join().unwrap();
    }
    let (count, elapsed) = (answered.load(Relaxed) as f64, start.elapsed().as_secs_f64());
    stop.send(()).unwrap();
    let processor = server.join().unwrap();
    println!(
        "{connections} connections: {:.0} requests a second, {:.2} µs of the server's thread for each",
        count / elapsed,
        processor / count * 1e6
    );
}
