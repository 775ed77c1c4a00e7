//! Reading a tokenizer.json: from the disk, as JSON, as a tokenizer; and finding its padding token.
//!
//! Every way in which a file can be something else gets its own text, because passing the wrong file is the mistake
//! that users make. This file decides nothing about rows.

use std::fs::File;
use std::io::{self, Read};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::Value;

use super::error::TokenizerError;
use super::tokenizer::PadSource;

/// More than ten times the largest tokenizer.json in common use.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// The content of the tokenizer file that `path` means, and its own path.
pub(crate) fn read(path: &Path) -> Result<(Vec<u8>, PathBuf), TokenizerError> {
    let path = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
    let mut bytes = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) if bytes.len() as u64 > MAX_FILE_BYTES => {
            Err(TokenizerError::TooLarge { path, limit_bytes: MAX_FILE_BYTES })
        }
        Ok(_) => Ok((bytes, path)),
        Err(source) => Err(TokenizerError::Unreadable { path, source }),
    }
}

/// The tokenizer in `bytes`.
pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let not_json = |found, detail| TokenizerError::NotJson { path: path.to_owned(), found, detail };
    let text = std::str::from_utf8(bytes).map_err(|error| not_json(kind_of_bytes(bytes), error.to_string()))?;
    // The crate panics on some well-formed files, such as those whose tables point outside each other.
    let parsed = catch_unwind(|| tokenizers::Tokenizer::from_str(text))
        .unwrap_or_else(|_| Err("the tokenizers crate panicked".into()));
    parsed.map_err(|error| match serde_json::from_str(text) {
        Ok(value) => TokenizerError::NotATokenizer {
            path: path.to_owned(),
            found: kind_of_json(&value),
            detail: error.to_string(),
        },
        Err(json) => not_json(kind_of_bytes(bytes), json.to_string()),
    })
}

fn kind_of_bytes(bytes: &[u8]) -> &'static str {
    match bytes {
        [] => "an empty file",
        [b'P', b'K', 3, 4, ..] => "a ZIP archive",
        [0x1f, 0x8b, ..] => "a gzip file",
        _ if bytes.get(8) == Some(&b'{') && bytes[..8].ends_with(&[0, 0]) => "a safetensors file",
        _ if bytes.starts_with(b"version https://git-lfs") => "a Git LFS pointer (the file itself was not downloaded)",
        [b'{' | b'[', ..] => "cut or damaged",
        _ if bytes.contains(&0) || std::str::from_utf8(bytes).is_err() => "a binary file",
        _ => "text",
    }
}

fn kind_of_json(value: &Value) -> String {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(map) if map.contains_key("model") && map.contains_key("added_tokens") => {
            "a tokenizer that this build cannot run"
        }
        Value::Object(map) if map.contains_key("tokenizer_class") || map.contains_key("model_max_length") => {
            "a tokenizer_config.json"
        }
        Value::Object(map) if map.contains_key("architectures") || map.contains_key("model_type") => {
            "a model's config.json"
        }
        Value::Object(map) if !map.is_empty() && map.values().all(Value::is_number) => "a vocabulary (vocab.json)",
        Value::Object(_) => "another JSON object",
    };
    kind.to_owned()
}

/// The `pad_token` in the tokenizer_config.json beside `path`, if there is one.
pub(crate) fn pad_token_beside(path: &Path) -> Option<String> {
    let config = File::open(path.with_file_name("tokenizer_config.json")).ok()?;
    let text = io::read_to_string(config.take(MAX_FILE_BYTES)).ok()?;
    let config: Value = serde_json::from_str(&text).ok()?;
    let token = &config["pad_token"];
    // Older files have the text itself, newer ones an object.
    let token = token.as_str().or_else(|| token["content"].as_str())?;
    Some(token.to_owned())
}

/// A padding token for a tokenizer.json that names none.
pub(crate) fn guess_pad(inner: &tokenizers::Tokenizer, configured: Option<String>) -> (u32, PadSource) {
    if let Some(token) = configured
        && let Some(id) = inner.token_to_id(&token)
    {
        return (id, PadSource::TokenizerConfig(token));
    }
    let usual = ["[PAD]", "<pad>", "<PAD>", "<|pad|>", "<|padding|>"];
    for token in usual {
        if let Some(id) = inner.token_to_id(token) {
            return (id, PadSource::Vocabulary(token.to_owned()));
        }
    }
    let special = inner.get_added_tokens_decoder();
    let named_so = special.iter().filter(|(_, token)| token.special && token.content.to_lowercase().contains("pad"));
    match named_so.min_by_key(|(id, _)| **id) {
        Some((&id, token)) => (id, PadSource::Vocabulary(token.content.clone())),
        None => (0, PadSource::Nothing),
    }
}
