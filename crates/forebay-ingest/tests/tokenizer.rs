//! Tokenizers: the same ids as elsewhere, rows as asked for, and a clear word about files that are none.

#![cfg(feature = "text")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod common;

use common::{data, number_tokenizer};
use forebay_ingest::{PadSide, PadSource, Tokenizer, TokenizerError, TokenizerOptions, Width};
use proptest::prelude::*;
use tempfile::tempdir;

fn bundled(options: &TokenizerOptions) -> Tokenizer {
    Tokenizer::from_file(data("tokenizer.json"), options).unwrap()
}

fn no_options() -> TokenizerOptions {
    TokenizerOptions::default()
}

#[test]
fn ids_are_those_of_the_python_package() {
    // From tokenizers 0.23.3: no_padding(), no_truncation(), encode(text).ids.
    let long = "a".repeat(101);
    let expected: [(&str, &[u32]); 5] = [
        (
            "In the beginning God created the heaven and the earth.",
            &[101, 1999, 1996, 2927, 2643, 2580, 1996, 6014, 1998, 1996, 3011, 1012, 102],
        ),
        ("e\u{301} ﬁ İstanbul 👨\u{200d}👩\u{200d}👧 a\0b", &[101, 1041, 1984, 9960, 100, 11113, 102]),
        ("[MASK] שלום 中文 ﷺ", &[101, 103, 1266, 29799, 29792, 29800, 1746, 1861, 100, 102]),
        (&long, &[101, 100, 102]),
        ("", &[101, 102]),
    ];
    let tokenizer = bundled(&no_options());
    let tokens = tokenizer.encode_batch(expected.map(|(text, _)| text)).unwrap();
    for (row, (text, ids)) in expected.into_iter().enumerate() {
        assert_eq!(tokens.row(row), ids, "{text}");
    }
    assert_eq!((tokens.rows(), tokens.cols(), tokens.token_count()), (5, 13, 35));
    assert_eq!(tokenizer.encode_batch([]).unwrap().rows(), 0);
}

#[test]
fn without_options_rows_are_as_the_file_says_but_as_wide_as_the_longest() {
    let tokenizer = bundled(&no_options());
    assert_eq!((tokenizer.max_length(), tokenizer.max_cols()), (Some(128), Some(128)));
    assert_eq!((tokenizer.pad_id(), tokenizer.pad_source()), (0, &PadSource::PaddingConfig));
    assert_eq!((tokenizer.pad_side(), tokenizer.vocab_size()), (PadSide::Right, 30_522));
    let many = "word ".repeat(500);
    assert_eq!(tokenizer.encode_batch([many.as_str()]).unwrap().cols(), 128);
}

#[test]
fn options_win_over_the_file() {
    let options = TokenizerOptions {
        max_length: Some(5),
        width: Width::Fixed(7),
        pad_to_multiple_of: Some(4),
        pad_id: Some(9),
        pad_side: Some(PadSide::Left),
        add_special_tokens: false,
        ..no_options()
    };
    let tokenizer = bundled(&options);
    assert_eq!((tokenizer.max_length(), tokenizer.max_cols()), (Some(5), Some(8)));
    assert_eq!(tokenizer.pad_source(), &PadSource::Option);
    let tokens = tokenizer.encode_batch(["and the earth and the heaven", "and"]).unwrap();
    let (mut ids, mut mask) = ([0; 16], [0; 16]);
    tokens.write_into(&mut ids, &mut mask).unwrap();
    assert_eq!(ids, [9, 9, 9, 1998, 1996, 3011, 1998, 1996, 9, 9, 9, 9, 9, 9, 9, 1998]);
    assert_eq!(mask, [0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
}

#[test]
fn a_fixed_width_limits_the_length() {
    let fixed = |width| TokenizerOptions { width: Width::Fixed(width), ..no_options() };
    let many = "word ".repeat(500);
    for (width, max_length) in [(16, 16), (300, 128)] {
        let tokenizer = bundled(&fixed(width));
        assert_eq!((tokenizer.max_length(), tokenizer.max_cols()), (Some(max_length), Some(width)));
        let tokens = tokenizer.encode_batch([many.as_str()]).unwrap();
        assert_eq!((tokens.row(0).len(), tokens.cols()), (max_length, width));
    }
    let numbers = number_tokenizer(&fixed(3));
    assert_eq!(numbers.max_length(), Some(3));
    assert_eq!(number_tokenizer(&no_options()).max_cols(), None);
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let refused = |options| Tokenizer::from_file(data("tokenizer.json"), &options).map(drop).unwrap_err();
    for max_length in [0, 1, 2] {
        let error = refused(TokenizerOptions { max_length: Some(max_length), ..no_options() });
        assert!(matches!(error, TokenizerError::MaxLengthTooSmall { special_tokens: 2, .. }), "{error}");
        assert!(error.to_string().contains("at least 3"), "{error}");
    }
    let error = refused(TokenizerOptions { max_length: Some(9), width: Width::Fixed(8), ..no_options() });
    assert!(matches!(error, TokenizerError::WidthBelowMaxLength { .. }), "{error}");
    let error = refused(TokenizerOptions { pad_to_multiple_of: Some(0), ..no_options() });
    assert!(matches!(error, TokenizerError::MultipleOfZero), "{error}");
}

#[test]
fn a_folder_stands_for_the_tokenizer_in_it() {
    assert!(Tokenizer::from_file(data(""), &no_options()).is_ok());
    let empty = tempdir().unwrap();
    let error = Tokenizer::from_file(empty.path(), &no_options()).unwrap_err();
    assert!(matches!(&error, TokenizerError::Unreadable { path, .. } if path.ends_with("tokenizer.json")), "{error}");
}

#[test]
fn files_that_are_no_tokenizer_are_told_apart() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("file");
    let whole = std::fs::read(data("tokenizer.json")).unwrap();
    let cases: [(&[u8], &str); 14] = [
        (b"", "an empty file"),
        (b"[PAD]\n[UNK]\n", "cut or damaged"),
        (b"the\nof\n", "text"),
        (&whole[..1000], "cut or damaged"),
        (b"\0\x01\xff", "a binary file"),
        (b"PK\x03\x04\xff", "a ZIP archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\x10\x27\0\0\0\0\0\0{\"__metadata__\":{}}", "a safetensors file"),
        (b"{\"tokenizer_class\":\"BertTokenizer\"}", "a tokenizer_config.json"),
        (b"{\"architectures\":[],\"model_type\":\"bert\"}", "a model's config.json"),
        (b"{\"the\":1,\"of\":2}", "a vocabulary"),
        (b"[1]", "an array"),
        (b"{}", "another JSON object"),
        (b"{\"added_tokens\":[],\"model\":{\"type\":\"Future\"}}", "a tokenizer that this build cannot run"),
    ];
    for (content, found) in cases {
        std::fs::write(&path, content).unwrap();
        let error = Tokenizer::from_file(&path, &no_options()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("it is {found}")) || text.contains(found), "{found}: {text}");
        assert!(text.contains("is not a tokenizer") && text.contains("look for that file"), "{text}");
    }
    let missing = Tokenizer::from_file(folder.path().join("missing"), &no_options()).unwrap_err();
    assert!(missing.to_string().contains("check the path"), "{missing}");
}

