//! `GET /openapi.json`: the routes with the types of this model, as OpenAPI 3.1.

use std::sync::Arc;

use axum::{Json, extract::State};
use forebay::DType;
use serde_json::{Map, Value, json};

use super::{App, tensors};
use crate::backend::{ModelInfo, Takes};

pub(super) async fn document(State(app): State<Arc<App>>) -> Json<Value> {
    Json(make(app.backend.model(), app.keys.required()))
}

/// The document for `model`; with keys, routes that need one say so.
fn make(model: &ModelInfo, keys: bool) -> Value {
    let mut paths = Map::new();
    let open = |summary: &str| json!({ "get": { "summary": summary, "security": [], "responses": text_responses() } });
    paths.insert("/livez".into(), open("Whether the process answers"));
    paths.insert("/readyz".into(), open("Whether requests can be answered"));
    paths.insert("/v2/health/live".into(), with_flat_problems(open("Whether the process answers")));
    paths.insert("/v2/health/ready".into(), with_flat_problems(open("Whether requests can be answered")));
    paths.insert(
        "/metrics".into(),
        json!({ "get": { "summary": "Metrics for Prometheus", "responses": text_responses() } }),
    );
    paths.insert("/info".into(), read("What the model takes and gives", json!({ "type": "object" })));
    paths.insert("/status".into(), read("What goes on inside", json!({ "type": "object" })));
    paths.insert("/v1/models".into(), read("The model, for OpenAI's clients", json!({ "type": "object" })));
    paths.insert(
        format!("/v2/models/{}", model.name),
        with_flat_problems(read("The model's tensors", reference("Metadata"))),
    );
    paths.insert(
        format!("/v2/models/{}/infer", model.name),
        with_flat_problems(work(
            "Infer, Open Inference Protocol v2",
            &json_body("InferRequest"),
            reference("InferResponse"),
        )),
    );
    if model.generates {
        let body = json_body("PredictRequest");
        paths.insert("/generate".into(), work("Tokens until the end", &body, reference("GenerateResponse")));
        let mut stream = work("Tokens as they come", &body, json!({}));
        stream["post"]["responses"]["200"] = json!({
            "description": "Server-sent events: data: {item, tokens, text, finish_reason?}",
            "content": { "text/event-stream": { "schema": { "type": "string" } } },
        });
        paths.insert("/generate_stream".into(), stream);
    }
    let mut body = json_body("PredictRequest");
    if model.takes == Takes::Images {
        let file = json!({ "schema": { "type": "string", "format": "binary" } });
        for kind in ["image/jpeg", "image/png", "image/webp"] {
            body["content"][kind] = file.clone();
        }
    }
    if matches!(model.takes, Takes::Images | Takes::Texts) {
        body["content"]["multipart/form-data"] = json!({ "schema": { "type": "object" } });
    }
    paths.insert("/predict".into(), work("Infer, plain JSON", &body, reference("PredictResponse")));
    if model.takes == Takes::Texts {
        paths.insert(
            "/tokenize".into(),
            work("A text's tokens", &json_body("TokenizeRequest"), json!({ "type": "object" })),
        );
        if !model.generates {
            let body = json_body("EmbeddingsRequest");
            paths.insert("/v1/embeddings".into(), work("Embeddings, OpenAI's API", &body, json!({ "type": "object" })));
        }
    }
    let mut reload = responses(json!({ "type": "object" }));
    reload["403"] = json!({ "description": "From a page of another site", "content": problem() });
    paths.insert(
        "/admin/reload".into(),
        json!({ "post": { "summary": "Replace the workers one after the other", "responses": reload } }),
    );
    let mut document = json!({
        "openapi": "3.1.0",
        "info": { "title": model.name, "version": model.version, "description": "Served by forebay." },
        "paths": paths,
        "components": { "schemas": schemas(model) },
    });
    if keys {
        document["components"]["securitySchemes"] = json!({ "key": { "type": "http", "scheme": "bearer" } });
        document["security"] = json!([{ "key": [] }]);
    }
    document
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn json_body(schema: &str) -> Value {
    json!({ "required": true, "content": { "application/json": { "schema": reference(schema) } } })
}

fn text_responses() -> Value {
    json!({ "200": { "description": "Yes" }, "503": { "description": "Not now", "content": problem() } })
}

fn problem() -> Value {
    json!({ "application/json": { "schema": reference("Problem") } })
}

/// Errors as the Open Inference Protocol has them.
fn with_flat_problems(mut path: Value) -> Value {
    for (_, method) in path.as_object_mut().into_iter().flatten() {
        for (_, response) in method["responses"].as_object_mut().into_iter().flatten() {
            if response["content"] == problem() {
                response["content"]["application/json"]["schema"] = reference("FlatProblem");
            }
        }
    }
    path
}

fn read(summary: &str, schema: Value) -> Value {
    json!({ "get": { "summary": summary, "responses": responses(schema) } })
}

fn work(summary: &str, body: &Value, schema: Value) -> Value {
    let header = |name: &str, schema: Value| json!({ "name": name, "in": "header", "schema": schema });
    json!({ "post": {
        "summary": summary,
        "parameters": [
            header(super::context::REQUEST_ID, json!({ "type": "string", "maxLength": 128 })),
            header(super::context::TIMEOUT, json!({ "type": "integer", "minimum": 1 })),
            header(super::context::PRIORITY, json!({ "enum": ["high", "normal", "low"] })),
        ],
        "requestBody": body,
        "responses": responses(schema),
    } })
}

fn responses(schema: Value) -> Value {
    let mut all = json!({
        "200": { "description": "Answered", "content": { "application/json": { "schema": schema } } },
    });
    for (code, description) in [
        ("400", "Not in the format that it says"),
        ("401", "No key, or not one that is let in"),
        ("404", "No such path, model or version"),
        ("405", "Another method than the path takes; see Allow"),
        ("408", "The body did not arrive in time"),
        ("413", "Too many bytes or items"),
        ("415", "A content type that is not taken"),
        ("422", "Not what the model takes; the field is named"),
        ("429", "Too many requests; see Retry-After"),
        ("500", "The model failed"),
        ("502", "The worker died"),
        ("503", "No worker in time, or not ready"),
        ("504", "Not answered before the deadline"),
    ] {
        all[code] = json!({ "description": description, "content": problem() });
    }
    all
}

/// The type of one element in JSON.
fn element(dtype: DType) -> Value {
    match dtype {
        DType::Bool => json!({ "type": "boolean" }),
        DType::U8 => json!({ "type": "integer", "minimum": 0, "maximum": u8::MAX }),
        DType::U16 => json!({ "type": "integer", "minimum": 0, "maximum": u16::MAX }),
        DType::U32 => json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX }),
        DType::U64 => json!({ "type": "integer", "minimum": 0 }),
        DType::I8 => json!({ "type": "integer", "minimum": i8::MIN, "maximum": i8::MAX }),
        DType::I16 => json!({ "type": "integer", "minimum": i16::MIN, "maximum": i16::MAX }),
        DType::I32 => json!({ "type": "integer", "minimum": i32::MIN, "maximum": i32::MAX }),
        DType::I64 => json!({ "type": "integer" }),
        _ => json!({ "type": "number" }),
    }
}

