//! JSON of requests: parsed once into borrowed pieces; looked at a second time only to say which field is wrong.

use std::borrow::Cow;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value, error::Category, value::RawValue};

use super::problem::Problem;

/// What `bytes` say.
pub(super) fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| explain::<T>(bytes, "", &error))
}

/// What the piece `raw`, found in `field`, says.
pub(super) fn parse_raw<'a, T: Deserialize<'a>>(raw: &'a RawValue, field: &str) -> Result<T, Problem> {
    serde_json::from_str(raw.get()).map_err(|error| explain::<T>(raw.get().as_bytes(), field, &error))
}

/// 400 for what is no JSON, 422 with the field for what is, but not what is expected.
fn explain<'a, T: Deserialize<'a>>(bytes: &'a [u8], within: &str, error: &serde_json::Error) -> Problem {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Problem::malformed("the body is empty, JSON is expected");
    }
    if error.classify() != Category::Data {
        return Problem::malformed(format!("the body is not JSON: {error}"));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let path = match serde_path_to_error::deserialize::<_, T>(&mut reader) {
        Err(error) => error.path().to_string(),
        Ok(_) => ".".to_owned(),
    };
    // The words around it are serde_json's; the place is said by the field.
    let mut message = error.to_string();
    if let Some(end) = message.rfind(" at line ") {
        message.truncate(end);
    }
    let named = message.split('`').nth(1).filter(|_| message.contains(" field `"));
    let mut field = within.to_owned();
    for part in [Some(path.as_str()).filter(|path| *path != "."), named].into_iter().flatten() {
        if field.ends_with(part) {
            continue;
        }
        if !field.is_empty() && !part.starts_with('[') {
            field.push('.');
        }
        field.push_str(part);
    }
    Problem::field(if field.is_empty() { "body" } else { &field }, message)
}

/// `parameters` of a request; none is an empty object.
pub(super) fn parameters(raw: Option<&RawValue>) -> Result<Map<String, Value>, Problem> {
    match raw {
        None => Ok(Map::new()),
        Some(raw) => parse_raw::<Option<Map<String, Value>>>(raw, "parameters").map(Option::unwrap_or_default),
    }
}

/// A text that is borrowed where it has no escapes.
#[derive(Debug, PartialEq, Eq, Hash, Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// Appends `text` as a JSON string.
pub(super) fn write_text(text: &str, out: &mut Vec<u8>) {
    // Writing to a Vec does not fail.
    let _ = serde_json::to_writer(out, text);
}

/// 200 with this JSON.
pub(super) fn response(json: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(json));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
