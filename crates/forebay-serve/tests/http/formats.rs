//! `/predict`, `/tokenize` and what is told about the model.

use forebay_serve::backend::Takes;
use serde_json::json;

use crate::{client::Server, fake::model};

#[test]
fn a_text_alone_is_answered_alone_and_a_list_by_a_list() {
    let server = Server::start(Takes::Texts);
    let one = server.post("/predict", r#"{"inputs": "abc"}"#);
    assert_eq!((one.status, one.text()), (200, r#"{"outputs":{"embedding":[3.0,0.5,0.33333334,0.25]}}"#));
    let two = server.post("/predict", r#"{"inputs": ["ab", "\u00e9"], "parameters": {"k": 3}}"#);
    assert_eq!(
        two.text(),
        r#"{"outputs":[{"embedding":[2.0,0.5,0.33333334,0.25]},{"embedding":[2.0,0.5,0.33333334,0.25]}]}"#
    );
    assert_eq!(*server.seen.parameters.lock().unwrap(), r#"{"k":3}"#);
    let pairs = server.post("/predict", r#"{"inputs": [["ab", "cde"], "x"]}"#);
    assert_eq!(pairs.json()["outputs"][0]["embedding"][0], json!(5.0));
}

#[test]
fn a_bad_item_leaves_its_neighbours_their_answers() {
    let server = Server::start(Takes::Texts);
    let some = server.post("/predict", r#"{"inputs": ["abc", "bad", "raises"]}"#);
    assert_eq!(some.status, 200);
    let outputs = some.json()["outputs"].clone();
    assert_eq!(outputs[0]["embedding"][0], json!(3.0));
    assert_eq!(outputs[1]["error"], json!({"type": "invalid", "message": "too long: 17 tokens, 16 may be"}));
    assert_eq!(outputs[2]["error"], json!({"type": "model_failed", "message": "ValueError: no"}));
    let alone = server.post("/predict", r#"{"inputs": "bad"}"#).problem();
    assert_eq!((alone.0, alone.2.as_str()), (422, "inputs"));
    assert_eq!(server.post("/predict", r#"{"inputs": ["raises", "raises"]}"#).status, 500);
    // It is the model's fault wherever that stands: asking again may help.
    for mixed in [r#"["bad", "raises"]"#, r#"["raises", "bad"]"#] {
        let problem = server.post("/predict", &format!("{{\"inputs\": {mixed}}}")).problem();
        assert_eq!((problem.0, problem.1.as_str(), problem.3.as_str()), (500, "model_failed", "ValueError: no"));
    }
    let both = server.post("/predict", r#"{"inputs": ["bad", "bad"]}"#);
    assert_eq!((both.status, &both.json()["error"]["item"]), (422, &json!(0)));
}

#[test]
fn no_number_is_null() {
    let server = Server::start(Takes::Texts);
    let answer = server.post("/predict", r#"{"inputs": "nan"}"#);
    assert_eq!(answer.text(), r#"{"outputs":{"embedding":[null,null,-0.0,1.0]}}"#);
}

#[test]
fn curl_without_a_content_type_is_understood() {
    let server = Server::start(Takes::Texts);
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    assert_eq!(server.open().ask("POST", "/predict", &headers, br#"{"inputs": "abc"}"#).status, 200);
}

#[test]
fn tensors_are_nested_lists() {
    let server = Server::start(Takes::Tensors);
    let one = server.post("/predict", r#"{"inputs": {"x": [1, 2.5, 3], "k": 7}}"#);
    assert_eq!(one.text(), r#"{"outputs":{"x":[1.0,2.5,3.0],"k":7}}"#);
    let two = server.post("/predict", r#"{"inputs": {"k": [7, 8], "x": [[1, 2.5, 3], [4, 5, 6]]}}"#);
    assert_eq!(two.text(), r#"{"outputs":[{"x":[1.0,2.5,3.0],"k":7},{"x":[4.0,5.0,6.0],"k":8}]}"#);
    for (inputs, field, said) in [
        (r#"{"x": [1, 2], "k": 7}"#, "inputs.x.shape", "x has dims [1, 2]; expected [items, 3]"),
        (r#"{"x": [1, 2, 3]}"#, "inputs", "the tensor k is missing"),
        (r#"{"x": [1, 2, "3"], "k": 7}"#, "inputs.x", "a text where a float32 is expected"),
        (r#"{"x": [[1, 2, 3]], "k": 7}"#, "inputs.k", "one tensor has a dim of items, another has not"),
        (r#"{"x": [[1, 2, 3], [1, 2]], "k": [7, 8]}"#, "inputs.x", "not rectangular: lists of 3 and of 2 in dim 1"),
        (r#"{"x": [[1, 2, 3]], "k": [7, 8]}"#, "inputs", "x has 1 items, k has 2"),
        (r#"{"x": [1, 2, 3], "k": 7.5}"#, "inputs.k", "7.5 is no int64"),
        (r#"{"x": [1, 2, 3], "z": 7}"#, "inputs.z", "the model takes no such tensor; it takes x, k"),
        (r#"[1, 2, 3]"#, "inputs", "expected an object with x, k"),
        (r#"{"x": [], "k": []}"#, "inputs.x.shape", "x has dims [1, 0]; expected [items, 3]"),
    ] {
        let problem = server.post("/predict", &format!("{{\"inputs\": {inputs}}}")).problem();
        assert_eq!(problem, (422, "invalid".to_owned(), field.to_owned(), said.to_owned()), "{inputs}");
    }
}

#[test]
fn images_come_as_a_body_in_base64_or_in_a_form() {
    let server = Server::start(Takes::Images);
    let raw = server.open().ask("POST", "/predict", &[("content-type", "image/jpeg")], b"12345");
    assert_eq!(raw.json()["outputs"]["embedding"][0], json!(5.0));
    let base64 = server.post("/predict", r#"{"inputs": ["MTIz", "data:image/png;base64,MTIzNA=="]}"#);
    assert_eq!(base64.json()["outputs"][0]["embedding"][0], json!(3.0));
    assert_eq!(base64.json()["outputs"][1]["embedding"][0], json!(4.0));
    let form = "--B\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.jpg\"\r\n\r\n123456\r\n\
                --B\r\ncontent-disposition: form-data; name=\"parameters\"\r\n\r\n{\"k\": 1}\r\n\
                --B\r\ncontent-disposition: form-data; name=\"file\"; filename=\"b.jpg\"\r\n\r\n12\r\n--B--\r\n";
    let kind = [("content-type", "multipart/form-data; boundary=B")];
    let answer = server.open().ask("POST", "/predict", &kind, form.as_bytes());
    assert_eq!(answer.json()["outputs"][0]["embedding"][0], json!(6.0), "{answer:?}");
    assert_eq!(answer.json()["outputs"][1]["embedding"][0], json!(2.0));
    assert_eq!(*server.seen.parameters.lock().unwrap(), r#"{"k":1}"#);
    let large = form.replace("123456", &"x".repeat(3_000_000));
    let answer = server.open().ask("POST", "/predict", &kind, large.as_bytes());
    assert_eq!(answer.json()["outputs"][0]["embedding"][0], json!(3_000_000.0), "{}", answer.status);
    let cut = server.open().ask("POST", "/predict", &kind, &form.as_bytes()[..90]);
    assert_eq!(cut.status, 400);
    let bad = server.post("/predict", r#"{"inputs": ["MTIz", "?"]}"#).problem();
    assert_eq!((bad.0, bad.2.as_str()), (422, "inputs[1]"));
    let empty = server.open().ask("POST", "/predict", &[("content-type", "image/jpeg")], b"");
    assert_eq!(empty.status, 400);
}

#[test]
fn a_form_of_texts_is_understood_too() {
    let server = Server::start(Takes::Texts);
    let form = "--B\r\ncontent-disposition: form-data; name=\"inputs\"\r\n\r\nabcd\r\n--B--\r\n";
    let kind = [("content-type", "multipart/form-data; boundary=B")];
    let answer = server.open().ask("POST", "/predict", &kind, form.as_bytes());
    assert_eq!(answer.json()["outputs"]["embedding"][0], json!(4.0));
    let other = server.open().ask("POST", "/predict", &kind, form.replace("inputs", "text").as_bytes()).problem();
    assert_eq!((other.0, other.2.as_str()), (422, "text"));
    assert_eq!(server.open().ask("POST", "/predict", &[("content-type", "image/png")], b"x").status, 415);
}

#[test]
fn rows_are_objects() {
    let server = Server::start(Takes::Rows);
    let answer = server.post("/predict", r#"{"inputs": [{"a": 1}, {"a": 22}]}"#);
    assert_eq!(answer.json()["outputs"][1]["embedding"][0], json!(9.0));
    let one = server.post("/predict", r#"{"inputs": {"a": 1}}"#);
    assert_eq!(one.json()["outputs"]["embedding"][0], json!(8.0));
    let bad = server.post("/predict", r#"{"inputs": [{"a": 1}, 3]}"#).problem();
    assert_eq!((bad.0, bad.2.as_str()), (422, "inputs[1]"));
}

#[test]
fn too_many_items_are_too_large_and_none_are_invalid() {
    let server = Server::start(Takes::Texts);
    let many = server.post("/predict", &format!("{{\"inputs\": {:?}}}", vec!["x"; 9])).problem();
    assert_eq!((many.0, many.3.as_str()), (413, "9 items, 8 may come in one request (limits.items)"));
    let none = server.post("/predict", r#"{"inputs": []}"#).problem();
    assert_eq!((none.0, none.2.as_str()), (422, "inputs"));
}

#[test]
fn tokens_have_ids_texts_and_places() {
    let server = Server::start(Takes::Texts);
    let answer = server.post("/tokenize", r#"{"inputs": "ab", "special_tokens": false}"#);
    assert_eq!(answer.text(), r#"{"outputs":{"ids":[97,98],"offsets":[[0,1],[1,2]],"tokens":["a","b"]}}"#);
    let list = server.post("/tokenize", r#"{"inputs": ["ab"]}"#);
    assert_eq!(list.json()["outputs"][0]["tokens"], json!(["a", "b", "[END]"]));
    let other = Server::start(Takes::Images).post("/tokenize", r#"{"inputs": "ab"}"#).problem();
    assert_eq!((other.0, other.1.as_str()), (422, "unsupported"));
}

#[test]
fn texts_without_end_are_not_tokenized() {
    let server = Server::start(Takes::Texts);
    let half = "x".repeat(1 << 19);
    let much = server.post("/tokenize", &format!(r#"{{"inputs": ["{half}", "{half}x"]}}"#)).problem();
    assert_eq!((much.0, much.1.as_str()), (413, "too_large"));
    assert_eq!(much.3, "1048577 bytes of text, 1048576 may be tokenized in one request");
    // As many tokens as are not told in passing; a list of one stays a list.
    let text = "xy".repeat(5000);
    let one = server.post("/tokenize", &format!(r#"{{"inputs": "{text}", "special_tokens": false}}"#)).json();
    let list = server.post("/tokenize", &format!(r#"{{"inputs": ["{text}"], "special_tokens": false}}"#)).json();
    assert_eq!(one["outputs"], list["outputs"][0]);
    assert_eq!(one["outputs"]["tokens"].as_array().unwrap().len(), 10_000);
    assert_eq!(
        (&one["outputs"]["tokens"][9999], &one["outputs"]["offsets"][9999]),
        (&json!("y"), &json!([9999, 10000]))
    );
}

#[test]
fn the_model_is_described() {
    let server = Server::start(Takes::Tensors);
    let info = server.get("/info").json();
    assert_eq!(info["model"]["inputs"][0], json!({"name": "x", "dtype": "float32", "shape": [3]}));
    assert_eq!(info["limits"]["items"], json!(8));
    let document = server.get("/openapi.json").json();
    assert_eq!(document["openapi"], json!("3.1.0"));
    let inputs = &document["components"]["schemas"]["PredictRequest"]["properties"]["inputs"]["oneOf"][0];
    let x = json!({"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3});
    assert_eq!(inputs["properties"]["x"], x);
    // Every reference leads somewhere, and every route that it names is one.
    let text = document.to_string();
    for name in text.split("#/components/schemas/").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(document["components"]["schemas"][name].is_object(), "{name}");
    }
    for (path, methods) in document["paths"].as_object().unwrap() {
        let method = if methods.get("get").is_some() { "GET" } else { "POST" };
        let status = server.open().ask(method, path, &[], b"").status;
        assert!(status != 404 && status != 405, "{path}: {status}");
    }
}

#[test]
fn the_document_has_every_status_of_the_documentation() {
    let page = include_str!("../../../../docs/serve/api.md");
    let document = Server::start(Takes::Texts).get("/openapi.json").json();
    let statuses = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse::<u16>().ok());
    let mut rows = 0;
    for status in statuses {
        let path = if status == 403 { "/admin/reload" } else { "/predict" };
        let response = &document["paths"][path]["post"]["responses"][status.to_string()];
        assert!(response.is_object(), "{path} is without {status}");
        rows += 1;
    }
    assert!(rows > 10, "{rows} rows in the table of errors");
    // Below /v2 errors have the shape of the protocol, whatever the method.
    for (path, methods) in document["paths"].as_object().unwrap().iter().filter(|(path, _)| path.starts_with("/v2")) {
        assert!(!methods.to_string().contains("#/components/schemas/Problem"), "{path}");
    }
    assert!(document["components"]["schemas"]["EmbeddingsRequest"]["properties"]["dimensions"].is_object());
}

#[test]
fn the_document_of_a_generating_model_has_its_routes() {
    let mut generating = model(Takes::Texts);
    generating.generates = true;
    let document = Server::with(generating, &[("auth.keys", "secret")])
        .open()
        .ask("GET", "/openapi.json", &[("authorization", "Bearer secret")], b"")
        .json();
    assert!(document["paths"]["/generate_stream"]["post"].is_object());
    // Of the whole answer, which is tokens.
    assert!(document["paths"]["/predict"]["post"].is_object());
    let outputs = &document["components"]["schemas"]["PredictResponse"]["properties"]["outputs"]["oneOf"][0];
    assert_eq!(outputs["properties"], json!({"tokens": {"type": "array", "items": {"type": "integer"}}}));
    assert_eq!(document["security"], json!([{"key": []}]));
}
