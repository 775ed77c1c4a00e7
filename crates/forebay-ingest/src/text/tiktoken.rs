//! Vocabularies as tiktoken stores them: a token in base64 and its rank on each line; the pattern comes with the name.
//!
//! They become a byte-level BPE of the `tokenizers` crate, so that everything else (offsets, padding, added tokens,
//! decoding) is the same code. A tiktoken merge is any two neighbours that make a token, the lowest rank first; so the
//! merges are all ways to cut each token in two tokens, in the order of the ranks. A piece of text that is a token as a
//! whole is that token in both.

use std::path::Path;

use ahash::AHashMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::BpeBuilder;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::bytes::written;
use super::error::TokenizerError;
use super::load;
use super::tokenizer::{Tokenizer, TokenizerOptions};

/// r50k, p50k and GPT-2.
const GPT2: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s";
/// GPT-3.5 and GPT-4.
const CL100K: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";
/// GPT-4o and later.
pub(super) const O200K: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// What a `.tiktoken` file does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TiktokenOptions {
    /// The regular expression that cuts texts into pieces.
    pub pattern: String,
    /// Special tokens and their ids. One that is a single piece for the pattern (letters alone) is that token in any
    /// text; those that were published are not.
    pub special_tokens: Vec<(String, u32)>,
}

impl TiktokenOptions {
    /// Those of a vocabulary that OpenAI published: `gpt2`, `r50k_base`, `p50k_base`, `cl100k_base` or `o200k_base`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let special: &[(&str, u32)] = match name {
            "gpt2" | "r50k_base" | "p50k_base" => &[("<|endoftext|>", 50256)],
            "cl100k_base" => &[
                ("<|endoftext|>", 100_257),
                ("<|fim_prefix|>", 100_258),
                ("<|fim_middle|>", 100_259),
                ("<|fim_suffix|>", 100_260),
                ("<|endofprompt|>", 100_276),
            ],
            "o200k_base" => &[("<|endoftext|>", 199_999), ("<|endofprompt|>", 200_018)],
            _ => return None,
        };
        let pattern = match name {
            "cl100k_base" => CL100K,
            "o200k_base" => O200K,
            _ => GPT2,
        };
        let special_tokens = special.iter().map(|&(token, id)| (token.to_owned(), id)).collect();
        Some(Self { pattern: pattern.to_owned(), special_tokens })
    }
}

impl Tokenizer {
    /// The tokenizer whose vocabulary is the `.tiktoken` file at `path`; its ids are those of the Python package
    /// `tiktoken`. With [`special_in_text`](TokenizerOptions::special_in_text) it encodes as with
    /// `allowed_special="all"`, without as `encode_ordinary`.
    ///
    /// ```no_run
    /// use forebay_ingest::{TiktokenOptions, Tokenizer, TokenizerOptions};
    ///
    /// let cl100k = TiktokenOptions::named("cl100k_base").expect("it is one of the published");
    /// let tokenizer = Tokenizer::from_tiktoken("cl100k_base.tiktoken", &cl100k, &TokenizerOptions::default())?;
    /// # Ok::<(), forebay_ingest::TokenizerError>(())
    /// ```
    ///
    /// # Errors
    /// [`TokenizerError`]: the file is missing or is no such vocabulary, the pattern is no regular expression, or the
    /// options do not fit.
    pub fn from_tiktoken(
        path: impl AsRef<Path>,
        vocabulary: &TiktokenOptions,
        options: &TokenizerOptions,
    ) -> Result<Self, TokenizerError> {
        let (bytes, path) = load::read(path.as_ref())?;
        let ranks = parse(&bytes, &path)?;
        Self::build(assemble(&ranks, vocabulary)?, options, None)
    }
}

/// Tokens and their ranks, which are their ids.
type Ranks = AHashMap<Vec<u8>, u32>;

fn parse(content: &[u8], path: &Path) -> Result<Ranks, TokenizerError> {
    let bad = |line: usize, found: String| TokenizerError::NotTiktoken { path: path.to_owned(), line: line + 1, found };
    let mut ranks = Ranks::new();
    let mut taken = AHashMap::new();
    for (number, line) in content.split(|&byte| byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let (token, rank) = entry(line).ok_or_else(|| {
            let shown: String = String::from_utf8_lossy(line).chars().take(40).collect();
            bad(number, format!("is {shown:?}"))
        })?;
        if taken.insert(rank, ()).is_some() {
            return Err(bad(number, format!("repeats the rank {rank}")));
        }
        if ranks.insert(token, rank).is_some() {
            return Err(bad(number, "repeats a token".into()));
        }
    }
    match (0..=255u8).find(|&byte| !ranks.contains_key(&[byte][..])) {
        // Text with that byte could not be encoded.
        Some(byte) => Err(bad(0, format!("and the others have no token for the byte 0x{byte:02x}"))),
        None => Ok(ranks),
    }
}

fn entry(line: &[u8]) -> Option<(Vec<u8>, u32)> {
    let space = line.iter().position(|&byte| byte == b' ')?;
    let token = STANDARD.decode(&line[..space]).ok().filter(|token| !token.is_empty())?;
    let rank = std::str::from_utf8(&line[space + 1..]).ok()?.trim().parse().ok()?;
    Some((token, rank))
}

fn assemble(ranks: &Ranks, vocabulary: &TiktokenOptions) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let unusable = |error: tokenizers::Error| TokenizerError::Unusable { detail: error.to_string() };
    let mut vocab: AHashMap<String, u32> = ranks.iter().map(|(token, &rank)| (written(token), rank)).collect();
    // The crate numbers added tokens itself, except those that the vocabulary has a number for.
    for (token, id) in &vocabulary.special_tokens {
        vocab.insert(token.clone(), *id);
    }
    let model =
        BpeBuilder::new().vocab_and_merges(vocab, merges(ranks)).ignore_merges(true).build().map_err(unusable)?;
    let split = Split::new(SplitPattern::Regex(vocabulary.pattern.clone()), SplitDelimiterBehavior::Isolated, false)
        .map_err(|error| TokenizerError::BadPattern { detail: error.to_string() })?;
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_pre_tokenizer(Some(Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()])));
    inner.with_decoder(Some(ByteLevel::new(false, true, false)));
    let special = vocabulary.special_tokens.iter().map(|(token, _)| AddedToken::from(token.as_str(), true));
    inner.add_special_tokens(special).map_err(unusable)?;
    Ok(inner)
}

/// All ways to cut each token in two tokens, by the rank of the whole.
fn merges(ranks: &Ranks) -> Vec<(String, String)> {
    let mut found = Vec::with_capacity(ranks.len());
    for (token, &rank) in ranks {
        for at in 1..token.len() {
            if let (Some(&left), Some(&right)) = (ranks.get(&token[..at]), ranks.get(&token[at..])) {
                found.push(((rank, left, right), token.split_at(at)));
            }
        }
    }
    found.sort_unstable_by_key(|&(order, _)| order);
    found.into_iter().map(|(_, (left, right))| (written(left), written(right))).collect()
}
