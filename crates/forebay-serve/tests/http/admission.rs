//! Keys, rates, places, lengths, deadlines, and the status code of everything that a backend may say.

use std::{sync::atomic::Ordering::SeqCst, thread};

use forebay_serve::backend::{Priority, Takes};

use crate::{
    client::{Server, wait_for},
    fake::model,
};

#[test]
fn each_refusal_has_its_status_and_kind() {
    let server = Server::start(Takes::Texts);
    let mut connection = server.open();
    for (text, status, kind, retry) in [
        ("full", 429, "queue_full", Some("3")),
        ("memory", 429, "memory", Some("3")),
        ("late", 503, "queue_timeout", Some("1")),
        ("deadline", 504, "deadline", None),
        ("invalid", 422, "invalid", None),
        ("large", 413, "too_large", None),
        ("boom", 500, "model_failed", None),
        ("died", 502, "worker_died", None),
        ("starting", 503, "not_ready", Some("1")),
        ("draining", 503, "draining", Some("1")),
        ("unsupported", 422, "unsupported", None),
    ] {
        let answer = connection.ask("POST", "/predict", &[], format!("{{\"inputs\": {text:?}}}").as_bytes());
        let problem = answer.problem();
        assert_eq!((problem.0, problem.1.as_str(), answer.header("retry-after")), (status, kind, retry));
        if text == "invalid" {
            assert_eq!(problem.2, "parameters.k");
        }
        if text == "boom" {
            assert_eq!(problem.3, "the model failed: ValueError: no");
        }
    }
}

