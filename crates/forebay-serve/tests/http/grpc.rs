//! The Open Inference Protocol over gRPC, by a client of a few lines on HTTP/2, with messages of its own.

use std::{
    collections::HashMap,
    convert::Infallible,
    fs,
    io::{ErrorKind, Read as _, Seek as _, Write as _},
    net::SocketAddr,
    pin::Pin,
    sync::atomic::Ordering::SeqCst,
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    http::{HeaderMap, Request, Response},
};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use forebay_serve::backend::{ModelInfo, Takes};
use http_body::Frame;
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::{net::TcpStream, runtime::Runtime, sync::mpsc};

use crate::{
    client::{Connection, Server, WATCHDOG, is_alone, peak_bytes, run_alone, wait_for},
    fake::model,
};

#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    datatype: String,
    #[prost(int64, repeated, tag = "3")]
    shape: Vec<i64>,
    #[prost(message, optional, tag = "5")]
    contents: Option<Contents>,
}

#[derive(Clone, PartialEq, Message)]
struct Contents {
    #[prost(int64, repeated, tag = "3")]
    int64s: Vec<i64>,
    #[prost(float, repeated, tag = "6")]
    floats: Vec<f32>,
    #[prost(bytes = "bytes", repeated, tag = "8")]
    bytes: Vec<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
struct Parameter {
    #[prost(int64, optional, tag = "2")]
    int: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct Infer {
    #[prost(string, tag = "1")]
    model_name: String,
    #[prost(string, tag = "2")]
    model_version: String,
    #[prost(string, tag = "3")]
    id: String,
    #[prost(map = "string, message", tag = "4")]
    parameters: HashMap<String, Parameter>,
    #[prost(message, repeated, tag = "5")]
    tensors: Vec<Tensor>,
    /// Tag 7 in requests.
    #[prost(bytes = "bytes", repeated, tag = "7")]
    raw: Vec<Bytes>,
    /// Tag 6 in answers.
    #[prost(bytes = "bytes", repeated, tag = "6")]
    raw_answer: Vec<Bytes>,
}

/// Name and version, or a flag, or the names of tensors: what the smaller messages have.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Flag {
    #[prost(bool, tag = "1")]
    yes: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "4")]
    inputs: Vec<Tensor>,
}

/// A server whose gRPC address is known.
fn start(model: ModelInfo, flags: &[(&str, &str)]) -> (Server, SocketAddr) {
    // A port that was free a moment ago: the listener of gRPC does not tell which one it took.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listen = free.to_string();
    let server = Server::with(model, &[&[("server.grpc_listen", listen.as_str())], flags].concat());
    wait_for("gRPC listens", || std::net::TcpStream::connect(free).is_ok());
    (server, free)
}

struct Answer<T> {
    code: u32,
    text: String,
    headers: HeaderMap,
    message: Option<T>,
}

fn ask<T: Message + Default>(
    to: SocketAddr,
    call: &str,
    headers: &[(&str, &str)],
    message: &impl Message,
) -> Answer<T> {
    ask_with(to, call, headers, &message.encode_to_vec(), Body::from)
}

/// Bytes whose number nobody announces, as most clients send them.
fn streamed(bytes: Bytes) -> Body {
    let half = bytes.len() / 2;
    Body::new(Pieces::new([bytes.slice(..half), bytes.slice(half..)], false))
}

/// A body that comes in pieces.
struct Pieces {
    pieces: mpsc::Receiver<Bytes>,
    /// While it is there, more may come.
    _more: Option<mpsc::Sender<Bytes>>,
}

