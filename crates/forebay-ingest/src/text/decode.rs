//! Ids back to text, at once or one by one.
//!
//! A [`DetokenizeStream`] gives text as soon as it is certain: never half a character, never what a later token would
//! change. What it gives in all is what [`Tokenizer::decode`] gives at once.
//!
//! ```text
//!   id ─▶ token ─▶ Stage ─▶ Stage ─▶ … ─▶ text     a stage may hold something back until the next token or the end
//! ```
//!
//! The stages are the decoder's parts in tokenizer.json. Parts that work token by token are the crate's own; parts
//! that look at neighbours are rewritten to remember what they need. After a part that joins all tokens into one
//! (`Fuse`, `ByteLevel`), what comes is one token in pieces; a part that cannot work on pieces then waits for the end.

use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;
use tokenizers::{Decoder, DecoderWrapper};

use super::bytes;
use super::error::DecodeError;
use super::tokenizer::Tokenizer;

impl Tokenizer {
    /// The text of `ids`, as the Python package gives it. Ids that are in no vocabulary are passed over.
    ///
    /// # Errors
    /// [`DecodeError`] if the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, DecodeError> {
        let known = ids.iter().any(|&id| self.inner().id_to_token(id).is_some());
        if !known {
            // Some decoders count on a token.
            return Ok(String::new());
        }
        guarded(|| self.inner().decode(ids, skip_special_tokens))
    }

    /// A decoder of ids that come one by one. See [`DetokenizeStream`].
    #[must_use]
    pub fn decode_stream(&self, skip_special_tokens: bool) -> DetokenizeStream<&Self> {
        DetokenizeStream::new(self, skip_special_tokens)
    }
}

fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, DecodeError> {
    let done = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("the tokenizers crate panicked".into()));
    done.map_err(|error| DecodeError { detail: error.to_string() })
}

/// Turns ids into text one by one; `P` is a reference or an `Arc`.
///
/// ```
/// use forebay_ingest::{Tokenizer, TokenizerOptions};
///
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/tokenizer.json");
/// let tokenizer = Tokenizer::from_file(path, &TokenizerOptions::default())?;
/// let mut stream = tokenizer.decode_stream(true);
/// let mut text = String::new();
/// for &id in tokenizer.encode_batch(["unbelievable heavens"])?.row(0) {
///     text.extend(stream.push(id)?);
/// }
/// text.extend(stream.finish()?);
/// assert_eq!(text, "unbelievable heavens");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Costs
/// Some 200 ns a token. It holds back at most a character's bytes, a run of byte tokens, or one token; a decoder that
/// rewrites the whole text after joining it holds back everything until [`finish`](Self::finish).
#[derive(Debug)]
pub struct DetokenizeStream<P> {
    tokenizer: P,
    skip_special_tokens: bool,
    stages: Vec<Stage>,
}

impl<P: Deref<Target = Tokenizer>> DetokenizeStream<P> {
    /// A stream at its start.
    pub fn new(tokenizer: P, skip_special_tokens: bool) -> Self {
        let stages = stages(tokenizer.inner().get_decoder());
        Self { tokenizer, skip_special_tokens, stages }
    }

    /// The text that is certain now that `id` came; `None` if there is no more than before.
    ///
    /// # Errors
    /// [`DecodeError`] if the tokenizer's decoder fails; the stream is of no use then.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, DecodeError> {
        let inner = self.tokenizer.inner();
        let Some(token) = inner.id_to_token(id) else { return Ok(None) };
        if self.skip_special_tokens && inner.get_added_vocabulary().is_special_token(&token) {
            return Ok(None);
        }
        run(&mut self.stages, vec![token], false)
    }

    /// What was held back, now that nothing comes any more. The stream is at its start again.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(&mut self) -> Result<Option<String>, DecodeError> {
        let mut stages = std::mem::replace(&mut self.stages, stages(self.tokenizer.inner().get_decoder()));
        run(&mut stages, Vec::new(), true)
    }
}

/// Sends `tokens` through all stages; at the end also what each holds.
fn run(stages: &mut [Stage], mut tokens: Vec<String>, end: bool) -> Result<Option<String>, DecodeError> {
    for stage in stages {
        let mut out = Vec::new();
        for token in tokens {
            stage.push(token, &mut out)?;
        }
        if end {
            stage.end(&mut out)?;
        }
        tokens = out;
    }
    let text = tokens.concat();
    Ok((!text.is_empty()).then_some(text))
}