#[test]
fn the_key_is_checked_before_anything_else() {
    let server = Server::with(model(Takes::Texts), &[("auth.keys", "right other"), ("limits.body_bytes", "100")]);
    let mut connection = server.open();
    // Neither the path, nor the length, nor the body matters without a key.
    for (path, body) in [("/predict", "{"), ("/nowhere", ""), ("/metrics", ""), ("/admin/reload", ""), ("/status", "")]
    {
        let answer = connection.ask("POST", path, &[("content-type", "text/html")], body.as_bytes());
        assert_eq!(answer.problem().1, "unauthorized", "{path}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        let wrong = connection.ask("POST", path, &[("authorization", "Bearer wrong")], b"");
        assert_eq!(wrong.status, 401);
        for bad in [("x-priority", "urgent"), ("x-request-timeout-ms", "soon")] {
            assert_eq!(connection.ask("POST", path, &[bad], b"").status, 401, "{path} {bad:?}");
        }
    }
    assert_eq!(server.seen.calls.load(SeqCst), 0);
    let headers = [("authorization", "Bearer other")];
    assert_eq!(connection.ask("POST", "/predict", &headers, br#"{"inputs": "x"}"#).status, 200);
    for open in ["/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/"] {
        assert_eq!(connection.ask("GET", open, &[], b"").status, 200, "{open}");
        // What is asked without a key is answered, whatever its headers say of work.
        assert_eq!(connection.ask("GET", open, &[("x-priority", "urgent")], b"").status, 200, "{open}");
    }
}

#[test]
fn a_key_that_asks_too_often_waits() {
    let flags = [("auth.keys", "one two"), ("limits.requests_per_s", "0.01"), ("limits.burst", "2")];
    let server = Server::with(model(Takes::Texts), &flags);
    let mut connection = server.open();
    let mut ask = |key: &str| {
        let key = format!("Bearer {key}");
        connection.ask("POST", "/predict", &[("authorization", &key)], br#"{"inputs": "x"}"#)
    };
    assert_eq!((ask("one").status, ask("one").status), (200, 200));
    let third = ask("one");
    assert_eq!(third.problem().1, "rate_limited");
    let wait: u64 = third.header("retry-after").unwrap().parse().unwrap();
    assert!((90..=100).contains(&wait), "{wait}");
    assert_eq!(ask("two").status, 200);
    assert!(
        server.metrics.text("fake", Default::default()).contains("forebay_rejections_total{reason=\"rate_limited\"} 1")
    );
}

#[test]
fn one_request_too_many_is_told_to_come_back() {
    let server = Server::with(model(Takes::Texts), &[("limits.in_flight", "2")]);
    let hang = || {
        let mut connection = server.open();
        thread::spawn(move || connection.ask("POST", "/predict", &[], br#"{"inputs": "hang"}"#).status)
    };
    let waiting = [hang(), hang()];
    wait_for("both are under way", || server.seen.calls.load(SeqCst) == 2);
    let third = server.post("/predict", r#"{"inputs": "x"}"#);
    assert_eq!((third.problem().1.as_str(), third.header("retry-after")), ("in_flight", Some("1")));
    assert_eq!(third.status, 429);
    // Probes and metrics take no place.
    assert_eq!((server.get("/livez").status, server.get("/metrics").status), (200, 200));
    server.go.send(true).unwrap();
    assert!(waiting.into_iter().all(|one| one.join().unwrap() == 200));
    assert_eq!(server.post("/predict", r#"{"inputs": "x"}"#).status, 200);
}

#[test]
fn the_deadline_is_the_nearer_of_the_server_s_and_the_client_s() {
    let server = Server::with(model(Takes::Texts), &[("limits.request_timeout_s", "0.1")]);
    let late = server.post("/predict", r#"{"inputs": "hang"}"#).problem();
    assert_eq!((late.0, late.1.as_str()), (504, "deadline"));
    let server = Server::start(Takes::Texts);
    let headers = [("x-request-timeout-ms", "30")];
    let late = server.open().ask("POST", "/predict", &headers, br#"{"inputs": "hang"}"#);
    assert_eq!(late.status, 504);
    wait_for("the call is dropped", || server.seen.dropped.load(SeqCst) == 1);
    for (name, value) in [("x-request-timeout-ms", "soon"), ("x-request-timeout-ms", "0"), ("x-priority", "urgent")] {
        let bad = server.open().ask("POST", "/predict", &[(name, value)], br#"{"inputs": "x"}"#).problem();
        assert_eq!((bad.0, bad.2.as_str()), (400, name));
    }
}

#[test]
fn the_backend_is_told_who_goes_first() {
    let server = Server::start(Takes::Texts);
    for (word, priority) in [("high", Priority::High), ("low", Priority::Low), ("normal", Priority::Normal)] {
        let headers = [("x-priority", word)];
        assert_eq!(server.open().ask("POST", "/predict", &headers, br#"{"inputs": "x"}"#).status, 200);
        assert_eq!(*server.seen.priority.lock().unwrap(), priority);
    }
    server.open().ask("POST", "/predict", &[("x-priority", "high")], br#"{"inputs": "x"}"#);
    server.post("/predict", r#"{"inputs": "x"}"#);
    assert_eq!(*server.seen.priority.lock().unwrap(), Priority::Normal, "of a request that does not say");
}

#[test]
fn an_id_is_taken_or_made() {
    let server = Server::start(Takes::Texts);
    let given = server.open().ask("GET", "/livez", &[("x-request-id", "from-elsewhere/1")], b"");
    assert_eq!(given.header("x-request-id"), Some("from-elsewhere/1"));
    let long = "x".repeat(129);
    let made: Vec<_> = ["", "two words", &long]
        .into_iter()
        .map(|id| {
            server.open().ask("GET", "/livez", &[("x-request-id", id)], b"").header("x-request-id").unwrap().to_owned()
        })
        .collect();
    assert!(made.iter().all(|id| id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit())), "{made:?}");
    assert!(made[0] != made[1]);
}

#[test]
fn a_client_who_leaves_frees_its_place_and_cancels_its_items() {
    let server = Server::with(model(Takes::Texts), &[("limits.in_flight", "1")]);
    let mut connection = server.open();
    let body = r#"{"inputs": "hang"}"#;
    let head = format!("POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    connection.send(head.as_bytes());
    wait_for("it is under way", || server.seen.calls.load(SeqCst) == 1);
    assert_eq!(server.post("/predict", r#"{"inputs": "x"}"#).status, 429);
    drop(connection);
    wait_for("its call is dropped", || server.seen.dropped.load(SeqCst) == 1);
    wait_for("its place is free", || server.post("/predict", r#"{"inputs": "x"}"#).status == 200);
    let text = server.get("/metrics");
    assert!(text.text().contains("forebay_requests_total{route=\"/predict\",code=\"499\"} 1"), "{}", text.text());
}

#[test]
fn a_page_of_another_site_cannot_reload() {
    let server = Server::start(Takes::Texts);
    assert_eq!(server.post("/admin/reload", "").status, 200);
    let from = |origin: &str| server.open().ask("POST", "/admin/reload", &[("origin", origin)], b"").status;
    assert_eq!((from("http://test"), from("https://evil.example"), from("null")), (200, 403, 403));
}
