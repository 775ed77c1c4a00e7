//! What every answer must be, whatever was asked.

use serde_json::Value;

use super::{client::Response, fake::Doing, request::Request};

/// Checks an answer; `doing` is what the model did to the request.
pub(super) fn check(request: &Request, response: &Response, doing: Option<Doing>) {
    let status = response.status;
    check_status(status, doing, request.is_in_a_hurry());
    let Some(id) = response.header("x-request-id") else {
        // What is no HTTP has no id.
        assert!(matches!(status, 400 | 414 | 431) && response.body.is_empty(), "{response:?}");
        return;
    };
    assert!(request.id().is_none_or(|given| given == id), "{id}");
    if request.method == "HEAD" {
        return;
    }
    if status >= 400 {
        check_problem(response, id, request.path.starts_with(b"/v2"));
    } else {
        assert_eq!(status, 200);
        check_body(response);
    }
}

/// Whether a status code is the client's doing, or what the model did.
pub(super) fn check_status(status: u16, doing: Option<Doing>, in_a_hurry: bool) {
    match doing {
        _ if in_a_hurry && matches!(status, 408 | 504) => {}
        Some(Doing::Must(expected)) => assert_eq!(status, expected),
        Some(Doing::May(code)) => assert!(status < 500 || status == code, "{status} for {code}"),
        None => assert!((200..500).contains(&status), "{status} and the model did nothing"),
    }
}

/// One shape of errors, and the protocol v2's own.
fn check_problem(response: &Response, id: &str, v2: bool) {
    assert_eq!(response.header("content-type"), Some("application/json"), "{response:?}");
    let whole = json(&response.body);
    let (error, text) = if v2 { (&whole, "error") } else { (&whole["error"], "message") };
    for key in ["type", text, "request_id"] {
        assert!(error[key].as_str().is_some_and(|text| !text.is_empty()), "no {key}: {whole}");
    }
    assert_eq!(error["request_id"], id);
    assert!(error.get("field").is_none_or(Value::is_string) && error.get("item").is_none_or(Value::is_u64), "{whole}");
    match response.status {
        405 => assert!(response.header("allow").is_some(), "{response:?}"),
        429 | 503 => {
            let seconds = response.header("retry-after").and_then(|text| text.parse::<u64>().ok());
            assert!(seconds.is_some_and(|seconds| seconds > 0), "{response:?}");
        }
        _ => {}
    }
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(bytes)))
}

fn check_body(response: &Response) {
    let body = &response.body;
    match response.header("content-type") {
        Some("application/json") => drop(json(body)),
        Some("application/octet-stream") => check_binary(response),
        Some("text/event-stream") => check_events(std::str::from_utf8(body).unwrap()),
        Some(text) if text.starts_with("text/") || text.starts_with("application/openmetrics-text") => {
            assert!(std::str::from_utf8(body).is_ok_and(|text| !text.is_empty()));
        }
        // Readiness of a model is said by the status alone.
        None => assert!(body.is_empty(), "{response:?}"),
        Some(other) => panic!("{other}"),
    }
}

/// JSON as long as the header says, and the bytes of the tensors that it names.
fn check_binary(response: &Response) {
    let length: usize = response.header("inference-header-content-length").unwrap().parse().unwrap();
    let (head, tail) = response.body.split_at(length);
    let head = json(head);
    let sizes = head["outputs"].as_array().unwrap().iter().map(|one| match &one["parameters"]["binary_data_size"] {
        Value::Null => 0,
        size => size.as_u64().unwrap(),
    });
    assert_eq!(sizes.sum::<u64>(), tail.len() as u64, "{head}");
}

/// Server-sent events, each with JSON.
fn check_events(text: &str) {
    let events = text.strip_suffix("\n\n").unwrap_or_else(|| panic!("the last one is cut: {text:?}"));
    let mut ended = false;
    for event in events.split("\n\n") {
        assert!(!ended, "{event:?} after the end");
        let data = match event.strip_prefix("event: error\n") {
            Some(rest) => {
                ended = true;
                rest
            }
            None => event,
        };
        let data = json(data.strip_prefix("data: ").unwrap_or_else(|| panic!("{event:?}")).as_bytes());
        assert!(if ended { data["error"]["type"].is_string() } else { data["item"].is_u64() }, "{data}");
    }
}