/// A part of a decoder, with what it remembers.
#[derive(Debug)]
enum Stage {
    /// Works on each token by itself.
    Each(DecoderWrapper),
    /// Works on each token, but otherwise on the first (`WordPiece`, `Metaspace`).
    First { decoder: DecoderWrapper, seen: bool },
    /// Tokens become words with a space between: there is no decoder.
    Spaced { seen: bool },
    /// The suffix of a token becomes a space unless it is the last (`BPEDecoder`).
    Suffix { suffix: String, held: Option<String> },
    /// Repeated tokens count once (`CTC`).
    Dedup { decoder: DecoderWrapper, last: Option<String> },
    /// Tokens are characters that stand for bytes (`ByteLevel`).
    Bytes { held: Vec<u8> },
    /// Tokens like `<0xE2>` are bytes; a run of them is text or not as a whole (`ByteFallback`).
    Fallback { held: Vec<u8> },
    /// Takes characters off the ends of the one joined token (`Strip`).
    Strip { content: char, start: usize, stop: usize, begun: bool, held: String },
    /// Works on everything at once, at the end.
    Whole { decoder: DecoderWrapper, fused: bool, held: Vec<String> },
}

/// The stages of a decoder.
fn stages(decoder: Option<&DecoderWrapper>) -> Vec<Stage> {
    let Some(decoder) = decoder else { return vec![Stage::Spaced { seen: false }] };
    let mut parts = Vec::new();
    flatten(decoder, &mut parts);
    let mut fused = false;
    parts.into_iter().filter_map(|part| stage(part, &mut fused)).collect()
}

fn flatten(decoder: &DecoderWrapper, parts: &mut Vec<DecoderWrapper>) {
    match decoder {
        DecoderWrapper::Sequence(all) => all.get_decoders().iter().for_each(|part| flatten(part, parts)),
        part => parts.push(part.clone()),
    }
}

fn stage(part: DecoderWrapper, fused: &mut bool) -> Option<Stage> {
    let joined = *fused;
    Some(match part {
        DecoderWrapper::Fuse(_) => {
            *fused = true;
            return None;
        }
        DecoderWrapper::Strip(strip) if joined => {
            let (content, start, stop) = (strip.content, strip.start, strip.stop);
            Stage::Strip { content, start, stop, begun: false, held: String::new() }
        }
        DecoderWrapper::Replace(replace) if !joined || replaces_a_character(&replace) => Stage::Each(replace.into()),
        part if joined => Stage::Whole { decoder: part, fused: true, held: Vec::new() },
        DecoderWrapper::Strip(strip) => Stage::Each(strip.into()),
        DecoderWrapper::WordPiece(_) | DecoderWrapper::Metaspace(_) => Stage::First { decoder: part, seen: false },
        DecoderWrapper::BPE(bpe) => Stage::Suffix { suffix: bpe.suffix, held: None },
        DecoderWrapper::CTC(_) => Stage::Dedup { decoder: part, last: None },
        DecoderWrapper::ByteLevel(_) => {
            *fused = true;
            Stage::Bytes { held: Vec::new() }
        }
        DecoderWrapper::ByteFallback(_) => Stage::Fallback { held: Vec::new() },
        other => Stage::Whole { decoder: other, fused: false, held: Vec::new() },
    })
}

/// Whether its pattern is one character, which no cut between pieces divides.
fn replaces_a_character(replace: &tokenizers::normalizers::Replace) -> bool {
    let json: Value = serde_json::to_value(replace).unwrap_or_default();
    json["pattern"]["String"].as_str().is_some_and(|pattern| pattern.chars().count() == 1)
}

impl Stage {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<(), DecodeError> {
        match self {
            Self::Each(decoder) => out.append(&mut guarded(|| decoder.decode_chain(vec![token]))?),
            Self::First { decoder, seen: seen @ false } => {
                *seen = true;
                out.append(&mut guarded(|| decoder.decode_chain(vec![token]))?);
            }
            Self::First { decoder, .. } => {
                // An empty one before it, so that it is not the first.
                out.extend(guarded(|| decoder.decode_chain(vec![String::new(), token]))?.into_iter().skip(1));
            }
            Self::Spaced { seen } => {
                out.push(if *seen { format!(" {token}") } else { token });
                *seen = true;
            }
            Self::Suffix { suffix, held } => {
                if let Some(before) = held.replace(token) {
                    out.push(before.replace(suffix.as_str(), " "));
                }
            }
            Self::Dedup { decoder, last } => {
                if last.as_ref() != Some(&token) {
                    *last = Some(token.clone());
                    out.append(&mut guarded(|| decoder.decode_chain(vec![token]))?);
                }
            }
            Self::Bytes { held } => {
                bytes::read(&token, held);
                let text = certain(held);
                out.push(text);
            }
            Self::Fallback { held } => match byte_of(&token) {
                Some(byte) => held.push(byte),
                None => {
                    out.extend(bytes_as_text(std::mem::take(held)));
                    out.push(token);
                }
            },
            Self::Strip { content, start, stop, begun, held } => {
                held.push_str(&token);
                out.push(strip(*content, start, *stop, begun, held));
            }
            Self::Whole { held, .. } => held.push(token),
        }
        Ok(())
    }

