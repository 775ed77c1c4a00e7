//! Health, and the way down.

use std::{io::Read as _, sync::atomic::Ordering::SeqCst, thread, time::Duration};

use forebay_serve::backend::Takes;

use crate::{
    client::{Connection, Server, wait_for},
    fake::model,
};

#[test]
fn ready_is_what_the_backend_says_and_live_is_always() {
    let server = Server::start(Takes::Texts);
    server.seen.not_ready.store(true, SeqCst);
    for path in ["/readyz", "/v2/health/ready", "/v2/models/fake/ready"] {
        let answer = server.get(path);
        let (_, kind, _, text) = answer.problem();
        assert_eq!((kind.as_str(), text.as_str()), ("not_ready", "workers are starting"));
        assert_eq!(answer.status, 503);
    }
    assert_eq!((server.get("/livez").status, server.get("/v2/health/live").status), (200, 200));
    server.seen.not_ready.store(false, SeqCst);
    assert_eq!((server.get("/readyz").status, server.get("/v2/health/ready").status), (200, 200));
}

#[test]
fn what_is_under_way_is_finished_while_new_work_is_refused() {
    let mut server = Server::start(Takes::Texts);
    let mut idle = server.open();
    assert_eq!(idle.ask("GET", "/livez", &[], b"").status, 200);
    let mut connection = server.open();
    let waiting = thread::spawn(move || connection.ask("POST", "/predict", &[], br#"{"inputs": "hang"}"#));
    wait_for("it is under way", || server.seen.calls.load(SeqCst) == 1);
    server.stop();
    wait_for("ready says no", || server.get("/readyz").status == 503);
    assert_eq!(server.get("/readyz").problem().1, "draining");
    assert_eq!(server.get("/livez").status, 200);
    let refused = server.post("/predict", r#"{"inputs": "x"}"#);
    assert_eq!((refused.problem().1.as_str(), refused.header("connection")), ("draining", Some("close")));
    server.go.send(true).unwrap();
    let answer = waiting.join().unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    server.join();
    assert!(idle.closed());
    assert!(std::net::TcpStream::connect(server.address).is_err());
}

/// Asks for an answer of 32 MiB and reads its head; the connection, and the bytes that are to come.
fn huge(server: &Server) -> (Connection, usize) {
    let mut connection = server.open();
    let body = r#"{"input": "huge", "encoding_format": "base64"}"#;
    let head = format!("POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    connection.send(format!("{head}{body}").as_bytes());
    let answer = connection.head();
    assert_eq!(answer.status, 200);
    (connection, answer.header("content-length").unwrap().parse().unwrap())
}

#[test]
fn an_answer_that_is_being_read_is_sent_to_its_end() {
    let mut server = Server::start(Takes::Texts);
    let (mut connection, length) = huge(&server);
    server.stop();
    wait_for("no more is accepted", || std::net::TcpStream::connect(server.address).is_err());
    // The request is over and all others have gone; after a second this one was cut once.
    thread::sleep(Duration::from_millis(1500));
    let mut rest = vec![0; length];
    connection.stream.read_exact(&mut rest).unwrap();
    assert!(rest.ends_with(b"}"));
    server.join();
}

#[test]
fn the_drain_ends_whatever_hangs() {
    let mut server = Server::with(model(Takes::Texts), &[("server.drain_s", "0.1")]);
    // Never read; it must not hold up the end either.
    let _unread = huge(&server);
    let mut connection = server.open();
    connection.send(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 18\r\n\r\n{\"inputs\": \"hang\"}");
    wait_for("it is under way", || server.seen.calls.load(SeqCst) == 2);
    server.stop();
    server.join();
    assert!(connection.closed());
    assert_eq!(server.seen.dropped.load(SeqCst), 1);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let server = Server::start(Takes::Texts);
    let listen = server.address.to_string();
    let config = crate::client::config(&[("server.listen", &listen)]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(forebay_serve::http::bind(&config)).unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot listen on {listen}: ")), "{error}");
}
