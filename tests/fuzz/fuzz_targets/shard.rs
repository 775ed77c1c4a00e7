//! The engine around [`forebay_fuzz::images::shard`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::images::shard(data));
