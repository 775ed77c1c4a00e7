//! Tokenizers: files that anybody may have written, texts of any characters, ids in any order.

use std::fs;

use forebay_ingest::{
    OffsetUnit, RowOptions, Side, Text, TiktokenOptions, Tokenizer, TokenizerOptions, Tokens, Truncate,
};
use forebay_testkit::Place;

use crate::bytes::Bytes;

thread_local! {
    static DESK: Desk = Desk::new();
}

/// The target `text`.
pub fn run(data: &[u8]) {
    let mut input = Bytes::new(data);
    DESK.with(|desk| match input.byte() % 5 {
        0 => drop(Tokenizer::from_bytes(input.rest(), "fuzz", &TokenizerOptions::default())),
        1 => desk.tiktoken(input.rest()),
        2 => desk.decode(input),
        _ => desk.encode(input),
    });
}

/// One tokenizer of each kind, and a file.
struct Desk {
    place: Place,
    tokenizers: Vec<Tokenizer>,
}

impl Desk {
    fn new() -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../crates/forebay-ingest/tests/data");
        let kinds = ["byte_level", "split", "unigram", "byte_fallback", "words"];
        let load = |kind| Tokenizer::from_file(format!("{folder}/{kind}.json"), &TokenizerOptions::default()).unwrap();
        Self { place: Place::new(), tokenizers: kinds.map(load).into() }
    }

    fn tokenizer(&self, input: &mut Bytes<'_>) -> &Tokenizer {
        &self.tokenizers[usize::from(input.byte()) % self.tokenizers.len()]
    }

    /// Any file, behind all single bytes so that some are vocabularies.
    fn tiktoken(&self, bytes: &[u8]) {
        const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let (whole, bytes) = bytes.split_first().map_or((false, bytes), |(first, rest)| (first % 2 == 1, rest));
        let mut content = Vec::new();
        for byte in (0..=255u8).filter(|_| whole) {
            let digits = [BASE64[usize::from(byte >> 2)], BASE64[usize::from(byte & 3) << 4]];
            content.extend_from_slice(&digits);
            content.extend_from_slice(format!("== {byte}\n").as_bytes());
        }
        content.extend_from_slice(bytes);
        let path = self.place.path().join("fuzz.tiktoken");
        fs::write(&path, content).unwrap();
        let vocabulary = TiktokenOptions::named("cl100k_base").unwrap();
        if let Ok(tokenizer) = Tokenizer::from_tiktoken(path, &vocabulary, &TokenizerOptions::default()) {
            let text = String::from_utf8_lossy(bytes);
            let tokens = tokenizer.encode_batch([&*text]).unwrap();
            assert_eq!(tokenizer.decode(tokens.row(0), false).unwrap(), text, "bytes were lost");
        }
    }

    /// A stream gives what decoding at once gives, and takes nothing back.
    fn decode(&self, mut input: Bytes<'_>) {
        let tokenizer = self.tokenizer(&mut input);
        let skip = input.byte().is_multiple_of(2);
        let ids: Vec<u32> =
            input.rest().chunks(2).map(|pair| pair.iter().fold(0, |id, &b| id << 8 | u32::from(b)) % 1300).collect();
        let whole = tokenizer.decode(&ids, skip).unwrap();
        let mut stream = tokenizer.decode_stream(skip);
        let mut text = String::new();
        for id in ids {
            text.extend(stream.push(id).unwrap());
            assert!(whole.starts_with(&text), "{text:?} was taken back for {whole:?}");
        }
        text.extend(stream.finish().unwrap());
        assert_eq!(text, whole);
    }

    /// Rows made by cutting and looking up are those that the crate makes, whatever is asked for.
    fn encode(&self, mut input: Bytes<'_>) {
        let tokenizer = self.tokenizer(&mut input);
        let (how, length, split) = (input.byte(), input.byte(), input.byte());
        let text = String::from_utf8_lossy(input.rest());
        let mut at = usize::from(split).min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        let item = if how & 1 == 0 { Text::Single(&text) } else { Text::Pair(&text[..at], &text[at..]) };
        let plain = RowOptions {
            max_length: (length < 64).then_some(usize::from(length)),
            truncate_side: if how & 2 == 0 { Side::Right } else { Side::Left },
            truncate: [Truncate::LongestFirst, Truncate::OnlyFirst, Truncate::OnlySecond][usize::from(how >> 3) % 3],
            add_special_tokens: how & 4 == 0,
            type_ids: true,
            ..tokenizer.rows().clone()
        };
        let tables = RowOptions { offsets: Some(OffsetUnit::Bytes), ..plain.clone() };
        let Ok(ours) = tokenizer.encode(&[item, item], &plain, None) else { return };
        let theirs = tokenizer.encode(&[item], &tables, None).unwrap();
        let first = |tokens: &Tokens| tokens.row(0).to_vec();
        assert_eq!(first(&ours), first(&theirs), "{item:?}");
        assert_eq!(ours.row(0), ours.row(1), "{item:?} the second time");
        assert_eq!(ours.errors().len(), 2 * theirs.errors().len(), "{item:?}");
        let windows = RowOptions { overflow: Some(usize::from(how >> 5)), ..plain };
        if let Ok(rows) = tokenizer.encode(&[item], &windows, None) {
            let limit = windows.limit().unwrap_or(usize::MAX);
            assert!(rows.iter().all(|row| row.len() <= limit), "{item:?}");
        }
    }
}
