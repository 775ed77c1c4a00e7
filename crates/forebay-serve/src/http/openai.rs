//! `POST /v1/embeddings` and `GET /v1/models`, as OpenAI's clients expect them.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use forebay::DType;
use half::{bf16, f16};
use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};

use super::{
    App, body,
    context::{Context, parsed, responded},
    input::{self, Items},
    json as text, numbers, predict,
    problem::{self, Problem},
};
use crate::backend::{Answer, Input, ModelInfo, Row, Takes};

#[derive(Debug, Deserialize)]
struct Asked<'a> {
    #[serde(borrow)]
    input: &'a RawValue,
    #[serde(borrow, default)]
    model: Option<text::Text<'a>>,
    #[serde(borrow, default)]
    encoding_format: Option<text::Text<'a>>,
    #[serde(default)]
    dimensions: Option<u64>,
}

pub(super) async fn embeddings(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Context>,
    request: Request,
) -> Result<Response, Problem> {
    let model = app.backend.model();
    if model.takes != Takes::Texts || model.generates {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "unsupported",
            "the model makes no embeddings of text",
        ));
    }
    let (parts, body) = request.into_parts();
    predict::json_only(&parts.headers)?;
    let body = body::read(&app, &context, &parts.headers, body).await?;
    let (items, base64, dimensions) = parsed(&app, || read(model, &body))?;
    let answer = context.infer(&app, items.input, Map::new()).await?;
    responded(&app, || write(model, &answer, items.single, base64, dimensions)).map(text::response)
}

fn read(model: &ModelInfo, body: &[u8]) -> Result<(Items, bool, Option<u64>), Problem> {
    let asked: Asked<'_> = text::parse(body)?;
    if let Some(name) = asked.model.filter(|name| name.0 != model.name) {
        let text = format!("there is no model {}; there is {}", name.0, model.name);
        return Err(Problem::new(StatusCode::NOT_FOUND, "unknown_model", text).at("model"));
    }
    let base64 = match asked.encoding_format.as_ref().map(|format| &*format.0) {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            return Err(Problem::field("encoding_format", format!("{other:?}; expected \"float\" or \"base64\"")));
        }
    };
    // Numbers, or lists of them: tokens of some tokenizer, about which nothing says that it is this model's.
    let inner = asked.input.get().trim_start_matches(|c: char| c == '[' || c.is_ascii_whitespace());
    if inner.starts_with(|c: char| c.is_ascii_digit() || c == '-') {
        return Err(Problem::field("input", "tokens are not taken; send texts"));
    }
    // Texts alone: the pairs of /predict have no place in this API.
    let single = !asked.input.get().starts_with('[');
    let texts: Vec<text::Text<'_>> = if single {
        vec![text::parse_raw(asked.input, "input")?]
    } else {
        input::list_of(asked.input, "input", model.max_items)?
    };
    let input = Input::Texts(texts.into_iter().map(input::alone).collect());
    Ok((Items { input, single }, base64, asked.dimensions))
}

/// Which tensor is the embedding: the one called so, else the first that is one vector of floats an item.
fn embedding_of(row: &Row) -> Option<usize> {
    let vector = |tensor: &usize| {
        let (_, dtype, shape) = row.rows.tensor(*tensor);
        shape.len() == 1 && matches!(dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
    };
    let vectors = || (0..row.rows.tensors()).filter(vector);
    let named = |tensor: &usize| matches!(row.rows.tensor(*tensor).0, "embedding" | "embeddings");
    vectors().find(named).or_else(|| vectors().next())
}

fn write(
    model: &ModelInfo,
    answer: &Answer,
    single: bool,
    base64: bool,
    dimensions: Option<u64>,
) -> Result<Vec<u8>, Problem> {
    if let Some(problem) = problem::of_items(answer.errors(), single) {
        let field = problem.item.map_or_else(|| "input".to_owned(), |i| format!("input[{i}]"));
        return Err(problem.called(field));
    }
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(b"{\"object\":\"list\",\"data\":[");
    for (i, row) in answer.items.iter().flatten().enumerate() {
        let tensor = embedding_of(row).ok_or_else(|| {
            let text = "the model gives no embedding: no vector of floats an item";
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "unsupported", text)
        })?;
        let (_, dtype, shape) = row.rows.tensor(tensor);
        if let Some(wanted) = dimensions.filter(|wanted| *wanted != shape[0]) {
            let text = format!("{wanted}; the model's embeddings have {}, which is not changed", shape[0]);
            return Err(Problem::field("dimensions", text));
        }
        let bytes = row.rows.bytes(tensor, row.row);
        out.extend_from_slice(if i > 0 { b",{" } else { b"{" });
        out.extend_from_slice(b"\"object\":\"embedding\",\"index\":");
        out.extend_from_slice(itoa::Buffer::new().format(i).as_bytes());
        out.extend_from_slice(b",\"embedding\":");
        if base64 {
            out.push(b'"');
            let digits =
                if dtype == DType::F32 { STANDARD.encode(bytes) } else { STANDARD.encode(singles(dtype, bytes)) };
            out.extend_from_slice(digits.as_bytes());
            out.push(b'"');
        } else {
            numbers::write_nested(dtype, shape, bytes, &mut out);
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"],\"model\":");
    text::write_text(&model.name, &mut out);
    let tokens = answer.timings.tokens;
    let usage = format!(",\"usage\":{{\"prompt_tokens\":{tokens},\"total_tokens\":{tokens}}}}}");
    out.extend_from_slice(usage.as_bytes());
    Ok(out)
}

/// Floats as 32-bit ones, which is what base64 means here.
fn singles(dtype: DType, bytes: &[u8]) -> Vec<u8> {
    let two = |chunk: &[u8]| u16::from_le_bytes([chunk[0], chunk[1]]);
    match dtype {
        DType::F16 => bytes.chunks_exact(2).flat_map(|c| f16::from_bits(two(c)).to_f32().to_le_bytes()).collect(),
        DType::BF16 => bytes.chunks_exact(2).flat_map(|c| bf16::from_bits(two(c)).to_f32().to_le_bytes()).collect(),
        DType::F64 => bytes
            .chunks_exact(8)
            .flat_map(|c| {
                let mut raw = [0; 8];
                raw.copy_from_slice(c);
                (f64::from_le_bytes(raw) as f32).to_le_bytes()
            })
            .collect(),
        _ => bytes.to_vec(),
    }
}

pub(super) async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let name = &app.backend.model().name;
    Json(json!({ "object": "list", "data": [{ "id": name, "object": "model", "created": 0, "owned_by": "forebay" }] }))
}
