//! `[server]`, `[auth]`, `[limits]`, `[log]`, `[trace]`.

use std::path::PathBuf;

use serde::Deserialize;

/// Where and how HTTP is spoken.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Address and port; port 0 takes a free one. Default 127.0.0.1:8080.
    pub listen: String,
    /// Address and port of gRPC, where it is built in; none by default.
    pub grpc_listen: Option<String>,
    /// Threads that speak HTTP. Default 0: half of the cores, at least one.
    pub threads: usize,
    /// Threads that tokenize and decode. Default 0: one for each core.
    pub cpu_threads: usize,
    /// How long SIGTERM lets requests finish, in seconds. Default 30.
    pub drain_s: f64,
    /// How long a client may take to send its headers, and then its body, in seconds. Default 10 and 30.
    pub header_timeout_s: f64,
    /// See `header_timeout_s`.
    pub body_timeout_s: f64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8080".to_owned(),
            grpc_listen: None,
            threads: 0,
            cpu_threads: 0,
            drain_s: 30.0,
            header_timeout_s: 10.0,
            body_timeout_s: 30.0,
        }
    }
}

/// Who may ask.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthConfig {
    /// Bearer keys that are let in; empty, and without `keys_file`, all are.
    pub keys: Vec<String>,
    /// A file with one key a line.
    pub keys_file: Option<PathBuf>,
}

/// How much may be under way.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Requests under way; one more is answered 429. Default 512.
    pub in_flight: usize,
    /// Bytes of a body; a longer one is answered 413. Default 10 MiB.
    pub body_bytes: u64,
    /// How long an item may wait for a worker, in seconds, before 503. Default 5.
    pub queue_timeout_s: f64,
    /// How long a request may take, in seconds, before 504. Default 30.
    pub request_timeout_s: f64,
    /// Items that one request may have. Default 256.
    pub items: usize,
    /// Requests a second for one key (or for all without keys); none by default.
    pub requests_per_s: Option<f64>,
    /// Requests that a key may send at once beyond its rate. Default: the rate of one second.
    pub burst: Option<u32>,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            in_flight: 512,
            body_bytes: 10 << 20,
            queue_timeout_s: 5.0,
            request_timeout_s: 30.0,
            items: 256,
            requests_per_s: None,
            burst: None,
        }
    }
}

/// What is logged, to standard error.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// For people or for machines. Default text.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,forebay_serve::engine=debug`. Default info.
    pub level: String,
    /// Whether each request is logged. Default true.
    pub requests: bool,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned(), requests: true }
    }
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where traces go.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TraceConfig {
    /// The base address of an OTLP collector over HTTP, such as `http://localhost:4318`; none by default.
    pub otlp: Option<String>,
    /// The share of requests without a `traceparent` that is traced, 0 to 1. Default 0; those with one follow its flag.
    pub sample: f64,
}
