//! The characters that byte-level vocabularies write bytes as.
//!
//! GPT-2's table: bytes that are visible in Latin-1 stand for themselves, the others are numbered from U+0100 on.

use std::sync::LazyLock;

use ahash::AHashMap;

static CHARS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut hidden = 0x100..;
    std::array::from_fn(|byte| {
        let code = match byte as u32 {
            visible @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => visible,
            _ => hidden.next().unwrap_or(0x100),
        };
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    })
});

static BYTES: LazyLock<AHashMap<char, u8>> =
    LazyLock::new(|| CHARS.iter().enumerate().map(|(byte, &character)| (character, byte as u8)).collect());

/// `bytes` as such a vocabulary writes them.
pub(super) fn written(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| CHARS[usize::from(byte)]).collect()
}

/// Appends the bytes that `token` stands for: itself if it has a character that stands for none.
pub(super) fn read(token: &str, into: &mut Vec<u8>) {
    let start = into.len();
    for character in token.chars() {
        match BYTES.get(&character) {
            Some(&byte) => into.push(byte),
            None => {
                into.truncate(start);
                into.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_written_and_read_again() {
        let all: Vec<u8> = (0..=255).collect();
        let text = written(&all);
        assert!(text.contains('Ġ') && text.contains('a') && !text.contains(' '));
        let mut back = Vec::new();
        read(&text, &mut back);
        assert_eq!(back, all);
        back.clear();
        read("a b", &mut back);
        assert_eq!(back, b"a b");
    }
}
