//! What `feed` tells when it ends: the table, or the same as JSON.

use std::time::Duration;

use forebay::ProducerStats;
use forebay_ingest::Report;
use serde_json::json;

use crate::units::{Bytes, grouped, rate, span};

/// The kind of a row that no slot has room for.
pub(super) const TOO_LARGE: &str = "too large for a slot";

/// What was published.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Done {
    pub(super) rows: u64,
    pub(super) tokens: u64,
    pub(super) padded_tokens: u64,
    /// Rows left out because no slot has room for them.
    pub(super) too_large: u64,
}

/// What one run did.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) ring: String,
    /// Whether it was text, which has tokens.
    pub(super) text: bool,
    /// What was read; it may be a batch ahead of what was published.
    pub(super) report: Report,
    pub(super) done: Done,
    /// Counted by this run alone.
    pub(super) messages: u64,
    pub(super) payload_bytes: u64,
    pub(super) dropped: u64,
    pub(super) dead_letters: u64,
    pub(super) full_waits: u64,
    /// Messages that consumers had not finished with at the end.
    pub(super) outstanding: u32,
    pub(super) elapsed: Duration,
    pub(super) resumed: bool,
}

impl Summary {
    /// Fills in what the producer counted since `before`.
    pub(super) fn count(&mut self, before: &ProducerStats, after: &ProducerStats) {
        self.messages = after.published.saturating_sub(before.published);
        self.payload_bytes = after.bytes.saturating_sub(before.bytes);
        self.dropped = after.dropped.saturating_sub(before.dropped);
        self.full_waits = after.full_waits.saturating_sub(before.full_waits);
        self.outstanding = after.undelivered;
    }

    fn per_second(&self, amount: u64) -> f64 {
        amount as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let report = &self.report;
        let mut rows = vec![
            ("ring", self.ring.clone()),
            ("messages", grouped(self.messages)),
            ("rows", grouped(self.done.rows)),
            ("time", span(self.elapsed)),
            ("rows/s", rate(self.per_second(self.done.rows))),
            (
                "MB/s",
                format!(
                    "{:.1} of input, {:.1} of tensors",
                    self.per_second(report.input_bytes) / 1e6,
                    self.per_second(self.payload_bytes) / 1e6
                ),
            ),
            ("payload", Bytes(self.payload_bytes).to_string()),
            ("skipped", self.skipped()),
            ("dropped", grouped(self.dropped)),
            ("dead letters", grouped(self.dead_letters)),
            ("waits for a slot", grouped(self.full_waits)),
            ("copies of the payload", "once prepared only into the slot".to_owned()),
        ];
        if self.text {
            let padded = grouped(self.done.padded_tokens);
            rows.insert(3, ("tokens", format!("{} ({padded} with padding)", grouped(self.done.tokens))));
            rows.insert(5, ("tokens/s", rate(self.per_second(self.done.tokens))));
        }
        if self.outstanding > 0 {
            rows.push(("not yet received", grouped(self.outstanding.into())));
        }
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        rows.iter().map(|(name, value)| format!("{name:<width$}  {value}\n")).collect()
    }

    /// For programs: one object on one line. Times are seconds, sizes bytes.
    pub(super) fn json(&self) -> String {
        let report = &self.report;
        let by_kind: serde_json::Map<_, _> =
            self.by_kind().map(|(kind, lines)| (kind.to_owned(), json!(lines))).collect();
        let value = json!({
            "ring": self.ring,
            "complete": report.complete,
            "resumed": self.resumed,
            "messages": self.messages,
            "rows": self.done.rows,
            "tokens": self.done.tokens,
            "padded_tokens": self.done.padded_tokens,
            "input_bytes": report.input_bytes,
            "payload_bytes": self.payload_bytes,
            "rows_per_second": self.per_second(self.done.rows),
            "seconds": self.elapsed.as_secs_f64(),
            "tokens_per_second": self.per_second(self.done.tokens),
            "payload_bytes_per_second": self.per_second(self.payload_bytes),
            "skipped": by_kind,
            "skipped_lines": report.skipped.total() + self.done.too_large,
            "blank_lines": report.skipped.blank(),
            "dropped": self.dropped,
            "dead_letters": self.dead_letters,
            "full_waits": self.full_waits,
            "outstanding": self.outstanding,
        });
        format!("{value}\n")
    }

    /// What was left out: (kind, items).
    fn by_kind(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let too_large = Some((TOO_LARGE, self.done.too_large)).filter(|&(_, rows)| rows > 0);
        self.report.skipped.by_kind().chain(too_large)
    }

    fn skipped(&self) -> String {
        let mut parts: Vec<String> = self.by_kind().map(|(kind, lines)| format!("{} {kind}", grouped(lines))).collect();
        let blank = self.report.skipped.blank();
        if blank > 0 {
            parts.push(format!("{} blank", grouped(blank)));
        }
        if parts.is_empty() { "0".to_owned() } else { parts.join(", ") }
    }
}