impl Pieces {
    fn new(all: [Bytes; 2], more: bool) -> Self {
        let (sender, pieces) = mpsc::channel(2);
        all.into_iter().for_each(|piece| sender.try_send(piece).unwrap());
        Self { pieces, _more: more.then_some(sender) }
    }
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, waker: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.pieces.poll_recv(waker).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// The head of an answer, and what keeps its connection.
async fn send(
    to: SocketAddr,
    call: &str,
    headers: &[(&str, &str)],
    encoded: &[u8],
    body: fn(Bytes) -> Body,
) -> (Response<Incoming>, SendRequest<Body>) {
    let stream = TokioIo::new(TcpStream::connect(to).await.unwrap());
    let (mut send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(encoded.len()).unwrap());
    frame.extend_from_slice(encoded);
    let uri = format!("http://{to}/inference.GRPCInferenceService/{call}");
    let mut request = Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = send.send_request(request.body(body(frame.freeze())).unwrap()).await.unwrap();
    (response, send)
}

fn ask_with<T: Message + Default>(
    to: SocketAddr,
    call: &str,
    headers: &[(&str, &str)],
    encoded: &[u8],
    body: fn(Bytes) -> Body,
) -> Answer<T> {
    Runtime::new().unwrap().block_on(async {
        let (response, _connection) = send(to, call, headers, encoded, body).await;
        let headers = response.headers().clone();
        let body = response.into_body().collect().await.unwrap();
        let trailers = body.trailers().cloned().unwrap_or_default();
        let mut bytes = body.to_bytes();
        let field = |name: &str| {
            trailers.get(name).or_else(|| headers.get(name)).map(|value| value.to_str().unwrap().to_owned())
        };
        let message = (bytes.len() >= 5).then(|| {
            bytes.advance(5);
            T::decode(bytes).unwrap()
        });
        Answer {
            code: field("grpc-status").unwrap().parse().unwrap(),
            text: field("grpc-message").unwrap_or_default(),
            headers,
            message,
        }
    })
}

fn tensor(name: &str, datatype: &str, shape: &[i64], contents: Option<Contents>) -> Tensor {
    Tensor { name: name.to_owned(), datatype: datatype.to_owned(), shape: shape.to_vec(), contents }
}

fn infer(tensors: Vec<Tensor>, raw: Vec<Bytes>) -> Infer {
    Infer { model_name: "fake".to_owned(), id: "7".to_owned(), tensors, raw, ..Infer::default() }
}

fn floats(values: &[f32]) -> Bytes {
    values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into()
}

#[test]
fn tensors_go_there_typed_or_raw_and_come_back_raw() {
    let (server, to) = start(model(Takes::Tensors), &[]);
    let x = [1.0, 2.5, 3.0, 4.0, 5.0, 6.0];
    let typed = Contents { floats: x.to_vec(), ..Contents::default() };
    let numbers = Contents { int64s: vec![7, 8], ..Contents::default() };
    let mut request =
        infer(vec![tensor("x", "FP32", &[2, 3], Some(typed)), tensor("k", "INT64", &[2], Some(numbers))], vec![]);
    request.parameters.insert("p".to_owned(), Parameter { int: Some(3) });
    let answer = ask::<Infer>(to, "ModelInfer", &[("x-request-id", "me")], &request);
    assert_eq!((answer.code, answer.text.as_str()), (0, ""));
    let message = answer.message.unwrap();
    assert_eq!((message.model_name.as_str(), message.id.as_str()), ("fake", "7"));
    assert_eq!(message.tensors[0], tensor("x", "FP32", &[2, 3], None));
    assert_eq!(message.raw_answer[0], floats(&x));
    assert_eq!(*server.seen.parameters.lock().unwrap(), r#"{"p":3}"#);
    let numbers: Vec<u8> = [7i64, 8].into_iter().flat_map(i64::to_le_bytes).collect();
    let tensors = vec![tensor("x", "FP32", &[2, 3], None), tensor("k", "INT64", &[2], None)];
    let raw = ask::<Infer>(to, "ModelInfer", &[], &infer(tensors, vec![floats(&x), numbers.into()]));
    assert_eq!(raw.message.unwrap().raw_answer, message.raw_answer);
    assert!(server.get("/metrics").text().contains("forebay_requests_total{route=\"grpc\",code=\"200\"} 2"));
}

#[test]
fn texts_are_bytes_and_refusals_have_codes() {
    let (server, to) = start(model(Takes::Texts), &[]);
    let text = |text: &str| {
        let bytes = vec![Bytes::from(text.to_owned())];
        infer(vec![tensor("text", "BYTES", &[1], Some(Contents { bytes, ..Contents::default() }))], vec![])
    };
    let answer = ask::<Infer>(to, "ModelInfer", &[], &text("abc")).message.unwrap();
    assert_eq!(answer.raw_answer[0][..4], 3f32.to_le_bytes());
    for (word, code) in [
        ("full", 8),
        ("late", 14),
        ("deadline", 4),
        ("invalid", 3),
        ("large", 8),
        ("boom", 13),
        ("died", 14),
        ("bad", 3),
    ] {
        let answer = ask::<Infer>(to, "ModelInfer", &[], &text(word));
        assert_eq!(answer.code, code, "{word}: {}", answer.text);
        assert!(answer.headers.contains_key("x-request-id"), "{word}");
    }
    let late = ask::<Infer>(to, "ModelInfer", &[("grpc-timeout", "500m")], &text("hang"));
    assert_eq!(late.code, 4);
    wait_for("the call is dropped", || server.seen.dropped.load(SeqCst) == 1);
    let other = Infer { model_name: "other".to_owned(), ..text("x") };
    assert_eq!(ask::<Infer>(to, "ModelInfer", &[], &other).code, 5);
    assert_eq!(ask::<Infer>(to, "ModelTrain", &[], &other).code, 12);
    let wrong = ask::<Infer>(to, "ModelInfer", &[], &infer(vec![tensor("text", "FP32", &[1], None)], vec![]));
    assert_eq!(wrong.code, 3);
    assert!(wrong.text.starts_with("inputs[0].datatype"), "{}", wrong.text);
}

#[test]
fn health_and_metadata_are_told_and_keys_asked_for() {
    let (_server, to) = start(model(Takes::Tensors), &[("auth.keys", "secret"), ("limits.body_bytes", "1000")]);
    let fake = Named { name: "fake".to_owned() };
    assert!(ask::<Flag>(to, "ServerLive", &[], &Flag::default()).message.unwrap().yes);
    assert!(ask::<Flag>(to, "ServerReady", &[], &Flag::default()).message.unwrap().yes);
    assert_eq!(ask::<Metadata>(to, "ModelMetadata", &[], &fake).code, 16);
    let key = [("authorization", "Bearer secret")];
    let bad = ("x-priority", "urgent");
    assert!(ask::<Flag>(to, "ServerLive", &[bad], &Flag::default()).message.unwrap().yes);
    assert_eq!(ask::<Metadata>(to, "ModelMetadata", &[bad], &fake).code, 16);
    assert_eq!(ask::<Metadata>(to, "ModelMetadata", &[key[0], bad], &fake).code, 3);
    let metadata = ask::<Metadata>(to, "ModelMetadata", &key, &fake).message.unwrap();
    assert_eq!(metadata.inputs[0], tensor("x", "FP32", &[-1, 3], None));
    assert!(ask::<Flag>(to, "ModelReady", &key, &fake).message.unwrap().yes);
    assert_eq!(ask::<Named>(to, "ServerMetadata", &key, &Flag::default()).message.unwrap().name, "forebay");
    let long = Named { name: "x".repeat(2000) };
    assert_eq!(ask::<Flag>(to, "ModelReady", &key, &long).code, 8);
}

#[test]
fn messages_that_are_too_long_or_none_are_refused_and_counted() {
    let (server, to) = start(model(Takes::Tensors), &[("auth.keys", "secret"), ("limits.body_bytes", "100000")]);
    let key = [("authorization", "Bearer secret")];
    let long = Named { name: "x".repeat(10_000) }.encode_to_vec();
    for (call, headers) in [("ServerLive", &[][..]), ("ModelReady", &key)] {
        let answer = ask_with::<Flag>(to, call, headers, &long, streamed);
        assert_eq!(answer.code, 8, "{call} has no place, so it may not be long: {}", answer.text);
        // No key changes that, so none is named.
        assert!(answer.text.contains("4096%20bytes") && !answer.text.contains("limits."), "{}", answer.text);
    }
    let longer = infer(vec![], vec![vec![0; 200_000].into()]).encode_to_vec();
    let answer = ask_with::<Infer>(to, "ModelInfer", &key, &longer, streamed);
    assert_eq!(answer.code, 8, "{}", answer.text);
    assert!(answer.headers.contains_key("x-request-id"));
    let garbage = ask_with::<Infer>(to, "ModelInfer", &key, &[0xff; 50], streamed);
    assert_eq!(garbage.code, 3, "{}", garbage.text);
    let metrics = server.open().ask("GET", "/metrics", &key, b"");
    for line in [
        "forebay_requests_total{route=\"grpc\",code=\"413\"} 3",
        "forebay_requests_total{route=\"grpc\",code=\"400\"} 1",
        "forebay_rejections_total{reason=\"too_large\"} 3",
    ] {
        assert!(metrics.text().contains(line), "{line}: {}", metrics.text());
    }
}

#[test]
fn a_port_that_is_taken_is_named_before_anything_is_served() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let config = crate::client::config(&[("server.grpc_listen", &listen)]);
    let error = Runtime::new().unwrap().block_on(forebay_serve::http::bind(&config)).unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot listen on {listen}: ")), "{error}");
    assert!(error.contains("server.grpc_listen"), "{error}");
}

#[test]
fn an_answer_that_is_being_read_is_sent_to_its_end() {
    let (mut server, to) = start(model(Takes::Texts), &[]);
    let text = Contents { bytes: vec![Bytes::from_static(b"huge")], ..Contents::default() };
    let request = infer(vec![tensor("text", "BYTES", &[1], Some(text))], vec![]).encode_to_vec();
    Runtime::new().unwrap().block_on(async {
        let (response, _connection) = send(to, "ModelInfer", &[], &request, Body::from).await;
        server.stop();
        wait_for("no more is accepted", || std::net::TcpStream::connect(server.address).is_err());
        // The call is over; after a second its answer was cut once.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(response.into_body().collect().await.unwrap().to_bytes().len() > 24 << 20);
    });
    server.join();
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, bytes: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(bytes.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(bytes);
    frame
}

/// Kind, flags and content of the next one; None at the end of the connection.
fn next_frame(client: &mut Connection) -> Option<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    match client.stream.read_exact(&mut head) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return None,
        read => read.unwrap(),
    }
    let mut bytes = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
    client.stream.read_exact(&mut bytes).unwrap();
    Some((head[3], head[4], bytes))
}

