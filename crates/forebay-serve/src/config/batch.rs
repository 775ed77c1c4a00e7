//! `[batch]`: how items become batches.

use serde::Deserialize;

/// How items become batches. A batch leaves as soon as a worker is free; nothing here delays it except `window_ms`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchConfig {
    /// Items at most. Default 32; 1 switches batching off.
    pub max_items: usize,
    /// Padded tokens at most (rows × width). Default 16,384.
    pub max_tokens: usize,
    /// Bytes of tensors at most; default: a slot.
    pub max_bytes: Option<u64>,
    /// How long a batch that is not full waits for more items while a worker is free, in milliseconds. Default 0.
    pub window_ms: f64,
    /// Upper ends of length buckets, in tokens; items of one batch come from one bucket unless it would leave room. Default
    /// none: items are sorted by length within what waits.
    pub buckets: Vec<usize>,
    /// Batches that wait inside a worker beside the one it runs. Default 1.
    pub prefetch: usize,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self { max_items: 32, max_tokens: 16_384, max_bytes: None, window_ms: 0.0, buckets: Vec::new(), prefetch: 1 }
    }
}
