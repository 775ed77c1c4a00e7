//! The Open Inference Protocol, version 2, as KServe and Triton have it, over REST: health, metadata, infer; JSON and
//! the binary extension.

pub(super) mod read;
pub(super) mod write;

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Path, Request, State, rejection::PathRejection},
    http::StatusCode,
    response::Response,
};
use forebay::DType;
use serde_json::{Value, json};

use super::{
    App, body,
    context::Context,
    context::{parsed, responded},
    predict,
    problem::Problem,
    tensors,
};
use crate::backend::{Health, ModelInfo, Takes};

/// The header with the length of the JSON before binary tensors.
pub(super) const HEADER_LENGTH: &str = "inference-header-content-length";

/// Element types as the protocol spells them.
const DATATYPES: [(&str, DType); 13] = [
    ("BOOL", DType::Bool),
    ("UINT8", DType::U8),
    ("UINT16", DType::U16),
    ("UINT32", DType::U32),
    ("UINT64", DType::U64),
    ("INT8", DType::I8),
    ("INT16", DType::I16),
    ("INT32", DType::I32),
    ("INT64", DType::I64),
    ("FP16", DType::F16),
    ("BF16", DType::BF16),
    ("FP32", DType::F32),
    ("FP64", DType::F64),
];

pub(super) fn datatype(dtype: DType) -> &'static str {
    DATATYPES.iter().find(|(_, known)| *known == dtype).map_or_else(|| dtype.name(), |(name, _)| name)
}

fn dtype(name: &str) -> Option<DType> {
    DATATYPES.iter().find(|(known, _)| *known == name).map(|(_, dtype)| *dtype)
}

/// What texts, images and rows are called here; they are `BYTES`.
pub(super) fn bytes_input(takes: Takes) -> Option<&'static str> {
    match takes {
        Takes::Texts => Some("text"),
        Takes::Images => Some("image"),
        Takes::Rows => Some("row"),
        Takes::Tensors => None,
    }
}

/// Whether the path names this model.
pub(super) fn known(model: &ModelInfo, name: &str, version: Option<&str>) -> Result<(), Problem> {
    let other = |found: String, is: String| {
        Err(Problem::new(StatusCode::NOT_FOUND, "unknown_model", format!("there is no {found}; there is {is}")))
    };
    match version {
        _ if name != model.name => other(format!("model {name}"), model.name.clone()),
        Some(version) if version != model.version => {
            other(format!("version {version} of {name}"), format!("version {}", model.version))
        }
        _ => Ok(()),
    }
}

/// `GET /v2`.
pub(super) async fn server() -> Json<Value> {
    Json(json!({
        "name": "forebay",
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": ["binary_tensor_data"],
    }))
}

/// `GET /v2/models/{model}[/versions/{version}]`.
pub(super) async fn metadata(State(app): State<Arc<App>>, path: NamedIn) -> Result<Json<Value>, Problem> {
    let model = app.backend.model();
    known_in(model, path)?;
    Ok(Json(model_metadata(model)))
}

/// What the protocol tells of a model.
pub(super) fn model_metadata(model: &ModelInfo) -> Value {
    let dims = |shape: &[Option<u64>]| {
        let dims = shape.iter().map(|dim| dim.map_or(-1, |dim| i64::try_from(dim).unwrap_or(-1)));
        std::iter::once(-1).chain(dims).collect::<Vec<i64>>()
    };
    let inputs: Vec<Value> = match bytes_input(model.takes) {
        Some(name) => vec![json!({ "name": name, "datatype": "BYTES", "shape": [-1] })],
        None => tensors::inputs(model)
            .map(|one| json!({ "name": one.name, "datatype": datatype(one.dtype), "shape": dims(&one.shape) }))
            .collect(),
    };
    let outputs: Vec<Value> = model
        .outputs
        .iter()
        .map(|one| json!({ "name": one.name, "datatype": datatype(one.dtype), "shape": dims(&one.shape) }))
        .collect();
    json!({
        "name": model.name,
        "versions": [model.version],
        "platform": "forebay",
        "inputs": inputs,
        "outputs": outputs,
    })
}

/// `GET /v2/models/{model}[/versions/{version}]/ready`.
pub(super) async fn model_ready(State(app): State<Arc<App>>, path: NamedIn) -> Result<StatusCode, Problem> {
    known_in(app.backend.model(), path)?;
    match app.health() {
        Health::Ready => Ok(StatusCode::OK),
        other => Err(super::health::not_ready(&other)),
    }
}

/// The names in a path.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Named {
    model: String,
    #[serde(default)]
    version: Option<String>,
}

/// The names in a path, if they are text.
type NamedIn = Result<Path<Named>, PathRejection>;

fn known_in(model: &ModelInfo, path: NamedIn) -> Result<(), Problem> {
    let Path(named) = path.map_err(|error| Problem::malformed(error.body_text()))?;
    known(model, &named.model, named.version.as_deref())
}

/// `POST /v2/models/{model}[/versions/{version}]/infer`.
pub(super) async fn infer(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Context>,
    path: NamedIn,
    request: Request,
) -> Result<Response, Problem> {
    let model = app.backend.model();
    known_in(model, path)?;
    let (parts, body) = request.into_parts();
    let header_length = read::header_length(&parts.headers)?;
    if header_length.is_none() {
        predict::json_only(&parts.headers)?;
    }
    let body = body::read(&app, &context, &parts.headers, body).await?;
    let asked = parsed(&app, || read::request(model, &body, header_length))?;
    let answer = context.infer(&app, asked.input, asked.parameters).await?;
    responded(&app, || write::response(model, &asked.id, &asked.outputs, &answer))
}
