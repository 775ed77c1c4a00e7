//! The Open Inference Protocol: JSON and binary tensors.

use forebay_serve::backend::Takes;
use serde_json::{Value, json};

use crate::client::{Connection, Response, Server};

const INFER: &str = "/v2/models/fake/infer";

fn request(x: Value, k: Value) -> Value {
    json!({
        "id": "42",
        "inputs": [
            {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": x},
            {"name": "k", "shape": [2], "datatype": "INT64", "data": k},
        ],
    })
}

fn ask_binary(connection: &mut Connection, json: &Value, tail: &[u8]) -> Response {
    let json = json.to_string();
    let length = json.len().to_string();
    let headers = [("inference-header-content-length", length.as_str()), ("content-type", "application/octet-stream")];
    connection.ask("POST", INFER, &headers, &[json.as_bytes(), tail].concat())
}

#[test]
fn flat_and_nested_data_are_the_same() {
    let server = Server::start(Takes::Tensors);
    for x in [json!([1, 2, 3, 4, 5, 6.5]), json!([[1, 2, 3], [4, 5, 6.5]])] {
        let answer = server.post(INFER, &request(x, json!([7, 8])).to_string());
        assert_eq!(
            answer.text(),
            r#"{"model_name":"fake","model_version":"1","id":"42","outputs":[{"name":"x","datatype":"FP32","shape":[2,3],"data":[1.0,2.0,3.0,4.0,5.0,6.5]},{"name":"k","datatype":"INT64","shape":[2],"data":[7,8]}]}"#
        );
    }
}

#[test]
fn binary_tensors_go_there_and_come_back() {
    let server = Server::start(Takes::Tensors);
    let x: Vec<u8> = [1f32, 2.0, f32::NAN, 4.0, 5.0, 6.0].into_iter().flat_map(f32::to_le_bytes).collect();
    let json = json!({
        "inputs": [
            {"name": "x", "shape": [2, 3], "datatype": "FP32", "parameters": {"binary_data_size": 24}},
            {"name": "k", "shape": [2], "datatype": "INT64", "data": [7, 8]},
        ],
        "outputs": [{"name": "k"}, {"name": "x", "parameters": {"binary_data": true}}],
    });
    let answer = ask_binary(&mut server.open(), &json, &x);
    assert_eq!(answer.status, 200, "{answer:?}");
    let length: usize = answer.header("inference-header-content-length").unwrap().parse().unwrap();
    let head: Value = serde_json::from_slice(&answer.body[..length]).unwrap();
    assert_eq!(head["outputs"][0], json!({"name": "k", "datatype": "INT64", "shape": [2], "data": [7, 8]}));
    assert_eq!(head["outputs"][1]["parameters"], json!({"binary_data_size": 24}));
    assert_eq!(&answer.body[length..], x);
    let mut all = request(json!([1, 2, 3, 4, 5, 6]), json!([7, 8]));
    all["parameters"] = json!({"binary_data_output": true});
    let answer = server.post(INFER, &all.to_string());
    let length: usize = answer.header("inference-header-content-length").unwrap().parse().unwrap();
    assert_eq!(answer.body.len() - length, 24 + 16);
}

#[test]
fn what_does_not_fit_is_named() {
    let server = Server::start(Takes::Tensors);
    let good = request(json!([1, 2, 3, 4, 5, 6]), json!([7, 8]));
    for (pointer, value, field) in [
        ("/inputs/0/datatype", json!("FP64"), "inputs[0].datatype"),
        ("/inputs/0/datatype", json!("FLOAT"), "inputs[0].datatype"),
        ("/inputs/0/datatype", json!(3), "inputs[0].datatype"),
        ("/inputs/0/shape", json!([3, 2]), "inputs[0].shape"),
        ("/inputs/0/shape", json!([2, 3, 1]), "inputs[0].shape"),
        ("/inputs/0/shape", json!([2, -1]), "inputs[0].shape[1]"),
        ("/inputs/0/shape", json!([18446744073709551615u64, 3]), "inputs[0].data"),
        ("/inputs/0/data", json!([1, 2, 3]), "inputs[0].data"),
        ("/inputs/0/data", json!([1, 2, 3, 4, 5, true]), "inputs[0].data"),
        ("/inputs/0/data", json!("x"), "inputs[0].data"),
        ("/inputs/0/data", json!(null), "inputs[0].data"),
        ("/inputs/1/name", json!("z"), "inputs[1].name"),
        ("/inputs/1/name", json!("x"), "inputs[1].datatype"),
        ("/inputs/1/shape", json!([3]), "inputs[1].data"),
        ("/inputs/1", json!({"shape": [1], "datatype": "INT64", "data": [1]}), "inputs[1].name"),
        ("/inputs", json!([]), "inputs"),
        ("/inputs", json!(7), "inputs"),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value.clone();
        let problem = server.post(INFER, &bad.to_string()).problem();
        assert_eq!((problem.0, problem.2.as_str()), (422, field), "{pointer} = {value}: {problem:?}");
    }
    // What clients of the protocol show is `error`, a text with the field in it.
    let answer = server.post(INFER, &request(json!([1, "x"]), json!([7, 8])).to_string());
    assert_eq!(answer.json()["error"], json!("inputs[0].data: a text where a float32 is expected"));
    let mut bad = good.clone();
    bad["outputs"] = json!([{"name": "w"}]);
    let problem = server.post(INFER, &bad.to_string()).problem();
    assert_eq!((problem.0, problem.2.as_str()), (422, "outputs[0].name"));
    assert_eq!(server.post(INFER, &good.to_string()).status, 200);
}

#[test]
fn binary_tensors_that_are_cut_or_too_long_are_refused() {
    let server = Server::start(Takes::Tensors);
    let json = json!({"inputs": [
        {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}},
        {"name": "k", "shape": [1], "datatype": "INT64", "parameters": {"binary_data_size": 8}},
    ]});
    let mut connection = server.open();
    assert_eq!(ask_binary(&mut connection, &json, &[0; 20]).status, 200);
    let cut = ask_binary(&mut connection, &json, &[0; 19]).problem();
    assert_eq!((cut.0, cut.2.as_str()), (422, "inputs[1].parameters.binary_data_size"));
    assert_eq!(ask_binary(&mut connection, &json, &[0; 21]).problem().0, 400);
    let mut wrong = json.clone();
    wrong["inputs"][0]["parameters"]["binary_data_size"] = json!(8);
    wrong["inputs"][1]["parameters"]["binary_data_size"] = json!(12);
    assert_eq!(ask_binary(&mut connection, &wrong, &[0; 20]).problem().2, "inputs[0].data");
    wrong["inputs"][0]["parameters"]["binary_data_size"] = json!(u64::MAX);
    assert_eq!(ask_binary(&mut connection, &wrong, &[0; 20]).problem().0, 422);
    for length in ["999999", "-1", "x", "18446744073709551616"] {
        let headers = [("inference-header-content-length", length)];
        let answer = connection.ask("POST", INFER, &headers, json.to_string().as_bytes());
        assert_eq!(answer.problem().2, "inference-header-content-length", "{length}");
        assert_eq!(answer.status, 400);
    }
}

