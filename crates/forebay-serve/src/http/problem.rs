//! What went wrong, as a status code and one shape of JSON; the protocol v2 has its own.

use std::{borrow::Cow, fmt::Write as _};

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};

use crate::backend::{ItemError, ItemErrorKind, Refusal};

/// Bytes of a message and of a field, about. Both repeat what clients and workers said, which has any length, and go into the
/// answer, the log, a span, and over gRPC into a header: a byte may be three there, and clients take 8 KiB of headers.
const SAID: usize = 1 << 10;

/// `text`, cut if it is longer than what is shown of anything.
pub(crate) fn cut(text: &str) -> Cow<'_, str> {
    if text.len() <= SAID {
        return Cow::Borrowed(text);
    }
    let end = (0..=SAID).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    Cow::Owned(format!("{}…", &text[..end]))
}

/// The same of a text that is not needed any more.
fn short(text: impl Into<String>) -> String {
    let text = text.into();
    match cut(&text) {
        Cow::Owned(short) => short,
        Cow::Borrowed(_) => text,
    }
}

/// Why a request is not answered as asked. Travels to the front inside a response's extensions, where the request's id
/// is put in.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    /// The word in `error.type`, which is the reason in the metrics as well.
    pub(crate) kind: &'static str,
    /// Not to be set but through here, where it is cut; nor is the field.
    message: String,
    field: Option<String>,
    pub(crate) item: Option<usize>,
    pub(crate) retry_after_s: Option<u64>,
    /// Methods that there are, with 405.
    pub(crate) allow: Option<&'static str>,
    /// Whether the connection cannot be used any more.
    pub(crate) close: bool,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        let message = short(message);
        Self { status, kind, message, field: None, item: None, retry_after_s: None, allow: None, close: false }
    }

    /// 422 with the field that is to blame.
    pub(crate) fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message).at(field)
    }

    /// 400: what was sent is not in the format that it says it is in.
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", message)
    }

    /// 413.
    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    /// 415.
    pub(crate) fn unsupported_type(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_type", message)
    }

    /// 504.
    pub(crate) fn deadline() -> Self {
        Self::from(Refusal::Deadline)
    }

    /// The field that is to blame.
    pub(crate) fn at(self, field: impl Into<String>) -> Self {
        Self { field: Some(short(field)), ..self }
    }

    /// Another name of the field, where one is to blame.
    pub(crate) fn called(self, field: impl Into<String>) -> Self {
        if self.field.is_some() { self.at(field) } else { self }
    }

    pub(crate) fn allowing(self, methods: &'static str) -> Self {
        Self { allow: Some(methods), ..self }
    }

    pub(crate) fn item(self, item: usize) -> Self {
        Self { item: Some(item), ..self }
    }

    pub(crate) fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }

    pub(crate) fn closing(self) -> Self {
        Self { close: true, ..self }
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Field and message as one text.
    pub(crate) fn text(&self) -> String {
        let field = self.field.as_ref().map_or_else(String::new, |field| format!("{field}: "));
        format!("{field}{}", self.message)
    }

    /// The body: `{"error": {"type", "message", "field"?, "item"?, "request_id"}}`.
    pub(crate) fn json(&self, request_id: &str) -> Value {
        json!({ "error": self.parts("message", self.message.clone(), request_id) })
    }

    /// The same for the Open Inference Protocol, whose `error` is a text: `{"error", "type", "field"?, "item"?,
    /// "request_id"}`. Its clients show nothing but that text, so the field is in it.
    fn flat_json(&self, request_id: &str) -> Value {
        Value::Object(self.parts("error", self.text(), request_id))
    }

    fn parts(&self, text: &str, message: String, request_id: &str) -> Map<String, Value> {
        let known = [("type", json!(self.kind)), (text, json!(message)), ("request_id", json!(request_id))];
        let field = self.field.iter().map(|field| ("field", json!(field)));
        let item = self.item.iter().map(|item| ("item", json!(item)));
        known.into_iter().chain(field).chain(item).map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// What a client of this path is told.
    pub(crate) fn response(&self, path: &str, request_id: &str) -> Response {
        let v2 = path.starts_with("/v2");
        let json = if v2 { self.flat_json(request_id) } else { self.json(request_id) };
        let mut response = Response::new(Body::from(json.to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(methods) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(methods));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl IntoResponse for Problem {
    /// Empty: the front makes the body, because it knows the request's id.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        let of = |status, kind| Self::new(status, kind, message.clone());
        match refusal {
            Refusal::Full { retry_after_s, .. } => {
                of(StatusCode::TOO_MANY_REQUESTS, "queue_full").retry_after(retry_after_s.max(1))
            }
            Refusal::Memory { retry_after_s, .. } => {
                of(StatusCode::TOO_MANY_REQUESTS, "memory").retry_after(retry_after_s.max(1))
            }
            Refusal::QueueTimeout { .. } => of(StatusCode::SERVICE_UNAVAILABLE, "queue_timeout").retry_after(1),
            Refusal::Deadline => of(StatusCode::GATEWAY_TIMEOUT, "deadline"),
            Refusal::Invalid { field, item, message } => Self { item, ..Self::field(field, message) },
            Refusal::TooLarge(_) => of(StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            Refusal::Worker { kind, message } => {
                let mut text = format!("the model failed: {kind}");
                if !message.is_empty() {
                    let _ = write!(text, ": {message}");
                }
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "model_failed", text)
            }
            Refusal::WorkerDied => of(StatusCode::BAD_GATEWAY, "worker_died"),
            Refusal::NotReady(_) => of(StatusCode::SERVICE_UNAVAILABLE, "not_ready").retry_after(1),
            Refusal::Draining => of(StatusCode::SERVICE_UNAVAILABLE, "draining").retry_after(1),
            Refusal::Unsupported(_) => of(StatusCode::UNPROCESSABLE_ENTITY, "unsupported"),
        }
    }
}

/// The word for why an item failed.
pub(crate) fn kind_of(error: &ItemError) -> &'static str {
    match error.kind {
        ItemErrorKind::Invalid => "invalid",
        ItemErrorKind::Model => "model_failed",
    }
}

/// The problem that a request is which fails because items did: what the model did wrong comes before what the client did,
/// wherever it stands. `None` without errors.
pub(crate) fn of_items<'a>(errors: impl Iterator<Item = (usize, &'a ItemError)>, single: bool) -> Option<Problem> {
    let mut errors = errors.peekable();
    let first = errors.peek().copied();
    let (item, error) = errors.find(|(_, error)| error.kind == ItemErrorKind::Model).or(first)?;
    Some(of_item(error, item, single))
}