/// Nested lists of `dtype` with these dims.
fn nested(dtype: DType, shape: &[Option<u64>]) -> Value {
    shape.iter().rev().fold(element(dtype), |items, dim| {
        let mut list = json!({ "type": "array", "items": items });
        if let Some(dim) = dim {
            list["minItems"] = json!(dim);
            list["maxItems"] = json!(dim);
        }
        list
    })
}

/// One item, or a list of them.
fn one_or_many(one: Value, max_items: usize) -> Value {
    json!({ "oneOf": [one.clone(), { "type": "array", "minItems": 1, "maxItems": max_items, "items": one }] })
}

fn schemas(model: &ModelInfo) -> Value {
    let text = json!({ "type": "string" });
    let one = match model.takes {
        Takes::Texts => text.clone(),
        Takes::Images => json!({ "type": "string", "contentEncoding": "base64" }),
        Takes::Rows => json!({ "type": "object" }),
        Takes::Tensors => {
            let given: Vec<_> = tensors::inputs(model).collect();
            let properties: Map<_, _> =
                given.iter().map(|one| (one.name.clone(), nested(one.dtype, &one.shape))).collect();
            let names: Vec<_> = given.iter().map(|one| &one.name).collect();
            json!({ "type": "object", "properties": properties, "required": names })
        }
    };
    let inputs = match model.takes {
        // A list of items for each tensor, not a list of objects.
        Takes::Tensors => {
            let given: Vec<_> = tensors::inputs(model).collect();
            let many = |shape: &[Option<u64>]| std::iter::once(None).chain(shape.iter().copied()).collect::<Vec<_>>();
            let properties: Map<_, _> =
                given.iter().map(|one| (one.name.clone(), nested(one.dtype, &many(&one.shape)))).collect();
            json!({ "oneOf": [one, { "type": "object", "properties": properties }] })
        }
        _ => one_or_many(one, model.max_items),
    };
    let parameters: Map<_, _> = model
        .parameters
        .iter()
        .map(|one| {
            let mut schema = element(one.dtype);
            schema["default"] = if one.dtype == DType::Bool { json!(one.default != 0.0) } else { json!(one.default) };
            for (name, bound) in [("minimum", one.min), ("maximum", one.max)] {
                if let Some(bound) = bound {
                    schema[name] = json!(bound);
                }
            }
            (one.name.clone(), schema)
        })
        .collect();
    let outputs: Map<_, _> = if model.generates {
        // The tokens of the whole answer, whatever tensor the worker gives them in.
        Map::from_iter([("tokens".to_owned(), nested(DType::I64, &[None]))])
    } else {
        model.outputs.iter().map(|one| (one.name.clone(), nested(one.dtype, &one.shape))).collect()
    };
    let row = json!({ "type": "object", "properties": outputs });
    json!({
        "PredictRequest": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "inputs": inputs,
                "parameters": { "type": "object", "properties": parameters, "additionalProperties": false },
            },
            "additionalProperties": false,
        },
        "PredictResponse": { "type": "object", "properties": { "outputs": one_or_many(row, model.max_items) } },
        "GenerateResponse": { "type": "object", "properties": { "outputs": one_or_many(json!({
            "type": "object",
            "properties": {
                "text": text, "tokens": { "type": "array", "items": { "type": "integer" } },
                "finish_reason": { "enum": ["stop", "length"] },
            },
        }), model.max_items) } },
        "TokenizeRequest": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "inputs": one_or_many(json!({ "type": "string" }), model.max_items),
                "special_tokens": { "type": "boolean", "default": true },
            },
        },
        "EmbeddingsRequest": {
            "type": "object",
            "required": ["input"],
            "properties": {
                "input": one_or_many(json!({ "type": "string" }), model.max_items),
                "model": { "const": model.name },
                "encoding_format": { "enum": ["float", "base64"], "default": "float" },
                "dimensions": { "type": "integer", "minimum": 1 },
            },
        },
        "InferRequest": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": { "type": "string" },
                "parameters": { "type": "object" },
                "inputs": { "type": "array", "items": {
                    "type": "object",
                    "required": ["name", "shape", "datatype"],
                    "properties": {
                        "name": { "type": "string" },
                        "shape": { "type": "array", "items": { "type": "integer", "minimum": 0 } },
                        "datatype": { "type": "string" },
                        "data": { "type": "array" },
                        "parameters": { "type": "object" },
                    },
                } },
                "outputs": { "type": "array", "items": { "type": "object", "required": ["name"] } },
            },
        },
        "InferResponse": { "type": "object", "required": ["model_name", "outputs"] },
        "Metadata": { "type": "object", "required": ["name", "inputs", "outputs"] },
        "FlatProblem": {
            "type": "object",
            "required": ["error", "type", "request_id"],
            "properties": {
                "error": { "type": "string" },
                "type": { "type": "string" },
                "field": { "type": "string" },
                "item": { "type": "integer" },
                "request_id": { "type": "string" },
            },
        },
        "Problem": {
            "type": "object",
            "required": ["error"],
            "properties": { "error": {
                "type": "object",
                "required": ["type", "message", "request_id"],
                "properties": {
                    "type": { "type": "string" },
                    "message": { "type": "string" },
                    "field": { "type": "string" },
                    "item": { "type": "integer" },
                    "request_id": { "type": "string" },
                },
            } },
        },
    })
}
