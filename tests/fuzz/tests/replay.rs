//! Every input of `corpus/` through its target, with the stable compiler and no engine: what the fuzzer found
//! interesting stays tested, and an input that once made a target fail (`crash-…`) is here for good.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

use std::{fs, path::PathBuf};

use forebay_fuzz::TARGETS;

/// What all inputs together may take in the repository.
const MOST_BYTES: usize = 300_000;

fn inputs(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut found: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    found.sort();
    found
}

fn replay(target: &str) {
    let (_, body) = TARGETS.into_iter().find(|(name, _)| *name == target).unwrap();
    let inputs = inputs(target);
    assert!(inputs.len() >= 5, "the corpus of {target} is missing");
    for (path, bytes) in inputs {
        // Shown when it panics, so that one sees on which input.
        eprintln!("{}", path.display());
        body(&bytes);
    }
}

#[test]
fn attach() {
    replay("attach");
}

#[test]
fn control() {
    replay("control");
}

#[test]
fn feed() {
    replay("feed");
}

#[test]
fn http() {
    replay("http");
}

#[test]
fn image() {
    replay("image");
}

#[test]
fn machine() {
    replay("machine");
}

#[test]
fn schema() {
    replay("schema");
}

#[test]
fn service() {
    replay("service");
}

#[test]
fn table() {
    replay("table");
}

#[test]
fn jpeg() {
    replay("jpeg");
}

#[test]
fn png() {
    replay("png");
}

#[test]
fn recipe() {
    replay("recipe");
}

#[test]
fn shard() {
    replay("shard");
}

#[test]
fn webp() {
    replay("webp");
}

#[test]
fn the_corpus_is_small() {
    let bytes: usize = TARGETS.iter().flat_map(|(name, _)| inputs(name)).map(|(_, bytes)| bytes.len()).sum();
    assert!(bytes <= MOST_BYTES, "{bytes} bytes");
}

/// Whatever bytes there are mean something: the simplest inputs, at every length.
#[test]
fn every_target_takes_any_bytes() {
    for (_, body) in TARGETS {
        for fill in [0, 1, 0x55, 0xff] {
            for len in [0, 1, 2, 3, 7, 64, 200] {
                body(&vec![fill; len]);
            }
        }
    }
}

/// The inputs of the corpus are short; these are long histories, the same in each run.
#[test]
fn long_histories_of_any_bytes() {
    for name in ["machine", "image"] {
        let (_, body) = TARGETS.into_iter().find(|(target, _)| *target == name).unwrap();
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..2000 {
            let mut byte = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 24) as u8
            };
            let input: Vec<u8> = (0..800).map(|_| byte()).collect();
            body(&input);
        }
    }
}

#[test]
fn text() {
    replay("text");
}
