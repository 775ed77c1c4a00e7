//! Health, and the way down.

use std::{sync::atomic::Ordering::SeqCst, thread};

use forebay_serve::backend::Takes;

use crate::{
    client::{Server, wait_for},
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

#[test]
fn the_drain_ends_whatever_hangs() {
    let mut server = Server::with(model(Takes::Texts), &[("server.drain_s", "0.1")]);
    let mut connection = server.open();
    connection.send(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 18\r\n\r\n{\"inputs\": \"hang\"}");
    wait_for("it is under way", || server.seen.calls.load(SeqCst) == 1);
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
