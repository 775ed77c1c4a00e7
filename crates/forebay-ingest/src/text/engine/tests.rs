//! Cutting, remembering and writing rows ourselves changes no id.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::text::{Tokenizer, TokenizerOptions, Width};

/// The tokenizers of `tests/data`, and whether texts are cut for them.
const KINDS: [(&str, bool); 6] = [
    ("tests/data/words.json", true),
    ("tests/data/byte_level.json", true),
    ("tests/data/split.json", true),
    ("tests/data/unigram.json", true),
    ("tests/data/byte_fallback.json", false),
    ("../../examples/data/tokenizer.json", true),
];

fn engine(path: &str) -> Engine {
    let mut inner = tokenizers::Tokenizer::from_file(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    inner.with_padding(None);
    inner.with_truncation(None).unwrap();
    Engine::new(inner).unwrap()
}

fn options() -> RowOptions {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(KINDS[1].0);
    let tokenizer = Tokenizer::from_file(path, &TokenizerOptions::default()).unwrap();
    RowOptions { width: Width::Longest, type_ids: true, ..tokenizer.rows().clone() }
}

/// Words, white space, and what is between them in bad texts.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        6 => "[a-zA-Z]{1,9}",
        8 => Just(" ".to_owned()),
        2 => "[0-9]{1,5}",
        3 => "[ \t\n\r]{1,3}",
        3 => "[!-/:-@\\[-`{-~]{1,2}",
        2 => prop::sample::select(vec![
            "'s", "'LL", "<mask>", "</s>", "[MASK]", "[SEP]", "<|end|>", "\u{301}", "e\u{301}", "\u{a0}", "\u{3000}", "\u{200b}",
            "\0", "\u{1}", "▁", "Ġ", "##", "日本", "ß", "İ", "ﬁ", "👨\u{200d}👩", "שלום", "\u{2028}", "\u{85}", "\u{feff}", "½",
        ]).prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..25).prop_map(|pieces| pieces.concat())
}

#[test]
fn texts_are_cut_for_the_tokenizers_for_which_it_is_known_to_be_safe() {
    for (path, cuts) in KINDS {
        assert_eq!(engine(path).cuts, cuts, "{path}");
    }
}

/// Ids and types of the rows that `engine` makes, or its refusal.
fn made(encoder: &mut Encoder, engine: &Engine, text: Text<'_>, options: &RowOptions) -> Result<Tokens, ItemError> {
    let mut tokens = Tokens::new(options);
    encoder.row(engine, text, options, &mut tokens)?;
    Ok(tokens)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn rows_are_those_of_the_crate(
        texts in prop::collection::vec((text(), prop::option::of(text())), 1..5),
        max_length in prop::option::of(5usize..24),
        left: bool,
        add_special_tokens: bool,
        truncate in prop::sample::select(vec![Truncate::LongestFirst, Truncate::OnlyFirst, Truncate::OnlySecond]),
    ) {
        thread_local!(static ENGINES: Vec<Engine> = KINDS.iter().map(|(path, _)| engine(path)).collect());
        thread_local!(static OPTIONS: RowOptions = options());
        let truncate_side = if left { Side::Left } else { Side::Right };
        let options = OPTIONS.with(|o| RowOptions { max_length, truncate_side, truncate, add_special_tokens, ..o.clone() });
        let with_tables = RowOptions { offsets: Some(OffsetUnit::Chars), ..options.clone() };
        ENGINES.with(|engines| for engine in engines {
            // One encoder for all texts, so that what it remembers is used.
            let mut encoder = Encoder::default();
            for (first, second) in &texts {
                let text = match second {
                    Some(second) => Text::Pair(first, second),
                    None => Text::Single(first),
                };
                let ours = made(&mut encoder, engine, text, &options);
                let theirs = made(&mut encoder, engine, text, &with_tables);
                match (ours, theirs) {
                    (Ok(ours), Ok(theirs)) => {
                        assert_eq!(ours.ids(), theirs.ids(), "{text:?}");
                        assert_eq!(ours.type_ids(), theirs.type_ids(), "{text:?}");
                        assert_eq!(ours.rows(), 1);
                    }
                    (ours, theirs) => assert_eq!(ours.is_err(), theirs.is_err(), "{text:?} {ours:?} {theirs:?}"),
                }
            }
        });
    }
}

#[test]
fn a_pair_with_offsets_costs_no_more_than_its_texts() {
    let engine = engine(KINDS[1].0);
    // Some 64 parts each at this length, which as pairs of parts would be some 4,000 rows.
    let (first, second) = ("a b ".repeat(2_000), "c d ".repeat(2_000));
    let encode = |text: &str, type_id| {
        split(&engine, text, None).unwrap().into_encoding(None, type_id, OffsetType::Byte).unwrap()
    };
    let mut encoder = Encoder::default();
    for truncate in [Truncate::LongestFirst, Truncate::OnlyFirst, Truncate::OnlySecond] {
        for (first, second) in [(&*first, &*second), (&*first, "c"), ("a", &*second)] {
            let options = RowOptions { max_length: Some(128), truncate, ..options() };
            let with_tables = RowOptions { offsets: Some(OffsetUnit::Bytes), ..options.clone() };
            let text = Text::Pair(first, second);
            let ours = made(&mut encoder, &engine, text, &options);
            let theirs = made(&mut encoder, &engine, text, &with_tables);
            assert_eq!(ours.ok().map(|row| row.ids().to_vec()), theirs.ok().map(|row| row.ids().to_vec()));

            let Ok((first, second)) = truncated(encode(first, 0), Some(encode(second, 1)), 128, &with_tables) else {
                continue;
            };
            assert!(first.get_overflowing().is_empty() && second.unwrap().get_overflowing().is_empty());
        }
    }
    // Where they become rows, nothing of them is lost.
    let windows = RowOptions { overflow: Some(0), ..options() };
    let (cut, _) = truncated(encode(&first, 0), None, 128, &windows).unwrap();
    let kept = cut.len() + cut.get_overflowing().iter().map(Encoding::len).sum::<usize>();
    assert_eq!(kept, encode(&first, 0).len());
}
