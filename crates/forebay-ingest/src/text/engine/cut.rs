//! Where a text can be cut so that its pieces, tokenized alone, give the ids of the whole.
//!
//! A cut stands before a space that has a visible ASCII character before it and an ASCII letter or digit after it. For
//! the tokenizers that [`cuts_at_spaces`] accepts, nothing reaches over such a place:
//!
//! - *Normalizers* work character by character, or within runs that a space ends (Unicode composition, grapheme
//!   clusters); replacing runs of two or more spaces does not concern a single one.
//! - *Pre-tokenizers* put a boundary there: they split at white space, or before it; their patterns have no way to match
//!   on from a visible character over a space, and look ahead only within white space.
//! - *Added tokens* that contain white space, or take in what follows them, are not accepted.
//! - *Models* see what pre-tokenizers leave, one split at a time, and are not random.
//!
//! What is not known to be so is not cut. This file decides; `words.rs` remembers the pieces.

use serde_json::Value;

/// Patterns of byte-level vocabularies for which the above was checked, alternative by alternative. None has a look
/// behind; `\s+(?!\S)` looks ahead only from white space to white space; none matches a space after a visible character.
const PATTERNS: &[&str] = &[
    // GPT-2, r50k, p50k, and the same as tiktoken writes it.
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    // cl100k, Llama 3, Qwen 2.
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    // o200k.
    super::super::tiktoken::O200K,
    // DeepSeek: digits and Chinese are split off before.
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];

/// Patterns among [`PATTERNS`] that have no boundary at a space: fine beside one that has.
const WITHOUT_SPACE: &[&str] = &[r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+"];

/// The place of the first cut in `text` after its first byte.
pub(super) fn first_cut(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    bytes
        .windows(3)
        .position(|w| w[1] == b' ' && w[0].is_ascii_graphic() && w[2].is_ascii_alphanumeric())
        .map(|at| at + 1)
}

/// Whether the tokenizer that `json` (a tokenizer.json) describes gives the same ids when texts are cut.
pub(super) fn cuts_at_spaces(json: &Value) -> bool {
    let splits = match pre_tokenizer(&json["pre_tokenizer"]) {
        Some(splits) => splits,
        None => return false,
    };
    splits
        && normalizer(&json["normalizer"])
        && json["added_tokens"].as_array().is_none_or(|tokens| tokens.iter().all(added_token))
        && model(&json["model"])
}

fn model(model: &Value) -> bool {
    let kind = model["type"].as_str().unwrap_or_default();
    let certain = model["dropout"].as_f64().unwrap_or(0.0) == 0.0;
    certain && matches!(kind, "BPE" | "WordPiece" | "WordLevel" | "Unigram")
}

fn added_token(token: &Value) -> bool {
    let content = token["content"].as_str().unwrap_or_default();
    let takes_before = token["lstrip"] == true;
    let takes_after = token["rstrip"] == true;
    // One that takes in white space before it must not start where a cut may follow that space.
    let starts_open = content.starts_with(|first: char| first.is_ascii_alphanumeric());
    !(content.is_empty() || content.contains(char::is_whitespace) || takes_after || takes_before && starts_open)
}

fn normalizer(normalizer: &Value) -> bool {
    if normalizer.is_null() {
        return true;
    }
    match normalizer["type"].as_str().unwrap_or_default() {
        "BertNormalizer" | "Lowercase" | "StripAccents" | "NFC" | "NFD" | "NFKC" | "NFKD" | "Nmt" | "Precompiled" => {
            true
        }
        "Replace" => {
            let content = normalizer["content"].as_str().unwrap_or_default();
            match (normalizer["pattern"]["Regex"].as_str(), normalizer["pattern"]["String"].as_str()) {
                (Some(" {2,}"), _) => true,
                // Neither side may make or take a space, and nothing may vanish beside one.
                (None, Some(pattern)) => [pattern, content].iter().all(|s| !s.is_empty() && !s.contains([' ', '▁'])),
                _ => false,
            }
        }
        "Sequence" => normalizer["normalizers"].as_array().is_some_and(|all| all.iter().all(self::normalizer)),
        _ => false,
    }
}

/// `None` if not known to be safe, else whether it puts a boundary at a cut.
fn pre_tokenizer(pre: &Value) -> Option<bool> {
    match pre["type"].as_str()? {
        "BertPreTokenizer" | "Whitespace" | "WhitespaceSplit" => Some(true),
        "Punctuation" | "Digits" => Some(false),
        "Metaspace" => (pre["split"] != false).then_some(true),
        "ByteLevel" => Some(pre["use_regex"] != false),
        "Split" => {
            let pattern = pre["pattern"]["Regex"].as_str()?;
            let known = PATTERNS.contains(&pattern) && pre["behavior"] == "Isolated" && pre["invert"] == false;
            known.then(|| !WITHOUT_SPACE.contains(&pattern))
        }
        "Sequence" => {
            let all: Option<Vec<bool>> = pre["pretokenizers"].as_array()?.iter().map(pre_tokenizer).collect();
            Some(all?.contains(&true))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bert() -> Value {
        json!({
            "normalizer": {"type": "BertNormalizer"},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "model": {"type": "WordPiece"},
            "added_tokens": [{"content": "[MASK]", "lstrip": false, "rstrip": false}],
        })
    }

    #[test]
    fn cuts_stand_only_between_a_visible_character_and_a_letter() {
        for (text, at) in [
            ("a b", Some(1)),
            (", b", Some(1)),
            (" b c", Some(2)),
            ("a  b c", Some(4)),
            ("a .b", None),
            ("a\t b", None),
            ("é b", None),
            ("a é", None),
            ("a ", None),
            ("", None),
        ] {
            assert_eq!(first_cut(text), at, "{text:?}");
        }
    }

    #[test]
    fn what_is_not_known_is_not_cut() {
        assert!(cuts_at_spaces(&bert()));
        for (place, value) in [
            ("/normalizer", json!({"type": "Prepend", "prepend": "▁"})),
            ("/normalizer", json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})),
            ("/normalizer", json!({"type": "Replace", "pattern": {"String": "`"}, "content": ""})),
            ("/normalizer", json!({"type": "Replace", "pattern": {"Regex": "a b"}, "content": "c"})),
            ("/normalizer", json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]})),
            ("/pre_tokenizer", json!(null)),
            ("/pre_tokenizer", json!({"type": "Punctuation"})),
            ("/pre_tokenizer", json!({"type": "Metaspace", "split": false})),
            ("/pre_tokenizer", json!({"type": "ByteLevel", "use_regex": false})),
            (
                "/pre_tokenizer",
                json!({"type": "Split", "pattern": {"Regex": "\\w+ \\w+"}, "behavior": "Isolated", "invert": false}),
            ),
            ("/model", json!({"type": "BPE", "dropout": 0.1})),
            ("/added_tokens/0", json!({"content": "a b"})),
            ("/added_tokens/0", json!({"content": "[MASK]", "rstrip": true})),
            ("/added_tokens/0", json!({"content": "mask", "lstrip": true})),
        ] {
            let mut tokenizer = bert();
            *tokenizer.pointer_mut(place).unwrap() = value.clone();
            assert!(!cuts_at_spaces(&tokenizer), "{place} {value}");
        }
    }
}
