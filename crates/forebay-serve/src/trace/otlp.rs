//! Spans as OTLP's JSON (`ExportTraceServiceRequest`): ids in hexadecimal, times as texts of nanoseconds.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{Attribute, Span, SpanKind};
use crate::backend::TraceContext;

/// The body of a request to `/v1/traces`.
pub(super) fn body(service: &str, spans: &[Span]) -> Vec<u8> {
    let resource = [("service.name", Attribute::Text(format!("forebay-serve:{service}")))];
    let pid = ("process.pid", Attribute::Int(i64::from(std::process::id())));
    let all = json!({
        "resourceSpans": [{
            "resource": { "attributes": attributes(resource.into_iter().chain([pid])) },
            "scopeSpans": [{
                "scope": { "name": "forebay-serve", "version": env!("CARGO_PKG_VERSION") },
                "spans": spans.iter().map(span).collect::<Vec<_>>(),
            }],
        }],
    });
    all.to_string().into_bytes()
}

fn span(span: &Span) -> Value {
    let kind = match span.kind {
        SpanKind::Internal => 1,
        SpanKind::Server => 2,
        SpanKind::Consumer => 5,
    };
    let mut out = json!({
        "traceId": trace_id(&span.context),
        "spanId": hex(&span.context.span_id),
        "name": span.name,
        "kind": kind,
        "startTimeUnixNano": nanos(span.start),
        "endTimeUnixNano": nanos(span.end.max(span.start)),
        "attributes": attributes(span.attributes.iter().cloned()),
        "links": span.links.iter().map(|link| json!({
            "traceId": trace_id(link), "spanId": hex(&link.span_id),
        })).collect::<Vec<_>>(),
        "status": span.error.as_ref().map_or_else(|| json!({}), |why| json!({ "code": 2, "message": why })),
    });
    if let Some(parent) = span.parent {
        out["parentSpanId"] = Value::String(hex(&parent));
    }
    out
}

fn trace_id(context: &TraceContext) -> String {
    hex(&context.trace_id)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn nanos(time: SystemTime) -> String {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

fn attributes(all: impl Iterator<Item = (&'static str, Attribute)>) -> Vec<Value> {
    all.map(|(key, value)| {
        let value = match value {
            Attribute::Text(text) => json!({ "stringValue": text }),
            // 64-bit integers are texts in this JSON.
            Attribute::Int(int) => json!({ "intValue": int.to_string() }),
            Attribute::Float(float) => json!({ "doubleValue": float }),
            Attribute::Bool(flag) => json!({ "boolValue": flag }),
        };
        json!({ "key": key, "value": value })
    })
    .collect()
}
