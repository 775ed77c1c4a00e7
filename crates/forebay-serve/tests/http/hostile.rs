//! Clients that are broken, slow or ill-meaning. After each the service answers as before.

use std::{
    io::Write as _,
    net::Shutdown,
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

use forebay_serve::backend::Takes;

use crate::{
    client::{Server, is_alone, peak_bytes, run_alone, wait_for},
    fake::model,
};

fn quick(flags: &[(&str, &str)]) -> Server {
    let base = [("server.header_timeout_s", "0.2"), ("server.body_timeout_s", "0.2"), ("limits.body_bytes", "4096")];
    Server::with(model(Takes::Texts), &[&base[..], flags].concat())
}

fn still_well(server: &Server) {
    assert_eq!(server.post("/predict", r#"{"inputs": "abc"}"#).status, 200);
    wait_for("no place is taken", || server.get("/metrics").text().contains("forebay_in_flight_requests 0.0"));
}

#[test]
fn what_is_no_json_is_refused() {
    let server = Server::start(Takes::Texts);
    let mut connection = server.open();
    for body in [
        "",
        " ",
        "{",
        "inputs",
        r#"{"inputs": "a"} x"#,
        r#"{"inputs": NaN}"#,
        r#"{"inputs": "\ud800"#,
        "{\"inputs\": \"\u{1}\"}",
        "\u{feff}{}",
    ] {
        let problem = connection.ask("POST", "/predict", &[], body.as_bytes()).problem();
        assert_eq!((problem.0, problem.1.as_str()), (400, "malformed"), "{body:?}");
    }
    let problem = connection.ask("POST", "/predict", &[], b"{\"inputs\": \"\xff\"}").problem();
    assert!(problem.0 == 400 || problem.0 == 422, "{problem:?}");
    for (body, field) in [
        ("[]", "body"),
        ("3", "body"),
        ("{}", "inputs"),
        (r#"{"inputs": null}"#, "inputs"),
        (r#"{"inputs": 3}"#, "inputs"),
        (r#"{"inputs": ["a", 3]}"#, "inputs[1]"),
        (r#"{"inputs": ["a", ["b"]]}"#, "inputs[1]"),
        (r#"{"inputs": "a", "parameters": 3}"#, "parameters"),
        (r#"{"inputs": "a", "input": 3}"#, "input"),
    ] {
        let problem = connection.ask("POST", "/predict", &[], body.as_bytes()).problem();
        assert_eq!((problem.0, problem.2.as_str()), (422, field), "{body}: {problem:?}");
    }
    still_well(&server);
}

#[test]
fn json_that_is_nested_without_end_is_refused() {
    let server = Server::start(Takes::Texts);
    let tensors = Server::start(Takes::Tensors);
    let deep = 200_000;
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nested = format!("{}1{}", open.repeat(deep), close.repeat(deep));
        for body in [
            nested.clone(),
            format!("{{\"inputs\": {nested}}}"),
            format!("{{\"inputs\": \"a\", \"parameters\": {nested}}}"),
        ] {
            for (server, path) in [
                (&server, "/predict"),
                (&server, "/v1/embeddings"),
                (&tensors, "/predict"),
                (&tensors, "/v2/models/fake/infer"),
            ] {
                let status = server.post(path, &body).status;
                assert!(status == 400 || status == 422, "{path}: {status}");
            }
        }
    }
    still_well(&server);
}

#[test]
fn parameters_are_no_lists_or_objects_and_not_many() {
    let server = Server::start(Takes::Texts);
    let body = |parameters: &str| format!("{{\"inputs\": \"a\", \"parameters\": {parameters}}}");
    let named = |count: usize| {
        let all: Vec<String> = (0..count).map(|i| format!("\"k{i}\": 1")).collect();
        format!("{{{}}}", all.join(", "))
    };
    for (parameters, field, said) in [
        (
            r#"{"k": [1]}"#.to_owned(),
            "parameters.k",
            "invalid type: sequence, expected a number, a text, true or false",
        ),
        (r#"{"k": {}}"#.to_owned(), "parameters.k", "invalid type: map, expected a number, a text, true or false"),
        (named(65), "parameters", "more than 64"),
    ] {
        let problem = server.post("/predict", &body(&parameters)).problem();
        assert_eq!(problem, (422, "invalid".to_owned(), field.to_owned(), said.to_owned()));
    }
    let all = r#"{"a": 1, "b": -1, "c": 0.5, "d": 18446744073709551615, "e": "x", "f": true, "g": null}"#;
    for parameters in [all, &named(64), "null", "{}"] {
        assert_eq!(server.post("/predict", &body(parameters)).status, 200, "{parameters}");
    }
    server.post("/predict", &body(all));
    assert_eq!(*server.seen.parameters.lock().unwrap(), all.replace(' ', ""));
}

/// What the process of the next test does.
#[test]
fn a_server_whose_parameters_are_lists() {
    if !is_alone() {
        return;
    }
    let server = Server::start(Takes::Texts);
    for entry in ["{\"\":0},", "[0],", "0,"] {
        let list = entry.repeat((10 << 20) / entry.len() - 100);
        let body = format!("{{\"inputs\": \"a\", \"parameters\": {{\"k\": [{list}0]}}}}");
        let before = peak_bytes();
        let problem = server.post("/predict", &body).problem();
        assert_eq!((problem.0, problem.2.as_str()), (422, "parameters.k"));
        let more = peak_bytes() - before;
        assert!(more < 64 << 20, "{entry}: {more} bytes");
    }
}

/// What the process of the next test does.
#[test]
fn a_server_that_is_sent_millions_of_items() {
    if !is_alone() {
        return;
    }
    let (texts, tensors) = (Server::start(Takes::Texts), Server::start(Takes::Tensors));
    let many = |entry: &str, last: &str| entry.repeat((10 << 20) / entry.len() - 100) + last;
    let list = || many("\"\",", "\"\"");
    let bytes = "\"name\":\"text\",\"shape\":[1],\"datatype\":\"BYTES\"";
    for (server, path, body, status) in [
        (&texts, "/predict", format!("{{\"inputs\":[{}]}}", list()), 413),
        (&texts, "/predict", format!("{{\"inputs\":[[\"a\",\"b\"],{}]}}", list()), 413),
        (&texts, "/predict", format!("{{\"inputs\":[[{}]]}}", list()), 422),
        (&texts, "/v1/embeddings", format!("{{\"input\":[{}]}}", list()), 413),
        (&texts, "/v2/models/fake/infer", format!("{{\"inputs\":[{{{bytes},\"data\":[{}]}}]}}", list()), 413),
        (&tensors, "/predict", format!("{{\"inputs\":{{{}}}}}", many("\"\":0,", "\"x\":0")), 422),
    ] {
        let before = peak_bytes();
        assert_eq!(server.post(path, &body).status, status, "{path} {}", &body[..40]);
        let more = peak_bytes() - before;
        assert!(more < 64 << 20, "{path} {}: {more} bytes", &body[..40]);
    }
}

#[test]
fn entries_take_no_more_memory_than_a_body() {
    run_alone("hostile::a_server_whose_parameters_are_lists");
    run_alone("hostile::a_server_that_is_sent_millions_of_items");
}

#[test]
fn a_body_that_says_it_is_huge_is_refused_before_it_comes() {
    let server = quick(&[]);
    for length in ["5000", "99999999999", "9223372036854775807"] {
        let mut connection = server.open();
        let headers = [("content-length", length), ("expect", "100-continue")];
        let answer = connection.ask("POST", "/predict", &headers, b"");
        assert_eq!(answer.problem().1, "too_large", "{length}");
        assert!(connection.closed());
    }
    for length in ["-1", "18446744073709551615", "18446744073709551616", "1, 2", "0x10"] {
        let mut connection = server.open();
        let head = format!("POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
        connection.send(head.as_bytes());
        let status = connection.refused();
        assert!(status.is_some_and(|status| status == 400 || status == 431), "{length}: {status:?}");
    }
    assert_eq!(server.seen.calls.load(SeqCst), 0);
    still_well(&server);
}

#[test]
fn a_client_that_sends_too_much_without_asking_hears_why() {
    let server = quick(&[]);
    let long = vec![b'x'; 8 << 20];
    let head = format!("POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", long.len());
    let chunked = "POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n800000\r\n";
    for head in [head.as_str(), chunked] {
        let mut connection = server.open();
        // All of it, before a byte of the answer is read.
        connection.send(&[head.as_bytes(), &long].concat());
        assert_eq!(connection.response(false).problem().1, "too_large");
        assert!(connection.closed());
    }
    still_well(&server);
}

#[test]
fn a_chunked_body_ends_at_the_limit() {
    let server = quick(&[]);
    let mut connection = server.open();
    connection.send(b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    let chunk = format!("400\r\n{}\r\n", "x".repeat(0x400));
    for _ in 0..5 {
        connection.send(chunk.as_bytes());
    }
    assert_eq!(connection.response(false).problem().1, "too_large");
    // Just what may come, in pieces, does.
    let text = "y".repeat(3000);
    let mut connection = server.open();
    connection.send(b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nc\r\n{\"inputs\": \"\r\n");
    for piece in text.as_bytes().chunks(1000) {
        connection.send(format!("3e8\r\n{}\r\n", std::str::from_utf8(piece).unwrap()).as_bytes());
    }
    connection.send(b"2\r\n\"}\r\n0\r\n\r\n");
    let answer = connection.response(false);
    assert!(answer.text().starts_with(r#"{"outputs":{"embedding":[3000.0,"#), "{answer:?}");
    still_well(&server);
}

#[test]
fn headers_that_trickle_cost_the_connection() {
    let server = quick(&[]);
    let start = Instant::now();
    let mut nothing = server.open();
    let mut half = server.open();
    half.send(b"POST /predict HTTP/1.1\r\nhost: x\r\nx-a: ");
    let mut trickle = server.open();
    trickle.send(b"POST /predict HTTP/1.1\r\n");
    while trickle.stream.get_mut().write_all(b"x-a: b\r\n").is_ok() && start.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(start.elapsed() >= Duration::from_millis(150));
    assert!(start.elapsed() < Duration::from_secs(10), "it was let go on");
    assert!(nothing.closed());
    wait_for("what is left of it is read", || half.closed());
    still_well(&server);
}

#[test]
fn a_body_that_stalls_times_out() {
    let server = quick(&[]);
    let mut connection = server.open();
    connection.send(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n{\"inputs\"");
    let answer = connection.response(false);
    assert_eq!((answer.status, answer.problem().1.as_str()), (408, "body_timeout"));
    assert!(connection.closed());
    still_well(&server);
}

#[test]
fn a_body_that_stalls_until_the_request_s_time_is_up_has_timed_out_all_the_same() {
    // The time of a request begins before that of its body, so of equal limits it is over first.
    for flags in [&[("limits.request_timeout_s", "0.2")][..], &[("limits.request_timeout_s", "0.1")]] {
        let server = quick(flags);
        let mut connection = server.open();
        connection.send(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n{\"inputs\"");
        let problem = connection.response(false).problem();
        assert_eq!((problem.0, problem.1.as_str()), (408, "body_timeout"));
        assert!(problem.3.contains("limits.request_timeout_s"), "{problem:?}");
        still_well(&server);
    }
}

#[test]
fn a_body_that_is_later_than_its_client_waits_has_missed_the_deadline() {
    let server = quick(&[("server.body_timeout_s", "30")]);
    let mut connection = server.open();
    let head = "POST /predict HTTP/1.1\r\nhost: x\r\nx-request-timeout-ms: 50\r\ncontent-length: 20\r\n\r\n";
    connection.send(head.as_bytes());
    let answer = connection.response(false);
    assert_eq!((answer.status, answer.problem().1.as_str()), (504, "deadline"));
    still_well(&server);
}

#[test]
fn half_a_request_and_then_nothing_leaves_no_trace() {
    let server = quick(&[("server.body_timeout_s", "30"), ("limits.in_flight", "1")]);
    for half in ["POST /predict HT", "POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n{\"inputs\""] {
        let mut connection = server.open();
        connection.send(half.as_bytes());
        if half.contains("\r\n\r\n") {
            // Else it might come only when the next request has been answered, and be in the way of the one after.
            wait_for("it has a place", || server.get("/metrics").text().contains("forebay_in_flight_requests 1.0"));
        }
        connection.stream.get_mut().shutdown(Shutdown::Both).unwrap();
        wait_for("its place is free", || server.post("/predict", r#"{"inputs": "x"}"#).status == 200);
    }
    still_well(&server);
}

#[test]
fn requests_sent_at_once_are_answered_in_order() {
    let server = Server::start(Takes::Texts);
    let mut connection = server.open();
    let mut all = Vec::new();
    for i in 0..20 {
        let body = format!("{{\"inputs\": \"{}\"}}", "x".repeat(i));
        all.extend(
            format!("POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len()).bytes(),
        );
    }
    connection.send(&all);
    for i in 0..20 {
        let answer = connection.response(false);
        assert!(answer.text().contains(&format!("[{i}.0,")), "{i}: {}", answer.text());
    }
}

#[test]
fn methods_and_paths_that_there_are_not() {
    let server = Server::start(Takes::Texts);
    let mut connection = server.open();
    let head = connection.ask("HEAD", "/livez", &[], b"");
    assert_eq!((head.status, head.header("content-length")), (200, Some("5")));
    for (method, path, allow) in [
        ("GET", "/predict", "POST"),
        ("OPTIONS", "/predict", "POST"),
        ("DELETE", "/livez", "GET, HEAD"),
        ("PUT", "/v2/models/fake/infer", "POST"),
    ] {
        let answer = connection.ask(method, path, &[], b"");
        assert_eq!((answer.problem().0, answer.header("allow")), (405, Some(allow)), "{method} {path}");
    }
    for path in ["/nowhere", "/v2/models", "/v3", "/predict/", "/../predict", "//predict", "/%70redict"] {
        let answer = connection.ask("GET", path, &[], b"");
        assert_eq!(answer.problem().1, "not_found", "{path}");
    }
    for line in ["GARBAGE\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\u{16}\u{3}\u{1}\r\n\r\n", "GET  / HTTP/1.1\r\n\r\n"] {
        let mut connection = server.open();
        connection.send(line.as_bytes());
        let status = connection.refused();
        assert!(status.is_some_and(|status| (400..=505).contains(&status)), "{line:?}: {status:?}");
    }
    let mut connection = server.open();
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(70_000));
    let _ = connection.stream.get_mut().write_all(long.as_bytes());
    let status = connection.refused();
    assert!(status == Some(414), "{status:?}");
    let mut connection = server.open();
    let many: String = (0..200).map(|i| format!("x-{i}: y\r\n")).collect();
    let _ = connection.stream.get_mut().write_all(format!("GET / HTTP/1.1\r\nhost: x\r\n{many}\r\n").as_bytes());
    assert_eq!(connection.head().status, 431);
    still_well(&server);
}

#[test]
fn compressed_bodies_and_other_types_are_refused() {
    let server = Server::start(Takes::Texts);
    for encoding in ["gzip", "br", "deflate, gzip"] {
        let answer = server.open().ask("POST", "/predict", &[("content-encoding", encoding)], b"x");
        assert_eq!(answer.problem().1, "unsupported_type", "{encoding}");
        assert_eq!(answer.status, 415);
    }
    let same = [("content-encoding", "identity")];
    assert_eq!(server.open().ask("POST", "/predict", &same, br#"{"inputs": "x"}"#).status, 200);
    for kind in ["text/html", "application/xml", "image", "", "multipart/form-data"] {
        for path in ["/predict", "/v1/embeddings", "/tokenize", "/v2/models/fake/infer"] {
            let answer = server.open().ask("POST", path, &[("content-type", kind)], b"x");
            assert!(
                answer.status == 415 || kind.starts_with("multipart") && answer.status == 400,
                "{path} {kind}: {answer:?}"
            );
        }
    }
    still_well(&server);
}

#[test]
fn two_lengths_or_a_length_and_chunks_are_no_way_to_smuggle() {
    let server = Server::start(Takes::Texts);
    let both = "POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut connection = server.open();
    connection.send(format!("{both}0\r\n\r\nGET /livez HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes());
    // What hides behind the length or the chunks is not answered.
    let status = connection.refused();
    assert!(status == Some(400), "{status:?}");
    let two = "POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\n12345";
    let mut connection = server.open();
    connection.send(two.as_bytes());
    let status = connection.refused();
    assert!(status == Some(400), "{status:?}");
    still_well(&server);
}