#[test]
fn a_client_that_talks_while_it_reads_the_last_answer_gets_all_of_it() {
    let (mut server, to) = start(model(Takes::Texts), &[]);
    let mut client = Connection::open(to);
    // What is on its way waits at the server's end.
    rustix::net::sockopt::set_socket_recv_buffer_size(client.stream.get_ref(), 64 << 10).unwrap();
    let text = Contents { bytes: vec![Bytes::from_static(b"huge")], ..Contents::default() };
    let message = infer(vec![tensor("text", "BYTES", &[1], Some(text))], vec![]).encode_to_vec();
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/inference.GRPCInferenceService/ModelInfer"),
        (":authority", "test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let headers = headers.map(|(name, value)| [&[0], &text(name)[..], &text(value)].concat()).concat();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    // The server may write all of the answer at once.
    client.send(&frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]));
    client.send(&frame(8, 0, 0, &[0x7f, 0, 0, 0]));
    client.send(&frame(1, 4, 1, &headers));
    client.send(&frame(0, 1, 1, &[&[0], &length[..], &message].concat()));
    let mut answer = 0;
    while let Some((kind, flags, bytes)) = next_frame(&mut client) {
        match kind {
            0 if answer == 0 => server.stop(),
            // All of it is on its way now. What is said meanwhile nobody reads.
            0 if answer / (1 << 20) < 23 && (answer + bytes.len()) / (1 << 20) == 23 => {
                for _ in 0..10 {
                    thread::sleep(Duration::from_millis(10));
                    client.send(&frame(6, 1, 0, &[0; 8]));
                }
            }
            // The server ends when its own is answered.
            6 if flags == 0 => client.send(&frame(6, 1, 0, &bytes)),
            _ => {}
        }
        answer += if kind == 0 { bytes.len() } else { 0 };
    }
    assert!(answer > 24 << 20, "{answer}");
    server.join();
}

