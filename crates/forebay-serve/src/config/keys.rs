//! Every key there is: what may stand there, and what holds where it does not.
//!
//! The structures beside this file say what a key means; this table is what unknown keys, wrong types and numbers out of
//! range are found with, and what docs/serve/configuration.md is checked against.

use self::Kind::{Choice, DTypeName, File, Flag, Map, Number, Shape, Tables, Text, Texts, Whole, Wholes};

/// A key of the file.
#[derive(Debug)]
pub struct Key {
    /// Its path, such as `server.listen`; `model.outputs[].name` within tables that repeat.
    pub path: &'static str,
    /// What holds where it does not stand, as docs/serve/configuration.md says it; "required" where it must.
    pub default: &'static str,
    /// What may stand there.
    pub(super) kind: Kind,
}

/// What may stand in a key.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Text,
    /// A path, relative to the file (or to the current folder, from the environment and flags).
    File,
    Flag,
    Whole(i64, i64),
    Number(f64, f64),
    Choice(&'static [&'static str]),
    DTypeName,
    /// Dims of one item: −1 or at least 1.
    Shape,
    Texts,
    Wholes(i64, i64),
    /// Names and texts.
    Map,
    /// Tables that repeat; their keys are those below `path[]`.
    Tables,
}

/// The longest time that a key in seconds may say: a day.
const DAY: f64 = 86_400.0;
/// More than any count or size makes sense for.
const MUCH: i64 = 1 << 40;

const fn key(path: &'static str, kind: Kind, default: &'static str) -> Key {
    Key { path, default, kind }
}

/// Every key, in the order of the documentation.
pub const KEYS: &[Key] = &[
    key("server.listen", Text, "127.0.0.1:8080"),
    key("server.grpc_listen", Text, "none"),
    key("server.threads", Whole(0, 1024), "0"),
    key("server.cpu_threads", Whole(0, 1024), "0"),
    key("server.drain_s", Number(0.0, DAY), "30"),
    key("server.header_timeout_s", Number(0.001, DAY), "10"),
    key("server.body_timeout_s", Number(0.001, DAY), "30"),
    key("auth.keys", Texts, "none"),
    key("auth.keys_file", File, "none"),
    key("limits.in_flight", Whole(1, 1 << 20), "512"),
    key("limits.body_bytes", Whole(1, MUCH), "10485760"),
    key("limits.queue_timeout_s", Number(0.001, DAY), "5"),
    key("limits.request_timeout_s", Number(0.001, DAY), "30"),
    key("limits.items", Whole(1, 1 << 20), "256"),
    key("limits.requests_per_s", Number(0.001, 1e9), "none"),
    key("limits.burst", Whole(1, 1 << 30), "the rate of one second"),
    key("log.format", Choice(&["text", "json"]), "text"),
    key("log.level", Text, "info"),
    key("log.requests", Flag, "true"),
    key("trace.otlp", Text, "none"),
    key("trace.sample", Number(0.0, 1.0), "0"),
    key("model.name", Text, "required"),
    key("model.version", Text, "1"),
    key("model.generate", Flag, "false"),
    key("model.input.type", Choice(&["text", "image", "tensors", "table"]), "required"),
    key("model.input.tokenizer", File, "required"),
    key("model.input.max_tokens", Whole(1, MUCH), "the tokenizer's, else 512"),
    key("model.input.truncate", Flag, "true"),
    key("model.input.token_type_ids", Flag, "false"),
    key("model.input.pad_to_multiple_of", Whole(1, 1 << 16), "1"),
    key("model.input.pad_left", Flag, "`model.generate`"),
    key("model.input.special_tokens", Flag, "true"),
    key("model.input.processor", File, "required"),
    key("model.input.max_pixels", Whole(1, MUCH), "67108864"),
    key("model.input.tensors", Tables, "required"),
    key("model.input.tensors[].name", Text, "required"),
    key("model.input.tensors[].dtype", DTypeName, "required"),
    key("model.input.tensors[].shape", Shape, "[]"),
    key("model.input.tensors[].max_dims", Wholes(1, MUCH), "[]"),
    key("model.input.schema", File, "required"),
    key("model.parameters", Tables, "[]"),
    key("model.parameters[].name", Text, "required"),
    key("model.parameters[].dtype", DTypeName, "required"),
    key("model.parameters[].default", Number(f64::MIN, f64::MAX), "required"),
    key("model.parameters[].min", Number(f64::MIN, f64::MAX), "none"),
    key("model.parameters[].max", Number(f64::MIN, f64::MAX), "none"),
    key("model.outputs", Tables, "[]"),
    key("model.outputs[].name", Text, "required"),
    key("model.outputs[].dtype", DTypeName, "required"),
    key("model.outputs[].shape", Shape, "[]"),
    key("batch.max_items", Whole(1, 1 << 20), "32"),
    key("batch.max_tokens", Whole(1, MUCH), "16384"),
    key("batch.max_bytes", Whole(1, MUCH), "a slot"),
    key("batch.window_ms", Number(0.0, 60_000.0), "0"),
    key("batch.buckets", Wholes(1, MUCH), "[]"),
    key("batch.prefetch", Whole(0, 64), "1"),
    key("worker.command", Texts, "required"),
    key("worker.count", Whole(1, 1024), "1"),
    key("worker.ranks", Whole(1, 32), "1"),
    key("worker.cwd", File, "the file's folder"),
    key("worker.env", Map, "{}"),
    key("worker.start_timeout_s", Number(0.001, DAY), "300"),
    key("worker.batch_timeout_s", Number(0.001, DAY), "60"),
    key("worker.grace_s", Number(0.0, DAY), "10"),
    key("worker.on_death", Choice(&["fail", "retry"]), "fail"),
    key("worker.backoff_s", Number(0.0, 30.0), "0.1"),
    key("worker.crash_loop", Whole(1, 1 << 20), "5"),
    key("worker.slots", Whole(1, 1 << 16), "`batch.prefetch` + 3, with `model.generate` + 8"),
    key("worker.slot_bytes", Whole(1, MUCH), "what the largest batch needs, at most 64 MiB"),
    key("worker.answer_slots", Whole(1, 1 << 16), "16"),
    key("worker.answer_slot_bytes", Whole(1, MUCH), "1048576"),
];

impl Key {
    /// The variable of the environment that sets it; keys within tables that repeat have none.
    #[must_use]
    pub fn variable(&self) -> Option<String> {
        let name = || format!("{PREFIX}{}", self.path.replace('.', "_").to_uppercase());
        (!self.path.contains("[]")).then(name)
    }
}

/// What the variables of the environment begin with.
pub(super) const PREFIX: &str = "FOREBAY_SERVE_";

/// The key with this path.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Whether there are keys below `path`.
pub(super) fn is_table(path: &str) -> bool {
    KEYS.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// The known name that is most like `unknown`, if one is at all like it.
pub(super) fn nearest(unknown: &str, known: impl Iterator<Item = String>) -> Option<String> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
    known
        .map(|name| {
            // The right word in the wrong table is as good a guess as a slip of the pen.
            let whole = strsim::normalized_damerau_levenshtein(unknown, &name);
            let word = strsim::normalized_damerau_levenshtein(&last(unknown), &last(&name));
            (whole.max(word - 0.05), name)
        })
        .filter(|(likeness, _)| *likeness > 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}
