//! `/v1/embeddings` as OpenAI's clients use it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use forebay_serve::backend::Takes;
use serde_json::json;

use crate::client::Server;

#[test]
fn embeddings_come_as_numbers_or_base64_with_usage() {
    let server = Server::start(Takes::Texts);
    let one = server.post("/v1/embeddings", r#"{"model": "fake", "input": "a b c", "user": "someone"}"#).json();
    assert_eq!(one["data"][0]["embedding"][1], json!(0.5));
    assert_eq!(one["data"][0]["index"], json!(0));
    assert_eq!(one["usage"], json!({"prompt_tokens": 3, "total_tokens": 3}));
    assert_eq!(one["model"], json!("fake"));
    let two = server.post("/v1/embeddings", r#"{"input": ["a", "[[b c"], "encoding_format": "base64"}"#).json();
    let bytes = STANDARD.decode(two["data"][1]["embedding"].as_str().unwrap()).unwrap();
    assert_eq!(bytes.len(), 16);
    assert_eq!(&bytes[4..8], 0.5f32.to_le_bytes());
}

#[test]
fn a_text_may_have_brackets_in_it() {
    let server = Server::start(Takes::Texts);
    for body in [
        r#"{"input": "see [[wiki]] link"}"#,
        r#"{"input": "[[1, 2]]"}"#,
        r#"{"input": "{}"}"#,
        r#"{"input": ["[[1", "[\"a\", \"b\"]"]}"#,
    ] {
        let answer = server.post("/v1/embeddings", body);
        assert_eq!(answer.status, 200, "{body}: {answer:?}");
    }
}

#[test]
fn what_is_not_taken_is_named() {
    let server = Server::start(Takes::Texts);
    for (body, status, field) in [
        (r#"{"input": [1, 2]}"#, 422, "input"),
        (r#"{"input": [[1, 2]]}"#, 422, "input"),
        (r#"{"input": [ [1, 2] ]}"#, 422, "input"),
        (r#"{"input": ["a", [1, 2]]}"#, 422, "input[1]"),
        (r#"{"input": 3}"#, 422, "input"),
        (r#"{"input": [["a", "b"]]}"#, 422, "input[0]"),
        (r#"{"input": [ ["a", "b"]]}"#, 422, "input[0]"),
        (r#"{"input": ["x", ["a", "b"]]}"#, 422, "input[1]"),
        (r#"{"input": [["a"]]}"#, 422, "input[0]"),
        (r#"{"input": ["a", 3]}"#, 422, "input[1]"),
        (r#"{"input": []}"#, 422, "input"),
        (r#"{"input": {}}"#, 422, "input"),
        (r#"{}"#, 422, "input"),
        (r#"{"input": "a", "model": "gpt"}"#, 404, "model"),
        (r#"{"input": "a", "model": 3}"#, 422, "model"),
        (r#"{"input": "a", "encoding_format": "hex"}"#, 422, "encoding_format"),
        (r#"{"input": "a", "dimensions": 3}"#, 422, "dimensions"),
        (r#"{"input": ["a", "bad"]}"#, 422, "input[1]"),
        (r#"{"input": "bad"}"#, 422, "input"),
        (r#"{"input": ["bad", "raises"]}"#, 500, ""),
    ] {
        let problem = server.post("/v1/embeddings", body).problem();
        assert_eq!((problem.0, problem.2.as_str()), (status, field), "{body}: {problem:?}");
    }
    let nine = server.post("/v1/embeddings", &format!("{{\"input\": {:?}}}", ["x"; 9])).problem();
    assert_eq!((nine.0, nine.1.as_str()), (413, "too_large"));
    let tokens = server.post("/v1/embeddings", r#"{"input": [[1, 2]]}"#).problem();
    assert_eq!(tokens.3, "tokens are not taken; send texts");
    assert_eq!(server.post("/v1/embeddings", r#"{"input": "a", "dimensions": 4}"#).status, 200);
    assert_eq!(server.get("/v1/models").json()["data"][0]["id"], json!("fake"));
    let images = Server::start(Takes::Images).post("/v1/embeddings", r#"{"input": "a"}"#).problem();
    assert_eq!((images.0, images.1.as_str()), (422, "unsupported"));
}