#[test]
fn a_message_that_stalls_times_out() {
    let body = ("server.body_timeout_s", "0.2");
    // The time of a request begins before that of its message, so of equal limits it is over first.
    for flags in [&[body][..], &[body, ("limits.request_timeout_s", "0.2")]] {
        let (server, to) = start(model(Takes::Tensors), flags);
        let stalls = |headers: &[(&str, &str)]| {
            ask_with::<Infer>(to, "ModelInfer", headers, &[0; 10], |bytes| {
                Body::new(Pieces::new([bytes.slice(..4), bytes.slice(4..bytes.len() - 1)], true))
            })
        };
        let answer = stalls(&[]);
        assert_eq!(answer.code, 4, "{}", answer.text);
        assert!(answer.text.contains("not%20arrive"), "{}", answer.text);
        let hurried = stalls(&[("x-request-timeout-ms", "50")]);
        assert_eq!(hurried.code, 4, "{}", hurried.text);
        assert!(!hurried.text.contains("not%20arrive"), "{}", hurried.text);
        let metrics = server.get("/metrics");
        assert!(metrics.text().contains("forebay_requests_total{route=\"grpc\",code=\"408\"} 1"), "{}", metrics.text());
    }
}

/// A field of a message that has a length.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.put_u8(number << 3 | 2);
    prost::encode_length_delimiter(bytes.len(), &mut out).unwrap();
    out.put_slice(bytes);
    out.to_vec()
}

