//! `/generate` and `/generate_stream`.

use std::sync::atomic::Ordering::SeqCst;

use forebay_serve::backend::Takes;
use serde_json::{Value, json};

use crate::{
    client::{Server, wait_for},
    fake::model,
};

fn generating() -> Server {
    let mut model = model(Takes::Texts);
    model.generates = true;
    Server::with(model, &[])
}

fn events(body: &str) -> Vec<(String, Value)> {
    let event = |block: &str| {
        let name = block.lines().find_map(|line| line.strip_prefix("event: ")).unwrap_or("").to_owned();
        let data = block.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        (name, serde_json::from_str(data).unwrap())
    };
    body.split("\n\n").filter(|block| !block.is_empty()).map(event).collect()
}

#[test]
fn the_whole_text_comes_at_once() {
    let server = generating();
    let one = server.post("/generate", r#"{"inputs": "to be or"}"#);
    assert_eq!(one.text(), r#"{"outputs":{"finish_reason":"stop","text":"to!be!or!","tokens":[0,1,2]}}"#);
    let two = server.post("/generate", r#"{"inputs": ["a b", "breaks"]}"#).json();
    assert_eq!(two["outputs"][0]["text"], json!("a!b!"));
    assert_eq!(two["outputs"][1]["error"], json!({"type": "model_failed", "message": "ValueError: no"}));
    let too_long = server.post("/generate", r#"{"inputs": ["a", "unusable"]}"#).json();
    assert_eq!(too_long["outputs"][1]["error"]["type"], json!("invalid"));
    assert_eq!(server.post("/generate", r#"{"inputs": "breaks"}"#).problem().0, 500);
    let (status, kind, field, _) = server.post("/generate", r#"{"inputs": "unusable"}"#).problem();
    assert_eq!((status, kind.as_str(), field.as_str()), (422, "invalid", "inputs"));
    let mixed = server.post("/generate", r#"{"inputs": ["unusable", "breaks"]}"#);
    assert_eq!((mixed.status, &mixed.json()["error"]["item"]), (500, &json!(1)));
    assert_eq!(server.post("/generate", r#"{"inputs": "so dies"}"#).problem().0, 502);
    assert_eq!(server.post("/generate", r#"{"inputs": "full"}"#).problem().0, 429);
}

#[test]
fn tokens_come_as_events() {
    let server = generating();
    let answer = server.post("/generate_stream", r#"{"inputs": "to be"}"#);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/event-stream")));
    let events = events(answer.text());
    assert_eq!(events[0].1, json!({"item": 0, "tokens": [0], "text": "to!"}));
    assert_eq!(events[1].1, json!({"item": 0, "tokens": [1], "text": "be!", "finish_reason": "stop"}));
    assert_eq!(events.len(), 2);
}

#[test]
fn what_goes_wrong_within_a_stream_is_an_event() {
    let server = generating();
    let events = events(server.post("/generate_stream", r#"{"inputs": "so dies"}"#).text());
    let (name, error) = events.last().unwrap();
    assert_eq!((name.as_str(), &error["error"]["type"]), ("error", &json!("worker_died")));
    assert_eq!(server.post("/generate_stream", r#"{"inputs": "late"}"#).problem().0, 503);
    assert_eq!(Server::start(Takes::Texts).post("/generate_stream", r#"{"inputs": "x"}"#).problem().1, "unsupported");
}

#[test]
fn a_stream_ends_at_the_deadline() {
    let server = generating();
    let headers = [("x-request-timeout-ms", "50")];
    let answer = server.open().ask("POST", "/generate_stream", &headers, br#"{"inputs": "endless x"}"#);
    let events = events(answer.text());
    assert_eq!(events.last().unwrap().1["error"]["type"], json!("deadline"));
    wait_for("the backend is told", || server.seen.dropped.load(SeqCst) == 1);
}

#[test]
fn a_listener_who_leaves_ends_the_stream_and_frees_its_place() {
    let server = generating();
    let mut connection = server.open();
    let body = r#"{"inputs": "endless x"}"#;
    let head = format!("POST /generate_stream HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    connection.send(head.as_bytes());
    assert_eq!(connection.head().status, 200);
    assert!(!connection.chunk().is_empty());
    let text = server.get("/metrics");
    assert!(text.text().contains("forebay_in_flight_requests 1.0"), "{}", text.text());
    drop(connection);
    wait_for("the stream is dropped", || server.seen.dropped.load(SeqCst) == 1);
    wait_for("its place is free", || server.get("/metrics").text().contains("forebay_in_flight_requests 0.0"));
}
