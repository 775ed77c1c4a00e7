//! Ids, offsets, pairs and decoded text of six kinds of tokenizers are those of the Python package.
//!
//! `data/make.py` wrote what is expected; `python-client/ingest/tests` compares with the package itself, on the
//! tokenizers that people use.

#![cfg(feature = "text")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::path::{Path, PathBuf};

use forebay_ingest::{OffsetUnit, Pool, RowOptions, Text, Tokenizer, TokenizerOptions};
use proptest::prelude::*;
use serde_json::Value;

const KINDS: [&str; 6] = ["byte_level", "split", "unigram", "byte_fallback", "words", "word_piece"];

fn path(kind: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    match kind {
        "word_piece" => folder.join("../../examples/data/tokenizer.json"),
        _ => folder.join("tests/data").join(format!("{kind}.json")),
    }
}

fn tokenizer(kind: &str) -> Tokenizer {
    Tokenizer::from_file(path(kind), &TokenizerOptions::default()).unwrap()
}

/// Rows without a limit: the bundled tokenizer has one.
fn unlimited(tokenizer: &Tokenizer) -> RowOptions {
    RowOptions { max_length: None, ..tokenizer.rows().clone() }
}

struct Expected(Value);

impl Expected {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/expected.json");
        Self(serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
    }

    fn texts(&self) -> Vec<String> {
        serde_json::from_value(self.0["texts"].clone()).unwrap()
    }

    fn of<T: serde::de::DeserializeOwned>(&self, kind: &str, what: &str) -> T {
        serde_json::from_value(self.0["tokenizers"][kind][what].clone()).unwrap()
    }
}

fn rows(tokens: &forebay_ingest::Tokens) -> Vec<Vec<u32>> {
    tokens.iter().map(<[u32]>::to_vec).collect()
}

#[test]
fn ids_are_those_of_the_python_package() {
    let expected = Expected::read();
    let texts = expected.texts();
    let items: Vec<Text<'_>> = texts.iter().map(|text| Text::Single(text)).collect();
    let pool = Pool::new(2).unwrap();
    for kind in KINDS {
        let tokenizer = tokenizer(kind);
        let all = unlimited(&tokenizer);
        let plain = RowOptions { add_special_tokens: false, ..all.clone() };
        let short = RowOptions { max_length: Some(12), ..all.clone() };
        for (what, options) in [("ids", &all), ("plain", &plain), ("cut_to_12", &short), ("ids", &all)] {
            let tokens = tokenizer.encode(&items, options, Some(&pool)).unwrap().complete().unwrap();
            assert_eq!(rows(&tokens), expected.of::<Vec<Vec<u32>>>(kind, what), "{kind} {what}");
        }
    }
}

#[test]
fn offsets_count_characters_as_in_python_or_bytes() {
    let expected = Expected::read();
    let texts = expected.texts();
    let items: Vec<Text<'_>> = texts.iter().map(|text| Text::Single(text)).collect();
    for kind in KINDS {
        let tokenizer = tokenizer(kind);
        let offsets = |unit| {
            let options = RowOptions { offsets: Some(unit), ..unlimited(&tokenizer) };
            let tokens = tokenizer.encode(&items, &options, None).unwrap().complete().unwrap();
            (tokens.offsets().unwrap().to_vec(), rows(&tokens))
        };
        let (chars, ids) = offsets(OffsetUnit::Chars);
        assert_eq!(ids, expected.of::<Vec<Vec<u32>>>(kind, "ids"), "{kind}");
        let theirs: Vec<Vec<[u64; 2]>> = expected.of(kind, "offsets");
        assert_eq!(chars, theirs.concat(), "{kind}");
        let (bytes, _) = offsets(OffsetUnit::Bytes);
        let mut at = 0;
        for (text, row) in texts.iter().zip(&ids) {
            // The byte at which each character begins.
            let begins: Vec<u64> = text.char_indices().map(|(at, _)| at as u64).chain([text.len() as u64]).collect();
            for place in at..at + row.len() {
                assert_eq!(bytes[place][0], begins[chars[place][0] as usize], "{kind} {text:?}");
            }
            at += row.len();
        }
    }
}

#[test]
fn pairs_are_those_of_the_python_package() {
    let expected = Expected::read();
    let texts = expected.texts();
    let pairs: Vec<[usize; 2]> = serde_json::from_value(expected.0["pairs"].clone()).unwrap();
    let items: Vec<Text<'_>> = pairs.iter().map(|&[first, second]| Text::Pair(&texts[first], &texts[second])).collect();
    for kind in KINDS {
        let tokenizer = tokenizer(kind);
        let options = RowOptions { max_length: Some(12), type_ids: true, ..unlimited(&tokenizer) };
        let tokens = tokenizer.encode(&items, &options, None).unwrap().complete().unwrap();
        assert_eq!(rows(&tokens), expected.of::<Vec<Vec<u32>>>(kind, "pairs_cut_to_12"), "{kind}");
        let types: Vec<Vec<u32>> = expected.of(kind, "pair_types");
        assert_eq!(tokens.type_ids().unwrap(), types.concat(), "{kind}");
    }
}

