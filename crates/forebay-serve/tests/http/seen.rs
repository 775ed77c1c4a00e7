//! What can be seen from outside: metrics, status, traces.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    sync::mpsc,
    thread,
};

use forebay_serve::{
    backend::Takes,
    config::{LogConfig, LogFormat},
    logs,
    metrics::Stage,
};
use serde_json::{Value, json};

use crate::{
    client::{Server, WATCHDOG, is_alone, run_alone},
    fake::model,
};

#[test]
fn metrics_have_help_units_and_what_happened() {
    let server = Server::start(Takes::Texts);
    server.post("/predict", r#"{"inputs": "x"}"#);
    server.post("/predict", r#"{"inputs": 3}"#);
    server.get("/nowhere");
    server.metrics.batch(4, 100, 25);
    server.metrics.restart(3);
    for stage in Stage::ALL {
        server.metrics.stage(stage, 0.002);
    }
    let answer = server.get("/metrics");
    assert!(answer.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let text = answer.text();
    for line in [
        "forebay_requests_total{route=\"/predict\",code=\"200\"} 1",
        "forebay_requests_total{route=\"/predict\",code=\"422\"} 1",
        "forebay_requests_total{route=\"other\",code=\"404\"} 1",
        "forebay_request_seconds_count{route=\"/predict\"} 2",
        "forebay_stage_seconds_bucket{le=\"0.0025\",stage=\"hand_over\"} 1",
        "forebay_stage_seconds_count{stage=\"batch_wait\"} 1",
        "forebay_rejections_total{reason=\"invalid\"} 1",
        "forebay_batch_items_bucket{le=\"4.0\"} 1",
        "forebay_batch_padding_ratios_sum 0.25",
        "forebay_worker_restarts_total{worker=\"0\"} 2",
        "forebay_worker_restarts_total{worker=\"3\"} 1",
        "forebay_ring_slots_used{worker=\"0\"} 1.0",
        "forebay_oldest_lease_seconds{worker=\"0\"} 0.5",
        "forebay_queued_items 3.0",
        "forebay_worker_resident_bytes{worker=\"0\"} 123456.0",
        "forebay_in_flight_requests 0.0",
        "# EOF",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    // Every family has a type and a help text, and none has two.
    let names = |kind: &str| {
        let all = text.lines().filter_map(|line| line.strip_prefix(kind));
        all.map(|line| line.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (types, helps) = (names("# TYPE "), names("# HELP "));
    assert_eq!(types, helps);
    let mut unique = types.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), types.len());
    assert!(names("# UNIT ").contains(&"forebay_request_seconds".to_owned()));
}

fn logs() -> logs::Guard {
    logs::init(&LogConfig { format: LogFormat::Json, ..LogConfig::default() }).unwrap()
}

/// The lines of requests, of a test that runs in a process of its own; each with its length.
fn logged(test: &str) -> Vec<(Value, usize)> {
    let text = String::from_utf8(run_alone(test).stderr).unwrap();
    let lines = text.lines().map(|line| (serde_json::from_str::<Value>(line).unwrap(), line.len()));
    lines.filter(|(line, _)| line["message"] == "request").collect()
}

/// What the process of the next test does.
#[test]
fn a_server_that_logs() {
    if !is_alone() {
        return;
    }
    let _guard = logs();
    let server = Server::with(model(Takes::Texts), &[("log.requests", "true")]);
    let mut connection = server.open();
    for (id, text) in [("good", "x"), ("bad", "boom")] {
        let body = format!("{{\"inputs\": {text:?}}}");
        connection.ask("POST", "/predict", &[("x-request-id", id)], body.as_bytes());
    }
    connection.ask("GET", "/livez", &[("x-request-id", "probe")], b"");
}

#[test]
fn the_line_of_a_request_has_its_id_its_status_and_why() {
    let text = logged("seen::a_server_that_logs");
    // Probes are asked for too often to have one.
    let [(good, _), (bad, _)] = &text[..] else { panic!("{text:?}") };
    let shown = |line: &Value| ["id", "method", "path", "status", "why", "text"].map(|key| line[key].clone());
    let null = Value::Null;
    assert_eq!(shown(good), [json!("good"), json!("POST"), json!("/predict"), json!(200), null.clone(), null]);
    let why = [json!("model_failed"), json!("the model failed: ValueError: no")];
    assert_eq!(shown(bad)[..4], [json!("bad"), json!("POST"), json!("/predict"), json!(500)]);
    assert_eq!(shown(bad)[4..], why);
    assert!(good["ms"].as_f64().is_some_and(|ms| ms > 0.0), "{text:?}");
}

/// What the process of the next test does.
#[test]
fn a_server_that_is_told_much() {
    if !is_alone() {
        return;
    }
    let _guard = logs();
    let server = Server::with(model(Takes::Texts), &[("log.requests", "true")]);
    let long = "x\u{20ac}".repeat(1 << 18);
    let tensor = |name: &str| json!({"inputs": [{"name": name, "shape": [1], "datatype": "BYTES", "data": ["x"]}]});
    for (path, body, status) in [
        ("/v1/embeddings", json!({"input": "x", "model": long}), 404),
        ("/v1/embeddings", json!({"input": "x", "encoding_format": long}), 422),
        ("/predict", json!({"inputs": "x", &long: 1}), 422),
        ("/predict", json!({"inputs": "x", "parameters": long}), 422),
        ("/tokenize", json!({"inputs": "x", "special_tokens": long}), 422),
        ("/v2/models/fake/infer", tensor(&long), 422),
    ] {
        let answer = server.post(path, &body.to_string());
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.body.len() < 4096, "{path}: {}", answer.body.len());
        answer.problem();
    }
    let long = "X".repeat(60_000);
    let there_is_none = server.get(&format!("/{long}"));
    assert!(there_is_none.status == 404 && there_is_none.body.len() < 4096);
    assert_eq!(server.open().ask(&long, "/predict", &[], b"").status, 405);
}

#[test]
fn what_clients_say_at_length_is_cut_in_answers_and_lines() {
    let lines = logged("seen::a_server_that_is_told_much");
    assert_eq!(lines.len(), 8);
    for (line, length) in &lines {
        assert!(*length < 4096, "{length}: {line}");
    }
    assert!(lines[0].0["text"].as_str().unwrap().ends_with('…'), "{lines:?}");
    assert!(lines[6].0["path"].as_str().unwrap().ends_with('…'), "{lines:?}");
    assert!(lines[7].0["method"].as_str().unwrap().ends_with('…'), "{lines:?}");
}

#[test]
fn the_documentation_lists_every_metric() {
    let page = include_str!("../../../../docs/serve/metrics.md");
    let server = Server::start(Takes::Texts);
    let text = server.get("/metrics");
    for line in text.text().lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let suffix = if kind == "counter" {
            "_total"
        } else if kind == "info" {
            "_info"
        } else {
            ""
        };
        assert!(page.contains(&format!("| `{name}{suffix}` |")), "docs/serve/metrics.md is without {name}{suffix}");
    }
}

#[test]
fn the_status_has_what_the_page_shows() {
    let server = Server::start(Takes::Texts);
    server.post("/predict", r#"{"inputs": "x"}"#);
    let status = server.get("/status").json();
    assert_eq!((&status["health"], &status["queued_items"]), (&json!("ready"), &json!(3)));
    assert_eq!(status["workers"][0]["slots_used"], json!(1));
    assert_eq!(status["stages"][0], json!({"stage": "parse", "seconds": status["stages"][0]["seconds"]}));
    assert_eq!(status["stages"][0]["seconds"]["count"], json!(1));
    let route = &status["routes"][0];
    assert_eq!((&route["route"], &route["seconds"]["count"]), (&json!("/predict"), &json!(1)));
    let page = server.get("/");
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
}

/// A collector: gives the bodies of what it is sent.
fn collector() -> (String, mpsc::Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            loop {
                let (mut line, mut length, mut first) = (String::new(), 0, String::new());
                while stream.read_line(&mut line).is_ok_and(|n| n > 2) {
                    let lower = line.to_ascii_lowercase();
                    if let Some(value) = lower.strip_prefix("content-length: ") {
                        length = value.trim().parse().unwrap();
                    }
                    if first.is_empty() {
                        first.clone_from(&line);
                    }
                    line.clear();
                }
                if first.is_empty() {
                    break;
                }
                assert!(first.starts_with("POST /v1/traces "), "{first}");
                let mut body = vec![0; length];
                stream.read_exact(&mut body).unwrap();
                stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();
                if tell.send(serde_json::from_slice(&body).unwrap()).is_err() {
                    return;
                }
            }
        }
    });
    (address, told)
}

