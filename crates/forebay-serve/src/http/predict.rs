//! `POST /predict`: items in, their tensors out, as plain JSON; or an image as the body, or a form with files.

use std::sync::Arc;

use axum::{
    Extension,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, header},
    response::Response,
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use super::{
    App, body,
    context::{Context, parsed, responded},
    input::{self, Items},
    json, numbers,
    problem::{self, Problem},
};
use crate::backend::{Answer, Input, ItemError, Row, Takes, TextItem};

/// The JSON of a request to `/predict`, `/generate` and `/generate_stream`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked<'a> {
    #[serde(borrow)]
    pub(super) inputs: &'a RawValue,
    #[serde(borrow, default)]
    pub(super) parameters: Option<&'a RawValue>,
}

/// What the header says that the body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Json,
    Image,
    Form,
    Other,
}

pub(super) fn kind(headers: &HeaderMap) -> Kind {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return if headers.contains_key(header::CONTENT_TYPE) { Kind::Other } else { Kind::Json };
    };
    let essence = value.split(';').next().unwrap_or_default().trim();
    let is = |name: &str| essence.eq_ignore_ascii_case(name);
    // `curl -d` says that what it sends is a form, whatever it is.
    if is("application/json") || is("application/x-www-form-urlencoded") || is("text/json") {
        Kind::Json
    } else if essence.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("image/"))
        || is("application/octet-stream")
    {
        Kind::Image
    } else if is("multipart/form-data") {
        Kind::Form
    } else {
        Kind::Other
    }
}

/// 415 where the body is not JSON.
pub(super) fn json_only(headers: &HeaderMap) -> Result<(), Problem> {
    match kind(headers) {
        Kind::Json => Ok(()),
        _ => Err(Problem::unsupported_type("expected a body of content-type application/json")),
    }
}

pub(super) async fn predict(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Context>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let kind = kind(&parts.headers);
    if kind == Kind::Other {
        return Err(Problem::unsupported_type(
            "expected a body of content-type application/json, image/… or multipart/form-data",
        ));
    }
    let body = body::read(&app, &context, &parts.headers, body).await?;
    let (items, parameters) = match kind {
        Kind::Form => form(&app, &parts.headers, body).await?,
        Kind::Image => {
            if app.backend.model().takes != Takes::Images {
                return Err(Problem::unsupported_type("the model takes no images; send JSON"));
            }
            if body.is_empty() {
                return Err(Problem::malformed("the body is empty, an image is expected"));
            }
            (Items { input: Input::Images(vec![body]), single: true }, Map::new())
        }
        _ => parsed(&app, || {
            let request: Asked<'_> = json::parse(&body)?;
            let parameters = json::parameters(request.parameters)?;
            Ok((input::read(app.backend.model(), request.inputs, &body)?, parameters))
        })?,
    };
    let single = items.single;
    let answer = context.infer(&app, items.input, parameters).await?;
    responded(&app, || write(&answer, single)).map(json::response)
}

/// A form: each file is an image, each field `inputs` a text; the field `parameters` is JSON.
async fn form(app: &App, headers: &HeaderMap, body: Bytes) -> Result<(Items, Map<String, Value>), Problem> {
    let model = app.backend.model();
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let bad = |why: multer::Error| Problem::malformed(format!("not multipart/form-data: {why}"));
    let boundary = multer::parse_boundary(kind).map_err(bad)?;
    // Whole already, and not too long.
    let mut form = multer::Multipart::new(Body::from(body).into_data_stream(), boundary);
    let mut parameters = Map::new();
    let (mut images, mut texts) = (Vec::new(), Vec::new());
    while let Some(field) = form.next_field().await.map_err(bad)? {
        let name = field.name().unwrap_or_default().to_owned();
        let file = field.file_name().is_some() || field.content_type().is_some_and(|kind| kind.type_() == "image");
        let data = field.bytes().await.map_err(bad)?;
        let text = |data: &Bytes| {
            let text = std::str::from_utf8(data).map(str::to_owned);
            text.map_err(|_| Problem::field(&name, "not UTF-8"))
        };
        match (name.as_str(), model.takes) {
            ("parameters", _) => parameters = json::parse::<json::Parameters>(&data)?.0,
            (_, Takes::Images) if file => images.push(data),
            ("inputs", Takes::Texts) => texts.push(TextItem { text: text(&data)?, pair: None }),
            (_, Takes::Images | Takes::Texts) => {
                let wanted = if model.takes == Takes::Images { "files with images" } else { "fields called inputs" };
                return Err(Problem::field(name, format!("not known; expected {wanted}, and parameters")));
            }
            _ => return Err(Problem::unsupported_type("the model takes neither images nor texts; send JSON")),
        }
        input::count(images.len().max(texts.len()).max(1), model.max_items)?;
    }
    let input = if model.takes == Takes::Images { Input::Images(images) } else { Input::Texts(texts) };
    let items = match &input {
        Input::Images(all) => all.len(),
        Input::Texts(all) => all.len(),
        _ => 0,
    };
    input::count(items, model.max_items)?;
    Ok((Items { input, single: items == 1 }, parameters))
}

/// `{"outputs": …}`: one object or a list of them, as the inputs were. An item that failed has `error` in its place; a
/// request none of whose items was answered fails.
fn write(answer: &Answer, single: bool) -> Result<Vec<u8>, Problem> {
    if answer.items.iter().all(Result::is_err) {
        problem::of_items(answer.errors(), single).map_or(Ok(()), Err)?;
    }
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(b"{\"outputs\":");
    if !single {
        out.push(b'[');
    }
    for (i, item) in answer.items.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        match item {
            Ok(row) => write_row(row, &mut out),
            Err(error) => write_error(error, &mut out),
        }
    }
    if !single {
        out.push(b']');
    }
    out.push(b'}');
    Ok(out)
}

fn write_row(row: &Row, out: &mut Vec<u8>) {
    out.push(b'{');
    for (i, (name, dtype, shape, bytes)) in row.tensors().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        json::write_text(name, out);
        out.push(b':');
        numbers::write_nested(dtype, shape, bytes, out);
    }
    out.push(b'}');
}

fn write_error(error: &ItemError, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"error\":{\"type\":");
    json::write_text(problem::kind_of(error), out);
    out.extend_from_slice(b",\"message\":");
    json::write_text(&problem::cut(&error.message), out);
    out.extend_from_slice(b"}}");
}