#[test]
fn text_is_decoded_as_in_python_at_once_and_one_by_one() {
    let expected = Expected::read();
    for kind in KINDS {
        let tokenizer = tokenizer(kind);
        let ids: Vec<Vec<u32>> = expected.of(kind, "ids");
        for (skip, what) in [(false, "decoded"), (true, "decoded_without_special")] {
            let texts: Vec<String> = expected.of(kind, what);
            for (ids, text) in ids.iter().zip(texts) {
                assert_eq!(tokenizer.decode(ids, skip).unwrap(), text, "{kind} {what}");
                assert_eq!(streamed(&tokenizer, ids, skip), text, "{kind} {what}");
            }
        }
    }
}

/// What the stream gives for `ids`, checked to be whole characters of the text decoded so far.
fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> String {
    let mut stream = tokenizer.decode_stream(skip);
    let mut text = String::new();
    for &id in ids {
        text.extend(stream.push(id).unwrap());
    }
    text.extend(stream.finish().unwrap());
    text
}

/// Windows of a long text overlap, have a row each, and together have every token.
#[test]
fn what_does_not_fit_becomes_further_rows_of_its_item() {
    for kind in KINDS {
        let tokenizer = tokenizer(kind);
        let plain = RowOptions { add_special_tokens: false, ..unlimited(&tokenizer) };
        let windows = RowOptions { max_length: Some(9), overflow: Some(3), ..plain.clone() };
        let long = "In the beginning God created the heaven and the earth. ".repeat(4);
        let items = [Text::Single("And"), Text::Single(&long), Text::Single("God")];
        let whole = tokenizer.encode(&items, &plain, None).unwrap();
        let tokens = tokenizer.encode(&items, &windows, None).unwrap();
        assert!(tokens.rows() > 5, "{kind}");
        let of_long: Vec<&[u32]> =
            (0..tokens.rows()).filter(|&row| tokens.item(row) == 1).map(|row| tokens.row(row)).collect();
        let mut joined = of_long[0].to_vec();
        for (before, window) in of_long.iter().zip(&of_long[1..]) {
            assert_eq!(before[before.len() - 3..], window[..3], "{kind}");
            joined.extend_from_slice(&window[3..]);
        }
        assert_eq!(joined, whole.row(1), "{kind}");
        assert_eq!(tokens.items().last(), Some(2));
    }
}

#[test]
fn a_text_that_is_refused_leaves_the_others_alone() {
    let json = br#"{"version":"1.0","added_tokens":[],"pre_tokenizer":{"type":"WhitespaceSplit"},
        "model":{"type":"WordLevel","vocab":{"a":0,"b":1},"unk_token":"missing"}}"#;
    let tokenizer = Tokenizer::from_bytes(json, "words", &TokenizerOptions::default()).unwrap();
    let many = "a ".repeat(20_000);
    let items = ["a", "boom", &many, "b", "a boom"].map(Text::Single);
    for pool in [None, Some(Pool::new(2).unwrap())] {
        let tokens = tokenizer.encode(&items, tokenizer.rows(), pool.as_ref()).unwrap();
        assert_eq!(tokens.errors().iter().map(|e| e.row).collect::<Vec<_>>(), [1, 4]);
        assert_eq!(tokens.iter().map(<[u32]>::len).collect::<Vec<_>>(), [1, 0, 20_000, 1, 0]);
        assert_eq!(tokens.complete().unwrap_err().row, 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_stream_gives_what_decoding_at_once_gives_and_takes_nothing_back(
        ids in prop::collection::vec(0u32..1300, 0..40),
        skip: bool,
    ) {
        thread_local!(static TOKENIZERS: Vec<Tokenizer> = KINDS.iter().map(|kind| tokenizer(kind)).collect());
        TOKENIZERS.with(|tokenizers| for tokenizer in tokenizers {
            let whole = tokenizer.decode(&ids, skip).unwrap();
            let mut stream = tokenizer.decode_stream(skip);
            let mut text = String::new();
            for &id in &ids {
                text.extend(stream.push(id).unwrap());
                assert!(whole.starts_with(&text), "{text:?} is not how {whole:?} begins");
            }
            text.extend(stream.finish().unwrap());
            assert_eq!(text, whole);
            // At its start again.
            let first = ids.first().map(|&id| (stream.push(id).unwrap(), tokenizer.decode_stream(skip).push(id).unwrap()));
            assert!(first.is_none_or(|(again, fresh)| again == fresh));
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn rows_do_not_depend_on_the_number_of_threads(
        texts in prop::collection::vec("[a-z ]{0,40}", 0..60).prop_map(|t| t.into_iter().map(|t| t.repeat(40)).collect::<Vec<_>>()),
    ) {
        thread_local!(static MADE: (Tokenizer, Pool) = (tokenizer("byte_level"), Pool::new(3).unwrap()));
        MADE.with(|(tokenizer, pool)| {
            let items: Vec<Text<'_>> = texts.iter().map(|text| Text::Single(text)).collect();
            let one = tokenizer.encode(&items, tokenizer.rows(), None).unwrap();
            let many = tokenizer.encode(&items, tokenizer.rows(), Some(pool)).unwrap();
            assert_eq!(one, many);
        });
    }
}