#[test]
fn texts_images_and_rows_are_bytes() {
    let server = Server::start(Takes::Texts);
    let texts = json!({"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["abc", "d"]}]});
    let answer = server.post(INFER, &texts.to_string()).json();
    assert_eq!(answer["outputs"][0]["shape"], json!([2, 4]));
    assert_eq!(answer["outputs"][0]["data"][4], json!(1.0));
    let binary = json!({"inputs": [{"name": "text", "shape": [2, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 12}}]});
    let tail = [&3u32.to_le_bytes()[..], b"abc", &1u32.to_le_bytes(), b"d"].concat();
    let answer = ask_binary(&mut server.open(), &binary, &tail).json();
    assert_eq!(answer["outputs"][0]["data"][0], json!(3.0));
    let long = [&3u32.to_le_bytes()[..], b"abc", &9u32.to_le_bytes(), b"d"].concat();
    let cut = ask_binary(&mut server.open(), &binary, &long).problem();
    assert_eq!((cut.0, cut.2.as_str()), (422, "inputs[0].data[1]"));
    let latin = [&3u32.to_le_bytes()[..], b"ab\xe9", &1u32.to_le_bytes(), b"d"].concat();
    assert_eq!(ask_binary(&mut server.open(), &binary, &latin).problem().2, "inputs[0].data[0]");
    let failed = json!({"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["abc", "bad"]}]});
    let failed = server.post(INFER, &failed.to_string());
    assert_eq!((failed.status, &failed.json()["item"]), (422, &json!(1)));
    let failed = json!({"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["bad", "raises"]}]});
    let failed = server.post(INFER, &failed.to_string());
    assert_eq!((failed.status, &failed.json()["item"]), (500, &json!(1)));
    let many = json!({"inputs": [{"name": "text", "shape": [9], "datatype": "BYTES", "data": vec!["x"; 9]}]});
    assert_eq!(server.post(INFER, &many.to_string()).problem().0, 413);
    let many = json!({"inputs": [{"name": "text", "shape": [9], "datatype": "BYTES", "parameters": {"binary_data_size": 36}}]});
    assert_eq!(ask_binary(&mut server.open(), &many, &[0; 36]).problem().0, 413);

    let server = Server::start(Takes::Images);
    let images = json!({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["MTIz"]}]});
    assert_eq!(server.post(INFER, &images.to_string()).json()["outputs"][0]["data"][0], json!(3.0));
    let server = Server::start(Takes::Rows);
    let rows = json!({"inputs": [{"name": "row", "shape": [2], "datatype": "BYTES", "data": [{"a": 1}, "{\"a\":1}"]}]});
    assert_eq!(server.post(INFER, &rows.to_string()).json()["outputs"][0]["data"][4], json!(7.0));
}

#[test]
fn the_protocol_tells_of_server_and_model() {
    let server = Server::start(Takes::Tensors);
    assert_eq!(server.get("/v2").json()["extensions"], json!(["binary_tensor_data"]));
    for path in ["/v2/models/fake", "/v2/models/fake/versions/1"] {
        let model = server.get(path).json();
        assert_eq!(model["inputs"][0], json!({"name": "x", "datatype": "FP32", "shape": [-1, 3]}));
        assert_eq!(model["inputs"][1], json!({"name": "k", "datatype": "INT64", "shape": [-1]}));
    }
    assert_eq!(server.get("/v2/models/fake/ready").status, 200);
    assert_eq!(server.get("/v2/models/fake/versions/1/ready").status, 200);
    let body = request(json!([1, 2, 3, 4, 5, 6]), json!([7, 8])).to_string();
    assert_eq!(server.post("/v2/models/fake/versions/1/infer", &body).status, 200);
    for path in ["/v2/models/other/infer", "/v2/models/fake/versions/2/infer"] {
        assert_eq!(server.post(path, &body).problem().1, "unknown_model");
    }
    assert_eq!(server.get("/v2/models/other").status, 404);
}

#[test]
fn a_path_that_is_no_text_is_an_error_as_any_other() {
    // Such a one was answered in plain text, without a type or the request's id.
    let server = Server::start(Takes::Tensors);
    for (method, path) in
        [("GET", "/v2/models/%ff"), ("GET", "/v2/models/fake/versions/%c3/ready"), ("POST", "/v2/models/%ff/infer")]
    {
        let problem = server.open().ask(method, path, &[], b"").problem();
        assert_eq!((problem.0, problem.1.as_str()), (400, "malformed"), "{path}");
        assert!(problem.3.contains("UTF-8"), "{problem:?}");
    }
}