/// What the process of the next test does.
#[test]
fn a_server_that_is_sent_entries_of_two_bytes() {
    if !is_alone() {
        return;
    }
    let (server, to) = start(model(Takes::Texts), &[]);
    let (many, name) = ((10 << 20) / 2 - 100, field(1, b"fake"));
    let nothing = |number: u8| [number << 3 | 2, 0].repeat(many);
    let of_a_tensor = |bytes: Vec<u8>| field(5, &bytes);
    // Four bytes of length and nothing behind them, one item after the other.
    let texts = tensor("text", "BYTES", &[many as i64 / 2], None).encode_to_vec();
    let raw = [of_a_tensor(texts), field(7, &vec![0; 2 * many - 100])].concat();
    for (entries, code, said) in [
        (nothing(4), 3, "parameters: more than 64, which no request needs"),
        (nothing(5), 3, "inputs: more than 64, which no request needs"),
        (nothing(6), 3, "outputs: more than 64, which no request needs"),
        (nothing(7), 3, "raw_input_contents: more than 64, which no request needs"),
        (of_a_tensor(field(3, &vec![0; 2 * many])), 3, "inputs[0].shape: 10485560 dims"),
        // Each is an item.
        (of_a_tensor(field(5, &nothing(8))), 8, "more than 8 items in one request (limits.items)"),
        (raw, 8, "more than 8 items in one request (limits.items)"),
        // Of some length that leads out of its tensor, to where nobody counted.
        (of_a_tensor(vec![0x2a, 0x80, 0x80, 0x80, 4]).into_iter().chain(nothing(8)).collect(), 3, "the message is no"),
    ] {
        let message = [name.as_slice(), &entries].concat();
        let before = peak_bytes();
        let answer = ask_with::<Infer>(to, "ModelInfer", &[], &message, Body::from);
        let text = answer.text.replace("%20", " ");
        assert!(answer.code == code && text.starts_with(said), "{said}: {} {text}", answer.code);
        // The message itself is in this process more than once.
        let more = peak_bytes() - before;
        assert!(more < 160 << 20, "{said}: {more} bytes");
    }
    let text = Contents { bytes: vec![Bytes::from_static(b"abc"); 8], ..Contents::default() };
    let request = infer(vec![tensor("text", "BYTES", &[8], Some(text))], vec![]);
    assert_eq!(ask::<Infer>(to, "ModelInfer", &[], &request).code, 0);
    assert!(server.get("/metrics").text().contains("forebay_rejections_total{reason=\"too_large\"} 2"));
}

#[test]
fn a_message_takes_memory_by_its_bytes_and_not_by_its_entries() {
    run_alone("grpc::a_server_that_is_sent_entries_of_two_bytes");
}