#[test]
fn a_request_s_span_continues_the_client_s_trace_and_reaches_the_collector() {
    let (address, told) = collector();
    let server = Server::with(model(Takes::Texts), &[("trace.otlp", &address)]);
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [("traceparent", parent), ("x-request-id", "me")];
    assert_eq!(server.open().ask("POST", "/predict", &headers, br#"{"inputs": "boom"}"#).status, 500);
    // Without a traceparent nothing is recorded: trace.sample is 0.
    assert_eq!(server.post("/predict", r#"{"inputs": "x"}"#).status, 200);
    let sent = told.recv_timeout(WATCHDOG).unwrap();
    let spans = sent["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone();
    assert_eq!(spans.len(), 1);
    let span = &spans[0];
    assert_eq!(span["traceId"], json!("4bf92f3577b34da6a3ce929d0e0e4736"));
    assert_eq!(span["parentSpanId"], json!("00f067aa0ba902b7"));
    assert_eq!((&span["name"], &span["kind"]), (&json!("/predict"), &json!(2)));
    assert_eq!(span["status"], json!({"code": 2, "message": "the model failed: ValueError: no"}));
    let attribute = |key: &str| {
        span["attributes"].as_array().unwrap().iter().find(|one| one["key"] == key).unwrap()["value"].clone()
    };
    assert_eq!(attribute("http.response.status_code"), json!({"intValue": "500"}));
    assert_eq!(attribute("forebay.request_id"), json!({"stringValue": "me"}));
    let (start, end) = (span["startTimeUnixNano"].as_str().unwrap(), span["endTimeUnixNano"].as_str().unwrap());
    assert!(start.parse::<u64>().unwrap() <= end.parse::<u64>().unwrap());
    assert_eq!(
        sent["resourceSpans"][0]["resource"]["attributes"][0]["value"]["stringValue"],
        json!("forebay-serve:fake")
    );
}

#[test]
fn what_clients_say_at_length_is_cut_in_spans() {
    let (address, told) = collector();
    let server = Server::with(model(Takes::Texts), &[("trace.otlp", &address), ("trace.sample", "1")]);
    assert_eq!(server.open().ask(&"X".repeat(9000), &format!("/{}", "x".repeat(9000)), &[], b"").status, 404);
    let sent = told.recv_timeout(WATCHDOG).unwrap().to_string();
    assert!(sent.contains("XXXX") && sent.contains("/xxxx") && sent.len() < 4096, "{sent}");
}

#[test]
fn spans_of_the_last_requests_are_sent_before_the_end() {
    let (address, told) = collector();
    let mut server = Server::with(model(Takes::Texts), &[("trace.otlp", &address), ("trace.sample", "1")]);
    for _ in 0..3 {
        assert_eq!(server.post("/predict", r#"{"inputs": "x"}"#).status, 200);
    }
    server.stop();
    server.join();
    // They were there when the server ended: nothing is waited for.
    let spans = |sent: Value| sent["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().len();
    assert_eq!(told.try_iter().map(spans).sum::<usize>(), 3);
}

#[test]
fn the_backend_is_given_the_place_in_the_trace() {
    let server = Server::start(Takes::Texts);
    let headers = [("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")];
    server.open().ask("POST", "/predict", &headers, br#"{"inputs": "x"}"#);
    let trace = server.seen.trace.lock().unwrap().unwrap();
    assert_eq!((trace.trace_id[0], trace.span_id[1], trace.sampled), (0x4b, 0xf0, true));
}

#[test]
fn a_collector_that_is_not_there_costs_spans_and_nothing_else() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", taken.local_addr().unwrap());
    drop(taken);
    let server = Server::with(model(Takes::Texts), &[("trace.otlp", &address), ("trace.sample", "1")]);
    for _ in 0..3 {
        assert_eq!(server.post("/predict", r#"{"inputs": "x"}"#).status, 200);
    }
    crate::client::wait_for("they are counted", || {
        server.get("/metrics").text().lines().any(|line| {
            line.strip_prefix("forebay_trace_spans_dropped_total ").is_some_and(|n| n.parse::<f64>().unwrap() >= 3.0)
        })
    });
}