/// The problem that one failed item is when it fails the whole request.
fn of_item(error: &ItemError, item: usize, single: bool) -> Problem {
    let problem = match error.kind {
        ItemErrorKind::Invalid => Problem::field("inputs", error.message.clone()),
        ItemErrorKind::Model => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "model_failed", error.message.clone()),
    };
    if single { problem } else { problem.item(item) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_is_cut_between_two_characters() {
        let whole = "x".repeat(SAID);
        assert_eq!(cut(&whole), whole);
        assert_eq!(cut(&format!("{whole}y")), format!("{whole}…"));
        // The third byte of the last character would be one too many.
        let cut = cut(&format!("{}{}", &whole[2..], "€".repeat(1 << 20))).into_owned();
        assert_eq!(cut, format!("{}…", &whole[2..]));
    }

    #[test]
    fn a_problem_is_short_however_it_is_made() {
        let long = "€".repeat(1 << 20);
        let refused = Refusal::Invalid { field: long.clone(), item: None, message: long.clone() };
        let raised = Refusal::Worker { kind: long.clone(), message: long.clone() };
        let of = |kind| of_item(&ItemError { kind, message: long.clone() }, 0, true);
        for problem in [
            Problem::from(refused),
            Problem::from(raised),
            Problem::malformed(long.as_str()).at(long.as_str()),
            Problem::field("x", long.as_str()).called(long.as_str()),
            of(ItemErrorKind::Invalid),
            of(ItemErrorKind::Model),
        ] {
            assert!(problem.text().len() < 2 * SAID + 16, "{}", problem.text().len());
            assert!(problem.message().ends_with('…'));
        }
    }
}