#[test]
fn what_clients_say_at_length_comes_back_cut() {
    let (_server, to) = start(model(Takes::Texts), &[]);
    // Three bytes each, which are nine in a header.
    let long = "\u{20ac}".repeat(1 << 20);
    let answer = ask::<Infer>(to, "ModelInfer", &[], &Infer { model_name: long.clone(), ..Infer::default() });
    assert!(answer.code == 5 && answer.text.len() < 4096, "{}: {}", answer.code, answer.text.len());
    let mut request = infer(vec![], vec![]);
    request.tensors.push(tensor("text", &long, &[1], None));
    let answer = ask::<Infer>(to, "ModelInfer", &[], &request);
    assert!(answer.code == 3 && answer.text.len() < 4096, "{}: {}", answer.code, answer.text.len());
}

#[test]
fn the_drain_ends_a_call_that_hangs() {
    let (mut server, to) = start(model(Takes::Texts), &[("server.drain_s", "0.1")]);
    let text = Contents { bytes: vec![Bytes::from_static(b"hang")], ..Contents::default() };
    let request = infer(vec![tensor("text", "BYTES", &[1], Some(text))], vec![]);
    let waiting = thread::spawn(move || ask::<Infer>(to, "ModelInfer", &[], &request));
    wait_for("it is under way", || server.seen.calls.load(SeqCst) == 1);
    let start = Instant::now();
    server.stop();
    let answer = waiting.join().unwrap();
    assert_eq!((answer.code, answer.text.as_str()), (14, "the%20server%20is%20shutting%20down"));
    assert_eq!(server.seen.dropped.load(SeqCst), 1);
    server.join();
    assert!(start.elapsed() < WATCHDOG, "{:?}", start.elapsed());
}

#[test]
fn a_connection_that_does_not_begin_is_closed_and_one_that_has_is_kept() {
    let (_server, to) = start(model(Takes::Texts), &[("server.header_timeout_s", "1")]);
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let start = Instant::now();
    let mut nothing = Connection::open(to);
    let mut half = Connection::open(to);
    half.send(&hello[..10]);
    let mut trickle = Connection::open(to);
    let mut whole = Connection::open(to);
    // And settings, of which there are none.
    whole.send(&[&hello[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat());
    for byte in &hello[..20] {
        // It may be closed already, where this takes long.
        let _ = trickle.stream.get_mut().write_all(&[*byte]);
        thread::sleep(Duration::from_millis(30));
    }
    for silent in [&mut nothing, &mut half, &mut trickle] {
        // What the server says of itself comes first.
        wait_for("it is closed", || silent.closed());
    }
    assert!(start.elapsed() >= Duration::from_secs(1));
    // Later than it would have been closed, a ping is answered.
    thread::sleep(Duration::from_millis(100));
    whole.send(&[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    let mut said = Vec::new();
    wait_for("it is answered", || {
        let mut byte = [0];
        whole.stream.read_exact(&mut byte).unwrap();
        said.push(byte[0]);
        said.ends_with(&[1, 2, 3, 4, 5, 6, 7, 8])
    });
}

/// What the process of the next test does.
#[test]
fn a_server_without_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    if !is_alone() {
        return;
    }
    let (_server, to) = start(model(Takes::Texts), &[]);
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(100);
    setrlimit(Resource::Nofile, limit).unwrap();
    let mut clock = fs::File::open("/proc/self/stat").unwrap();
    // User and system time of this process, in hundredths of a second.
    let mut used = || {
        let mut text = String::new();
        clock.rewind().unwrap();
        clock.read_to_string(&mut text).unwrap();
        let after = text.rsplit(')').next().unwrap().split_whitespace();
        after.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>()
    };
    let mut all: Vec<_> = std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
    // One for the client, none for the server.
    drop(all.pop());
    let mut client = Connection::open(to);
    let before = used();
    thread::sleep(Duration::from_millis(600));
    let ticks = used() - before;
    assert!(ticks < 30, "{ticks} hundredths of a second in 60");
    drop(all);
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    client.stream.read_exact(&mut [0; 9]).unwrap();
}

#[test]
fn a_server_without_descriptors_waits_for_some_without_working() {
    run_alone("grpc::a_server_without_descriptors");
}