    fn end(&mut self, out: &mut Vec<String>) -> Result<(), DecodeError> {
        match self {
            Self::Each(_) | Self::First { .. } | Self::Spaced { .. } | Self::Dedup { .. } => {}
            Self::Suffix { suffix, held } => out.extend(held.take().map(|last| last.replace(suffix.as_str(), ""))),
            Self::Bytes { held } => out.push(String::from_utf8_lossy(held).into_owned()),
            Self::Fallback { held } => out.extend(bytes_as_text(std::mem::take(held))),
            Self::Strip { content, stop, held, .. } => {
                let mut kept = held.as_str();
                for _ in 0..*stop {
                    kept = kept.strip_suffix(*content).unwrap_or(kept);
                }
                out.push(kept.to_owned());
            }
            Self::Whole { held, .. } if held.is_empty() => {}
            Self::Whole { decoder, fused, held } => {
                let held = std::mem::take(held);
                let tokens = if *fused { vec![held.concat()] } else { held };
                out.append(&mut guarded(|| decoder.decode_chain(tokens))?);
            }
        }
        Ok(())
    }
}

/// Takes from `held` the text that no further byte changes; what cannot become a character is replaced, as Python does.
fn certain(held: &mut Vec<u8>) -> String {
    let mut text = String::new();
    loop {
        match std::str::from_utf8(held) {
            Ok(rest) => {
                text.push_str(rest);
                held.clear();
                return text;
            }
            Err(error) => {
                let valid = error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&held[..valid]));
                let Some(bad) = error.error_len() else {
                    held.drain(..valid);
                    return text;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                held.drain(..valid + bad);
            }
        }
    }
}

/// The byte of a token like `<0xE2>`.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// A run of byte tokens: text if all of it is, else a replacement for each.
fn bytes_as_text(run: Vec<u8>) -> Vec<String> {
    if run.is_empty() {
        return Vec::new();
    }
    match String::from_utf8(run) {
        Ok(text) => vec![text],
        Err(error) => vec![char::REPLACEMENT_CHARACTER.to_string(); error.as_bytes().len()],
    }
}

/// Takes from `held` what is certain: nothing that might still be stripped.
fn strip(content: char, start: &mut usize, stop: usize, begun: &mut bool, held: &mut String) -> String {
    while *start > 0 && !*begun {
        match held.strip_prefix(content) {
            Some(rest) => {
                *held = rest.to_owned();
                *start -= 1;
            }
            None if held.is_empty() => return String::new(),
            None => *begun = true,
        }
    }
    *begun = true;
    // At most `stop` of the last characters, if they are such.
    let last = held.chars().rev().take(stop).take_while(|&character| character == content).count();
    let keep = held.len() - last * content.len_utf8();
    let tail = held.split_off(keep);
    std::mem::replace(held, tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_character_is_held_and_what_never_becomes_one_is_replaced() {
        let mut held = Vec::new();
        let mut text = String::new();
        for byte in "é".bytes().chain([0xe2, 0x82, b'a', 0xff]).chain("€".bytes()) {
            held.push(byte);
            text.push_str(&certain(&mut held));
        }
        assert_eq!(text, "é\u{fffd}a\u{fffd}€");
        held.push(0xf0);
        assert_eq!(certain(&mut held), "");
        assert_eq!(held, [0xf0]);
    }

    #[test]
    fn stripping_holds_back_what_might_be_the_end() {
        let mut stage = Stage::Strip { content: ' ', start: 1, stop: 2, begun: false, held: String::new() };
        let mut out = Vec::new();
        for piece in ["", " ", " a ", " ", "b ", " "] {
            stage.push(piece.into(), &mut out).unwrap();
        }
        assert_eq!(out.concat(), " a  b");
        stage.end(&mut out).unwrap();
        assert_eq!(out.concat(), " a  b");
    }
}