#[test]
fn the_padding_token_is_looked_for_where_users_keep_it() {
    let with_added = |content: &str| {
        format!(
            r#"{{"version":"1.0","added_tokens":[{{"id":0,"content":"{content}","single_word":false,"lstrip":false,
                "rstrip":false,"normalized":false,"special":true}}],
                "model":{{"type":"WordLevel","vocab":{{"a":0,"b":1,"<eos>":2}},"unk_token":"a"}}}}"#
        )
    };
    let folder = tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let source = |content: &str| {
        std::fs::write(&path, with_added(content)).unwrap();
        let tokenizer = Tokenizer::from_file(&path, &no_options()).unwrap();
        (tokenizer.pad_id(), tokenizer.pad_source().clone())
    };
    assert_eq!(source("<unrelated>"), (0, PadSource::Nothing));
    assert_eq!(source("<pad>"), (3, PadSource::Vocabulary("<pad>".into())));
    assert_eq!(source("<|Right_Pad_id|>"), (3, PadSource::Vocabulary("<|Right_Pad_id|>".into())));
    for config in [r#"{"pad_token":"<eos>"}"#, r#"{"pad_token":{"content":"<eos>"}}"#] {
        std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        assert_eq!(source("<pad>"), (2, PadSource::TokenizerConfig("<eos>".into())));
    }
    std::fs::write(folder.path().join("tokenizer_config.json"), "not JSON").unwrap();
    assert_eq!(source("<pad>").0, 3);
}

#[test]
fn a_refused_text_is_named() {
    let error = number_tokenizer(&no_options()).encode_batch(["1", "2", "boom"]).unwrap_err();
    assert_eq!(error.row, 2);
}

#[test]
fn white_space_for_which_the_regex_engine_might_give_up_is_refused() {
    let tokenizer = bundled(&no_options());
    let run = |length| format!("a{}b", " ".repeat(length));
    assert!(tokenizer.encode_batch([run(500_000).as_str()]).is_ok());
    let error = tokenizer.encode_batch([run(500_001).as_str()]).unwrap_err();
    assert!(error.to_string().contains("white-space"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn rows_do_not_depend_on_their_batch(texts in proptest::collection::vec(any::<String>(), 1..5)) {
        let tokenizer = bundled(&no_options());
        let together = tokenizer.encode_batch(texts.iter().map(String::as_str)).unwrap();
        prop_assert_eq!(together.cols(), together.iter().map(<[u32]>::len).max().unwrap());
        for (row, text) in texts.iter().enumerate() {
            let alone = tokenizer.encode_batch([text.as_str()]).unwrap();
            prop_assert_eq!(together.row(row), alone.row(0));
        }
    }
}
